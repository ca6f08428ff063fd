# SPDX-License-Identifier: Apache-2.0
"""Timing rules of the DRAM model: hand-made streams at slack 0 and one cycle off, with the published table's figures written out."""

import ast
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from lutra.cosim.dram.checker import Checker
from lutra.cosim.dram.commands import ALL_BANK, STREAM, Command, as_stream
from lutra.cosim.dram.rules import GROUP_BANKS, Scope
from lutra.cosim.dram.timing import read_timing
from lutra.hls_models.pim import program
from lutra.hls_models.pim.timing import TIMING_PRESETS, load_timing, timing_names

AIM = read_timing(TIMING_PRESETS / "gddr6-aim.yaml")
FIELDS = {"b": "bank", "r": "row", "c": "column"}


def stream(text, shift=0):
    """Commands from text such as ``0 ACT b3 r7, 36 RD b3 c1``; ``shift`` is added to the last one's cycle."""
    parsed = []
    for part in text.split(","):
        cycle, name, *fields = part.split()
        parsed.append({"cycle": int(cycle), "command": Command[name], **{FIELDS[field[0]]: int(field[1:]) for field in fields}})
        if name in ("ACT", "ACTA"):
            parsed[-1].setdefault("row", 0)
    parsed[-1]["cycle"] += shift
    return as_stream(parsed)


# Rules that the last command of each stream meets exactly, the bank named if it comes a cycle earlier, the stream. Cycles of 0.5 ns from the published table:
# RCD 36 / 28 / 56 / 25 / 86 / 66 / 48, RP 32, RAS 54, RC 89, RTP 12, CCD 2, BL 2, RRD 5 / 6, mode 32, write to precharge 6 + 2 + 33 = 41,
# write to read 6 + 2 + 9 = 17 or 19, buffer 1 + 2 + 9 = 12, bias 1 + 2 + 11 = 14, read to write 50 + 2 + 3 + 1 - 6 = 50 or 55, RFC 210.
TIGHT = [
    ("tRCD RD", 3, "0 ACT b3 r7, 36 RD b3 r7"),
    ("tRCD RD", 3, "0 ACTA r7, 36 RD b3"),
    ("tRCD WR", 3, "0 ACT b3 r7, 28 WR b3"),
    ("tRCD WR", -1, "0 ACTA r7, 28 WRA"),
    ("tRCD MAC", -1, "0 ACTA r7, 56 MAC c5"),
    ("tRCD MAC", 2, "0 ACT b2 r7, 56 MACS b2"),
    ("tRCD EWMUL", -1, "0 ACTA, 25 EWMUL"),
    ("tRCD AF", -1, "0 ACTA, 86 AF"),
    ("tRCD RDCP", 1, "0 ACT b1, 66 RDCP b1"),
    ("tRCD WRCP", 1, "0 ACT b1, 48 WRCP b1"),
    ("tRAS", 1, "0 ACT b1, 54 PRE b1"),
    ("tRAS", 6, "0 ACT b6, 54 PREA"),
    ("tRAS", 4, "0 ACTA, 54 PRE b4"),
    ("tRAS", -1, "0 ACTA, 54 PREA"),
    ("tRC", 1, "0 ACT b1, 54 PRE b1, 89 ACT b1"),
    ("tRC", -1, "0 ACTA, 54 PREA, 89 ACTA"),
    ("tRC", 1, "0 ACT b1, 54 PRE b1, 89 ACTA"),
    ("tRC", -1, "0 ACTA, 54 PREA, 89 REF"),
    ("tRP", 1, "0 ACT b1, 60 PRE b1, 92 ACT b1"),
    ("tRP", -1, "0 ACTA, 60 PREA, 92 ACTA"),
    ("tRP", 1, "0 ACT b1, 60 PRE b1, 92 PREA"),
    ("tRP", -1, "0 ACTA, 60 PREA, 92 REF"),
    ("tRP write", -1, "0 ACTA, 28 WRA, 101 ACTA"),
    ("tRP write", -1, "0 ACTA, 28 WRA, 101 REF"),
    ("tRTP", -1, "0 ACTA, 56 MAC, 68 PREA"),
    ("tRTP", 1, "0 ACT b1, 60 RD b1, 72 PRE b1"),
    ("tWR", 1, "0 ACT b1, 28 WR b1, 69 PRE b1"),
    ("tWR", 1, "0 ACT b1, 28 WR b1, 69 PREA"),
    ("tWR product", -1, "0 ACTA, 25 EWMUL, 64 PREA"),
    ("tRRDS", 4, "0 ACT b0, 5 ACT b4"),
    ("tRRDL", 1, "0 ACT b0, 6 ACT b1"),
    ("tCCDS read+tBL read+data bus", 4, "0 ACT b0, 5 ACT b4, 50 RD b0, 52 RD b4"),
    ("tCCDL read+tCCDS read", -1, "0 ACTA, 56 MAC, 58 MAC"),
    ("tCCDL read+tCCDS read+tBL read+data bus", -1, "0 MODE, 32 RDM, 34 RDM"),
    ("tCCDS write+tBL write+data bus", -1, "0 GBW, 2 GBW"),
    ("tCCDL write+tCCDS write+tBL write+data bus", 1, "0 ACT b0, 6 ACT b1, 50 WR b0, 52 WR b1"),
    ("tRTW", 1, "0 ACT b1, 36 RD b1, 86 WR b1"),
    ("tRTW", 1, "0 ACT b1, 36 RD b1, 91 GBW"),
    ("tRTW", -1, "0 MODE, 32 RDM, 37 BIAS"),
    ("tWTRS", 4, "0 ACT b0, 5 ACT b4, 50 WR b0, 67 RD b4"),
    ("tWTRL", 0, "0 ACT b0, 28 WR b0, 47 RD b0"),
    ("tWTRS buffer", 0, "0 ACT b0, 40 GBW, 52 RD b0"),
    ("tWTRL bias", -1, "0 MODE, 32 BIAS, 46 RDM"),
    ("write to MAC", 0, "0 ACT b0, 60 WR b0, 79 MACS b0"),
    ("buffer to MAC", -1, "0 ACTA, 60 GBW, 74 MAC"),
    ("copy turnaround", 1, "0 ACT b1, 66 RDCP b1, 68 GBW"),
    ("tMODE", -1, "0 MODE, 32 RDM"),
    ("tMODE", 2, "0 MODE, 32 ACT b2"),
    ("tRFC", -1, "0 REF, 210 ACTA"),
    ("tRFC others", -1, "0 REF, 210 REF"),
    ("tRFC others", -1, "0 REF, 210 GBW"),
    ("one command per cycle", 4, "0 ACT b0, 54 PRE b0, 55 ACT b4"),
    ("data bus", 1, "0 ACT b1, 50 WR b1, 57 GBW"),
]


