# SPDX-License-Identifier: Apache-2.0
"""Co-simulation of a whole core: the RTL runs a compiled program from its memory while every boundary is recorded."""

import tempfile
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from amaranth.hdl import Module, Signal
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out
from numpy.typing import NDArray

from lutra.cosim.board import Board, memory_file
from lutra.cosim.core_windows import Excerpts, PayloadHashes
from lutra.cosim.harness import Bench, Fault, Play
from lutra.cosim.recordings import Recording, Stimulus, compare
from lutra.cosim.windows import WINDOW, Digests
from lutra.hls_models.errors import MismatchError
from lutra.hls_models.ternary.core import CoreSpec
from lutra.hls_models.ternary.core_cycles import CoreTiming
from lutra.hls_models.ternary.core_units import PassTimes
from lutra.hls_models.ternary.executor import Executor, Pass, Sink
from lutra.hls_models.ternary.program import Program
from lutra.hls_models.ternary.registers import Register
from lutra.rtl.ternary.system import OnChipSystem

__all__ = ["CoreBench", "CoreRun", "HostedSystem", "Job", "Turn", "hex_image"]

MARGIN = 20_000
"""Cycles beyond the predicted end after which a simulation that has not ended is stopped."""

ACCESS = data.StructLayout({"address": 6, "data": 32, "read": 1, "urgent": 1})
"""What the host does to a register; urgent: even while the core is busy."""


