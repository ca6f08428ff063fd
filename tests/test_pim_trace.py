# SPDX-License-Identifier: Apache-2.0
"""Public AiM traces: the cycles that the open simulator is known to take, what blocks and what does not, and what the reader refuses.

The cycles were given by arkhadem/aim_simulator itself, with its GDDR6_AiM preset and example configuration; its micro traces are simple loops.
"""

import json
from pathlib import Path
from random import Random

import pytest

from lutra import api
from lutra.cli import main
from lutra.hls_models.errors import ConfigError, ModelError
from lutra.hls_models.pim.in_order import PLACES, TraceResult, run_trace
from lutra.hls_models.pim.timing import load_timing
from lutra.mapping.pim.trace import parse_trace

ALL = "0xffffffff"


def run(lines: list[str], *, refresh: bool = False, preset: str = "gddr6-aim") -> TraceResult:
    return run_trace(parse_trace("\n".join([*lines, "AiM EOC"])), load_timing(preset), refresh=refresh)


def rows(*patterns: str, count: int = 1024) -> list[str]:
    return [pattern.format(row=row, next=row + 1) for row in range(count) for pattern in patterns]


def everything() -> list[str]:
    """Every opcode once or a few times on the first four channels, as that simulator's all_isr does."""
    lines = [f"W MEM {c} 2 {8 + c}" for c in range(4)] + [f"W GPR {i}" for i in range(8)]
    lines += [f"AiM WR_SBK {i} {1 << c} 0 0" for i in range(2) for c in range(4)]
    lines += ["AiM WR_GB 2 2 15", "AiM WR_BIAS 4 15"]
    for name, fields in (("MAC_ABK", "2 15 0"), ("MAC_SBK", "2 15 0 0")):
        for broadcast in (1, 0):
            lines += [f"W CFR 0 {broadcast}", f"AiM {name} {fields}"]
    for groups in (1, 0):
        lines += [f"W CFR 1 {groups}", "AiM EWMUL 2 15 0"]
    lines += ["W CFR 2 1", "AiM AF 15", "AiM RD_MAC 8 15", "AiM RD_AF 12 15", "AiM EWADD 4 8 12", "AiM COPY_BKGB 2 15 0 0", "AiM COPY_GBBK 2 15 0 0"]
    lines += [f"AiM RD_SBK {20 + i} {1 << i // 2} 0 0" for i in range(8)]
    return [*lines, *(f"AiM WR_ABK {4 + c} {1 << c} 5" for c in range(4))]


def layer() -> list[str]:
    """One layer of GPT-3 XL: per chunk of 1,024 inputs the buffer, then bias, MACs and read-out of every row."""
    lines, row = ["W CFR 0 0"], 0
    for chunks, outputs in ((2, 48), (2, 16), (2, 64), (8, 16)):
        for _ in range(chunks):
            lines.append("AiM WR_GB 64 0 255")
            for _ in range(outputs):
                lines += ["AiM WR_BIAS 0 255", f"AiM MAC_ABK 64 255 {row}", "AiM RD_MAC 0 255"]
                row += 1
    return lines


KNOWN = {
    "all_isr": (everything, 689),
    "rdmac": (lambda: rows(f"AiM RD_MAC 8 {ALL}"), 3_106),
    "wrab": (lambda: rows("AiM WR_ABK 4 0x80000000 {row}"), 103_393),
    "ewmul": (lambda: rows(f"AiM EWMUL 64 {ALL} {{row}}"), 227_260),
    "macab": (lambda: rows(f"AiM MAC_ABK 64 {ALL} {{row}}"), 231_383),
    "bias_mac_rdmac_mac": (lambda: rows(f"AiM WR_BIAS 4 {ALL}", f"AiM MAC_ABK 64 {ALL} 0", f"AiM RD_MAC 4 {ALL}", f"AiM MAC_ABK 64 {ALL} 1"), 576_482),
    "buffer_copies": (lambda: rows(f"AiM WR_GB 64 0 {ALL}", f"AiM COPY_GBBK 64 {ALL} 0 {{row}}", f"AiM COPY_BKGB 64 {ALL} 8 {{row}}"), 637_890),
    "wrbias": (lambda: rows(f"AiM WR_BIAS 4 {ALL}"), 2_083),
    "bias_mac_af_rdaf": (lambda: rows(f"AiM WR_BIAS 4 {ALL}", f"AiM MAC_ABK 64 {ALL} 0", f"AiM AF {ALL}", f"AiM RD_AF 4 {ALL}"), 424_960),
    "gpt3xl_layer": (layer, 111_617),
}


