# SPDX-License-Identifier: Apache-2.0
"""Whole programs on the RTL of PIM systems: matrices of many sizes, tokens of small GPTs; values bit for bit, cycles at every command, refresh on."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from lutra.cosim import pim
from lutra.cosim.harness import Fault
from lutra.cosim.pim import PimBench, PimRun
from lutra.hls_models.errors import MismatchError
from lutra.hls_models.load import load_config
from lutra.hls_models.pim.config import PimConfig
from lutra.hls_models.pim.program import Command
from lutra.hls_models.pim.system import SystemModel
from lutra.hls_models.pim.timing import load_timing
from lutra.mapping.pim.gemv import Gemv, gemv
from lutra.mapping.pim.golden import Golden
from lutra.mapping.pim.lower import lower
from lutra.mapping.pim.model import GptModel
from lutra.mapping.pim.partition import partition
from lutra.mapping.pim.shape import GptShape
from lutra.mapping.pim.weights import cells

SMALL = load_config("pim-small", PimConfig)
ROWS = 64
EDGES = ((1, 1), (1, 1500), (700, 1), (3, 1025), (8, 1024), (9, 1023), (33, 2049))
"""Outputs and inputs; a buffer, which is a row, holds 1,024 inputs."""
REFRESHES = 8
"""Different first refreshes at least, of every sample."""


def system(config: PimConfig) -> PimBench:
    made = PimBench(config, load_timing(config.timing), rows=ROWS)
    made.build()
    return made


def changed(**changes: Any) -> PimConfig:
    return PimConfig.model_validate(SMALL.model_dump() | changes)


@pytest.fixture(scope="session")
def small() -> PimBench:
    return system(SMALL)


# one matrix


def drawn_sizes(rng: np.random.Generator, count: int) -> list[tuple[int, int]]:
    """Outputs and inputs; most are odd in some way, one in four is wider than a row."""
    found: list[tuple[int, int]] = []
    while len(found) < count:
        outputs = int(np.exp(rng.uniform(0, 6)))
        inputs = int(rng.integers(1025, 2500)) if rng.random() < 0.25 else int(np.exp(rng.uniform(0, 6.9)))
        if outputs * inputs <= 100_000:
            found.append((outputs, inputs))
    return found


def product(bench: PimBench, rng: np.random.Generator, outputs: int, inputs: int, *, any_bits: bool = False) -> tuple[Gemv, np.ndarray]:
    """A program and the contents of the banks. ``any_bits``: weights of any pattern, NaNs and infinities with them."""
    made = gemv(inputs, outputs, bench.config)
    held = made.cells(rng.standard_normal((outputs, inputs)), rng.standard_normal(inputs), rng.standard_normal(outputs))
    if any_bits:
        end = made.matrix.chunks[-1]
        weights = held[:, :, : (end.position(0) // bench.config.columns) * bench.config.columns]
        weights[...] = np.where(rng.random(weights.shape) < 0.02, rng.integers(0, 1 << 16, weights.shape), weights).astype(np.uint16)
    return made, held


def phase_within(bench: PimBench, made: Gemv, rng: np.random.Generator) -> int:
    """A first refresh of channel 0 at any cycle of a program's first two thirds; behind the last activate there is none."""
    return int(rng.integers(3, SystemModel(bench.config, bench.timing, made.program).run().cycles * 2 // 3))


def refreshes(run: PimRun) -> int:
    return sum(channel.counts[Command.REF] for channel in run.system.channels)


def check(run: PimRun) -> None:
    assert run.cycles == run.predicted
    assert not any(report.violations for report in run.checked)


def sweep(bench: PimBench, rng: np.random.Generator, sizes: list[tuple[int, int]]) -> dict[str, int]:
    """Products on the RTL, each with a first refresh of its own; what was compared."""
    phases, words, commands, refreshed = set(), 0, 0, 0
    for number, (outputs, inputs) in enumerate(sizes):
        made, held = product(bench, rng, outputs, inputs, any_bits=number % 5 == 4)
        phase = phase_within(bench, made, rng)
        run = bench.run(made.program, held, phase=phase)
        check(run)
        phases.add(phase)
        words, commands, refreshed = words + run.words, commands + run.commands, refreshed + refreshes(run)
    assert len(phases) >= REFRESHES and refreshed >= len(sizes) // 4
    return {"shapes": len(sizes), "words": words, "commands": commands, "refreshes": refreshed, "phases": len(phases)}


def test_products_of_any_size(small: PimBench, rng: np.random.Generator) -> None:
    sweep(small, rng, [*EDGES, *drawn_sizes(rng, 17)])


@pytest.mark.soak
def test_two_hundred_products(small: PimBench, rng: np.random.Generator, record_property: Callable[[str, object], None]) -> None:
    for name, value in sweep(small, rng, [*EDGES, *drawn_sizes(rng, 243)]).items():
        record_property(name, value)


# whole tokens


def shape(**changes: Any) -> GptShape:
    sizes = {"name": "t", "hidden": 64, "layers": 2, "heads": 2, "head_dim": 32, "ffn": 128, "vocabulary": 67, "context": 64}
    return GptShape.model_validate(sizes | changes)


def tokens(bench: PimBench, seed: int, phases: list[int], **sizes: Any) -> dict[str, int]:
    """Tokens from first to last, each the one that the RTL chose, on the cells that the RTL left; logits of all are the golden window's."""
    model = GptModel.random(shape(**sizes), seed)
    made = partition(model.shape, bench.config, reservation=64)
    held = cells(model, made)
    ids, rows, words, commands, refreshed, due = [seed % model.shape.vocabulary], [], 0, 0, 0, 0
    interval = bench.timing.cycles("tREFI")
    for position, phase in enumerate(phases):
        run = bench.run(lower(made, position, ids[-1]), held, phase=phase)
        check(run)
        ids.append(run.index)
        rows.append(run.execution.logits)
        words, commands, refreshed = words + run.words, commands + run.commands, refreshed + refreshes(run)
        due += bench.config.channels * (run.system.cycles // interval)
    assert np.array_equal(np.stack(rows), Golden(model, made).logits(np.array(ids[:-1])).view(np.uint32))
    assert refreshed >= min(due, 2 * len(phases)) > 0 or due == 0 < refreshed
    return {"tokens": len(phases), "words": words, "commands": commands, "refreshes": refreshed}


def drawn_phases(bench: PimBench, rng: np.random.Generator, count: int) -> list[int]:
    return [int(phase) for phase in rng.choice(bench.timing.cycles("tREFI"), count, replace=False)]


def test_tokens_of_a_small_gpt(small: PimBench, seed: int, rng: np.random.Generator) -> None:
    """The second reads the key and value that the RTL wrote in the first, and so on."""
    tokens(small, seed, drawn_phases(small, rng, 3))


@pytest.mark.soak
def test_tokens_from_many_phases_of_refresh(small: PimBench, seed: int, rng: np.random.Generator, record_property: Callable[[str, object], None]) -> None:
    phases = [0, *drawn_phases(small, rng, 2 * REFRESHES)]
    for name, value in tokens(small, seed, phases).items():
        record_property(name, value)
    other = {"heads": 3, "head_dim": 20, "hidden": 50, "ffn": 90, "vocabulary": 301, "activation": "gelu_erf", "tied": False}
    tokens(small, seed + 1, phases[:4], **other)


SYSTEMS: dict[str, dict[str, Any]] = {
    "plain GDDR6 every 7.8 us": {"timing": "gddr6-7800", "activate_in_register_mode": False},
    "plain GDDR6 every 1.9 us, four accumulators": {"timing": "gddr6-1900", "channels": 1, "accumulators_per_bank": 4, "stagger": False},
    "bf16 accumulators, short rows, series": {
        "accumulator": "bf16",
        "columns": 8,
        "banks": 8,
        "channels": 1,
        "lanes": 8,
        "rows": 512,
        "companion": {"sram_bytes": 65536, "functions": "taylor"},
    },
}
"""What they differ in from pim-small. The plain ones write values by reading and modifying."""


@pytest.mark.soak
@pytest.mark.parametrize("name", SYSTEMS)
def test_other_systems(name: str, seed: int, rng: np.random.Generator, record_property: Callable[[str, object], None]) -> None:
    bench = PimBench(config := changed(**SYSTEMS[name]), load_timing(config.timing), rows=512 if config.columns < 64 else ROWS)
    bench.build()
    record_property("products", sweep(bench, rng, [(1, 1), (9, 140), *drawn_sizes(rng, 14)]))
    record_property("tokens", tokens(bench, seed, drawn_phases(bench, rng, 3), layers=1))


@pytest.mark.soak
def test_eight_channels_of_sixteen_banks(seed: int, rng: np.random.Generator, record_property: Callable[[str, object], None]) -> None:
    """The published system: controllers and companion chip are RTL, banks and accumulators are modelled."""
    bench = PimBench(config := load_config("pim-gpt", PimConfig), load_timing(config.timing), rows=ROWS, macs=False)
    record_property("products", sweep(bench, rng, [(1, 1), (300, 1500), (1000, 90), *drawn_sizes(rng, 9)]))
    record_property("tokens", tokens(bench, seed, drawn_phases(bench, rng, 2), hidden=192, heads=6, ffn=768, vocabulary=300))


# what a check must see


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (Fault("system", "data_0", "flip", beat=3, bit=7), r"data_0\[3\]: expected 0x[0-9a-f]+, got 0x[0-9a-f]+; cycle (\d+), expected cycle \1 \(1 of"),
        (Fault("system", "data_1", "delay", beat=2), r"data_1\[2\]: .* cycle \d+, expected cycle \d+ "),
        (Fault("system", "readout_1", "drop", beat=4), r"readout_1\[4\]: .* cycle \d+"),
        (Fault("system", "readout_0", "delay", beat=0, cycles=3), r"readout_0\[0\]: .* cycle \d+, expected cycle \d+ "),
        (Fault("system", "macros_0", "drop", beat=1), r"(command|readout)_0\[\d+\]: .* cycle \d+"),
    ],
    ids=lambda value: f"{value.port} {value.kind}" if isinstance(value, Fault) else "",
)
def test_a_disturbed_beat_is_caught(small: PimBench, fault: Fault, message: str) -> None:
    made, held = product(small, np.random.default_rng(1), 40, 70)
    with pytest.raises(MismatchError, match=message):
        small.run(made.program, held, faults=(fault,))


def test_a_flipped_cell_is_caught(small: PimBench, monkeypatch: pytest.MonkeyPatch) -> None:
    """A weight that the RTL has otherwise than the golden model."""
    made, held = product(small, np.random.default_rng(2), 40, 70)
    weight = (0, 2, made.matrix.chunks[0].position(0), 5)

    def flipped(cells: Any) -> Any:
        cells[weight] ^= 0x0200
        return cells

    executor = pim.Executor
    monkeypatch.setattr(pim, "Executor", lambda config, golden: executor(config, flipped(golden)))
    with pytest.raises(MismatchError, match=r"readout_0\[\d+\]: expected 0x[0-9a-f]+, got 0x[0-9a-f]+; cycle \d+"):
        small.run(made.program, held)


def test_a_cell_that_should_not_change_is_caught(small: PimBench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing reads it: it is seen where all cells are compared."""
    made, held = product(small, np.random.default_rng(3), 5, 9)
    text = pim.contents
    monkeypatch.setattr(pim, "contents", lambda device, *, rows: f"{text(device, rows=rows)}@{(3 * rows + 60) * 64 + 7:x}\n{1:064x}\n")
    with pytest.raises(MismatchError, match="cells: channel 0, bank 3, row 60, column 7, value 0: 0x0001, expected 0x0000"):
        small.run(made.program, held)


def test_more_rows_than_are_simulated_are_refused(small: PimBench) -> None:
    made, held = product(small, np.random.default_rng(4), 1, 1)
    with pytest.raises(ValueError, match="cells must be at most 64 rows, not 65"):
        small.run(made.program, np.zeros((2, 4, 65 * 64, 16), np.uint16))
    check(small.run(made.program, held))
