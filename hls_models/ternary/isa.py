# SPDX-License-Identifier: Apache-2.0
"""Instruction set of the ternary core: one table of fields feeds encoder, RTL decoder, golden executor and documentation.

An instruction is ``INSTRUCTION_BITS`` wide. The common fields stand first, the unit's own after them, lowest bit first. The sequencer adds
the dynamic fields of the pass (``PASS_FIELDS``) when it dispatches.
"""

from enum import IntEnum, IntFlag
from typing import NamedTuple

__all__ = [
    "COMMON_FIELDS",
    "INSTRUCTION_BITS",
    "PASS_FIELDS",
    "UNIT_FIELDS",
    "Destination",
    "Field",
    "Instruction",
    "LoadMode",
    "LoadTarget",
    "Operation",
    "Semaphore",
    "Source",
    "Unit",
    "When",
    "decode",
    "encode",
    "executed",
]

INSTRUCTION_BITS = 192


class Unit(IntEnum):
    LOADER = 0
    LINEAR = 1
    VECTOR = 2
    ATTEND = 3
    HEAD = 4
    END = 7


class When(IntEnum):
    """Passes that execute the instruction: every one, only the last of a prompt (and every decode pass), only the others; of the last ones, those of one
    token, those of several."""

    ALWAYS = 0
    LAST = 1
    NOT_LAST = 2
    LAST_ONE = 3
    LAST_MANY = 4


def executed(tokens: int, last: bool) -> tuple[When, ...]:
    """The conditions that a pass of ``tokens`` tokens meets."""
    return (When.ALWAYS, When.LAST, When.LAST_ONE if tokens == 1 else When.LAST_MANY) if last else (When.ALWAYS, When.NOT_LAST)


class Semaphore(IntFlag):
    """Counters between units; an instruction waits for and signals any set of them."""

    CODES = 1  # VECTOR -> LINEAR: int8 activations of the pass are stored
    FINAL = 2  # VECTOR -> HEAD: normalised codes of the last token are stored
    TOKEN = 4  # HEAD -> LOADER: the token that the next pass embeds is known
    STORED = 8  # ATTEND -> LOADER: keys and values of the pass are in the shared memory (signalled before ATTEND's done)


class LoadTarget(IntEnum):
    WEIGHTS = 0
    PARAMS = 1
    ROPE = 2
    EMBED = 3
    HEAD = 4
    KV = 5
    PLANES = 6


class LoadMode(IntEnum):
    """DIRECT: ``beats`` beats from ``address``. TOKEN: for each token of the pass ``beats`` beats from address + id * beats.
    POSITION: tokens * beats beats from address + position * beats. TILES: the key and value tiles of a pass (``KvLayout.order``), ``address`` being the
    layer's first block. PLANES has the mode DIRECT: ``beats`` beats of its high planes, from ``address`` on, and what HEAD asks for of the low ones."""

    DIRECT = 0
    TOKEN = 1
    POSITION = 2
    TILES = 3


class Source(IntEnum):
    SUMS = 0
    VALUES = 1
    EMBED = 2


class Operation(IntEnum):
    COPY = 0
    ROPE = 1
    GATE = 2
    RESIDUAL = 3


class Destination(IntEnum):
    LINEAR = 0
    ATTEND = 1
    HEAD = 2


class Field(NamedTuple):
    name: str
    bits: int
    meaning: str


COMMON_FIELDS = (
    Field("unit", 3, "Unit that executes it"),
    Field("when", 3, "When"),
    Field("wait", 8, "Semaphore mask, all above zero before start, then decremented"),
    Field("signal", 8, "Semaphore mask, incremented when done"),
)

UNIT_FIELDS: dict[Unit, tuple[Field, ...]] = {
    Unit.LOADER: (
        Field("target", 3, "LoadTarget"),
        Field("mode", 2, "LoadMode"),
        Field("address", 32, "first beat"),
        Field("beats", 24, "beats (per token, below 2**16, in modes TOKEN and POSITION)"),
        Field("rows", 16, "params and rope: valid rows in all (per token in modes TOKEN and POSITION)"),
    ),
    Unit.LINEAR: (
        Field("k_blocks", 16, "ceil(K / (T*G))"),
        Field("columns", 20, "N, a multiple of V"),
        Field("tile_columns", 20, "columns per tile, a multiple of V; the last tile has the rest"),
    ),
    Unit.VECTOR: (
        Field("source", 2, "Source"),
        Field("operation", 2, "Operation"),
        Field("norm", 1, "multiply by gains, divide the scale by the root mean square"),
        Field("write_x", 1, "COPY stores z as the residual stream"),
        Field("destination", 2, "Destination"),
        Field("columns", 20, "source columns, a multiple of V"),
        Field("tile_columns", 20, "source columns per tile"),
        Field("group_columns", 20, "result columns per requantisation group"),
        Field("rope_columns", 20, "ROPE: columns below this are turned"),
        Field("segment1", 20, "first column of weight scale 1 (sums without gate)"),
        Field("segment2", 20, "first column of weight scale 2"),
    ),
    Unit.ATTEND: (Field("layer", 8, "layer whose cache is read"),),
    Unit.HEAD: (Field("vocabulary", 20, "rows of the table"), Field("row_beats", 16, "memory beats per row"), Field("planes", 1, "the table is in two planes")),
    Unit.END: (),
}

PASS_FIELDS = (
    Field("tokens", 8, "tokens n of this pass"),
    Field("position", 16, "position of its first token"),
    Field("serial", 1, "each token attends alone, as in decode: a pass that verifies drafted tokens"),
)


class Instruction(NamedTuple):
    """One instruction; ``fields`` holds the unit's own fields by name."""

    unit: Unit
    fields: dict[str, int]
    when: When = When.ALWAYS
    wait: Semaphore = Semaphore(0)
    signal: Semaphore = Semaphore(0)


def _layout(unit: Unit) -> list[tuple[Field, int]]:
    offset, out = 0, []
    for field in COMMON_FIELDS + UNIT_FIELDS[unit]:
        out.append((field, offset))
        offset += field.bits
    return out


def encode(instruction: Instruction) -> int:
    """The instruction as an integer of ``INSTRUCTION_BITS`` bits.

    Raises ValueError where a field is missing, unknown or does not fit.
    """
    common: dict[str, int] = {"unit": instruction.unit, "when": instruction.when, "wait": instruction.wait, "signal": instruction.signal}
    given: dict[str, int] = {**common, **instruction.fields}
    word = 0
    for field, offset in _layout(instruction.unit):
        value = int(given.pop(field.name))
        if not 0 <= value < 1 << field.bits:
            raise ValueError(f"{instruction.unit.name}.{field.name} must fit {field.bits} bits, not {value}")
        word |= value << offset
    if given:
        raise ValueError(f"{instruction.unit.name} has no field {', '.join(given)}")
    return word


def decode(word: int) -> Instruction:
    """Inverse of ``encode``."""
    unit = Unit(word & 7)
    values = {field.name: word >> offset & ((1 << field.bits) - 1) for field, offset in _layout(unit)}
    del values["unit"]
    return Instruction(unit, when=When(values.pop("when")), wait=Semaphore(values.pop("wait")), signal=Semaphore(values.pop("signal")), fields=values)
