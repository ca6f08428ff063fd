# SPDX-License-Identifier: Apache-2.0
"""Golden values of PIM programs: GEMVs, whole tokens against float64, windows at once against tokens one by one."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from lutra.hls_models import floats
from lutra.hls_models.errors import LutraError, ModelError
from lutra.hls_models.floats import BF16, FP32
from lutra.hls_models.load import load_config
from lutra.hls_models.pim import mac
from lutra.hls_models.pim.companion import check_program
from lutra.hls_models.pim.config import PimConfig
from lutra.hls_models.pim.executor import Executor
from lutra.hls_models.pim.program import Macro, MacroKind, Program, Receive
from lutra.mapping.pim.gemv import gemv
from lutra.mapping.pim.golden import Golden
from lutra.mapping.pim.lower import clear, lower
from lutra.mapping.pim.model import GptModel, to_bf16
from lutra.mapping.pim.partition import Partition, partition
from lutra.mapping.pim.reference import evaluate
from lutra.mapping.pim.shape import GptShape
from lutra.mapping.pim.weights import cells

SMALL = load_config("pim-small", PimConfig)
GPT = load_config("pim-gpt", PimConfig)


def changed(config: PimConfig, **changes: object) -> PimConfig:
    return PimConfig.model_validate(config.model_dump() | {"rows": 1 << 18} | changes)


def shape(**changes: object) -> GptShape:
    sizes = {"name": "t", "hidden": 64, "layers": 2, "heads": 2, "head_dim": 32, "ffn": 128, "vocabulary": 67, "context": 300}
    return GptShape.model_validate(sizes | changes)


def values(bits: np.ndarray) -> np.ndarray:
    return floats.to_float64(FP32, bits)


# one matrix


def random_system(rng: np.random.Generator) -> PimConfig:
    lanes = int(rng.choice([4, 8, 16]))
    return changed(
        SMALL,
        channels=int(rng.choice([1, 2, 3, 8])),
        banks=int(rng.choice([b for b in (1, 2, 4, 8, 16) if b <= lanes])),
        lanes=lanes,
        columns=int(rng.choice([1, 4, 8, 64])),
        accumulators_per_bank=int(rng.choice([1, 2, 4])),
        accumulator=str(rng.choice(["fp32", "bf16"])),
        companion={"sram_bytes": 1 << 20},
    )


def by_hand(weights: np.ndarray, vector: np.ndarray, bias: np.ndarray, config: PimConfig, widths: list[int]) -> np.ndarray:
    """fp32 bits of W x + bias, an output and a column at a time."""
    lanes = config.lanes
    padded = -(-len(vector) // lanes) * lanes - len(vector)
    w, x = np.pad(to_bf16(weights), ((0, 0), (0, padded))), np.pad(to_bf16(vector), (0, padded))
    total = np.zeros(len(w), np.uint32)
    start = 0
    for width in widths:
        held = np.zeros(len(w), np.uint32)
        for column in range(start, start + width):
            part = slice(column * lanes, (column + 1) * lanes)
            held = mac.mac(w[:, part], x[part], held, config.accumulator)
        total = floats.add(FP32, total, mac.read_out(held).astype(np.uint32) << 16)
        start += width
    return floats.add(FP32, total, to_bf16(bias).astype(np.uint32) << 16)


def test_products_of_any_size(seed: int) -> None:
    rng = np.random.default_rng(seed)
    sizes = [(1, 1), (1, 500), (500, 1)] + [(int(np.exp(rng.uniform(0, 6))), int(np.exp(rng.uniform(0, 6)))) for _ in range(25)]
    for outputs, inputs in sizes:
        config = random_system(rng)
        made = gemv(inputs, outputs, config)
        check_program(made.program.instructions, config)
        weights, vector, bias = rng.standard_normal((outputs, inputs)), rng.standard_normal(inputs), rng.standard_normal(outputs)
        run = Executor(config, made.cells(weights, vector, bias)).run(made.program)
        wanted = by_hand(weights, vector, bias, config, [chunk.columns for chunk in made.matrix.chunks])
        assert np.array_equal(run.logits, wanted), (outputs, inputs, config)
        assert run.index == values(wanted).argmax()
        if config.accumulator == "fp32":
            rounded = floats.to_float64(BF16, to_bf16(weights)) @ floats.to_float64(BF16, to_bf16(vector))
            assert np.abs(values(run.logits) - rounded - bias).max() <= 0.02 * (1 + np.abs(weights).max() * np.abs(vector).sum())


def test_a_matrix_that_does_not_fit() -> None:
    with pytest.raises(ModelError, match=r"a matrix of 100000 x 4096 needs \d+ rows per bank, pim-small has 1024"):
        gemv(4096, 100_000, SMALL)
    with pytest.raises(ModelError, match="at least 1 x 1 values, not 0 x 4"):
        gemv(4, 0, SMALL)


# whole tokens

SYSTEMS: list[tuple[PimConfig, dict[str, Any], dict[str, Any]]] = [
    (SMALL, {}, {}),
    (SMALL, {"columns": 8, "accumulators_per_bank": 4}, {"heads": 3, "head_dim": 24, "tied": False}),
    (SMALL, {"columns": 2}, {"heads": 3, "head_dim": 20, "activation": "gelu_erf"}),
    (SMALL, {"channels": 3, "banks": 2, "timing": "gddr6-7800"}, {"heads": 5, "head_dim": 12, "hidden": 50, "activation": "relu"}),
    (SMALL, {"channels": 1, "banks": 1, "lanes": 4, "columns": 16}, {"layers": 1}),
    (SMALL, {"channels": 4, "banks": 8, "lanes": 8, "columns": 4, "companion": {"sram_bytes": 1 << 16, "functions": "taylor"}}, {"heads": 4, "head_dim": 16}),
    (SMALL, {"accumulator": "bf16"}, {"layers": 1}),
    (GPT, {}, {"layers": 1, "hidden": 96, "heads": 3, "vocabulary": 300}),
    (GPT, {"channels": 4, "companion": {"sram_bytes": 1 << 15}}, {"layers": 1, "heads": 5, "head_dim": 16, "context": 1024}),  # passes of 3: the SRAM's limit
]


def tokens_one_by_one(p: Partition, held: np.ndarray, ids: np.ndarray) -> np.ndarray:
    executor = Executor(p.config, held)
    rows = []
    for position, token in enumerate(ids):
        run = executor.run(lower(p, position, int(token)))
        assert run.index == values(run.logits).argmax()
        rows.append(run.logits)
    return np.stack(rows)


@pytest.mark.parametrize("number", range(len(SYSTEMS)))
def test_tokens_mean_what_the_model_means(number: int, seed: int) -> None:
    """Logits beside float64: within 0.08 of their spread (bf16 weights and vectors: 2**-9 each; 0.2 with accumulators of bf16); and equal, bit for bit,
    to the whole window at once."""
    base, system, sizes = SYSTEMS[number]
    config, rng = changed(base, **system), np.random.default_rng(seed)
    model = GptModel.random(shape(**sizes), seed)
    p = partition(model.shape, config, reservation=256)
    ids = rng.integers(0, model.shape.vocabulary, 37)
    found = tokens_one_by_one(p, cells(model, p), ids)
    reference = evaluate(model, ids)
    bound = 0.08 if config.accumulator == "fp32" else 0.2
    assert np.abs(values(found) - reference).max() <= bound * reference.std()
    assert np.array_equal(found, Golden(model, p).logits(ids).view(np.uint32))


def test_contexts_beyond_a_buffer_and_a_reservation(seed: int) -> None:
    """Blocks of 32 tokens, reservations of 64: the program's parts of a softmax and the window at once agree; so they do with float64."""
    config = changed(SMALL, columns=2)
    model = GptModel.random(shape(layers=1, context=150, head_dim=16), seed)
    p = partition(model.shape, config, reservation=64)
    assert len(p.keyvalues) == 3
    ids = np.random.default_rng(seed).integers(0, model.shape.vocabulary, 140)
    found = tokens_one_by_one(p, cells(model, p), ids)
    assert np.array_equal(found, Golden(model, p).logits(ids).view(np.uint32))
    reference = evaluate(model, ids)
    assert np.abs(values(found) - reference).max() <= 0.08 * reference.std()


