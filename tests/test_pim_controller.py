# SPDX-License-Identifier: Apache-2.0
"""Controller and channel of the PIM target: every command and handshake of the RTL against the channel model, its values and timing against the DRAM model."""

from collections.abc import Callable

import numpy as np
import pytest
from conftest import MASTER_SEED

from lutra.cosim.benches import pim_controller as pim
from lutra.cosim.dram.checker import Report
from lutra.cosim.harness import Bench, Fault
from lutra.hls_models.errors import ConfigError, MismatchError
from lutra.hls_models.pim.config import PimConfig
from lutra.hls_models.pim.program import Command, Macro, MacroKind
from lutra.hls_models.pim.rules import rules
from lutra.hls_models.pim.timing import load_timing
from lutra.rtl.pim.channel import Channel
from lutra.rtl.pim.macros import encode
from lutra.rtl.verilog import emit_rtlil

SETTINGS = {f"c{index}": setting for index, setting in enumerate(pim.configurations(MASTER_SEED))}
AIM = load_timing("gddr6-aim")


@pytest.fixture(scope="module")
def bench() -> Bench:
    return pim.bench(MASTER_SEED)


def check(bench: Bench, rng: np.random.Generator, count: int) -> tuple[int, Report]:
    """Runs a random program on every design; (commands compared, the DRAM model's report)."""
    cases = {name: pim.case(setting, rng, count) for name, setting in SETTINGS.items()}
    recordings = pim.play(bench, cases, SETTINGS)
    report, commands = Report(), 0
    for name, one in cases.items():
        commands += pim.check(name, SETTINGS[name], one, recordings[name])
        report.merge(pim.violations(SETTINGS[name], one, recordings[name]))
    return commands, report


@pytest.mark.parametrize("run", range(3))
def test_rtl_equals_the_models(bench: Bench, rng: np.random.Generator, run: int) -> None:
    commands, report = check(bench, rng, 60)
    assert commands > 8_000
    assert not report.violations, str(report.violations[0])


@pytest.mark.soak
def test_rtl_equals_the_models_over_a_million_commands(bench: Bench, rng: np.random.Generator, record_property: Callable[[str, object], None]) -> None:
    compared = 0
    while compared < 1_000_000:
        commands, report = check(bench, rng, 200)
        compared += commands
        assert not report.violations, str(report.violations[0])
    record_property("commands", compared)


@pytest.mark.soak
def test_a_channel_of_full_width(rng: np.random.Generator, record_property: Callable[[str, object], None]) -> None:
    """16 banks of 16 lanes: commands, timing and every value read out."""
    design, settings = pim.wide_bench(), {"c0": pim.WIDE}
    compared = 0
    for _ in range(6):
        one = pim.case(pim.WIDE, rng, 100)
        recordings = pim.play(design, {"c0": one}, settings)["c0"]
        pim.check("c0", pim.WIDE, one, recordings)
        assert not pim.violations(pim.WIDE, one, recordings).violations
        compared += 16 * len(recordings["readout"])
    record_property("values", compared)
    assert compared > 10_000