@pytest.mark.parametrize("name", KNOWN)
def test_cycles_are_those_of_the_open_simulator(name: str) -> None:
    lines, cycles = KNOWN[name]
    assert run(lines()).cycles == cycles


def random_trace(seed: int) -> list[str]:
    """A mixture of everything on few or many channels, banks and rows."""
    pick = Random(seed)
    aim = ["WR_GB", "WR_BIAS", "RD_MAC", "RD_AF", "COPY_BKGB", "COPY_GBBK", "MAC_SBK", "MAC_ABK", "AF", "EWMUL", "WR_ABK", "SYNC", "EWADD"]
    plain = ["R", "W", "WR_SBK", "RD_SBK"]
    pool = pick.choice([aim + plain, aim + plain, aim, plain, [*plain, "MAC_SBK", "COPY_BKGB"]])
    pool = pick.sample(pool, pick.randint(1, len(pool)))
    masks = [pick.choice([0xFFFFFFFF, 0xFF, 1, 1 << 31, pick.getrandbits(32) | 1]) for _ in range(3)]
    banks, rows = pick.choice([2, 16]), pick.choice([2, 8, 200])
    lines = []
    for _ in range(pick.randint(5, 250)):
        name = pick.choice(pool)
        for _ in range(pick.choice([1, 1, 1, pick.randint(1, 20)])):
            size, mask, bank, row = pick.choice([1, 2, 64, pick.randint(1, 64)]), pick.choice(masks), pick.randrange(banks), pick.randrange(rows)
            fields = {
                "R": f"MEM {pick.choice([0, 0, 31])} {bank} {row}",
                "WR_GB": f"{size} 0 {mask}",
                "MAC_ABK": f"{size} {mask} {row}",
                "AF": f"{mask}",
                "WR_ABK": f"0 {1 << pick.choice([0, 31])} {row}",
                "WR_SBK": f"0 {mask} {bank} {row}",
                "WR_BIAS": f"0 {mask}",
                "MAC_SBK": f"{size} {mask} {bank} {row}",
                "EWADD": "1 0 1",
                "SYNC": "",
            }
            alike = {"W": "R", "EWMUL": "MAC_ABK", "RD_SBK": "WR_SBK", "RD_MAC": "WR_BIAS", "RD_AF": "WR_BIAS", "COPY_BKGB": "MAC_SBK", "COPY_GBBK": "MAC_SBK"}
            if name == "AF":
                lines.append(f"W CFR 2 {pick.randrange(3)}")
            lines.append(f"{'' if name in 'RW' else 'AiM '}{name} {fields[alike.get(name, name)]}")
    return lines


MIXED = {
    0: 2112, 1: 2476, 2: 10748, 3: 24721, 4: 43783, 5: 10357, 6: 2324, 7: 4723, 8: 5746, 9: 2584, 10: 3749, 11: 1504,
    12: 515, 13: 5085, 14: 721, 15: 13531, 16: 48267, 17: 50496, 18: 18814, 19: 24999, 20: 9061, 21: 4982, 22: 5575, 23: 25489,
}  # fmt: skip
"""Cycles of ``random_trace(seed)`` on the open simulator (commit 0f28a07, built as released: without assertions)."""


@pytest.mark.parametrize("seed", MIXED)
def test_mixtures_take_the_open_simulators_cycles(seed: int) -> None:
    assert run(random_trace(seed)).cycles == MIXED[seed]


def test_commands_and_row_hits_are_counted() -> None:
    found = run(rows("AiM MAC_ABK 64 0x3 {row}", count=3))
    assert (found.commands, found.channels) == ({"ACTA": 6, "PREA": 4, "MAC": 384}, 2)
    assert (found.accesses, found.hits) == (384, 378)


