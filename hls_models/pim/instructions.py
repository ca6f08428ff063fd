# SPDX-License-Identifier: Apache-2.0
"""The companion chip's instructions as its hardware sees them: one form for RECEIVE, VECTOR and SCALAR, its packed encoding and its latencies.

Golden values, cycle model and RTL all work from ``Work``. The first fields are the instruction's *path*: which stages of the pipeline it passes. The
path is the same for all items that are in the pipeline at a time (architecture.md, 4.5).
"""

from dataclasses import dataclass
from enum import IntEnum
from functools import cached_property

from lutra.hls_models.floats import FLOAT_LATENCY
from lutra.hls_models.pim.config import PimConfig
from lutra.hls_models.pim.functions import FUNCTION_LATENCY, SCALAR_LATENCY
from lutra.hls_models.pim.program import Function, Instruction, Operation, Receive, Scalar, ScalarOperation, Statistic

__all__ = [
    "FETCH",
    "INSTRUCTION_DEPTH",
    "MIDDLE",
    "OPERATION_LATENCY",
    "PARTIALS",
    "PATH_FIELDS",
    "ROUND",
    "SCALARS",
    "UNIT_LATENCY",
    "WORK_FIELDS",
    "Add",
    "Kind",
    "Scale",
    "Unit",
    "Work",
]

SCALARS = 32
"""Scalars S."""
PARTIALS = 4
"""Partial sums of SUM and SUMSQ: as many as the adder has stages, so that it takes an item per clock."""
INSTRUCTION_DEPTH = 8
"""Instructions that the queue holds."""

# Registers of the pipeline, in companion clocks.
FETCH = 2
"""SRAM or read-out, then the operand register."""
MIDDLE = 1
"""Between the second adder and the functions."""
ROUND = 1
"""The rounding to bf16, and the result beside it."""


class Kind(IntEnum):
    """Kind of a packed instruction."""

    RECEIVE = 0
    VECTOR = 1
    SCALAR = 2


class Add(IntEnum):
    """What the first adder does: nothing, + a word of the SRAM, - a scalar."""

    NONE = 0
    WORD = 1
    SCALAR = 2


class Scale(IntEnum):
    """What the first multiplier does: nothing, * a scalar, * k."""

    NONE = 0
    SCALAR = 1
    K = 2


class Unit(IntEnum):
    """The function unit: ``Function``, and exp2."""

    NONE = Function.NONE
    GELU = Function.GELU
    RELU = Function.RELU
    GELU_ERF = Function.GELU_ERF
    EXP2 = 4


UNIT_LATENCY = {
    Unit.NONE: 0,
    Unit.GELU: FUNCTION_LATENCY["gelu"],
    Unit.RELU: 0,
    Unit.GELU_ERF: FUNCTION_LATENCY["gelu"],
    Unit.EXP2: FUNCTION_LATENCY["exp2"],
}
"""Clocks of the function unit."""

OPERATION_LATENCY = {
    ScalarOperation.COPY: 1,
    ScalarOperation.ADD: SCALAR_LATENCY["add"],
    ScalarOperation.MUL: SCALAR_LATENCY["mul"],
    ScalarOperation.MULK: SCALAR_LATENCY["mul"],
    ScalarOperation.ADDK: SCALAR_LATENCY["add"],
    ScalarOperation.RECIPROCAL: SCALAR_LATENCY["reciprocal"],
    ScalarOperation.RSQRT: SCALAR_LATENCY["rsqrt"],
}
"""Clocks from the issue of a SCALAR to that in which its result is written."""

PATH_FIELDS = (
    ("kind", 2),
    ("wide", 1),
    ("add", 2),
    ("scale", 2),
    ("gain", 1),
    ("offset", 1),
    ("unit", 3),
    ("residual", 1),
    ("statistic", 3),
    ("keep", 1),
    ("k", 32),
)
"""Name and bits of the fields of a path, lowest first."""

WORK_FIELDS = (
    *PATH_FIELDS,
    ("drain", 1),
    ("store", 1),
    ("channel", 8),
    ("channels", 9),
    ("groups", 20),
    ("split", 9),
    ("step", 20),
    ("valid", 24),
    ("a", 20),
    ("b", 20),
    ("c", 20),
    ("dst", 20),
    ("s", 5),
    ("stat", 5),
)
"""Name and bits of the packed fields, lowest first; ``mask`` follows with a bit per channel."""


