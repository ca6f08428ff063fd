# SPDX-License-Identifier: Apache-2.0
"""ATTEND: configuration and golden values (docs/architecture.md §2.8); its clock cycles are in ``attention_cycles.py``.

Prefill is TeLLMe's reversed and reordered attention (arXiv 2510.15926): tiles wholly in the future are never generated and no score matrix exists. Here the
cache keeps its natural order and the loop over key tiles is what runs backwards. Decode reads K once and V once, with all scores of a KV head in between.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from lutra.hls_models.config import Config
from lutra.hls_models.floats import E8M11, FLOAT_LATENCY, FP16, FP32, FloatFormat, from_float64, to_float64
from lutra.hls_models.functions import MAX_MANTISSA, exp2
from lutra.hls_models.streams import pack
from lutra.hls_models.ternary.config import KvFormat

__all__ = ["AttentionConfig", "KeyTile", "KvCache", "attend", "key_tiles", "read_addresses", "read_lasts", "reference", "write_addresses"]

Bits = NDArray[np.uint32]
Real = NDArray[np.float64]

TINY = 2.0**-100  # a tile whose largest weight is below has codes and scale 0
ADDRESS_BITS = 24
# Items whose weights and partial sums are kept: from its first weight to its last use an item lives for two tiles of keys and one division.
STORED_ITEMS = 4


class AttentionConfig(Config):
    """Sizes of one ATTEND unit.

    int8: one key per clock, ``head_dim`` multipliers for scores and as many for values. In the steady state an item (a query row and a key tile) takes its
    number of keys plus one clock, at least ``FLOAT_LATENCY["divsqrt"] + 1`` (the serial divider that scales its weights).

    fp16: one key per ``key_clocks``, ``key_lanes`` multipliers and adders for scores and as many for values. A sum of values over keys goes round an adder: a
    key takes that adder's latency at least, so that no more lanes are built than it keeps busy. An item takes ``key_clocks`` per key and one, at least
    ``FLOAT_LATENCY["divsqrt"] + 1`` (the divider of its denominator).
    """

    heads: int = Field(ge=1, le=256, description="query heads")
    kv_heads: int = Field(ge=1, le=128, description="key/value heads")
    head_dim: int = Field(ge=1, le=512, description="elements of a head")
    layers: int = Field(ge=1, le=256, description="layers that share the cache")
    context: int = Field(ge=1, le=65536, description="positions of the cache")
    max_tokens: int = Field(ge=1, le=128, description="tokens of one pass: the query block of prefill")
    key_tile: int = Field(default=32, ge=1, le=1024, description="keys per tile, of prefill and decode (TL)")
    vector_lanes: int = Field(ge=1, le=64, description="codes and values per beat (V)")
    format: FloatFormat = Field(default=E8M11, description="of probabilities and values (F)")
    partials: int = Field(default=8, ge=1, le=64, description="partial sums of a denominator (A)")
    kv_format: KvFormat = Field(default="int8", description="number format of queries, keys and values")
    shared: bool = Field(default=False, description="keys and values lie in a shared memory: LOADER brings their rows, AxiWriter takes new ones")
    tree: Literal["lut", "dsp"] = Field(default="lut", description="dsp: sums of int8 products are in the DSP48E2 blocks of the products (xcup)")
    row_ram: Literal["distributed", "block"] = Field(default="distributed", description="memory of the queries of a pass and of tiles: LUT-RAM or block RAM")
    deep_ram: Literal["block", "ultra"] | None = Field(default=None, description="memory of scores and running outputs; none: block RAM as row_ram, or any")

    @property
    def group(self) -> int:
        """Query heads per KV head."""
        return self.heads // self.kv_heads

    @property
    def head_beats(self) -> int:
        """Beats of one head's codes or values."""
        return self.head_dim // self.vector_lanes

    @property
    def code_bits(self) -> int:
        """Bits of an element of a query, key or value."""
        return 16 if self.kv_format == "fp16" else 8

    @property
    def row_bits(self) -> int:
        """Width of the key/value memory: a head's elements, in int8 with their fp32 scale."""
        return self.code_bits * self.head_dim + (0 if self.kv_format == "fp16" else FP32.bits)

    @property
    def key_steps(self) -> int:
        """Parts in which a key or value is worked on: of fp16 the fewest that divide the beats and keep the adder busy, if so many there are."""
        if self.kv_format == "int8":
            return 1
        return next((steps for steps in range(FLOAT_LATENCY["add"], self.head_beats + 1) if self.head_beats % steps == 0), self.head_beats)

    @property
    def key_clocks(self) -> int:
        """Clocks that a key takes."""
        return 1 if self.kv_format == "int8" else max(self.key_steps, FLOAT_LATENCY["add"])

    @property
    def item_clocks(self) -> int:
        """Clocks that a query row and a whole key tile take in the steady state: each key, and one; or the divider's."""
        return max(self.key_tile * self.key_clocks + 1, FLOAT_LATENCY["divsqrt"] + 1)

    @property
    def key_lanes(self) -> int:
        """Elements of a key that are worked on in a clock."""
        return self.head_dim // self.key_steps

    @property
    def rows(self) -> int:
        """Rows of the key/value memory: K and V of every layer, head and position."""
        return 2 * self.layers * self.kv_heads * self.context

    @property
    def score_depth(self) -> int:
        """Scores on chip: all of a KV head in decode, two tiles in prefill."""
        return max(self.group * self.context, 2 * self.key_tile)

    @property
    def maximum_depth(self) -> int:
        """Row maxima between scores and softmax: in decode those of all rows are known before the first one is used."""
        return max(self.group, 4)

    def address(self, layer: int, head: int, position: int, *, value: bool) -> int:
        """Row of the key/value memory."""
        return ((layer * self.kv_heads + head) * self.context + position) * 2 + value

    @model_validator(mode="after")
    def _consistent(self) -> "AttentionConfig":
        if self.heads % self.kv_heads:
            raise ValueError(
                f"heads must be a multiple of kv_heads = {self.kv_heads}, not {self.heads}; nearest: {self.group * self.kv_heads or self.kv_heads}"
            )
        if self.head_dim % self.vector_lanes:
            nearest = max(1, self.head_beats) * self.vector_lanes
            raise ValueError(f"head_dim must be a multiple of vector_lanes = {self.vector_lanes}, not {self.head_dim}; nearest: {nearest}")
        for name, low in (("key_tile", 1), ("partials", FLOAT_LATENCY["add"] + 1)):
            value = getattr(self, name)
            if value & (value - 1) or value < low:
                power = 1 << max(value - 1, low - 1).bit_length()
                raise ValueError(f"{name} must be a power of two of at least {low}, not {value}; nearest: {power}")
        if self.max_tokens > self.context:
            raise ValueError(f"max_tokens must be at most context = {self.context}, not {self.max_tokens}; nearest: {self.context}")
        if self.shared and self.kv_format != "int8":
            raise ValueError(f"kv_format must be int8 where memory is shared, not {self.kv_format}")
        if self.rows > 1 << ADDRESS_BITS:
            nearest = (1 << ADDRESS_BITS) // (2 * self.layers * self.kv_heads)
            raise ValueError(f"context must leave at most 2^{ADDRESS_BITS} rows of keys and values, not {self.context} ({self.rows} rows); nearest: {nearest}")
        if self.format.exponent != FP32.exponent or self.format.mantissa > MAX_MANTISSA:
            legal = FloatFormat(FP32.exponent, min(self.format.mantissa, MAX_MANTISSA))
            raise ValueError(f"format must have {FP32.exponent} exponent and at most {MAX_MANTISSA} mantissa bits, not {self.format}; nearest: {legal}")
        return self


