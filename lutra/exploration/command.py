# SPDX-License-Identifier: Apache-2.0
"""What ``lutra explore`` does, from names and paths to the run folder."""

import json
from contextlib import ExitStack
from pathlib import Path
from typing import cast

from lutra.exploration import search, workers
from lutra.exploration.fit import counter
from lutra.exploration.goals import GOALS, Goal
from lutra.exploration.output import plot
from lutra.exploration.search import Exploration
from lutra.fpga_flows.devices import load_device
from lutra.hls_models.errors import ConfigError
from lutra.hls_models.load import nearest
from lutra.hls_models.ternary.config import CoreConfig
from lutra.inputs import core_config, facts, open_named, shape_of, within
from lutra.progress import note, step
from lutra.runs import create_run

__all__ = ["EXPLORE_JSON", "EXPLORE_PLOT", "explore"]

EXPLORE_JSON, EXPLORE_PLOT = "explore.json", "explore.svg"


def explore(
    model: str | Path,
    device: str | Path,
    *,
    goal: str,
    prompt: int,
    context: int | None,
    budget: int,
    seed: int,
    jobs: int | None,
    scheduler: str | None,
    limit: float | None,
    config: str | Path | CoreConfig | None,
    out: str | Path | None,
) -> Exploration:
    """As ``lutra.api.explore``."""
    wanted = "bytes" if goal == "energy" else goal
    if wanted not in GOALS:
        near = nearest(goal, GOALS)
        raise ConfigError(f"goal must be one of {', '.join(GOALS)} or energy, not {goal!r}" + (f"; nearest: {near}" if near else ""))
    board = load_device(device)
    if limit is not None:
        if not 0 < limit <= 1:
            raise ConfigError(f"limit must be a share above 0 and at most 1, not {limit}")
        board = board.model_copy(update={"limit": limit})
    for name, number in (("budget", budget), ("jobs", 1 if jobs is None else jobs)):
        if number < 1:
            raise ConfigError(f"{name} must be at least 1, not {number}")
    base = core_config(config or board.preset, "explore")
    source, opened = open_named(model, base, shape_only=True)
    shape = shape_of(opened)
    rows = within(shape, prompt, context)
    count = counter(board)
    with ExitStack() as stack:
        draft = stack.enter_context(create_run(out, command="explore", config=base)) if out is not None else None  # a folder that may not be written: at once
        run = stack.enter_context(workers.workers(jobs, scheduler))
        try:
            with step("counting cycles of cores") as update:
                found = search.explore(
                    shape, board, base, goal=cast(Goal, wanted), prompt=prompt, context=rows, budget=budget, seed=seed, run=run, count=count, update=update
                )
        except KeyboardInterrupt:
            note("what was counted is kept: the same command goes on from there")
            raise
        if draft is not None:
            draft.seeds["explore"] = seed
            draft.inputs |= {"model": facts(source, shape), "device": board.model_dump(mode="json"), "prompt": {"tokens": prompt}, "context": rows}
            (draft.path / EXPLORE_JSON).write_text(json.dumps(found.facts(), indent=1, allow_nan=False) + "\n", encoding="utf-8")
            (draft.path / EXPLORE_PLOT).write_text(plot(found), encoding="utf-8")
    return found