class HostedSystem(wiring.Component):
    """A system whose register bus is driven by streams, so that a bench can be the host.

    Members
    -------
    host : ``In(stream)`` of register accesses, one per clock, held back while the core is busy unless they are urgent.
    read : ``Out(stream)`` of what was read, a clock after the access; never waits.
    token : ``Out(stream)`` of chosen ids. ``finished`` : ``Out(stream)``, one beat per run, two clocks after ``busy`` fell.
    """

    def __init__(self, system: OnChipSystem | Board) -> None:
        self._system = system
        super().__init__(
            {
                "host": In(stream.Signature(ACCESS)),
                "read": Out(stream.Signature(32)),
                "token": Out(stream.Signature(20)),
                "finished": Out(stream.Signature(1)),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.submodules.system = system = self._system
        started, was_busy = Signal(), Signal()
        # A start takes effect two clocks after its write: hold the host back from then on.
        access, taken = self.host.payload, self.host.valid & self.host.ready
        write = taken & ~access.read
        starting = write & (access.address == Register.CONTROL) & (access.data[0] | access.data[2])
        m.d.sync += [was_busy.eq(system.busy), self.finished.valid.eq(was_busy & ~system.busy), self.read.valid.eq(taken & access.read)]
        with m.If(starting):
            m.d.sync += started.eq(1)
        with m.Elif(was_busy & ~system.busy):
            m.d.sync += started.eq(0)
        m.d.comb += [
            self.host.ready.eq(~started | access.urgent),
            self.read.payload.eq(system.bus.read_data),
            system.bus.address.eq(access.address),
            system.bus.write.eq(write),
            system.bus.write_data.eq(access.data),
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
    """One run of the core: a prompt from position ``start`` on, and how many tokens to generate. ``verify``: a serial pass over the prompt instead."""

    prompt: Sequence[int]
    count: int = 1
    start: int = 0
    stop: int | None = None
    verify: bool = False

    def writes(self) -> list[tuple[Register, int]]:
        """Register writes that a host makes."""
        stop = 0 if self.stop is None else self.stop | 1 << 31
        out = [(Register.TOKEN_INDEX, self.start)] + [(Register.TOKEN, token) for token in self.prompt]
        out += [(Register.START_POSITION, self.start), (Register.PROMPT_LENGTH, len(self.prompt)), (Register.MAX_NEW, self.count), (Register.STOP_TOKEN, stop)]
        return [*out, (Register.CONTROL, 4 if self.verify else 1)]

    def golden(self, executor: Executor, record: bool | Sink) -> Iterator[Pass]:
        """The golden model's passes."""
        if self.verify:
            return iter([executor.verify(list(self.prompt), self.start, record=record)])
        return executor.generate(list(self.prompt), self.count, start=self.start, stop=self.stop, record=record)


@dataclass
class CoreRun:
    """What a co-simulation of turns found.

    ``passes`` and ``times``: golden values and predicted cycles of every pass, turn after turn; ``starts``, ``ends``: cycles of the turns' start pulses and
    of their ends as predicted; ``measured``: clocks from start to end of each turn in the RTL; ``mismatch``: the first difference in time, in words;
    ``seconds``: wall-clock time of the simulator's process, start-up and recordings included.
    """

    tokens: list[int] = field(default_factory=list)
    passes: list[Pass] = field(default_factory=list)
    times: list[PassTimes] = field(default_factory=list)
    starts: list[int] = field(default_factory=list)
    ends: list[int] = field(default_factory=list)
    measured: list[int] = field(default_factory=list)
    words_compared: int = 0
    words_mismatched: int = 0
    mismatch: str | None = None
    seconds: float = 0.0

    @property
    def chosen(self) -> NDArray[np.uint32]:
        """The golden model's ids."""
        return np.array([token for done in self.passes for token in done.choices], np.uint32)

    def cycles(self, name: str) -> NDArray[np.int64]:
        """Predicted handshakes of a boundary."""
        return np.concatenate([times.streams[name] for times in self.times if name in times.streams])


@dataclass(frozen=True)
class Job:
    """What a core shall do: ``turns`` on ``program``; ``memory``: what the RTL's memory holds instead of the program's image (negative controls)."""

    program: Program
    turns: Sequence[Turn]
    memory: Program | None = None


class CoreBench:
    """Verilated cores with their memories in one top; each runs the turns of a conversation on any program that fits its memory.

    Parameters
    ----------
    cores : by name, the core and the beats of its memory, where that is on chip (rounded up to a power of two)
    plain : without cocotb, for long runs (``lutra.cosim.bulk``); no waves
    """

    def __init__(self, cores: Mapping[str, tuple[CoreSpec, int]], *, plain: bool = False) -> None:
        self.specs = {name: spec for name, (spec, _) in cores.items()}
        sizes = {name: 1 << (beats - 1).bit_length() for name, (_, beats) in cores.items()}
        description = ["cores", [[name, sizes[name], spec.model_dump(mode="json")] for name, spec in self.specs.items()]]
        self._bench = Bench(", ".join(dict.fromkeys(spec.config.name for spec in self.specs.values())), description=description, plain=plain)
        for name, spec in self.specs.items():
            system = Board(spec, name) if spec.config.memory else OnChipSystem(spec, beats=sizes[name], file=f"{name}.hex")
            self._bench.add(name, HostedSystem(system))

    def build(self, *, optimization: str | None = None, waves: bool = False) -> None:
        """Verilates the cores, or takes them from the cache; ``optimization``: of the C++ compiler."""
        self._bench.build(optimization=optimization, waves=waves)

    def check(
        self,
        jobs: Mapping[str, Job],
        *,
        folder: Path | None = None,
        faults: Sequence[Fault] = (),
        on_token: Callable[[int], None] | None = None,
        on_cycle: Callable[[int, float], None] | None = None,
        hashed: bool = False,
    ) -> dict[str, CoreRun]:
        """Runs every core's job on the RTL beside golden and cycle model and compares every word and handshake of every boundary.

        Parameters
        ----------
        folder : receives the recordings (and waves); a temporary one otherwise
        faults : disturb boundaries of the RTL
        on_token : called with each id as the RTL of the first job writes it
        on_cycle : hears of the progress of a plain bench: cycles, seconds
        hashed : boundaries are compared by a hash per window of beats, and a window that differs is run again and compared beat by beat. ``words_mismatched``
            then counts in such windows only, of each boundary the first, and ``passes`` hold no words.
        """
        hashes = {name: PayloadHashes() for name in jobs} if hashed else {}
        runs = {name: self._expect(name, job, hashes.get(name, True)) for name, job in jobs.items()}
        windows = {(name, port): (0, 0) for name, mine in hashes.items() for port in mine.words if port != "token"}
        first, play = next(iter(jobs)), self._prepare(jobs, runs, faults)
        with tempfile.TemporaryDirectory(prefix="lutra-core-") as scratch:
            place = folder or Path(scratch)
            with _tail(place / f"{first}.token.out", on_token):
                begin = time.perf_counter()
                recorded, digests = self._play(play, windows, place, on_cycle)
                seconds = time.perf_counter() - begin
        found = {name: _compare(run, recorded[name], {port for core, port in windows if core == name}) for name, run in runs.items()}
        different = {}
        for (name, port), digest in digests.items():
            runs[name].words_compared += hashes[name].words[port]
            if (window := digest.first_difference(hashes[name].digests(port, runs[name].cycles(port)))) is not None:
                different[name, port] = (window * WINDOW, (window + 1) * WINDOW)
        if different:
            self._again(jobs, runs, play, different, found)
        for name, run in runs.items():
            ports = recorded[name]
            run.seconds = seconds
            run.tokens = [int(word) for word in ports["token"].payloads[:, 0]]
            run.measured = [int(cycle) - 1 - start for cycle, start in zip(ports["finished"].cycles, run.starts, strict=False)]
            run.mismatch = min(found[name])[1] if found[name] else None
        return runs

    def _expect(self, name: str, job: Job, record: bool | Sink) -> CoreRun:
        """Golden values and predicted cycles of a job."""
        spec = self.specs[name]
        golden, timing = Executor(spec, job.program), CoreTiming(spec, job.program, detail=True)
        run = CoreRun()
        for turn in job.turns:
            mine = list(turn.golden(golden, record))
            # Writes come one per clock once the turn before has ended; the start pulse follows the last.
            run.starts.append((run.ends[-1] if run.ends else -1) + len(turn.writes()) + 1)
            if turn.verify:
                run.times += timing.verify(len(turn.prompt), start=turn.start, at=run.starts[-1], lists=mine[0].lists)
            else:
                run.times += timing.run(
                    len(turn.prompt), sum(done.last for done in mine), start=turn.start, at=run.starts[-1], lists=[done.lists for done in mine]
                )
            run.ends.append(timing.now)
            run.passes += mine
        return run

    def _prepare(self, jobs: Mapping[str, Job], runs: Mapping[str, CoreRun], faults: Sequence[Fault]) -> Play:
        writes = {name: np.array([address | value << 6 for turn in job.turns for address, value in turn.writes()], np.uint64) for name, job in jobs.items()}
        # A memory must have something in it, also that of a core without a job.
        files: dict[str, str | bytes | Path] = {f"{name}.memory": bytes(spec.config.beat_bytes) for name, spec in self.specs.items() if spec.config.memory}
        files[f"{next(iter(jobs))}.token.live"] = b""
        for name, job in jobs.items():
            program = job.memory or job.program
            if self.specs[name].config.memory:
                files[f"{name}.memory"] = memory_file(program)
            else:
                files[f"{name}.hex"] = hex_image(program)
        return Play(
            stimuli={name: {"host": Stimulus(words)} for name, words in writes.items()},
            beats={name: {"token": len(run.chosen), "finished": len(run.ends)} for name, run in runs.items()},
            files=files,
            faults=faults,
            max_cycles=max(run.ends[-1] for run in runs.values()) + MARGIN,
        )

    def _play(
        self, play: Play, windows: Mapping[tuple[str, str], tuple[int, int]], folder: Path, on_cycle: Callable[[int, float], None] | None
    ) -> tuple[dict[str, dict[str, Recording]], dict[tuple[str, str], Digests]]:
        try:
            return self._bench.hashed(play, windows, keep=folder, on_cycle=on_cycle)
        except MismatchError as error:  # too few tokens: the comparison says where that began
            return error.recordings, error.digests  # type: ignore[attr-defined]

    def _again(
        self,
        jobs: Mapping[str, Job],
        runs: Mapping[str, CoreRun],
        play: Play,
        different: Mapping[tuple[str, str], tuple[int, int]],
        found: Mapping[str, list[tuple[int, str]]],
    ) -> None:
        """Runs golden model and RTL again for the windows that differ, and adds to what was found (cycle, words) the first difference in each."""
        end = max(int(runs[name].cycles(port)[:last][-1]) for (name, port), (_, last) in different.items())
        with tempfile.TemporaryDirectory(prefix="lutra-core-") as scratch:
            recorded, _ = self._play(replace(play, max_cycles=min(play.max_cycles, end + MARGIN)), different, Path(scratch), None)
        for name, run in runs.items():
            ranges = {port: limits for (core, port), limits in different.items() if core == name}
            excerpts, golden = Excerpts(ranges), Executor(self.specs[name], jobs[name].program)
            for turn in jobs[name].turns if ranges else ():
                for _ in turn.golden(golden, excerpts):
                    excerpts.end_pass()
            for port, (first, last) in ranges.items():
                words, cycles, recording = excerpts.words(port), run.cycles(port), recorded[name][port]
                run.words_mismatched += max(_different(words, recording), 1)
                try:
                    compare(port, words, cycles[first:last], recording, first=first)
                    begin = int(cycles[min(first, len(cycles) - 1)])
                    found[name].append((begin, f"{port}[{first}]: the window from here on differs, but not when run again"))
                except MismatchError as error:
                    origin = excerpts.origin(port, first if error.beat is None else error.beat)
                    found[name].append((error.cycle or 0, str(error) + (_place(run, *origin) if origin else "")))


def _compare(run: CoreRun, recorded: Mapping[str, Recording], apart: Collection[str]) -> list[tuple[int, str]]:
    """Holds recordings, but for those of boundaries ``apart``, against golden words and predicted cycles; fills the counts of ``run`` and gives the first
    difference of each: cycle, in words."""
    wanted: dict[str, tuple[Any, Any]] = {"finished": (None, np.array(run.ends) + 1)}
    names = dict.fromkeys(name for times in run.times for name in times.streams if name not in apart)
    for name in names:
        words = [part for done in run.passes for part in done.streams.get(name, [])]
        wanted[name] = (run.chosen if name == "token" else np.concatenate(words) if words else None, run.cycles(name))
    found = []
    for name, (words, cycles) in wanted.items():
        recording = recorded[name]
        if words is not None:
            run.words_compared += int(np.asarray(words).size)
            run.words_mismatched += _different(words, recording)
        try:
            compare(name, words, cycles, recording)
        except MismatchError as error:
            found.append((error.cycle or 0, str(error) + _origin(run, name, error.beat)))
    return found


def _place(run: CoreRun, label: str, index: int, number: int) -> str:
    return f"; {label.removeprefix('load ')}[{index}] in pass {number} (position {run.passes[number].position})"


def _origin(run: CoreRun, name: str, beat: int) -> str:
    """Where beat ``beat`` of a boundary belongs: its instruction's label, the index in what that instruction makes, the pass."""
    for number, done in enumerate(run.passes):
        for words, label in zip(done.streams.get(name, []), done.sources.get(name, []), strict=True):
            if beat < len(words):
                return _place(run, label, beat, number)
            beat -= len(words)
    return ""


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
