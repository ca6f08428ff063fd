# SPDX-License-Identifier: Apache-2.0
"""Bench of weight path and LINEAR together, as the core connects them, against ``hls_models.ternary.linear``: a credited loader in front, a sink that
is ready tile by tile behind."""

from typing import Any

import numpy as np
from amaranth.hdl import Module
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from lutra.cosim.benches.tlmm import Case
from lutra.cosim.benches.weights import instruction_words, waits
from lutra.cosim.harness import Bench, Stimulus, compare
from lutra.hls_models import streams
from lutra.hls_models.ternary.linear import LinearTiming, utilisation
from lutra.hls_models.ternary.tlmm import TlmmConfig
from lutra.hls_models.ternary.tlmm_cycles import NEVER, codes_handshakes
from lutra.hls_models.ternary.trits import matrix_rows, pack_matrix
from lutra.hls_models.ternary.weights import LinearInstruction, WeightPathConfig
from lutra.rtl.ternary.tlmm import Tlmm
from lutra.rtl.ternary.weights import WeightPath

__all__ = ["Linear", "bench", "check", "check_utilisation", "configurations", "pair"]

Pair = tuple[TlmmConfig, WeightPathConfig]


class Linear(wiring.Component):
    """WeightPath and Tlmm, the rows stream between them."""

    def __init__(self, *, config: TlmmConfig, weights: WeightPathConfig):
        self.path, self.tlmm = WeightPath(config=weights), Tlmm(config=config)
        super().__init__(
            {
                "weights_instr": In(self.path.instr.signature.flip()),
                "beats": In(self.path.beats.signature.flip()),
                "freed": Out(self.path.freed.signature),
                **{name: In(getattr(self.tlmm, name).signature.flip()) for name in ("instr", "codes")},
                **{name: Out(getattr(self.tlmm, name).signature) for name in ("sums", "done")},
            }
        )

    def elaborate(self, platform):
        m = Module()
        m.submodules.path, m.submodules.tlmm = path, tlmm = self.path, self.tlmm
        wiring.connect(m, path.rows, tlmm.rows)
        wiring.connect(m, path.freed, wiring.flipped(self.freed))
        wiring.connect(m, wiring.flipped(self.weights_instr), path.instr)
        wiring.connect(m, wiring.flipped(self.beats), path.beats)
        for name in ("instr", "codes"):
            wiring.connect(m, wiring.flipped(getattr(self, name)), getattr(tlmm, name))
        for name in ("sums", "done"):
            wiring.connect(m, getattr(tlmm, name), wiring.flipped(getattr(self, name)))
        return m


def pair(config: TlmmConfig, beat_bytes: int, ring_rows: int) -> Pair:
    """The engine's configuration with that of its weight path."""
    shared = {name: getattr(config, name) for name in ("group", "tables", "columns", "lanes", "half_tables")}
    return config, WeightPathConfig(**shared, beat_bytes=beat_bytes, ring_rows=ring_rows)


def configurations(seed: int, count: int = 11) -> dict[str, Pair]:
    """One engine that can reach full utilisation, then ``count`` random ones, with rings from a tile's sweep up."""
    rng = np.random.default_rng(seed)
    full = TlmmConfig(group=3, tables=4, columns=4, lanes=4, vector_lanes=4, max_tokens=32, max_k=192, max_tile_columns=128)
    chosen = [pair(full, 16, 16 * 32 * 2)]
    for i in range(count):
        lanes, columns = i % 4 + 1, int(rng.integers(1, 6))
        config = TlmmConfig(
            group=int(rng.choice([2, 3, 3, 4, 5])),
            tables=int(rng.integers(1, 4)),
            columns=columns,
            lanes=lanes,
            vector_lanes=int(rng.choice([1, 2, 4, 8])),
            half_tables=bool(rng.random() < 0.7),
            max_tokens=int(rng.integers(1, 3 * lanes + 1)),
            max_k=int(rng.integers(8, 60)),
            max_tile_columns=int(rng.integers(columns, 16 * columns)),
            allow_stalls=True,
        )
        chosen.append(pair(config, int(rng.integers(1, 13)), int(config.tile_rows * rng.integers(1, 2 * config.max_blocks + 1)) + 1))
    return {f"c{i}": item for i, item in enumerate(chosen)}


def bench(configs: dict[str, Pair]) -> Bench:
    made = Bench("linear")
    for name, (config, weights) in configs.items():
        made.add(name, Linear(config=config, weights=weights))
    return made


class _Loader:
    """Beats of all rows in order, each in its earliest cycle in which the ring has given its row's space back."""

    def __init__(self, weights: WeightPathConfig, not_before: np.ndarray) -> None:
        self.weights, self.not_before = weights, not_before
        self.beats: list[int] = []
        self.freed: list[int] = []

    def next_rows(self, count: int) -> np.ndarray:
        per_row, ring = self.weights.row_beats, self.weights.ring_rows
        for _ in range(count):
            row = len(self.beats) // per_row
            space = self.freed[row - ring] if row >= ring else 0
            for _ in range(per_row):
                self.beats.append(max(int(self.not_before[len(self.beats)]), self.beats[-1] + 1 if self.beats else 0, space))
        return np.array(self.beats[per_row - 1 :: per_row][-count:], np.int64)


