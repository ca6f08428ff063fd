# SPDX-License-Identifier: Apache-2.0
"""Longest paths of small netlists made by hand: every step of the rule, and a DSP block's inside by which of its registers are there."""

from typing import Any

import pytest

from lutra.fpga_flows.families import XCUP
from lutra.fpga_flows.paths import slowest_path, slowest_paths
from lutra.fpga_flows.yosys import Netlist

TIME = XCUP.timing
STEPS = TIME.inside
NONE = dict.fromkeys(("AREG", "BREG", "CREG", "DREG", "ADREG", "MREG", "PREG", "ALUMODEREG", "OPMODEREG", "CARRYINREG", "CARRYINSELREG", "INMODEREG"), 0)
"""A block without registers."""
MULTIPLY = {"USE_MULT": "MULTIPLY", "AMULTSEL": "A", "BMULTSEL": "B"}

Cells = dict[str, dict[str, Any]]


def cell(kind: str, parameters: dict[str, Any] | None = None, **ports: int | str | list[int | str]) -> dict[str, Any]:
    found = {"type": kind, "connections": {port: bits if isinstance(bits, list) else [bits] for port, bits in ports.items()}}
    return found | ({"parameters": parameters} if parameters is not None else {})


def flip_flop(d: int, q: int) -> dict[str, Any]:
    return cell("FDRE", C=1, CE="1", R="0", D=d, Q=q)


def block(parameters: dict[str, Any], **ports: int | str | list[int | str]) -> dict[str, Any]:
    return cell("DSP48E2", {**NONE, **MULTIPLY, **parameters}, CLK=1, **ports)


def netlist(**cells: dict[str, Any]) -> Netlist:
    return Netlist({"top": {"attributes": {"top": "1"}, "ports": {}, "cells": cells}}, XCUP)


def between(**cells: dict[str, Any]) -> Netlist:
    """Cells between two flip-flops: net 10 is the first one's, 20 enters the last."""
    return netlist(first=flip_flop(2, 10), **cells, last=flip_flop(20, 3))


@pytest.mark.smoke
def test_levels_from_register_to_register() -> None:
    path = slowest_path(between(a=cell("LUT2", I0=10, I1="0", O=11), b=cell("LUT1", I0=11, O=12), c=cell("INV", I=12, O=20)))
    assert path.nanoseconds == pytest.approx(TIME.register + 2 * TIME.level)
    assert (path.levels, path.carries, path.inside, path.start, path.end) == (2, 0, (), "first", "last")
    assert path.cells == ("a", "b", "c") and path.types == ("LUT2", "LUT1", "INV")
    assert path.text == "first -> last: 2 LUT levels, 0 carry cells, 1.05 ns"


def test_carry_chains_and_wide_multiplexers() -> None:
    carry = {
        "c": cell("CARRY4", CI="0", CYINIT="0", DI=[10], S=[11], CO=[12], O=[13]),
        "d": cell("CARRY4", CI=12, CYINIT="0", DI=["0"], S=["0"], CO=[14], O=[15]),
    }
    path = slowest_path(between(a=cell("LUT1", I0=10, O=11), **carry, m=cell("MUXF7", I0=15, I1="0", S="0", O=20)))
    assert path.nanoseconds == pytest.approx(TIME.register + TIME.level + 2 * TIME.carry + TIME.multiplexer)
    assert (path.levels, path.carries) == (1, 2)


def test_memories_begin_paths_and_end_them() -> None:
    path = slowest_path(between(ram=cell("RAMB36E2", ADDRARDADDR=10, DOUTADOUT=11), a=cell("LUT1", I0=11, O=20)))
    assert path.start == "ram" and path.nanoseconds == pytest.approx(TIME.memory + TIME.level)
    ends = {found.end: found.nanoseconds for found in slowest_paths(between(ram=cell("URAM288", ADDR_A=10, DOUT_A=20)))}
    assert ends == pytest.approx({"ram": TIME.register, "last": TIME.memory})


def test_look_up_table_ram_reads_through_and_ends_at_its_write_side() -> None:
    ram = cell("RAM64X1S", A0=10, A1=10, A2=10, A3=10, A4=10, A5=10, D=11, WCLK=1, WE="1", O=20)
    ends = {found.end: found.nanoseconds for found in slowest_paths(between(a=cell("LUT1", I0=10, O=11), ram=ram))}
    assert ends == pytest.approx({"ram": TIME.register + TIME.level, "last": TIME.register + TIME.lut_memory})


def test_a_shift_register_begins_a_path() -> None:
    shift = cell("SRL16E", A0="1", A1="0", A2="0", A3="0", CE="1", CLK=1, D=10, Q=11)
    path = slowest_path(between(shift=shift, a=cell("LUT1", I0=11, O=20)))
    assert path.start == "shift" and path.nanoseconds == pytest.approx(TIME.register + TIME.lut_memory + TIME.level)


