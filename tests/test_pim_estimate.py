# SPDX-License-Identifier: Apache-2.0
"""PIM tokens as figures: the row bound, where every nanosecond goes, energy and pins by hand, GPT-3 XL against its bound, refusals."""

import time
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest

from lutra import api, pim
from lutra.cli import main
from lutra.hls_models.errors import ConfigError, ModelError
from lutra.hls_models.load import load_config
from lutra.hls_models.pim.config import PimConfig
from lutra.hls_models.pim.program import Command, MacroKind
from lutra.hls_models.pim.timing import load_timing
from lutra.mapping.catalogue import open_model
from lutra.mapping.pim.lower import lower
from lutra.mapping.pim.occupancy import occupancy
from lutra.mapping.pim.partition import partition
from lutra.mapping.pim.shape import GptShape
from lutra.schema import Report

GPT = load_config("pim-gpt", PimConfig)
SMALL = load_config("pim-small", PimConfig)
C = Command
AIM = load_timing("gddr6-aim")


def named(name: str) -> GptShape:
    shape = open_model(name)
    assert isinstance(shape, GptShape)
    return shape


def tiny(**sizes: Any) -> GptShape:
    base = {"name": "tiny", "hidden": 48, "layers": 3, "heads": 4, "head_dim": 12, "ffn": 192, "vocabulary": 300, "context": 1024}
    return GptShape.model_validate(base | sizes)


@cache
def token(name: str, context: int, refresh: bool, **changes: Any) -> pim.TokenTime:
    config = GPT.model_copy(update={"refresh": refresh, **changes})
    return pim.token_time(partition(named(name), config, tokens=context), load_timing(config.timing), context)


# the bound


def test_row_bound_of_gpt3_xl() -> None:
    """24 layers of 384 rows, 786 of the head, of 226 cycles; 1,024 tokens of keys and values fill 32 rows per layer."""
    shape = named("gpt3-xl")
    assert pim.row_cycles(GPT, AIM) == 56 + 63 * 2 + 12 + 32 == 226
    assert int(pim.bound_rows(shape, GPT, 1)) == 24 * 384 + 786 == 10_002
    assert pim.bound_rows(shape, GPT, 1024) == 10_002 + 24 * 32
    made = partition(shape, GPT, tokens=1024)
    assert pim.bound_cycles(made, AIM, 1024) == (10_002 + 24 * 32) * 226
    assert pim.bound_rows(named("gpt3-xl-24"), GPT, 1) > pim.bound_rows(shape, GPT, 1)


@pytest.mark.parametrize(("context", "limit"), [(1, 1.10), (1024, 1.20)])
def test_gpt3_xl_is_near_its_row_bound(context: int, limit: float) -> None:
    """One accumulator, no refresh, everything included; of all matrix rows alone at context 1."""
    found = token("gpt3-xl", context, False)
    bound = 10_002 * 226 if context == 1 else pim.bound_cycles(found.partition, AIM, context)
    assert 1 < found.cycles / bound <= limit
    program = found.program
    assert len(program.macros) == 8 and found.partition.config.accumulators_per_bank == 1
    assert found.counts[C.MAC] == occupancy(found.partition, context).total.commands
    assert found.counts[C.RDM] == found.counts[C.BIAS] > 0 and found.counts[C.WRA] > 0 and found.counts[C.WR] > 0


