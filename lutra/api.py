# SPDX-License-Identifier: Apache-2.0
"""Every command as a function. MODEL and CONFIG are names or paths as on the command line; errors are ``LutraError``."""

import hashlib
import re
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from lutra import engine
from lutra.hls_models.errors import ConfigError, LutraError, MismatchError, ModelError
from lutra.hls_models.load import load_config, nearest, preset_names
from lutra.hls_models.pim.config import PimConfig
from lutra.hls_models.ternary.config import CoreConfig
from lutra.progress import step
from lutra.runs import Run, create_run, file_hash, open_run, update_run, write_whole
from lutra.schema import AccuracyFigures, AccuracyItem, Report, RtlFigures

if TYPE_CHECKING:  # heavy at start-up: the functions import what they need
    import numpy as np

    from lutra.hls_models.pim.in_order import TraceResult
    from lutra.hls_models.ternary.core import CoreSpec
    from lutra.hls_models.ternary.program import Program
    from lutra.mapping.tokenizer import Tokenizer

__all__ = [
    "DEFAULT_PROMPT",
    "Evaluation",
    "OnText",
    "compile_model",
    "cosim",
    "demo",
    "estimate",
    "evaluate",
    "pim_trace",
    "report",
    "reports",
    "shipped",
    "verilog",
    "write_file",
]

DEFAULT_CONFIG = "tiny"
DEFAULT_MODEL = "tiny-shakespeare"
DEFAULT_PROMPT = "KING RICHARD:\nNow is the winter of our discontent,\n"
VERILOG, PROGRAM, TOKENIZER, TRACE = "core.v", "program", "tokenizer", "trace.json"

AnyConfig = CoreConfig | PimConfig
OnText = Callable[[str], None]
"""Called with each piece of text as the hardware writes it, the prompt first."""


@dataclass(frozen=True)
class Evaluation:
    """What a configuration's arithmetic does to a model: ``tokens`` logits each; losses in nats over the tokens that have a successor."""

    tokens: int
    loss_golden: float
    loss_float64: float
    agreement: float


def compile_model(model: str | Path, config: str | Path | CoreConfig = DEFAULT_CONFIG, out: str | Path | None = None) -> Run:
    """Checkpoint to program, memory image and Verilog in a run folder (``runs/MODEL-CONFIG`` unless named)."""
    sizes = _core_config(config, "compile")
    with step("reading the model"):
        source, opened = _open(model, sizes)
    spec = _spec(sizes, _shape(opened))
    target = Path(out) if out else Path("runs") / re.sub(r"[^\w.-]+", "_", f"{spec.shape.name}-{sizes.name}")
    with create_run(target, command="compile", config=sizes) as draft:
        draft.inputs["model"] = _facts(source, spec.shape)
        with step("compiling the program"):
            engine.compile_program(opened, sizes).save(draft.path / PROGRAM)
        with step("writing Verilog"):
            (draft.path / VERILOG).write_text(engine.verilog(spec, "core"), encoding="utf-8")
        if source is not None:
            _keep_tokenizer(source, draft.path / TOKENIZER)
    return open_run(target)


