# SPDX-License-Identifier: Apache-2.0
"""A DSP48E2 taken apart: the combinational steps between its ports, and the registers among them that its parameters leave (AMD UG579, figure 2-1).

Nanoseconds of the steps, for grade -2 at 0.72 V (-2LV, the KV260's). The data sheet gives clocks of whole blocks only (DS925 1.30, "DSP48 Slice Switching
Characteristics": 644 MHz with all registers, 440 without MREG, 453 without ADREG, 323 without both). Timing reports that users of the vendor's tool published
give the steps. One of a xczu5ev, the KV260's die, grade -1LV: pin B to its register's place 0.236, on to the multiplier 0.102, multiplier 0.833, behind it
0.071, adder 0.765, P 0.160, clock to P 0.347. One of a routed xczu3eg, grade -1: clock to B 0.263, the same steps within 20 %, PCOUT and its wire 0.201, adder
from PCIN 0.698, setup at PREG none. Inferred from them: the steps of -1LV times 0.94, which is the ratio of the grades in every line of the data sheet; the
cascade as routed. The pre-adder is in no report: the data sheet's 1 / 323 MHz - 1 / 440 MHz. From AREG to PREG that makes 1.92 ns, where the data sheet
warrants 2.27: well inside the rule's factor of uncertainty.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["CONTROL", "DSP48E2", "NANOSECONDS", "PARAMETERS", "Atom", "atoms"]

DSP48E2 = "DSP48E2"
NANOSECONDS: Mapping[str, float] = {"operand": 0.22, "pre-adder": 0.82, "multiplier": 0.88, "adder": 0.79, "output": 0.45, "cascade": 0.20}
"""``operand``: from a pin to its register's place; ``output``: through P, and the 0.30 of a wire into logic, as reports have it."""
OPERANDS: Mapping[str, str] = {"A": "ACIN", "B": "BCIN", "C": "", "D": ""}
CONTROL = ("OPMODE", "ALUMODE", "CARRYIN", "CARRYINSEL")
"""Pins that tell the adder what to do, each with a register of its own."""
REGISTERS = (*(f"{name}REG" for name in (*OPERANDS, *CONTROL)), "INMODEREG", "ADREG", "MREG", "PREG")
PARAMETERS = (*REGISTERS, "USE_MULT", "AMULTSEL", "BMULTSEL", "PREADDINSEL")
"""Those that decide which steps there are."""


@dataclass(frozen=True)
class Atom:
    """A step from ``inputs``, ports of the block or names of other atoms, to ``name``: a net inside the block, or an output port of it."""

    name: str
    inputs: tuple[str, ...]
    step: str
    registered: bool = False


def atoms(parameters: Mapping[str, Any]) -> list[Atom]:
    """The steps of a block, each behind those that it reads. A parameter that is not given has the library's default: every register is there, A times B.

    P fed back to the adder is no path of its own: it is as short as that from MREG.
    """
    registered = {name: bool(parameters.get(name, 1)) for name in REGISTERS}
    found = [Atom(name.lower(), (name, cascade), "operand", registered[f"{name}REG"]) for name, cascade in OPERANDS.items()]
    found += [Atom(name.lower(), (name,), "operand", registered[f"{name}REG"]) for name in (*CONTROL, "INMODE")]
    factors = tuple("ad" if parameters.get(f"{name}MULTSEL") == "AD" else name.lower() for name in "AB")
    summands = {"MULTIPLY": ("product",), "NONE": ("a", "b")}.get(parameters.get("USE_MULT", "MULTIPLY"), ("product", "a", "b"))
    if "product" in summands:
        if "ad" in factors:
            found.append(Atom("ad", (str(parameters.get("PREADDINSEL", "A")).lower(), "d", "inmode"), "pre-adder", registered["ADREG"]))
        found.append(Atom("product", (*factors, "inmode"), "multiplier", registered["MREG"]))
    control = tuple(name.lower() for name in CONTROL)
    found.append(Atom("sum", (*summands, "c", "PCIN", "CARRYCASCIN", "MULTSIGNIN", *control), "adder", registered["PREG"]))
    found += [Atom(port, ("sum",), "output") for port in ("P", "CARRYOUT", "PATTERNDETECT", "PATTERNBDETECT", "OVERFLOW", "UNDERFLOW", "XOROUT")]
    cascades = {"PCOUT": "sum", "CARRYCASCOUT": "sum", "MULTSIGNOUT": "sum", "ACOUT": "a", "BCOUT": "b"}
    found += [Atom(port, (source,), "cascade") for port, source in cascades.items()]
    return found
