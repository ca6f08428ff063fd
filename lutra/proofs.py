# SPDX-License-Identifier: Apache-2.0
"""RTL runs that back the cycle model's figures: ``proofs.json``, written by ``python -m benchmarks kv260`` (and ``kv260_page``) from stored
results of the bulk runs."""

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from lutra.hls_models.ternary.core import CoreSpec
from lutra.runs import config_hash

__all__ = ["PROOFS", "backing", "backing_of", "sizes_hash", "write"]

PROOFS = Path(__file__).parent / "proofs.json"


@cache
def _proofs() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(PROOFS.read_text(encoding="utf-8")) if PROOFS.is_file() else []
    return found


def write(texts: Mapping[str, str]) -> None:
    """Keeps what was run, in words, by ``sizes_hash``."""
    PROOFS.write_text(json.dumps([{"core": core, "text": text} for core, text in texts.items()], indent=1) + "\n", encoding="utf-8")
    _proofs.cache_clear()


def sizes_hash(spec: CoreSpec) -> str:
    """Of a core's sizes and shape: not of the configuration's name, its device or the length of the context that the cache has room for."""
    config = spec.config.model_copy(update={"name": "", "device": None})
    shape = spec.shape.model_copy(update={"name": "", "context": 1, "layers": 1})
    return f"{config_hash(config)[:16]}-{config_hash(shape)[:16]}"


def backing(spec: CoreSpec) -> str | None:
    """What was run on the RTL of a core with these sizes, in words; None where nothing was."""
    return backing_of(sizes_hash(spec))


def backing_of(core: str) -> str | None:
    """The same, by ``sizes_hash``."""
    return "; ".join(proof["text"] for proof in _proofs() if proof["core"] == core) or None
