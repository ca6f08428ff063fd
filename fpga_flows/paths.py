# SPDX-License-Identifier: Apache-2.0
"""Longest path of a mapped netlist between registers, memories, DSP blocks and ports, in LUT levels and carry steps."""

from collections import defaultdict
from dataclasses import dataclass
from typing import Any

from lutra.fpga_flows.families import Arc, Family
from lutra.fpga_flows.yosys import Cell, Netlist

__all__ = ["Path", "longest_path", "longest_paths"]


@dataclass(frozen=True)
class Path:
    """A path: ``cells`` from its start to its end, ``nanoseconds`` by the family's rule, steps of each kind."""

    cells: tuple[str, ...]
    types: tuple[str, ...]
    nanoseconds: float
    levels: int
    carries: int
    start: str
    end: str

    @property
    def text(self) -> str:
        """One line: from where to where, through what."""
        return f"{self.start} -> {self.end}: {self.levels} LUT levels, {self.carries} carry cells, {self.nanoseconds:.2f} ns"


def longest_path(netlist: Netlist) -> Path:
    """The slowest path of a netlist; ports count as registers."""
    return longest_paths(netlist, 1)[0]


def _step(family: Family, kind: str) -> float:
    return 0.0 if kind == "free" else float(getattr(family.timing, kind))


def _source(family: Family, cell: str) -> str | None:
    return next((kind for start, kind in family.sources.items() if cell.startswith(start)), None)


def longest_paths(netlist: Netlist, count: int) -> list[Path]:
    """The slowest paths to ``count`` different end cells, slowest first.

    Arrival times in topological order. An asynchronous read of LUT-RAM is combinational; its write side is where paths end.
    """
    family, cells = netlist.family, netlist.flat()
    arcs: dict[int, Arc] = {}
    arrival: dict[Any, float] = {}
    before: dict[Any, tuple[int, Any] | None] = {}
    uses: dict[Any, list[int]] = defaultdict(list)
    missing: dict[int, int] = {}
    outputs: dict[int, list[Any]] = {}
    driven: set[Any] = set()
    ends: list[tuple[int, list[Any]]] = []
    for index, (_, kind, ports) in enumerate(cells):
        arc = family.arcs.get(kind)
        if arc is None:
            _start(family, cells, index, netlist, arrival, before)
            ends.append((index, [bit for port, bits in ports.items() if port not in _outputs(kind) for bit in bits]))
            continue
        arcs[index] = arc
        outputs[index] = [bit for port in arc.outputs for bit in ports.get(port, []) if isinstance(bit, int)]
        driven.update(outputs[index])
        sequential = [bit for port, bits in ports.items() if port not in arc.inputs and port not in arc.outputs for bit in bits]
        if sequential:
            ends.append((index, sequential))
    for index, arc in arcs.items():
        needed = {bit for port in arc.inputs for bit in cells[index][2].get(port, []) if bit in driven}
        missing[index] = len(needed)
        for bit in needed:
            uses[bit].append(index)
    ready = [index for index, wanted in missing.items() if not wanted]
    while ready:
        index = ready.pop()
        arc, (_, kind, ports) = arcs[index], cells[index]
        inputs = [bit for port in arc.inputs for bit in ports.get(port, []) if bit in arrival]
        last = max(inputs, key=arrival.__getitem__, default=None)
        time = (arrival[last] if last is not None else family.timing.register) + _step(family, arc.step)
        for bit in outputs[index]:
            arrival[bit], before[bit] = time, (index, last)
            for after in uses[bit]:
                missing[after] -= 1
                if not missing[after]:
                    ready.append(after)
    loops = [cells[index][0] for index, wanted in missing.items() if wanted]
    if loops:
        raise ValueError(f"combinational loop through {loops[0]} and {len(loops) - 1} other cells")
    slowest = []
    for index, bits in ends:
        last = max((bit for bit in bits if bit in arrival), key=arrival.__getitem__, default=None)
        if last is not None:
            slowest.append((arrival[last], index, last))
    slowest.sort(key=lambda item: -item[0])
    return [_walk(netlist, cells, before, index, last, time) for time, index, last in slowest[:count]]


def _outputs(kind: str) -> tuple[str, ...]:
    """Output ports of sequential cells by their customary names; what is no output ends a path."""
    if kind.startswith(("FD", "TRELLIS_FF")):
        return ("Q",)
    if kind.startswith("RAMB"):
        return tuple(f"{name}{half}" for name in ("DOUTADOUT", "DOUTBDOUT", "DOUTPADOUTP", "DOUTPBDOUTP", "CASDOUTA", "CASDOUTB") for half in ("",))
    if kind.startswith("URAM"):
        return ("DOUT_A", "DOUT_B", "CAS_OUT_DOUT_A", "CAS_OUT_DOUT_B")
    if kind.startswith("DSP48"):
        return ("P", "PCOUT", "ACOUT", "BCOUT", "CARRYOUT")
    if kind.startswith(("DP16", "PDPW")):
        return ("DOA", "DOB", "DO")
    return ("P", "R", *(f"P{i}" for i in range(36)))


def _start(family: Family, cells: list[Cell], index: int, netlist: Netlist, arrival: dict[Any, float], before: dict[Any, tuple[int, Any] | None]) -> None:
    _, kind, ports = cells[index]
    step = _step(family, _source(family, kind) or "register")
    for port in _outputs(kind):
        for bit in ports.get(port, []):
            if isinstance(bit, int):
                arrival[bit], before[bit] = step, None


def _walk(netlist: Netlist, cells: list[Cell], before: dict[Any, tuple[int, Any] | None], end: int, bit: Any, time: float) -> Path:
    steps: list[int] = []
    first = bit
    while (found := before.get(bit)) is not None:
        index, first = found
        steps.append(index)
        if first is None:
            break
        bit = first
    steps.reverse()
    kinds = [netlist.family.arcs[cells[index][1]].step for index in steps]
    start = next(
        (name for name, kind, ports in cells if kind not in netlist.family.arcs and any(first in ports.get(port, []) for port in _outputs(kind))), "port"
    )
    return Path(
        cells=tuple(cells[index][0] for index in steps),
        types=tuple(cells[index][1] for index in steps),
        nanoseconds=time,
        levels=kinds.count("level"),
        carries=kinds.count("carry"),
        start=start,
        end=cells[end][0],
    )
