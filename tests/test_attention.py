# SPDX-License-Identifier: Apache-2.0
"""ATTEND: RTL against golden values and predicted cycles, accuracy against float64, row reads, and what the configuration refuses."""

import numpy as np
import pytest
from conftest import MASTER_SEED
from pydantic import ValidationError

from lutra.cosim.benches import attention
from lutra.cosim.benches.attention import Case, play
from lutra.cosim.harness import Bench, Fault
from lutra.hls_models.errors import MismatchError
from lutra.hls_models.floats import FLOAT_LATENCY, FP16, FP32, from_float64, to_float64
from lutra.hls_models.ternary.attention import AttentionConfig, KvCache, attend, key_tiles, read_addresses, reference
from lutra.hls_models.ternary.attention_cycles import AttentionTiming, attention_cycles
from lutra.hls_models.ternary.attention_schedule import Schedule
from lutra.hls_models.ternary.kv_layout import KvLayout

CONFIGS = attention.configurations(MASTER_SEED, 11)
TINY = AttentionConfig(heads=5, kv_heads=1, head_dim=32, layers=4, context=256, max_tokens=8, key_tile=32, vector_lanes=4)
TINY_FP16 = TINY.model_copy(update={"kv_format": "fp16"})


@pytest.fixture(scope="module")
def bench() -> Bench:
    out = attention.bench(CONFIGS)
    out.build(optimization="-O0")
    return out


def check(bench: Bench, rng: np.random.Generator, limit: int, data: str | None = None) -> int:
    cases = {f"c{i}": attention.case(config, rng, limit=limit, data=data) for i, config in enumerate(CONFIGS)}
    recordings = play(bench, cases)
    return sum(attention.compare_case(name, one, recordings[name]) for name, one in cases.items())


@pytest.mark.parametrize("run", range(2))
def test_rtl_equals_the_model(bench: Bench, rng: np.random.Generator, run: int) -> None:
    assert check(bench, rng, 4) > 2_000


def test_sums_of_floats_are_rounded_key_by_key(bench: Bench, rng: np.random.Generator) -> None:
    """In every sample, whatever its seed: no other data shows a sum's last bits."""
    assert check(bench, rng, 4, "cancelling") > 2_000


@pytest.mark.soak
@pytest.mark.parametrize("run", range(26))  # 11 configurations each
def test_rtl_equals_the_model_in_many_cases(bench: Bench, rng: np.random.Generator, run: int) -> None:
    assert check(bench, rng, 8) > 2_000


@pytest.fixture(scope="module", params=[3, 4, 5], ids=["int8", "fp16", "shared"])
def small(request: pytest.FixtureRequest, bench: Bench) -> tuple[int, Case]:
    """A design of some width and a case of plain data without stalls."""
    index: int = request.param
    return index, attention.case(CONFIGS[index], np.random.default_rng(MASTER_SEED), limit=2, data="plain", stalls=False)


@pytest.mark.parametrize(("port", "kind"), [("qkv", "flip"), ("kv_data", "flip"), ("kv_data", "delay"), ("instr", "delay"), ("kv_data", "drop")])
def test_faults_are_caught(bench: Bench, small: tuple[int, Case], port: str, kind: str) -> None:
    """At the last beat, because a first key decides nothing where it is the only one; an instruction at once, because the second one waits anyway."""
    index, one = small
    name = f"c{index}"
    beat = 0 if port == "instr" else len(one.payloads[port]) - 1
    with pytest.raises(MismatchError, match=rf"\b{name}\."):
        attention.compare_case(name, one, play(bench, {name: one}, faults=[Fault(name, port, kind, beat=beat, bit=30)])[name])


