# SPDX-License-Identifier: Apache-2.0
"""Device families as data: how yosys synthesises for them, what their cells count as, and what a path through a cell takes."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from lutra.fpga_flows import dsp48
from lutra.fpga_flows.dsp48 import DSP48E2

__all__ = ["FAMILIES", "Arc", "Family", "TimingRule"]


@dataclass(frozen=True)
class TimingRule:
    """Nanoseconds with which a path's length becomes a clock: an estimate before placement, with a factor of uncertainty either way.

    ``dsp``: from the clock out of a block's register; ``inside``: further steps in blocks that are taken apart.
    """

    level: float
    carry: float
    multiplexer: float
    register: float
    memory: float
    lut_memory: float
    dsp: float
    uncertainty: float
    source: str
    inside: Mapping[str, float] = field(default_factory=dict)

    def nanoseconds(self, step: str) -> float:
        """What a step takes."""
        return 0.0 if step == "free" else self.inside[step] if step in self.inside else float(getattr(self, step))

    def clock_hz(self, nanoseconds: float) -> tuple[float, float, float]:
        """Clock that a path supports: (pessimistic, estimate, optimistic)."""
        slow, fast = nanoseconds * (1 + self.uncertainty), nanoseconds * (1 - self.uncertainty)
        return 1e9 / slow, 1e9 / nanoseconds, 1e9 / fast


@dataclass(frozen=True)
class Arc:
    """A combinational cell: input ports that reach its output ports (every other input ends a path there), and its step."""

    step: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


@dataclass(frozen=True)
class Family:
    """A family.

    ``synthesis`` : yosys commands from the elaborated design to its mapped netlist; ``{top}`` is its top module, ``{hierarchy}`` "-noflatten" or
    nothing (modules that are not to be kept melt into those around them then).
    ``primitives`` : cells of the device that designs instantiate; ``rtl/verilog`` has models of them for simulation.
    ``kinds`` : what a cell counts as: (kind, number).
    ``arcs`` : combinational cells. ``sources`` : sequential cells with the step from clock to output, by the start of their type.
    ``parameters`` : of cells whose paths depend on them, by type: ``paths`` takes these apart (``dsp48``).
    ``spills`` : multipliers that exceed a device's blocks can become look-up tables (``multipliers``).
    """

    name: str
    synthesis: tuple[str, ...]
    primitives: frozenset[str]
    kinds: Mapping[str, tuple[str, float]]
    arcs: Mapping[str, Arc]
    sources: Mapping[str, str]
    timing: TimingRule
    parameters: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    spills: bool = False


def _two_steps(command: str) -> tuple[str, ...]:
    """Names of wires that ABC9 makes can meet those of a large flattened design (an assertion stops yosys): hide all before it."""
    return f"{command} -run begin:map_luts", "rename -hide w:*", f"{command} -run map_luts:"


_XILINX_LUTS = {f"LUT{n}": Arc("level", tuple(f"I{i}" for i in range(n)), ("O",)) for n in range(1, 7)}

XCUP = Family(
    name="xcup",
    synthesis=_two_steps("synth_xilinx -family xcup -top {top} -noiopad -noclkbuf -uram"),
    primitives=frozenset({DSP48E2}),
    kinds={
        **{f"LUT{n}": ("lut", 1) for n in range(1, 7)},
        "INV": ("inverter", 1),
        "RAM32M16": ("lutram", 8),
        "RAM64M8": ("lutram", 8),
        "RAM32M": ("lutram", 4),
        "RAM64M": ("lutram", 4),
        "RAM64X1S": ("lutram", 1),
        "RAM128X1S": ("lutram", 2),
        "RAM256X1S": ("lutram", 4),
        "RAM512X1S": ("lutram", 8),
        "SRL16E": ("lutram", 1),
        "SRLC32E": ("lutram", 1),
        **{name: ("ff", 1) for name in ("FDRE", "FDSE", "FDCE", "FDPE")},
        "CARRY4": ("carry", 0.5),
        "CARRY8": ("carry", 1),
        **{f"MUXF{n}": ("muxf", 1) for n in (7, 8, 9)},
        "RAMB36E2": ("bram36", 1),
        "RAMB18E2": ("bram36", 0.5),
        "URAM288": ("uram", 1),
        DSP48E2: ("dsp", 1),
    },
    arcs={
        **_XILINX_LUTS,
        "INV": Arc("free", ("I",), ("O",)),
        **{f"MUXF{n}": Arc("multiplexer", ("I0", "I1", "S"), ("O",)) for n in (7, 8, 9)},
        "CARRY4": Arc("carry", ("CI", "CYINIT", "DI", "S"), ("CO", "O")),
        "CARRY8": Arc("carry", ("CI", "CI_TOP", "DI", "S"), ("CO", "O")),
        "RAM32M16": Arc("lut_memory", tuple(f"ADDR{p}" for p in "ABCDEFG"), tuple(f"DO{p}" for p in "ABCDEFG")),
        "RAM64M8": Arc("lut_memory", tuple(f"ADDR{p}" for p in "ABCDEFG"), tuple(f"DO{p}" for p in "ABCDEFG")),
        **{name: Arc("lut_memory", ("A",), ("O",)) for name in ("RAM128X1S", "RAM256X1S", "RAM512X1S")},
        "RAM64X1S": Arc("lut_memory", tuple(f"A{i}" for i in range(6)), ("O",)),
        "SRL16E": Arc("lut_memory", tuple(f"A{i}" for i in range(4)), ("Q",)),
        "SRLC32E": Arc("lut_memory", ("A",), ("Q",)),
        **{f"{DSP48E2}.{step}": Arc(step, ("I",), ("O",)) for step in dsp48.NANOSECONDS},
    },
    sources={"FD": "register", "SRL": "register", "RAM3": "register", "RAM6": "register", "RAM1": "register", "RAMB": "memory", "URAM": "memory", "DSP": "dsp"},
    timing=TimingRule(
        level=0.45,
        carry=0.05,
        multiplexer=0.10,
        register=0.15,
        memory=1.10,
        lut_memory=0.55,
        dsp=0.25,
        uncertainty=0.3,
        source=(
            "rule of thumb for UltraScale+ of speed grade -2: a LUT and the net behind it 0.45 ns, half a CARRY8 0.05, a wide multiplexer 0.10, clock to "
            "output and setup of a register 0.15, clock to output of block and UltraRAM without output register 1.10; the vendor publishes no such figures: "
            "only a routed design would tell. Steps inside a DSP48E2: inferred from its data sheet and published timing reports (dsp48.py)"
        ),
        inside=dsp48.NANOSECONDS,
    ),
    parameters={DSP48E2: dsp48.PARAMETERS},
)

ECP5 = Family(
    name="ecp5",
    synthesis=_two_steps("synth_ecp5 -top {top} {hierarchy}"),
    primitives=frozenset(),
    kinds={
        "LUT4": ("lut", 1),
        "TRELLIS_DPR16X4": ("lutram", 4),
        "TRELLIS_FF": ("ff", 1),
        "CCU2C": ("carry", 1),
        "PFUMX": ("muxf", 1),
        "L6MUX21": ("muxf", 1),
        "DP16KD": ("bram18", 1),
        "PDPW16KD": ("bram18", 1),
        "MULT18X18D": ("dsp", 1),
        "ALU54B": ("dsp", 1),
    },
    arcs={
        "LUT4": Arc("level", tuple("ABCD"), ("Z",)),
        "PFUMX": Arc("multiplexer", ("ALUT", "BLUT", "C0"), ("Z",)),
        "L6MUX21": Arc("multiplexer", ("D0", "D1", "SD"), ("Z",)),
        "CCU2C": Arc("carry", ("A0", "B0", "C0", "D0", "A1", "B1", "C1", "D1", "CIN"), ("S0", "S1", "COUT")),
        "TRELLIS_DPR16X4": Arc("lut_memory", ("RAD",), ("DO",)),
    },
    sources={"TRELLIS_FF": "register", "TRELLIS_DPR": "register", "DP16": "memory", "PDPW": "memory", "MULT": "dsp", "ALU": "dsp"},
    timing=TimingRule(
        level=1.2,
        carry=0.10,
        multiplexer=0.30,
        register=0.80,
        memory=5.0,
        lut_memory=1.3,
        dsp=5.0,
        uncertainty=0.3,
        source="rule of thumb for ECP5 of speed grade 6; nextpnr's routed figure replaces it",
    ),
    spills=True,
)

ICE40 = Family(
    name="ice40",
    synthesis=("synth_ice40 -device u -dsp -top {top} {hierarchy}",),
    primitives=frozenset(),
    kinds={
        "SB_LUT4": ("lut", 1),
        "SB_CARRY": ("carry", 1),
        **{f"SB_DFF{edge}{enable}{reset}": ("ff", 1) for edge in ("", "N") for enable in ("", "E") for reset in ("", "R", "S", "SR", "SS")},
        "SB_RAM40_4K": ("ram4k", 1),
        "SB_MAC16": ("dsp", 1),
    },
    arcs={
        "SB_LUT4": Arc("level", tuple(f"I{i}" for i in range(4)), ("O",)),
        "SB_CARRY": Arc("carry", ("I0", "I1", "CI"), ("CO",)),
    },
    sources={"SB_DFF": "register", "SB_RAM": "memory", "SB_MAC": "dsp"},
    timing=TimingRule(
        level=2.0,
        carry=0.28,
        multiplexer=0.0,
        register=1.5,
        memory=3.0,
        lut_memory=0.0,
        dsp=3.0,
        uncertainty=0.3,
        source="rule of thumb for iCE40 UltraPlus; nextpnr's routed figure replaces it",
    ),
)

FAMILIES: Mapping[str, Family] = {family.name: family for family in (XCUP, ECP5, ICE40)}
"""Families by the name that configurations use."""