@dataclass
class KvCache:
    """Keys and values of all layers: ``codes`` (layers, kv_heads, context, 2, head_dim) and fp32 ``scales`` (layers, kv_heads, context, 2); K is 0, V 1.

    ``codes`` are int8, or uint16 patterns of fp16, which have no scales in the memory. Flattened over all but head_dim, both are in the order of its rows.
    """

    codes: NDArray[np.integer]
    scales: Bits
    kv_format: KvFormat

    @classmethod
    def empty(cls, config: AttentionConfig) -> "KvCache":
        shape = (config.layers, config.kv_heads, config.context, 2)
        return cls(np.zeros((*shape, config.head_dim), np.uint16 if config.kv_format == "fp16" else np.int8), np.zeros(shape, np.uint32), config.kv_format)

    def store(self, layer: int, position: int, codes: NDArray[np.integer], scales: Bits) -> None:
        """Rows of a pass: codes (n, 2 * kv_heads, head_dim) and scales (n, 2 * kv_heads) in the order of the code beats, all K heads before all V heads."""
        n = len(codes)
        pair = np.asarray(codes).reshape(n, 2, -1, self.codes.shape[-1])
        self.codes[layer, :, position : position + n] = pair.transpose(2, 0, 1, 3)
        self.scales[layer, :, position : position + n] = np.asarray(scales).reshape(n, 2, -1).transpose(2, 0, 1)

    def rows(self, addresses: NDArray[np.int64], *, with_address: bool = False, last: NDArray[np.bool_] | None = None) -> Bits:
        """Payload words of the memory's rows at ``addresses``: {scale, codes} or {codes} of fp16.

        As they are written they have their address before them; as they come from a shared memory they have {value, last} behind them, ``last`` being given.
        """
        head = [(addresses, ADDRESS_BITS)] if with_address else []
        tail = [] if last is None else [(addresses % 2, 1), (last, 1)]
        codes = self.codes.reshape(-1, self.codes.shape[-1])[addresses]
        if self.kv_format == "fp16":
            return pack(*head, (codes, 16))
        return pack(*head, (self.scales.ravel()[addresses], 32), (codes, 8), *tail)