def test_cells_before_their_first_write_do_not_matter(seed: int) -> None:
    """Keys and values full of NaNs; the values' room is cleared first, keys past the context are masked."""
    model = GptModel.random(shape(layers=1, context=40), seed)
    p = partition(model.shape, changed(SMALL, columns=8), reservation=64)
    ids = np.random.default_rng(seed).integers(0, model.shape.vocabulary, 20)
    clean = cells(model, p)
    dirty = clean.copy()
    first = p.keyvalues[0][0][0].keys.row
    dirty[:, :, first * p.config.columns :] = BF16.nan
    Executor(p.config, dirty).run(clear(p))
    assert np.array_equal(tokens_one_by_one(p, clean, ids), tokens_one_by_one(p, dirty, ids))


def test_a_wrong_cell_is_seen(seed: int) -> None:
    model = GptModel.random(shape(layers=1), seed)
    p = partition(model.shape, SMALL, reservation=64)
    ids = np.arange(4)
    good, bad = cells(model, p), cells(model, p)
    bad[0, 1, p.layers[0].up.chunks[0].position(0), 3] ^= 0x0100
    assert not np.array_equal(tokens_one_by_one(p, good, ids), tokens_one_by_one(p, bad, ids))


def test_losses_and_what_each_approximation_costs(seed: int) -> None:
    model = GptModel.random(shape(context=32), seed)
    p = partition(model.shape, SMALL, reservation=64)
    ids = np.random.default_rng(seed).integers(0, model.shape.vocabulary, 97)
    losses = Golden(model, p).losses(ids)
    assert losses.shape == (96,)
    reference = np.concatenate([evaluate(model, ids[start : start + 32]) for start in (0, 32, 64)])
    reference -= np.log(np.exp(reference).sum(-1, keepdims=True))
    assert losses.mean() == pytest.approx(-reference[np.arange(96), ids[1:]].mean(), rel=0.01)
    for name in ("exp2", "gelu", "reciprocal", "rsqrt"):
        assert Golden(model, p, exact=frozenset({name})).losses(ids).mean() == pytest.approx(losses.mean(), rel=2e-3)


