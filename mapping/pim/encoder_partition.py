# SPDX-License-Identifier: Apache-2.0
"""Where a sentence encoder lies: banks (architecture.md, 4.7), the cells' contents, and the companion chip's SRAM."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import accumulate

import numpy as np

from lutra.hls_models import floats
from lutra.hls_models.errors import ConfigError, ModelError
from lutra.hls_models.floats import BF16
from lutra.hls_models.pim.config import PimConfig
from lutra.mapping.pim.encoder import EncoderModel, EncoderShape
from lutra.mapping.pim.heads import HeadLayout
from lutra.mapping.pim.partition import LayerPlaces, Placed, Placer
from lutra.mapping.pim.places import Groups, Piece, Striped, pieces
from lutra.mapping.pim.sram import score_words, vector_words
from lutra.mapping.pim.weights import Cells, place_matrix, place_positions, place_vector, spread

__all__ = ["EncoderLayer", "EncoderPartition", "EncoderSram", "cells", "embedding", "partition"]

NORMS = ("attention gain", "attention bias", "ffn gain", "ffn bias")


@dataclass(frozen=True)
class EncoderLayer(LayerPlaces):
    """Matrices and vectors of a layer; the vectors are read together."""

    attention_gain: Striped
    attention_bias: Striped
    ffn_gain: Striped
    ffn_bias: Striped


@dataclass(frozen=True, eq=False)
class EncoderPartition(Placed):
    """An encoder's place.

    Attributes
    ----------
    hidden
        Vectors of tokens that the SRAM has no room for: token t in channel t % C, bank (t // C) % B, group t // (B*C).
    result
        The embedding of the last sentence, bf16, in bank 0 of channel 0: what a host reads.
    gain, bias
        Of the norm behind the embedding.
    """

    shape: EncoderShape
    layers: tuple[EncoderLayer, ...]
    gain: Striped
    bias: Striped
    hidden: Groups
    result: Groups

    def hidden_pieces(self, token: int) -> tuple[int, list[Piece]]:
        """Channel and columns of a token's vector."""
        slot, channel = divmod(token, self.config.channels)
        group, bank = divmod(slot, self.config.banks)
        return channel, list(pieces(bank, self.hidden.position(group), self.hidden.columns, self.config.columns))

    def result_pieces(self) -> list[Piece]:
        """Columns of the embedding."""
        return list(pieces(0, self.result.position(0), self.result.columns, self.config.columns))


def partition(shape: EncoderShape, config: PimConfig, *, tokens: int | None = None) -> EncoderPartition:
    """Place an encoder with room for sentences of ``tokens`` tokens, as many as positions where not given.

    Raises
    ------
    ModelError
        The model does not fit, with the bytes that are missing.
    """
    wanted = shape.context if tokens is None else tokens
    if not 1 <= wanted <= shape.context:
        raise ModelError(f"{shape.name}: tokens must be 1 to {shape.context} (the positions), not {wanted}")
    unit, buffer = math.lcm(config.lanes, config.banks), config.columns * config.lanes
    if wanted > buffer:
        unit = math.lcm(unit, buffer)
    return _EncoderPlacer(shape, config, -(-wanted // unit) * unit, 1, shape.context).partition(ignore_capacity=False)


class _EncoderPlacer(Placer[EncoderPartition]):
    shape: EncoderShape

    def place(self) -> EncoderPartition:
        shape, config, d = self.shape, self.config, self.shape.hidden
        self.regions = []
        table = self.positions_table()
        together = [{"gain": d, "bias": d}]
        for i in range(shape.layers):
            sizes = {"query": self.query_bias, "output": d, "up": shape.ffn, "down": d} | dict.fromkeys(NORMS, d)
            together.append({f"{i} {name}": size for name, size in sizes.items()})
        vectors = self.shelf("vectors", together)
        embedding = self.matrix("embedding", shape.vocabulary, d)
        names = ("query", "output", "up", "down", *NORMS)
        layers = tuple(EncoderLayer(*self.layer_matrices(i), *(vectors[f"{i} {name}"] for name in names)) for i in range(shape.layers))
        keyvalues = self.keyvalues()
        beats = -(-d // config.lanes)
        per_row = config.columns // beats
        hidden = self.take("hidden", Groups(0, beats, -(-self.reservation // (config.banks * config.channels)), per_row, config.columns))
        result = self.take("result", Groups(0, beats, 1, per_row, config.columns))
        return EncoderPartition(
            shape=shape,
            config=config,
            costs=self.costs,
            layout=self.layout,
            reservation=self.reservation,
            tokens=self.reservation,
            positions=self.positions,
            embedding=embedding,
            layers=layers,
            position_groups=table,
            gain=vectors["gain"],
            bias=vectors["bias"],
            hidden=hidden,
            result=result,
            keyvalues=keyvalues,
            regions=tuple(self.regions),
            overflow_rows=0,
        )

    def sizes(self) -> list[tuple[int, int]]:
        return [*self.layer_sizes(), (self.shape.vocabulary, self.shape.hidden)]

    def score_budget(self, layout: HeadLayout) -> int:
        return self.config.sram_words - EncoderSram.fixed(self.shape, self.config, layout)


@dataclass(frozen=True)
class EncoderSram:
    """First words of regions.

    ``pool``: the sum over tokens; ``query_bias`` to ``ffn_bias`` are a layer's vectors. Two tokens are worked on in turn: ``hidden`` holds one that lives in
    the banks, ``middle`` the vector between attention and feed-forward layer, ``wide`` its values and keys, or queries and then the heads' outputs at
    ``heads``, or the inner vector of the feed-forward layer. ``scores`` of two passes in turn. ``homes``: vectors of the first ``resident`` tokens.
    """

    pool: int
    query_bias: int
    output_bias: int
    up_bias: int
    down_bias: int
    attention_gain: int
    attention_bias: int
    ffn_gain: int
    ffn_bias: int
    hidden: tuple[int, int]
    middle: tuple[int, int]
    wide: tuple[int, int]
    heads: tuple[int, int]
    scores: tuple[int, int]
    homes: int
    home_words: int
    resident: int

    @staticmethod
    def sizes(shape: EncoderShape, config: PimConfig, layout: HeadLayout) -> tuple[int, int, int, int]:
        """Words of a hidden vector, of the feed-forward layer's, of the queries with what shares their first group, of a wide region."""
        d, ffn, unit = vector_words(shape.hidden, config), vector_words(shape.ffn, config), config.channels * config.words_per_beat
        joint = -(-layout.outputs // (config.banks * config.channels)) * config.channels
        first, end = layout.query_offset // config.channels * config.channels, -(-layout.query_offset // config.channels) * config.channels
        # Queries begin with a beat, wherever their first group begins.
        query, keys = -(-(joint - first + first % config.words_per_beat) // unit) * unit, -(-end // unit) * unit
        heads = vector_words(shape.heads * layout.words * config.banks, config) + max(part.split * layout.groups(part.split) for part in layout.passes)
        return d, ffn, query, max(keys, query + -(-heads // unit) * unit, ffn)

    @classmethod
    def fixed(cls, shape: EncoderShape, config: PimConfig, layout: HeadLayout) -> int:
        """Words of everything but scores and homes."""
        d, ffn, query, wide = cls.sizes(shape, config, layout)
        return 7 * d + query + ffn + 2 * (2 * d + wide)

    @classmethod
    def plan(cls, shape: EncoderShape, config: PimConfig, layout: HeadLayout, context: int) -> EncoderSram:
        """The regions for sentences of ``context`` tokens; ConfigError where they do not fit."""
        d, ffn, query, wide = cls.sizes(shape, config, layout)
        one = max(score_words(part, context, config) for part in layout.passes)
        needed = cls.fixed(shape, config, layout) + 2 * one
        if needed > config.sram_words:
            least = needed * 4 * config.banks
            raise ConfigError(
                f"companion.sram_bytes must hold {context} tokens of {shape.name} ({least} bytes), not {config.companion.sram_bytes}; "
                f"nearest legal value {least}"
            )
        vectors = {
            "pool": d,
            "query_bias": query,
            "output_bias": d,
            "up_bias": ffn,
            "down_bias": d,
            "attention_gain": d,
            "attention_bias": d,
            "ffn_gain": d,
            "ffn_bias": d,
        }
        starts = dict(zip(vectors, accumulate(vectors.values(), initial=0), strict=False))
        hidden = sum(vectors.values())
        middle, wides = hidden + 2 * d, hidden + 4 * d
        scores = wides + 2 * wide
        homes = scores + 2 * one
        return cls(
            **starts,
            hidden=(hidden, hidden + d),
            middle=(middle, middle + d),
            wide=(wides, wides + wide),
            heads=(wides + query, wides + wide + query),
            scores=(scores, scores + one),
            homes=homes,
            home_words=d,
            resident=(config.sram_words - homes) // d,
        )


def cells(model: EncoderModel, places: EncoderPartition) -> Cells:
    """The contents of all rows that the partition uses; keys, values and hidden vectors zero. The keys' bias changes no softmax and vanishes; weights that
    sum to one carry the values' bias through, so that it is part of the output's."""
    config, layout, shape = places.config, places.layout, places.shape
    width, unit = config.columns, config.channels * config.banks
    into: Cells = np.zeros((config.channels, config.banks, places.rows * width, config.lanes), np.uint16)
    place_matrix(into, places.embedding, model.embedding.astype(np.float64))
    order = np.array(layout.rows())
    for layer, at in zip(model.layers, places.layers, strict=True):
        size, nothing = shape.query_columns, np.zeros((1, shape.hidden))
        bias = np.concatenate([np.zeros(2 * size), layer.query_bias, [0.0]])[order]
        output = layer.output.astype(np.float64)
        place_matrix(into, at.joint, np.concatenate([layer.value, layer.key, layer.query, nothing])[order])
        place_matrix(into, at.output, spread(output, shape.heads, layout.words * config.banks))
        place_matrix(into, at.up, layer.up.astype(np.float64))
        place_matrix(into, at.down, layer.down.astype(np.float64))
        vectors = (
            (at.query_bias, bias[layout.query_offset // config.channels * unit :]),
            (at.output_bias, layer.output_bias + output @ layer.value_bias),
            (at.up_bias, layer.up_bias),
            (at.down_bias, layer.down_bias),
            (at.attention_gain, layer.attention_norm.gain),
            (at.attention_bias, layer.attention_norm.bias),
            (at.ffn_gain, layer.ffn_norm.gain),
            (at.ffn_bias, layer.ffn_norm.bias),
        )
        for vector, values in vectors:
            place_vector(into, vector, values.astype(np.float64), width)
    place_vector(into, places.gain, model.norm.gain.astype(np.float64), width)
    place_vector(into, places.bias, model.norm.bias.astype(np.float64), width)
    place_positions(into, places, model.positions)
    return into


def embedding(places: EncoderPartition, held: Cells) -> np.ndarray:
    """The last sentence's embedding (hidden,), float64, as a host reads it from the cells ``held``."""
    width = places.config.columns
    parts = [held[0, piece.bank, piece.row * width + piece.column :][: piece.count] for piece in places.result_pieces()]
    return floats.to_float64(BF16, np.concatenate(parts).reshape(-1)[: places.shape.hidden])
