# SPDX-License-Identifier: Apache-2.0
"""Bench of rtl/ternary/weights.py: random sizes, matrices, idle and back-pressure, every beat and cycle against the model."""

import numpy as np

from lutra.cosim.harness import Bench, Stimulus, compare
from lutra.hls_models import streams
from lutra.hls_models.ternary import weights
from lutra.hls_models.ternary.trits import matrix_rows, pack_matrix
from lutra.hls_models.ternary.weights import LinearInstruction, WeightPathConfig, read_order
from lutra.rtl.ternary.weights import WeightPath

__all__ = ["bench", "check", "configurations", "instruction_words", "ready_trace", "tokens_of", "waits"]

INSTRUCTION_WIDTHS = (16, 20, 20, 8)


def configurations(seed: int, count: int = 10) -> dict[str, WeightPathConfig]:
    """The smallest path, one of many beats per row, then ``count`` random ones."""
    rng = np.random.default_rng(seed)
    chosen = [
        WeightPathConfig(group=2, tables=1, columns=1, beat_bytes=1, half_tables=True, lanes=1, ring_rows=2),
        WeightPathConfig(group=3, tables=4, columns=6, beat_bytes=4, half_tables=True, lanes=2, ring_rows=60),
    ]
    for _ in range(count):
        chosen.append(
            WeightPathConfig(
                group=int(rng.integers(2, 6)),
                tables=int(rng.integers(1, 5)),
                columns=int(rng.integers(1, 6)),
                beat_bytes=int(rng.integers(1, 25)),
                half_tables=bool(rng.integers(2)),
                lanes=int(rng.integers(1, 5)),
                ring_rows=int(rng.integers(8, 80)),
            )
        )
    # Both decoders, whatever else is drawn.
    return {f"c{i}": config.model_copy(update={"decoder": "adders"} if i % 2 else {}) for i, config in enumerate(chosen)}


def bench(configs: dict[str, WeightPathConfig]) -> Bench:
    made = Bench("weights")
    for name, config in configs.items():
        made.add(name, WeightPath(config=config))
    return made


def instruction_words(instructions: list[LinearInstruction]) -> np.ndarray:
    """Payloads of ``instr``."""
    table = np.array(instructions, np.int64).reshape(-1, 4)
    return streams.pack(*((table[:, i], width) for i, width in enumerate(INSTRUCTION_WIDTHS)))


def waits(rng: np.random.Generator, count: int, idle: float) -> np.ndarray:
    """Earliest cycles of ``count`` beats with ``idle`` idle cycles each on average, in bursts now and then."""
    gaps = rng.poisson(idle, count) * (rng.random(count) < rng.choice([0.1, 0.5, 1.0]))
    return np.cumsum(gaps) + int(rng.integers(0, 20))


def ready_trace(rng: np.random.Generator, length: int) -> np.ndarray:
    """Bool (length,): always ready, random, or in long spells."""
    kind = rng.integers(3)
    if kind == 0:
        return np.ones(length, bool)
    if kind == 1:
        return rng.random(length) < rng.uniform(0.1, 0.95)
    spells = rng.integers(1, 40, length // 10 + 2)
    return np.repeat(np.arange(len(spells)) % 2 == 0, spells)[:length]


def tokens_of(rng: np.random.Generator, lanes: int) -> int:
    """Tokens of a pass: often one, otherwise up to some groups."""
    return 1 if rng.random() < 0.3 else int(rng.integers(1, 3 * lanes + 2))


def _case(config: WeightPathConfig, rng: np.random.Generator, instructions: int):
    """(instructions, stored bytes of all matrices, indices in the order of the reads)."""
    chosen, stored, expected = [], [], []
    for _ in range(instructions):
        tokens = tokens_of(rng, config.lanes)
        k = int(rng.integers(1, 4 * config.block + 1))
        limit = config.ring_rows // config.blocks(k) * config.columns
        if limit == 0:
            k, limit = config.block, config.ring_rows * config.columns
        tile_columns = int(rng.integers(1, min(limit, 12 * config.columns) + 1))
        columns = int(rng.integers(1, 3 * tile_columns + 1))
        config.check_tile(k, tile_columns, tokens)
        instruction = LinearInstruction(config.blocks(k), columns, tile_columns, tokens)
        matrix = rng.integers(-1, 2, (columns, k)).astype(np.int8)
        packed = pack_matrix(matrix, config, tile_columns)
        assert packed.size == matrix_rows(config, columns, k, tile_columns) * config.row_bytes
        chosen.append(instruction)
        stored.append(packed)
        expected.append(config.indices(packed)[read_order(config, config.lanes, instruction)[0]])
    return chosen, np.concatenate(stored), np.concatenate(expected)


def check(made: Bench, configs: dict[str, WeightPathConfig], seed: int, instructions: int = 3) -> int:
    """One run of all configurations; returns the words compared."""
    rng = np.random.default_rng(seed)
    stimuli, ready, beats, expected = {}, {}, {}, {}
    for name, config in configs.items():
        program, stored, indices = _case(config, rng, instructions)
        count = len(stored) // config.beat_bytes
        beat_words = streams.pack((stored.reshape(count, config.beat_bytes), 8))
        rows_ready = ready_trace(rng, 2 * len(indices))
        instr_wait, beat_wait = waits(rng, len(program), 20.0), waits(rng, count, rng.choice([0.0, 0.7, 3.0]))
        stimuli[name] = {"instr": Stimulus(instruction_words(program), instr_wait), "beats": Stimulus(beat_words, beat_wait)}
        ready[name] = {"rows": rows_ready}
        predicted = weights.cycles(config, program, instr_wait, beat_wait, streams.Ready(rows_ready))
        beats[name] = {port: len(getattr(predicted, port)) for port in predicted._fields}
        row_words = streams.pack((indices, config.index_bits))
        expected[name] = {"rows": row_words, "beats": beat_words, "instr": instruction_words(program), "freed": None}, predicted
    last = max(int(cycles.max()) for _, predicted in expected.values() for cycles in predicted)
    recordings = made.run(stimuli=stimuli, ready=ready, beats=beats, max_cycles=last + 200)
    return sum(
        compare(f"{name}.{port}", payloads[port], getattr(predicted, port), recordings[name][port])
        for name, (payloads, predicted) in expected.items()
        for port in predicted._fields
    )