def test_twelve_phases_of_refresh(bench: Bench, rng: np.random.Generator) -> None:
    """The same programs under different first refreshes, two intervals and more each: refreshes fall elsewhere, every command stays the model's."""
    designs = [name for name, setting in SETTINGS.items() if setting.adjustable and setting.config.refresh]
    macros = {name: pim.program(SETTINGS[name], rng, 200) for name in designs}
    streams = set()
    for share in np.linspace(0.01, 1, -(-12 // len(designs))):
        phases = {name: int(share * SETTINGS[name].timing.cycles("tREFI")) for name in designs}
        cases = {name: pim.case(SETTINGS[name], rng, macros=macros[name], phase=phases[name]) for name in designs}
        recordings = pim.play(bench, cases, SETTINGS)
        for name, one in cases.items():
            pim.check(name, SETTINGS[name], one, recordings[name])
            got = pim.commands(SETTINGS[name].config, recordings[name]["command"])
            refreshes = got["cycle"][(got["command"] == Command.REF) & (got["cycle"] <= one.run.done)]
            assert len(refreshes) >= 2
            streams.add((name, *refreshes.tolist()))
    assert len(streams) >= 12


def test_full_rows_take_228_cycles(bench: Bench, rng: np.random.Generator) -> None:
    """64 MACs, read-out and a cleared accumulator per row: read-out and mode changes hide under precharge and activate (126 + 102 cycles)."""
    rows = 20
    macros = [Macro(MacroKind.BUFFER, count=64), Macro(MacroKind.MAC, count=64, load=1, read=1, times=rows, step=64)]
    one = pim.case(SETTINGS["c0"], rng, macros=macros, phase=60_000)
    recordings = pim.play(bench, {"c0": one}, SETTINGS)["c0"]
    pim.check("c0", SETTINGS["c0"], one, recordings)
    got = pim.commands(SETTINGS["c0"].config, recordings["command"])
    last = np.flatnonzero((got["command"] == Command.MAC) & (got["column"] == 63))
    np.testing.assert_array_equal(np.diff(got["cycle"][last]), np.full(rows - 1, 228))
    between = got[last[3] + 1 : last[3] + 8]
    assert [Command(int(kind)).name for kind in between["command"]] == ["PREA", "MODE", "RDM", "ACTA", "BIAS", "MODE", "MAC"]
    np.testing.assert_array_equal(between["cycle"] - got["cycle"][last[3]], [12, 13, 45, 46, 50, 51, 102])


@pytest.mark.parametrize("delta", [-1, 1])
def test_a_changed_gap_is_seen(bench: Bench, rng: np.random.Generator, delta: int) -> None:
    """One cycle more or less than the rule: another cycle than the model's; one less: the DRAM model names it, too. Every rule: test_dram_rules."""
    changed = {"c0": "tRCDMAC", "c1": "tRP from all banks"}
    macros = [Macro(MacroKind.BUFFER, count=8), Macro(MacroKind.MAC, count=8, load=1, read=1, times=4, step=64)]
    cases = {}
    for name, rule in changed.items():
        index = [one.name for one in rules(SETTINGS[name].config, SETTINGS[name].timing)].index(rule)
        cases[name] = pim.case(SETTINGS[name], rng, macros=macros, phase=60_000, rule=index, delta=delta)
    recordings = pim.play(bench, cases, SETTINGS)
    for name, one in cases.items():
        with pytest.raises(MismatchError, match=rf"{name}\.command\[\d+\]: .* cycle \d+, expected"):
            pim.compare_commands(name, one, pim.commands(SETTINGS[name].config, recordings[name]["command"]))
        assert bool(pim.violations(SETTINGS[name], one, recordings[name]).violations) == (delta < 0)


def test_faults_are_caught(bench: Bench, rng: np.random.Generator) -> None:
    """A fault at every port, each in a design of its own."""
    faults = [Fault("c9", "data", "flip", beat=1), Fault("c10", "readout", "delay", beat=1), Fault("c11", "command", "flip", beat=1)]
    macros = [Macro(MacroKind.BUFFER, count=4), Macro(MacroKind.MAC, row=1, count=4, load=1, read=1)]
    cases = {fault.dut: pim.case(SETTINGS[fault.dut], rng, macros=macros) for fault in faults}
    recordings = pim.play(bench, cases, SETTINGS, faults=faults)
    for fault in faults:
        with pytest.raises(MismatchError, match=rf"{fault.dut}\.{fault.port}\["):
            pim.check(fault.dut, SETTINGS[fault.dut], cases[fault.dut], recordings[fault.dut])


def test_a_wrong_cell_is_caught(bench: Bench, rng: np.random.Generator) -> None:
    name = next(name for name, setting in SETTINGS.items() if setting.cells)
    one = pim.case(SETTINGS[name], rng, macros=[Macro(MacroKind.BUFFER, count=4), Macro(MacroKind.MAC, row=1, count=4, load=1, read=1)])
    recordings = pim.play(bench, {name: one}, SETTINGS)[name]
    assert one.memory is not None
    one.memory.row(1)[0, 2] ^= 0x4000
    with pytest.raises(MismatchError, match=rf"{name}\.readout\[0\]: expected 0x"):
        pim.check(name, SETTINGS[name], one, recordings)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"count": 65}, "macro 0, MAC: count must be 1 to 64, not 65"),
        ({"count": 0}, "macro 0, MAC: count must be 1 to 64, not 0"),
        ({"entry": 63, "count": 2}, "macro 0, MAC: entry must be 0 to 62, not 63"),
        ({"row": 16383, "column": 60, "count": 5}, "macro 0, MAC: last position must be 1048572 to 1048575, not 1048576"),
        ({"times": 1 << 16}, "macro 0, MAC: times must be 1 to 65535, not 65536"),
        ({"read": 2}, "macro 0, MAC: read must be 0 to 1, not 2"),
        ({"accumulator": 1}, "macro 0, MAC: accumulator must be 0 to 0, not 1"),
        ({"kind": MacroKind.READ, "bank": 15, "banks": 2}, "macro 0, READ: banks must be 1 to 1, not 2"),
        ({"kind": MacroKind.WRITE, "column": 60, "count": 5}, "macro 0, WRITE: column must be 0 to 59, not 60"),
        ({"kind": MacroKind.SCATTER, "element": 16}, "macro 0, SCATTER: element must be 0 to 15, not 16"),
    ],
)
def test_refused_macros(change: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        encode(PimConfig(name="full"), [Macro(**({"kind": MacroKind.MAC} | change))])  # type: ignore[arg-type]


def test_macs_faster_than_their_adder_are_refused() -> None:
    fast = AIM.with_ns(tBL=0.5, tCCDS=0.5, tCCDL=0.5)
    with pytest.raises(ConfigError, match="tCCDL must be at least 2 clocks, those of a MAC unit's adder, not 1; nearest legal value 2"):
        emit_rtlil(Channel(PimConfig(name="full"), fast))