@pytest.mark.parametrize(("port", "kind"), [("responses", "delay"), ("k_freed", "drop"), ("stored", "delay")])
def test_faults_beside_a_shared_memory_are_caught(bench: Bench, port: str, kind: str) -> None:
    """A response is on offer since the one before: a delay shows where it ends after the row's own handshake."""
    name, one = "c5", attention.case(CONFIGS[5], np.random.default_rng(MASTER_SEED), limit=2, data="plain", stalls=False)
    fault = Fault(name, port, kind, beat=len(one.payloads[port]) - 1, cycles=200)
    with pytest.raises(MismatchError, match=rf"\b{name}\."):
        attention.compare_case(name, one, play(bench, {name: one}, faults=[fault])[name])


@pytest.mark.parametrize("port", ["values", "kv_write"])
def test_a_wrong_golden_word_is_named(bench: Bench, small: tuple[int, Case], port: str) -> None:
    index, one = small
    recordings = play(bench, {f"c{index}": one})[f"c{index}"]
    attention.compare_case(f"c{index}", one, recordings)
    wrong = one.payloads[port].copy()
    wrong[1, 0] ^= 1
    with pytest.raises(MismatchError, match=rf"c{index}\.{port}\[1\]: expected 0x"):
        attention.compare_case(f"c{index}", Case(**{**one.__dict__, "payloads": one.payloads | {port: wrong}}), recordings)


def random_rows(config: AttentionConfig, rng: np.random.Generator, tokens: int) -> tuple[np.ndarray, np.ndarray]:
    """Normal vectors of the size that a trained model has (scores of a few units), quantised by their largest element or rounded to fp16."""
    x = rng.normal(size=(tokens, config.heads + 2 * config.kv_heads, config.head_dim))
    x[:, : config.heads] *= 1.4427 / np.sqrt(config.head_dim)
    scale = np.abs(x).max(axis=-1) / 127
    if config.kv_format == "fp16":
        return from_float64(FP16, x).astype(np.uint16), from_float64(FP32, scale)
    return np.rint(x / scale[..., None]).astype(np.int8), from_float64(FP32, scale)


@pytest.mark.parametrize("chunk", [1, 3, 8])
@pytest.mark.parametrize(("config", "worst", "rms"), [(TINY, 0.01, 0.001), (TINY_FP16, 0.0004, 0.00004)], ids=["int8", "fp16"])
def test_error_against_float64(rng: np.random.Generator, config: AttentionConfig, worst: float, rms: float, chunk: int) -> None:
    """What 8-bit weights lose, and of 16-bit floats the sums and probabilities, relative to the largest value; a tenth of the bounds would fail."""
    cache = KvCache.empty(config)
    errors, largest = [], 0.0
    for position in range(0, config.context - chunk + 1, chunk):
        codes, scales = random_rows(config, rng, chunk)
        cache.store(2, position, codes[:, 5:], scales[:, 5:])
        got = to_float64(config.format, attend(config, codes[:, :5], scales[:, :5], cache, 2, position))
        want = reference(config, codes[:, :5], scales[:, :5], cache, 2, position)
        errors.append(got - want)
        largest = max(largest, float(np.abs(want).max()))
    error = np.concatenate(errors) / largest
    assert worst / 10 < np.abs(error).max() < worst
    assert rms / 10 < np.sqrt((error**2).mean()) < rms


@pytest.mark.parametrize(("config", "bound"), [(TINY, 0.02), (TINY_FP16, 0.002)], ids=["int8", "fp16"])
def test_prefill_is_close_to_decode(rng: np.random.Generator, config: AttentionConfig, bound: float) -> None:
    """The same tokens in one chunk or one by one: other maxima and other tiles' scales, so not the same bits."""
    codes, scales = random_rows(config, rng, 8)
    cache = KvCache.empty(config)
    cache.store(0, 0, codes[:, 5:], scales[:, 5:])
    chunk = attend(config, codes[:, :5], scales[:, :5], cache, 0, 0)
    single = np.concatenate([attend(config, codes[i : i + 1, :5], scales[i : i + 1, :5], cache, 0, i) for i in range(8)])
    np.testing.assert_allclose(to_float64(config.format, chunk), to_float64(config.format, single), atol=bound)
    np.testing.assert_array_equal(chunk[0], single[0])  # one key: its value, whatever the order


