# SPDX-License-Identifier: Apache-2.0
"""A channel's cycles: every command against the rule list itself, its order against the macro-commands, and the closed forms against every command."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from math import gcd

import numpy as np
import pytest

from lutra.hls_models.pim.bursts import BurstChannel
from lutra.hls_models.pim.channel import BEFORE, COMMANDS, DATA, SPACE, ChannelModel, ChannelRun, refresh_phase
from lutra.hls_models.pim.config import CompanionConfig, PimConfig
from lutra.hls_models.pim.mac import READ_LATENCY
from lutra.hls_models.pim.program import Command, Macro, MacroKind
from lutra.hls_models.pim.rules import BANKS_PER_GROUP, REGISTER_COMMANDS, ROW_COMMANDS, rules
from lutra.hls_models.pim.timing import Timing, load_timing, timing_names
from lutra.hls_models.streams import Ready

AIM = load_timing("gddr6-aim")
K, C = MacroKind, Command
KINDS = np.array([K.MAC] * 5 + [K.BUFFER] * 2 + [K.READ, K.WRITE, K.SCATTER, K.MODIFY], np.int64)


@dataclass(frozen=True)
class Case:
    """A random program with its surroundings."""

    config: PimConfig
    timing: Timing
    index: int
    macros: list[Macro]
    macro_offers: np.ndarray | None
    data_offers: np.ndarray | None
    ready: np.ndarray | None

    def model(self, unit: type[ChannelModel] = ChannelModel) -> ChannelModel:
        return unit(self.config, self.timing, self.index, self.macros, macro_offers=self.macro_offers, record=True)

    def run(self, unit: type[ChannelModel] = ChannelModel) -> tuple[ChannelModel, ChannelRun]:
        model = self.model(unit)
        return model, model.run(self.data_offers, self.ready)


def random_macro(rng: np.random.Generator, config: PimConfig) -> Macro:
    columns, accumulators = config.columns, config.accumulators_per_bank
    kind = K(int(rng.choice(KINDS)))
    row, column = int(rng.integers(50)), int(rng.integers(columns))
    if kind is K.MAC:
        step = int(rng.choice(np.array([columns, columns, 0, columns // 2, 8, columns + 8, 3 * columns // 4, rng.integers(columns)])))
        times = int(rng.choice(np.array([1, 2, 5, rng.integers(1, 80), min(100, 4 * columns // gcd(step, columns))])))
        load, read = (int(n) for n in rng.integers(0, accumulators + 1, 2))
        count = int(rng.choice(np.array([1, columns, rng.integers(1, columns + 1)])))
        column = int(rng.choice([0, column]))
        return Macro(kind, row, column, 0, count, load, read, int(rng.integers(accumulators)), times, step)
    if kind is K.BUFFER:
        return Macro(kind, row, count=int(rng.integers(1, columns + 1)), load=int(rng.integers(0, accumulators + 1)), open=bool(rng.integers(2)))
    if kind in (K.READ, K.WRITE):
        banks, count = int(rng.integers(1, config.banks + 1)), int(rng.integers(1, min(columns, 5) + 1))
        return Macro(kind, row, int(rng.integers(columns - count + 1)), count=count, bank=int(rng.integers(config.banks - banks + 1)), banks=banks)
    return Macro(kind, row, column, times=int(rng.integers(1, 5)), step=int(rng.choice([1, columns, 7])), element=int(rng.integers(config.lanes)))


def beats(macros: list[Macro]) -> int:
    taken = {K.BUFFER: lambda m: m.count, K.WRITE: lambda m: m.count * m.banks, K.SCATTER: lambda m: m.times, K.MODIFY: lambda m: m.times}
    return sum(taken[macro.kind](macro) for macro in macros if macro.kind in taken)


def random_case(rng: np.random.Generator) -> Case:
    config = PimConfig(
        name="test",
        channels=8,
        banks=int(rng.choice([1, 4, 8, 16])),  # type: ignore[arg-type]
        columns=int(rng.choice([16, 48, 64])),
        accumulators_per_bank=int(rng.choice([1, 4])),  # type: ignore[arg-type]
        activate_in_register_mode=bool(rng.random() < 0.6),
        refresh=bool(rng.random() < 0.85),
        refresh_phase=int(rng.integers(20_000)),
        stagger=bool(rng.integers(2)),
        companion=CompanionConfig(readout_depth=int(rng.choice([2, 4, 64])), data_depth=int(rng.choice([64, 128]))),
    )
    timing = load_timing(str(rng.choice(timing_names())))
    if rng.random() < 0.3:
        timing = timing.with_ns(tREFI=timing.ns("tRFC") + float(rng.choice([100, 300, 700])))
    if rng.random() < 0.2:
        timing = timing.with_ns(tMODE=float(rng.choice([0.5, 1, 5])))
    macros = [random_macro(rng, config) for _ in range(rng.integers(1, 7))]
    number = beats(macros)
    waits = np.where(rng.random(number) < 0.05, rng.integers(0, 3000, number), rng.integers(0, 3, number))
    return Case(
        config=config,
        timing=timing,
        index=int(rng.integers(8)),
        macros=macros,
        macro_offers=np.cumsum(rng.choice([0, 1, 500, 9000], len(macros) + 1)) if rng.random() < 0.3 else None,
        data_offers=np.cumsum(waits) if rng.random() < 0.7 else None,
        ready=random_ready(rng) if rng.random() < 0.5 else None,
    )


def random_ready(rng: np.random.Generator) -> np.ndarray:
    """A sink that now takes everything, now nothing, now something."""
    lengths = rng.integers(1, 4000, 12)
    return rng.random(lengths.sum()) < np.repeat(rng.choice([0, 0.02, 0.5, 1], len(lengths)), lengths)


def slack(case: Case, commands: np.ndarray) -> tuple[np.ndarray, int]:
    """(commands,) cycles by which each command could be earlier under every rule, and the number of pairs that were looked at; straight from the rules."""
    margin, pairs = np.full(len(commands), 1 << 30), 0
    kinds, cycles, banks = (commands[name].astype(np.int64) for name in ("command", "cycle", "bank"))
    for rule in rules(case.config, case.timing):
        places = {"channel": np.zeros(len(commands), np.int64), "group": banks // BANKS_PER_GROUP, "bank": banks}[rule.scope]
        for place in np.unique(places):
            before = np.flatnonzero(np.isin(kinds, rule.before) & (places == place))
            after = np.flatnonzero(np.isin(kinds, rule.after) & (places == place))
            rank = np.searchsorted(before, after) - rule.window
            after, rank = after[rank >= 0], rank[rank >= 0]
            margin[after] = np.minimum(margin[after], cycles[after] - cycles[before[rank]] - rule.cycles)
            pairs += len(after)
    return margin, pairs


def check_state(case: Case, commands: np.ndarray) -> None:
    """Modes, open rows and refreshes, command by command."""
    register, rows = False, [-1] * case.config.banks
    for command in commands:
        kind, bank = C(int(command["command"])), int(command["bank"])
        if kind is C.MODE:
            register = not register
        elif kind not in ROW_COMMANDS or not case.config.activate_in_register_mode:
            assert register == (kind in REGISTER_COMMANDS), command
        if kind in (C.ACT, C.ACTA):
            banks = range(case.config.banks) if kind is C.ACTA else [bank]
            assert all(rows[b] < 0 for b in banks), command
            for b in banks:
                rows[b] = int(command["row"])
        elif kind in (C.MAC, C.WRA):
            assert len(set(rows)) == 1 and rows[0] >= 0 and (kind is C.WRA or rows[0] == command["row"]), command
        elif kind in (C.RD, C.WR):
            assert rows[bank] >= 0, command
        elif kind is C.REF:
            assert set(rows) == {-1}, command
        if kind in (C.PREA, C.WRA):
            rows = [-1] * case.config.banks
        elif kind is C.PRE:
            rows[bank] = -1


def expected_order(case: Case) -> list[tuple[int, ...]]:
    """What every macro-command must bring about, refreshes, rows and modes aside: (command, bank, column, entry, accumulator)."""
    found: list[tuple[int, ...]] = []
    pending, columns = 0, case.config.columns
    for m in case.macros:
        for i in range(m.times):
            found += [(C.RDM, 0, 0, 0, a) for a in range(pending)]
            pending = m.read
            found += [(C.BIAS, 0, 0, 0, a) for a in range(m.load)]
            place = m.column + i * m.step
            span = [(bank, column) for bank in range(m.bank, m.bank + m.banks) for column in range(m.column, m.column + m.count)]
            if m.kind is K.MAC:
                found += [(C.MAC, 0, (place + k) % columns, m.entry + k, m.accumulator) for k in range(m.count)]
            elif m.kind is K.BUFFER:
                found += [(C.GBW, 0, 0, m.entry + k, 0) for k in range(m.count)]
            elif m.kind is K.READ:
                found += [(C.RD, bank, column, 0, 0) for bank, column in span]
            elif m.kind is K.WRITE:
                found += [(C.WR, bank, column, 0, 0) for bank, column in span]
            elif m.kind is K.SCATTER:
                found.append((C.WRA, 0, place % columns, m.element, 0))
            else:
                found += [(C.RD, bank, place % columns, 0, 0) for bank in range(case.config.banks)]
                found += [(C.WR, bank, place % columns, m.element, 0) for bank in range(case.config.banks)]
    return found + [(C.RDM, 0, 0, 0, a) for a in range(pending)]


def check(case: Case) -> int:
    """Every property that the contract asks of a run; returns its number of commands."""
    model, run = case.run()
    commands = run.commands
    margin, _ = slack(case, commands)
    cycles, kinds = commands["cycle"], commands["command"]
    assert (np.diff(cycles) > 0).all() and (margin >= 0).all()
    check_state(case, commands)
    skipped = (C.ACT, C.ACTA, C.PRE, C.PREA, C.MODE, C.REF)
    assert [(*map(int, c.tolist()[1:3]), *map(int, c.tolist()[4:])) for c in commands[~np.isin(kinds, skipped)]] == expected_order(case)
    # as early as possible: at its turn, at a rule, at its data or slot, or where the contract has it wait for a refresh
    early = np.diff(cycles, prepend=-1 << 30) > 1
    early &= margin > 0
    waited = np.isin(kinds, (C.GBW, C.WR, C.WRA, C.RD, C.RDM, C.REF, C.PREA))
    first = np.flatnonzero(early & ~waited)
    assert len(first) <= len(case.macros) + 1  # the first command of a macro has waited for its decoding
    # data and slots
    assert (run.data_taken >= run.data_accepted[: len(run.data_taken)] + 2).all()
    depth = case.config.companion.readout_depth
    reads = cycles[(kinds == C.RDM)]
    assert len(run.readouts_queued) == len(run.readouts_taken) >= len(reads)
    assert (run.readouts_taken > run.readouts_queued).all()
    assert (run.readouts_queued[depth:] > run.readouts_taken[: max(0, len(run.readouts_queued) - depth)]).all()
    # refresh: in time, and not before it is due
    refreshes = cycles[kinds == C.REF]
    due = refresh_phase(case.config, case.timing, case.index) + np.arange(len(refreshes)) * case.timing.cycles("tREFI")
    assert (refreshes >= due).all() and (case.config.refresh or not len(refreshes))
    assert sum(model.spent) == run.done == cycles[-1] and sum(model.counts) == len(commands)
    return len(commands)


def same(case: Case) -> int:
    """The closed forms equal the per-command path; returns the repetitions that were jumped over."""
    stepped, expected = case.run()
    jumped, found = case.run(BurstChannel)
    assert isinstance(jumped, BurstChannel)
    np.testing.assert_array_equal(found.commands, expected.commands)
    for name in ("data_accepted", "data_taken", "readouts_queued", "readouts_taken"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))
    assert (found.done, jumped.counts, jumped.spent) == (expected.done, stepped.counts, stepped.spent)
    return jumped.repetitions


def test_random_programs_keep_every_rule_and_waste_no_cycle(rng: np.random.Generator) -> None:
    assert sum(check(random_case(rng)) for _ in range(60)) > 12_000


def test_closed_forms_equal_every_command(rng: np.random.Generator) -> None:
    assert sum(same(random_case(rng)) for _ in range(120)) > 300


def test_closed_forms_meet_refreshes_in_every_phase() -> None:
    """A refresh that falls due in the very cycle of an activate included."""
    macros = [Macro(K.MAC, count=2, load=1, read=1, times=40, step=64)]
    for phase in range(400, 520):  # a row takes less than 120 cycles
        same(Case(PimConfig(name="test", refresh_phase=phase, stagger=False), AIM, 0, macros, None, None, None))


@pytest.mark.soak
@pytest.mark.parametrize("run", range(10))
def test_closed_forms_equal_every_command_of_many_programs(rng: np.random.Generator, run: int) -> None:
    assert sum(same(random_case(rng)) for _ in range(400)) > 1_000


@pytest.mark.soak
@pytest.mark.parametrize("run", range(10))
def test_many_random_programs_keep_every_rule(rng: np.random.Generator, run: int) -> None:
    assert sum(check(random_case(rng)) for _ in range(300)) > 60_000


def test_a_rule_that_the_model_misses_is_seen(rng: np.random.Generator) -> None:
    """The slack comes from the rules themselves: a model made of looser ones fails."""
    loose = AIM.with_ns(tRCDMAC=27.5)
    macros = [Macro(K.MAC, count=64, load=1, read=1, times=4, step=64)]
    case = Case(PimConfig(name="test", refresh=False), loose, 0, macros, None, None, None)
    _, run = case.run()
    margin, _ = slack(Case(case.config, AIM, 0, macros, None, None, None), run.commands)
    assert margin.min() == -1


def test_a_row_loop_hides_mode_changes_under_the_row_switch() -> None:
    """One accumulator per bank: two cycles over the 226 of a row, 15 without activates in register mode."""
    macros = [Macro(K.MAC, count=64, load=1, read=1, times=50, step=64)]
    for early, period in ((True, 228), (False, 241)):
        config = PimConfig(name="test", refresh=False, activate_in_register_mode=early)
        model = ChannelModel(config, AIM, 0, macros)
        cycles = model.run().commands
        assert set(np.diff(cycles["cycle"][cycles["command"] == C.ACTA])[1:]) == {period}


@pytest.mark.parametrize(("accumulators", "first", "last"), [(1, 226, 228), (4, 226, 228), (16, 226, 228)])
def test_batched_read_outs_cost_less(accumulators: int, first: int, last: int) -> None:
    """Rows per accumulator set in one batch: the mean period comes near the 226 of a bare row."""
    config = PimConfig(name="test", refresh=False, accumulators_per_bank=accumulators)  # type: ignore[arg-type]
    macros = [
        Macro(K.MAC, row=16 * batch + a, count=64, load=accumulators if a == 0 else 0, read=accumulators if a == accumulators - 1 else 0, accumulator=a)
        for batch in range(8)
        for a in range(accumulators)
    ]
    done = ChannelModel(config, AIM, 0, macros).run().done
    assert first <= done / (8 * accumulators) <= last + 8 * accumulators


def test_slots_of_the_contract_by_hand() -> None:
    """Macro accepted at 0, 1, ...; a beat accepted at 5; decoding; a slot that is released late."""
    config = PimConfig(name="test", refresh=False, companion=CompanionConfig(readout_depth=2))
    macros = [Macro(K.BUFFER, count=1), Macro(K.MAC, count=1, load=1, read=1), Macro(K.BUFFER, count=1), Macro(K.READ, count=3)]
    run = ChannelModel(config, AIM, 0, macros).run([5, 9], np.zeros(1000, bool))
    assert [(C(int(c["command"])).name, int(c["cycle"])) for c in run.commands] == [
        ("GBW", 7),  # beat + 2
        ("ACTA", 9),  # last command + 2
        ("MODE", 10),
        ("BIAS", 42),  # tMODE
        ("MODE", 43),
        ("MAC", 75),  # tMODE; tRCDMAC would be 65
        ("MODE", 77),  # last command + 2
        ("RDM", 109),
        ("MODE", 110),
        ("GBW", 142),
        ("PREA", 144),
        ("ACT", 176),
        ("RD", 212),
        ("RD", 1002),  # the first slot is released in 1000
        ("RD", 1003 + 1),  # tCCD; the second slot is released in 1001
        ("PRE", 1004 + 12),
    ]
    assert list(run.readouts_queued[:1]) == [109 + max(2, 1 + READ_LATENCY)] and list(run.readouts_queued[1:]) == [212 + 52, 1002 + 52, 1004 + 52]
    late = ChannelModel(config, AIM, 0, macros[:1], macro_offers=[50, 90]).run([5])
    assert int(late.commands["cycle"][0]) == 53  # accepted + 3


def test_refreshes_come_before_activates_and_while_data_are_awaited() -> None:
    config = PimConfig(name="test", refresh_phase=100, stagger=False)
    interval = AIM.cycles("tREFI")
    macros = [Macro(K.BUFFER, count=1, open=True), Macro(K.MAC, count=64, load=1, read=1, times=40, step=64)]
    late = 5 * interval
    run = ChannelModel(config, AIM, 0, macros).run([late])
    refreshes = run.commands["cycle"][run.commands["command"] == C.REF]
    due = 100 + interval * np.arange(len(refreshes))
    assert (refreshes[:5] - due[:5] < 100).all()  # nothing to do: at once, closing the row first
    assert (refreshes[5:] - due[5:] <= 228).all()  # at the next row
    assert run.data_taken[0] >= late + 2


def test_staggered_channels_refresh_at_other_times() -> None:
    config = PimConfig(name="test", channels=8, refresh_phase=7)
    assert [refresh_phase(config, AIM, index) for index in range(8)] == [7 + index * 3333 // 8 for index in range(8)]
    assert refresh_phase(config.model_copy(update={"stagger": False}), AIM, 5) == 7


def test_advance_stops_for_unknown_times_and_goes_on() -> None:
    config = PimConfig(name="test", refresh=False, companion=CompanionConfig(readout_depth=2))
    macros = [Macro(K.BUFFER, count=2), Macro(K.MAC, count=4, load=1, read=1, times=4, step=64)]
    whole = ChannelModel(config, AIM, 0, macros).run([10, 20], Ready())
    model = ChannelModel(config, AIM, 0, macros)
    seen = []
    while not model.advance():
        seen.append(model.waiting)
        if model.waiting == "data":
            model.data_times.append(int(whole.data_accepted[len(model.data_times)]))
        else:
            model.release_times.append(int(whole.readouts_taken[len(model.release_times)]))
    assert seen == ["data", "data", "readout", "readout"]
    np.testing.assert_array_equal(model.commands(), whole.commands)
    assert model.done == model.now == whole.done


def test_late_data_and_a_slow_sink_are_told_apart() -> None:
    config = PimConfig(name="test", refresh=False, companion=CompanionConfig(readout_depth=2))
    macros = [Macro(K.BUFFER, count=2), Macro(K.MAC, count=1, load=1, read=1, times=8, step=64)]
    model = ChannelModel(config, AIM, 0, macros)
    model.run([1000, 1000], np.zeros(9000, bool))
    waits = [sum(model.spent[reason::BEFORE]) for reason in (DATA, SPACE)]
    assert 950 < waits[0] < 1010 and 6500 < waits[1] < 9000


def test_too_few_beats_are_named() -> None:
    with pytest.raises(ValueError, match="more than 1 beats"):
        ChannelModel(PimConfig(name="test"), AIM, 0, [Macro(K.BUFFER, count=2)]).run([5])


def gpt3_xl() -> list[Macro]:
    """Blocks and head of GPT-3 XL on one of eight channels: 10,002 rows."""
    macros, row = [], 0
    for chunks, outputs in ((2, 48), (2, 16), (2, 64), (8, 16)) * 24 + ((2, 393),):
        for _ in range(chunks):
            macros += [Macro(K.BUFFER, row=row, count=64, open=True), Macro(K.MAC, row, count=64, load=1, read=1, times=outputs, step=64)]
            row += outputs
    return macros


def token_seconds() -> float:
    """CPU time of all channels of a token's matrices, with refresh."""
    config, macros = PimConfig(name="test"), gpt3_xl()
    start = time.process_time()
    ends = [BurstChannel(config, AIM, index, macros).run().done for index in range(config.channels)]
    seconds = time.process_time() - start
    assert max(ends) - min(ends) < 500 and 1.05 < min(ends) / (10_002 * 226) < 1.12
    return seconds


