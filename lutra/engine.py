# SPDX-License-Identifier: Apache-2.0
"""The calls into the floors below, one small function each: compile, Verilog, cycles, co-simulation, golden values.

What they import is heavy, so it is imported where it is used.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

    from lutra.figures import Timing
    from lutra.hls_models.ternary.config import CoreConfig
    from lutra.hls_models.ternary.core import CoreSpec
    from lutra.hls_models.ternary.core_units import PassTimes
    from lutra.hls_models.ternary.program import Program

__all__ = ["BLOCKS", "Simulated", "check_simulator", "compile_program", "forward", "simulate", "timing", "verilog"]

BLOCKS = {
    "core": ("core", "Core"),
    "loader": ("loader", "Loader"),
    "weights": ("weights", "WeightPath"),
    "tlmm": ("tlmm", "Tlmm"),
    "vector": ("vector", "Vector"),
    "attention": ("attention", "Attention"),
    "head": ("head", "Head"),
}
"""Blocks of a core by name: module and class in lutra.rtl.ternary; the block's configuration is the property of that name of ``CoreSpec``."""


@dataclass(frozen=True)
class Simulated:
    """What a co-simulation found. ``tokens``: the ids that the RTL wrote; the words are elements of golden arrays; ``timing``: the cycle model's; ``mismatch``:
    the first difference in time."""

    tokens: list[int]
    words_compared: int
    words_mismatched: int
    cycles_measured: int
    timing: Timing
    mismatch: str | None = None


def compile_program(model: Any, config: CoreConfig, folder: Path | None = None, update: Callable[[int, int], None] | None = None) -> Program:
    """The program of a ``TernaryModel``, or, without a memory image, of a ``ModelShape``.

    With ``folder`` it is saved there, the image matrix by matrix as it is made; ``update`` is called with the bytes made so far, and all.
    """
    from lutra.hls_models.ternary.program import IMAGE
    from lutra.mapping.lower import compile_model

    if folder is None:
        return compile_model(model, config)
    folder.mkdir(parents=True)
    program = compile_model(model, config, image=folder / IMAGE, update=update)
    program.save(folder)
    return program


def verilog(spec: CoreSpec, block: str) -> str:
    """Verilog of ``block`` as module ``lutra_BLOCK``."""
    from importlib import import_module

    from lutra.rtl.verilog import emit

    module, name = BLOCKS[block]
    component = getattr(import_module(f"lutra.rtl.ternary.{module}"), name)
    return emit(component(spec=spec) if block == "core" else component(config=getattr(spec, block)), f"lutra_{block}")


def check_simulator() -> None:
    """ToolError where a co-simulation lacks a program: before any work is done for one."""
    from lutra.cosim.simulator import tools

    tools()


def timing(spec: CoreSpec, program: Program, *, prompt: int, contexts: Sequence[int], rescored: float = 1.0) -> Timing:
    """The cycle model: prefill of ``prompt`` tokens, then one decode pass per context (KV rows attended, the present token included); ``rescored``: share of
    the rows that a head in two planes scores again."""
    from lutra.hls_models.ternary.core_cycles import CoreTiming

    model = CoreTiming(spec, program, rescored=rescored)
    passes = model.run(prompt, 1)
    return _timing(passes + model.passes([(context - 1, 1, True) for context in contexts]), len(passes))


