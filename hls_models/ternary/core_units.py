# SPDX-License-Identifier: Apache-2.0
"""What the passes of a core share, and what is told of a pass."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from lutra.hls_models.ternary.attention_cycles import AttentionTiming
from lutra.hls_models.ternary.core import CoreSpec
from lutra.hls_models.ternary.isa import Destination, Instruction, LoadMode, LoadTarget, Operation, Unit
from lutra.hls_models.ternary.linear import LinearTiming
from lutra.hls_models.ternary.loader import Load
from lutra.hls_models.ternary.planes import Lists
from lutra.hls_models.ternary.program import Program
from lutra.hls_models.ternary.repetition import repeated_body
from lutra.hls_models.ternary.tlmm_cycles import codes_handshakes
from lutra.hls_models.ternary.vector_cycles import Requantised, VectorTiming

__all__ = ["DONE", "UNITS", "PassPlan", "PassTimes", "Units"]

Cycles = NDArray[np.int64]
PASSES, CELLS = 64, 1 << 19
"""Passes evaluated together, at most, and passes times beats: enough to hide what a call of numpy costs, few enough for memory."""

DONE = {unit: f"{unit.name.lower()}_done" for unit in Unit}  # boundaries
UNITS: tuple[Unit, ...] = tuple(unit for unit in Unit if unit is not Unit.END)


class PassPlan(NamedTuple):
    """A pass of ``tokens`` tokens from ``position``; ``last``: it ends with a choice; ``serial``: it verifies drafts; ``lists``: of a head in two planes,
    where they are known."""

    position: int
    tokens: int
    last: bool
    serial: bool = False
    lists: Lists | None = None


@dataclass(frozen=True)
class PassTimes:
    """A pass from its SETUP cycle ``start`` to the cycle ``end`` after its NEXT; ``token``: handshake of the (last) chosen id.

    ``begins``, ``dones``: per instruction of the program, the cycle in which its unit took it and that of its done, -1 where the pass leaves it out.
    ``active``: clocks in which a unit had an instruction under way; ``worked``: those of them in which it moved a beat (LOADER, HEAD: memory beats; LINEAR:
    lookups; VECTOR: source and code beats) or, ATTEND, attended; ``stalls``: the others by reason.
    ``streams``: handshake cycles of every boundary (only in detail). ``rescored``: rows of a head in two planes that were scored again.
    """

    position: int
    tokens: int
    last: bool
    start: int
    end: int
    token: int | None
    begins: Cycles
    dones: Cycles
    active: dict[Unit, int]
    worked: dict[Unit, int]
    stalls: dict[Unit, dict[str, int]]
    streams: dict[str, Cycles]
    serial: bool = False
    rescored: int = 0

    @property
    def cycles(self) -> int:
        return self.end - self.start


class Units:
    """What the passes of a core share: its program, the models of its units, what follows from an instruction and the tokens of a pass alone.

    Parameters
    ----------
    spec, program : as for the executor; no memory image is needed
    detail : keep every handshake
    rescored : share of rows that a head in two planes scores again where a pass has no lists
    """

    def __init__(self, spec: CoreSpec, program: Program, *, detail: bool, rescored: float = 1.0) -> None:
        self.spec, self.program, self.detail, self.rescored = spec, program, detail, rescored
        # The burst that brings the last rows of a step may bring rows of the next, too: a step leaves room for them.
        self.linear = LinearTiming(spec.tlmm, spec.weights.model_copy(update={"ring_rows": spec.loader.tile_rows}))
        self.vector = VectorTiming(spec.vector)
        self.attention = AttentionTiming(spec.attention, latency=2)
        self.waits = [tuple(one.wait) for one in program.instructions]
        self.signals = [tuple(one.signal) for one in program.instructions]
        self.loads = {index: _load_of(one) for index, one in enumerate(program.instructions) if one.unit is Unit.LOADER}
        memory = spec.config.memory
        self.bodies, self.body = repeated_body(program.instructions, memory.burst_beats) if memory and memory.uniform and not detail else ([], 0)
        self._requantised: dict[tuple[int, ...], Requantised] = {}

    def together(self, tokens: int) -> int:
        """How many passes of ``tokens`` tokens are evaluated at once, for arrays of a few megabytes."""
        columns = max(one.fields["columns"] for one in self.program.instructions if one.unit is Unit.VECTOR)
        widest = max(self.spec.config.ring_rows, tokens * columns // self.spec.config.vector_lanes)
        return max(1, min(PASSES, CELLS // widest))

    def requantised(self, fields: dict[str, int], tokens: int) -> Requantised:
        """VECTOR's codes behind the last z. LINEAR's activation buffer takes a clock more where a token's last codes fill one row and begin another."""
        columns = fields["columns"] >> (fields["operation"] == Operation.GATE)
        key = tokens, columns, fields["group_columns"], fields["norm"], fields["destination"]
        if key not in self._requantised:
            spans = None
            if fields["destination"] == Destination.LINEAR:
                row = columns // self.spec.config.vector_lanes
                last = np.arange(1, tokens * row + 1) % row == 0
                spans = np.diff(codes_handshakes(self.spec.tlmm, np.zeros(len(last), np.int64), last))
            self._requantised[key] = self.vector.requantise(fields, tokens, spans=spans)
        return self._requantised[key]


def _load_of(instruction: Instruction) -> Load:
    f = instruction.fields
    return Load(LoadTarget(f["target"]), LoadMode(f["mode"]), f["address"], f["beats"], f["rows"])