def write_addresses(config: AttentionConfig, layer: int, tokens: int, position: int) -> NDArray[np.int64]:
    """Rows that a pass writes, in order: for token, K of every head, then V."""
    rows = [(head, position + token, value) for token in range(tokens) for value in (False, True) for head in range(config.kv_heads)]
    return np.array([config.address(layer, head, at, value=value) for head, at, value in rows], np.int64)


class KeyTile(NamedTuple):
    """Rows of a tile of keys (or values) of a KV head: those of positions ``first`` … first + rows - 1."""

    head: int
    value: bool
    first: int
    rows: int


def key_tiles(config: AttentionConfig, tokens: int, position: int, *, serial: bool = False) -> Iterator[KeyTile]:
    """Tiles that a pass reads, in order: prefill K and V tile by tile, newest first; decode K upwards, then V, V of a head between K of the next; serial
    passes as decode, token after token."""
    TL, prefill = config.key_tile, tokens > 1 and not serial
    for end in [position + tokens] if prefill else range(position + 1, position + tokens + 1):
        tiles = [(base, min(TL, end - base)) for base in range(0, end, TL)]
        if prefill:
            yield from (KeyTile(head, value, *tile) for head in range(config.kv_heads) for tile in reversed(tiles) for value in (False, True))
            continue
        for head in range(config.kv_heads + 1):
            for tile in tiles:
                if head:
                    yield KeyTile(head - 1, True, *tile)
                if head < config.kv_heads:
                    yield KeyTile(head, False, *tile)


def read_addresses(config: AttentionConfig, layer: int, tokens: int, position: int, *, serial: bool = False) -> NDArray[np.int64]:
    """Rows that a pass reads, in the order of ``key_tiles``."""
    tiles = key_tiles(config, tokens, position, serial=serial)
    return np.concatenate([config.address(layer, one.head, one.first, value=one.value) + 2 * np.arange(one.rows) for one in tiles])


def read_lasts(config: AttentionConfig, tokens: int, position: int, *, serial: bool = False) -> NDArray[np.bool_]:
    """Which rows of ``read_addresses`` are the last ones of their tiles."""
    ends = np.cumsum([one.rows for one in key_tiles(config, tokens, position, serial=serial)])
    last = np.zeros(ends[-1], bool)
    last[ends - 1] = True
    return last


def _f32(x: Any) -> Real:
    """Round float64 to fp32 as the hardware does; the values stay float64."""
    with np.errstate(over="ignore", invalid="ignore"):
        y = np.asarray(x, np.float64).astype(np.float32).astype(np.float64)
    small = np.abs(x) < 2.0**-126
    if small.any():
        y = np.where(small & (np.abs(x) < 2.0**-126 * (1 - 2.0**-25)), np.copysign(0.0, x), np.where(small, np.copysign(2.0**-126, x), y))
    return y


