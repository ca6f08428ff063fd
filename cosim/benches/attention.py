# SPDX-License-Identifier: Apache-2.0
"""Bench of ATTEND: random sizes, passes, data and stalls; every beat and every cycle of every port."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from amaranth.hdl import Module, Signal
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out
from numpy.typing import NDArray

from lutra.cosim.harness import Bench, Fault, Recording, Stimulus, compare
from lutra.hls_models.floats import E8M11, FP16, FP32, FloatFormat, from_float64
from lutra.hls_models.streams import pack
from lutra.hls_models.ternary.attention import ADDRESS_BITS, AttentionConfig, KvCache, attend, read_addresses, read_lasts, write_addresses
from lutra.hls_models.ternary.attention_cycles import attention_cycles
from lutra.rtl.ternary.attention import Attention

__all__ = ["DATA", "Case", "bench", "case", "compare_case", "configurations", "play"]

DATA = ("plain", "zero_values", "equal_scores", "huge_scales", "tiny_weights", "special_scales", "cancelling")
SMALLEST = AttentionConfig(heads=1, kv_heads=1, head_dim=1, layers=1, context=1, max_tokens=1, key_tile=1, vector_lanes=1)


KINDS: tuple[dict[str, object], ...] = ({"kv_format": "int8"}, {"kv_format": "fp16"}, {"kv_format": "int8", "shared": True, "tree": "dsp"})
"""Number formats, where keys and values lie, and what adds."""


def configurations(seed: int, count: int = 14) -> list[AttentionConfig]:
    """Sizes derived from the seed; the first three are the smallest that are legal, three more of the widest, with ten tiles (most are narrow: lanes cost
    compile time).

    Of both triples one is of each of ``KINDS``, the others are any.
    """
    rng = np.random.default_rng(seed)
    out = [AttentionConfig.model_validate(SMALLEST.model_dump() | kind) for kind in KINDS]
    while len(out) < count:
        wide = len(out) < 2 * len(KINDS)
        lanes = 8 if wide else int(rng.choice([1, 2, 2, 3, 4]))
        kv_heads = int(rng.integers(1, 4))
        head_dim = 32 if wide else lanes * int(rng.integers(1, 16 // lanes + 1))
        context = 40 if wide else int(rng.integers(5, 40))
        out.append(
            AttentionConfig(
                heads=kv_heads * int(rng.integers(1, 6)),
                kv_heads=kv_heads,
                head_dim=head_dim,
                layers=int(rng.integers(1, 4)),
                context=context,
                max_tokens=int(rng.integers(1, min(context, 12) + 1)),
                key_tile=4 if wide else int(2 ** rng.integers(2, 6)),
                vector_lanes=lanes,
                format=FloatFormat(8, int(rng.integers(7, 13))) if rng.integers(4) == 0 else E8M11,
                partials=int(rng.choice([8, 16])),
                **KINDS[len(out) % len(KINDS) if wide else int(rng.integers(len(KINDS)))],
            )
        )
    return out


class SharedAttention(wiring.Component):
    """ATTEND of a shared memory beside a stand-in for the writer to it: ``responses`` has a beat for each row that was given to ``kv_write``, taken a clock
    later at the earliest; ``stored`` as a stream."""

    def __init__(self, config: AttentionConfig) -> None:
        self.attention = Attention(config)
        own = {name: member for name, member in self.attention.signature.members.items() if name not in ("idle", "stored")}
        super().__init__(own | {"responses": In(stream.Signature(1)), "stored": Out(stream.Signature(1))})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.submodules.attention = attention = self.attention
        waiting = Signal(16)  # rows without a response
        for name, member in attention.signature.members.items():
            if member.is_signature:
                ports = getattr(attention, name), wiring.flipped(getattr(self, name))
                wiring.connect(m, *ports)
        row, response = self.kv_write, self.responses
        m.d.comb += [response.ready.eq(waiting != 0), attention.idle.eq(waiting == 0), self.stored.valid.eq(attention.stored), self.stored.payload.eq(1)]
        m.d.sync += waiting.eq(waiting + (row.valid & row.ready) - (response.valid & response.ready))
        return m


def bench(configs: Sequence[AttentionConfig]) -> Bench:
    out = Bench("attention", description=["attention", [config.model_dump(mode="json") for config in configs]])
    for i, config in enumerate(configs):
        out.add(f"c{i}", SharedAttention(config) if config.shared else Attention(config))
    return out


@dataclass(frozen=True)
class Case:
    """Passes in order, the golden payloads of every port, what stalls, and the predicted handshakes."""

    config: AttentionConfig
    passes: list[tuple[int, int, bool]]
    payloads: dict[str, NDArray[np.uint32]]
    not_before: dict[str, NDArray[np.int64]]
    ready: dict[str, NDArray[np.bool_]]
    cycles: dict[str, NDArray[np.int64]]


def _passes(config: AttentionConfig, rng: np.random.Generator, limit: int) -> list[tuple[int, int, int, bool]]:
    """(layer, tokens, position, serial): a prompt in chunks, some decoding and some drafts, the last position included at times."""
    layer = int(rng.integers(config.layers))
    position = int(rng.integers(config.context)) if rng.integers(2) else 0
    out = []
    for _ in range(limit):
        if position == config.context:
            break
        most = min(config.max_tokens, config.context - position)
        tokens = int(rng.integers(1, most + 1)) if rng.integers(3) else 1
        out.append((layer, tokens, position, bool(rng.integers(4) == 0)))
        position += tokens
    return out


def _float_rows(config: AttentionConfig, rng: np.random.Generator, tokens: int, position: int, data: str) -> NDArray[np.uint16]:
    """Patterns of fp16 (tokens, heads + 2 * kv_heads, head_dim) of the same kinds; the scales beside them are noise.

    "cancelling": all weights are one, and in each element +2^15, about 2^-6 and -2^15 follow each other from key to key. The small ones meet a sum whose last
    bit is 2^-8; where the large ones cancel, what that rounding left of them is the output, otherwise hidden by the few bits of F.
    """
    values = config.heads + config.kv_heads
    shape = (tokens, values + config.kv_heads, config.head_dim)
    x = rng.normal(0, 1.5, shape)
    if data == "zero_values":
        x[:, values:] *= 0
    elif data in ("equal_scores", "cancelling"):
        x[:, config.heads : values] = 1
    elif data == "huge_scales":
        x *= 2.0 ** rng.uniform(-8, 16, shape)
    elif data == "tiny_weights":
        x[:, values:] *= 2.0 ** rng.uniform(-16, -8, x[:, values:].shape)
    if data == "cancelling":
        turn = (position + np.arange(tokens)[:, None, None] + np.arange(config.head_dim)) % 3  # each pass has some element whose large values cancel
        x[:, values:] = np.where(turn == 1, x[:, values:] * 2.0**-6, (1 - turn) * 2.0**15)
    bits = from_float64(FP16, x)
    if data == "special_scales":
        odd = rng.integers(0, 4 * config.head_dim, shape) == 0
        bits = np.where(odd, rng.choice(np.array([0, FP16.infinity, FP16.nan, FP16.sign, FP16.sign | FP16.infinity, 1, FP16.max_finite]), shape), bits)
    return bits.astype(np.uint16)


def _rows(config: AttentionConfig, rng: np.random.Generator, tokens: int, position: int, data: str) -> tuple[NDArray[np.integer], NDArray[np.uint32]]:
    """Codes (tokens, heads + 2 * kv_heads, head_dim) and their scales; int8 values are summed exactly, "cancelling" is "equal_scores" there."""
    groups, values = config.heads + 2 * config.kv_heads, config.heads + config.kv_heads
    if config.kv_format == "fp16":
        return _float_rows(config, rng, tokens, position, data), rng.integers(0, 1 << 32, (tokens, groups)).astype(np.uint32)
    codes = rng.integers(-127, 128, (tokens, groups, config.head_dim)).astype(np.int8)
    scales = from_float64(FP32, rng.uniform(0.002, 0.05, (tokens, groups)))
    if data == "zero_values":
        codes[:, values:] = 0
        scales[:, values:] = 0
    elif data in ("equal_scores", "cancelling"):
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


def case(config: AttentionConfig, rng: np.random.Generator, *, limit: int = 6, data: str | None = None, stalls: bool = True) -> Case:
    """A random sequence of up to ``limit`` passes with everything that is expected of it; ``data``: one of ``DATA`` instead of any."""
    data = data or str(rng.choice(DATA))
    passes = _passes(config, rng, limit)
    heads = config.heads
    cache = KvCache.empty(config)
    codes, scales = _rows(config, rng, config.context, 0, data)
    cache.store(passes[0][0], 0, codes[:, heads:], scales[:, heads:])
    names = ("qkv", "kv_write", "kv_data", "values", *(() if config.shared else ("kv_read",)))
    parts: dict[str, list[NDArray[np.uint32]]] = {name: [] for name in names}
    for layer, tokens, position, serial in passes:
        codes, scales = _rows(config, rng, tokens, position, data)
        cache.store(layer, position, codes[:, heads:], scales[:, heads:])
        read = read_addresses(config, layer, tokens, position, serial=serial)
        values = attend(config, codes[:, :heads], scales[:, :heads], cache, layer, position, serial=serial)
        if not serial:
            values = values.reshape(tokens, config.kv_heads, -1).swapaxes(0, 1)
        parts["qkv"].append(_beats(config, rng, codes, scales))
        parts["kv_write"].append(cache.rows(write_addresses(config, layer, tokens, position), with_address=True))
        if config.shared:
            parts["kv_data"].append(cache.rows(read, last=read_lasts(config, tokens, position, serial=serial)))
        else:
            parts["kv_read"].append(pack((read, ADDRESS_BITS)))
            parts["kv_data"].append(cache.rows(read))
        parts["values"].append(pack((values.reshape(-1, config.vector_lanes), config.format.bits)))
    payloads = {name: np.concatenate(words) for name, words in parts.items()}
    payloads["instr"] = pack(*((np.array([one[i] for one in passes], np.int64), bits) for i, bits in enumerate((8, 8, 16, 1))))
    payloads["done"] = np.ones((len(passes), 1), np.uint32)
    if config.shared:
        payloads["responses"] = np.ones((len(payloads["kv_write"]), 1), np.uint32)
    traces = {name: _stalls(rng, len(beats)) if stalls else (np.zeros(len(beats), np.int64), np.ones(0, bool)) for name, beats in sorted(payloads.items())}
    not_before = {name: traces[name][0] for name in ("instr", "qkv", "kv_data")}
    ready = {name: traces[name][1] for name in ("kv_write", "values", "done", *(() if config.shared else ("kv_read",)))}
    if config.shared:
        not_before["responses"] = 4 * traces["responses"][0]  # rows come at intervals
    plain = [(tokens, position, serial) for _, tokens, position, serial in passes]
    cycles = attention_cycles(config, plain, not_before, ready)
    if config.shared:
        not_before["kv_data"] = cycles["kv_data"]
        payloads |= {name: np.ones((len(cycles[name]), 1), np.uint32) for name in ("k_freed", "v_freed", "stored")}
    return Case(config, plain, payloads, not_before, ready, cycles)


def _beats(config: AttentionConfig, rng: np.random.Generator, codes: NDArray[np.integer], scales: NDArray[np.uint32]) -> NDArray[np.uint32]:
    """Code beats; fields that the unit must not depend on are noise, such as the scale beside all but a head's last beat."""
    beats = codes.reshape(-1, config.vector_lanes)
    noise = rng.integers(0, 256, (5, len(beats)))
    scale = np.where(np.arange(len(beats)) % config.head_beats == config.head_beats - 1, np.repeat(scales.ravel(), config.head_beats), noise[0])
    return pack((beats, config.code_bits), (scale, 32), (noise[1] % 4, 2), (noise[2], 8), (noise[3], 8), (noise[4] % 2, 1), (noise[1] % 2, 1))


def play(built: Bench, cases: Mapping[str, Case], faults: Sequence[Fault] = ()) -> dict[str, dict[str, Recording]]:
    """Runs one case per design, all at once."""
    return built.run(
        stimuli={name: {port: Stimulus(one.payloads[port], times) for port, times in one.not_before.items()} for name, one in cases.items()},
        ready={name: dict(one.ready) for name, one in cases.items()},
        beats={name: {port: len(words) for port, words in one.payloads.items()} for name, one in cases.items()},
        max_cycles=max(int(one.cycles["done"][-1]) for one in cases.values()) + 1000,
        faults=faults,
    )


def compare_case(name: str, one: Case, recordings: Mapping[str, Recording]) -> int:
    """Payloads and cycles of every port; the number of words compared."""
    return sum(compare(f"{name}.{port}", words, one.cycles[port], recordings[port]) for port, words in one.payloads.items())
