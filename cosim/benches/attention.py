# SPDX-License-Identifier: Apache-2.0
"""Bench of ATTEND: random sizes, passes, data and stalls; every beat and every cycle of every port."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lutra.cosim.harness import Bench, Stimulus, compare
from lutra.hls_models.floats import E8M11, FP32, FloatFormat, from_float64
from lutra.hls_models.streams import pack
from lutra.hls_models.ternary.attention import ADDRESS_BITS, AttentionConfig, KvCache, attend
from lutra.hls_models.ternary.attention_cycles import attention_cycles
from lutra.rtl.ternary.attention import Attention

__all__ = ["DATA", "Case", "bench", "case", "check", "configurations"]

DATA = ("plain", "zero_values", "equal_scores", "huge_scales", "tiny_weights", "special_scales")
SMALLEST = AttentionConfig(heads=1, kv_heads=1, head_dim=1, layers=1, context=1, max_tokens=1, key_tile=1, vector_lanes=1)


def configurations(seed: int, count: int = 12) -> list[AttentionConfig]:
    """Sizes derived from the seed; the first is the smallest that is legal."""
    rng = np.random.default_rng(seed)
    out = [SMALLEST]
    while len(out) < count:
        lanes = int(rng.choice([2, 4, 8]))
        kv_heads = int(rng.integers(1, 4))
        head_dim = lanes * int(rng.integers(1, 32 // lanes + 1))
        context = int(rng.integers(5, 40))
        out.append(
            AttentionConfig(
                heads=kv_heads * int(rng.integers(1, 6)),
                kv_heads=kv_heads,
                head_dim=head_dim,
                layers=int(rng.integers(1, 4)),
                context=context,
                max_tokens=int(rng.integers(1, min(context, 12) + 1)),
                key_tile=int(2 ** rng.integers(2, 6)),
                vector_lanes=lanes,
                format=FloatFormat(8, int(rng.integers(7, 13))) if rng.integers(4) == 0 else E8M11,
                partials=int(rng.choice([8, 16])),
            )
        )
    return out


def bench(configs: Sequence[AttentionConfig]) -> Bench:
    out = Bench("attention")
    for i, config in enumerate(configs):
        out.add(f"c{i}", Attention(config))
    return out


@dataclass(frozen=True)
class Case:
    """Passes in order, the golden payloads of every port, what stalls, and the predicted handshakes."""

    config: AttentionConfig
    passes: list[tuple[int, int]]
    payloads: dict[str, NDArray[np.uint32]]
    not_before: dict[str, NDArray[np.int64]]
    ready: dict[str, NDArray[np.bool_]]
    cycles: dict[str, NDArray[np.int64]]


def _passes(config: AttentionConfig, rng: np.random.Generator, limit: int) -> list[tuple[int, int, int]]:
    """(layer, tokens, position): a prompt in chunks and some decoding, the last position included at times."""
    layer = int(rng.integers(config.layers))
    position = int(rng.integers(config.context)) if rng.integers(2) else 0
    out = []
    for _ in range(limit):
        if position == config.context:
            break
        most = min(config.max_tokens, config.context - position)
        tokens = int(rng.integers(1, most + 1)) if rng.integers(3) else 1
        out.append((layer, tokens, position))
        position += tokens
    return out


def _rows(config: AttentionConfig, rng: np.random.Generator, tokens: int, data: str) -> tuple[NDArray[np.int8], NDArray[np.uint32]]:
    """Codes (tokens, heads + 2 * kv_heads, head_dim) and their scales."""
    groups, values = config.heads + 2 * config.kv_heads, config.heads + config.kv_heads
    codes = rng.integers(-127, 128, (tokens, groups, config.head_dim)).astype(np.int8)
    scales = from_float64(FP32, rng.uniform(0.002, 0.05, (tokens, groups)))
    if data == "zero_values":
        codes[:, values:] = 0
        scales[:, values:] = 0
    elif data == "equal_scores":
        codes[:, config.heads : values] = 1
        scales[:, config.heads : values] = FP32.one
    elif data == "huge_scales":
        scales = from_float64(FP32, 2.0 ** rng.uniform(-8, 100, scales.shape))
    elif data == "tiny_weights":
        scales[:, values:] = from_float64(FP32, 2.0 ** rng.uniform(-126, -99, scales[:, values:].shape))
    elif data == "special_scales":
        odd = rng.integers(0, 8, scales.shape) == 0
        scales = np.where(odd, rng.choice(np.array([0, FP32.infinity, FP32.nan, FP32.sign | FP32.one, 1, FP32.max_finite], np.uint32), scales.shape), scales)
    return codes, scales.astype(np.uint32)


def _stalls(rng: np.random.Generator, beats: int) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """A source's not_before and a sink's ready trace: none, some or many idle cycles, in bursts."""
    density = float(rng.choice([0.0, 0.0, 0.3, 0.8]))
    burst = int(rng.choice([1, 1, 20]))
    gaps = (rng.random(beats) < density / burst) * rng.integers(0, 4 * burst, beats)
    stalled = np.repeat(rng.random(4 * beats // burst + 64) < density, burst)
    return np.cumsum(gaps).astype(np.int64), ~stalled


def case(config: AttentionConfig, seed: int, *, limit: int = 6) -> Case:
    """One random sequence of passes with everything that is expected of it."""
    rng = np.random.default_rng(seed)
    data = str(rng.choice(DATA))
    passes = _passes(config, rng, limit)
    V, F, heads = config.vector_lanes, config.format, config.heads
    groups = heads + 2 * config.kv_heads
    cache = KvCache.empty(config)
    words: dict[str, list[NDArray[np.uint32]]] = {name: [] for name in ("qkv", "kv_write", "kv_read", "kv_data", "values")}
    for layer in {layer for layer, _, _ in passes}:
        codes, scales = _rows(config, rng, config.context, data)
        cache.store(layer, 0, codes[:, heads:], scales[:, heads:])
    for layer, tokens, position in passes:
        codes, scales = _rows(config, rng, tokens, data)
        cache.store(layer, position, codes[:, heads:], scales[:, heads:])
        beats = codes.reshape(-1, V)
        noise = rng.integers(0, 256, (4, len(beats)))
        per_beat = np.repeat(scales.ravel(), config.head_beats)
        # Only the last beat of a group is asked for its scale.
        last = np.arange(len(beats)) % config.head_beats == config.head_beats - 1
        per_beat = np.where(last, per_beat, noise[0]).astype(np.uint32)
        words["qkv"].append(
            pack((beats, 8), (per_beat, 32), (noise[1] % 4, 2), (noise[2], 8), (noise[3], 8), (noise[0] % 2, 1), (noise[1] % 2, 1)),
        )
        stored = np.array(
            [config.address(layer, h, position + t, value=v) for t in range(tokens) for v in (False, True) for h in range(config.kv_heads)], np.int64
        )
        rows = cache.words()
        words["kv_write"].append(_rows_at(config, cache, stored, with_address=True))
        read = _reads(config, layer, tokens, position)
        words["kv_read"].append(read[:, None].astype(np.uint32))
        words["kv_data"].append(rows[read] if rows.shape[1] == -(-(32 + 8 * config.head_dim) // 32) else _rows_at(config, cache, read, with_address=False))
        values = attend(config, codes[:, :heads], scales[:, :heads], cache, layer, position)
        order = values.reshape(tokens, config.kv_heads, -1).transpose(1, 0, 2).reshape(-1, V)
        words["values"].append(pack((order, F.bits)))
        assert values.shape == (tokens, heads * config.head_dim) and groups == codes.shape[1]
    payloads = {name: np.concatenate(parts) for name, parts in words.items()}
    payloads["instr"] = pack(*((np.array([one[i] for one in passes], np.int64), bits) for i, bits in enumerate((8, 8, 16))))
    payloads["done"] = np.ones((len(passes), 1), np.uint32)
    stalls = {name: _stalls(rng, len(beats)) for name, beats in sorted(payloads.items())}
    not_before = {name: stalls[name][0] for name in ("instr", "qkv", "kv_data")}
    ready = {name: stalls[name][1] for name in ("kv_write", "kv_read", "values", "done")}
    plain = [(tokens, position) for _, tokens, position in passes]
    return Case(config, plain, payloads, not_before, ready, attention_cycles(config, plain, not_before, ready))


def _rows_at(config: AttentionConfig, cache: KvCache, addresses: NDArray[np.int64], *, with_address: bool) -> NDArray[np.uint32]:
    codes = cache.codes.reshape(-1, config.head_dim)[addresses]
    scales = cache.scales.reshape(-1)[addresses]
    return pack(*([(addresses, ADDRESS_BITS)] if with_address else []), (scales, 32), (codes, 8))


def _reads(config: AttentionConfig, layer: int, tokens: int, position: int) -> NDArray[np.int64]:
    """Addresses in the order of requests (architecture.md, 2.8; decode interleaves V of a head with K of the next)."""
    end, TL = position + tokens, config.key_tile
    tiles = [range(base, min(base + TL, end)) for base in range(0, end, TL)]
    if tokens > 1:
        order = [(head, value, tile) for head in range(config.kv_heads) for tile in reversed(tiles) for value in (False, True)]
    else:
        order = []
        for head in range(config.kv_heads + 1):
            for tile in tiles:
                order += [(head - 1, True, tile)] if head else []
                order += [(head, False, tile)] if head < config.kv_heads else []
    return np.array([config.address(layer, head, j, value=value) for head, value, tile in order for j in tile], np.int64)


def check(built: Bench, cases: Sequence[Case]) -> int:
    """Runs a case per design at once and compares payloads and cycles of every port; the number of words compared."""
    stimuli = {f"c{i}": {name: Stimulus(one.payloads[name], one.not_before[name]) for name in one.not_before} for i, one in enumerate(cases)}
    ready = {f"c{i}": dict(one.ready) for i, one in enumerate(cases)}
    beats = {f"c{i}": {name: len(words) for name, words in one.payloads.items()} for i, one in enumerate(cases)}
    last = max(int(one.cycles["done"][-1]) for one in cases)
    recordings = built.run(stimuli=stimuli, ready=ready, beats=beats, max_cycles=last + 2000)
    return sum(
        compare(f"c{i}.{name}", one.payloads[name], one.cycles[name], recordings[f"c{i}"][name]) for i, one in enumerate(cases) for name in one.payloads
    )
