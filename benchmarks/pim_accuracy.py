# SPDX-License-Identifier: Apache-2.0
"""What bf16 banks and the companion chip's approximations cost the shipped GPT, on the text that it was never trained on."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from lutra.hls_models.load import load_config
from lutra.hls_models.pim.config import PimConfig
from lutra.mapping.catalogue import HERE, open_model
from lutra.mapping.pim.golden import Golden
from lutra.mapping.pim.partition import partition
from lutra.mapping.pim.reference import evaluate
from lutra.mapping.tokenizer import Tokenizer

__all__ = ["measure"]

MODEL = "tiny-shakespeare-gpt"
HELD_OUT = 0.1  # of the text, at its end
WINDOWS = 64  # of the context's length, for the cost of each approximation; the arithmetic as it ships runs on all
FUNCTIONS = ("exp2", "gelu", "reciprocal", "rsqrt")


def measure(text: Path) -> dict[str, Any]:
    """Nats per character: the float model as trained, float64, and the golden model; the same with other accumulators and coefficients, and with each
    function exact instead of approximated."""
    model: Any = open_model(MODEL)
    whole = text.read_text(encoding="utf-8")
    ids = np.asarray(Tokenizer.load(HERE / "models" / MODEL, model.shape.vocabulary).encode(whole[int(len(whole) * (1 - HELD_OUT)) :]))
    context = model.shape.context
    count = (len(ids) - 1) // context
    rows = np.stack([ids[i * context : (i + 1) * context + 1] for i in range(count)])
    config = load_config("pim-gpt", PimConfig)
    exact = np.array([_losses(evaluate(model, row[:-1]), row) for row in rows])
    shipped = _golden(model, config, rows)
    part = rows[:WINDOWS]
    base = shipped[:WINDOWS].mean()
    bf16 = config.model_copy(update={"accumulator": "bf16"})
    taylor = config.model_copy(update={"companion": config.companion.model_copy(update={"functions": "taylor"})})
    variants = {"accumulator bf16": _golden(model, bf16, part), "Taylor coefficients": _golden(model, taylor, part)}
    variants |= {f"{name} exact": _golden(model, config, part, frozenset({name})) for name in FUNCTIONS}
    variants["all functions exact"] = _golden(model, config, part, frozenset(FUNCTIONS))
    trained = json.loads((HERE / "models" / MODEL / "training.json").read_text())["held_out_loss"]
    return {
        "characters": rows[:, 1:].size,
        "loss_trained_float32": trained,
        "loss_float64": exact.mean(),
        "loss_golden": shipped.mean(),
        "golden_over_float64": shipped.mean() / exact.mean() - 1,
        "variants": {
            "characters": part[:, 1:].size,
            "loss_float64": exact[:WINDOWS].mean(),
            "loss_golden": base,
            **{name: {"loss": found.mean(), "over_golden": found.mean() / base - 1} for name, found in variants.items()},
        },
    }


def _golden(model: Any, config: PimConfig, rows: np.ndarray, exact: frozenset[str] = frozenset()) -> np.ndarray:
    system = Golden(model, partition(model.shape, config), exact=exact)
    return np.array([_losses(system.logits(row[:-1]).astype(np.float64), row) for row in rows])


def _losses(logits: np.ndarray, row: np.ndarray) -> np.ndarray:
    """Nats of every position's next character."""
    below = logits - logits.max(1, keepdims=True)
    result: np.ndarray = np.log(np.exp(below).sum(1)) - below[np.arange(len(below)), row[1:]]
    return result
