# SPDX-License-Identifier: Apache-2.0
"""Bench of rtl/ternary/tlmm.py: random sizes, matrices, idle and back-pressure, every beat and cycle against the model."""

from typing import Any

import numpy as np

from lutra.cosim.benches.weights import instruction_words, ready_trace, tokens_of, waits
from lutra.cosim.harness import Bench, Stimulus, compare
from lutra.hls_models import streams
from lutra.hls_models.ternary import tlmm_cycles
from lutra.hls_models.ternary.tlmm import TlmmConfig
from lutra.hls_models.ternary.tlmm_cycles import TlmmCycles
from lutra.hls_models.ternary.trits import RowLayout, group_indices, matrix_trits
from lutra.hls_models.ternary.weights import LinearInstruction, read_order
from lutra.rtl.ternary.tlmm import Tlmm

__all__ = ["Case", "bench", "check", "configurations"]


def configurations(seed: int, count: int = 10) -> dict[str, TlmmConfig]:
    """The smallest engine, one that never stalls, then ``count`` random ones."""
    rng = np.random.default_rng(seed)
    chosen = [
        TlmmConfig(group=2, tables=1, columns=1, lanes=1, vector_lanes=1, max_tokens=1, max_k=1, max_tile_columns=1, allow_stalls=True),
        TlmmConfig(group=3, tables=2, columns=5, lanes=2, vector_lanes=4, max_tokens=5, max_k=40, max_tile_columns=100),
    ]
    for i in range(count):
        lanes, columns = i % 4 + 1, int(rng.integers(1, 7))
        chosen.append(
            TlmmConfig(
                group=i // 2 % 4 + 2,
                tables=int(rng.integers(1, 6)),
                columns=columns,
                lanes=lanes,
                vector_lanes=int(rng.choice([1, 2, 4, 8])),
                activation_bits=4 if rng.random() < 0.3 else 8,
                half_tables=bool(i % 2),
                max_tokens=int(rng.integers(1, 3 * lanes + 1)),
                max_k=int(rng.integers(1, 50)),
                max_tile_columns=int(rng.integers(1, 15 * columns)),
                allow_stalls=True,
                tree="dsp" if i % 3 == 1 else "lut",
                drain_ram=str(rng.choice(["block", "distributed"])),  # type: ignore[arg-type]
            )
        )
    return {f"c{i}": config for i, config in enumerate(chosen)}


def bench(configs: dict[str, TlmmConfig]) -> Bench:
    made = Bench("tlmm")
    for name, config in configs.items():
        made.add(name, Tlmm(config=config))
    return made