@pytest.mark.parametrize(("names", "bank", "text"), TIGHT, ids=[f"{names}: {text}" for names, _, text in TIGHT])
def test_every_rule_at_slack_0_and_one_cycle_off(names, bank, text):
    checker = Checker(AIM)
    report = checker.check(stream(text))
    assert not report.violations
    assert all(report.coverage[name].slack == 0 for name in names.split("+"))
    early = checker.check(stream(text, -1))
    last = len(text.split(",")) - 1
    assert {(v.rule, v.cycle, v.slack, v.index) for v in early.violations} == {
        (name, int(text.split(",")[-1].split()[0]) - 1, -1, last) for name in names.split("+")
    }
    assert {v.bank for v in early.violations} <= {bank, int(stream(text)["bank"][-2]), -1} and bank in {v.bank for v in early.violations}


def test_every_rule_of_the_list_is_among_the_hand_made_streams():
    assert {rule.name for rule in Checker(AIM).rules} == {name for names, _, _ in TIGHT for name in names.split("+")} - {
        "one command per cycle",
        "data bus",
    } | {"bias to MAC"}


def test_bias_to_mac():
    slow = AIM.with_ns(tWTRL=100)  # the change of mode between them takes longer otherwise
    text = "0 ACTA, 60 MODE, 92 BIAS, 93 MODE, 295 MAC"
    report = Checker(slow).check(stream(text))
    assert not report.violations and report.coverage["bias to MAC"].slack == 0
    assert [(v.rule, v.cycle, v.slack) for v in Checker(slow).check(stream(text, -1)).violations] == [("bias to MAC", 294, -1)]


def test_four_activate_window():
    derived = replace(AIM.with_ns(tFAW=20), four_activate_window=True)  # four tRRD of the shipped preset are no less than its window
    text = "0 ACT b0, 5 ACT b4, 10 ACT b8, 15 ACT b12, 40 ACT b1"
    report = Checker(derived).check(stream(text))
    assert not report.violations and report.coverage["tFAW"].slack == 0
    (violation,) = Checker(derived).check(stream(text, -1)).violations
    assert (violation.rule, violation.bank, violation.cycle, violation.slack) == ("tFAW", 1, 39, -1)
    assert str(violation) == "cycle 39: ACT (command 4, bank 1) breaks tFAW by 1: ACT in cycle 0"
    assert not Checker(AIM).check(stream(text, -10)).violations  # the shipped preset has no window
    plain = read_timing(TIMING_PRESETS / "gddr6-1900.yaml")  # 32 cycles, tRRD 6 and 7
    text = "0 ACT b0, 6 ACT b4, 12 ACT b8, 18 ACT b12, 32 ACT b1"
    assert not Checker(plain).check(stream(text)).violations
    assert [v.rule for v in Checker(plain).check(stream(text, -1)).violations] == ["tFAW"]


