# SPDX-License-Identifier: Apache-2.0
"""Multipliers of a design that has more of them than its device has blocks: which parts of which become look-up tables, those cheapest in them first."""

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from math import ceil
from pathlib import Path

from lutra.rtl.verilog import CELL, MODULE

__all__ = ["RULES", "SOFT", "TIMES", "blocks_needed", "blocks_of", "rows_places", "spill", "spilled"]

RULES = Path(__file__).with_name("multipliers.v")
"""techmap rules of the cells that ``spill`` makes."""
SOFT = "$__lutra_mul"
TIMES = "$__lutra_times"
"""A product with a constant: adders, never a block, far away and slow."""
BLOCK = 18
"""Bits of a block's operands (ECP5: MULT18X18D)."""
MUL = re.compile(r"^(?P<indent> *)cell \$mul (?P<name>[^\n]*)\n(?P<body>(?:^ *parameter [^\n]*\n)*)(?P<pins>(?:^ *connect [^\n]*\n)*)", re.MULTILINE)
PARAMETER = re.compile(r"parameter (?:signed )?\\(?P<name>\w+) (?P<value>\S+)")
CONSTANT = re.compile(r"connect \\[AB] \d+'[01]+$", re.MULTILINE)


@dataclass(frozen=True, order=True)
class _Kind:
    """Multipliers of equal operands in one module: widths, and whether they are signed."""

    module: str
    a: int
    b: int
    signed: bool

    def parts(self) -> Iterator[tuple[int, int, int]]:
        """(bit of the rules' SOFT, width, width) of the parts between blocks' borders, by which a product is taken apart."""
        splits = [(min(width, BLOCK), width - BLOCK) for width in (self.a, self.b)]
        for bit in range(4):
            a, b = splits[0][bit >> 1], splits[1][bit & 1]
            if a > 0 and b > 0:
                yield bit, a, b

    @property
    def divisible(self) -> bool:
        """Whether the rules have a way: operands of more than two blocks have none, nor signed ones of more than one."""
        return max(self.a, self.b) <= (BLOCK if self.signed else 2 * BLOCK)


def blocks_of(a: int, b: int) -> int:
    """Blocks of a product of a x b bits."""
    return -(-a // BLOCK) * -(-b // BLOCK)


def rows_places(a: int, b: int) -> int:
    """Places of look-up tables of a product as adders over pairs of rows (``multipliers.v``): the narrower operand's bits are the rows."""

    def rows(a: int, b: int) -> int:
        if b == 1:
            return a
        if b == 2:
            return 2 * -(-(a + b) // 2)
        low = (b + 2) // 4 * 2
        return rows(a, low) + rows(a, b - low) + 2 * -(-(a + b - low) // 2)

    return rows(max(a, b), min(a, b))


def _kind(module: str, cell: "re.Match[str]") -> _Kind | None:
    """None for a product with a constant, which takes no block."""
    if CONSTANT.search(cell["pins"]):
        return None
    values = {found["name"]: found["value"] for found in PARAMETER.finditer(cell["body"])}
    return _Kind(module, int(values["A_WIDTH"]), int(values["B_WIDTH"]), "1" in values["A_SIGNED"])


def _kinds(text: str, top: str) -> dict[_Kind, tuple[int, int]]:
    """Every module's multipliers: how many of a kind it has, and how often it is there in the whole design."""
    bodies = {found["name"]: found["body"] for found in MODULE.finditer(text)}
    instances: Counter[str] = Counter()

    def visit(name: str) -> None:
        instances[name] += 1
        for cell in CELL.finditer(bodies[name]):
            if cell["type"] in bodies:
                visit(cell["type"])

    visit(top)
    cells = Counter(kind for name in instances for cell in MUL.finditer(bodies[name]) if (kind := _kind(name, cell)) and min(kind.a, kind.b) > 1)
    return {kind: (count, instances[kind.module]) for kind, count in cells.items()}


def blocks_needed(text: str, top: str) -> int:
    """Blocks that a design's multipliers take."""
    return sum(blocks_of(kind.a, kind.b) * cells * instances for kind, (cells, instances) in _kinds(text, top).items())


def spilled(text: str, top: str, available: float) -> tuple[float, dict[str, float]]:
    """(blocks, places of look-up tables by module) that a design's multipliers take once ``spill`` has made them fit, as far as they can be divided."""
    kinds, needed = _kinds(text, top), blocks_needed(text, top)
    blocks, places = float(needed), dict[str, float]()
    for kind, parts in _soft(kinds, needed - available).items():
        sizes = {1 << bit: rows_places(a, b) for bit, a, b in kind.parts()}
        for cells, mask in parts:
            count = cells * kinds[kind][1]
            blocks -= count
            places[kind.module] = places.get(kind.module, 0) + count * sizes[mask]
    return blocks, places


def _soft(kinds: Mapping[_Kind, tuple[int, int]], over: float) -> dict[_Kind, list[tuple[int, int]]]:
    """(cells, mask of ``SOFT``) of the kinds that give up ``over`` blocks: the parts that are the fewest look-up tables first."""
    parts = [(rows_places(a, b), kind, bit) for kind in kinds if kind.divisible for bit, a, b in kind.parts()]
    soft: dict[_Kind, list[tuple[int, int]]] = {}
    for _, kind, bit in sorted(parts):
        if over <= 0:
            break
        cells, instances = kinds[kind]
        wanted = min(cells, ceil(over / instances))
        soft.setdefault(kind, []).append((wanted, 1 << bit))
        over -= wanted * instances
    return soft


def spill(text: str, top: str, available: float) -> str:
    """RTLIL of a design whose multipliers fit ``available`` blocks, after the rules in ``RULES``, and whose products with a constant are adders.

    Products are taken apart where blocks would be, at 18 bits; the parts that are the fewest look-up tables become such first, no more than must.
    """
    soft = _soft(_kinds(text, top), blocks_needed(text, top) - available)
    seen: Counter[_Kind] = Counter()

    def changed(module: str, cell: "re.Match[str]") -> str:
        kind = _kind(module, cell)
        indent = cell["indent"]
        if kind is None:
            return f"{indent}cell {TIMES} {cell['name']}\n{cell['body']}{cell['pins']}"
        if kind not in soft:
            return cell[0]
        mask = sum(bit for count, bit in soft[kind] if seen[kind] < count)
        seen[kind] += 1
        return f"{indent}cell {SOFT} {cell['name']}\n{cell['body']}{indent}  parameter \\SOFT 4'{mask:04b}\n{cell['pins']}" if mask else cell[0]

    def within(module: "re.Match[str]") -> str:
        body = MUL.sub(partial(changed, module["name"]), module["body"])
        return f"{module['head']}module \\{module['name']}\n{body}end\n"

    return MODULE.sub(within, text)
