# SPDX-License-Identifier: Apache-2.0
"""Timing presets and the rule list: published figures, sources, contradictions refused, and which rules there are."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from lutra.hls_models.errors import ConfigError
from lutra.hls_models.pim.config import PimConfig
from lutra.hls_models.pim.program import Command
from lutra.hls_models.pim.rules import CONTROLLER, Rule, gaps, rules
from lutra.hls_models.pim.timing import OURS, TIMING_PRESETS, Timing, load_timing, timing_names

CONFIG = PimConfig(name="test")
# cycles of 0.5 ns as the open AiM simulator publishes them
AIM = {
    "tCL": 50, "tCWL": 6, "tBL": 2, "tCCDS": 2, "tCCDL": 2, "tRCDRD": 36, "tRCDWR": 28, "tRCDMAC": 56, "tRCDEWMUL": 25, "tRCDAF": 86, "tRCDRDCP": 66,
    "tRCDWRCP": 48, "tRP": 32, "tRAS": 54, "tRC": 89, "tWR": 33, "tRTP": 12, "tWTRS": 9, "tWTRL": 11, "tRRDS": 5, "tRRDL": 6, "tMODE": 32,
}  # fmt: skip


def test_gddr6_aim_is_the_published_table() -> None:
    timing = load_timing("gddr6-aim")
    assert {name: timing.cycles(name) for name in AIM} == AIM
    assert (timing.four_activate_window, timing.all_bank_write, timing.ours()) == (False, True, [])


@pytest.mark.parametrize("name", timing_names())
def test_every_number_has_a_source(name: str) -> None:
    timing = load_timing(name)
    assert timing.name == name
    assert all(len(timing.sources[getattr(timing, parameter).source]) > 20 for parameter in Timing.parameter_names())


def test_plain_gddr6_has_the_two_published_refresh_rates_and_marks_what_is_ours() -> None:
    found = {name: (round(t.ns("tRFC")), round(t.ns("tREFI") / 1000, 1)) for name in ("gddr6-1900", "gddr6-7800") if (t := load_timing(name))}
    assert found == {"gddr6-1900": (120, 1.9), "gddr6-7800": (83, 7.8)}
    for name in found:
        assert {"tRCDMAC", "tMODE", "tCLREG", "tCWLGB"} <= set(load_timing(name).ours())
        assert load_timing(name).four_activate_window


def test_cycles_are_rounded_up() -> None:
    timing = load_timing("gddr6-aim")
    assert [timing.with_ns(tRTP=ns).cycles("tRTP") for ns in (5.9, 6.0, 6.0001, 6.1)] == [12, 12, 13, 13]


@pytest.mark.parametrize(
    ("changes", "rule"),
    [
        ({"tRC": 40}, r"tRC must be at least tRAS \+ tRP \(43 ns\), not 40; nearest legal value 43"),
        ({"tRAS": 15}, r"tRAS must be at least tRCDRD \+ tBL \(19 ns\), not 15; nearest legal value 19"),
        ({"tFAW": 1.5}, r"tFAW must be at least tRRDS \(2.5 ns\), not 1.5"),
        ({"tREFI": 105}, r"tREFI must be above tRFC \(105 ns\), not 105"),
        ({"tREFI": 105.4}, r"tREFI must be above tRFC \(105 ns\), not 105.4 \(210 clocks and 210\)"),
        ({"tCCDL": 0.4}, r"tCCDL must be at least tCCDS \(1 ns\), not 0.4"),
        ({"tWTRL": 3}, r"tWTRL must be at least tWTRS \(4.5 ns\), not 3"),
        ({"tRRDL": 1}, r"tRRDL must be at least tRRDS \(2.5 ns\), not 1"),
        ({"tBL": 0}, r"tBL must be at least one clock \(0.5 ns\), not 0"),
    ],
)
def test_a_preset_that_contradicts_itself_is_refused(changes: dict[str, float], rule: str) -> None:
    with pytest.raises(ValidationError, match=rule):
        load_timing("gddr6-aim").with_ns(**changes)


def test_a_clock_that_is_longer_than_refreshes_is_refused() -> None:
    timing = load_timing("gddr6-aim").model_dump()
    with pytest.raises(ValidationError, match=r"tREFI must be above tRFC \(105 ns\), not 1666.5 \(0 clocks and 1\)"):
        Timing.model_validate(timing | {"clock_ns": 5000})
    with pytest.raises(ValidationError, match=r"greater than or equal to 0\.01"):
        Timing.model_validate(timing | {"clock_ns": 1e-300})


def test_rounding_of_a_published_table_is_no_contradiction() -> None:
    assert load_timing("gddr6-aim").with_ns(tRC=42.6).cycles("tRC") == 86


def test_files_are_read_and_refused_in_one_line(tmp_path: Path) -> None:
    text = (TIMING_PRESETS / "gddr6-aim.yaml").read_text(encoding="utf-8")
    file = tmp_path / "mine.yaml"
    file.write_text(text.replace("tRC: {ns: 44.5", "tRC: {ns: 30"), encoding="utf-8")
    with pytest.raises(ConfigError, match=r"mine.yaml:\d+: tRC must be at least tRAS \+ tRP") as found:
        load_timing(file)
    assert "\n" not in str(found.value)
    for old, new, error in (
        ("tMODE: {ns: 16", "tMOD: {ns: 16", r"tMOD: unknown key; .*tMODE \(missing\)"),
        ("tRP: {ns: 16, source: aim}", "tRP: {ns: 16, source: him}", r"must be one of aim, table, latency, not 'him'"),
        ("tRP: {ns: 16, source: aim}", "tRP: {ns: -1, source: aim}", "tRP.ns: must be at least 0"),
        ("tRP: {ns: 16, source: aim}", "tRP: 16", "tRP"),
    ):
        assert old in text
        file.write_text(text.replace(old, new), encoding="utf-8")
        with pytest.raises(ConfigError, match=error):
            load_timing(file)
    with pytest.raises(ConfigError, match="nearest preset: gddr6-7800"):
        load_timing("gddr6-780")


def largest(listed: tuple[Rule, ...], before: Command, after: Command) -> int:
    return max((cycles for (b, a, _), cycles in gaps(listed).items() if (b, a) == (before, after)), default=0)


def test_rules_of_a_row_of_macs() -> None:
    listed = rules(CONFIG, load_timing("gddr6-aim"))
    c = Command
    chain = [(c.ACTA, c.MAC, 56), (c.MAC, c.MAC, 2), (c.MAC, c.PREA, 12), (c.PREA, c.ACTA, 32), (c.ACTA, c.PREA, 54), (c.MODE, c.RDM, 32), (c.RDM, c.BIAS, 5)]
    assert [largest(listed, before, after) for before, after, _ in chain] == [cycles for *_, cycles in chain]
    assert 56 + 63 * 2 + 12 + 32 == 226  # one row with its switch, as that simulator takes
    assert largest(listed, c.RD, c.WR) == 50 and largest(listed, c.WRA, c.ACTA) == 6 + 2 + 33 + 32


def test_the_controller_gets_its_own_commands_only() -> None:
    timing = load_timing("gddr6-1900")
    own, all_of_them = rules(CONFIG, timing), rules(CONFIG, timing, traces=True)
    assert {kind for rule in own for kind in (*rule.before, *rule.after)} == set(CONTROLLER)
    assert {kind for rule in all_of_them for kind in rule.after} == set(Command)
    assert len({rule.name for rule in all_of_them}) == len(all_of_them)
    assert any(rule.window == 4 and rule.cycles == timing.cycles("tFAW") for rule in own)
    assert not any(rule.window > 1 for rule in rules(CONFIG, load_timing("gddr6-aim")))


def test_rules_of_ours_are_marked() -> None:
    marked = {rule.name for rule in rules(CONFIG, load_timing("gddr6-aim"), traces=True) if rule.ours}
    assert {"buffer write to MAC", "bias to MAC", "tRFC to the rest", "copy holds its group"} <= marked
    assert OURS == "ours"


def test_gaps_leave_out_what_a_wider_rule_covers() -> None:
    listed = (
        Rule("wide", (Command.ACT,), (Command.ACT,), "channel", 5),
        Rule("narrow", (Command.ACT,), (Command.ACT,), "group", 5),
        Rule("longer", (Command.ACT,), (Command.ACT,), "bank", 9),
    )
    assert gaps(listed) == {(Command.ACT, Command.ACT, "channel"): 5, (Command.ACT, Command.ACT, "bank"): 9}
