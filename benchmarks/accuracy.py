# SPDX-License-Identifier: Apache-2.0
"""What the hardware's arithmetic costs the shipped model, on the text that it was never trained on."""

import tempfile
from pathlib import Path
from typing import Any

from lutra import api

__all__ = ["measure"]

HELD_OUT = 0.1  # of the text, at its end
CHARACTERS = 8192


def measure(text: Path) -> dict[str, Any]:
    """Loss in nats per character of golden model and float64 reference over the first 8,192 held-out characters, windows of the context length."""
    whole = text.read_text(encoding="utf-8")
    start = int(len(whole) * (1 - HELD_OUT))
    with tempfile.NamedTemporaryFile("w", suffix=".txt", encoding="utf-8") as part:
        part.write(whole[start : start + CHARACTERS])
        part.flush()
        found = api.evaluate("tiny-shakespeare", "tiny", text=part.name)
    return {
        "characters": found.tokens,
        "loss_golden": found.loss_golden,
        "loss_float64": found.loss_float64,
        "agreement": found.agreement,
        "golden_over_float64": found.loss_golden / found.loss_float64 - 1,
    }
