# SPDX-License-Identifier: Apache-2.0
"""What the hardware's arithmetic costs the shipped model, on the text that it was never trained on."""

import tempfile
from pathlib import Path
from typing import Any, get_args

from lutra import api
from lutra.hls_models.load import load_config
from lutra.hls_models.ternary.config import CoreConfig, KvFormat

__all__ = ["measure"]

HELD_OUT = 0.1  # of the text, at its end
CHARACTERS = 8192


def measure(text: Path) -> dict[str, Any]:
    """Loss in nats per character over the first 8,192 held-out characters, windows of the context length: float64 reference, and the golden model with
    either format of the key/value cache."""
    whole = text.read_text(encoding="utf-8")
    start = int(len(whole) * (1 - HELD_OUT))
    with tempfile.NamedTemporaryFile("w", suffix=".txt", encoding="utf-8") as part:
        part.write(whole[start : start + CHARACTERS])
        part.flush()
        tiny = load_config("tiny", CoreConfig)
        found = {name: api.evaluate("tiny-shakespeare", tiny.model_copy(update={"kv_format": name}), text=part.name) for name in get_args(KvFormat)}
    exact = found["int8"].loss_float64
    formats = {
        name: {"loss_golden": one.loss_golden, "agreement": one.agreement, "golden_over_float64": one.loss_golden / exact - 1} for name, one in found.items()
    }
    return {"characters": found["int8"].tokens, "loss_float64": exact, "kv_format": formats}