def cosim(
    run: str | Path,
    *,
    seed: int = 1,
    tokens: int = 32,
    prompt: str | None = None,
    model: str | Path | None = None,
    waves: bool = False,
    on_text: OnText | None = None,
) -> Report:
    """Runs a compiled model on its RTL: ``tokens`` tokens after the prompt, every word and cycle compared; report.json and trace.json go to the run.

    ``model``, the checkpoint that the run was compiled from, adds the accuracy of the hardware's arithmetic on this text beside float64.

    Raises
    ------
    MismatchError : a word or a cycle differs; the report is written first
    """
    from lutra.figures import report_of, spans
    from lutra.timeline import write_trace

    opened = open_run(run)
    spec, program = _compiled(opened)
    tokenizer = _tokenizer(opened.path / TOKENIZER, spec)
    text = DEFAULT_PROMPT if prompt is None else prompt
    ids = tokenizer.encode(text)
    _check_length(spec, len(ids), tokens)
    writer = _Writer(tokenizer, text, on_text)
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

            result = engine.simulate(spec, program, ids, tokens, stop=tokenizer.stop, seed=seed, waves=waves, folder=draft.path, on_token=on_token)
        predicted = int(result.timing.end[-1])
        words = {"words_compared": result.words_compared, "words_mismatched": result.words_mismatched}
        rtl = RtlFigures(simulated=True, **words, cycles_predicted=predicted, cycles_measured=result.cycles_measured, mismatch=result.mismatch)
        found = report_of(spec, program, result.timing)
        proven = dict.fromkeys([field for field in ("prefill", "decode") if getattr(found, field)], "rtl") if rtl.proven else {}
        written = text + tokenizer.decode(result.tokens)
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
    refresh: bool = True,
    sweep: Sequence[int] = (),
    channels: Sequence[int] = (),
    ignore_capacity: bool = False,
) -> Report:
    """Cycles of prefilling ``prompt`` tokens and of decoding one at ``context`` (the present token included; default: the first after the prompt).

    Parameters
    ----------
    prompt : on the ternary target 128 where not given; on PIM, where a prompt is so many sequential tokens, left out where not given
    refresh, sweep, channels, ignore_capacity : DRAM targets: no refresh; further contexts; further numbers of channels; models larger than the device
    """
    sizes = _config(config)
    if isinstance(sizes, PimConfig):
        return _estimate_pim(model, sizes, prompt, context or (prompt or 0) + 1, out, refresh, sweep, channels, ignore_capacity)
    if not refresh or sweep or channels or ignore_capacity:
        raise ConfigError(f"config {sizes.name}: refresh, sweep, channels and capacity are choices of DRAM targets (preset pim-gpt), not of target ternary")
    from lutra.figures import report_of, spans
    from lutra.timeline import write_trace

    prompt = 128 if prompt is None else prompt
    source, opened = _open(model, sizes, shape_only=True)
    rows, limit = prompt + 1 if context is None else context, _shape(opened).context
    for name, value in (("prompt", prompt), ("context", rows)):
        if not 1 <= value <= limit:
            raise ConfigError(f"{name} must be 1 to {limit} tokens, the context of {_shape(opened).name}, not {value}")
    spec = _spec(sizes, _shape(opened))
    with step("compiling the program"):
        program = engine.compile_program(_shape(opened), sizes)
    with step("counting cycles"):
        timing = engine.timing(spec, program, prompt=prompt, contexts=[rows])
    found = report_of(spec, program, timing).model_copy(update={"rtl": RtlFigures(simulated=False)})
    if out is not None:
        with create_run(out, command="estimate", config=sizes) as draft:
            draft.inputs |= {"model": _facts(source, spec.shape), "prompt": {"tokens": prompt}, "context": rows}
            draft.write_report(found)
            write_trace(draft.path / TRACE, spans(program, timing), clock_hz=sizes.clock_hz, title=f"{spec.shape.name} on {sizes.name}")
    return found


def _estimate_pim(
    model: str | Path,
    config: PimConfig,
    prompt: int | None,
    context: int,
    out: str | Path | None,
    refresh: bool,
    sweep: Sequence[int],
    channels: Sequence[int],
    ignore_capacity: bool,
) -> Report:
    """Tokens of a GPT model on channels and companion chip."""
    from lutra import pim
    from lutra.timeline import write_trace

    for name, values in (("prompt", [prompt or 1]), ("context", [context]), ("sweep", sweep), ("channels", channels)):
        if any(value < 1 for value in values):
            raise ConfigError(f"{name} must be at least 1, not {min(values)}")
    sizes = config if refresh else config.model_copy(update={"refresh": False})
    source, opened = _open(model, sizes, shape_only=True)
    with step("counting cycles") as update:
        found, token = pim.estimate(
            opened, sizes, context=context, prompt=prompt, sweep=sweep, channels=channels, ignore_capacity=ignore_capacity, update=update
        )
    found = found.model_copy(update={"rtl": RtlFigures(simulated=False)})
    if out is not None:
        with create_run(out, command="estimate", config=sizes) as draft:
            draft.inputs |= {"model": _facts(source, opened), "context": context}
            draft.write_report(found)
            write_trace(draft.path / TRACE, pim.spans(token), clock_hz=found.clock_hz, title=f"{opened.name} on {sizes.name}")
    return found


