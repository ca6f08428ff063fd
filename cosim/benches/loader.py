# SPDX-License-Identifier: Apache-2.0
"""Bench of rtl/ternary/loader.py (and, in the same top, of rtl/ternary/head.py): random loads, latencies and stalls against golden values and cycles."""

from collections.abc import Iterator
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lutra.cosim.benches import head
from lutra.cosim.benches.head import Case, trace
from lutra.cosim.harness import Bench, Stimulus
from lutra.hls_models.streams import pack
from lutra.hls_models.ternary.isa import PASS_FIELDS, UNIT_FIELDS, LoadMode, LoadTarget, Unit
from lutra.hls_models.ternary.kv_layout import KvLayout, KvTile
from lutra.hls_models.ternary.loader import PARAM_BITS, Load, LoaderConfig
from lutra.hls_models.ternary.loader_cycles import LoaderStimulus, loader_cycles
from lutra.hls_models.ternary.memory import MemoryTiming
from lutra.hls_models.ternary.planes import PlanesConfig
from lutra.rtl.ternary.head import Head
from lutra.rtl.ternary.loader import Loader

__all__ = ["bench", "case", "configurations", "ids", "loads"]


@cache
def bench(seed: int) -> Bench:
    """Both blocks' configurations of a seed: loaders ``l0`` …, heads ``h0`` …, one Verilated top."""
    both = Bench("loader and head")
    for i, loader in enumerate(configurations(seed)):
        both.add(f"l{i}", Loader(loader))
    for i, one in enumerate(head.configurations(seed)):
        both.add(f"h{i}", Head(one))
    return both


