# SPDX-License-Identifier: Apache-2.0
"""Bench of the controller against the DRAM device model: random macro programs, every command checked for timing, every read-out for its value.

Settings whose gaps can be changed at run time show that a rule loosened by one cycle is caught by the device model, and one tightened by one is seen as a
difference in cycles. Where no shipped preset lets a rule bind, a derived one does.
"""

from functools import cache

import numpy as np

from lutra.cosim.benches import pim_controller
from lutra.cosim.benches.pim_controller import BenchChannel, Case, Setting
from lutra.cosim.dram.checker import Checker, Report
from lutra.cosim.dram.commands import ACTIVATES, Command, Stream, as_stream
from lutra.cosim.dram.timing import Timing, read_timing
from lutra.cosim.harness import Bench, Recording
from lutra.hls_models.errors import MismatchError
from lutra.hls_models.pim.config import CompanionConfig, PimConfig
from lutra.hls_models.pim.rules import rules
from lutra.hls_models.pim.timing import TIMING_PRESETS, load_timing

__all__ = ["BINDS", "DERIVED", "VOID", "bench", "cases", "caught", "changed", "check_case", "checker", "coverage", "recorded", "run", "seen", "settings"]

Settings = dict[str, Setting]

DERIVED: dict[str, tuple[str, dict[str, float]]] = {
    "aim": ("gddr6-aim", {}),
    "aim_arrays_only": ("gddr6-aim", {}),
    "fast_refresh": ("gddr6-1900", {}),
    "slow_refresh": ("gddr6-7800", {}),
    "long_columns": ("gddr6-aim", {"tCCDL": 60}),
    "long_bursts": ("gddr6-aim", {"tBL": 3.01, "tCCDS": 2.52, "tCCDL": 2.52}),
    "long_turns": ("gddr6-aim", {"tWTRS": 200, "tWTRL": 200}),
    "long_turns_between_groups": ("gddr6-aim", {"tWTRS": 200, "tWTRL": 220}),
    "long_turns_to_write": ("gddr6-aim", {"tTURN": 200}),
    "long_row_cycles": ("gddr6-aim", {"tRC": 200}),
    "late_data": ("gddr6-aim", {"tCL": 150, "tCWL": 100}),
}
"""Timing of each setting: a preset, and what is changed in it so that rules bind which no shipped preset lets bind (nanoseconds)."""

BINDS = {
    "tBL read": "long_bursts",
    "tBL write": "long_bursts",
    "tCCDS read": "slow_refresh",
    "tCCDS write": "slow_refresh",
    "tCCDL to all banks, read": "long_columns",
    "tCCDL from all banks, read": "long_columns",
    "tCCDL to all banks, write": "long_columns",
    "tCCDL from all banks, write": "long_columns",
    "tCCDL read": "fast_refresh",
    "tCCDL write": "fast_refresh",
    "read to bias": "long_turns_to_write",
    "read-out to write": "long_turns_to_write",
    "read-out to buffer write": "long_turns_to_write",
    "tWTRS": "long_turns",
    "tWTRL": "long_turns_between_groups",
    "tWTRL from all banks": "long_turns",
    "buffer write to read": "long_turns",
    "bias to read": "long_turns_between_groups",
    "buffer write to MAC": "long_turns",
    "write to MAC": "long_turns",
    "bias to MAC": "long_turns",
    "write data to bias": "late_data",
    "read data to read-out": "late_data",
    "tRP": "fast_refresh",
    "tRC": "long_row_cycles",
    "tRC from all banks": "long_row_cycles",
    "tRC to refresh": "long_row_cycles",
    "tRFC to the rest": "aim",
    "tFAW": "fast_refresh",
}
"""Where a rule of the controller is not hidden by another one; those not named here: in most settings."""

VOID = {
    "tMODE back": "the mode was changed for a command that waited tMODE; the next MODE comes after that one",
    "tWTRL to all banks": "a MAC stands between write and read-out, and waits as long for the write",
}
"""Rules that no program can meet exactly, and why."""


BEHIND = "refreshes behind"


@cache
def settings() -> Settings:
    """A channel per entry of ``DERIVED``, the first one of full width, the others of two bank groups."""
    found = {}
    for index, (name, (preset, changes)) in enumerate(DERIVED.items()):
        config = PimConfig(
            name=name,
            timing=preset,
            banks=8 if index else 16,
            lanes=8 if index else 16,
            columns=8 if index else 64,
            rows=64,
            accumulators_per_bank=2,
            activate_in_register_mode=name != "aim_arrays_only",
            refresh=name != "long_columns",  # a whole row of every bank takes more than eight intervals there
            companion=CompanionConfig(data_depth=64),
        )
        timing = load_timing(preset)
        found[name] = Setting(config, timing.with_ns(**changes) if changes else timing)
    return found


