# SPDX-License-Identifier: Apache-2.0
"""Every command as a function. MODEL and CONFIG are names or paths as on the command line; errors are ``LutraError``."""

import hashlib
import re
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lutra import engine, pim_run
from lutra.boards import fpga, talk
from lutra.exploration.fit import check_fit, figures_of
from lutra.hls_models.errors import ConfigError, LutraError, MismatchError, ModelError
from lutra.hls_models.load import nearest, preset_names
from lutra.hls_models.pim.config import PimConfig
from lutra.hls_models.ternary.config import CoreConfig
from lutra.inputs import (
    DEFAULT_CONFIG,
    DEFAULT_MODEL,
    PROGRAM,
    TOKENIZER,
    AnyConfig,
    OnText,
    Writer,
    any_config,
    check_drafts,
    check_length,
    compiled,
    core_config,
    facts,
    keep_tokenizer,
    loss_of,
    open_named,
    read_ids,
    read_text,
    shape_of,
    spec_of,
    tokenizer,
    within,
)
from lutra.progress import note, step
from lutra.proofs import backing
from lutra.runs import Run, create_run, open_run, update_run, write_whole
from lutra.schema import AccuracyFigures, AccuracyItem, Report, RtlFigures

if TYPE_CHECKING:  # heavy at start-up: the functions import what they need
    from lutra.exploration.search import Exploration
    from lutra.hls_models.pim.in_order import TraceResult
    from lutra.hls_models.ternary.core import CoreSpec
    from lutra.hls_models.ternary.program import Program

__all__ = [
    "DEFAULT_PROMPT",
    "Evaluation",
    "OnText",
    "compile_model",
    "cosim",
    "demo",
    "estimate",
    "evaluate",
    "explore",
    "fpga",
    "pim_trace",
    "report",
    "reports",
    "shipped",
    "talk",
    "verilog",
    "write_file",
]

DEFAULT_PROMPT = "KING RICHARD:\nNow is the winter of our discontent,\n"
VERILOG, TRACE = "core.v", "trace.json"


@dataclass(frozen=True)
class Evaluation:
    """What a configuration's arithmetic does to a model: ``tokens`` logits each; losses in nats over the tokens that have a successor."""

    tokens: int
    loss_golden: float
    loss_float64: float
    agreement: float


def compile_model(model: str | Path, config: str | Path | AnyConfig = DEFAULT_CONFIG, out: str | Path | None = None) -> Run:
    """Checkpoint to program, memory image and Verilog in a run folder (``runs/MODEL-CONFIG`` unless named)."""
    sizes = any_config(config)
    if isinstance(sizes, PimConfig):
        return pim_run.compile_model(model, sizes, out)
    spec = spec_of(sizes, shape_of(open_named(model, sizes, shape_only=True)[1]))
    taken = check_fit(spec)
    if taken and taken[1]:
        raise ConfigError(f"{taken[1]}; without device: in the configuration it compiles for any")
    target = Path(out) if out else Path("runs") / re.sub(r"[^\w.-]+", "_", f"{spec.shape.name}-{sizes.name}")
    with create_run(target, command="compile", config=sizes) as draft:
        with step("reading the model", megabytes=True) as update:
            source, opened = open_named(model, sizes, update=update)
            draft.inputs["model"] = facts(source, spec.shape)
        with step("compiling the program", megabytes=True) as update:
            engine.compile_program(opened, sizes, draft.path / PROGRAM, update)
        with step("writing Verilog"):
            (draft.path / VERILOG).write_text(engine.verilog(spec, "core"), encoding="utf-8")
        if source is not None:
            keep_tokenizer(source, draft.path / TOKENIZER)
    return open_run(target)


