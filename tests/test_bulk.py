# SPDX-License-Identifier: Apache-2.0
"""Long runs: a bench without cocotb gives the same files, hashes of windows find what differs and where."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lutra.cosim import simulator
from lutra.cosim.benches import core
from lutra.cosim.core import CoreBench, CoreRun, Job, Turn
from lutra.cosim.core_windows import Excerpts, PayloadHashes
from lutra.cosim.harness import Bench, Fault, Play
from lutra.cosim.windows import WINDOW, Golden, digests_of
from lutra.hls_models.errors import ToolError
from lutra.hls_models.ternary import executor

RNG = np.random.default_rng(11)
ONE = core.small(RNG)


@pytest.fixture(scope="module")
def plain() -> CoreBench:
    bench = CoreBench({"c0": (ONE.spec, ONE.program.beats)}, plain=True)
    bench.build(optimization="-O0")
    return bench


@pytest.fixture
def job(rng: np.random.Generator) -> Job:
    """A prompt that fills half of the context, and the other half decoded."""
    shape = ONE.spec.shape
    return Job(ONE.program, [Turn(rng.integers(0, shape.vocabulary, shape.context // 2).tolist(), shape.context // 2)])


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*.out")}


def test_the_same_recordings_as_under_cocotb(plain: CoreBench, job: Job, tmp_path: Path) -> None:
    told: list[tuple[int, float]] = []
    run = plain.check({"c0": job}, folder=tmp_path / "plain", on_cycle=lambda cycles, seconds: told.append((cycles, seconds)))["c0"]
    under = CoreBench({"c0": (ONE.spec, ONE.program.beats)})
    under.build(optimization="-O0")
    other = under.check({"c0": job}, folder=tmp_path / "cocotb")["c0"]
    assert run.mismatch is None and other.mismatch is None
    assert (run.tokens, run.measured, run.words_compared) == (other.tokens, other.measured, other.words_compared)
    one, two = files(tmp_path / "plain"), files(tmp_path / "cocotb")
    assert one == two and one["c0.rows.out"]
    assert told[-1][0] >= run.measured[0]


def test_hashes_of_all_windows_agree(plain: CoreBench, job: Job) -> None:
    whole, hashed = (plain.check({"c0": job}, hashed=one)["c0"] for one in (False, True))
    assert hashed.mismatch is None and hashed.words_mismatched == 0
    assert (hashed.tokens, hashed.measured, hashed.words_compared) == (whole.tokens, whole.measured, whole.words_compared)
    assert whole.passes[0].streams and not hashed.passes[0].streams


@pytest.mark.parametrize("kind", ["flip", "drop", "delay"])
@pytest.mark.parametrize("boundary", ["rows", "codes", "weights"])
def test_a_disturbed_beat_is_found_in_its_window(plain: CoreBench, job: Job, boundary: str, kind: str) -> None:
    beat = WINDOW + 77
    run = plain.check({"c0": job}, faults=[Fault("c0", boundary, kind, beat=beat)], hashed=True)["c0"]
    assert run.mismatch is not None and run.mismatch.startswith(f"{boundary}[{beat}]: expected 0x")
    assert "expected cycle" in run.mismatch and "in pass" in run.mismatch
    assert run.words_mismatched


def assert_wrong_word_found(run: CoreRun) -> None:
    assert run.words_mismatched
    assert run.mismatch is not None and run.mismatch.startswith("values[0]: expected 0x")
    assert "layers.0.attention" in run.mismatch and "in pass 0 (position 0)" in run.mismatch


def test_a_wrong_golden_word_is_found_in_its_window(plain: CoreBench, job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    right = executor.attend

    def wrong(*args: object) -> np.ndarray:
        values = right(*args).copy()  # type: ignore[arg-type]
        values[0, 1] ^= 1
        return values

    monkeypatch.setattr(executor, "attend", wrong)
    messages = []
    for hashed in (False, True):
        run = plain.check({"c0": job}, hashed=hashed)["c0"]
        assert_wrong_word_found(run)
        messages.append(str(run.mismatch).partition(" (")[0])
    assert messages[0] == messages[1]  # but for the number of beats that differ, of all or of a window


def test_a_difference_that_does_not_come_again_is_told(plain: CoreBench, job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    run_bench = Bench.hashed

    def only_once(bench: Bench, play: Play, windows: Any, **options: Any) -> Any:
        first = all(limits == (0, 0) for limits in windows.values())
        return run_bench(bench, play if first else replace(play, faults=()), windows, **options)

    monkeypatch.setattr(Bench, "hashed", only_once)
    run = plain.check({"c0": job}, faults=[Fault("c0", "rows", "flip", beat=WINDOW + 5)], hashed=True)["c0"]
    assert run.words_mismatched
    assert run.mismatch is not None and run.mismatch.endswith("]: the window from here on differs, but not when run again")


def test_hashes_do_not_depend_on_the_pieces(rng: np.random.Generator) -> None:
    payloads = rng.integers(0, 1 << 32, (3 * WINDOW + 5, 3)).astype(np.uint32)
    cycles = np.cumsum(rng.integers(1, 1 << 20, len(payloads))) + (1 << 33)
    expected = digests_of(Golden(payloads, cycles))
    hashes = PayloadHashes()
    for piece in np.split(payloads, [1, 1000, 1025, 3000]):
        hashes("x", "label", piece)
    found = hashes.digests("x", cycles)
    assert expected.first_difference(found) is None and hashes.words["x"] == payloads.size
    for change in ((1500, 2), (1500, 0)):
        other = payloads.copy()
        other[change] ^= 1
        assert expected.first_difference(digests_of(Golden(other, cycles))) == 1
    swapped = payloads.copy()
    swapped[[2100, 2101]] = payloads[[2101, 2100]]
    assert expected.first_difference(digests_of(Golden(swapped, cycles))) == 2
    late = cycles.copy()
    late[-1] += 1
    assert expected.first_difference(digests_of(Golden(payloads, late))) == 3
    assert expected.first_difference(digests_of(Golden(payloads[:-1], cycles[:-1]))) == 3
    with pytest.raises(ValueError, match=r"payloads \(3077\) and cycles \(3076\) must be equally many"):
        digests_of(Golden(payloads, cycles[:-1]))


def test_excerpts_know_where_they_belong() -> None:
    excerpts = Excerpts({"x": (5, 9)})
    for label, first, last in (("a", 0, 4), ("b", 4, 7), ("c", 7, 12)):
        excerpts("x", label, np.arange(first, last, dtype=np.uint32)[:, None])
        excerpts("y", label, np.zeros((3, 1), np.uint32))
        excerpts.end_pass()
    np.testing.assert_array_equal(excerpts.words("x"), [[5], [6], [7], [8]])
    assert excerpts.origin("x", 6) == ("b", 2, 1) and excerpts.origin("x", 8) == ("c", 1, 2)
    assert excerpts.origin("y", 0) is None and len(excerpts.words("y")) == 0


def test_what_a_plain_bench_lacks_is_told(plain: CoreBench, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="waves are written under cocotb only"):
        CoreBench({"c0": (ONE.spec, ONE.program.beats)}, plain=True).build(waves=True)
    with pytest.raises(ToolError, match="Verilator could not build the bench"):
        simulator.build("broken", lambda: "module bench(input wire clk); syntax\n", plain=True)
    (tmp_path / "top").write_text("#!/bin/sh\necho 5 0.1\necho broken >&2\nexit 3\n")
    (tmp_path / "top").chmod(0o755)
    told: list[int] = []
    with pytest.raises(ToolError, match=r"the simulation failed \(it ended with 3\)\n5 0.1\nbroken"):
        simulator.run(simulator.Build(tmp_path, hit=True, plain=True), tmp_path, on_cycle=lambda cycles, _: told.append(cycles))
    assert told == [5]