def _timing(passes: Sequence[PassTimes], prompt_passes: int, *, origins: Sequence[int] = (), accepted: Sequence[int] = ()) -> Timing:
    """Figures' form of passes of which the first ``prompt_passes`` are the prompt's; the cycles of each counted from its origin (default: reset).
    ``accepted``: tokens of the text that each of the others yields (default: one)."""
    import numpy as np

    from lutra.figures import PassSize, Timing

    origin = np.array(origins if len(origins) else [0] * len(passes), np.int64)
    begin, done = (np.stack([getattr(one, name) for one in passes]) for name in ("begins", "dones"))
    busy: dict[str, int] = {}
    stalls: dict[str, dict[str, int]] = {}
    for one in passes:
        for unit, worked in one.worked.items():
            busy[unit.name] = busy.get(unit.name, 0) + worked
        for unit, reasons in one.stalls.items():
            waits = stalls.setdefault(unit.name, {})
            for reason, clocks in reasons.items():
                waits[reason] = waits.get(reason, 0) + clocks
    yields = [*[1] * prompt_passes, *(accepted or [1] * (len(passes) - prompt_passes))]
    sizes = tuple(
        PassSize(one.position, one.tokens, one.last, number >= prompt_passes, one.rescored, one.serial, yields[number]) for number, one in enumerate(passes)
    )
    begin, done = (np.where(cycles < 0, -1, cycles - origin[:, None]) for cycles in (begin, done))
    by_pass = tuple({unit.name: clocks for unit, clocks in one.worked.items()} for one in passes)
    return Timing(sizes, begin, done, np.array([one.end for one in passes], np.int64) - origin, busy, stalls, by_pass)


def simulate(
    spec: CoreSpec,
    program: Program,
    ids: Sequence[int],
    tokens: int,
    *,
    stop: Collection[int],
    seed: int,
    waves: bool,
    folder: Path,
    on_token: Callable[[int], None],
    drafts: int = 0,
) -> Simulated:
    """The RTL in Verilator beside golden and cycle model: ``tokens`` ids after the prompt ``ids``, fewer where one of ``stop`` comes; with up to ``drafts``
    drafts verified per pass, or token by token.

    Logs and waves go to ``folder``; ``on_token`` is called as the RTL writes each id of the text. Cycles are those in which the core works, not the host.
    """
    import numpy as np

    from lutra.cosim.core import CoreBench, Job, Turn
    from lutra.cosim.drafted import Drafted, drafted
    from lutra.hls_models.ternary.executor import Executor

    bench = CoreBench({"core": (spec, program.beats)})
    bench.build(waves=waves)
    if len(stop) > 1 and not drafts:  # the core stops at one token; where there are several the golden model tells how far the text goes
        written = [done.token for done in Executor(spec, program).generate(list(ids), tokens) if done.last]
        tokens = next((n for n, token in enumerate(written, 1) if token in stop), tokens)
    plan = Drafted([Turn(ids, tokens, stop=next(iter(stop)) if len(stop) == 1 else None)], [tokens])
    if drafts:
        plan = drafted(Executor(spec, program), list(ids), tokens, drafts, stop)
    coming = iter(plan.belongs)

    def on_choice(token: int) -> None:
        if next(coming, False):
            on_token(token)

    found = bench.check({"core": Job(program, plan.turns)}, folder=folder / "simulation", on_token=on_choice)["core"]
    text = [token for token, its in zip(found.tokens, plan.belongs, strict=False) if its]
    # The host's clocks between two runs of the core are left out: every pass counts from where its run would begin without them.
    starts, lengths = np.array(found.starts), np.subtract(found.ends, found.starts)
    without = starts - np.cumsum(lengths) + lengths
    origins = [int(without[np.searchsorted(starts, one.start) - 1]) for one in found.times]
    times = _timing(found.times, -(-len(ids) // spec.config.chunk), origins=origins, accepted=plan.accepted[1:])
    return Simulated(text, found.words_compared, found.words_mismatched, sum(found.measured), times, found.mismatch)


def forward(model: Any, spec: CoreSpec, program: Program, ids: np.ndarray, update: Callable[[int, int], None]) -> tuple[np.ndarray, np.ndarray]:
    """Logits (tokens, vocabulary) of golden model and float64 reference, window by window of the context length."""
    import numpy as np

    from lutra.hls_models.ternary.executor import Executor, plan_passes
    from lutra.mapping.graph import build
    from lutra.mapping.reference import evaluate

    graph, core = build(model), Executor(spec, program)
    golden, exact = [], []
    for begin in range(0, len(ids), spec.shape.context):
        window = ids[begin : begin + spec.shape.context]
        for position, count, last in plan_passes(0, len(window), spec.config.chunk):
            golden.append(core.run_pass(window[position : position + count].tolist(), position, last, scores=True).logits())
            update(begin + position + count, len(ids))
        exact.append(evaluate(graph, window))
    return np.concatenate(golden), np.concatenate(exact)
