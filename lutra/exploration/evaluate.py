# SPDX-License-Identifier: Apache-2.0
"""One evaluation: compile the shape for a configuration, count its cycles exactly. Results are kept by content: an evaluation is never made twice."""

import hashlib
import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from lutra.hls_models.cache import cache_root
from lutra.hls_models.errors import ConfigError
from lutra.hls_models.shape import ModelShape
from lutra.hls_models.ternary.config import CoreConfig
from lutra.hls_models.ternary.core import CoreSpec
from lutra.runs import config_hash, write_whole

__all__ = ["Figures", "Task", "evaluate", "keep", "kept", "models_hash"]

Figures = dict[str, Any]
"""``decode_cycles``, ``ttft_cycles``, ``bytes_per_token``, ``ceiling`` (share of it), ``memory_bytes``; or ``refused``, the mapping's reason.
``models``: ``models_hash`` of where it was made."""


@dataclass(frozen=True)
class Task:
    """A core, a prompt and a context."""

    config: CoreConfig
    shape: ModelShape
    prompt: int
    context: int

    @property
    def key(self) -> str:
        """Content: of the sizes, not of their name, and of the models that turn them into figures."""
        values = config_hash(self.config.model_copy(update={"name": ""}))
        text = f"{values} {self.shape.model_dump_json()} {self.prompt} {self.context} {models_hash()}"
        return hashlib.sha256(text.encode()).hexdigest()[:32]


@cache
def models_hash() -> str:
    """Of the sources of models and mapping: machines whose hashes differ do not count the same cycles."""
    import lutra.hls_models
    import lutra.mapping

    digest = hashlib.sha256()
    for package in (lutra.hls_models, lutra.mapping):
        for path in sorted(Path(str(package.__file__)).parent.rglob("*.py")):
            digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def evaluate(task: Task) -> Figures:
    """Exact figures of a task; what the mapping refuses is a result too."""
    from lutra import engine
    from lutra.figures import report_of

    found: Figures = {"models": models_hash()}
    try:
        spec = CoreSpec(config=task.config, shape=task.shape)
        program = engine.compile_program(task.shape, task.config)
    except ConfigError as error:
        return found | {"refused": str(error)}
    report = report_of(spec, program, engine.timing(spec, program, prompt=task.prompt, contexts=[task.context]))
    assert report.prefill is not None and report.decode is not None and report.memory is not None
    return found | {
        "decode_cycles": int(report.decode.cycles_per_token),
        "ttft_cycles": report.prefill.cycles,
        "bytes_per_token": report.memory.bytes_per_token,
        "ceiling": report.memory.fraction_of_ceiling,
        "memory_bytes": report.memory.image_bytes,
    }


def _path(task: Task) -> Path:
    return cache_root().parent / "explore" / task.key[:2] / f"{task.key}.json"


def kept(task: Task) -> Figures | None:
    """What an earlier search found; a damaged file is a miss."""
    with suppress(OSError, ValueError):
        found = json.loads(_path(task).read_text())
        if isinstance(found, dict) and ("refused" in found or "decode_cycles" in found):
            return found
    return None


def keep(task: Task, figures: Mapping[str, Any]) -> None:
    """Keeps a result, whole or not at all."""
    write_whole(_path(task), lambda part: part.write_text(json.dumps(dict(figures))))