def cosim(
    run: str | Path,
    *,
    seed: int = 1,
    tokens: int = 32,
    prompt: str | None = None,
    model: str | Path | None = None,
    waves: bool = False,
    drafts: int = 0,
    on_text: OnText | None = None,
) -> Report:
    """Runs a compiled model on its RTL: ``tokens`` tokens after the prompt, every word and cycle compared; report.json and trace.json go to the run.

    ``drafts``: as many n-gram drafts at most are verified in a pass; the text stays that of greedy decoding (0).
    ``model``, the checkpoint that the run was compiled from, adds the accuracy of the hardware's arithmetic on this text beside float64.

    Raises
    ------
    MismatchError : a word or a cycle differs; the report is written first
    """
    from lutra.figures import report_of, spans
    from lutra.timeline import write_trace

    opened = open_run(run)
    if opened.manifest.config.get("values", {}).get("target") == "pim":
        if waves or drafts or model is not None:
            raise ConfigError("cosim of the PIM target takes none of --waves, --drafts and --model")
        return pim_run.cosim(opened, seed=seed, tokens=tokens, prompt=DEFAULT_PROMPT if prompt is None else prompt, on_text=on_text)
    spec, program = compiled(opened)
    check_drafts(spec.config, drafts)
    words = tokenizer(opened.path / TOKENIZER, spec.shape.vocabulary)
    text = DEFAULT_PROMPT if prompt is None else prompt
    ids = words.encode(text)
    check_length(spec.shape.context, len(ids), tokens)
    writer = Writer(words, text, on_text)
    with update_run(opened, command="cosim") as draft:
        draft.seeds["cosim"] = seed
        draft.inputs["prompt"] = {"tokens": len(ids), "sha256": hashlib.sha256(text.encode()).hexdigest()}
        with ExitStack() as bar:
            update = bar.enter_context(step("simulating the RTL"))

            def on_token(token: int) -> None:
                if on_text is not None:
                    bar.close()  # from here on the text itself is the progress
                writer.token(token)
                update(len(writer.ids), tokens)

            result = engine.simulate(spec, program, ids, tokens, stop=words.stop, seed=seed, waves=waves, folder=draft.path, on_token=on_token, drafts=drafts)
        predicted = int(result.timing.end[-1])
        compared = {"words_compared": result.words_compared, "words_mismatched": result.words_mismatched}
        rtl = RtlFigures(simulated=True, **compared, cycles_predicted=predicted, cycles_measured=result.cycles_measured, mismatch=result.mismatch)
        found = report_of(spec, program, result.timing)
        proven = dict.fromkeys([field for field in ("prefill", "decode") if getattr(found, field)], "rtl") if rtl.proven else {}
        written = text + words.decode(result.tokens)
        found = found.model_copy(update={"seed": seed, "rtl": rtl, "text": written, "provenance": {**found.provenance, "rtl": "rtl", **proven}})
        if model is not None:
            with step("comparing with float64"):
                accuracy = _accuracy(model, spec, program, [*ids, *result.tokens])
                found = found.model_copy(update={"accuracy": accuracy, "provenance": {**found.provenance, "accuracy": "model"}})
        draft.write_report(found)
        write_trace(draft.path / TRACE, spans(program, result.timing), clock_hz=spec.config.clock_hz, title=f"{spec.shape.name} on {spec.config.name}")
    if not rtl.proven:
        words_off = f"{result.words_mismatched:,} of {result.words_compared:,} words differ"
        where = f"; first: {result.mismatch}" if result.mismatch else ""
        raise MismatchError(f"{opened.path}: {words_off}, cycles {result.cycles_measured - predicted:+,} against the prediction{where}")
    return found


