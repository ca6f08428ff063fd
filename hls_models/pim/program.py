# SPDX-License-Identifier: Apache-2.0
"""What the units of a PIM system execute: DRAM commands, a channel's macro-commands, the companion chip's instructions (architecture.md, 4.3 to 4.5).

One definition for mapping, golden executor, timing models and RTL. Addresses of the companion chip's SRAM are in words of B fp32 values.
"""

from dataclasses import dataclass, field
from enum import IntEnum

__all__ = [
    "Command",
    "Function",
    "Instruction",
    "Macro",
    "MacroKind",
    "Operation",
    "Program",
    "Receive",
    "Scalar",
    "ScalarOperation",
    "Statistic",
    "Vector",
]


class Command(IntEnum):
    """A DRAM command; the second half exists in public traces only. ``A``: all banks."""

    ACT = 0
    ACTA = 1
    PRE = 2
    PREA = 3
    RD = 4
    WR = 5
    MAC = 6
    WRA = 7
    GBW = 8
    RDM = 9
    BIAS = 10
    MODE = 11
    REF = 12
    MACS = 13
    AF = 14
    EWMUL = 15
    RDCP = 16
    WRCP = 17
    RDAF = 18


class MacroKind(IntEnum):
    """Kind of a macro-command."""

    MAC = 0
    BUFFER = 1
    READ = 2
    WRITE = 3
    SCATTER = 4
    MODIFY = 5


@dataclass(frozen=True, slots=True)
class Macro:
    """A macro-command; fields that a kind does not use are left at their defaults.

    ``row, column``: first position; ``entry``: first buffer entry; ``count``: MACs, GBWs or columns per bank; ``load``/``read``: accumulators cleared
    before, read out after; ``accumulator``: the one that MACs add to; ``times, step``: repetitions, columns from one to the next; ``bank, banks``: of
    READ and WRITE; ``open``: a BUFFER opens ``row`` in all banks; ``element``: value of the column that SCATTER and MODIFY write.
    """

    kind: MacroKind
    row: int = 0
    column: int = 0
    entry: int = 0
    count: int = 1
    load: int = 0
    read: int = 0
    accumulator: int = 0
    times: int = 1
    step: int = 0
    bank: int = 0
    banks: int = 1
    open: bool = False
    element: int = 0


class Function(IntEnum):
    """Element-wise function of RECEIVE."""

    NONE = 0
    GELU = 1
    RELU = 2
    GELU_ERF = 3


class Statistic(IntEnum):
    """What an instruction gathers over its valid elements."""

    NONE = 0
    SUM = 1
    SUMSQ = 2
    MAX = 3
    ARGMAX = 4


class Operation(IntEnum):
    """Operation of a VECTOR instruction."""

    COPY = 0
    ADD = 1
    CENTER = 2
    SCALE = 3
    EXP = 4


class ScalarOperation(IntEnum):
    """Operation of a SCALAR instruction."""

    COPY = 0
    ADD = 1
    MUL = 2
    MULK = 3
    ADDK = 4
    RECIPROCAL = 5
    RSQRT = 6


@dataclass(frozen=True, slots=True)
class Receive:
    """Takes read-outs into the SRAM (4.5). ``None``: the option is off."""

    channel: int
    channels: int
    groups: int
    valid: int
    dst: int | None
    split: int = 0
    """Channels a segment is spread over; 0: all (``channels``)."""
    head_step: int = 0
    wide: bool = False
    partial: int | None = None
    scale: int | None = None
    bias: int | None = None
    function: Function = Function.NONE
    residual: int | None = None
    statistic: Statistic = Statistic.NONE
    stat: int = 0
    keep: bool = False
    """MAX and ARGMAX go on from S[stat] (and the index register) instead of from nothing: an argmax over several tiles."""
    base: int = 0
    """Index of element 0, for ARGMAX."""
    drain: bool = True
    """Begin when all before it are written; False is honoured where the path (4.5) is that of the instruction before."""


@dataclass(frozen=True, slots=True)
class Vector:
    """Works through ``beats`` beats of the SRAM (4.5). ``mask``: channels that the result is sent to, bit c for channel c; 0: none."""

    operation: Operation
    a: int
    beats: int
    valid: int
    dst: int | None = None
    b: int | None = None
    c: int | None = None
    s: int = 0
    k: int = 0
    """fp32 bit pattern."""
    mask: int = 0
    narrow: bool = False
    statistic: Statistic = Statistic.NONE
    stat: int = 0
    drain: bool = True


@dataclass(frozen=True, slots=True)
class Scalar:
    """Works on the scalars S (4.5); ``k`` is an fp32 bit pattern. Waits for all before it."""

    operation: ScalarOperation
    d: int
    a: int
    b: int = 0
    k: int = 0


Instruction = Receive | Vector | Scalar


@dataclass(frozen=True)
class Program:
    """What one run executes: a list of macro-commands per channel, the companion chip's instructions, labels of instructions for reports."""

    macros: tuple[tuple[Macro, ...], ...]
    instructions: tuple[Instruction, ...]
    labels: dict[int, str] = field(default_factory=dict)