def refreshed_seconds() -> float:
    """CPU time of GPT-3 XL at context 1,024 with refresh: placement, program, cycles and figures."""
    begin = time.process_time()
    found = pim.token_time(partition(named("gpt3-xl"), GPT, tokens=1024), AIM, 1024)
    pim.report_of(found)
    seconds = time.process_time() - begin
    assert found.counts[C.REF] >= 8 * (found.cycles // AIM.cycles("tREFI") - 8)
    return seconds


def test_a_refreshed_token_of_gpt3_xl_is_quick() -> None:
    """1 s is the aim, held in the soak; 2 leave room for other processors."""
    assert refreshed_seconds() < 2


@pytest.mark.soak
def test_a_refreshed_token_of_gpt3_xl_takes_a_second_at_most(record_property: Callable[[str, object], None]) -> None:
    seconds = min(refreshed_seconds() for _ in range(3))
    record_property("seconds", round(seconds, 3))
    assert seconds <= 1


# where the time, the energy and the bytes go


@pytest.mark.parametrize(
    ("config", "context"),
    [
        (SMALL, 1),
        (SMALL, 77),
        (SMALL.model_copy(update={"refresh": False, "activate_in_register_mode": False}), 40),
        (SMALL.model_copy(update={"timing": "gddr6-7800", "accumulators_per_bank": 4}), 300),
        (GPT, 200),
    ],
)
def test_everything_sums_to_the_token(config: PimConfig, context: int) -> None:
    shape, timing = tiny(), load_timing(config.timing)
    found = pim.token_time(partition(shape, config, tokens=context), timing, context)
    report = pim.report_of(found)
    dram, layers, units, energy = report.dram, report.layers, report.units, report.energy
    assert dram and layers and units and energy and report.decode
    assert sum(dram.nanoseconds.values()) == pytest.approx(found.cycles * timing.clock_ns, rel=1e-12)
    for channel in found.run.channels:
        assert sum(pim.waits(channel, found.cycles).values()) == found.cycles
    assert sum(layer.cycles for layer in layers) == found.cycles == report.decode.cycles_per_token
    assert [layer.name for layer in layers] == ["embedding", "layers.0", "layers.1", "layers.2", "head"] and min(layer.cycles for layer in layers) > 0
    assert abs(units[0].busy_cycles + sum(units[0].stall_cycles.values()) - found.cycles) <= len(units[0].stall_cycles)
    assert 0 < units[1].busy_cycles < found.cycles
    assert sum(energy.parts.values()) == pytest.approx(energy.joules_per_token, rel=1e-12)
    assert (dram.nanoseconds.get("refresh", 0) > 0) == (config.refresh and dram.commands.get("REF", 0) > 0)
    macs = sum(use.commands for use in occupancy(found.partition, context).uses)
    assert dram.commands["MAC"] == macs and dram.idle_banks == occupancy(found.partition, context).total.idle_banks
    assert sum(dram.pin_bytes.values()) > 0 and dram.fits


def test_energy_and_pins_by_hand() -> None:
    """Every constant once: per bank 66.3 mW x 44.5 ns per activate, 3 x 438 mW x 1 ns per all-bank MAC, 5.5 pJ per bit, 263.75 and 305 mW throughout."""
    found = token("gpt2-small", 16, True)
    n, parts = found.counts, found.joules
    assert parts["activate"] == pytest.approx((n[C.ACT] + 16 * n[C.ACTA]) * 66.3e-3 * 44.5e-9)
    assert parts["mac"] == pytest.approx(n[C.MAC] * 3 * 0.438e-9)
    assert parts["read"] == pytest.approx(n[C.RD] * 438e-3 * 1.25e-9)
    assert parts["write"] == pytest.approx((n[C.WR] + 16 * n[C.WRA]) * 553e-3 * 1.25e-9)
    assert parts["standby"] == pytest.approx(8 * 263.75e-3 * found.seconds)
    assert parts["companion chip"] == pytest.approx(305e-3 * found.seconds)
    dram = pim.report_of(found).dram
    assert dram is not None
    wanted = {"buffer": n[C.GBW] * 32, "read-out": n[C.RDM] * 32, "bias": n[C.BIAS] * 32, "read": n[C.RD] * 32, "write": (n[C.WR] + n[C.WRA]) * 32}
    assert dram.pin_bytes == {name: count / 8 for name, count in wanted.items()}
    assert parts["pins"] == pytest.approx(8 * 8 * sum(dram.pin_bytes.values()) * 5.5e-12)
    assert found.row_hit_rate == 1 - (n[C.ACT] + n[C.ACTA]) / (n[C.MAC] + n[C.RD] + n[C.WR] + n[C.WRA])


def test_spans_lie_within_the_token() -> None:
    found = pim.token_time(partition(tiny(), SMALL, tokens=9), AIM, 9)
    spans = list(pim.spans_of(found.program, found.run))
    assert len(spans) == len(found.program.instructions)
    assert all(0 <= span.start <= span.done <= found.cycles for span in spans)
    assert {span.name.split()[0] for span in spans} == {"embedding", "layers.0", "layers.1", "layers.2", "head"}


def test_overlap_and_the_assumption_gain() -> None:
    made = partition(tiny(), SMALL, tokens=100)
    overlapped, in_turn = (pim.token_time(made, AIM, 100, overlap=overlap).cycles for overlap in (True, False))
    assert overlapped < in_turn
    assert lower(made, 99) != lower(made, 99, overlap=False)
    report, found = pim.estimate(tiny(), SMALL, context=100)
    without = {one.name: one.cycles_per_token_without for one in report.assumptions or ()}
    strict = SMALL.model_copy(update={"activate_in_register_mode": False})
    assert without["activate_in_register_mode"] == pim.token_time(partition(tiny(), strict, tokens=100), AIM, 100).cycles > found.cycles == overlapped
    assert without["overlap"] == in_turn
    buffers = sum(macro.kind == MacroKind.BUFFER for macro in found.program.macros[0])
    assert without["buffer_write_in_array_mode"] == found.cycles + 32 * buffers  # every one of them loads accumulators
    named_ones = {one.name for one in pim.estimate(tiny(), strict, context=100)[0].assumptions or ()}
    assert named_ones == set(without) - {"activate_in_register_mode"}


# contexts, channels, prompts


def test_sweeps_scaling_and_prompts() -> None:
    steps: list[tuple[int, int | None]] = []
    report, found = pim.estimate(tiny(), SMALL, context=64, prompt=3, sweep=[1, 64, 500], channels=[4, 1, 2], update=lambda *step: steps.append(step))
    assert [done for done, _ in steps] == list(range(1, 13)) and {total for _, total in steps} == {12}
    sweep, scaling, prefill = report.sweep, report.scaling, report.prefill
    assert sweep and scaling and prefill
    assert [point.context for point in sweep] == [1, 64, 500] and sweep[1].cycles_per_token == found.cycles
    assert sweep[0].cycles_per_token < sweep[1].cycles_per_token < sweep[2].cycles_per_token
    assert [point.channels for point in scaling] == [1, 2, 4] and scaling[0].efficiency == 1 and all(point.fits for point in scaling)
    assert scaling[2].efficiency == scaling[0].cycles_per_token / (4 * scaling[2].cycles_per_token)
    made = found.partition
    assert prefill.cycles == sum(pim.token_time(made, AIM, context).cycles for context in (1, 2, 3))


# refusals: one line that names what and by how much


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ModelError, match=r"gpt2-xl: with keys and values of 4096 tokens it needs 17294 rows per bank .* has 16384 .*: 227\.5 MiB too much"):
        pim.estimate(named("gpt2-xl"), GPT, context=4096)
    with pytest.raises(ModelError, match=r"gpt3-xl: .* however packed, .* GiB too much"):
        pim.estimate(named("gpt3-xl"), GPT, context=1, channels=[4])
    report, _ = pim.estimate(named("gpt2-medium"), GPT, context=1, channels=[1], ignore_capacity=True)
    assert report.scaling and not report.scaling[0].fits and report.dram and report.dram.fits
    with pytest.raises(ConfigError, match="channels must be 1 to 256, not 300"):
        pim.estimate(tiny(), SMALL, context=1, channels=[300])