def test_a_row_of_macs_with_its_switch_takes_226_cycles() -> None:
    assert run(rows("AiM MAC_ABK 64 1 {row}", count=9)).cycles - run(rows("AiM MAC_ABK 64 1 {row}", count=8)).cycles == 226


def test_other_channels_are_not_waited_for() -> None:
    alone = rows("AiM MAC_ABK 32 1 {row}", count=6)
    both = [line for one in alone for line in (one, one.replace(" 1 ", " 2 "))]
    assert run(both).cycles <= run(alone).cycles + len(alone) * 32 + 8  # a queue that is full holds the host up


@pytest.mark.parametrize("waiting", ["AiM RD_MAC 0 1", "AiM SYNC"])
def test_blocking_requests_hold_the_host_up(waiting: str) -> None:
    """While one channel works, another gets nothing."""
    held = run(["AiM MAC_ABK 33 1 0", waiting, "AiM MAC_ABK 33 2 0"]).cycles
    free = run(["AiM MAC_ABK 33 1 0", "AiM MAC_ABK 33 2 0"]).cycles
    assert held > free + 56 + 60


def test_plain_writes_and_aim_requests_do_not_mix() -> None:
    """A queue takes AiM parts only when no plain request is queued: the host waits for the activates of the writes."""
    mixed = run([*(f"W MEM 31 {bank} 3" for bank in range(4)), "AiM MAC_ABK 1 1 0", "AiM MAC_ABK 1 2 0"]).cycles
    apart = run([*(f"W MEM 0 {bank} 3" for bank in range(4)), "AiM MAC_ABK 1 1 0", "AiM MAC_ABK 1 2 0"]).cycles
    assert mixed > apart


def test_a_row_that_an_activated_write_waits_for_stays_open() -> None:
    """An AiM request for another row of its bank waits; as that simulator takes it."""
    assert run(["R MEM 31 2 28", "R MEM 31 12 37", "W MEM 31 1 13", "AiM MAC_SBK 2 255 1 2"]).cycles == 225


MEANWHILE = "AiM AF 0x2"
"""Gives plain requests time: as there, EOC waits for answers under way, not for requests whose row is just being opened."""


def test_reads_are_answered_by_a_queued_write() -> None:
    many = [f"W MEM 0 0 {row}" for row in range(PLACES)]
    assert "RD" not in run([*many, "R MEM 0 0 0", MEANWHILE]).commands
    assert run(["R MEM 0 0 0", MEANWHILE, "AiM RD_AF 0 2"]).commands["RD"] == 1
    assert "RD" not in run(["R MEM 0 0 0"]).commands


def test_masks_count_channels_from_the_other_end_than_mem() -> None:
    for mask, activates in (("0x80000000", 1), ("0x1", 2)):
        found = run([f"AiM WR_SBK 0 {mask} 0 0", "R MEM 0 0 0", MEANWHILE, "AiM RD_AF 0 2"]).commands
        assert (found["ACT"], found["WR"], found["RD"]) == (activates, 1, 1)


@pytest.mark.parametrize("preset", ["gddr6-aim", "gddr6-1900", "gddr6-7800"])
def test_refreshes_come_at_row_boundaries_and_never_lag_far_behind(preset: str) -> None:
    timing = load_timing(preset)
    lines = rows("AiM MAC_ABK 64 1 {row}", count=400)
    found, without = run(lines, refresh=True, preset=preset), run(lines, preset=preset)
    refreshes = found.commands["REF"] / 32
    assert abs(refreshes - found.cycles / timing.cycles("tREFI")) < 1.5
    assert without.cycles + refreshes * timing.cycles("tRFC") - 500 < found.cycles < without.cycles + refreshes * (timing.cycles("tRFC") + 20) + 500