def estimate(
    model: str | Path,
    config: str | Path | AnyConfig = DEFAULT_CONFIG,
    *,
    prompt: int | None = None,
    context: int | None = None,
    out: str | Path | None = None,
    rescored: float | None = None,
    refresh: bool = True,
    sweep: Sequence[int] = (),
    channels: Sequence[int] = (),
    ignore_capacity: bool = False,
) -> Report:
    """Cycles of prefilling ``prompt`` tokens and of decoding one at ``context`` (the present token included; default: the first after the prompt).

    Parameters
    ----------
    prompt : on the ternary target 128 where not given; on PIM, where a prompt is so many sequential tokens, left out where not given
    rescored : of a head in two planes (preset kv260-planes): share of its rows that a token scores again; 1, the worst case, where not given
    refresh, sweep, channels, ignore_capacity : DRAM targets: no refresh; further contexts; further numbers of channels; models larger than the device
    """
    sizes = any_config(config)
    if rescored is not None:
        if isinstance(sizes, PimConfig) or not sizes.head_planes:
            raise ConfigError(f"config {sizes.name}: rescored is a choice of cores with the head in two planes (preset kv260-planes)")
        if not 0 <= rescored <= 1:
            raise ConfigError(f"rescored must be a share of the head's rows, 0 to 1, not {rescored:g}")
    if isinstance(sizes, PimConfig):
        at = (prompt or 0) + 1 if context is None else context
        return pim_run.estimate(
            model, sizes, prompt=prompt, context=at, out=out, refresh=refresh, sweep=sweep, channels=channels, ignore_capacity=ignore_capacity
        )
    if not refresh or sweep or channels or ignore_capacity:
        raise ConfigError(f"config {sizes.name}: refresh, sweep, channels and capacity are choices of DRAM targets (preset pim-gpt), not of target ternary")
    from lutra.figures import pace_warning, report_of, spans
    from lutra.timeline import write_trace

    prompt = 128 if prompt is None else prompt
    source, opened = open_named(model, sizes, shape_only=True)
    rows = within(shape_of(opened), prompt, context)
    spec = spec_of(sizes, shape_of(opened))
    with step("compiling the program"):
        program = engine.compile_program(shape_of(opened), sizes)
    with step("counting cycles"):
        timing = engine.timing(spec, program, prompt=prompt, contexts=[rows], rescored=1.0 if rescored is None else rescored)
    found = report_of(spec, program, timing).model_copy(update={"rtl": RtlFigures(simulated=False), "backing": backing(spec)})
    taken = check_fit(spec)
    if taken:
        found = found.model_copy(update={"resources": figures_of(taken[0]), "provenance": {**found.provenance, "resources": "model"}})
        if taken[1]:
            note(f"warning: {taken[1]}")
    if found.attention and (slow := pace_warning(found.attention, f"config {sizes.name} for {spec.shape.name}")):
        note(f"warning: {slow}")
    if out is not None:
        with create_run(out, command="estimate", config=sizes) as draft:
            draft.inputs |= {"model": facts(source, spec.shape), "prompt": {"tokens": prompt}, "context": rows}
            if rescored is not None:
                draft.inputs["rescored"] = rescored
            draft.write_report(found)
            write_trace(draft.path / TRACE, spans(program, timing), clock_hz=sizes.clock_hz, title=f"{spec.shape.name} on {sizes.name}")
    return found


