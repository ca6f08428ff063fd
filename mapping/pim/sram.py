# SPDX-License-Identifier: Apache-2.0
"""Where everything lies in the companion chip's SRAM: fixed regions of words, by phase of a token."""

from __future__ import annotations

from dataclasses import dataclass

from lutra.hls_models.errors import ConfigError
from lutra.hls_models.pim.config import PimConfig
from lutra.mapping.pim.heads import HeadLayout, Pass
from lutra.mapping.pim.shape import GptShape

__all__ = ["Sram", "score_budget", "score_stride", "score_words", "vector_words"]


def vector_words(values: int, config: PimConfig) -> int:
    """Words of a vector however it is received: groups of banks or striped beats, over all channels."""
    return -(-values // (config.lanes * config.channels)) * config.channels * config.words_per_beat


def score_stride(context: int, split: int, config: PimConfig) -> int:
    """Words of one head's scores: whole groups of tokens, whole beats."""
    groups = -(-context // (split * config.banks)) * split
    return -(-groups // config.words_per_beat) * config.words_per_beat


@dataclass(frozen=True)
class Sram:
    """First words of regions.

    ``x``: residual stream; ``c``: the heads' outputs, its centred form before the head; ``down_bias`` lives through a layer. Attention: ``output_bias``,
    ``joint`` (values, keys, queries; later partial sums of the output), ``scores`` of two passes in turn (the queries' bias before). Feed-forward: ``up``,
    ``up_bias`` (later partial sums of down). Head: ``gain``, ``bias``, ``tile`` of ``tile_words``.
    """

    x: int
    c: int
    down_bias: int
    output_bias: int
    joint: int
    query_bias: int
    scores: tuple[int, int]
    up: int
    up_bias: int
    gain: int
    bias: int
    tile: int
    tile_words: int
    overlap: bool
    """Two passes' scores fit at a time."""

    @classmethod
    def plan(cls, shape: GptShape, config: PimConfig, layout: HeadLayout, context: int) -> Sram:
        """The regions for a context; ConfigError where they do not fit."""
        d, size = vector_words(shape.hidden, config), config.sram_words
        c = max(d, vector_words(shape.heads * layout.words * config.banks, config) + max(p.split * layout.groups(p.split) for p in layout.passes))
        c = -(-c // config.words_per_beat) * config.words_per_beat
        joint, bias = vector_words(layout.outputs, config), vector_words(layout.outputs, config)
        shared = d + c + d
        rest = shared + d + joint
        one = max(score_words(part, context, config) for part in layout.passes)
        overlap = len(layout.passes) > 1 and rest + max(2 * one, bias) <= size
        up = vector_words(shape.ffn, config)
        end = shared + 2 * d  # gain and bias of the last norm, or the head's bias in tiles
        needs = {
            f"attention over {context} tokens": rest + max(one * (2 if overlap else 1), bias),
            "the feed-forward layer": shared + up + max(up, d),
            "the head": end + config.channels * config.words_per_beat,
        }
        for phase, words in needs.items():
            if words > size:
                least = words * 4 * config.banks
                raise ConfigError(
                    f"companion.sram_bytes must hold {phase} of {shape.name} ({least} bytes), not {config.companion.sram_bytes}; nearest legal value {least}"
                )
        return cls(
            x=0,
            c=d,
            down_bias=d + c,
            output_bias=shared,
            joint=shared + d,
            query_bias=rest,
            scores=(rest, rest + one if overlap else rest),
            up=shared,
            up_bias=shared + up,
            gain=shared,
            bias=shared + d,
            tile=end,
            tile_words=size - end,
            overlap=overlap,
        )


def score_words(part: Pass, context: int, config: PimConfig) -> int:
    """Words of the scores of a pass."""
    return part.heads * score_stride(context, part.split, config)


def score_budget(shape: GptShape, config: PimConfig, layout: HeadLayout) -> int:
    """Words that are left for scores, whatever the passes are (up to padding)."""
    d = vector_words(shape.hidden, config)
    return config.sram_words - 4 * d - vector_words(layout.outputs, config) - config.channels * config.words_per_beat