def test_refreshes_that_no_row_boundary_lets_in_are_postponed_eight_times() -> None:
    found = run([line for _ in range(400) for line in ["AiM MAC_ABK 64 1 7"]], refresh=True)
    assert found.cycles // load_timing("gddr6-aim").cycles("tREFI") - 9 <= found.commands["REF"] / 32


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (["AiM MAC_ABK 64 1"], r"1: expected 3 fields after AiM MAC_ABK \(opsize mask row\), not 2"),
        (["# comment", "", "AiM MAC_ABC 64 1 0"], r"3: expected an opcode \(.*\), not 'MAC_ABC'; nearest opcode: MAC_"),
        (["AiM"], "1: expected an opcode"),
        (["AiM WR_AFLUT 1"], "1: expected an opcode"),
        (["AiM MAC_ABK 64 0x1g 0"], r"1: expected a number \(decimal or 0x\) for mask, not '0x1g'"),
        (["AiM MAC_ABK 65 1 0"], "1: expected opsize from 1 to 64, not 65"),
        (["AiM MAC_ABK 64 0 0"], "1: expected mask from 0x1 to 0xffffffff, not 0"),
        (["AiM MAC_ABK 64 1 16384"], "1: expected row from 0 to 16383, not 16384"),
        (["AiM MAC_SBK 64 1 16 0"], "1: expected bank from 0 to 15, not 16"),
        (["AiM MAC_SBK 64 1 -1 0"], "1: expected bank from 0 to 15, not -1"),
        (["AiM WR_ABK 0 3 0"], r"1: expected a mask of one channel, not 0x3 \(2 channels\)"),
        (["AiM SYNC 1"], "1: expected nothing after AiM SYNC, not 1"),
        (["W CFR 3 0"], "1: expected register from 0 to 2, not 3"),
        (["W CFR 2 8"], "1: expected an activation function from 0 to 7, not 8"),
        (["R MEM 32 0 0"], "1: expected channel from 0 to 31, not 32"),
        (["R MEN 0 0 0"], "1: expected MEM, GPR or CFR after R, not 'MEN'"),
        (["aim EOC"], "1: expected AiM, R or W first, not 'aim'"),
        (["AiM MAC_ABK 1 1 0"], "2: expected AiM EOC before the end of the file"),
        ([], "1: expected AiM EOC before the end of the file"),
    ],
)
def test_a_malformed_line_is_named(lines: list[str], expected: str) -> None:
    with pytest.raises(ModelError, match=f"^t.trace:{expected}"):
        parse_trace("\n".join(lines), source="t.trace")


def test_the_usual_spellings_are_read() -> None:
    text = "AiM ISR_MAC_ABK 0x40 0XFF 10 # a comment\n\n#another\nR GPR 3\nR CFR 1\nAiM ISR_EOC   \nnot read any more"
    assert [request.count for request in parse_trace(text)] == [64, 1, 1, 1]


def test_the_command_prints_cycles_and_one_line_for_mistakes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "rows.trace"
    file.write_text("\n".join([*rows(f"AiM MAC_ABK 64 {ALL} {{row}}", count=4), "AiM EOC"]), encoding="utf-8")
    with pytest.raises(SystemExit) as stop:
        main(["pim-trace", str(file), "--no-refresh", "--json"])
    facts = json.loads(capsys.readouterr().out)
    assert (stop.value.code, facts["cycles"]) == (0, run(rows(f"AiM MAC_ABK 64 {ALL} {{row}}", count=4)).cycles)
    assert (facts["commands"]["MAC"], facts["row_hits"]["hits"]) == (32 * 256, 32 * 252)
    with pytest.raises(SystemExit) as stop:
        main(["pim-trace", str(file), "--preset", "gddr6-aim"])
    assert stop.value.code == 0 and "row hits" in capsys.readouterr().out
    for arguments, error in (([str(file), "--preset", "gdr6-aim"], "nearest preset: gddr6-aim"), ([str(tmp_path / "none")], "cannot be read")):
        with pytest.raises(SystemExit) as stop:
            main(["pim-trace", *arguments])
        printed = capsys.readouterr().err
        assert stop.value.code == 2 and error in printed and printed.count("\n") == 1
    with pytest.raises(ConfigError):
        api.pim_trace(file, "none")