def _predict(pair_: Pair, case: Case, rng: np.random.Generator) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray], dict[str, np.ndarray]]:
    """(earliest cycles of the inputs, ready traces, handshakes of every port)."""
    config, weights = pair_
    rows = [
        matrix_rows(weights, instruction.columns, matrix.shape[1], instruction.tile_columns)
        for instruction, matrix in zip(case.program, case.matrices, strict=True)
    ]
    total = sum(rows) * weights.row_beats
    wait = {"beats": waits(rng, total, float(rng.choice([0.0, 0.3, 2.0]))), "codes": np.zeros(len(case.codes), np.int64)}
    loader, timing = _Loader(weights, wait["beats"]), LinearTiming(config, weights)
    instr: list[int] = []
    path: list[int] = []
    sums: list[int] = []
    done: list[int] = []
    beat, weights_free = 0, 0
    stalls = []
    for i, instruction in enumerate(case.program):
        begin = done[-1] + 1 if done else 0
        wait["codes"][beat : beat + case.code_beats[i]] = begin
        beat += case.code_beats[i]
        start = int(codes_handshakes(config, wait["codes"][:beat], case.last[:beat])[-1]) + config.vector_lanes + 1 + int(rng.integers(0, 5))
        instr.append(start)
        path.append(max(weights_free, start + int(rng.integers(-10, 10))))
        run = timing.begin(instruction, start, path[-1] - start)
        tile, ready = -1, NEVER
        while not run.finished:
            if run.tile != tile:
                tile, last = run.tile, sums[-1] if sums else -1
                ready = last + 1 + int(rng.choice([0, 0, 1, 30, 300]))
                stalls.append((last + 1, ready))
            step = run.step(loader.next_rows(run.rows_wanted), ready)
            loader.freed += step.freed.tolist()
            sums += step.sums.tolist()
        weights_free = int(run.weights_free)
        done.append(int(run.done))
    trace = np.ones(max(stop for _, stop in stalls) + 1, bool)
    for first, stop in stalls:
        trace[first:stop] = False
    wait |= {"instr": np.array(instr), "weights_instr": np.array(path)}
    exact = {"beats": loader.beats, "freed": loader.freed, "sums": sums, "done": done, "instr": instr, "weights_instr": path}
    codes = {"codes": codes_handshakes(config, wait["codes"], case.last)}
    return wait, {"sums": trace}, {port: np.array(cycles, np.int64) for port, cycles in exact.items()} | codes


def check(made: Bench, configs: dict[str, Pair], seed: int, instructions: int = 3) -> int:
    """One run of all configurations; returns the words compared."""
    rng = np.random.default_rng(seed)
    stimuli: dict[str, Any] = {}
    ready, beats, expected = {}, {}, {}
    for name, (config, weights) in configs.items():
        case = Case(config, rng, instructions, weights.ring_rows)
        wait, ready[name], exact = _predict((config, weights), case, rng)
        words = case.words()
        stored = [pack_matrix(matrix, weights, instruction.tile_columns) for instruction, matrix in zip(case.program, case.matrices, strict=True)]
        words["beats"] = streams.pack((np.concatenate(stored).reshape(-1, weights.beat_bytes), 8))
        words["weights_instr"] = words["instr"]
        stimuli[name] = {port: Stimulus(words[port], cycles) for port, cycles in wait.items()}
        beats[name] = {port: len(cycles) for port, cycles in exact.items()}
        expected[name] = (words, exact)
    last = max(int(cycles.max()) for _, exact in expected.values() for cycles in exact.values())
    recordings = made.run(stimuli=stimuli, ready=ready, beats=beats, max_cycles=last + 200)
    return sum(
        compare(f"{name}.{port}", words.get(port), cycles, recordings[name][port])
        for name, (words, exact) in expected.items()
        for port, cycles in exact.items()
    )


def check_utilisation(made: Bench, name: str, pair_: Pair, instruction: LinearInstruction, k: int, seed: int) -> tuple[float, float]:
    """(predicted, measured) utilisation of one instruction whose rows are in the ring when it starts."""
    config, weights = pair_
    rng = np.random.default_rng(seed)
    matrix = rng.integers(-1, 2, (instruction.columns, k)).astype(np.int8)
    codes = rng.integers(-128, 128, (instruction.tokens * k // config.vector_lanes, config.vector_lanes))
    last = np.arange(1, len(codes) + 1) % (k // config.vector_lanes) == 0
    stored = pack_matrix(matrix, weights, instruction.tile_columns).reshape(-1, weights.beat_bytes)
    start = max(len(codes), weights.ring_rows * weights.row_beats) + 100
    _, done = LinearTiming(config, weights).instruction(instruction, start)
    order = instruction_words([instruction])
    recordings = made.run(
        stimuli={
            name: {
                "instr": Stimulus(order, [start]),
                "weights_instr": Stimulus(order, [start]),
                "beats": Stimulus(streams.pack((stored, 8))),
                "codes": Stimulus(streams.pack((codes, 8), (last.astype(np.uint8), 1))),
            }
        },
        beats={name: {"done": 1}},
        max_cycles=done + 1000,
    )[name]
    golden = config.beats(config.matmul(codes.reshape(instruction.tokens, k), matrix), instruction.tile_columns)
    compare(f"{name}.sums", streams.pack((golden, config.accumulator_bits)), None, recordings["sums"])
    first, end = int(recordings["instr"].cycles[0]), int(recordings["done"].cycles[0])
    return utilisation(config, instruction, k, done - start), utilisation(config, instruction, k, end - first)
