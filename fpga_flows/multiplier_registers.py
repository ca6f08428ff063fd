# SPDX-License-Identifier: Apache-2.0
"""The registers before a multiplier, in its block: an ECP5's blocks stand in few rows, far from most logic, and yosys leaves their registers unused.

With them a clock's path has one of the two ways there and back, not both. Nothing else changes: a value is held in the same cycle, elsewhere.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["absorb"]

MULTIPLIER, REGISTER = "MULT18X18D", "TRELLIS_FF"
BITS = 18


@dataclass(frozen=True)
class _Operand:
    """What registers one operand: nets of clock and enable, and what stands before each bit's register, by port."""

    clock: int
    enable: Any
    before: Mapping[str, Any]


def absorb(module: dict[str, Any]) -> int:
    """Moves registers into the multipliers of a flat module of yosys' JSON whose operands all come from such; number of registers that are gone.

    Only registers without reset move, because a block's are neither set nor reset here; those that others read as well stay too.
    """
    cells: dict[str, Any] = module["cells"]
    registers = {cell["connections"]["Q"][0]: cell for cell in cells.values() if cell["type"] == REGISTER}
    for cell in cells.values():
        if cell["type"] == MULTIPLIER:
            a, b = (_operand(cell["connections"], side, registers) for side in "AB")
            if a and b and a.clock == b.clock:
                _register(cell, {"A": a, "B": b})
    read = Counter(_read(module))
    spent = [name for name, cell in cells.items() if cell["type"] == REGISTER and not read[cell["connections"]["Q"][0]]]
    for name in spent:
        del cells[name]
    return len(spent)


def _operand(connections: Mapping[str, list[Any]], side: str, registers: Mapping[Any, Any]) -> _Operand | None:
    before: dict[str, Any] = {}
    controls = set()
    for i in range(BITS):
        port = f"{side}{i}"
        for bit in connections.get(port, []):
            if bit in ("0", "x"):  # zero before and behind a register that begins with zero
                continue
            found = registers.get(bit)
            if found is None or not _plain(found):
                return None
            ports = found["connections"]
            controls.add((ports["CLK"][0], ports["CE"][0] if found["parameters"]["CEMUX"].strip() == "CE" else "1"))
            before[port] = ports["DI"][0]
    if len(controls) != 1:
        return None
    clock, enable = controls.pop()
    return _Operand(clock, enable, before)


def _plain(register: Mapping[str, Any]) -> bool:
    """Whether a register begins with zero, is never reset, and is enabled by a plain net or always."""
    ports, about = register["connections"], register["parameters"]
    never = ports.get("LSR", ["0"]) == ["0"] and about["LSRMUX"] == "LSR"
    return never and about["REGSET"] == "RESET" and about["CLKMUX"] == "CLK" and about["CEMUX"].strip() in ("CE", "1")


def _register(cell: dict[str, Any], operands: Mapping[str, _Operand]) -> None:
    added = {"CLK0": operands["A"].clock, "RST0": "0"}
    cell["parameters"]["GSR"] = "DISABLED"
    for i, (side, operand) in enumerate(operands.items()):
        added[f"CE{i}"] = operand.enable
        cell["parameters"] |= {f"REG_INPUT{side}_CLK": "CLK0", f"REG_INPUT{side}_CE": f"CE{i}", f"REG_INPUT{side}_RST": "RST0"}
        cell["connections"] |= {port: [bit] for port, bit in operand.before.items()}
    cell["connections"] |= {port: [bit] for port, bit in added.items()}
    cell["port_directions"] |= dict.fromkeys(added, "input")


def _read(module: Mapping[str, Any]) -> Iterator[Any]:
    """Every bit that a cell or an output takes, once for each."""
    for cell in module["cells"].values():
        for port, bits in cell["connections"].items():
            if cell["port_directions"][port] != "output":
                yield from bits
    for about in module["ports"].values():
        if about["direction"] != "input":
            yield from about["bits"]
