# SPDX-License-Identifier: Apache-2.0
"""Multipliers of a design that has more of them than its device has blocks: which parts of which become look-up tables, those cheapest in them first."""

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from lutra.rtl.verilog import CELL, MODULE

__all__ = ["RULES", "SOFT", "blocks_of", "rows_places", "spill"]

RULES = Path(__file__).with_name("multipliers.v")
"""techmap rules of the cells that ``spill`` makes."""
SOFT = "$__lutra_mul"
BLOCK = 18
"""Bits of a block's operands (ECP5: MULT18X18D)."""
MUL = re.compile(
    r"^(?P<indent> *)cell \$mul (?P<name>[^\n]*)\n(?P<body>(?:^ *parameter [^\n]*\n)*)(?P<pins>(?:^ *connect [^\n]*\n)*)", re.MULTILINE
)
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


def _kinds(text: str, top: str) -> Counter[_Kind]:
    """Every module's multipliers and how many there are in the whole design."""
    bodies = {found["name"]: found["body"] for found in MODULE.finditer(text)}
    instances: Counter[str] = Counter()

    def visit(name: str) -> None:
        instances[name] += 1
        for cell in CELL.finditer(bodies[name]):
            if cell["type"] in bodies:
                visit(cell["type"])

    visit(top)
    found: Counter[_Kind] = Counter()
    for name, count in instances.items():
        for cell in MUL.finditer(bodies[name]):
            kind = _kind(name, cell)
            if kind is not None and min(kind.a, kind.b) > 1:
                found[kind] += count
    return found


def spill(text: str, top: str, available: float) -> str:
    """RTLIL of a design whose multipliers fit ``available`` blocks, after the rules in ``RULES``; as it is where they fit already.

    Products are taken apart where blocks would be, at 18 bits. The smallest parts become look-up tables first; equal multipliers of a module stay equal.
    """
    kinds = _kinds(text, top)
    over = sum(blocks_of(kind.a, kind.b) * count for kind, count in kinds.items()) - available
    parts = [(rows_places(a, b), kind, bit) for kind in kinds if kind.divisible for bit, a, b in kind.parts()]
    soft: Counter[_Kind] = Counter()
    for _, kind, bit in sorted(parts):
        if over <= 0:
            break
        soft[kind] |= 1 << bit
        over -= kinds[kind]
    if not soft:
        return text

    def within(module: "re.Match[str]") -> str:
        def changed(cell: "re.Match[str]") -> str:
            kind = _kind(module["name"], cell)
            if kind not in soft:
                return cell[0]
            indent = cell["indent"]
            parameter = f"{indent}  parameter \\SOFT 4'{soft[kind]:04b}\n"
            return f"{indent}cell {SOFT} {cell['name']}\n{cell['body']}{parameter}{cell['pins']}"

        return f"{module['head']}module \\{module['name']}\n{MUL.sub(changed, module['body'])}end\n"

    return MODULE.sub(within, text)
