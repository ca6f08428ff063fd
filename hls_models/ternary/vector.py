# SPDX-License-Identifier: Apache-2.0
"""VECTOR, the element-wise unit: configuration, golden values and the layout of its parameter rows (architecture.md, 2.7).

What that page leaves open, settled here:

- ``a`` is the largest bit pattern of |u|, so infinity is above every number and NaN above infinity. Infinite ``a``: inv = 0, finite codes are 0, the scale is
  infinite; NaN: codes are 0, the scale is NaN. A code that would be NaN is 0 (``to_int``).
- The root of a normed row cancels in the codes, and LINEAR does not look at the scale beside them: with norm that scale is f32(a * f32(1/127)) for
  LINEAR and ATTEND, so that no code waits for a square root; scale[token], which dequantises the next sums, has the root. For HEAD (a normed row is
  one group) it is complete in both places.
- scale[token] is stored for the destinations LINEAR and HEAD, from the row's last group.
- With ``kv_format`` fp16 a beat has 16 bits per lane: for ATTEND u rounded to fp16, the largest finite number instead of an infinity (the scale beside
  it is the same and not looked at), for the others the code with its sign extended. Cycles do not depend on it.
- A ROPE instruction takes tokens * head_dim / V rows of ``rope`` (all of them before its first beat, given up after its last one), also if rope_columns = 0.
- GATE: columns and tile_columns are multiples of 2V, so that a token's beats of a tile make whole result beats.
"""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import Field, model_validator

from lutra.hls_models import floats
from lutra.hls_models.config import Config
from lutra.hls_models.errors import ConfigError
from lutra.hls_models.floats import E8M11, FLOAT_LATENCY, FP16, FP32, FloatFormat
from lutra.hls_models.functions import silu
from lutra.hls_models.ternary.config import KvFormat
from lutra.hls_models.ternary.isa import Destination, Operation, Source

__all__ = [
    "HEADER_BITS",
    "INVERSE_127",
    "LANE_BITS",
    "OUTPUT_DEPTH",
    "Parameters",
    "Requantised",
    "Vector",
    "VectorConfig",
    "dequantise",
    "gate",
    "mean_square_root",
    "requantise",
    "rope",
    "rope_rows",
    "to_beats",
    "to_rows",
]

Bits = NDArray[np.uint32]

HEADER_BITS = 160  # weight_scale[0..2], reciprocal, eps
LANE_BITS = 24  # of a params or rope row, per lane
INVERSE_127 = int(floats.from_float64(FP32, 1 / 127)[()])
CODE_127 = int(floats.from_float64(FP32, 127.0)[()])  # the largest code
OUTPUT_DEPTH = 16  # codes between U buffer and port: more than a beat's way there and back, so that a ready sink never waits
TINY_EXPONENT = FP32.bias - 100  # a biased fp32 exponent below this: a < 2^-100


