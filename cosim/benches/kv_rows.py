# SPDX-License-Identifier: Apache-2.0
"""Bench of rtl/ternary/kv_rows.py: tiles of random rows, whole and partly filled, with and without pauses; every row and cycle against the layout's."""

import numpy as np

from lutra.cosim.harness import Bench, Stimulus, compare
from lutra.hls_models.streams import pack
from lutra.hls_models.ternary.kv_layout import KvLayout
from lutra.hls_models.ternary.memory import PORT_BYTES
from lutra.rtl.ternary.kv_rows import KvRows

__all__ = ["bench", "check", "layouts"]


def layouts(seed: int, count: int = 12) -> dict[str, KvLayout]:
    """Beats of a whole row; those of the two large models; beats that rows cross; padded rows; the rest random."""
    rng = np.random.default_rng(seed)
    sizes = [(4, 4, 32), (4, 6, 32), (4, 8, 32), (4, 5, 16), (8, 9, 8), (5, 6, 16), (6, 8, 16)]
    while len(sizes) < count:
        ports = int(rng.integers(1, 9))
        sizes.append((ports, int(rng.integers(ports, 14)), 1 << int(rng.integers(3, 7))))
    return {
        f"c{i}": KvLayout(beat_bytes=ports * PORT_BYTES, layers=1, kv_heads=1, head_dim=units * PORT_BYTES, context=tile, key_tile=tile)
        for i, (ports, units, tile) in enumerate(sizes)
    }


def bench(chosen: dict[str, KvLayout]) -> Bench:
    made = Bench("kv_rows")
    for name, layout in chosen.items():
        made.add(name, KvRows(layout))
    return made


def check(made: Bench, chosen: dict[str, KvLayout], seed: int, tiles: int = 12) -> int:
    """One run of all layouts; returns the words compared."""
    rng = np.random.default_rng(seed)
    stimuli, beats, expected = {}, {}, {}
    for name, layout in chosen.items():
        counts = np.where(rng.random(tiles) < 0.5, layout.key_tile, rng.integers(1, layout.key_tile + 1, tiles)).tolist()
        values = rng.integers(0, 2, tiles)
        sizes = [layout.tile_beats(rows) for rows in counts]
        total = sum(sizes)
        ends = np.cumsum(sizes)
        first, last = np.zeros(total, np.int64), np.zeros(total, np.int64)
        first[ends - sizes], last[ends - 1] = 1, 1
        memory = rng.integers(0, 256, (total, layout.beat_bytes), dtype=np.uint8)
        words = pack((memory, 8), (first, 1), (np.repeat(counts, sizes), 16), (np.repeat(values, sizes), 1), (last, 1))
        cycles = np.cumsum(1 + rng.integers(0, 5, total) * (rng.random(total) < rng.choice([0, 0.1, 1])))
        codes, scales, rows = [], [], []
        for end, size, count in zip(ends.tolist(), sizes, counts, strict=True):
            of_tile = layout.tile_rows(memory[end - size : end], count)
            codes.append(of_tile[0])
            scales.append(of_tile[1])
            rows.append(layout.row_cycles(cycles[end - size : end], count))
        last_row = np.zeros(sum(counts), np.int64)
        last_row[np.cumsum(counts) - 1] = 1
        out = pack((np.concatenate(scales), 32), (np.concatenate(codes), 8), (np.repeat(values, counts), 1), (last_row, 1))
        stimuli[name] = {"kv": Stimulus(words, cycles)}
        beats[name] = {"kv_data": len(out)}
        expected[name] = {"kv": (words, cycles), "kv_data": (out, np.concatenate(rows))}
    last_cycle = max(int(one["kv_data"][1][-1]) for one in expected.values())
    recordings = made.run(stimuli=stimuli, beats=beats, max_cycles=last_cycle + 100)
    return sum(compare(f"{name}.{port}", *golden, recordings[name][port]) for name, ports in expected.items() for port, golden in ports.items())
