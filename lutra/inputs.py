# SPDX-License-Identifier: Apache-2.0
"""What commands read: configurations, models, tokenizers, texts; each mistake is one line."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from lutra.hls_models.errors import ConfigError, LutraError, ModelError
from lutra.hls_models.load import load_config, nearest, rule_of
from lutra.hls_models.pim.config import PimConfig
from lutra.hls_models.pim.timing import load_timing
from lutra.hls_models.ternary.config import CoreConfig
from lutra.progress import Update
from lutra.runs import Run, file_hash

if TYPE_CHECKING:  # heavy at start-up: the functions import what they need
    import numpy as np

    from lutra.hls_models.ternary.core import CoreSpec
    from lutra.hls_models.ternary.program import Program
    from lutra.mapping.tokenizer import Tokenizer

__all__ = [
    "DEFAULT_CONFIG",
    "DEFAULT_MODEL",
    "PROGRAM",
    "TOKENIZER",
    "AnyConfig",
    "OnText",
    "Writer",
    "any_config",
    "check_drafts",
    "check_length",
    "compiled",
    "core_config",
    "facts",
    "keep_tokenizer",
    "loss_of",
    "open_named",
    "read_ids",
    "read_text",
    "shape_of",
    "spec_of",
    "tokenizer",
    "within",
]

DEFAULT_CONFIG = "tiny"
DEFAULT_MODEL = "tiny-shakespeare"
PROGRAM, TOKENIZER = "program", "tokenizer"
"""What a compiled run keeps under these names."""

AnyConfig = CoreConfig | PimConfig
OnText = Callable[[str], None]
"""Called with each piece of text as the hardware writes it, the prompt first."""


class Writer:
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


def any_config(config: str | Path | AnyConfig) -> AnyConfig:
    """A configuration of either target, read where it is a name or a path."""
    if isinstance(config, AnyConfig):
        return config
    found: AnyConfig = load_config(config, CoreConfig, PimConfig)  # type: ignore[assignment]  # one of the two
    if isinstance(found, PimConfig):
        interval = load_timing(found.timing).cycles("tREFI")
        if found.refresh_phase > interval:
            raise ConfigError(f"config {found.name}: refresh_phase must be at most tREFI of {found.timing} ({interval} cycles), not {found.refresh_phase}")
    elif found.device is not None:
        from lutra.fpga_flows.devices import load_device

        load_device(found.device)  # a misspelt one is refused before any work
    return found


def core_config(config: str | Path | CoreConfig, command: str) -> CoreConfig:
    """A configuration of the ternary target, for commands that only it has."""
    sizes = any_config(config)
    if isinstance(sizes, PimConfig):
        raise ConfigError(f"config {sizes.name}: {command} needs a configuration of target ternary (preset tiny), not pim")
    return sizes


def open_named(
    model: str | Path, config: AnyConfig, *, weights: bool = False, shape_only: bool = False, update: Update | None = None
) -> tuple[Path | None, Any]:
    """(folder or GGUF file of the checkpoint or None, model or shape) that a MODEL names, of the configuration's target; ``shape_only`` reads no weights.

    ``update`` is called with the bytes looked at so far, and all.
    """
    from lutra.hls_models.shape import ModelShape
    from lutra.mapping.catalogue import HERE, config_shape, model_names, open_model, shape_names
    from lutra.mapping.pim.shape import GptShape

    word, shipped = str(model), [*model_names(), *shape_names()]
    if word not in shipped and not Path(word).exists() and Path(word).suffix not in (".gguf", ".onnx"):
        near = nearest(Path(word).name, shipped)
        hint = f"; nearest name: {near}" if near else ""
        raise ModelError(f"model {word}: no such folder or file, and nothing of that name ships{hint} (shipped: {', '.join(shipped)})")
    given = Path(word) if word not in shipped and (Path(word).is_dir() or (Path(word).is_file() and Path(word).suffix == ".gguf")) else None
    source = HERE / "models" / word if word in model_names() else given
    if shape_only and source is not None:
        opened: Any = config_shape(source if source.is_file() else source / "config.json")
    else:
        opened = open_model(word, update)
    gpt, pim = isinstance(shape_of(opened), GptShape), isinstance(config, PimConfig)
    if gpt != pim:
        runs, preset = ("GPT models", "pim-gpt") if gpt else ("BitNet models", "tiny")
        raise ConfigError(f"config {config.name}: target {config.target} does not run {shape_of(opened).name}; {runs} need a preset such as {preset}")
    if weights and isinstance(opened, ModelShape | GptShape):
        raise ModelError(f"{word}: only a shape, and this needs weights; give a folder with config.json and model.safetensors, or a .gguf file")
    return source, opened


def shape_of(opened: Any) -> Any:
    """Shape of a model, or the shape itself."""
    return getattr(opened, "shape", opened)


def facts(source: Path | None, shape: Any) -> dict[str, Any]:
    """A model for the manifest: name, shape, and the hash of its weights (of several files: of their hashes, in the order of their names)."""
    from lutra.mapping.safetensors_file import weight_files

    hashes = [file_hash(file) for file in ([source] if source.is_file() else weight_files(source))] if source else []
    found = hashes[0] if len(hashes) == 1 else hashlib.sha256("".join(hashes).encode()).hexdigest()
    return {"name": shape.name, "shape": shape.model_dump(mode="json"), **({"sha256": found} if hashes else {})}


def keep_tokenizer(source: Path, target: Path) -> None:
    """Copies what text needs into the run, so that the run stands alone; of a GGUF file what stands beside it, and the token that ends a text."""
    folder, stop = source, None
    if source.is_file():
        from lutra.mapping.gguf_importer import stop_token

        folder, stop = source.parent, stop_token(source)
    for name in ("tokenizer.json", "config.json", "generation_config.json"):
        if (folder / name).is_file():
            target.mkdir(exist_ok=True)
            (target / name).write_bytes((folder / name).read_bytes())
    if stop is not None and target.is_dir():
        (target / "generation_config.json").write_text(json.dumps({"eos_token_id": stop}) + "\n", encoding="utf-8")


def tokenizer(source: Path, vocabulary: int) -> "Tokenizer":
    """Of a model's or a run's folder, or of the folder of a GGUF file."""
    from lutra.mapping.tokenizer import Tokenizer

    return Tokenizer.load(source.parent if source.is_file() else source, vocabulary)


def check_drafts(config: CoreConfig, drafts: int) -> None:
    """Refuses more drafts than a core verifies beside the newest token."""
    most = config.draft_lanes - 1
    if not 0 <= drafts <= most:
        hint = "" if most else "; compile with more, as preset tiny-drafts has"
        raise ConfigError(f"drafts must be 0 to {most} (config {config.name} has draft_lanes {config.draft_lanes}), not {drafts}{hint}")


def check_length(context: int, prompt: int, tokens: int) -> None:
    """Refuses a prompt and a number of tokens that do not fit the context."""
    if prompt < 1:
        raise ModelError("prompt must have at least one token")
    if tokens < 1:
        raise ConfigError(f"tokens must be at least 1, not {tokens}")
    if prompt + tokens - 1 > context:  # the last token is written, not read
        room = context - prompt + 1
        hint = f"; at most {room} after this prompt" if room > 0 else "; shorten the prompt"
        raise ModelError(f"prompt of {prompt} tokens and {tokens} more must fit the context of {context}{hint}")


def within(shape: Any, prompt: int, context: int | None) -> int:
    """The context (default: the first token after the prompt); both must lie within the model's."""
    rows = prompt + 1 if context is None else context
    for name, value in (("prompt", prompt), ("context", rows)):
        if not 1 <= value <= shape.context:
            raise ConfigError(f"{name} must be 1 to {shape.context} tokens, the context of {shape.name}, not {value}")
    return rows