def evaluate(
    model: str | Path,
    config: str | Path | AnyConfig = DEFAULT_CONFIG,
    *,
    text: str | Path | None = None,
    ids: str | Path | None = None,
    logits: str | Path | None = None,
) -> Evaluation:
    """Loss and greedy agreement of the hardware's arithmetic beside a float64 forward of the same checkpoint.

    Parameters
    ----------
    text : a text file, or ``ids`` : an ``.npy`` of token ids; cut in windows of the context length
    logits : an ``.npz`` that receives ``golden`` and ``float64``, (tokens, vocabulary)
    """
    import numpy as np

    if (text is None) == (ids is None):
        raise ConfigError("eval needs either a text file or token ids, and not both")
    if logits is not None and (Path(logits).is_dir() or not Path(logits).absolute().parent.is_dir()):
        raise LutraError(f"{logits}: cannot be written: must be a file in a folder that exists")
    sizes = any_config(config)
    with step("reading the model", megabytes=True) as update:
        source, opened = open_named(model, sizes, weights=True, update=update)
    shape = shape_of(opened)
    tokens = read_ids(Path(ids)) if ids is not None else np.asarray(tokenizer(source or Path(model), shape.vocabulary).encode(read_text(Path(str(text)))))
    if len(tokens) < 2:
        raise ModelError(f"{text or ids}: must hold at least 2 tokens, not {len(tokens)}")
    if not 0 <= tokens.min() <= tokens.max() < shape.vocabulary:
        raise ModelError(f"{text or ids}: token ids must be 0 to {shape.vocabulary - 1}, not {tokens.min()} to {tokens.max()}")
    if isinstance(sizes, PimConfig):
        with step("golden and float64 forward") as update:
            golden, reference = pim_run.forward(opened, sizes, tokens, update)
    else:
        spec = spec_of(sizes, shape)
        with step("compiling the program"):
            program = engine.compile_program(opened, sizes)
        with step("golden and float64 forward") as update:
            golden, reference = engine.forward(opened, spec, program, tokens, update)
    if logits is not None:

        def write(part: Path) -> None:
            with part.open("wb") as file:  # a name alone would get a suffix
                np.savez(file, golden=golden, float64=reference)

        write_whole(Path(logits), write)
    agreement = float((golden.argmax(1) == reference.argmax(1)).mean())
    return Evaluation(len(tokens), loss_of(golden, tokens), loss_of(reference, tokens), agreement)


def explore(
    model: str | Path,
    device: str | Path = "kv260",
    *,
    goal: str = "decode",
    prompt: int = 128,
    context: int | None = None,
    budget: int = 128,
    seed: int = 1,
    jobs: int | None = None,
    scheduler: str | None = None,
    limit: float | None = None,
    config: str | Path | CoreConfig | None = None,
    out: str | Path | None = None,
) -> "Exploration":
    """Searches the sizes of a core under a device's resources; the Pareto front of the goal and the largest share of the device.

    Parameters
    ----------
    goal : decode, ttft, bytes; energy is read as bytes: an FPGA's joules have no measured source
    prompt, context : as for ``estimate``
    budget : evaluations by the exact cycle model, at most; equal seed and budget give equal results, whatever the workers
    jobs, scheduler : processes on this machine (default: all cores), or a Dask scheduler's address
    limit : share of every total that a core may take, in place of the device's
    config : what the search starts from, in place of the device's preset
    out : run folder for explore.json and explore.svg
    """
    from lutra.exploration.command import explore as search

    return search(
        model, device, goal=goal, prompt=prompt, context=context, budget=budget, seed=seed, jobs=jobs, scheduler=scheduler, limit=limit, config=config, out=out
    )


def demo(out: str | Path = "runs/demo", *, prompt: str | None = None, tokens: int = 80, seed: int = 1, on_text: OnText | None = None) -> Report:
    """The shipped model on the shipped small core: compiled, simulated, compared, reported (report.html in the run)."""
    engine.check_simulator()
    sizes = core_config(DEFAULT_CONFIG, "demo")
    source, opened = open_named(DEFAULT_MODEL, sizes, shape_only=True)
    spec = spec_of(sizes, shape_of(opened))
    # what cosim would refuse is refused here, before an earlier run is replaced
    check_length(
        spec.shape.context, len(tokenizer(source or Path(DEFAULT_MODEL), spec.shape.vocabulary).encode(DEFAULT_PROMPT if prompt is None else prompt)), tokens
    )
    run = compile_model(DEFAULT_MODEL, DEFAULT_CONFIG, out)
    found = cosim(run.path, seed=seed, tokens=tokens, prompt=prompt, model=DEFAULT_MODEL, on_text=on_text)
    report([run.path], ["html", "csv"])
    return found