@pytest.mark.parametrize("config", [TINY, TINY_FP16], ids=["int8", "fp16"])
def test_serial_passes_equal_decode(rng: np.random.Generator, config: AttentionConfig) -> None:
    """Bit for bit, although the rows of later tokens are in the cache; in one chunk the same tokens have other bits."""
    cache, position = KvCache.empty(config), 93  # the third token opens a tile
    codes, scales = random_rows(config, rng, position + 5)
    cache.store(1, 0, codes[:position, 5:], scales[:position, 5:])
    expected, reads = [], []
    for token in range(position, position + 5):
        own = slice(token, token + 1)
        cache.store(1, token, codes[own, 5:], scales[own, 5:])
        expected.append(attend(config, codes[own, :5], scales[own, :5], cache, 1, token))
        reads.append(read_addresses(config, 1, 1, token))
    given = config, codes[position:, :5], scales[position:, :5], cache, 1, position
    np.testing.assert_array_equal(attend(*given, serial=True), np.concatenate(expected))
    assert (attend(*given) != np.concatenate(expected)).any()
    np.testing.assert_array_equal(read_addresses(config, 1, 5, position, serial=True), np.concatenate(reads))


@pytest.mark.parametrize("tokens", [64, 128])
def test_row_reads_of_a_prompt(tokens: int) -> None:
    """T^2 / 16 + T / 2 rows of K, and of V, in blocks of 8 queries (TeLLMe v2's figure); a decoded token reads each row once."""
    timing = AttentionTiming(TINY)
    beats = 8 * 7 * TINY.head_beats
    reads = sum(len(timing.instruction(8, position, 0, np.zeros(beats, np.int64)).kv_read) for position in range(0, tokens, 8))
    assert reads == 2 * (tokens**2 // 16 + tokens // 2)
    assert len(timing.instruction(1, tokens, 0, np.zeros(beats // 8, np.int64)).kv_read) == 2 * (tokens + 1)


def test_an_item_takes_a_clock_per_key_and_one() -> None:
    timing = AttentionTiming(TINY)
    items = timing.instruction(8, 248, 0, np.zeros(8 * 7 * TINY.head_beats, np.int64)).items
    assert len(items) == 40 * 8
    assert set(np.diff(items)[-200:]) == {max(TINY.key_tile, FLOAT_LATENCY["divsqrt"]) + 1}


def test_a_float_key_takes_as_long_as_an_adder() -> None:
    assert (TINY_FP16.key_steps, TINY_FP16.key_lanes) == (FLOAT_LATENCY["add"], 8)
    items = AttentionTiming(TINY_FP16).instruction(8, 248, 0, np.zeros(8 * 7 * TINY.head_beats, np.int64)).items
    assert set(np.diff(items)[-200:]) == {TINY.key_tile * FLOAT_LATENCY["add"] + 1}


@pytest.mark.parametrize(
    ("head_dim", "lanes", "steps", "clocks", "at_once"),
    [(32, 4, 4, 4, 8), (64, 4, 4, 4, 16), (24, 4, 6, 6, 4), (4, 4, 1, 4, 4), (12, 4, 3, 4, 4), (14, 2, 7, 7, 2), (48, 4, 4, 4, 12)],
)
def test_lanes_of_floats(head_dim: int, lanes: int, steps: int, clocks: int, at_once: int) -> None:
    """As few lanes as keep an adder busy, whole beats each."""
    config = AttentionConfig.model_validate(TINY_FP16.model_dump() | {"head_dim": head_dim, "vector_lanes": lanes})
    assert (config.key_steps, config.key_clocks, config.key_lanes) == (steps, clocks, at_once)
    assert config.row_bits == 16 * head_dim


@pytest.mark.parametrize(
    "config", [TINY, TINY_FP16, *(one for one in CONFIGS if not one.shared)], ids=lambda config: f"{config.kv_format} {config.heads}x{config.head_dim}"
)
def test_fast_form_equals_the_traced_one(rng: np.random.Generator, config: AttentionConfig) -> None:
    """Passes one after the other, memory of fixed latency, a sink that is late for some of them."""
    timing = AttentionTiming(config, latency=3)
    now, position = 0, 0
    passes: list[tuple[int, int, bool]] = []
    expected, offered = [], []
    stalled: list[tuple[int, int]] = []
    for late in (False, True, False, True, False):
        tokens = int(rng.integers(1, config.max_tokens + 1))
        if position + tokens > config.context:
            break
        beats = tokens * (config.heads + 2 * config.kv_heads) * config.head_beats
        qkv = now + 3 + np.cumsum(rng.integers(0, 3, beats))
        serial = bool(rng.integers(2))
        early = timing.instruction(tokens, position, now, qkv, serial=serial)
        opened = int(early.values[0]) + int(rng.integers(1, 200)) if late else 0
        stalled += [(now, opened)] if late else []
        times = timing.instruction(tokens, position, now, qkv, opened, serial=serial)
        passes.append((tokens, position, serial))
        expected.append(times)
        offered.append(qkv)
        position, now = position + tokens, times.done + 1
    ready = np.ones(now, bool)
    for begin, end in stalled:
        ready[begin:end] = False
    not_before = {"instr": np.zeros(len(passes), np.int64), "qkv": np.concatenate(offered), "kv_data": np.concatenate([one.kv_data for one in expected])}
    cycles = attention_cycles(config, passes, not_before, {"values": ready})
    for port in ("qkv", "kv_write", "kv_read", "kv_data", "values"):
        np.testing.assert_array_equal(np.concatenate([getattr(one, port) for one in expected]), cycles[port], err_msg=port)
    np.testing.assert_array_equal([one.done for one in expected], cycles["done"])


WIDE = AttentionConfig(heads=16, kv_heads=16, head_dim=96, layers=24, context=4096, max_tokens=24, key_tile=64, vector_lanes=8, shared=True, row_ram="block")
GROUPED = WIDE.model_copy(update={"heads": 20, "kv_heads": 5, "head_dim": 128, "layers": 30})


class SteadyMemory:
    """A beat of 64 bytes in every clock, ``latency`` clocks after a half is free at the earliest; now and then a tile comes later."""

    def __init__(self, config: AttentionConfig, tokens: int, position: int, *, serial: bool, latency: int, rng: np.random.Generator | None = None) -> None:
        names = ("layers", "kv_heads", "head_dim", "context", "key_tile")
        self.layout = KvLayout(beat_bytes=64, **{name: getattr(config, name) for name in names})
        self.order = self.layout.order(3, tokens, position, serial=serial)
        self.latency, self.rng, self.free = latency, rng, 0

    def tile(self, value: bool, freed: int) -> int:
        tile = next(self.order)
        assert tile.value == value
        late = int(self.rng.integers(3000)) if self.rng and self.rng.integers(10) == 0 else 0
        self.free = max(self.free, freed + 1 + self.latency + late) + tile.beats
        return self.free


class OpenSink:
    def take(self, first: int, beats: int) -> list[int]:
        return list(range(first + 1, first + 1 + beats))


@pytest.mark.parametrize(("tokens", "position", "serial"), [(1, 4095, False), (24, 4000, False), (13, 1017, False), (4, 509, True)])
@pytest.mark.parametrize("config", [WIDE, GROUPED], ids=["group 1", "group 4"])
def test_tiles_come_in_the_order_of_the_memory(config: AttentionConfig, tokens: int, position: int, serial: bool) -> None:
    layout = SteadyMemory(config, tokens, position, serial=serial, latency=0).layout
    ours = [(one.head, one.value, one.rows, one.first) for one in key_tiles(config, tokens, position, serial=serial)]
    base = layout.address(3, 0, 0, value=False)
    theirs = layout.order(3, tokens, position, serial=serial)
    blocks = [(one, (one.address - base) // layout.block_beats // 2 % layout.tiles) for one in theirs]
    assert ours == [(one.head, one.value, one.rows, tile * config.key_tile) for one, tile in blocks]


@pytest.mark.parametrize("late", [False, True], ids=["steady", "late"])
@pytest.mark.parametrize(("tokens", "position", "serial"), [(24, 4072, False), (3, 900, False), (5, 300, True), (1, 2047, False)])
@pytest.mark.parametrize("config", [WIDE, GROUPED], ids=["group 1", "group 4"])
def test_known_tiles_change_nothing(seed: int, config: AttentionConfig, tokens: int, position: int, serial: bool, late: bool) -> None:
    """The attending phase behind a shared memory, whose long prompts are put together from few tiles, against every item gone through."""
    timing = AttentionTiming(config)
    for start in (0, 700):
        memories = [SteadyMemory(config, tokens, position, serial=serial, latency=40, rng=np.random.default_rng(seed) if late else None) for _ in range(2)]
        phase = timing.phase_shared(tokens, position, serial, start, memories[0], 0)
        plain = Schedule(config, tokens, position, start, memories[1], OpenSink(), serial=serial)
        for name in ("values", "k_freed", "v_freed", "items"):
            np.testing.assert_array_equal(getattr(phase, name), getattr(plain, name), err_msg=name)
        assert len(phase.k_freed) == len(phase.v_freed) == sum(one.value for one in key_tiles(config, tokens, position, serial=serial))
    if tokens == 24 and not late:
        assert 0 < len(timing._tiles) < 10


@pytest.mark.parametrize(("config", "key_tile", "latency"), [(WIDE, 64, 72), (GROUPED, 64, 16), (GROUPED, 128, 72)])
def test_decode_keeps_pace_with_the_memory(config: AttentionConfig, key_tile: int, latency: int) -> None:
    """In the steady state a tile of keys and one of values take the clocks in which 64 bytes each bring them: 3.125 of a key of 96, 4.125 of one of 128."""
    config = config.model_copy(update={"key_tile": key_tile, "context": 512})
    memory = SteadyMemory(config, 1, 511, serial=False, latency=latency)
    freed = AttentionTiming(config).phase_shared(1, 511, False, 0, memory, 0).v_freed
    steady = freed[len(freed) // 4 : -len(freed) // 4]
    assert steady[-1] - steady[0] == 2 * memory.layout.block_beats * (len(steady) - 1)


@pytest.mark.smoke
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"heads": 5, "kv_heads": 2}, "heads must be a multiple of kv_heads = 2, not 5; nearest: 4"),
        ({"head_dim": 30}, "head_dim must be a multiple of vector_lanes = 4, not 30; nearest: 28"),
        ({"key_tile": 24}, "key_tile must be a power of two of at least 1, not 24; nearest: 32"),
        ({"partials": 4}, "partials must be a power of two of at least 5, not 4; nearest: 8"),
        ({"max_tokens": 9, "context": 8}, "max_tokens must be at most context = 8, not 9; nearest: 8"),
        (
            {"layers": 256, "kv_heads": 5, "context": 7000},
            "context must leave at most 2^24 rows of keys and values, not 7000 (17920000 rows); nearest: 6553",
        ),
        ({"format": {"exponent": 5, "mantissa": 14}}, "format must have 8 exponent and at most 12 mantissa bits, not e5m14; nearest: e8m12"),
        ({"kv_format": "fp16", "shared": True}, "kv_format must be int8 where memory is shared, not fp16"),
        ({"kv_format": "fp8"}, "Input should be 'int8' or 'fp16'"),
        ({"tile": 1}, "Extra inputs are not permitted"),
    ],
)
def test_configuration_errors(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError) as error:
        AttentionConfig.model_validate(TINY.model_dump() | change)
    assert message in str(error.value)
