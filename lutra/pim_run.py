# SPDX-License-Identifier: Apache-2.0
"""Commands on the PIM target: compile, cosim, estimate, eval. ``lutra.api`` dispatches here by the configuration's target."""

import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from lutra.hls_models.errors import ConfigError, LutraError, MismatchError, ModelError
from lutra.hls_models.pim.config import PimConfig
from lutra.inputs import OnText, Writer, check_length, facts, keep_tokenizer, open_named, tokenizer
from lutra.progress import step
from lutra.runs import Run, create_run, file_hash, open_run, update_run
from lutra.schema import DecodeFigures, PrefillFigures, Report, RtlFigures

if TYPE_CHECKING:  # heavy at start-up: the functions import what they need
    import numpy as np

    from lutra.mapping.pim.partition import Partition

__all__ = ["BLOCKS", "compile_model", "cosim", "estimate", "forward", "verilog"]

BLOCKS = ("system", "channel", "controller", "mac", "companion")
"""What ``lutra verilog`` writes, the whole first."""
CELLS, PROGRAM, PLACES, TIMING, TOKENIZER, TRACE = "cells.npy", "program.txt", "places.json", "timing.yaml", "tokenizer", "trace.json"


def compile_model(model: str | Path, config: PimConfig, out: str | Path | None) -> Run:
    """Contents of the banks, what lies where, and the first token's program, in a run folder; ``lutra verilog`` writes the hardware."""
    import numpy as np

    from lutra.hls_models.pim.timing import timing_file
    from lutra.mapping.pim.lower import lower
    from lutra.mapping.pim.partition import partition
    from lutra.mapping.pim.weights import cells

    with step("reading the model"):
        source, opened = open_named(model, config, weights=True)
    made = partition(opened.shape, config)
    target = Path(out) if out else Path("runs") / re.sub(r"[^\w.-]+", "_", f"{opened.shape.name}-{config.name}")
    with create_run(target, command="compile", config=config) as draft:
        draft.inputs["model"] = facts(source, opened.shape)
        with step("placing the weights"):
            np.save(draft.path / CELLS, cells(opened, made), allow_pickle=False)
        (draft.path / TIMING).write_bytes(timing_file(config.timing).read_bytes())
        regions = [{"name": region.name, "row": region.row, "rows": region.rows} for region in made.regions]
        (draft.path / PLACES).write_text(json.dumps({"rows": made.rows, "regions": regions}, indent=1) + "\n", encoding="utf-8")
        (draft.path / PROGRAM).write_text(_listing(lower(made, 0)), encoding="utf-8")
        if source is not None:
            keep_tokenizer(source, draft.path / TOKENIZER)
    return open_run(target)


def verilog(config: PimConfig, block: str) -> str:
    """Verilog of a whole system without its cells, or of one block."""
    from lutra.hls_models.pim.timing import load_timing
    from lutra.rtl.pim.channel import Channel
    from lutra.rtl.pim.companion import Companion
    from lutra.rtl.pim.controller import Controller
    from lutra.rtl.pim.mac import MacUnit
    from lutra.rtl.pim.system import PimSystem
    from lutra.rtl.verilog import emit

    timing = load_timing(config.timing)
    makers: dict[str, Any] = {
        "system": lambda: PimSystem(config, timing),
        "channel": lambda: Channel(config, timing),
        "controller": lambda: Controller(config, timing),
        "mac": lambda: MacUnit(config),
        "companion": lambda: Companion(config),
    }
    return emit(makers[block](), f"lutra_{block}")


def _listing(program: Any) -> str:
    """The program of the first token, for reading."""
    lines = ["companion chip"]
    for index, instruction in enumerate(program.instructions):
        if index in program.labels:
            lines.append(f"  {program.labels[index]}")
        lines.append(f"    {index:5d}  {_short(instruction)}")
    for channel, macros in enumerate(program.macros):
        lines.append(f"channel {channel}")
        lines += [f"    {index:5d}  {_short(macro)}" for index, macro in enumerate(macros)]
    return "\n".join(lines) + "\n"