def read_text(path: Path) -> str:
    """A UTF-8 file."""
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise LutraError(f"{path}: must be UTF-8 text") from None
    except OSError as error:
        raise LutraError(f"{path}: cannot be read: {error.strerror}") from None


def read_ids(path: Path) -> "np.ndarray":
    """Token ids (tokens,) int64 of an .npy file."""
    import numpy as np

    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)  # mapped: a header that claims more than the file holds allocates nothing
    except (OSError, ValueError, EOFError) as error:
        raise LutraError(f"{path}: is no .npy file of token ids ({error})") from None
    if not isinstance(array, np.ndarray) or array.ndim != 1 or not np.issubdtype(array.dtype, np.integer):
        raise LutraError(f"{path}: must hold one row of integers, not {getattr(array, 'dtype', 'an archive')} {getattr(array, 'shape', '')}")
    return array.astype(np.int64)


def loss_of(logits: "np.ndarray", ids: "np.ndarray") -> float:
    """Mean cross-entropy in nats of every token that has a successor."""
    import numpy as np

    before = logits[:-1] - logits[:-1].max(1, keepdims=True)
    return float((np.log(np.exp(before).sum(1)) - before[np.arange(len(ids) - 1), ids[1:]]).mean())


def spec_of(config: CoreConfig, shape: Any) -> "CoreSpec":
    """The core of a configuration for a shape; every unit checks its sizes here."""
    from lutra.hls_models.ternary.core import CoreSpec

    try:
        return CoreSpec(config=config, shape=shape)
    except ValidationError as error:
        raise ConfigError(f"config {config.name} for {shape.name}: {rule_of(error)}") from None


def check_on_chip(spec: "CoreSpec", where: str) -> None:
    """ConfigError where a core's memory is not within it."""
    if spec.config.memory is not None:
        raise ConfigError(f"config {spec.config.name} must have no shared memory for {where}, which holds the model on the chip; nearest: tiny-ulx3s")


def compiled(run: Run) -> tuple["CoreSpec", "Program"]:
    """Core and program of a compiled run; LutraError where it holds none."""
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
    return spec_of(config, program.shape), program
