# SPDX-License-Identifier: Apache-2.0
"""Drafts from n-grams on text of the shipped model: how many tokens a pass of m lanes yields.

Verified drafts never change the text: it is greedy decoding's. So the golden model writes it once, and the passes are replayed over it.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lutra.hls_models.load import load_config
from lutra.hls_models.ternary.config import CoreConfig
from lutra.hls_models.ternary.core import CoreSpec
from lutra.hls_models.ternary.drafts import NgramDrafts, speculate
from lutra.hls_models.ternary.executor import Executor
from lutra.mapping.catalogue import HERE
from lutra.mapping.importer import load
from lutra.mapping.lower import compile_model
from lutra.mapping.tokenizer import Tokenizer
from lutra.progress import step

__all__ = ["LANES", "measure", "replay"]

MODEL = "tiny-shakespeare"
HELD_OUT = 0.1  # of the text, at its end
PROMPT, TEXTS = 64, 24
LANES = (1, 2, 3, 4, 6, 8)
LONGEST = 6


def replay(prompt: Sequence[int], written: Sequence[int], lanes: int) -> list[int]:
    """Tokens that each pass of ``lanes`` lanes yields on the way to ``written``, what greedy decoding makes of ``prompt``; its first is the prefill's."""

    def verify(ids: list[int], position: int) -> list[int]:
        # Behind the first wrong draft the choices are another text's: they are not looked at.
        first = position - len(prompt) + 1
        known = written[first : first + len(ids)]
        return [*known, *[-1] * (len(ids) - len(known))]

    return [len(tokens) for tokens in speculate(prompt, written[0], len(written), lanes, verify, NgramDrafts(LONGEST, 1))]


def measure(text: Path) -> dict[str, Any]:
    """Tokens per pass over greedy texts from ``TEXTS`` places of the held-out part, to the end of the context."""
    folder = HERE / "models" / MODEL
    model, config = load(folder), load_config("tiny", CoreConfig)
    spec, program = CoreSpec(config=config, shape=model.shape), compile_model(model, config)
    whole = text.read_text(encoding="utf-8")
    start = int(len(whole) * (1 - HELD_OUT))
    apart = (len(whole) - start - PROMPT) // TEXTS
    ids = Tokenizer.load(folder, model.shape.vocabulary).encode(whole[start:])
    texts: list[tuple[list[int], list[int]]] = []
    core = Executor(spec, program)
    with step("writing greedy texts") as update:
        for number in range(TEXTS):
            prompt = [int(token) for token in ids[number * apart : number * apart + PROMPT]]
            written = [done.token for done in core.generate(prompt, model.shape.context - PROMPT) if done.last and done.token is not None]
            texts.append((prompt, written))
            update(number + 1, TEXTS)
    passes = {lanes: [replay(prompt, written, lanes) for prompt, written in texts] for lanes in LANES}
    tokens = sum(len(written) - 1 for _, written in texts)
    return {
        "model": MODEL,
        "texts": TEXTS,
        "prompt": PROMPT,
        "tokens": tokens,
        "longest_ngram": LONGEST,
        "tokens_per_pass": {str(lanes): tokens / sum(map(len, found)) for lanes, found in passes.items()},
        "worst_text": {str(lanes): min(sum(one) / len(one) for one in found) for lanes, found in passes.items()},
        "best_text": {str(lanes): max(sum(one) / len(one) for one in found) for lanes, found in passes.items()},
    }