@pytest.mark.smoke
def test_an_unregistered_product_is_a_path_through_its_block() -> None:
    path = slowest_path(between(dsp=block({}, A=[10, "0"], B=[10], C=["0"], P=[20])))
    assert path.inside == ("operand", "multiplier", "adder", "output")
    assert path.nanoseconds == pytest.approx(TIME.register + sum(STEPS[step] for step in path.inside))
    assert path.start == "first" and path.end == "last"
    assert path.text.endswith("0 LUT levels, 0 carry cells, DSP: operand, multiplier, adder, output, 2.49 ns")


CONFIGURATIONS = {
    "AREG BREG": (("operand",), ("multiplier", "adder", "output")),
    "MREG": (("operand", "multiplier"), ("adder", "output")),
    "PREG": (("operand", "multiplier", "adder"), ("output",)),
    "MREG PREG": (("operand", "multiplier"), ("output",)),
    "AREG BREG PREG": (("operand",), ("output",)),
}


@pytest.mark.parametrize("registers", CONFIGURATIONS)
def test_registers_cut_a_block(registers: str) -> None:
    into, out_of = CONFIGURATIONS[registers]
    dsp = block(dict.fromkeys(registers.split(), 1), A=[10], B=[10], P=[20])
    ends = {found.end: found for found in slowest_paths(between(dsp=dsp))}
    entering = max((found for found in ends.values() if found.start == "first"), key=lambda found: found.nanoseconds)
    assert entering.inside == into and entering.nanoseconds == pytest.approx(TIME.register + sum(STEPS[step] for step in into))
    assert ends["last"].inside == out_of and ends["last"].nanoseconds == pytest.approx(TIME.dsp + sum(STEPS[step] for step in out_of))
    assert ends["last"].start.startswith("dsp.")


def test_between_registers_of_one_block() -> None:
    ends = {found.end: found for found in slowest_paths(between(dsp=block({"AREG": 1, "BREG": 1, "MREG": 1, "PREG": 1}, A=[10], B=[10], P=[20])))}
    assert ends["dsp.product"].nanoseconds == pytest.approx(TIME.dsp + STEPS["multiplier"])
    assert ends["dsp.sum"].nanoseconds == pytest.approx(TIME.dsp + STEPS["adder"])
    twice = slowest_path(between(dsp=block({"AREG": 1, "BREG": 1, "PREG": 1}, A=[10], B=[10], P=[20])))
    assert twice.inside == ("multiplier", "adder") and twice.nanoseconds == pytest.approx(TIME.dsp + STEPS["multiplier"] + STEPS["adder"])


def test_the_pre_adder_comes_before_the_multiplier_where_it_is_selected() -> None:
    ports: dict[str, Any] = {"A": [10], "B": [10], "D": [10], "P": [20]}
    registers = {"MREG": 1, "PREG": 1}
    path = slowest_path(between(dsp=block({"AMULTSEL": "AD", **registers}, **ports)))
    assert path.inside == ("operand", "pre-adder", "multiplier")
    assert slowest_path(between(dsp=block(registers, **ports))).inside == ("operand", "multiplier")
    assert slowest_path(between(dsp=block({"AMULTSEL": "AD", "ADREG": 1, **registers}, **ports))).inside == ("operand", "multiplier")  # of B


def test_without_a_multiplier_operands_enter_the_adder() -> None:
    path = slowest_path(between(dsp=block({"USE_MULT": "NONE", "PREG": 1}, A=[10], B=[10], C=[10], ALUMODE=[10], P=[20])))
    assert path.inside == ("operand", "adder")


def test_a_cascade_passes_through_both_adders() -> None:
    cascade = {"low": block({}, A=[10], B=[10], PCOUT=[11]), "high": block({"PREG": 1}, A=["0"], B=["0"], PCIN=[11], P=[20])}
    path = slowest_path(between(**cascade))
    assert path.inside == ("operand", "multiplier", "adder", "cascade", "adder") and path.end == "high.sum"
    assert path.nanoseconds == pytest.approx(TIME.register + sum(STEPS[step] for step in path.inside))


def test_registers_are_there_unless_a_parameter_says_no() -> None:
    ends = {found.end for found in slowest_paths(between(dsp=cell("DSP48E2", {}, CLK=1, A=[10], B=[10], P=[20], CEP=[10])))}
    assert ends == {"dsp.a", "dsp.b", "dsp.product", "dsp.sum", "dsp", "last"}  # "dsp": its enables


def test_a_data_sheets_clocks_are_inside_the_rules_uncertainty() -> None:
    """What the vendor warrants for -2 at 0.72 V, with the steps between the registers that are there; 644 MHz with all of them is no matter of these."""
    warranted = {323: ("pre-adder", "multiplier", "adder"), 440: ("multiplier", "adder"), 453: ("pre-adder", "multiplier")}
    for mhz, steps in warranted.items():
        slow, likely, _ = TIME.clock_hz(TIME.dsp + sum(STEPS[step] for step in steps))
        assert slow < 1e6 * mhz < likely


def test_a_loop_is_refused() -> None:
    with pytest.raises(ValueError, match=r"combinational loop through a and 1 other cells"):
        slowest_path(netlist(a=cell("LUT1", I0=11, O=12), b=cell("LUT1", I0=12, O=11)))
