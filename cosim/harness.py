# SPDX-License-Identifier: Apache-2.0
"""Benches: many designs in one Verilated top, every stream port played or sunk, recorded and compared whole.

    bench = Bench("queue")
    bench.add("c0", Queue(shape=8, depth=4))
    bench.build()
    recordings = bench.run(
        stimuli={"c0": {"input": Stimulus(payloads, not_before)}},
        ready={"c0": {"output": ready}},
        beats={"c0": {"output": len(payloads)}},
        max_cycles=10_000,
    )
    compare("c0.output", golden, predicted_cycles, recordings["c0"]["output"])

Conventions: one module ``cosim/benches/x.py`` per block, with ``configurations(seed)``, ``bench(configurations)`` that adds each as ``c0``, ``c1`` …, and
``check(bench, seed)`` that draws stimuli and stall traces, runs all designs at once and compares every port's payloads and cycles.

Every design runs from reset in each run and streams are as in docs/architecture.md, part 2.3. Cycles are counted from 0, the first cycle after reset.
"""

import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from amaranth.hdl import Cat, Const, Module, Signal
from amaranth.lib import stream, wiring
from numpy.typing import ArrayLike, NDArray

from lutra.cosim import probes, simulator
from lutra.hls_models.errors import MismatchError
from lutra.rtl.verilog import emit_rtlil, from_rtlil

__all__ = ["Bench", "Fault", "Recording", "Stimulus", "compare", "to_words"]

FAULT_KINDS = ("flip", "drop", "delay")


@dataclass(frozen=True)
class Stimulus:
    """Beats for an input: payloads as in ``to_words``; ``not_before`` (n,) earliest cycles, 0 where absent."""

    payloads: Any
    not_before: ArrayLike | None = None


@dataclass(frozen=True)
class Recording:
    """Every handshake of a port: payloads (n, words) uint32, lowest word first, and cycles (n,) int64."""

    payloads: NDArray[np.uint32]
    cycles: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.cycles)


@dataclass(frozen=True)
class Fault:
    """One fault at a port, behind the source: ``flip`` inverts payload bit ``bit``, ``drop`` loses the beat, ``delay`` offers it ``cycles`` cycles late."""

    dut: str
    port: str
    kind: str
    beat: int
    bit: int = 0
    cycles: int = 1

    def __post_init__(self) -> None:
        if self.kind not in FAULT_KINDS:
            raise ValueError(f"kind must be one of {', '.join(FAULT_KINDS)}, not {self.kind!r}")


