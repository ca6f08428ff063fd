# SPDX-License-Identifier: Apache-2.0
"""Co-simulation of a whole core: the RTL runs a compiled program from on-chip memory while every boundary is recorded."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from amaranth.hdl import Module, Signal
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from lutra.cosim.harness import Bench, Fault, Recording, Stimulus
from lutra.hls_models.ternary.core import CoreSpec
from lutra.hls_models.ternary.program import Program
from lutra.hls_models.ternary.registers import Register
from lutra.rtl.ternary.system import OnChipSystem

__all__ = ["CoreBench", "Turn", "hex_image"]

WRITE = data.StructLayout({"address": 6, "data": 32})


class HostedSystem(wiring.Component):
    """An ``OnChipSystem`` whose register bus is fed by a stream, so that a bench's player can be the host.

    Members
    -------
    writes : ``In(stream)`` of register writes, one per clock, held back while the core is busy.
    token : ``Out(stream)`` of chosen ids. ``finished`` : ``Out(stream)``, one beat per run, two clocks after ``busy`` fell.
    """

    def __init__(self, system: OnChipSystem) -> None:
        self._system = system
        super().__init__({"writes": In(stream.Signature(WRITE)), "token": Out(stream.Signature(20)), "finished": Out(stream.Signature(1))})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.submodules.system = system = self._system
        started, was_busy = Signal(), Signal()
        # A start takes effect two clocks after its write: hold the host back from then on.
        write = self.writes.valid & self.writes.ready
        starting = write & (self.writes.payload.address == Register.CONTROL) & self.writes.payload.data[0]
        m.d.sync += [was_busy.eq(system.busy), self.finished.valid.eq(was_busy & ~system.busy)]
        with m.If(starting):
            m.d.sync += started.eq(1)
        with m.Elif(was_busy & ~system.busy):
            m.d.sync += started.eq(0)
        m.d.comb += [
            self.writes.ready.eq(~started),
            system.bus.address.eq(self.writes.payload.address),
            system.bus.write.eq(write),
            system.bus.write_data.eq(self.writes.payload.data),
        ]
        wiring.connect(m, system.token, wiring.flipped(self.token))
        return m


def hex_image(program: Program) -> bytes:
    """The memory image as ``$readmemh`` reads it: one beat per line, highest byte first."""
    assert program.image is not None
    beats = np.asarray(program.image).reshape(-1, program.beat_bytes)[:, ::-1]
    digits = beats.tobytes().hex()
    width = 2 * program.beat_bytes
    return "\n".join(digits[i : i + width] for i in range(0, len(digits), width)).encode() + b"\n"


@dataclass(frozen=True)
class Turn:
    """One run of the core: a prompt from position ``start`` on, and how many tokens to generate."""

    prompt: Sequence[int]
    count: int
    start: int = 0
    stop: int | None = None

    def writes(self) -> list[tuple[Register, int]]:
        """Register writes that a host makes."""
        stop = 0 if self.stop is None else self.stop | 1 << 31
        out = [(Register.TOKEN_INDEX, self.start)] + [(Register.TOKEN, token) for token in self.prompt]
        out += [(Register.START_POSITION, self.start), (Register.PROMPT_LENGTH, len(self.prompt)), (Register.MAX_NEW, self.count), (Register.STOP_TOKEN, stop)]
        return [*out, (Register.CONTROL, 1)]


class CoreBench:
    """A Verilated core for one spec and memory depth; runs turns of a conversation on any program of that size.

    Parameters
    ----------
    spec : the core. ``beats`` : depth of its read-only memory.
    """

    def __init__(self, spec: CoreSpec, beats: int) -> None:
        self.spec, self.beats = spec, beats
        self._bench = Bench("core")
        self._bench.add("core", HostedSystem(OnChipSystem(spec, beats=beats, file="memory.hex")))

    def build(self, *, waves: bool = False) -> None:
        self._bench.build(waves=waves)

    def run(self, image: bytes, turns: Sequence[Turn], *, tokens: int, max_cycles: int, folder: Path, faults: Sequence[Fault] = ()) -> dict[str, Recording]:
        """Runs ``turns`` one after the other and returns the recording of every boundary by name.

        Parameters
        ----------
        image : hex text of the memory
        tokens : tokens that come in all
        max_cycles : the simulation ends there, whatever happened
        folder : receives the recordings
        """
        writes = np.array([address | value << 6 for turn in turns for address, value in turn.writes()], np.uint64)
        recordings = self._bench.run(
            stimuli={"core": {"writes": Stimulus(writes)}},
            beats={"core": {"token": tokens, "finished": len(turns)}},
            files={"memory.hex": image},
            faults=faults,
            max_cycles=max_cycles,
            keep=folder,
        )
        return recordings["core"]