@dataclass(frozen=True)
class Work:
    """One instruction. Items are words of B values, or beats of V where ``wide``.

    Item i = g*channels + c lies w = g*split + c % split + (c // split)*step items from an address.

    ``a``: VECTOR's operand, RECEIVE's partial sums; ``b``: ADD's second operand, SCALE's gain, RECEIVE's residual; ``c``: what the second adder adds;
    ``k``: a constant of EXP or SCALAR, or the index of element 0. SCALAR: operation in ``unit``, S[stat] = S[s] op S[a].
    """

    kind: Kind
    wide: bool = False
    add: Add = Add.NONE
    scale: Scale = Scale.NONE
    gain: bool = False
    offset: bool = False
    unit: int = 0
    residual: bool = False
    statistic: Statistic = Statistic.NONE
    keep: bool = False
    k: int = 0
    drain: bool = True
    store: bool = False
    channel: int = 0
    channels: int = 1
    groups: int = 1
    split: int = 1
    step: int = 0
    valid: int = 0
    a: int = 0
    b: int = 0
    c: int = 0
    dst: int = 0
    s: int = 0
    stat: int = 0
    mask: int = 0

    @classmethod
    def of(cls, instruction: Instruction, config: PimConfig) -> "Work":
        """The hardware's form of an instruction."""
        i = instruction
        if isinstance(i, Scalar):
            return cls(Kind.SCALAR, unit=i.operation, k=i.k, s=i.a, a=i.b, stat=i.d)
        if isinstance(i, Receive):
            return cls(
                Kind.RECEIVE,
                wide=i.wide,
                add=Add.NONE if i.partial is None else Add.WORD,
                scale=Scale.NONE if i.scale is None else Scale.SCALAR,
                offset=i.bias is not None,
                unit=Unit(i.function),
                residual=i.residual is not None,
                statistic=i.statistic,
                keep=i.keep,
                k=i.base,
                drain=i.drain,
                store=i.dst is not None,
                channel=i.channel,
                channels=i.channels,
                groups=i.groups,
                split=i.channels if i.wide or not i.split else i.split,
                step=0 if i.wide else i.head_step,
                valid=i.valid,
                a=i.partial or 0,
                b=i.residual or 0,
                c=i.bias or 0,
                dst=i.dst or 0,
                s=i.scale or 0,
                stat=i.stat,
            )
        o = i.operation
        return cls(
            Kind.VECTOR,
            wide=not i.narrow,
            add={Operation.ADD: Add.WORD, Operation.CENTER: Add.SCALAR, Operation.EXP: Add.SCALAR}.get(o, Add.NONE),
            scale={Operation.SCALE: Scale.SCALAR, Operation.EXP: Scale.K}.get(o, Scale.NONE),
            gain=o == Operation.SCALE and i.b is not None,
            offset=o == Operation.SCALE and i.c is not None,
            unit=Unit.EXP2 if o == Operation.EXP else Unit.NONE,
            statistic=i.statistic,
            k=i.k if o == Operation.EXP else 0,
            drain=i.drain,
            store=i.dst is not None,
            groups=i.beats * (config.words_per_beat if i.narrow else 1),
            valid=i.valid,
            a=i.a,
            b=i.b or 0,
            c=i.c or 0,
            dst=i.dst or 0,
            s=i.s,
            stat=i.stat,
            mask=i.mask,
        )

    @property
    def items(self) -> int:
        """Items that pass the pipeline."""
        return 1 if self.kind == Kind.SCALAR else self.groups * self.channels

    @cached_property
    def path(self) -> tuple[int, ...]:
        """What must be equal for an instruction to follow another one without a gap."""
        return tuple(int(getattr(self, name)) for name, _ in PATH_FIELDS)

    def follows(self, before: "Work | None") -> bool:
        """Whether it may begin while items of the instruction before are in the pipeline."""
        return before is not None and not self.drain and self.kind != Kind.SCALAR and self.path == before.path

    @cached_property
    def latency(self) -> int:
        """Clocks from an item's issue to that in which it is written to the SRAM and the data queues accept it."""
        add, mul = FLOAT_LATENCY["add"], FLOAT_LATENCY["mul"]
        stages = (add * (self.add != Add.NONE), mul * (self.scale != Scale.NONE), mul * self.gain, add * self.offset, MIDDLE)
        return FETCH + sum(stages) + UNIT_LATENCY[Unit(self.unit)] + add * self.residual + ROUND

    def done(self, lanes: int) -> int:
        """Clocks from the last item's issue to that in which the last result is written; the next clock may begin what waits for it."""
        if self.kind == Kind.SCALAR:
            return OPERATION_LATENCY[ScalarOperation(self.unit)]
        levels, add = lanes.bit_length() - 1, FLOAT_LATENCY["add"]
        if self.statistic in (Statistic.SUM, Statistic.SUMSQ):  # squares, tree, partial sum, its register, the sum of the partial sums
            return self.latency + FLOAT_LATENCY["mul"] * (self.statistic == Statistic.SUMSQ) + add * levels + add + 1 + 2 * add
        return self.latency + (levels if self.statistic in (Statistic.MAX, Statistic.ARGMAX) else 0)

    def pack(self) -> int:
        """Payload of the ``instructions`` stream."""
        word, offset = 0, 0
        for name, bits in WORK_FIELDS:
            value = int(getattr(self, name))
            if not 0 <= value < 1 << bits:
                raise ValueError(f"{name} must be 0 to {(1 << bits) - 1}, not {value}")
            word |= value << offset
            offset += bits
        return word | self.mask << offset