class Case:
    """A program for one engine with its stimuli and golden streams; where a tile exceeds ``ring_rows`` it is read once."""

    def __init__(self, config: TlmmConfig, rng: np.random.Generator, instructions: int, ring_rows: int = 1 << 20) -> None:
        self.config = config
        self.program: list[LinearInstruction] = []
        layout = RowLayout(group=config.group, tables=config.tables, columns=config.columns, beat_bytes=1)
        codes, last, rows, sums = [], [], [], []
        self.code_beats: list[int] = []
        self.matrices: list[np.ndarray] = []
        for _ in range(instructions):
            tokens = min(tokens_of(rng, config.lanes), config.max_tokens)
            k = int(rng.integers(1, config.max_k + 1))
            tile_columns = int(rng.integers(1, config.max_tile_columns + 1))
            columns = int(rng.integers(1, min(3 * tile_columns, 150) + 1))
            if not config.allow_stalls:
                tile_columns = max(tile_columns, config.stall_free_columns)
                columns = tile_columns
            config.check_tile(columns, tile_columns, k)
            # A row of codes fills whole beats, with zeros where K does not; the extremes are frequent.
            wide = -(-k // config.vector_lanes) * config.vector_lanes
            if layout.blocks(wide) * layout.tile_rows(min(tile_columns, columns)) > ring_rows:
                tokens = min(tokens, config.lanes)
            instruction = LinearInstruction(layout.blocks(wide), columns, tile_columns, tokens)
            low, high = -(1 << config.activation_bits - 1), (1 << config.activation_bits - 1) - 1
            row = rng.integers(low, high + 1, (tokens, wide))
            row[rng.random(row.shape) < rng.choice([0.0, 0.9])] = low
            row[:, k:] = 0
            weights = rng.integers(-1, 2, (columns, wide)).astype(np.int8)
            if rng.random() < 0.2:
                weights[:] = rng.choice([-1, 1])
            golden = config.matmul(row, weights)
            self.program.append(instruction)
            self.matrices.append(weights)
            beats = row.reshape(-1, config.vector_lanes)
            codes.append(beats)
            last.append(np.arange(1, len(beats) + 1) % (wide // config.vector_lanes) == 0)
            self.code_beats.append(len(beats))
            trits = matrix_trits(weights, layout, tile_columns)[read_order(layout, config.lanes, instruction)[0]]
            rows.append(group_indices(trits, config.half_tables).reshape(len(trits), -1))
            sums.append(config.beats(golden, tile_columns))
        self.codes, self.last = np.concatenate(codes), np.concatenate(last)
        self.rows, self.sums = np.concatenate(rows), np.concatenate(sums)

    def words(self) -> dict[str, np.ndarray]:
        """Golden payloads of every port."""
        config = self.config
        return {
            "instr": instruction_words(self.program),
            "codes": streams.pack((self.codes, 8), (self.last.astype(np.uint8), 1)),
            "rows": streams.pack((self.rows, config.index_bits)),
            "sums": streams.pack((self.sums, config.accumulator_bits)),
        }


def _schedule(case: Case, rng: np.random.Generator) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray], TlmmCycles]:
    """Stimuli's earliest cycles, ready traces and the prediction.

    The codes of an instruction are offered after the one before is done and an instruction after its codes are written, as the core's semaphores see to.
    The prediction is made with growing prefixes, because these waits depend on it.
    """
    config, count = case.config, len(case.program)
    rows_wait = waits(rng, len(case.rows), float(rng.choice([0.0, 0.0, 0.7, 3.0])))
    ready = {"sums": ready_trace(rng, 4 * len(case.sums) + 200), "done": ready_trace(rng, 4 * len(case.sums) + 200)}
    traces = streams.Ready(ready["sums"]), streams.Ready(ready["done"])
    steady = -(-(config.block - 1 + config.vector_lanes) // config.block)
    instr_wait, codes_wait = np.zeros(count, np.int64), np.zeros(len(case.codes), np.int64)
    beat, predicted = 0, None
    for i in range(count):
        begin = int(predicted.done[-1]) if predicted is not None else 0
        span = slice(beat, beat + case.code_beats[i])
        codes_wait[span] = begin + waits(rng, case.code_beats[i], float(rng.choice([0.0, 0.5])))
        beat = span.stop
        codes = tlmm_cycles.codes_handshakes(config, codes_wait[:beat], case.last[:beat])
        instr_wait[i] = codes[-1] + steady + int(rng.integers(0, 3))
        predicted = tlmm_cycles.cycles(config, case.program[: i + 1], instr_wait[: i + 1], codes_wait[:beat], case.last[:beat], rows_wait, *traces)
    assert predicted is not None
    return {"instr": instr_wait, "codes": codes_wait, "rows": rows_wait}, ready, predicted


def check(made: Bench, configs: dict[str, TlmmConfig], seed: int, instructions: int = 3) -> int:
    """One run of all configurations; returns the words compared."""
    rng = np.random.default_rng(seed)
    stimuli: dict[str, Any] = {}
    ready, beats, expected = {}, {}, {}
    for name, config in configs.items():
        case = Case(config, rng, instructions)
        words = case.words()
        waiting, ready[name], predicted = _schedule(case, rng)
        stimuli[name] = {port: Stimulus(words[port], cycles) for port, cycles in waiting.items()}
        beats[name] = {port: len(getattr(predicted, port)) for port in predicted._fields}
        expected[name] = words, predicted
    last = max(int(cycles.max()) for _, predicted in expected.values() for cycles in predicted)
    recordings = made.run(stimuli=stimuli, ready=ready, beats=beats, max_cycles=last + 200)
    return sum(
        compare(f"{name}.{port}", words.get(port), getattr(predicted, port), recordings[name][port])
        for name, (words, predicted) in expected.items()
        for port in predicted._fields
    )