@cache
def raw_timing(preset: str, name: str | None = None) -> Timing:
    """The device model's own reading of a setting's preset."""
    changes = DERIVED[name][1] if name in DERIVED else {}
    return read_timing(TIMING_PRESETS / f"{preset}.yaml").with_ns(**changes)


@cache
def bench() -> Bench:
    """All settings in one Verilated top; no MAC units."""
    made = Bench("dram rules")
    for name, setting in settings().items():
        made.add(name, BenchChannel(setting))
    return made


def checker(setting: Setting, phase: int | None) -> Checker:
    """The device model's checker for a channel; ``phase``: cycle of its first refresh."""
    config = setting.config
    return Checker(
        raw_timing(config.timing, config.name),
        banks=config.banks,
        activate_in_register_mode=config.activate_in_register_mode,
        refresh_phase=phase if config.refresh else None,
        rows=config.rows,
        columns=config.columns,
    )


def recorded(setting: Setting, recording: Recording) -> Stream:
    """A recorded command port as a stream."""
    return as_stream(pim_controller.commands(setting.config, recording))


def check_case(setting: Setting, one: Case) -> Report:
    """Timing of the channel model's own stream for a case."""
    return checker(setting, one.adjust[2]).check(as_stream(one.run.commands, rows_of=ACTIVATES | {Command.MAC}))


def cases(table: Settings, rng: np.random.Generator, macros: int) -> dict[str, Case]:
    """A random case per setting.

    Cases whose back-pressure holds a single macro for longer than eight refresh intervals are drawn again: a controller refreshes between rows, so that only a
    companion chip that goes on can keep refreshes from falling behind.
    """
    found = {}
    for name, setting in table.items():
        while name not in found:
            one = pim_controller.case(setting, rng, macros)
            if BEHIND not in check_case(setting, one).counts:
                found[name] = one
    return found


def run(design: Bench, table: Settings, made: dict[str, Case]) -> dict[str, dict[str, Recording]]:
    """Plays cases at once; where a changed gap made a program longer than expected, what was recorded of it."""
    try:
        return pim_controller.play(design, made, table)
    except MismatchError as error:
        if not hasattr(error, "recordings"):
            raise
        found: dict[str, dict[str, Recording]] = error.recordings
        return found


def caught(setting: Setting, one: Case, recordings: dict[str, Recording]) -> Report:
    """What the device model says of one setting's stream."""
    return checker(setting, one.adjust[2]).check(recorded(setting, recordings["command"]))


def seen(setting: Setting, one: Case, recordings: dict[str, Recording]) -> str:
    """The first difference between RTL and channel model; empty if there is none."""
    try:
        pim_controller.compare_commands(setting.config.name, one, pim_controller.commands(setting.config, recordings["command"]))
    except MismatchError as error:
        return str(error)
    return ""


def coverage(design: Bench, table: Settings, rng: np.random.Generator, commands: int, macros: int = 400) -> dict[str, Report]:
    """Random programs on all settings until at least ``commands`` commands were checked: a report per setting. RTL must equal the channel model."""
    found = {name: Report() for name in table}
    while sum(report.commands for report in found.values()) < commands:
        made = cases(table, rng, macros)
        got = run(design, table, made)
        for name, one in made.items():
            if difference := seen(table[name], one, got[name]):
                raise MismatchError(difference)
            found[name].merge(caught(table[name], one, got[name]))
    return found


def changed(
    design: Bench, table: Settings, rng: np.random.Generator, wanted: list[tuple[str, int]], *, rounds: int, macros: int = 60
) -> dict[tuple[str, int], str]:
    """Changes rules of the controller by a cycle, one per setting and run, and says for each (rule, -1 or 1) how it was noticed.

    Loosened: the device model's first violation. Tightened: the first difference in cycles to the channel model. What was not noticed after ``rounds`` runs
    is not in the answer.
    """
    noticed: dict[tuple[str, int], str] = {}
    for turn in range(rounds):
        left = [change for change in wanted if change not in noticed]
        if not left:
            break
        made: dict[str, tuple[str, int, Case]] = {}
        for index, (name, setting) in enumerate(table.items()):
            names = [one.name for one in rules(setting.config, setting.timing)]
            here = [change for change in left if BINDS.get(change[0]) == name] or [change for change in left if change[0] in names and change[0] not in BINDS]
            if here:
                rule, delta = here[(turn + index) % len(here)]
                made[name] = rule, delta, pim_controller.case(setting, rng, macros, rule=names.index(rule), delta=delta)
        got = run(design, table, {name: one for name, (_, _, one) in made.items()})
        for name, (rule, delta, one) in made.items():
            if delta < 0:
                violations = caught(table[name], one, got[name]).violations
                text = str(violations[0]) if violations else ""
            else:
                text = seen(table[name], one, got[name])
            if text:
                noticed[rule, delta] = text
    return noticed