def test_all_bank_activates_and_the_window():
    counted = replace(AIM.with_ns(tFAW=1000), four_activate_window=True, all_bank_exempt=False)
    text = ",".join(f"{100 * i} ACTA,{100 * i + 54} PREA" for i in range(5))
    assert [v.rule for v in Checker(counted).check(stream(text)).violations] == ["tFAW"]
    assert not Checker(replace(counted, all_bank_exempt=True)).check(stream(text)).violations


@pytest.mark.parametrize(
    ("rule", "bank", "text"),
    [
        ("row open", 3, "0 RD b3"),
        ("row open", 3, "0 ACT b2, 60 RD b3"),
        ("row open", -1, "0 ACT b2, 60 MAC"),
        ("row open", -1, "0 ACTA, 28 WRA, 200 MAC"),
        ("row open", 3, "0 ACTA, 54 PRE b3, 200 WR b3"),
        ("row right", -1, "0 ACTA r5, 60 MAC r6"),
        ("row right", 2, "0 ACT b2 r5, 60 RD b2 r4"),
        ("bank closed", 2, "0 ACT b2, 100 ACT b2"),
        ("bank closed", 2, "0 ACT b2, 100 ACTA"),
        ("bank closed", 2, "0 ACT b2, 100 REF"),
        ("register mode", -1, "0 RDM"),
        ("register mode", -1, "0 MODE, 50 MODE, 100 BIAS"),
        ("register mode", -1, "0 ACTA, 10 MODE, 100 MAC"),
        ("register mode", -1, "0 MODE, 100 GBW"),
        ("address", 16, "0 ACT b16"),
        ("address", 2, "0 ACT b2 r64"),
        ("address", 2, "0 ACT b2, 60 RD b2 c8"),
    ],
)
def test_states(rule, bank, text):
    (violation,) = Checker(AIM, rows=64, columns=8).check(stream(text)).violations
    assert (violation.rule, violation.bank, violation.cycle, violation.slack) == (rule, bank, int(text.split(",")[-1].split()[0]), -1)


def test_assumptions_are_the_checkers_options():
    text = "0 MODE, 32 ACTA, 90 PREA, 130 REF"
    assert not Checker(AIM).check(stream(text)).violations
    assert [v.command for v in Checker(AIM, activate_in_register_mode=False).check(stream(text)).violations] == ["ACTA", "PREA", "REF"]
    plain = read_timing(TIMING_PRESETS / "gddr6-7800.yaml")
    assert [v.rule for v in Checker(plain).check(stream("0 ACTA, 60 WRA")).violations] == ["all-bank write"]


def test_refreshes_due_and_postponed():
    checker = Checker(AIM, refresh_phase=100)  # tREFI 3333: the first is due at 100, and the ninth at 100 + 8 * 3333
    report = checker.check(stream("26764 REF"))
    assert not report.violations and report.coverage["refreshes behind"].slack == 0
    (violation,) = checker.check(stream("26764 REF", 1)).violations
    assert (violation.rule, violation.cycle, violation.slack) == ("refreshes behind", 26765, -1)
    assert not checker.check(stream("0 MODE"), end=26764).violations
    (violation,) = checker.check(stream("0 MODE"), end=26765).violations
    assert (violation.rule, violation.cycle, violation.slack) == ("refreshes behind", 26765, -1)
    early = ",".join([*(f"{210 * i} REF" for i in range(8)), "5000 REF"])  # the ninth, when the first is due
    checker = Checker(AIM, refresh_phase=5000)
    assert not checker.check(stream(early)).violations
    (violation,) = checker.check(stream(early, -1)).violations
    assert (violation.rule, violation.cycle, violation.slack) == ("refreshes ahead", 4999, -1)


def test_refreshes_do_not_drift():
    timing = AIM.with_ns(tREFI=1899.81)  # 3799.62 cycles
    cycles = np.arange(30_000) * 379962 // 100
    commands = np.zeros(len(cycles), STREAM)
    commands["cycle"], commands["command"] = cycles + 8 * 3799, Command.REF
    assert not Checker(timing, refresh_phase=0).check(commands).violations


