# SPDX-License-Identifier: Apache-2.0
"""Controller against the DRAM model's timing rules: random programs, coverage of every rule, every gap of the controller changed by one cycle."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import MASTER_SEED

from lutra.cosim.benches import dram, pim_controller
from lutra.cosim.dram.checker import Report
from lutra.cosim.dram.commands import ACTIVATES, as_stream
from lutra.hls_models.pim.rules import rules

RESULTS = Path(__file__).resolve().parent.parent / "docs" / "results"
COMMANDS = 1_000_000
TRACES_ONLY = {"tRCD EWMUL", "tRCD AF", "tRCD RDCP", "tRCD WRCP", "tWR product", "copy turnaround"}
"""Rules between commands that the controller never issues; those are met exactly by the hand-made streams of test_dram_checker."""
LATITUDE = {"refreshes behind", "refreshes ahead", "all-bank write"}
"""Not gaps: a refresh that is due is done at the next row, far before eight are; a device that has no all-bank write is never given one."""
COMMON = ["tRCDRD", "tRCDMAC", "tRCDWR", "tRTP to all banks", "tRAS to all banks", "tWR to all banks", "tRP from all banks", "tRP to refresh", "tRFC", "tMODE"]
"""Rules that bind in almost every program."""


def test_the_channel_models_streams_are_legal(rng: np.random.Generator) -> None:
    table = dram.settings()
    for name, one in dram.cases(table, rng, 60).items():
        report = dram.check_case(table[name], one)
        assert report.commands > 200
        assert not report.violations, f"{name}: {report.violations[0]}"


def test_a_rule_that_the_channel_model_did_not_know_is_found(rng: np.random.Generator) -> None:
    """The negative control of the test above: each of some commands a cycle too early."""
    setting = dram.settings()["aim"]
    one = dram.cases({"aim": setting}, rng, 60)["aim"]
    checker = dram.checker(setting, one.adjust[2])
    commands = one.run.commands.copy()
    late = np.flatnonzero(np.diff(commands["cycle"]) > 30)  # so long after the last command only because a rule wants it, or data did
    found = 0
    for index in late[:20] + 1:
        changed = commands.copy()
        changed["cycle"][index] -= 1
        found += bool(checker.check(as_stream(changed, rows_of=ACTIVATES)).violations)
    assert found >= 5


def test_gaps_changed_by_a_cycle_are_noticed(rng: np.random.Generator) -> None:
    """A sample; the soak changes every rule."""
    table = {f"c{index}": setting for index, setting in enumerate(pim_controller.configurations(MASTER_SEED)) if setting.adjustable and not setting.cells}
    wanted = [(str(rule), delta) for rule in rng.choice(COMMON, 4, replace=False) for delta in (-1, 1)]
    noticed = dram.changed(pim_controller.bench(MASTER_SEED), table, rng, wanted, rounds=6, macros=40)
    assert not [change for change in wanted if change not in noticed]
    assert all("breaks" in noticed[change] and " by 1: " in noticed[change] for change in wanted if change[1] < 0)
    assert all("in cycle" in noticed[change] for change in wanted if change[1] > 0)


def test_tables_name_rules_and_settings() -> None:
    names = {rule.name for setting in dram.settings().values() for rule in rules(setting.config, setting.timing)}
    assert set(dram.BINDS) | set(dram.VOID) | set(COMMON) <= names
    assert set(dram.BINDS.values()) <= set(dram.settings())


@pytest.mark.soak
def test_every_rule_is_met_exactly_over_a_million_commands(rng: np.random.Generator, record_property: Callable[[str, object], None]) -> None:
    table = dram.settings()
    reports = dram.coverage(dram.bench(), table, rng, COMMANDS)
    total = Report()
    for report in reports.values():
        total.merge(report)
    record_property("commands", total.commands)
    assert not total.violations, str(total.violations[0])
    rows = total.table()
    for row in rows:
        row["met_exactly_in"] = ", ".join(name for name, report in reports.items() if (c := report.coverage.get(str(row["rule"]))) and c.tight)
    RESULTS.mkdir(parents=True, exist_ok=True)
    settings = {name: {"preset": preset, "changed_ns": changes, "commands": reports[name].commands} for name, (preset, changes) in dram.DERIVED.items()}
    result = {"commands": total.commands, "violations": 0, "settings": settings, "rules": rows, "void": dram.VOID}
    (RESULTS / "dram-rules.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    missed = {str(row["rule"]) for row in rows if row["least_slack"] != 0} - TRACES_ONLY - LATITUDE
    assert not missed


@pytest.mark.soak
def test_every_gap_changed_by_a_cycle_is_noticed(rng: np.random.Generator, record_property: Callable[[str, object], None]) -> None:
    table = dram.settings()
    names = dict.fromkeys(rule.name for setting in table.values() for rule in rules(setting.config, setting.timing))
    wanted = [(name, delta) for name in names if name not in dram.VOID for delta in (-1, 1)]
    noticed = dram.changed(dram.bench(), table, rng, wanted, rounds=60)
    record_property("changes", len(wanted))
    RESULTS.mkdir(parents=True, exist_ok=True)
    rows = [{"rule": rule, "delta": delta, "noticed": noticed.get((rule, delta))} for rule, delta in wanted]
    (RESULTS / "dram-gaps.json").write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    assert not [change for change in wanted if change not in noticed]
