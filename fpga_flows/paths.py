# SPDX-License-Identifier: Apache-2.0
"""Longest path of a mapped netlist between registers, memories and ports, in LUT levels, carry steps and steps inside DSP blocks."""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count
from typing import Any

from lutra.fpga_flows.dsp48 import DSP48E2, Atom, atoms
from lutra.fpga_flows.families import Arc, Family
from lutra.fpga_flows.yosys import Cell, Netlist

__all__ = ["Path", "slowest_path", "slowest_paths"]


@dataclass(frozen=True)
class Path:
    """A path: ``cells`` from its start to its end, ``nanoseconds`` by the family's rule, steps of each kind; ``inside``: those in DSP blocks, in order."""

    cells: tuple[str, ...]
    types: tuple[str, ...]
    nanoseconds: float
    levels: int
    carries: int
    inside: tuple[str, ...]
    start: str
    end: str

    @property
    def text(self) -> str:
        """One line: from where to where, through what."""
        inside = f", DSP: {', '.join(self.inside)}" if self.inside else ""
        return f"{self.start} -> {self.end}: {self.levels} LUT levels, {self.carries} carry cells{inside}, {self.nanoseconds:.2f} ns"


def slowest_path(netlist: Netlist) -> Path:
    """The slowest path of a netlist; ports count as registers."""
    return next(slowest_paths(netlist))


def _inside(cell: Cell, steps: list[Atom], fresh: Iterator[int]) -> Iterator[Cell]:
    """A block as its steps and the registers behind them. Steps that only constants enter are none."""
    ports, inputs = dict(cell.ports), {port for step in steps for port in step.inputs}
    for step in steps:
        reads = [bit for source in step.inputs for bit in ports.get(source, []) if isinstance(bit, int)]
        if not reads or (step.name.isupper() and step.name not in cell.ports):
            continue
        ends = ports.setdefault(step.name, [next(fresh)])
        through = [next(fresh)] if step.registered else ends
        yield Cell(f"{cell.name}.{step.name}", f"{cell.type}.{step.step}", {"I": reads, "O": through})
        if step.registered:
            yield Cell(f"{cell.name}.{step.name}", f"{cell.type}.register", {"D": through, "Q": ends})
    outputs = {step.name for step in steps}
    yield Cell(cell.name, f"{cell.type}.register", {port: bits for port, bits in cell.ports.items() if port not in inputs | outputs})  # enables, resets


def _cells(netlist: Netlist) -> list[Cell]:
    """Primitives, DSP blocks taken apart."""
    found: list[Cell] = []
    fresh = count(-1, -1)  # nets of the netlist are not negative
    for cell in netlist.flat():
        found += _inside(cell, atoms(cell.parameters), fresh) if cell.type == DSP48E2 else [cell]
    return found


def _source(family: Family, cell: str) -> str:
    return next((kind for start, kind in family.sources.items() if cell.startswith(start)), "register")


def slowest_paths(netlist: Netlist) -> Iterator[Path]:
    """The slowest path to each end cell, slowest first; none where a component is wires alone.

    Arrival times in topological order. An asynchronous read of LUT-RAM is combinational; its write side is where paths end.
    """
    family, cells = netlist.family, _cells(netlist)
    arcs: dict[int, Arc] = {}
    arrival: dict[Any, float] = {}
    before: dict[Any, tuple[int, Any]] = {}
    starts: dict[Any, str] = {}
    uses: dict[Any, list[int]] = defaultdict(list)
    missing: dict[int, int] = {}
    outputs: dict[int, list[Any]] = {}
    driven: set[Any] = set()
    ends: list[tuple[int, list[Any]]] = []
    for index, (name, kind, ports, _) in enumerate(cells):
        arc = family.arcs.get(kind)
        if arc is None:
            step = family.timing.nanoseconds(_source(family, kind))
            begun = [bit for port in _outputs(kind) for bit in ports.get(port, []) if isinstance(bit, int)]
            arrival.update(dict.fromkeys(begun, step))
            starts.update(dict.fromkeys(begun, name))
            ends.append((index, [bit for port, bits in ports.items() if port not in _outputs(kind) for bit in bits]))
            continue
        arcs[index] = arc
        outputs[index] = [bit for port in arc.outputs for bit in ports.get(port, []) if isinstance(bit, int)]
        driven.update(outputs[index])
        sequential = [bit for port, bits in ports.items() if port not in arc.inputs and port not in arc.outputs for bit in bits]
        if sequential:
            ends.append((index, sequential))
    for index, arc in arcs.items():
        needed = {bit for port in arc.inputs for bit in cells[index].ports.get(port, []) if bit in driven}
        missing[index] = len(needed)
        for bit in needed:
            uses[bit].append(index)
    ready = [index for index, wanted in missing.items() if not wanted]
    while ready:
        index = ready.pop()
        arc, ports = arcs[index], cells[index].ports
        inputs = [bit for port in arc.inputs for bit in ports.get(port, []) if bit in arrival]
        last = max(inputs, key=arrival.__getitem__, default=None)
        time = (arrival[last] if last is not None else family.timing.register) + family.timing.nanoseconds(arc.step)
        for bit in outputs[index]:
            arrival[bit], before[bit] = time, (index, last)
            for after in uses[bit]:
                missing[after] -= 1
                if not missing[after]:
                    ready.append(after)
    loops = [cells[index].name for index, wanted in missing.items() if wanted]
    if loops:
        raise ValueError(f"combinational loop through {loops[0]} and {len(loops) - 1} other cells")
    slowest = []
    for index, bits in ends:
        last = max((bit for bit in bits if bit in arrival), key=arrival.__getitem__, default=None)
        if last is not None:
            slowest.append((arrival[last], index, last))
    clocked = {index for index, _ in ends}  # a shift register that nothing addresses begins a path
    slowest.sort(key=lambda item: -item[0])
    for time, index, last in slowest:
        steps: list[int] = []
        while last in before:
            index_before, last = before[last]
            steps.insert(0, index_before)
        kinds = [family.arcs[cells[step].type].step for step in steps]
        yield Path(
            cells=tuple(cells[step].name for step in steps),
            types=tuple(cells[step].type for step in steps),
            nanoseconds=time,
            levels=kinds.count("level"),
            carries=kinds.count("carry"),
            inside=tuple(kind for kind in kinds if kind in family.timing.inside),
            start=starts.get(last) or (cells[steps[0]].name if steps and steps[0] in clocked else "port"),
            end=cells[index].name,
        )


def _outputs(kind: str) -> tuple[str, ...]:
    """Output ports of sequential cells by their customary names; what is no output ends a path."""
    if kind.startswith(("FD", "TRELLIS_FF")) or kind.endswith(".register"):
        return ("Q",)
    if kind.startswith("RAMB"):
        return ("DOUTADOUT", "DOUTBDOUT", "DOUTPADOUTP", "DOUTPBDOUTP", "CASDOUTA", "CASDOUTB")
    if kind.startswith("URAM"):
        return ("DOUT_A", "DOUT_B", "CAS_OUT_DOUT_A", "CAS_OUT_DOUT_B")
    if kind.startswith(("DP16", "PDPW")):
        return ("DOA", "DOB", "DO")
    return ("P", "R", *(f"P{i}" for i in range(36)))