def test_what_grows_past_its_room_is_refused() -> None:
    made = partition(tiny(), SMALL, tokens=10)
    with pytest.raises(ModelError, match=r"position must be 0 to 1023, not 1024: keys and values have room for 1024 tokens"):
        pim.token_time(made, AIM, 1025)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["gpt2-xl", "-c", "pim-gpt", "--context", "4096"], "MiB too much"),
        (["gpt3-xl", "-c", "pim-gtp", "--context", "1"], "pim-gpt"),
        (["gpt3-lx", "-c", "pim-gpt", "--context", "1"], "gpt3-xl"),
        (["gpt3-xl", "-c", "pim-gpt", "--context", "0"], "greater than or equal to 1"),
    ],
)
def test_the_command_refuses_in_one_line(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit:
        main(["estimate", *arguments])
    found = capsys.readouterr()
    assert exit.value.code == 2 and not found.out
    assert said in found.err and len(found.err.splitlines()) == 1, found.err


def test_the_api_gives_the_same() -> None:
    report = api.estimate("gpt2-small", "pim-gpt", context=16, refresh=False)
    assert isinstance(report, Report) and report.target == "pim" and report.clock_hz == 2e9
    assert report.decode and report.decode.cycles_per_token == token("gpt2-small", 16, False).cycles
