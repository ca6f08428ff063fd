# SPDX-License-Identifier: Apache-2.0
"""Drafts from n-grams on text of the shipped model: how many tokens a pass of m lanes yields, and what that makes of a core's tokens per second.

Verified drafts never change the text: it is greedy decoding's. So the golden model writes it once, and the passes are replayed over it; the cycle model says
what each takes, by its tokens and its position. The cores differ in where the weights lie, not in a number that they compute. Left out: the prompts, whose
passes are the same either way, and the host's own time, who writes and reads some twenty registers between two passes.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from lutra.hls_models.load import load_config
from lutra.hls_models.shape import ModelShape
from lutra.hls_models.ternary.config import CoreConfig
from lutra.hls_models.ternary.core import CoreSpec
from lutra.hls_models.ternary.core_cycles import CoreTiming
from lutra.hls_models.ternary.core_units import PassPlan
from lutra.hls_models.ternary.drafts import NgramDrafts, speculate
from lutra.hls_models.ternary.executor import Executor
from lutra.mapping.catalogue import HERE
from lutra.mapping.importer import load
from lutra.mapping.lower import compile_model
from lutra.mapping.tokenizer import Tokenizer
from lutra.progress import step

__all__ = ["LANES", "Verified", "cores", "measure", "replay", "speeds"]

MODEL, PRESET, STREAMED = "tiny-shakespeare", "tiny-drafts", "kv260"
HELD_OUT = 0.1  # of the text, at its end
PROMPT, TEXTS = 64, 24
LANES = (1, 2, 3, 4, 6, 8)
LONGEST = 6


class Verified(NamedTuple):
    """A pass over ``tokens`` tokens, the newest and drafts, from ``position`` on; ``yields``: tokens of the text."""

    position: int
    tokens: int
    yields: int


Texts = Sequence[tuple[list[int], list[int]]]
"""(prompt, what greedy decoding makes of it)."""


def replay(prompt: Sequence[int], written: Sequence[int], lanes: int) -> list[Verified]:
    """Passes of up to ``lanes`` lanes on the way to ``written``, what greedy decoding makes of ``prompt``; its first token is the prefill's."""
    asked: list[tuple[int, int]] = []

    def verify(ids: list[int], position: int) -> list[int]:
        asked.append((position, len(ids)))
        # Behind the first wrong draft the choices are another text's: they are not looked at.
        first = position - len(prompt) + 1
        known = written[first : first + len(ids)]
        return [*known, *[-1] * (len(ids) - len(known))]

    return [Verified(*asked[-1], len(tokens)) for tokens in speculate(prompt, written[0], len(written), lanes, verify, NgramDrafts(LONGEST, 1))]


def cores() -> list[CoreConfig]:
    """The preset, whose weights are on chip, and the same core with its model behind a single port of the memory that ``kv260`` has."""
    chip, large = load_config(PRESET, CoreConfig), load_config(STREAMED, CoreConfig)
    assert large.memory is not None
    memory = large.memory.model_copy(update={"ports": 1})
    buffers = {name: getattr(large, name) for name in ("ring_rows", "params_rows", "rope_rows", "program_words")}
    changes = {"name": f"{PRESET}, one port", "beat_bytes": memory.beat_bytes, "memory": memory.model_dump(), **buffers}
    return [chip, CoreConfig.model_validate(chip.model_dump() | changes)]


def speeds(config: CoreConfig, shape: ModelShape, texts: Texts) -> dict[str, Any]:
    """Tokens per second of greedy decoding, and with so many lanes at most."""
    timing = CoreTiming(CoreSpec(config=config, shape=shape), compile_model(shape, config))
    passes = {lanes: [one for text in texts for one in replay(*text, lanes)] for lanes in LANES if lanes <= config.draft_lanes}
    plain = [one.position for one in passes[1]]
    plans = [PassPlan(position, 1, True) for position in sorted(set(plain))]
    plans += [PassPlan(*one, True, True) for one in sorted({one[:2] for found in passes.values() for one in found})]
    cycles = {plan: times.cycles for plan, times in zip(plans, timing.passes(plans), strict=True)}

    def rate(tokens: int, chosen: Sequence[PassPlan]) -> float:
        return tokens * config.clock_hz / sum(cycles[plan] for plan in chosen)

    drafted = {
        str(lanes): rate(sum(one.yields for one in found), [PassPlan(one.position, one.tokens, True, True) for one in found])
        for lanes, found in passes.items()
        if lanes > 1
    }
    place = config.memory.bandwidth(config.clock_hz) if config.memory else None
    own = {"name": config.name, "clock_hz": config.clock_hz, "memory_bytes_per_second": place}
    return own | {"greedy": rate(len(plain), [PassPlan(position, 1, True) for position in plain]), "drafted": drafted}


def measure(text: Path) -> dict[str, Any]:
    """Tokens per pass and per second over greedy texts from ``TEXTS`` places of the held-out part, to the end of the context."""
    folder = HERE / "models" / MODEL
    model, config = load(folder), load_config(PRESET, CoreConfig)
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
        "worst_text": {str(lanes): min(map(_mean, found)) for lanes, found in passes.items()},
        "best_text": {str(lanes): max(map(_mean, found)) for lanes, found in passes.items()},
        "cores": [speeds(one, model.shape, texts) for one in cores()],
    }


def _mean(passes: Sequence[Verified]) -> float:
    return sum(one.yields for one in passes) / len(passes)
