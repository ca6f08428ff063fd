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

A boundary inside a design (``lutra.rtl.tap``) is recorded beside the design's ports, or as ``recordings[group][name]`` where it is called group.name.
Every design runs from reset in each run and streams are as in docs/architecture.md, part 2.3. Cycles are counted from 0, the first cycle after reset.
"""

import json
import shutil
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from amaranth.hdl import Cat, Const, Module, Signal
from amaranth.lib import stream, wiring
from numpy.typing import ArrayLike

from lutra.cosim import probes, simulator
from lutra.cosim.recordings import Port, Recording, Stimulus, compare, read_recording, to_words, write_ready, write_stimulus
from lutra.cosim.windows import WINDOW, Digests, Golden, digests_of, read_digests, window_setting
from lutra.hls_models.errors import MismatchError
from lutra.rtl import verilog_text
from lutra.rtl.verilog import emit_rtlil, from_rtlil, library_text, share_modules, spare

__all__ = ["Bench", "Fault", "Golden", "Play", "Recording", "Stimulus", "compare", "read_recording", "to_words"]

DRAM = Path(__file__).parent / "dram"
"""Folder of the DRAM model's cells, a module that only simulations have."""
FAULT_KINDS = ("flip", "drop", "delay")


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


@dataclass
class _Dut:
    component: Any
    ports: dict[str, Port] = field(default_factory=dict)


@dataclass(frozen=True)
class Play:
    """What one run plays: the arguments of ``Bench.run``."""

    stimuli: Mapping[str, Mapping[str, Stimulus]]
    max_cycles: int
    ready: Mapping[str, Mapping[str, ArrayLike]] = field(default_factory=dict)
    beats: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    faults: Sequence[Fault] = ()
    files: Mapping[str, str | bytes | Path] = field(default_factory=dict)
    drain: int = 16


