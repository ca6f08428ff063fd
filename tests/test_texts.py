# SPDX-License-Identifier: Apache-2.0
"""Elaborated texts in the build cache: found again, made anew where damaged or described otherwise, made once by processes that race."""

import multiprocessing
import time
from pathlib import Path

import pytest

from lutra.cosim import simulator
from lutra.cosim.harness import Bench, Stimulus
from lutra.rtl.streams import Queue


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
    """The second one knows its ports and plays, though nothing of it was elaborated."""
    elaborated: list[int] = []
    elaborate = Queue.elaborate
    monkeypatch.setattr(Queue, "elaborate", lambda self, platform: elaborated.append(1) or elaborate(self, platform))  # type: ignore[func-returns-value]
    for hit in (False, True):
        bench = Bench("described", description={"depth": 3})
        bench.add("fifo", Queue(shape=16, depth=3))
        assert bench.build().hit is hit
        run = bench.run(stimuli={"fifo": {"input": Stimulus([5, 6])}}, beats={"fifo": {"output": 2}}, max_cycles=50)
        assert run["fifo"]["output"].payloads[:, 0].tolist() == [5, 6]
    assert len(elaborated) == 1