def to_words(payloads: Any, width: int) -> NDArray[np.uint32]:
    """Payloads as (n, words) uint32, lowest word first.

    Parameters
    ----------
    payloads
        (n, words) uint32 as they are; (n,) integers of up to 64 bits; or a sequence of Python integers of any size. Negative ones in two's complement.
    width
        Bits of a payload; what does not fit is a ValueError.
    """
    words = max(1, -(-width // 32))
    if isinstance(payloads, np.ndarray) and payloads.ndim == 2:
        if payloads.shape[1] != words:
            raise ValueError(f"payloads of {width} bits need {words} words, not {payloads.shape[1]}")
        out = payloads.astype(np.uint32)
    elif isinstance(payloads, np.ndarray) and words <= 2:
        signed = payloads.dtype.kind == "i"
        low, high = (-(1 << max(width - 1, 0)) if signed else 0), (1 << width) - 1
        if payloads.size and not (low <= int(payloads.min()) and int(payloads.max()) <= high):
            raise ValueError(f"payloads must fit {width} bits")
        mask64 = np.uint64(high)
        out = (payloads.astype(np.int64 if signed else np.uint64).view(np.uint64) & mask64)[:, None].view(np.uint32).reshape(-1, 2)[:, :words]
    else:
        values = [int(value) for value in payloads]
        if any(not -(1 << max(width - 1, 0)) <= value < 1 << width for value in values):
            raise ValueError(f"payloads must fit {width} bits")
        mask = (1 << width) - 1
        raw = b"".join((value & mask).to_bytes(4 * words, "little") for value in values)
        out = np.frombuffer(raw, "<u4").reshape(-1, words)
    spare = 32 * words - width
    if spare and out.size and spare < 32 and (out[:, -1] >> np.uint32(32 - spare)).any():
        raise ValueError(f"payloads must fit {width} bits")
    return np.ascontiguousarray(out)


@dataclass
class _Port:
    name: str
    width: int
    is_input: bool
    has_ready: bool

    @property
    def words(self) -> int:
        return max(1, -(-self.width // 32))


@dataclass
class _Dut:
    component: Any
    ports: dict[str, _Port] = field(default_factory=dict)


class Bench:
    """A top of any number of designs.

    Parameters
    ----------
    name
        For messages.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._duts: dict[str, _Dut] = {}
        self._built: simulator.Build | None = None
        self._waves = False

    def add(self, name: str, component: Any) -> None:
        """Adds a design. Every member of its signature must be a stream (payload of any width; ready or valid may be constant)."""
        if name in self._duts or "." in name or "/" in name:
            raise ValueError(f"{name!r} must be a new name without dots and slashes")
        dut = _Dut(component)
        for port, member in component.signature.members.items():
            if not (member.is_signature and isinstance(member.signature, stream.Signature) and not member.dimensions):
                raise ValueError(f"{name}.{port} must be a stream, not {member!r}")
            interface = getattr(component, port)
            width = Cat(interface.payload).shape().width
            dut.ports[port] = _Port(f"{name}.{port}", width, member.flow == wiring.In, not isinstance(interface.ready, Const))
        self._duts[name] = dut

    def _top(self) -> tuple[Module, dict[str, Any]]:
        m = Module()
        cycle = Signal(64)
        done = Signal()
        flags = []
        for name, dut in self._duts.items():
            m.submodules[name] = dut.component
            for port, about in dut.ports.items():
                interface = getattr(dut.component, port)
                if about.is_input:
                    source = probes.play(m, about.name, interface.payload.shape(), cycle)
                    behind, passed = probes.tap(m, about.name, source, cycle)
                    wiring_in = [interface.payload.eq(behind.payload), behind.ready.eq(interface.ready)]
                    m.d.comb += wiring_in if isinstance(interface.valid, Const) else [*wiring_in, interface.valid.eq(behind.valid)]
                else:
                    behind, passed = probes.tap(m, about.name, interface, cycle)
                    if about.has_ready:
                        probes.sink(m, about.name, behind.ready, cycle)
                    else:
                        m.d.comb += behind.ready.eq(1)
                flags.append(passed)
        m.d.comb += done.eq(Cat(flags).all())
        return m, {"cycle": (cycle, None), "done": (done, None)}

    def build(self, *, waves: bool = False) -> simulator.Build:
        """Verilates all designs together, or takes the result of an equal build from the cache."""
        top, ports = self._top()
        rtlil = emit_rtlil(top, "bench", ports=ports)
        self._waves = waves
        self._built = simulator.build(rtlil, lambda: from_rtlil(rtlil), waves=waves)
        return self._built

    def run(
        self,
        *,
        stimuli: Mapping[str, Mapping[str, Stimulus]],
        max_cycles: int,
        ready: Mapping[str, Mapping[str, ArrayLike]] | None = None,
        beats: Mapping[str, Mapping[str, int]] | None = None,
        faults: Sequence[Fault] = (),
        files: Mapping[str, str | bytes] | None = None,
        drain: int = 16,
        keep: Path | None = None,
    ) -> dict[str, dict[str, Recording]]:
        """Plays all designs at once from reset, until every port has had its beats and ``drain`` more cycles have passed.

        Parameters
        ----------
        stimuli
            Beats per design and input; an input without any stays silent.
        ready
            Per design and output, a bool per cycle; ready past its end and where absent.
        beats
            Beats to wait for per design and port. Absent: an output 0, an input its stimulus. Beats beyond are recorded as well: ``compare`` finds them.
        faults
            At most one per port.
        files
            Contents of further files of the working directory, such as a HexRom's.
        keep
            Folder for all files of the run (waves as ``dump.vcd``); a temporary one otherwise.

        Raises
        ------
        MismatchError
            After ``max_cycles`` some ports are short of beats: each is named with both counts. The recordings are in its ``recordings``.
        """
        built = self._built or self.build()
        for given in (stimuli, ready or {}, beats or {}):
            self._check_names({(dut, port) for dut, ports in given.items() for port in ports})
        self._check_names({(fault.dut, fault.port) for fault in faults})
        folder = keep or Path(tempfile.mkdtemp(prefix="lutra-run-"))
        folder.mkdir(parents=True, exist_ok=True)
        try:
            expected = self._write(folder, stimuli, ready or {}, beats or {}, faults)
            for name, contents in (files or {}).items():
                (folder / name).write_bytes(contents.encode() if isinstance(contents, str) else contents)
            simulator.run(built, folder, plusargs=[f"+max_cycles={max_cycles}", f"+drain={drain}"], waves=self._waves)
            recordings = {name: {port: _read(folder, about) for port, about in dut.ports.items()} for name, dut in self._duts.items()}
        finally:
            if keep is None:
                shutil.rmtree(folder, ignore_errors=True)
        short = [f"{port} {got} of {wanted}" for port, (got, wanted) in self._short(expected, recordings).items()]
        if short:
            error = MismatchError(f"{self.name}: after {max_cycles} cycles ports are short of beats: {', '.join(short)}")
            error.recordings = recordings  # type: ignore[attr-defined]
            raise error
        return recordings

    def _check_names(self, names: set[tuple[str, str]]) -> None:
        for dut, port in sorted(names):
            if dut not in self._duts or port not in self._duts[dut].ports:
                raise ValueError(f"{self.name} has no port {dut}.{port}")

    def _short(self, expected: dict[str, int], recordings: dict[str, dict[str, Recording]]) -> dict[str, tuple[int, int]]:
        counts = {f"{dut}.{port}": len(recording) for dut, ports in recordings.items() for port, recording in ports.items()}
        return {name: (counts[name], wanted) for name, wanted in expected.items() if counts[name] < wanted}

    def _write(
        self,
        folder: Path,
        stimuli: Mapping[str, Mapping[str, Stimulus]],
        ready: Mapping[str, Mapping[str, ArrayLike]],
        beats: Mapping[str, Mapping[str, int]],
        faults: Sequence[Fault],
    ) -> dict[str, int]:
        expected = {}
        for name, dut in self._duts.items():
            for port, about in dut.ports.items():
                stimulus = stimuli.get(name, {}).get(port)
                count = 0
                if stimulus is not None:
                    if not about.is_input:
                        raise ValueError(f"{about.name} is an output and cannot have a stimulus")
                    count = _write_stimulus(folder, about, stimulus)
                trace = ready.get(name, {}).get(port)
                if trace is not None:
                    if about.is_input or not about.has_ready:
                        raise ValueError(f"{about.name} takes no ready trace")
                    _write_ready(folder, about, trace)
                expected[about.name] = beats.get(name, {}).get(port, count)
                (folder / f"{about.name}.expect").write_bytes(int(expected[about.name]).to_bytes(8, "big"))
        for fault in faults:
            fields = ((FAULT_KINDS.index(fault.kind) + 1, 4), (fault.bit, 4), (fault.beat, 8), (fault.cycles, 8))
            (folder / f"{fault.dut}.{fault.port}.fault").write_bytes(b"".join(value.to_bytes(size, "big") for value, size in fields))
        return expected


def _write_stimulus(folder: Path, port: _Port, stimulus: Stimulus) -> int:
    try:
        payloads = to_words(stimulus.payloads, port.width)
    except ValueError as error:
        raise ValueError(f"{port.name}: {error}") from None
    not_before = np.zeros(len(payloads), np.int64) if stimulus.not_before is None else np.asarray(stimulus.not_before, np.int64)
    if not_before.shape != (len(payloads),) or (not_before < 0).any():
        raise ValueError(f"{port.name}: not_before must be {len(payloads)} cycles of 0 or more")
    # $fread fills a register from its most significant byte on.
    records = np.empty((len(payloads), 2 + port.words), ">u4")
    records[:, 0] = not_before >> 32
    records[:, 1] = not_before & 0xFFFFFFFF
    records[:, 2:] = payloads[:, ::-1]
    (folder / f"{port.name}.in").write_bytes(records.tobytes())
    return len(payloads)


def _write_ready(folder: Path, port: _Port, trace: ArrayLike) -> None:
    bits = np.asarray(trace, bool)
    bits = np.concatenate([bits, np.ones(-len(bits) % 32, bool)])
    (folder / f"{port.name}.ready").write_bytes(np.packbits(bits, bitorder="little").view("<u4").astype(">u4").tobytes())


def _read(folder: Path, port: _Port) -> Recording:
    raw = np.fromfile(folder / f"{port.name}.out", "<u4")
    words = raw.reshape(-1, 2 + port.words)
    return Recording(payloads=words[:, 2:].astype(np.uint32), cycles=words[:, 0].astype(np.int64) | words[:, 1].astype(np.int64) << 32)


def _hex(words: NDArray[np.uint32]) -> str:
    return "0x" + "".join(f"{int(word):08x}" for word in words[::-1])


def compare(name: str, expected_payloads: ArrayLike | None, expected_cycles: ArrayLike | None, recording: Recording) -> int:
    """Compares a port's recording with golden payloads and predicted handshake cycles; returns the number of payload words compared.

    Parameters
    ----------
    name
        Of the tensor or port, for the message.
    expected_payloads
        (n, words) or, of one word, (n,) uint32; None: not compared.
    expected_cycles
        (n,) cycles; None: not compared.

    Raises
    ------
    MismatchError
        The first beat in time order that differs: name, index, expected and actual payload in hexadecimal, and cycles.
    """
    payloads = None
    if expected_payloads is not None:
        payloads = np.asarray(expected_payloads).astype(np.uint32, copy=False).reshape(-1, recording.payloads.shape[1])
    cycles = None if expected_cycles is None else np.asarray(expected_cycles, np.int64)
    count = len(recording)
    for wanted in (payloads, cycles):
        if wanted is not None:
            count = min(count, len(wanted))
    wrong = np.zeros(count, bool)
    if payloads is not None:
        wrong |= (payloads[:count] != recording.payloads[:count]).any(axis=1)
    if cycles is not None:
        wrong |= cycles[:count] != recording.cycles[:count]
    if wrong.any():
        i = int(np.argmax(wrong))
        value = "" if payloads is None else f" expected {_hex(payloads[i])}, got {_hex(recording.payloads[i])};"
        when = f" cycle {recording.cycles[i]}" + ("" if cycles is None else f", expected cycle {cycles[i]}")
        raise MismatchError(f"{name}[{i}]:{value}{when} ({int(wrong.sum())} of {count} beats differ)")
    for wanted, what in ((payloads, "golden"), (cycles, "predicted")):
        if wanted is not None and len(wanted) != len(recording):
            after = f", the last at cycle {recording.cycles[-1]}" if len(recording) else ""
            raise MismatchError(f"{name}[{count}]: {len(recording)} beats recorded{after}, {len(wanted)} {what}")
    return 0 if payloads is None else payloads.size
