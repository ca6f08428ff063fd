# SPDX-License-Identifier: Apache-2.0
"""Elaborated texts in the build cache: found again, made anew where damaged or described otherwise, made once by processes that race."""

import multiprocessing
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from amaranth.hdl import Module
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

from lutra.cosim import simulator
from lutra.cosim.harness import Bench, Golden
from lutra.rtl.streams import Queue
from lutra.rtl.tap import connect

GOLDEN = Golden(np.zeros((0, 1), np.uint32), np.zeros(0, np.int64))


class Tapped(wiring.Component):
    """A queue with a boundary called ``inside``; Amaranth warns of one that is made and not elaborated."""

    def __init__(self) -> None:
        self._queue = Queue(shape=8, depth=2)
        super().__init__({"input": In(stream.Signature(8)), "output": Out(stream.Signature(8))})

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        m.submodules.queue = self._queue
        wiring.connect(m, wiring.flipped(self.input), self._queue.input)
        connect(m, "inside", self._queue.output, wiring.flipped(self.output))
        return m


@pytest.fixture
def private_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LUTRA_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_texts_are_kept_by_description(private_cache: Path) -> None:
    made: list[int] = []

    def make() -> dict[str, str]:
        made.append(1)
        return {"rtlil": f"text {len(made)}", "taps": "{}"}

    first = simulator.kept_texts(["design", {"lanes": 4}], make)
    assert simulator.kept_texts(["design", {"lanes": 4}], make) == first == {"rtlil": "text 1", "taps": "{}"}
    assert simulator.kept_texts(["design", {"lanes": 8}], make)["rtlil"] == "text 2"
    for entry in private_cache.iterdir():
        (entry / "rtlil").write_text("half a te")
    assert simulator.kept_texts(["design", {"lanes": 4}], make)["rtlil"] == "text 3"
    assert not list(private_cache.glob("*.*"))


def test_other_sources_are_another_text(private_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert simulator.kept_texts("design", lambda: {"rtlil": "before"}) == {"rtlil": "before"}
    monkeypatch.setattr(simulator, "_sources", lambda: "changed")
    assert simulator.kept_texts("design", lambda: {"rtlil": "after"}) == {"rtlil": "after"}


def _racer(log: Path) -> None:
    def make() -> dict[str, str]:
        with log.open("a") as file:
            file.write("made\n")
        time.sleep(0.3)
        return {"rtlil": "text"}

    assert simulator.kept_texts("design", make) == {"rtlil": "text"}


def test_racing_processes_make_a_text_once(private_cache: Path, tmp_path: Path) -> None:
    racers = [multiprocessing.get_context("spawn").Process(target=_racer, args=(tmp_path / "log",)) for _ in range(4)]
    for racer in racers:
        racer.start()
    for racer in racers:
        racer.join()
    assert [racer.exitcode for racer in racers] == [0] * 4
    assert (tmp_path / "log").read_text() == "made\n"
    assert not list(private_cache.glob("*.lock"))


def test_a_described_bench_is_elaborated_once(private_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second one has the same text and knows the boundary inside, though nothing of it was elaborated."""
    elaborated: list[int] = []
    elaborate = Tapped.elaborate
    monkeypatch.setattr(Tapped, "elaborate", lambda self, platform: elaborated.append(1) or elaborate(self, platform))  # type: ignore[func-returns-value]
    built: list[str] = []
    monkeypatch.setattr(simulator, "build", lambda text, verilog, **options: built.append(text))
    for _ in range(2):
        bench = Bench("described", description={"width": 8})
        bench.add("wire", Tapped())
        bench.build()
        with pytest.raises(ValueError, match=r"described has no port wire\.outside"):
            bench.verify(golden={"wire": {"input": GOLDEN, "inside": GOLDEN, "outside": GOLDEN}}, stimuli={}, max_cycles=1)
    assert len(elaborated) == 1 and built[0] == built[1] and "lutra_tap" in built[0]