def naive(checker, commands):
    """Every rule between two commands, pair by pair: (violations, least slack) per rule."""
    counts, least = Counter(), {}
    all_bank = np.isin(commands["command"], list(ALL_BANK))
    for i, after in enumerate(commands):
        for rule in checker.rules:
            if after["command"] not in rule.after:
                continue
            for j in range(i - 1, -1, -1):
                before = commands[j]
                shared = all_bank[i] or all_bank[j] or rule.scope is Scope.CHANNEL
                size = GROUP_BANKS if rule.scope is Scope.GROUP else 1
                if before["command"] in rule.before and (shared or before["bank"] // size == after["bank"] // size):
                    slack = int(after["cycle"] - before["cycle"]) - rule.cycles
                    counts[rule.name] += slack < 0
                    least[rule.name] = min(slack, least.get(rule.name, slack))
                    break
    return +counts, least


def random_stream(rng, size):
    commands = np.zeros(size, STREAM)
    commands["cycle"] = np.cumsum(rng.choice([1, 2, 5, 12, 40, 100], size))
    commands["command"] = rng.integers(0, len(Command), size)
    commands["bank"] = rng.integers(0, 16, size)
    commands["row"] = -1
    return commands


def test_whole_arrays_find_what_a_loop_finds(rng):
    checker = Checker(AIM, limit=10_000)
    for _ in range(5):
        commands = random_stream(rng, 300)
        commands["row"][np.isin(commands["command"], [Command.ACT, Command.ACTA])] = 0
        report = checker.check(commands)
        counts, least = naive(checker, commands)
        names = {rule.name for rule in checker.rules}
        assert {name: count for name, count in report.counts.items() if name in names} == counts
        assert {name: report.coverage[name].slack for name in names if report.coverage[name].checks} == least


def test_reports_add_up(rng):
    checker = Checker(AIM)
    whole, part = checker.check(stream("0 ACTA, 56 MAC")), checker.check(stream("0 ACTA, 57 MAC, 58 MAC"))
    whole.merge(part)
    row = next(row for row in whole.table() if row["rule"] == "tRCD MAC")
    assert row == {"rule": "tRCD MAC", "checks": 3, "least_slack": 0, "at_slack_0": 1, "violations": 0}
    assert whole.counts == {"tCCDS read": 1, "tCCDL read": 1} and whole.commands == 5


@pytest.mark.parametrize("name", timing_names())
def test_own_reading_of_the_presets(name):
    """Nanoseconds to clocks, by this model and by the one it checks."""
    ours, theirs = read_timing(TIMING_PRESETS / f"{name}.yaml"), load_timing(name)
    least = [key for key in theirs.parameter_names() if key != "tREFI"]
    assert {key: ours.cycles(key) for key in least} == {key: theirs.cycles(key) for key in least}
    interval = ours.ns["tREFI"] / ours.clock  # the one maximum: exact there, a whole number of clocks that is not more here
    assert interval - 1 < theirs.cycles("tREFI") <= interval
    assert (ours.all_bank_write, ours.four_activate_window, ours.all_bank_exempt) == (
        theirs.all_bank_write,
        theirs.four_activate_window,
        theirs.all_bank_exempt,
    )


def test_presets_that_are_none(tmp_path):
    path = tmp_path / "x.yaml"
    path.write_text("tRP: 3\n")
    with pytest.raises(ValueError, match="must have clock_ns and times"):
        read_timing(path)
    with pytest.raises(ValueError, match="tXX is not one of"):
        AIM.with_ns(tXX=1)
    with pytest.raises(ValueError, match="needs the fields cycle and command, not cycle"):
        as_stream(np.zeros(1, [("cycle", "i8")]))


def test_the_model_shares_nothing_but_the_codes(request):
    assert {command.name: command.value for command in Command} == {command.name: command.value for command in program.Command}
    folder = request.config.rootpath / "cosim" / "dram"
    allowed = {"numpy", "yaml", "dataclasses", "enum", "collections", "fractions", "pathlib", "typing", "amaranth"}
    files = sorted(folder.glob("*.py"))
    assert len(files) >= 7
    for path in files:
        for node in ast.walk(ast.parse(path.read_text())):
            modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module] if isinstance(node, ast.ImportFrom) else []
            outside = [str(module) for module in modules] if not isinstance(node, ast.ImportFrom) or not node.level else []
            assert all(module.split(".")[0] in allowed for module in outside), path
            assert "amaranth" not in {module.split(".")[0] for module in outside} or path.name == "cells.py"