def configurations(seed: int, count: int = 8) -> list[LoaderConfig]:
    """On chip: the smallest loader, one like the tiny preset's, others drawn from the seed, ``count`` in all; as many on a shared memory."""
    rng = np.random.default_rng(seed)
    found = [
        LoaderConfig(
            beat_bytes=6,
            vector_lanes=2,
            hidden=2,
            ring_rows=1,
            params_rows=1,
            rope_rows=1,
            rows_beats=2,
            embed_beats=2,
            head_beats=2,
            outstanding=1,
            instructions=1,
        ),
        LoaderConfig(beat_bytes=36, vector_lanes=4, hidden=160, ring_rows=48, params_rows=40, rope_rows=32),
    ]
    while len(found) < count:
        lanes = int(rng.choice([2, 4, 8]))
        beat = lanes * int(rng.integers(3, 24 // lanes + 1))
        rows = beat // (3 * lanes)
        found.append(
            LoaderConfig(
                beat_bytes=beat,
                vector_lanes=lanes,
                hidden=lanes * int(rng.integers(1, 24)),
                row_beats=int(rng.integers(1, 4)),
                ring_rows=int(rng.integers(1, 40)),
                params_rows=int(rng.integers(rows, rows + 20)),
                rope_rows=int(rng.integers(rows, rows + 20)),
                rows_beats=int(rng.integers(2, 10)),
                embed_beats=int(rng.integers(2, 10)),
                head_beats=int(rng.integers(2, 10)),
                outstanding=int(rng.integers(1, 20)),
                instructions=int(rng.integers(1, 9)),
            )
        )
    return [*found, *(_shared(rng, burst) for burst in [1, 4, 64, *(1 << rng.integers(1, 8, count - 3)).tolist()])]


def _shared(rng: np.random.Generator, burst: int) -> LoaderConfig:
    """A loader that requests bursts, with keys and values: queues from a beat per burst to whole ones, rings that hold little more than a burst."""
    lanes, ports, key_tile = int(rng.choice([2, 4])), int(rng.integers(1, 5)), int(rng.choice([2, 4, 8]))
    beat, row_beats = 16 * ports, int(rng.integers(1, 5))
    beat, head_dim = (beat, 16 * int(rng.integers(ports, ports + 3))) if ports != 3 else (48, 96)
    while key_tile * head_dim % beat:
        head_dim += 16
    rows, hidden = burst * (beat // (3 * lanes)), lanes * int(rng.integers(1, 24))
    return LoaderConfig(
        beat_bytes=beat,
        vector_lanes=lanes,
        hidden=hidden,
        row_beats=row_beats,
        ring_rows=-(-(burst - 1) // row_beats) + int(rng.integers(1, 40)),
        params_rows=int(rng.integers(rows, rows + 200)),
        rope_rows=int(rng.integers(rows, rows + 200)),
        rows_beats=int(rng.choice([2, burst + 1, 4 * burst])),
        embed_beats=int(rng.integers(2, 10)),
        head_beats=int(rng.choice([2, burst + 1, 4 * burst])),
        outstanding=int(rng.integers(1, 10)),
        burst_beats=burst,
        planes=PlanesConfig(beat_bytes=beat, hidden=hidden, segment=beat // 4) if ports != 3 else None,
        kv=KvLayout(
            beat_bytes=beat,
            layers=1,
            kv_heads=int(rng.integers(1, 4)),
            head_dim=head_dim,
            context=key_tile * int(rng.integers(1, 5)),
            key_tile=key_tile,
            base=int(rng.integers(100)),
        ),
        instructions=int(rng.integers(1, 9)),
    )


def loads(config: LoaderConfig, rng: np.random.Generator, count: int) -> list[Load]:
    """Loads of every target and mode, one beat to some forty, or to some bursts."""
    found = []
    for _ in range(count):
        target, mode = LoadTarget(int(rng.integers(5 if config.kv is None else 6 if config.planes is None else 7))), LoadMode(int(rng.integers(3)))
        tokens, position, serial = int(rng.integers(1, 5)), int(rng.integers(1 << 16)), int(rng.integers(2))
        if target == LoadTarget.KV:
            assert config.kv is not None
            tokens = min(tokens, config.kv.context)
            position = int(rng.integers(config.kv.context - tokens + 1))
            found.append(Load(target, LoadMode.TILES, int(rng.integers(1 << 31)), 0, 0, tokens, position, serial))
            continue
        if target == LoadTarget.PLANES:
            assert config.planes is not None
            beats = config.planes.high_beats(int(rng.integers(1, 3 * config.planes.segment)))
            found.append(Load(target, LoadMode.DIRECT, int(rng.integers(1 << 31)), beats, 0, tokens, position, serial))
            continue
        size = int(rng.choice([1, 2, int(rng.integers(1, 40 + 3 * config.burst_beats))])) if mode == LoadMode.DIRECT else int(rng.integers(1, 8))
        rows = 0
        if target in (LoadTarget.PARAMS, LoadTarget.ROPE):
            rows = size
            size = -(-rows // config.rows_per_beat)
        elif target == LoadTarget.WEIGHTS:
            size = config.row_beats * min(size, 20 + config.burst_beats)
        elif target == LoadTarget.EMBED:
            size = config.table_beats
        found.append(Load(target, mode, int(rng.integers(1 << 32)), size, rows, tokens, position, serial))
    return found


def _parts(tiles: list[KvTile], beats: NDArray[np.uint8]) -> Iterator[tuple[KvTile, NDArray[np.uint8]]]:
    end = 0
    for tile in tiles:
        end += tile.beats
        yield tile, beats[end - tile.beats : end]


def _tile(tile: KvTile, beats: NDArray[np.uint8]) -> NDArray[np.uint32]:
    """Golden words of ``kv`` for a tile's beats."""
    place, one = np.arange(tile.beats), np.ones(tile.beats, np.int64)
    return pack((beats, 8), (place == 0, 1), (one * tile.rows, 16), (one * tile.value, 1), (place == tile.beats - 1, 1))


def _delays(rng: np.random.Generator, count: int) -> NDArray[np.int64]:
    """None, a constant, or random ones."""
    constant, random = rng.integers(0, 12), rng.integers(0, rng.choice([2, 20]), count)
    return np.full(count, constant) if rng.random() < 0.3 else random


def case(config: LoaderConfig, rng: np.random.Generator, instructions: int = 12, memory: MemoryTiming | None = None) -> Case:
    """Random loads with random memory, latencies, holding times of the rings, and stalls; or with the beats of a ``memory`` in its time."""
    todo = loads(config, rng, instructions)
    tokens = [ids(config, load, rng) for load in todo]
    jobs = [config.plane_jobs(load, one)[:2] if load.target == LoadTarget.PLANES else config.jobs(load, one) for load, one in zip(todo, tokens, strict=True)]
    addresses = [(np.repeat(first - (np.cumsum(beats) - beats), beats) + np.arange(beats.sum())) & 0xFFFFFFFF for first, beats in jobs]
    contents = [rng.integers(0, 256, (len(one), config.beat_bytes), dtype=np.uint8) for one in addresses]
    stimulus = LoaderStimulus(
        instr=np.cumsum(rng.integers(0, rng.choice([1, 10, 60]), instructions)),
        id=_delays(rng, 100),
        data=_delays(rng, 1000),
        rescore=_delays(rng, 1000),
        freed={name: _delays(rng, 1000) for name in ("weights", "params", "rope", "k", "v")},
        ready={name: trace(rng) for name in ("read", "id_request", "params", "rope", "embed", "head", "done")},
        memory=memory.read if memory else None,
    )
    times = loader_cycles(config, todo, stimulus, tokens)
    words: dict[str, list[NDArray[np.uint32]]] = {name: [] for name in ("instr", "data", "read", "id_request", "id", *(t.name.lower() for t in LoadTarget))}
    for load, one, pieces, where, beats in zip(todo, tokens, jobs, addresses, contents, strict=True):
        words["instr"].append(pack(*((np.array([getattr(load, f.name)]), f.bits) for f in UNIT_FIELDS[Unit.LOADER] + PASS_FIELDS)))
        words["data"].append(pack((beats, 8)))
        sizes = np.concatenate([config.bursts(load.target, int(address), int(count)) for address, count in zip(*pieces, strict=True)])
        words["read"].append(pack((where[np.cumsum(sizes) - sizes], 32), (sizes, 9)))
        if load.target == LoadTarget.PLANES:
            assert config.planes is not None
            words.setdefault("rescore", []).append(config.planes.words(one))
        elif one is not None:
            words["id"].append(pack((one, 20)))
            words["id_request"].append(pack(((load.position + np.arange(load.tokens)) & 0xFFFF, 16)))
        if load.target in (LoadTarget.PARAMS, LoadTarget.ROPE):
            payload = pack((config.rows(load, beats), PARAM_BITS))
        elif load.target == LoadTarget.EMBED:
            codes, scales = config.embedding(load, beats)
            units = config.hidden // config.vector_lanes
            payload = pack((codes.reshape(-1, config.vector_lanes), 8), (np.repeat(scales, units), 32))
        elif load.target == LoadTarget.KV:
            payload = np.concatenate([_tile(tile, part) for tile, part in _parts(config.tiles(load), beats)])
        else:
            payload = pack((beats, 8))
        words["head" if load.target == LoadTarget.PLANES else load.target.name.lower()].append(payload)
    zeros = {name: [np.zeros((len(times[name]), 1), np.uint32)] for name in times if name == "done" or name.endswith("_freed")}
    joined = {name: np.concatenate(parts) if parts else np.zeros((0, 1), np.uint32) for name, parts in (words | zeros).items()}
    # What answers a cause is offered when the model says that it is taken: before that, its cause may not have come.
    inputs = {name: Stimulus(joined[name], times[name]) for name in times if name in ("id", "data", "rescore") or name.endswith("_freed") if len(times[name])}
    return Case(
        stimuli=inputs | {"instr": Stimulus(joined["instr"], stimulus.instr)},
        ready=dict(stimulus.ready),
        expected={name: (joined.get(name, np.zeros((0, 1), np.uint32)), cycles) for name, cycles in times.items()},
    )


def ids(config: LoaderConfig, load: Load, rng: np.random.Generator) -> Any:
    """Tokens of mode TOKEN, lists of PLANES."""
    if load.target != LoadTarget.PLANES:
        return rng.integers(0, 1 << 20, load.tokens) if load.mode == LoadMode.TOKEN else None
    assert config.planes is not None
    rows, rate = config.plane_rows(load), rng.random()
    return [np.union1d(np.flatnonzero(rng.random(count) < rate), rng.integers(count)) for count in config.planes.segments(rows)]
