# SPDX-License-Identifier: Apache-2.0
"""The sentence encoder all-MiniLM-L6-v2 on banks and companion chip, beside float32; and how long sentences take."""

import os
import sys
from pathlib import Path
from typing import Any

import numpy as np

from lutra.hls_models.errors import LutraError
from lutra.hls_models.load import load_config
from lutra.hls_models.pim.config import PimConfig
from lutra.hls_models.pim.executor import Executor
from lutra.hls_models.pim.system import SystemModel, SystemRun
from lutra.hls_models.pim.timing import load_timing
from lutra.mapping.pim.encoder import EncoderModel, embed, load
from lutra.mapping.pim.encoder_lower import lower
from lutra.mapping.pim.encoder_partition import EncoderPartition, EncoderSram, cells, embedding, partition
from lutra.mapping.pim.minilm import fetch
from lutra.mapping.tokenizer import Tokenizer
from lutra.pim import waits

__all__ = ["measure"]

LENGTHS = (8, 16, 32, 64, 128, 256)
"""Tokens of the sentences that are timed, the two special ones included."""
DETAILED = 16
BOUND = 0.9999
SENTENCES = (
    "Hello!",
    "What is the capital of France?",
    "Paris is the capital and largest city of France.",
    "The cat sat on the mat.",
    "A kitten was resting on the rug.",
    "The recipe calls for two cups of flour and a pinch of salt.",
    "Whisk the eggs, fold in the flour, and bake for forty minutes.",
    "Stock prices fell sharply after the announcement.",
    "Shares plunged when the company published its results.",
    "Rain is expected tomorrow in the northern regions.",
    "She plays the violin in the city orchestra.",
    "The football match ended in a draw after extra time.",
    "Quantum computers use qubits instead of bits.",
    "Memory bandwidth limits how fast a large language model can write.",
    "Processing in memory multiplies where the data is, and does not move it.",
    "To be, or not to be, that is the question.",
    "Trains to Berlin leave every hour from platform nine (not on Sundays).",
    "The quick brown fox jumps over the lazy dog; 3.14159 is less than 22/7.",
    "Ça va? Zürich, naïve café, 東京, and a rare word: antidisestablishmentarianism.",
    "An encoder reads a whole sentence at once: every word may look at every other word, so that the keys and values of all of them must be there before "
    "the first score can be worked out, which is why this program writes them into the banks for the whole sentence first, and only then takes one word "
    "after the other through the rest of the layer; a sentence as long as this one also shows what happens when the chip has no more room.",
)


def measure() -> dict[str, Any]:
    """Cosines of the golden embeddings with float32's, cycles of each sentence, cycles by length."""
    base = Path(os.environ["LUTRA_CACHE"]) if os.environ.get("LUTRA_CACHE") else Path.home() / ".cache" / "lutra"
    model = load(fetch(base / "models"))
    config = load_config("pim-gpt", PimConfig)
    places = partition(model.shape, config, tokens=model.limit)
    assert model.folder is not None
    tokenizer = Tokenizer.load(model.folder, model.shape.vocabulary, limit=model.limit)
    ids = [tokenizer.encode(text) for text in SENTENCES]
    found, cycles = golden(model, places, ids)
    exact = {name: np.array([embed(model, np.array(one), kind) for one in ids]) for name, kind in (("float32", np.float32), ("float64", np.float64))}
    cosines = (found * exact["float32"]).sum(-1) / np.linalg.norm(found, axis=-1)
    pairs = np.triu_indices(len(ids), 1)
    if cosines.min() < BOUND:
        raise LutraError(f"cosines must be at least {BOUND}, not {cosines.min():.6f} (sentence {int(cosines.argmin())})")
    clock = load_timing(config.timing).clock_ns
    return {
        "config": config.name,
        "cosine_float32": {"min": cosines.min(), "mean": cosines.mean()},
        "cosine_float64": {"min": ((found * exact["float64"]).sum(-1) / np.linalg.norm(found, axis=-1)).min()},
        "similarities_pearson": np.corrcoef((found @ found.T)[pairs], (exact["float32"] @ exact["float32"].T)[pairs])[0, 1],
        "sentences": [
            {"tokens": len(one), "cosine": float(cosine), "cycles": time, "microseconds": time * clock / 1000}
            for one, cosine, time in zip(ids, cosines, cycles, strict=True)
        ],
        "latency": latencies(model, config),
        "image_bytes": places.rows * config.row_bytes * config.banks * config.channels,
    }


def golden(model: EncoderModel, places: EncoderPartition, sentences: list[list[int]]) -> tuple[np.ndarray, list[int]]:
    """Embeddings (sentences, hidden) as the banks hold them at the end, and cycles."""
    held = cells(model, places)
    executor, timing = Executor(places.config, held), load_timing(places.config.timing)
    rows, cycles = [], []
    for number, ids in enumerate(sentences):
        print(f"sentence {number + 1} of {len(sentences)}: {len(ids)} tokens", file=sys.stderr)
        program = lower(places, ids)
        executor.run(program)
        rows.append(embedding(places, held))
        cycles.append(SystemModel(places.config, timing, program).run().cycles)
    return np.array(rows), cycles


def latencies(model: EncoderModel, config: PimConfig) -> dict[str, Any]:
    """Cycles of sentences of several lengths; at one of them where they go, and what other choices would change."""
    timing = load_timing(config.timing)

    def timed(system: PimConfig, tokens: int, *, overlap: bool = True) -> SystemRun:
        print(f"cycles of {tokens} tokens", file=sys.stderr)
        places = partition(model.shape, system, tokens=model.limit)
        return SystemModel(system, timing, lower(places, list(range(1000, 1000 + tokens)), overlap=overlap)).run()

    def figures(run: SystemRun, tokens: int) -> dict[str, float]:
        seconds = run.cycles * timing.clock_ns * 1e-9
        return {"cycles": run.cycles, "microseconds": seconds * 1e6, "tokens_per_second": tokens / seconds}

    runs = {tokens: timed(config, tokens) for tokens in LENGTHS}
    spent: dict[str, float] = {}
    for channel in runs[DETAILED].channels:
        for name, cycles in waits(channel, runs[DETAILED].cycles).items():
            spent[name] = spent.get(name, 0.0) + cycles * timing.clock_ns / 1000 / config.channels
    layout = partition(model.shape, config, tokens=model.limit).layout
    variants = {
        "without overlap": timed(config, DETAILED, overlap=False),
        "16 accumulators per bank": timed(config.model_copy(update={"accumulators_per_bank": 16}), DETAILED),
        "without refresh": timed(config.model_copy(update={"refresh": False}), DETAILED),
    }
    return {
        "by_tokens": {str(tokens): figures(run, tokens) for tokens, run in runs.items()},
        "tokens_in_sram": {str(tokens): min(tokens, EncoderSram.plan(model.shape, config, layout, tokens).resident) for tokens in LENGTHS},
        f"microseconds_of_{DETAILED}_tokens": dict(sorted(spent.items(), key=lambda item: -item[1])),
        f"variants_at_{DETAILED}_tokens": {name: figures(run, DETAILED) for name, run in variants.items()},
    }