class Bench:
    """A top of any number of designs.

    Parameters
    ----------
    name
        For messages.
    description
        All that determines the designs besides this package's sources, as JSON: with it, designs that were elaborated once are not elaborated again.
    plain
        Without cocotb (``lutra.cosim.bulk``): compiled longer, faster for runs of millions of cycles; the same files and recordings, no waves.
    modules
        Verilog of further modules that designs instantiate, such as ``lutra.cosim.gates`` writes.
    """

    def __init__(self, name: str, *, description: object = None, plain: bool = False, modules: str = "") -> None:
        self.name = name
        self._description, self._plain, self._modules = description, plain, modules
        self._duts: dict[str, _Dut] = {}
        self._recorded: dict[str, dict[str, Port]] = {}
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
            dut.ports[port] = Port(f"{name}.{port}", width, member.flow == wiring.In, not isinstance(interface.ready, Const))
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
                    behind = probes.sabotage(m, about.name, source)
                    wiring_in = [interface.payload.eq(behind.payload), behind.ready.eq(interface.ready)]
                    m.d.comb += wiring_in if isinstance(interface.valid, Const) else [*wiring_in, interface.valid.eq(behind.valid)]
                else:
                    behind = probes.sabotage(m, about.name, interface)
                    if about.has_ready:
                        probes.sink(m, about.name, behind.ready, cycle)
                    else:
                        m.d.comb += behind.ready.eq(1)
                flags.append(probes.record(m, about.name, behind, cycle))
        m.d.comb += done.eq(Cat(flags).all())
        return m, {"cycle": (cycle, None), "done": (done, None)}

    def _texts(self) -> dict[str, str]:
        """RTLIL of all designs, and payload widths of the boundaries inside them."""
        top, ports = self._top()
        rtlil, taps = probes.name_taps(emit_rtlil(top, "bench", ports=ports), "bench")
        return {"rtlil": share_modules(rtlil), "taps": json.dumps(taps)}

    def build(self, *, optimization: str | None = None, waves: bool = False) -> simulator.Build:
        """Verilates all designs together, or takes the result of an equal build from the cache. Long runs are worth ``optimization="-O2"``."""
        if self._description is None:
            texts = self._texts()
        else:
            texts = simulator.kept_texts([list(self._duts), self._description], self._texts)
            for dut in self._duts.values():
                spare(dut.component)
        rtlil, taps = texts["rtlil"], json.loads(texts["taps"])
        self._recorded = {name: dict(dut.ports) for name, dut in self._duts.items()}
        for group, widths in taps.items():
            for tap, width in widths.items():
                if tap in self._recorded.setdefault(group, {}):
                    raise ValueError(f"a port and a boundary inside are called {group}.{tap}")
                self._recorded[group][tap] = Port(f"{group}.{tap}", width, is_input=False, has_ready=False)
        self._waves = waves
        models = library_text(rtlil, DRAM) + self._modules
        key = rtlil + library_text(rtlil) + models + Path(verilog_text.__file__).read_text()
        self._built = simulator.build(key, lambda: from_rtlil(rtlil) + models, optimization=optimization, waves=waves, plain=self._plain)
        return self._built

    def run(
        self,
        *,
        stimuli: Mapping[str, Mapping[str, Stimulus]],
        max_cycles: int,
        ready: Mapping[str, Mapping[str, ArrayLike]] | None = None,
        beats: Mapping[str, Mapping[str, int]] | None = None,
        faults: Sequence[Fault] = (),
        files: Mapping[str, str | bytes | Path] | None = None,
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
            Contents of further files of the working directory, such as a HexRom's; a path: that file itself, through a link.
        keep
            Folder for all files of the run (waves as ``dump.vcd``); a temporary one otherwise.

        Raises
        ------
        MismatchError
            After ``max_cycles`` some ports are short of beats: each is named with both counts. The recordings are in its ``recordings``.
        """
        recordings, _ = self.hashed(Play(stimuli, max_cycles, ready or {}, beats or {}, faults, files or {}, drain), {}, keep=keep)
        return recordings

    def verify(
        self,
        *,
        golden: Mapping[str, Mapping[str, Golden]],
        stimuli: Mapping[str, Mapping[str, Stimulus]],
        max_cycles: int,
        ready: Mapping[str, Mapping[str, ArrayLike]] | None = None,
        beats: Mapping[str, Mapping[str, int]] | None = None,
        faults: Sequence[Fault] = (),
        files: Mapping[str, str | bytes | Path] | None = None,
        drain: int = 16,
    ) -> int:
        """For runs too long to keep: as ``run``, but recorders hash windows of beats; only a window that differs from its golden one is run again and recorded.

        Returns the number of payload words compared. Raises MismatchError as ``compare`` does, for the port of ``golden`` that comes first.
        """
        if self._built is None:
            self.build()
        self._check_names((dut, port) for dut, ports in golden.items() for port in ports)
        play = Play(stimuli, max_cycles, ready or {}, beats or {}, faults, files or {}, drain)
        names = {(dut, port): port_golden for dut, ports in golden.items() for port, port_golden in ports.items()}
        _, digests = self.hashed(play, dict.fromkeys(names, (0, 0)))
        expected = {name: digests_of(port_golden) for name, port_golden in names.items()}
        different = {name: window for name in names if (window := digests[name].first_difference(expected[name])) is not None}
        if not different:
            return sum(port_golden.payloads.size for port_golden in names.values())
        ranges = {name: (window * WINDOW, (window + 1) * WINDOW) for name, window in different.items()}
        recordings, _ = self.hashed(play, ranges)
        for (dut, port), (first, last) in ranges.items():
            wanted = names[dut, port]
            compare(f"{dut}.{port}", wanted.payloads[first:last], np.asarray(wanted.cycles)[first:last], recordings[dut][port], first=first)
        raise MismatchError(f"{self.name}: windows of {', '.join(map('.'.join, ranges))} differ, but not when run again")

    def hashed(
        self,
        play: Play,
        windows: Mapping[tuple[str, str], tuple[int, int]],
        *,
        keep: Path | None = None,
        on_cycle: Callable[[int, float], None] | None = None,
    ) -> tuple[dict[str, dict[str, Recording]], dict[tuple[str, str], Digests]]:
        """As ``run``; of the designs and ports or boundaries in ``windows`` windows of beats are hashed, and only beats first <= i < last are recorded.

        Parameters
        ----------
        windows
            (first, last) by (design, port).
        on_cycle
            Hears of the progress of a plain bench: cycles, seconds.

        Raises
        ------
        MismatchError
            As ``run``; ``digests`` is there beside ``recordings``.
        """
        built = self._built or self.build()
        for given in (play.stimuli, play.ready, play.beats):
            self._check_names(((dut, port) for dut, ports in given.items() for port in ports), taps=False)
        self._check_names([*((fault.dut, fault.port) for fault in play.faults), *windows])
        folder = keep or Path(tempfile.mkdtemp(prefix="lutra-run-"))
        folder.mkdir(parents=True, exist_ok=True)
        try:
            expected = self._write(folder, play)
            for (dut, port), limits in windows.items():
                (folder / f"{dut}.{port}.window").write_bytes(window_setting(*limits))
            plusargs = [f"+max_cycles={play.max_cycles}", f"+drain={play.drain}"]
            simulator.run(built, folder, plusargs=plusargs, waves=self._waves, on_cycle=on_cycle)
            digests = {(dut, port): read_digests(folder / f"{dut}.{port}.digests") for dut, port in windows}
            recordings = {
                dut: {port: read_recording(folder / f"{about.name}.out", about.width) for port, about in ports.items()} for dut, ports in self._recorded.items()
            }
        finally:
            if keep is None:
                shutil.rmtree(folder, ignore_errors=True)
        counts = {f"{dut}.{port}": len(recording) for dut, ports in recordings.items() for port, recording in ports.items()}
        counts |= {f"{dut}.{port}": digest.beats for (dut, port), digest in digests.items()}
        short = [f"{name} {counts[name]} of {wanted}" for name, wanted in expected.items() if counts[name] < wanted]
        if short:
            error = MismatchError(f"{self.name}: after {play.max_cycles} cycles ports are short of beats: {', '.join(short)}")
            error.recordings, error.digests = recordings, digests  # type: ignore[attr-defined]
            raise error
        return recordings, digests

    def _check_names(self, names: Iterable[tuple[str, str]], *, taps: bool = True) -> None:
        for dut, port in names:
            known = self._recorded.get(dut, {}) if taps else self._duts[dut].ports if dut in self._duts else {}
            if port not in known:
                raise ValueError(f"{self.name} has no port {dut}.{port}")

    def _write(self, folder: Path, play: Play) -> dict[str, int]:
        expected = {}
        for name, dut in self._duts.items():
            for port, about in dut.ports.items():
                stimulus = play.stimuli.get(name, {}).get(port)
                count = 0
                if stimulus is not None:
                    if not about.is_input:
                        raise ValueError(f"{about.name} is an output and cannot have a stimulus")
                    count = write_stimulus(folder, about, stimulus)
                trace = play.ready.get(name, {}).get(port)
                if trace is not None:
                    if about.is_input or not about.has_ready:
                        raise ValueError(f"{about.name} takes no ready trace")
                    write_ready(folder, about, trace)
                expected[about.name] = play.beats.get(name, {}).get(port, count)
                (folder / f"{about.name}.expect").write_bytes(int(expected[about.name]).to_bytes(8, "big"))
        for fault in play.faults:
            fields = ((FAULT_KINDS.index(fault.kind) + 1, 4), (fault.bit, 4), (fault.beat, 8), (fault.cycles, 8))
            (folder / f"{fault.dut}.{fault.port}.fault").write_bytes(b"".join(value.to_bytes(size, "big") for value, size in fields))
        for file_name, contents in play.files.items():
            if isinstance(contents, Path):
                (folder / file_name).symlink_to(contents.resolve())
            else:
                (folder / file_name).write_bytes(contents.encode() if isinstance(contents, str) else contents)
        return expected
