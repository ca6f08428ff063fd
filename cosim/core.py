# SPDX-License-Identifier: Apache-2.0
"""Co-simulation of a whole core: the RTL runs a compiled program from on-chip memory while every boundary is recorded."""

import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from amaranth.hdl import Module, Signal
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out
from numpy.typing import NDArray

from lutra.cosim.harness import Bench, Fault
from lutra.cosim.recordings import Recording, Stimulus, compare
from lutra.hls_models.errors import MismatchError
from lutra.hls_models.ternary.core import CoreSpec
from lutra.hls_models.ternary.core_cycles import CoreTiming, PassTimes
from lutra.hls_models.ternary.executor import Executor, Pass
from lutra.hls_models.ternary.program import Program
from lutra.hls_models.ternary.registers import Register
from lutra.rtl.ternary.system import OnChipSystem

__all__ = ["CoreBench", "CoreRun", "Turn", "hex_image"]

MARGIN = 20_000
"""Cycles beyond the predicted end after which a simulation that has not ended is stopped."""

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


@dataclass
class CoreRun:
    """What a co-simulation of turns found.

    ``passes`` and ``times``: golden values and predicted cycles of every pass, turn after turn; ``starts``, ``ends``: cycles of the turns' start pulses and of their ends as
    predicted; ``measured``: clocks from start to end of each turn in the RTL; ``mismatch``: the first difference in time, in words.
    """

    tokens: list[int]
    passes: list[Pass]
    times: list[PassTimes]
    starts: list[int]
    ends: list[int]
    measured: list[int]
    words_compared: int
    words_mismatched: int
    mismatch: str | None


class CoreBench:
    """A Verilated core for one spec and memory depth; runs turns of a conversation on any program of that size.

    Parameters
    ----------
    spec : the core. ``beats`` : depth of its read-only memory.
    """

    def __init__(self, spec: CoreSpec, beats: int) -> None:
        self.spec = spec
        self._bench = Bench(spec.config.name)
        self._bench.add("core", HostedSystem(OnChipSystem(spec, beats=1 << (beats - 1).bit_length(), file="memory.hex")))

    def build(self, *, waves: bool = False) -> None:
        """Verilates the core, or takes it from the cache."""
        self._bench.build(waves=waves)

    def check(
        self,
        program: Program,
        turns: Sequence[Turn],
        *,
        folder: Path | None = None,
        faults: Sequence[Fault] = (),
        image: Program | None = None,
        on_token: Callable[[int], None] | None = None,
    ) -> CoreRun:
        """Runs ``turns`` on the RTL beside golden and cycle model and compares every word and handshake of every boundary.

        Parameters
        ----------
        folder : receives the recordings (and waves); a temporary one otherwise
        faults : disturb boundaries of the RTL
        image : what the RTL's memory holds instead of ``program`` (negative controls)
        on_token : called with each id as the RTL writes it
        """
        golden, timing = Executor(self.spec, program), CoreTiming(self.spec, program, detail=True)
        run = CoreRun([], [], [], [], [], [], 0, 0, None)
        end, writes = -1, []
        for turn in turns:
            mine = list(golden.generate(list(turn.prompt), turn.count, start=turn.start, stop=turn.stop, record=True))
            written = turn.writes()
            run.starts.append(end + len(written) + 1)
            count = sum(done.last for done in mine)
            run.times += timing.run(len(turn.prompt), count, start=turn.start, at=run.starts[-1])
            end = timing.now
            run.ends.append(end)
            run.passes += mine
            writes += written
        chosen = [done.token for done in run.passes if done.last and done.token is not None]
        with tempfile.TemporaryDirectory(prefix="lutra-core-") as scratch, _tail((folder or Path(scratch)) / "core.token.out", on_token):
            recorded = self._play(writes, image or program, len(chosen), len(turns), end + MARGIN, folder or Path(scratch), faults)
        run.tokens = [int(word) for word in recorded["token"].payloads[:, 0]]
        run.measured = [int(cycle) - 1 - start for cycle, start in zip(recorded["finished"].cycles, run.starts, strict=False)]
        _compare(run, recorded, np.array(chosen, np.uint32), np.array(run.ends) + 1)
        return run

    def _play(
        self, writes: list[tuple[Register, int]], program: Program, tokens: int, turns: int, max_cycles: int, folder: Path, faults: Sequence[Fault]
    ) -> dict[str, Recording]:
        try:
            return self._bench.run(
                stimuli={"core": {"writes": Stimulus(np.array([address | value << 6 for address, value in writes], np.uint64))}},
                beats={"core": {"token": tokens, "finished": turns}},
                files={"memory.hex": hex_image(program), "core.token.live": b""},
                faults=faults,
                max_cycles=max_cycles,
                keep=folder,
            )["core"]
        except MismatchError as error:  # too few tokens: the comparison says where that began
            recordings: dict[str, dict[str, Recording]] = error.recordings  # type: ignore[attr-defined]
            return recordings["core"]


def _compare(run: CoreRun, recorded: dict[str, Recording], tokens: NDArray[np.uint32], finished: NDArray[np.int64]) -> None:
    """Holds recordings against golden words and predicted cycles; fills the counts and the first difference of ``run``."""
    wanted: dict[str, tuple[Any, Any]] = {"token": (tokens, None), "finished": (None, finished)}
    names = list(dict.fromkeys(name for times in run.times for name in times.streams))
    for name in names:
        words = [part for done in run.passes for part in done.streams.get(name, [])]
        cycles = np.concatenate([part for times in run.times for part in times.streams.get(name, [])])
        wanted[name] = (tokens if name == "token" else np.concatenate(words) if words else None, cycles)
    first: tuple[int, str] | None = None
    for name, (words, cycles) in wanted.items():
        recording = recorded[name]
        if words is not None:
            run.words_compared += int(np.asarray(words).size)
            run.words_mismatched += _different(words, recording)
        try:
            compare(name, words, cycles, recording)
        except MismatchError as error:
            if first is None or (error.cycle or 0) < first[0]:
                first = error.cycle or 0, str(error)
    run.mismatch = first[1] if first else None


def _different(words: NDArray[np.uint32], recording: Recording) -> int:
    """Golden words that the recording does not have in their place."""
    golden = np.asarray(words).reshape(-1, recording.payloads.shape[1])
    count = min(len(golden), len(recording))
    return int((golden[:count] != recording.payloads[:count]).sum()) + golden[count:].size


@contextmanager
def _tail(path: Path, on_token: Callable[[int], None] | None) -> Iterator[None]:
    """Calls ``on_token`` for every record of one word that appears in ``path`` while the body runs."""
    if on_token is None:
        yield
        return
    finished = threading.Event()

    def follow() -> None:
        seen = 0
        while True:
            last = finished.is_set()
            raw = np.frombuffer(path.read_bytes(), "<u4") if path.exists() else np.zeros(0, np.uint32)
            records = raw[: len(raw) // 3 * 3].reshape(-1, 3)
            for record in records[seen:]:
                on_token(int(record[2]))
            seen = len(records)
            if last:
                return
            finished.wait(0.1)

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    try:
        yield
    finally:
        finished.set()
        thread.join()