def commands_per_second(record: bool) -> float:
    """Of CPU time, on the per-command path."""
    model = ChannelModel(PimConfig(name="test"), AIM, 0, gpt3_xl()[:40], record=record)
    start = time.process_time()
    model.run()
    return sum(model.counts) / (time.process_time() - start)


def test_a_token_of_gpt3_xl_takes_well_under_a_second(record_property: Callable[[str, object], None]) -> None:
    seconds = token_seconds()
    record_property("seconds", round(seconds, 3))
    assert seconds < 3  # about 0.35 alone on a core; machines under load differ


@pytest.mark.soak
def test_a_token_of_gpt3_xl_takes_a_second_at_most(record_property: Callable[[str, object], None]) -> None:
    seconds = min(token_seconds() for _ in range(3))
    record_property("seconds", round(seconds, 3))
    assert seconds <= 1


def test_the_reference_path_steps_commands_quickly(record_property: Callable[[str, object], None]) -> None:
    rate = commands_per_second(record=True)
    record_property("commands_per_second", round(rate))
    assert rate > 2e5  # about a million alone on a core; machines under load differ


@pytest.mark.soak
@pytest.mark.parametrize("record", [False, True])
def test_the_reference_path_steps_half_a_million_commands_a_second(record: bool, record_property: Callable[[str, object], None]) -> None:
    rate = max(commands_per_second(record) for _ in range(3))
    record_property("commands_per_second", round(rate))
    assert rate >= 5e5


def test_commands_have_a_compact_form() -> None:
    assert COMMANDS.itemsize == 19