def _exp2(F: FloatFormat, x: Real) -> Real:
    """exp2 of fp32 values, in F, as float64."""
    return to_float64(F, exp2(from_float64(FP32, x), F))


def _denominators(p: Real, partials: int) -> Real:
    """Sums over the last axis: element j into partial j mod ``partials``, the partials in a balanced tree."""
    p = np.pad(p, [(0, 0)] * (p.ndim - 1) + [(0, -p.shape[-1] % partials)])
    chunks = p.reshape(*p.shape[:-1], -1, partials)
    sums = chunks[..., 0, :]
    for i in range(1, chunks.shape[-2]):
        sums = _f32(sums + chunks[..., i, :])
    while sums.shape[-1] > 1:
        sums = _f32(sums[..., 0::2] + sums[..., 1::2])
    return sums[..., 0]


def _tree(x: NDArray[np.float32]) -> NDArray[np.float32]:
    """Balanced tree over the last axis: sums of fp16 products, which are multiples of 2^-48, so that float32 rounds them as the hardware does."""
    while (n := x.shape[-1]) > 1:
        even = n - n % 2
        x = np.concatenate([x[..., 0:even:2] + x[..., 1:even:2], x[..., even:]], axis=-1)
    return x[..., 0]


def _float_scores(config: AttentionConfig, q: Real, k: Real) -> Real:
    """(rows, keys) dot products of fp16 values, exact products summed in a tree over the lanes of a step and then in one over the steps."""
    parts = (q.astype(np.float32)[:, None] * one.astype(np.float32) for one in np.split(k, range(config.key_tile, len(k), config.key_tile)))
    sums = [_tree(_tree(part.reshape(*part.shape[:2], config.key_steps, config.key_lanes))) for part in parts]
    return np.concatenate(sums, axis=1).astype(np.float64)


def _float_terms(p: Real, valid: NDArray[np.bool_], v: Real) -> Real:
    """(tiles, rows, head_dim) sums of f32(p_j * v_jd) over the keys of each tile in their order, from +0; p (rows, tiles, keys), v (tiles, keys, head_dim)."""
    sums = np.zeros((p.shape[1], p.shape[0], v.shape[-1]))
    for j in range(v.shape[1]):
        seen = valid[:, :, j].T[..., None]
        sums = np.where(seen, _f32(sums + _f32(p[:, :, j].T[..., None] * v[:, None, j])), sums)
    return sums


def _integer_terms(p: Real, valid: NDArray[np.bool_], v: Real, sv: Real) -> Real:
    """The same in integers: weights w_j = f32(p_j * sv_j) as 8-bit codes of one scale per row and tile; sv (tiles, keys)."""
    w = np.where(valid, _f32(p * sv), 0.0)
    largest = np.fmax.reduce(w, axis=2, initial=0.0)
    nothing = largest < TINY
    inverse = np.where(nothing, 0.0, _f32(255.0 / largest))
    scale = np.where(nothing, 0.0, _f32(largest * np.float64(np.float32(1 / 255))))
    c = np.rint(_f32(w * inverse[:, :, None]))
    c = np.where(np.isnan(c), 0.0, np.clip(c, 0, 255))
    products = np.einsum("rtj,tjd->trd", c, v, optimize=True)
    return _f32(_f32(products) * scale.T[:, :, None])


def attend(config: AttentionConfig, q_codes: NDArray[np.integer], q_scales: Bits, cache: KvCache, layer: int, position: int, *, serial: bool = False) -> Bits:
    """Attention of a pass whose own keys and values are already in the cache; ``serial``: each token as if it were decoded.

    Parameters
    ----------
    q_codes, q_scales
        (n, heads, head_dim) int8 (or patterns of fp16, uint16) and (n, heads) fp32 bits of the tokens at ``position`` … position + n - 1.

    Returns
    -------
    (n, heads * head_dim) bits of ``config.format``.
    """
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        if serial:
            tokens = range(len(q_codes))
            return np.concatenate([_attend(config, q_codes[t : t + 1], q_scales[t : t + 1], cache, layer, position + t) for t in tokens])
        return _attend(config, q_codes, q_scales, cache, layer, position)