def evaluate(
    model: str | Path,
    config: str | Path | CoreConfig = DEFAULT_CONFIG,
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
    sizes = _core_config(config, "eval")
    source, opened = _open(model, sizes, weights=True)
    spec = _spec(sizes, _shape(opened))
    tokens = _read_ids(Path(ids)) if ids is not None else np.asarray(_tokenizer(source or Path(model), spec).encode(_read_text(Path(str(text)))))
    if len(tokens) < 2:
        raise ModelError(f"{text or ids}: must hold at least 2 tokens, not {len(tokens)}")
    if not 0 <= tokens.min() <= tokens.max() < spec.shape.vocabulary:
        raise ModelError(f"{text or ids}: token ids must be 0 to {spec.shape.vocabulary - 1}, not {tokens.min()} to {tokens.max()}")
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
    return Evaluation(len(tokens), _loss(golden, tokens), _loss(reference, tokens), agreement)


def demo(out: str | Path = "runs/demo", *, prompt: str | None = None, tokens: int = 80, seed: int = 1, on_text: OnText | None = None) -> Report:
    """The shipped model on the shipped small core: compiled, simulated, compared, reported (report.html in the run)."""
    engine.check_simulator()
    sizes = _core_config(DEFAULT_CONFIG, "demo")
    source, opened = _open(DEFAULT_MODEL, sizes, shape_only=True)
    spec = _spec(sizes, _shape(opened))
    # what cosim would refuse is refused here, before an earlier run is replaced
    _check_length(spec, len(_tokenizer(source or Path(DEFAULT_MODEL), spec).encode(DEFAULT_PROMPT if prompt is None else prompt)), tokens)
    run = compile_model(DEFAULT_MODEL, DEFAULT_CONFIG, out)
    found = cosim(run.path, seed=seed, tokens=tokens, prompt=prompt, model=DEFAULT_MODEL, on_text=on_text)
    report([run.path], ["html", "csv"])
    return found


def verilog(config: str | Path | CoreConfig = DEFAULT_CONFIG, *, model: str | Path = DEFAULT_MODEL, block: str = "core") -> str:
    """Verilog of a whole core or of one of its blocks (``engine.BLOCKS``); the model's shape decides depths and widths."""
    if block not in engine.BLOCKS:
        near = nearest(block, engine.BLOCKS)
        raise ConfigError(f"block must be one of {', '.join(engine.BLOCKS)}, not {block!r}" + (f"; nearest: {near}" if near else ""))
    sizes = _core_config(config, "verilog")
    return engine.verilog(_spec(sizes, _shape(_open(model, sizes, shape_only=True)[1])), block)


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
    """Names of everything that ships: presets, models, shapes."""
    from lutra.mapping.catalogue import model_names, shape_names

    return {"presets": preset_names(), "models": model_names(), "shapes": shape_names()}


def write_file(path: str | Path, text: str) -> None:
    """Writes a text file whole or not at all, its folder too."""
    write_whole(Path(path), lambda part: part.write_text(text, encoding="utf-8"))


def _accuracy(model: str | Path, spec: "CoreSpec", program: "Program", ids: Sequence[int]) -> AccuracyFigures:
    """Greedy agreement and distance of the golden model's logits (which are the RTL's) from a float64 forward of the checkpoint, over a text."""
    import numpy as np

    _, opened = _open(model, spec.config, weights=True)
    if _shape(opened) != spec.shape:
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


class _Writer:
    """Turns token ids into text as they come: the prompt with the first, then what a new id adds to the text so far."""

    def __init__(self, tokenizer: "Tokenizer", prompt: str, on_text: OnText | None) -> None:
        self.tokenizer, self.prompt, self.on_text = tokenizer, prompt, on_text
        self.ids: list[int] = []
        self.shown = ""

    def token(self, token: int) -> None:
        if self.on_text and not self.ids:
            self.on_text(self.prompt)
        self.ids.append(token)
        text = self.tokenizer.decode(self.ids)
        if self.on_text and not text.endswith("\ufffd"):  # half a character: wait for the rest
            self.on_text(text[len(self.shown) :])
            self.shown = text


def _config(config: str | Path | AnyConfig) -> AnyConfig:
    if isinstance(config, AnyConfig):
        return config
    found: AnyConfig = load_config(config, CoreConfig, PimConfig)  # type: ignore[assignment]  # one of the two
    return found


def _core_config(config: str | Path | CoreConfig, command: str) -> CoreConfig:
    """A configuration of the ternary target, for commands that only it has."""
    sizes = _config(config)
    if isinstance(sizes, PimConfig):
        raise ConfigError(f"config {sizes.name}: {command} needs a configuration of target ternary (preset tiny), not pim")
    return sizes


def _open(model: str | Path, config: AnyConfig, *, weights: bool = False, shape_only: bool = False) -> tuple[Path | None, Any]:
    """(folder of the checkpoint or None, model or shape) that a MODEL names, of the configuration's target; ``shape_only`` reads no weights."""
    from lutra.hls_models.shape import ModelShape
    from lutra.mapping.catalogue import HERE, config_shape, model_names, open_model, shape_names
    from lutra.mapping.pim.shape import GptShape

    word, shipped = str(model), [*model_names(), *shape_names()]
    if word not in shipped and not Path(word).exists() and Path(word).suffix not in (".gguf", ".onnx"):
        near = nearest(Path(word).name, shipped)
        hint = f"; nearest name: {near}" if near else ""
        raise ModelError(f"model {word}: no such folder or file, and nothing of that name ships{hint} (shipped: {', '.join(shipped)})")
    folder = HERE / "models" / word if word in model_names() else Path(word) if Path(word).is_dir() and word not in shipped else None
    opened = config_shape(folder / "config.json") if shape_only and folder is not None else open_model(word)
    gpt, pim = isinstance(_shape(opened), GptShape), isinstance(config, PimConfig)
    if gpt != pim:
        runs, preset = ("GPT models", "pim-gpt") if gpt else ("BitNet models", "tiny")
        raise ConfigError(f"config {config.name}: target {config.target} does not run {_shape(opened).name}; {runs} need a preset such as {preset}")
    if weights and isinstance(opened, ModelShape | GptShape):
        raise ModelError(f"{word}: only a shape, and this needs weights; give a folder with config.json and model.safetensors")
    return folder, opened


def _shape(opened: Any) -> Any:
    return getattr(opened, "shape", opened)


def _spec(config: CoreConfig, shape: Any) -> "CoreSpec":
    """The core of a configuration for a shape; every unit checks its sizes here."""
    from lutra.hls_models.ternary.core import CoreSpec

    try:
        return CoreSpec(config=config, shape=shape)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        rule = first["msg"].removeprefix("Value error, ").replace("\n", " ")
        raise ConfigError(f"config {config.name} for {shape.name}: {'.'.join(map(str, first['loc']))}{': ' if first['loc'] else ''}{rule}") from None


def _facts(source: Path | None, shape: Any) -> dict[str, Any]:
    """A model for the manifest: name, shape, and the hash of its weights."""
    weights = source / "model.safetensors" if source else None
    return {"name": shape.name, "shape": shape.model_dump(mode="json"), **({"sha256": file_hash(weights)} if weights and weights.is_file() else {})}


def _keep_tokenizer(source: Path, target: Path) -> None:
    """Copies what text needs into the run, so that the run stands alone."""
    for name in ("tokenizer.json", "config.json", "generation_config.json"):
        if (source / name).is_file():
            target.mkdir(exist_ok=True)
            (target / name).write_bytes((source / name).read_bytes())


def _compiled(run: Run) -> tuple["CoreSpec", "Program"]:
    from lutra.hls_models.ternary.program import Program

    if "compile" not in run.manifest.commands:
        raise LutraError(f"{run.path}: holds no compiled program (lutra compile MODEL --config C -o {run.path} makes one)")
    program = Program.load(run.path / PROGRAM)
    try:
        config = CoreConfig.model_validate(run.manifest.config["values"])
    except (KeyError, ValidationError):
        raise LutraError(f"{run.path}: manifest.json holds no ternary configuration; make the run again") from None
    if program.image is None:
        raise ModelError(f"{run.path}: was compiled from a shape without weights; compile a folder with model.safetensors to simulate it")
    return _spec(config, program.shape), program


def _tokenizer(folder: Path, spec: "CoreSpec") -> "Tokenizer":
    from lutra.mapping.tokenizer import Tokenizer

    return Tokenizer.load(folder, spec.shape.vocabulary)


def _check_length(spec: "CoreSpec", prompt: int, tokens: int) -> None:
    if prompt < 1:
        raise ModelError("prompt must have at least one token")
    if tokens < 1:
        raise ConfigError(f"tokens must be at least 1, not {tokens}")
    if prompt + tokens - 1 > spec.shape.context:  # the last token is written, not read
        room = spec.shape.context - prompt + 1
        hint = f"; at most {room} after this prompt" if room > 0 else "; shorten the prompt"
        raise ModelError(f"prompt of {prompt} tokens and {tokens} more must fit the context of {spec.shape.context}{hint}")


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise LutraError(f"{path}: must be UTF-8 text") from None
    except OSError as error:
        raise LutraError(f"{path}: cannot be read: {error.strerror}") from None


def _read_ids(path: Path) -> "np.ndarray":
    import numpy as np

    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)  # mapped: a header that claims more than the file holds allocates nothing
    except (OSError, ValueError, EOFError) as error:
        raise LutraError(f"{path}: is no .npy file of token ids ({error})") from None
    if not isinstance(array, np.ndarray) or array.ndim != 1 or not np.issubdtype(array.dtype, np.integer):
        raise LutraError(f"{path}: must hold one row of integers, not {getattr(array, 'dtype', 'an archive')} {getattr(array, 'shape', '')}")
    return array.astype(np.int64)


def _loss(logits: "np.ndarray", ids: "np.ndarray") -> float:
    """Mean cross-entropy in nats of every token that has a successor."""
    import numpy as np

    before = logits[:-1] - logits[:-1].max(1, keepdims=True)
    return float((np.log(np.exp(before).sum(1)) - before[np.arange(len(ids) - 1), ids[1:]]).mean())