class VectorConfig(Config):
    """Sizes of a VECTOR unit.

    One beat of V lanes per clock; memories: X [max_tokens][hidden], U [max_tokens][max_columns], maxima [max_tokens][max_groups], partial sums
    [max_tokens][partials], scale [max_tokens], rings of params and rope rows.
    """

    lanes: int = Field(default=4, ge=2, le=16, description="elements per clock (V), even")
    format: FloatFormat = Field(default=E8M11, description="element-wise format (F)")
    accumulator_bits: int = Field(default=18, ge=2, le=32, description="width of the sums")
    max_tokens: int = Field(default=8, ge=1, le=128, description="tokens of a pass (C)")
    max_columns: int = Field(default=384, ge=2, description="results of the longest row")
    hidden: int = Field(default=160, ge=2, description="columns of the residual stream")
    head_dim: int = Field(default=32, ge=2, description="columns that one set of rotations covers")
    activation: Literal["relu2", "silu"] = Field(default="relu2", description="gate that is built")
    partials: int = Field(default=8, ge=1, le=64, description="fp32 partial sums (A), a power of two")
    params_rows: int = Field(default=128, ge=2, description="rows of V values in the params ring")
    rope_rows: int = Field(default=64, ge=1, description="rows of V/2 pairs in the rope ring")
    dividers: int = Field(default=4, ge=1, le=8, description="serial dividers: groups whose 127/a is under way")
    max_groups: int = Field(default=8, ge=1, le=256, description="requantisation groups of a row")
    kv_format: KvFormat = Field(default="int8", description="what ATTEND takes")
    buffer_ram: Literal["block", "ultra"] = Field(default="block", description="memory of U and X: block RAM, or UltraRAM where the device has it")

    @model_validator(mode="after")
    def _consistent(self) -> "VectorConfig":
        v = self.lanes
        if v % 2:
            raise ValueError(f"lanes must be even, not {v}; nearest: {v + 1}")
        if self.format.bits > LANE_BITS:
            raise ValueError(f"format must have at most {LANE_BITS} bits, not {self.format.bits} ({self.format})")
        for name in ("max_columns", "hidden", "head_dim"):
            value = getattr(self, name)
            if value % v:
                raise ValueError(f"{name} must be a multiple of lanes = {v}, not {value}; nearest: {max(1, round(value / v)) * v}")
        if self.hidden > self.max_columns:
            raise ValueError(f"max_columns must be at least hidden = {self.hidden}, not {self.max_columns}")
        least = FLOAT_LATENCY["add"] + 2  # a partial sum is read, added to and written before its next turn
        if self.partials < least or self.partials & (self.partials - 1):
            raise ValueError(f"partials must be a power of two of at least {least}, not {self.partials}; nearest: {1 << (least - 1).bit_length()}")
        if self.params_rows < self.header_rows:
            raise ValueError(f"params_rows must hold a header of {self.header_rows} rows, not {self.params_rows}")
        if self.rope_rows < (least := self.max_tokens * self.head_dim // v):
            raise ValueError(f"rope_rows must be at least max_tokens * head_dim / lanes = {least}, not {self.rope_rows}; nearest: {least}")
        return self

    @property
    def header_rows(self) -> int:
        """params rows before the gains."""
        return -(-HEADER_BITS // (LANE_BITS * self.lanes))

    @property
    def code_bits(self) -> int:
        """Bits of a lane of the code beats."""
        return 16 if self.kv_format == "fp16" else 8

    @property
    def levels(self) -> int:
        """Levels of a balanced tree over the lanes."""
        return (self.lanes - 1).bit_length()

    def check(self, fields: dict[str, int], tokens: int) -> None:
        """Refuse an instruction that this unit cannot execute: ``ConfigError`` naming field, rule and value."""
        v, gated = self.lanes, fields["operation"] == Operation.GATE
        columns, results = fields["columns"], fields["columns"] >> int(gated)
        gains = min(fields["tile_columns"], columns) // v >> int(gated)

        def refuse(name: str, rule: str, value: int) -> None:
            raise ConfigError(f"VECTOR.{name} must be {rule}, not {value}")

        if not 1 <= tokens <= self.max_tokens:
            refuse("tokens", f"in 1 … {self.max_tokens}", tokens)
        for name in ("columns", "tile_columns"):
            if fields[name] < 1 or fields[name] % (v << int(gated)):
                refuse(name, f"a positive multiple of {v << int(gated)}", fields[name])
        for name in ("rope_columns", "segment1", "segment2"):
            if fields[name] % v:
                refuse(name, f"a multiple of {v}", fields[name])
        keeps_x = fields["operation"] == Operation.RESIDUAL or fields["write_x"]
        limit = self.hidden if keeps_x else self.max_columns
        if results > limit:
            refuse("columns", f"at most {limit << int(gated)}", columns)
        if fields["write_x"] and fields["operation"] not in (Operation.COPY, Operation.RESIDUAL):
            refuse("write_x", "0 but for COPY", 1)
        if fields["group_columns"] < 1 or fields["group_columns"] % v or results % fields["group_columns"]:
            refuse("group_columns", f"a multiple of {v} that divides {results}", fields["group_columns"])
        if results // fields["group_columns"] > self.max_groups:
            refuse("group_columns", f"at least {-(-results // self.max_groups)}", fields["group_columns"])
        if fields["norm"] and fields["destination"] == Destination.HEAD and fields["group_columns"] != results:
            refuse("group_columns", f"the whole row of {results} where a normed row goes to HEAD", fields["group_columns"])
        if fields["norm"] and gains > self.params_rows:
            refuse("tile_columns", f"at most {self.params_rows * v << int(gated)} (params_rows gains)", fields["tile_columns"])


@dataclass(frozen=True, eq=False)
class Parameters:
    """What an instruction reads from ``params``: fp32 patterns ``weight_scale`` (3,), ``reciprocal``, ``eps``; ``gains`` (results,) patterns of F with norm."""

    weight_scale: Bits
    reciprocal: int = 0
    eps: int = 0
    gains: Bits | None = None

    def rows(self, config: VectorConfig) -> Bits:
        """The rows as they travel: uint32 (rows, V), 24 bits each, lane 0 lowest."""
        word = 0
        for i, value in enumerate([*np.asarray(self.weight_scale).tolist(), self.reciprocal, self.eps]):
            word |= int(value) << 32 * i
        lanes = config.header_rows * config.lanes
        header = np.array([word >> LANE_BITS * i & ((1 << LANE_BITS) - 1) for i in range(lanes)], dtype=np.uint32).reshape(-1, config.lanes)
        return header if self.gains is None else np.concatenate([header, self.gains.astype(np.uint32).reshape(-1, config.lanes)])


@dataclass(frozen=True, eq=False)
class Requantised:
    """int8 ``codes`` and F patterns ``u`` (tokens, columns) of an instruction; fp32 patterns ``scales`` (tokens, groups), as they stand beside the codes.

    Where 16-bit floats go to ATTEND, ``codes`` are their patterns, uint16.
    """

    codes: NDArray[np.integer]
    scales: Bits
    u: Bits

    def beats(self, lanes: int) -> NDArray[np.integer]:
        """Codes in the order they leave: (tokens, groups, beats, V)."""
        n, groups = self.scales.shape
        return self.codes.reshape(n, groups, -1, lanes)


def to_beats(x: NDArray[Any], tile_columns: int, lanes: int) -> NDArray[Any]:
    """(tokens, columns) to the order of architecture.md 2.4: for tile, for token, for beat; (beats, V)."""
    tiles = [x[:, first : first + tile_columns].reshape(-1, lanes) for first in range(0, x.shape[1], tile_columns)]
    return np.concatenate(tiles)


def to_rows(beats: NDArray[Any], tokens: int, tile_columns: int) -> NDArray[Any]:
    """Inverse of ``to_beats``: (beats, V) to (tokens, columns)."""
    lanes = beats.shape[1]
    columns = len(beats) * lanes // tokens
    out = np.empty((tokens, columns), dtype=beats.dtype)
    for first in range(0, columns, tile_columns):
        width = min(tile_columns, columns - first)
        start = first * tokens // lanes
        out[:, first : first + width] = beats[start : start + width * tokens // lanes].reshape(tokens, width)
    return out


def rope_rows(pairs: Bits, lanes: int) -> Bits:
    """(tokens, head_dim / 2, 2) patterns of F (cos, sin) to rows: uint32 (tokens * head_dim / V, V), pair i in lanes 2i and 2i + 1."""
    return np.asarray(pairs, dtype=np.uint32).reshape(-1, lanes)


def dequantise(F: FloatFormat, integers: ArrayLike, scale: ArrayLike) -> Bits:
    """F(f32(f32(integer) * scale)), scale in fp32."""
    return floats.convert(FP32, F, floats.mul(FP32, floats.from_int(FP32, integers), FP32, scale, FP32))


def rope(F: FloatFormat, y: Bits, pairs: Bits) -> Bits:
    """Turn adjacent pairs: ``y`` (tokens, columns), ``pairs`` (tokens, head_dim / 2, 2), repeated for every head of the row."""
    a, b = y[:, 0::2], y[:, 1::2]
    turns = np.tile(pairs, (1, a.shape[1] // pairs.shape[1] + 1, 1))[:, : a.shape[1]]
    c, s = turns[..., 0], turns[..., 1]
    out = np.empty_like(y)
    out[:, 0::2] = floats.sub(F, floats.mul(F, a, F, c, F), floats.mul(F, b, F, s, F))
    out[:, 1::2] = floats.add(F, floats.mul(F, b, F, c, F), floats.mul(F, a, F, s, F))
    return out


def gate(F: FloatFormat, y: Bits, activation: str) -> Bits:
    """(tokens, 2n) of (gate, up) pairs to (tokens, n): F(F(r*r)*up), r = gate where its sign is 0, else 0; or F(F(gate*sigmoid(gate))*up)."""
    g, up = y[:, 0::2], y[:, 1::2]
    if activation == "relu2":
        r = np.where(g & F.sign, 0, g).astype(np.uint32)
        left = floats.mul(F, r, F, r, F)
    else:
        left = silu(F, g)
    return floats.mul(F, left, F, up, F)


def mean_square_root(F: FloatFormat, z: Bits, lanes: int, partials: int, reciprocal: int, eps: int) -> Bits:
    """sqrt(sum z^2 * reciprocal + eps) per row of ``z`` (tokens, columns), fp32 (tokens,), in the order of the hardware's sums."""
    squares = floats.mul(F, z, F, z, FP32).reshape(len(z), -1, lanes)
    total = floats.partial_sum(FP32, floats.tree_sum(FP32, squares), partials)
    mean = floats.mul(FP32, total, FP32, np.uint32(reciprocal), FP32)
    return floats.sqrt(FP32, floats.add(FP32, mean, np.uint32(eps)))


def requantise(F: FloatFormat, u: Bits, group_columns: int) -> tuple[NDArray[np.int8], Bits, Bits]:
    """``u`` (tokens, columns) to int8 codes of the same shape, and per group (tokens, groups) the fp32 absmax a (0 if below 2^-100) and f32(a * f32(1/127))."""
    n = len(u)
    grouped = u.reshape(n, -1, group_columns)
    a = floats.convert(F, FP32, (grouped & F.magnitude).max(-1))
    zero = a >> FP32.mantissa < TINY_EXPONENT
    a = np.where(zero, 0, a).astype(np.uint32)
    inverse = np.where(zero, 0, floats.div(FP32, np.uint32(CODE_127), a)).astype(np.uint32)
    codes = floats.to_int(FP32, floats.mul(F, grouped, FP32, inverse[..., None], FP32), -127, 127)
    return codes.astype(np.int8).reshape(n, -1), a, floats.mul(FP32, a, FP32, np.uint32(INVERSE_127), FP32)


class Vector:
    """Golden model of the unit, with its state between instructions.

    ``x``: residual stream, patterns of F (max_tokens, hidden); ``scale``: fp32 patterns (max_tokens,).
    """

    def __init__(self, config: VectorConfig) -> None:
        self.config = config
        self.x = np.zeros((config.max_tokens, config.hidden), dtype=np.uint32)
        self.scale = np.zeros(config.max_tokens, dtype=np.uint32)

    def load(
        self,
        fields: dict[str, int],
        tokens: int,
        params: Parameters,
        sums: NDArray[np.integer] | None = None,
        values: Bits | None = None,
        embed: tuple[NDArray[np.int8], Bits] | None = None,
    ) -> Bits:
        """y, (tokens, columns) patterns of F, from the instruction's source."""
        F = self.config.format
        if fields["source"] == Source.VALUES and values is not None:
            return values.astype(np.uint32)
        if fields["source"] == Source.EMBED and embed is not None:
            return dequantise(F, embed[0], embed[1][:, None])
        if fields["source"] == Source.SUMS and sums is not None:
            column = np.arange(fields["columns"])
            gated = fields["operation"] == Operation.GATE
            segment = column % 2 if gated else (column >= fields["segment1"]).astype(int) + (column >= fields["segment2"])
            weight_scale = np.asarray(params.weight_scale, dtype=np.uint32)
            factors = floats.mul(FP32, self.scale[:tokens, None], FP32, weight_scale, FP32)
            return dequantise(F, sums, factors[:, segment])
        raise ValueError(f"source {Source(fields['source']).name} without its data")

    def run(
        self,
        fields: dict[str, int],
        tokens: int,
        *,
        params: Parameters,
        sums: NDArray[np.integer] | None = None,
        values: Bits | None = None,
        embed: tuple[NDArray[np.int8], Bits] | None = None,
        rope_pairs: Bits | None = None,
    ) -> Requantised:
        """Execute one instruction.

        Parameters
        ----------
        fields : the VECTOR fields of the instruction set
        sums : integers (tokens, columns); values : F patterns (tokens, columns); embed : int8 codes (tokens, columns) and fp32 row scales (tokens,)
        rope_pairs : F patterns (tokens, head_dim / 2, 2) of (cos, sin), for ROPE

        Raises
        ------
        ConfigError
            If the unit cannot execute the instruction.
        """
        config, F = self.config, self.config.format
        config.check(fields, tokens)
        y = self.load(fields, tokens, params, sums, values, embed)
        columns, operation = fields["columns"], fields["operation"]
        if operation == Operation.RESIDUAL:
            z = floats.add(F, self.x[:tokens, :columns], y)
        elif operation == Operation.GATE:
            z = gate(F, y, config.activation)
        else:
            z = floats.convert(F, F, y)
            if operation == Operation.ROPE and rope_pairs is not None and (turned := min(fields["rope_columns"], columns)):
                z[:, :turned] = rope(F, y[:, :turned], rope_pairs)
        if operation == Operation.RESIDUAL or fields["write_x"]:
            self.x[:tokens, :columns] = z
        u = z
        if fields["norm"]:
            if params.gains is None:
                raise ValueError("norm without gains")
            u = floats.mul(F, z, F, params.gains, F)
        codes: NDArray[np.integer]
        codes, a, scales = requantise(F, u, fields["group_columns"])
        if fields["destination"] == Destination.ATTEND and config.kv_format == "fp16":
            codes = floats.saturate(FP16, floats.convert(F, FP16, u)).astype(np.uint16)
        if fields["destination"] != Destination.ATTEND:
            kept = scales[:, -1]
            if fields["norm"]:
                root = mean_square_root(F, z, config.lanes, config.partials, params.reciprocal, params.eps)
                quotient = floats.mul(FP32, floats.div(FP32, a[:, -1], root), FP32, np.uint32(INVERSE_127), FP32)
                kept = np.where(a[:, -1] == 0, 0, quotient).astype(np.uint32)
                if fields["destination"] == Destination.HEAD:
                    scales = kept[:, None]
            self.scale[:tokens] = kept
        return Requantised(codes, scales, u)