def _attend(config: AttentionConfig, q_codes: NDArray[np.integer], q_scales: Bits, cache: KvCache, layer: int, position: int) -> Bits:
    n, F, TL = len(q_codes), config.format, config.key_tile
    end = position + n
    tiles = -(-end // TL)
    rows = n * config.group
    codes, scales = _values(config, cache.codes[layer, :, :end]), to_float64(FP32, cache.scales[layer, :, :end])
    floating = config.kv_format == "fp16"
    out = np.empty((n, config.kv_heads, config.group * config.head_dim), np.uint32)
    limit = position + 1 + np.repeat(np.arange(n), config.group)  # keys that a row sees
    valid = (np.arange(tiles * TL) < limit[:, None]).reshape(rows, tiles, TL)
    present = valid[:, :, 0]
    pad = tiles * TL - end

    for head in range(config.kv_heads):
        own = slice(head * config.group, (head + 1) * config.group)
        q = _values(config, q_codes[:, own].reshape(rows, config.head_dim))
        k, v = (np.pad(codes[head, :, i], ((0, pad), (0, 0))) for i in (0, 1))
        v = v.reshape(tiles, TL, -1)
        if floating:
            score = _float_scores(config, q, k)
        else:
            sq = to_float64(FP32, q_scales[:, own]).reshape(rows, 1)
            sk, sv = (np.pad(scales[head, :, i], (0, pad)) for i in (0, 1))
            score = _f32(_f32(q @ k.T) * _f32(sq * sk))
        score = np.where(valid, score.reshape(rows, tiles, TL), -np.inf)
        top = np.fmax.reduce(score, axis=2, initial=-np.inf)
        if n == 1:  # two passes: every tile sees the maximum of all
            maximum = np.broadcast_to(np.fmax.reduce(top, axis=1, keepdims=True), top.shape)
            order, rescale = range(tiles), np.ones_like(top)
        else:
            maximum = np.fmax.accumulate(top[:, ::-1], axis=1)[:, ::-1]
            older = np.concatenate([maximum[:, 1:], np.full((rows, 1), -np.inf)], axis=1)
            first = np.concatenate([~present[:, 1:], np.ones((rows, 1), bool)], axis=1)
            order, rescale = range(tiles - 1, -1, -1), np.where(first, 1.0, _exp2(F, _f32(older - maximum)))
        p = np.where(valid, _exp2(F, _f32(score - maximum[:, :, None])), 0.0)
        sums = _denominators(p, config.partials)
        terms = _float_terms(p, valid, v) if floating else _integer_terms(p, valid, v, sv.reshape(tiles, TL))

        denominator, o = np.zeros(rows), np.zeros((rows, config.head_dim))
        for t in order:
            f = rescale[:, t]
            denominator = np.where(present[:, t], _f32(_f32(denominator * f) + sums[:, t]), denominator)
            o = np.where(present[:, t, None], _f32(_f32(o * f[:, None]) + terms[t]), o)
        value = from_float64(F, _f32(o * _f32(1.0 / denominator)[:, None]))
        out[:, head] = value.reshape(n, -1)
    return out.reshape(n, -1)


def _values(config: AttentionConfig, codes: NDArray[np.integer]) -> Real:
    """Codes as float64, without their scale if they have one."""
    return to_float64(FP16, codes) if config.kv_format == "fp16" else codes.astype(np.float64)


def reference(config: AttentionConfig, q_codes: NDArray[np.integer], q_scales: Bits, cache: KvCache, layer: int, position: int) -> Real:
    """The same attention in float64 (softmax of base 2 over the dequantised codes): what ``attend`` approximates."""
    n = len(q_codes)
    end = position + n
    q, both = _values(config, q_codes), _values(config, cache.codes[layer, :, :end])
    if config.kv_format == "int8":
        q, both = q * to_float64(FP32, q_scales)[..., None], both * to_float64(FP32, cache.scales[layer, :, :end])[..., None]
    k, v = np.moveaxis(both, 2, 0)
    q = q.reshape(n, config.kv_heads, config.group, -1)
    score = np.einsum("nhgd,hjd->hngj", q, k)
    score = np.where(np.arange(end) <= position + np.arange(n)[:, None, None], score, -np.inf)
    p = np.exp2(score - score.max(axis=-1, keepdims=True))
    return np.einsum("hngj,hjd->nhgd", p / p.sum(axis=-1, keepdims=True), v).reshape(n, -1)