def _short(item: Any) -> str:
    """Name and the fields that are not at their defaults."""
    fields = type(item).__dataclass_fields__
    kind = getattr(item, "kind", None)
    shown = [f"{name}={getattr(item, name)}" for name, field in fields.items() if name != "kind" and getattr(item, name) != field.default]
    return " ".join([kind.name if kind is not None else type(item).__name__.upper(), *shown])


def cosim(run: Run, *, seed: int, tokens: int, prompt: str, on_text: OnText | None) -> Report:
    """Every token of prompt and answer on the RTL: the next program is made from the token that the RTL chose, keys and values are the RTL's own."""
    import numpy as np

    from lutra import pim
    from lutra.cosim.pim import PimBench, PimRun
    from lutra.hls_models.pim.timing import load_timing
    from lutra.mapping.pim.lower import clear, lower
    from lutra.timeline import Span, write_trace

    config, made = _compiled(run)
    timing = load_timing(config.timing)
    words = tokenizer(run.path / TOKENIZER, made.shape.vocabulary)
    ids = words.encode(prompt)
    check_length(made.shape.context, len(ids), tokens)
    writer = Writer(words, prompt, on_text)
    cells = _cells(run, made)
    with update_run(run, command="cosim") as draft:
        draft.seeds["cosim"] = seed
        draft.inputs["prompt"] = {"tokens": len(ids), "sha256": hashlib.sha256(prompt.encode()).hexdigest()}
        with step("building the simulator"):
            bench = PimBench(config, timing, rows=cells.shape[2] // config.columns)
            bench.build()
        done: list[PimRun] = []
        cleared: list[PimRun] = []
        spans: list[Span] = []
        compared, mismatch = 0, None
        with step("simulating the RTL") as update:
            pending = list(ids)
            total = len(ids) + tokens - 1
            while pending and mismatch is None:
                try:
                    if len(done) % made.reservation == 0:  # room for values is zeroed before its first use
                        cleared.append(bench.run(clear(made, len(done) // made.reservation), cells))
                        compared += cleared[-1].words
                    program = lower(made, len(done), pending.pop(0))
                    found = bench.run(program, cells, phase=(seed * 997 + 131 * len(done)) % timing.cycles("tREFI"))
                except MismatchError as error:
                    mismatch = f"token {len(done)}: {error}"
                    break
                done.append(found)
                compared += found.words
                begin = sum(one.system.cycles for one in (*cleared, *done[:-1]))
                spans += [span._replace(start=span.start + begin, done=span.done + begin) for span in pim.spans_of(program, found.system)]
                update(len(done), total)
                if not pending and len(writer.ids) < tokens:
                    writer.token(found.index)
                    if found.index not in words.stop and len(writer.ids) < tokens:
                        pending.append(found.index)
        predicted, measured = sum(one.predicted for one in (*cleared, *done)), sum(one.cycles for one in (*cleared, *done))
        rtl = RtlFigures(
            simulated=True,
            words_compared=compared,
            words_mismatched=int(mismatch is not None),
            cycles_predicted=predicted,
            cycles_measured=measured,
            mismatch=mismatch,
        )
        context = max(1, len(done))
        report = pim.report_of(pim.token_time(made, timing, context))
        times = np.array([one.system.cycles for one in done], np.int64)
        update_with: dict[str, Any] = {"seed": seed, "rtl": rtl, "text": prompt + words.decode(writer.ids)}
        proven: dict[str, str] = {}
        if len(done) >= len(ids):
            first = int(times[: len(ids)].sum()) + sum(one.system.cycles for one in cleared[:1])
            update_with["prefill"] = PrefillFigures(tokens=len(ids), cycles=first, seconds=first * timing.clock_ns * 1e-9)
        if len(done) > len(ids):
            rest = times[len(ids) :]
            mean = float(rest.mean())
            per_token = [int(value) for value in rest]
            seconds = mean * timing.clock_ns * 1e-9
            update_with["decode"] = DecodeFigures(
                tokens=len(rest), context=len(done), cycles_per_token=mean, tokens_per_second=1 / seconds, per_token=per_token
            )
        if rtl.proven:
            proven = {field: "rtl" for field in ("prefill", "decode") if field in update_with}
        report = report.model_copy(update={**update_with, "provenance": {**report.provenance, "rtl": "rtl", **proven}})
        draft.write_report(report)
        write_trace(draft.path / TRACE, spans, clock_hz=report.clock_hz, title=f"{made.shape.name} on {config.name}")
    if not rtl.proven:
        raise MismatchError(f"{run.path}: {mismatch or f'cycles {measured - predicted:+,} against the prediction'}")
    return report


def estimate(
    model: str | Path,
    config: PimConfig,
    *,
    prompt: int | None,
    context: int,
    out: str | Path | None,
    refresh: bool,
    sweep: Sequence[int],
    channels: Sequence[int],
    ignore_capacity: bool,
) -> Report:
    """Tokens of a GPT model on channels and companion chip, timed by the cycle model."""
    from lutra import pim
    from lutra.mapping.pim.model import GptModel
    from lutra.timeline import write_trace

    for name, values in (("prompt", [prompt or 1]), ("context", [context]), ("sweep", sweep), ("channels", channels)):
        if any(value < 1 for value in values):
            raise ConfigError(f"{name} must be at least 1, not {min(values)}")
    sizes = config if refresh else config.model_copy(update={"refresh": False})
    source, opened = open_named(model, sizes, shape_only=True)
    longest = max([context, prompt or 1, *sweep])
    if (source is not None or isinstance(opened, GptModel)) and longest > opened.context:
        raise ModelError(f"{opened.name}: context must be at most {opened.context}, its positions, not {longest}")
    with step("counting cycles") as update:
        options: dict[str, Any] = {"context": context, "prompt": prompt, "sweep": sweep, "channels": channels, "ignore_capacity": ignore_capacity}
        found, token = pim.estimate(opened, sizes, **options, update=update)
    found = found.model_copy(update={"rtl": RtlFigures(simulated=False)})
    if out is not None:
        with create_run(out, command="estimate", config=sizes) as draft:
            draft.inputs |= {"model": facts(source, opened), "context": context}
            draft.write_report(found)
            write_trace(draft.path / TRACE, pim.spans_of(token.program, token.run), clock_hz=found.clock_hz, title=f"{opened.name} on {sizes.name}")
    return found


def forward(model: Any, config: PimConfig, ids: "np.ndarray", update: Any) -> tuple["np.ndarray", "np.ndarray"]:
    """Logits (tokens, vocabulary) of golden model and float64 reference, window by window of the context length."""
    import numpy as np

    from lutra.mapping.pim.golden import Golden
    from lutra.mapping.pim.partition import partition
    from lutra.mapping.pim.reference import evaluate

    golden, exact = [], []
    system = Golden(model, partition(model.shape, config))
    for begin in range(0, len(ids), model.shape.context):
        window = ids[begin : begin + model.shape.context]
        golden.append(system.logits(window).astype(np.float64))
        exact.append(evaluate(model, window))
        update(begin + len(window), len(ids))
    return np.concatenate(golden), np.concatenate(exact)


def _compiled(run: Run) -> tuple[PimConfig, "Partition"]:
    from lutra.mapping.pim.partition import partition
    from lutra.mapping.pim.shape import GptShape

    if "compile" not in run.manifest.commands:
        raise LutraError(f"{run.path}: holds no compiled model (lutra compile MODEL --config C -o {run.path} makes one)")
    try:
        config = PimConfig.model_validate(run.manifest.config["values"])
        shape = GptShape.model_validate(run.manifest.inputs["model"]["shape"])
    except (KeyError, TypeError, ValidationError):
        raise LutraError(f"{run.path}: manifest.json holds no PIM configuration and GPT shape; make the run again") from None
    if (run.path / TIMING).is_file():
        config = config.model_copy(update={"timing": str(run.path / TIMING)})
    return config, partition(shape, config)


def _cells(run: Run, made: "Partition") -> "np.ndarray":
    """Contents of the banks (channels, banks, positions, lanes)."""
    import numpy as np

    path, config = run.path / CELLS, made.config
    try:
        cells = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise LutraError(f"{path}: cannot be read: {error}") from None
    wanted = (config.channels, config.banks, made.rows * config.columns, config.lanes)
    if cells.dtype != np.uint16 or cells.shape != wanted:
        raise LutraError(f"{path}: must be uint16 of shape {list(wanted)}, not {cells.dtype} {list(cells.shape)} (sha256 {file_hash(path)[:12]})")
    return cells