def verilog(config: str | Path | AnyConfig = DEFAULT_CONFIG, *, model: str | Path = DEFAULT_MODEL, block: str | None = None) -> str:
    """Verilog of a whole core (or PIM system) or of one of its blocks (``engine.BLOCKS``, ``pim_run.BLOCKS``).

    On the ternary target the model's shape decides depths and widths.
    """
    sizes = any_config(config)
    blocks = pim_run.BLOCKS if isinstance(sizes, PimConfig) else engine.BLOCKS
    name = block or next(iter(blocks))
    if name not in blocks:
        near = nearest(name, blocks)
        raise ConfigError(f"block must be one of {', '.join(blocks)}, not {name!r}" + (f"; nearest: {near}" if near else ""))
    if isinstance(sizes, PimConfig):
        return pim_run.verilog(sizes, name)
    return engine.verilog(spec_of(sizes, shape_of(open_named(model, sizes, shape_only=True)[1])), name)


def pim_trace(trace: str | Path, preset: str | Path = "gddr6-aim", *, refresh: bool = True) -> "TraceResult":
    """Cycles, commands and row hits of a public AiM trace file under the in-order policy; ``refresh`` off compares with the open simulator."""
    from lutra.hls_models.pim.in_order import run_trace
    from lutra.hls_models.pim.timing import load_timing
    from lutra.mapping.pim.trace import read_trace

    return run_trace(read_trace(trace), load_timing(preset), refresh=refresh)


def report(runs: Sequence[str | Path], formats: Sequence[str] = ("html",), out: str | Path | None = None) -> list[Path]:
    """Writes reports of one run, or of several side by side, to ``out`` (default: into the first run); returns the files."""
    from lutra.report import write_reports

    return write_reports(reports(runs), Path(out or runs[0]), formats)


def reports(runs: Sequence[str | Path]) -> list[tuple[str, Report]]:
    """(label, report) of run folders, labels short and different."""
    from lutra.report import labels

    found = []
    for label, path in zip(labels([Path(run) for run in runs]), runs, strict=True):
        result = open_run(path, verify=False).report
        if result is None:
            raise LutraError(f"{path}: has no report yet (lutra cosim {path} makes one)")
        found.append((label, result))
    return found


def shipped() -> dict[str, list[str]]:
    """Names of everything that ships: presets, devices, models, shapes."""
    from lutra.fpga_flows.devices import device_names
    from lutra.hls_models.pim.timing import timing_names
    from lutra.mapping.catalogue import model_names, shape_names

    return {"presets": preset_names(), "timings": timing_names(), "devices": device_names(), "models": model_names(), "shapes": shape_names()}


def write_file(path: str | Path, text: str) -> None:
    """Writes a text file whole or not at all, its folder too."""
    write_whole(Path(path), lambda part: part.write_text(text, encoding="utf-8"))


def _accuracy(model: str | Path, spec: "CoreSpec", program: "Program", ids: Sequence[int]) -> AccuracyFigures:
    """Greedy agreement and distance of the golden model's logits (which are the RTL's) from a float64 forward of the checkpoint, over a text."""
    import numpy as np

    _, opened = open_named(model, spec.config, weights=True)
    if shape_of(opened) != spec.shape:
        raise ModelError(f"model {model}: its shape is not the run's; give the checkpoint that the run was compiled from")
    text = np.asarray(ids[: spec.shape.context])
    golden, exact = engine.forward(opened, spec, program, text, lambda done, total: None)
    distance = float(np.sqrt(((golden - exact) ** 2).mean() / (exact**2).mean()))
    same = float((golden.argmax(1) == exact.argmax(1)).mean())
    reference = f"float64 forward, {len(text)} tokens"
    return AccuracyFigures(
        reference=reference,
        metric="share of equal greedy choices",
        value=same,
        items=[AccuracyItem(reference=reference, metric="relative RMS distance of logits", value=distance)],
    )