# programs that cannot end


def program(macros: list[Macro], *instructions: Receive) -> Program:
    return Program((tuple(macros), ()), instructions)


def test_a_program_that_is_stuck_says_where() -> None:
    held = np.zeros((2, SMALL.banks, SMALL.columns, SMALL.lanes), np.uint16)
    read = Receive(0, 1, 2, 8, 0, wide=True)
    with pytest.raises(
        LutraError, match=r"stuck: the companion chip at instruction 0 .* wants 2 read-outs of 16 values from channel 0, which has no macro-commands left"
    ):
        Executor(SMALL, held).run(program([Macro(MacroKind.READ)], read))
    with pytest.raises(LutraError, match=r"at its end wants nothing more from channel 0, which waits for data beats at macro-command 0 \(BUFFER\)"):
        Executor(SMALL, held).run(program([Macro(MacroKind.BUFFER)]))
    with pytest.raises(LutraError, match="program leaves 1 read-outs and 0 data beats on channel 0"):
        Executor(SMALL, held).run(program([Macro(MacroKind.READ)]))
    with pytest.raises(LutraError, match="wants 2 read-outs of 16 values"):
        Executor(SMALL, held).run(program([Macro(MacroKind.MAC, read=1)] * 2, read))
    run = Executor(SMALL, held).run(program([Macro(MacroKind.READ, count=2)], replace(read, dst=None)), keep=True)
    assert run.received[0].shape == (2, 1, 16)
