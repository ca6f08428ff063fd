# SPDX-License-Identifier: Apache-2.0
"""A netlist after synthesis as Verilog that can be simulated: the device's cells as instances of own models, one file each in ``cosim/cells``."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from amaranth.hdl import ClockSignal, Const, Instance, Module, ResetSignal, Value
from amaranth.lib import wiring
from amaranth.lib.wiring import In

from lutra.hls_models.errors import ToolError
from lutra.rtl.verilog import spare

__all__ = ["CELLS", "Gates", "board_level", "board_main", "cell_models", "gate_level"]

CELLS = Path(__file__).parent / "cells"
PORTS_OF_CONTENTS = {"LUT4": ("INIT",)}
"""Parameters that a model takes as ports: a module per value of them would be thousands."""
UNUSED = {
    "MULT18X18D": ("A", "B", "SIGNEDA", "SIGNEDB", "P", "CLK0", "CE0", "CE1", "RST0"),
    "EHXPLLL": ("CLKI", "CLKOP", "CLKOS", "LOCK"),
}
"""Cells of which a model has but these ports: the starts of the ports' names."""
WITHOUT_PARAMETERS = ("EHXPLLL",)
"""Cells whose model does the same whatever they say."""
LITERAL = {"0": "1'b0", "1": "1'b1", "x": "1'b0", "z": "1'b0"}


def cell_models(kinds: set[str]) -> str:
    """Verilog of the models of cells.

    Raises
    ------
    ToolError : a cell has none
    """
    missing = sorted(kind for kind in kinds if not (CELLS / f"{kind}.v").exists())
    if missing:
        raise ToolError(f"no model for cells {', '.join(missing)}; there are {', '.join(sorted(path.stem for path in CELLS.glob('*.v')))}")
    return "\n".join((CELLS / f"{kind}.v").read_text() for kind in sorted(kinds))


def gate_level(module: Mapping[str, Any], name: str) -> str:
    """A flat module of yosys' JSON as Verilog under another name, without the models of its cells.

    Bits that a cell leaves open are 0; so are undefined ones.
    """
    lines = [f"module {name} ("]
    ports = module["ports"]
    lines.append(",\n".join(f"  {about['direction']} [{len(about['bits']) - 1}:0] {_escaped(port)}" for port, about in ports.items()))
    lines.append(");")
    driven: dict[int, str] = {}
    for port, about in ports.items():
        if about["direction"] == "input":
            driven |= {bit: f"{_escaped(port)}[{i}]" for i, bit in enumerate(about["bits"])}

    def bit(number: Any) -> str:
        return LITERAL[number] if isinstance(number, str) else driven.get(number, f"n{number}")

    nets = {number for cell in module["cells"].values() for bits in cell["connections"].values() for number in bits if isinstance(number, int)}
    nets |= {number for about in ports.values() for number in about["bits"] if isinstance(number, int)}
    lines += [f"  wire n{number};" for number in sorted(nets - driven.keys())]
    for index, cell in enumerate(module["cells"].values()):
        lines.append(f"  {cell['type']}{_parameters(cell)} c{index} ({', '.join(_connections(cell, bit))});")
    for port, about in ports.items():
        if about["direction"] == "output":
            lines.append(f"  assign {_escaped(port)} = {{{', '.join(bit(number) for number in reversed(about['bits']))}}};")
    return "\n".join([*lines, "endmodule", ""])


def _escaped(name: str) -> str:
    return f"\\{name} "


def _has(kind: str, port: str) -> bool:
    return kind not in UNUSED or any(port == start or port.removeprefix(start).isdecimal() for start in UNUSED[kind])


def _parameters(cell: Mapping[str, Any]) -> str:
    if cell["type"] in WITHOUT_PARAMETERS:
        return ""
    skipped = PORTS_OF_CONTENTS.get(cell["type"], ())
    values = [f".{name}({_constant(value)})" for name, value in cell["parameters"].items() if name not in skipped]
    return f" #({', '.join(values)})" if values else ""


def _constant(value: Any) -> str:
    """yosys writes bits as such, texts as they are, and a blank behind texts that look like bits."""
    text = str(value)
    if text and set(text) <= {"0", "1", "x"}:
        return f"{len(text)}'b{text}".replace("x", "0")
    return f'"{text.rstrip()}"'


def _connections(cell: Mapping[str, Any], bit: Any) -> Iterator[str]:
    for name in PORTS_OF_CONTENTS.get(cell["type"], ()):
        yield f".{name}({_constant(cell['parameters'][name])})"
    directions = cell["port_directions"]
    for port, bits in cell["connections"].items():
        if not _has(cell["type"], port) or (directions[port] == "output" and all(isinstance(number, str) for number in bits)):
            continue
        yield f".{port}({{{', '.join(bit(number) for number in reversed(bits))}}})"


def board_level(module: Mapping[str, Any], *, inverted: bool) -> str:
    """A board's netlist as the top of ``lutra.cosim.serial``'s main program, with its cells' models."""
    kinds = {cell["type"] for cell in module["cells"].values()}
    return cell_models(kinds) + gate_level(module, "board") + board_main(inverted=inverted)


def board_main(*, inverted: bool) -> str:
    """The top around a module ``board``: ``rst`` is the reset button, ``inverted`` where it is active when low, and the outputs but ``tx`` are open."""
    return f"""
module top (input clk, rst, rx, output tx);
  board board (.clk(clk), .rx(rx), .tx(tx), .reset({"~" if inverted else ""}rst));
endmodule
"""


class Gates(wiring.Component):
    """The netlist of a component in its place: module ``name`` of ``gate_level``'s text, with the component's ports.

    Parameters
    ----------
    component : what was synthesised, as the top of its netlist
    """

    def __init__(self, component: Any, name: str) -> None:
        self._name = name
        spare(component)  # only its ports are wanted
        super().__init__(component.signature)

    def elaborate(self, platform: object) -> Module:
        m = Module()
        ports = {
            ("i_" if member.flow is In else "o_") + "__".join(map(str, path)): Value.cast(value)
            for path, member, value in self.signature.flatten(self)
            if not isinstance(Value.cast(value), Const)
        }
        m.submodules.gates = Instance(self._name, i_clk=ClockSignal(), i_rst=ResetSignal(), **ports)
        return m
