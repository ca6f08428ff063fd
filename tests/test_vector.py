# SPDX-License-Identifier: Apache-2.0
"""VECTOR: RTL against golden values and predicted cycles, golden values against float64, and what is refused."""

from typing import Any

import numpy as np
import pytest
from conftest import MASTER_SEED
from pydantic import ValidationError

from lutra.cosim.benches import vector
from lutra.cosim.benches.head import Case, compare_case, play
from lutra.cosim.harness import Bench, Fault
from lutra.hls_models import floats
from lutra.hls_models.errors import ConfigError, MismatchError
from lutra.hls_models.floats import E8M11, FP32
from lutra.hls_models.streams import Ready
from lutra.hls_models.ternary.isa import Destination, Operation, Source
from lutra.hls_models.ternary.vector import Parameters, Vector, VectorConfig, rope_rows, to_beats, to_rows
from lutra.hls_models.ternary.vector_cycles import PORTS, VectorJob, VectorTiming
from lutra.rtl.ternary.vector import Vector as VectorUnit

CONFIGS = vector.configurations(MASTER_SEED, 9)
TINY = VectorConfig()
BASE = {
    "source": Source.VALUES,
    "operation": Operation.COPY,
    "norm": 0,
    "write_x": 0,
    "destination": Destination.LINEAR,
    "columns": 160,
    "tile_columns": 160,
    "group_columns": 160,
    "rope_columns": 0,
    "segment1": 0,
    "segment2": 0,
}


def f32(values: Any) -> Any:
    return floats.from_float64(FP32, values)


def bits(values: Any) -> Any:
    return floats.from_float64(E8M11, values)


ONE = Parameters(f32([1.0, 1.0, 1.0]))


def mean_of_160(gains: Any) -> Parameters:
    return Parameters(ONE.weight_scale, reciprocal=int(f32(1 / 160)), eps=int(f32(1e-5)), gains=bits(gains))


@pytest.fixture(scope="module")
def bench() -> Bench:
    built = Bench("vector", description=["vector", [config.model_dump(mode="json") for config in CONFIGS]])
    for i, config in enumerate(CONFIGS):
        built.add(f"c{i}", VectorUnit(config))
    built.build(optimization="-O0")
    return built


def check(bench: Bench, rng: np.random.Generator) -> int:
    cases = {f"c{i}": vector.case(config, rng) for i, config in enumerate(CONFIGS)}
    recordings = play(bench, cases)
    return sum(compare_case(name, one, recordings[name]) for name, one in cases.items())


@pytest.mark.parametrize("run", range(2))
def test_rtl_equals_the_model(bench: Bench, rng: np.random.Generator, run: int) -> None:
    assert check(bench, rng) > 3_000


@pytest.mark.soak
@pytest.mark.parametrize("run", range(34))  # 9 configurations each
def test_rtl_equals_the_model_in_many_cases(bench: Bench, rng: np.random.Generator, run: int) -> None:
    assert check(bench, rng) > 3_000


def tiny_case(rng: np.random.Generator) -> Case:
    """A case of the tiny preset's unit that takes sums, gains and rope rows."""
    while True:
        one = vector.case(CONFIGS[1], rng)
        if all(len(one.expected[name][1]) for name in PORTS):
            return one


@pytest.mark.parametrize(
    ("port", "kind"), [("params", "flip"), ("embed", "drop"), ("sums", "delay"), ("rope", "delay"), ("codes", "delay"), ("instr", "delay")]
)
def test_faults_are_caught(bench: Bench, rng: np.random.Generator, port: str, kind: str) -> None:
    one = tiny_case(rng)
    if kind == "delay":
        one.ready["codes"] = one.ready["codes"] | True
    with pytest.raises(MismatchError, match=r"c1\."):
        compare_case("c1", one, play(bench, {"c1": one}, faults=[Fault("c1", port, kind, beat=0, bit=6, cycles=3000)])["c1"])


def test_a_wrong_golden_word_is_named(bench: Bench, rng: np.random.Generator) -> None:
    one = tiny_case(rng)
    recordings = play(bench, {"c1": one})["c1"]
    one.expected["codes"][0][3, 0] ^= 1 << 8
    with pytest.raises(MismatchError, match=r"c1\.codes\[3\]: expected 0x"):
        compare_case("c1", one, recordings)


def test_a_predicted_cycle_too_late_is_named(bench: Bench, rng: np.random.Generator) -> None:
    one = tiny_case(rng)
    recordings = play(bench, {"c1": one})["c1"]
    one.expected["params_freed"][1][1] += 1
    with pytest.raises(MismatchError, match=r"c1\.params_freed\[1\]"):
        compare_case("c1", one, recordings)


def test_order_of_beats(rng: np.random.Generator) -> None:
    x = rng.integers(0, 100, (3, 20))
    beats = to_beats(x, 8, 4)
    np.testing.assert_array_equal(beats[:6], [x[0, :4], x[0, 4:8], x[1, :4], x[1, 4:8], x[2, :4], x[2, 4:8]])
    np.testing.assert_array_equal(beats[-1], x[2, 16:])
    np.testing.assert_array_equal(to_rows(beats, 3, 8), x)


def test_parameter_rows() -> None:
    """Header lowest bits first, 24 to a lane; then the gains, one per lane."""
    header = [0x11223344, 0x55667788, 0x99AABBCC, 0xDDEEFF00, 0x12345678]
    rows = Parameters(np.array(header[:3], np.uint32), header[3], header[4], np.arange(8, dtype=np.uint32)).rows(TINY)
    assert rows.shape == (4, 4) and TINY.header_rows == 2
    assert b"".join(int(lane).to_bytes(3, "little") for lane in rows[:2].reshape(-1))[:20] == b"".join(word.to_bytes(4, "little") for word in header)
    np.testing.assert_array_equal(rows[2:].reshape(-1), np.arange(8))


def run(fields: dict[str, int], tokens: int = 1, params: Parameters = ONE, unit: Vector | None = None, **given: Any) -> Any:
    return (unit or Vector(TINY)).run({**BASE, **fields}, tokens, params=params, **given)


def test_special_values() -> None:
    """Groups of zeros, of values below 2^-100, with an infinity, with a NaN."""
    row = np.zeros((1, 160))
    row[0, 32:64] = 2.0**-101
    row[0, 64:96] = np.arange(32)
    row[0, 64] = np.inf
    row[0, 96:128] = np.arange(32)
    row[0, 97] = np.nan
    row[0, 128:160] = -np.arange(32)
    result = run({"group_columns": 32}, values=bits(row))
    np.testing.assert_array_equal(result.codes[0, :128], 0)
    np.testing.assert_array_equal(result.codes[0, 128:], np.rint(-np.arange(32) * (127 / 31)))
    assert result.scales[0, :4].tolist() == [0, 0, FP32.infinity, FP32.nan]


def test_every_value_as_fp16() -> None:
    """What ATTEND gets of all patterns of F: numpy's own rounding, limited to the largest finite number and without subnormals; other units' codes stay."""
    config = VectorConfig(max_tokens=128, max_columns=1024, hidden=1024, head_dim=4, rope_rows=128, kv_format="fp16")
    fields = {"destination": Destination.ATTEND, **dict.fromkeys(("columns", "tile_columns", "group_columns"), 1024)}
    patterns = np.arange(1 << E8M11.bits, dtype=np.uint32)
    patterns = patterns[(patterns & E8M11.magnitude) <= E8M11.nan]
    for first in range(0, len(patterns), 1 << 17):
        rows = np.resize(patterns[first : first + (1 << 17)], (128, 1024))
        got = run(fields, 128, unit=Vector(config), values=rows).codes
        x = floats.to_float64(E8M11, rows)
        rounded = np.clip(x, -65504, 65504).astype(np.float16)
        want = np.where(np.abs(x) < 2.0**-14 * (1 - 2.0**-12), np.copysign(np.float16(0), rounded), rounded)
        nan = np.isnan(want)
        np.testing.assert_array_equal(got[~nan], want.view(np.uint16)[~nan])
        assert (got[nan] == floats.FP16.nan).all()
    codes = {kv_format: run({}, 1, unit=Vector(VectorConfig(kv_format=kv_format)), values=bits(np.arange(160.0)[None])).codes for kv_format in ("int8", "fp16")}
    np.testing.assert_array_equal(codes["int8"], codes["fp16"])


def test_segments_and_token_scales(rng: np.random.Generator) -> None:
    """Sums are multiplied by the token's scale and their segment's, or in a gate by the scale of their parity."""
    unit = Vector(TINY)
    unit.scale[:2] = f32([0.5, 2.0])
    params = Parameters(f32([1.0, 4.0, 16.0]))
    sums = rng.integers(-50, 50, (2, 160))
    fields = {"source": Source.SUMS, "destination": Destination.ATTEND, "segment1": 40, "segment2": 80}
    u = floats.to_float64(E8M11, run(fields, 2, params, unit, sums=sums).u)
    np.testing.assert_array_equal(u, sums * np.repeat([1.0, 4.0, 16.0], [40, 40, 80]) * [[0.5], [2.0]])
    fields = {"source": Source.SUMS, "operation": Operation.GATE, "destination": Destination.ATTEND, "group_columns": 80}
    u = floats.to_float64(E8M11, run(fields, 2, params, unit, sums=sums // 16).u)
    y = (sums // 16) * np.tile([1.0, 4.0], 80) * [[0.5], [2.0]]
    np.testing.assert_allclose(u, np.maximum(y[:, 0::2], 0) ** 2 * y[:, 1::2], rtol=2**-10)


def test_residual_stream(rng: np.random.Generator) -> None:
    unit = Vector(TINY)
    codes = rng.integers(-127, 128, (3, 160)).astype(np.int8)
    run({"source": Source.EMBED, "write_x": 1}, 3, unit=unit, embed=(codes, f32([0.25, 0.5, 1.0])))
    np.testing.assert_array_equal(floats.to_float64(E8M11, unit.x[:3]), codes * np.array([[0.25], [0.5], [1.0]]))
    run({"operation": Operation.RESIDUAL}, 3, unit=unit, values=unit.x[:3].copy())
    np.testing.assert_array_equal(floats.to_float64(E8M11, unit.x[:3]), 2.0 * codes * np.array([[0.25], [0.5], [1.0]]))


def test_rope_turns_pairs(rng: np.random.Generator) -> None:
    angles = rng.uniform(-4, 4, (2, 16))
    x = rng.normal(0, 1, (2, 160))
    pairs = bits(np.stack([np.cos(angles), np.sin(angles)], -1))
    fields = {"operation": Operation.ROPE, "rope_columns": 128, "destination": Destination.ATTEND, "group_columns": 32}
    u = floats.to_float64(E8M11, run(fields, 2, values=bits(x), rope_pairs=pairs).u)
    turned = (x[:, 0:128:2] + 1j * x[:, 1:128:2]) * np.exp(1j * np.tile(angles, 4))
    np.testing.assert_allclose(u[:, 0:128:2] + 1j * u[:, 1:128:2], turned, atol=4 * 2**-11 * 4)
    np.testing.assert_array_equal(u[:, 128:], floats.to_float64(E8M11, bits(x))[:, 128:])
    assert rope_rows(pairs, 4).shape == (16, 4)


def test_norm_against_float64(rng: np.random.Generator, record_property: Any) -> None:
    """What the next layer sees, codes times kept scale, against a float64 RMSNorm: half a code step and the rounding of u to F."""
    x, gains = rng.normal(0, 3, (8, 160)) * 10.0 ** rng.uniform(-3, 3, (8, 1)), rng.uniform(0.2, 2, 160)
    x = floats.to_float64(E8M11, bits(x))
    unit = Vector(TINY)
    params = mean_of_160(gains)
    result = run({"norm": 1}, 8, params, unit, values=bits(x))
    kept = floats.to_float64(FP32, unit.scale)
    wanted = x / np.sqrt((x * x).mean(1, keepdims=True) + 1e-5) * floats.to_float64(E8M11, bits(gains))
    steps = np.abs(result.codes * kept[:, None] - wanted) / kept[:, None]
    exact = np.rint(wanted / (np.abs(wanted).max(1, keepdims=True) / 127))
    record_property("codes_that_differ_from_float64", float((exact != result.codes).mean()))
    assert steps.max() < 0.5 + 127 * 2**-11
    assert (exact != result.codes).mean() < 0.02
    np.testing.assert_allclose(kept, np.abs(wanted).max(1) / 127, rtol=2**-11)


def test_head_codes_carry_the_kept_scale(rng: np.random.Generator) -> None:
    unit = Vector(TINY)
    params = mean_of_160(np.ones(160))
    result = run({"norm": 1, "destination": Destination.HEAD}, 2, params, unit, values=bits(rng.normal(0, 1, (2, 160))))
    np.testing.assert_array_equal(result.scales[:, 0], unit.scale[:2])


def test_a_beat_per_clock() -> None:
    """With everything there, the source and the codes of a group flow without a hole; a clock stands between tiles."""
    timing = VectorTiming(TINY)
    fields = {**BASE, "tile_columns": 40, "norm": 1}
    times = timing.instruction(fields, 2, timing.opens(fields, 5, params=np.zeros(timing.params_rows(fields), np.int64)))
    np.testing.assert_array_equal(np.diff(times.source), [1 + (i % 20 == 0) for i in range(1, 80)])
    assert (np.diff(times.codes)[np.arange(79) % 40 != 39] == 1).all()
    assert times.source[0] == 5 + 2 * TINY.header_rows + 2
    assert times.done == times.codes[-1] + 1
    fields = {**BASE, "operation": Operation.ROPE, "destination": Destination.ATTEND, "group_columns": 32}
    times = timing.instruction(fields, 8, timing.opens(fields, 0, params=np.zeros(2, np.int64), rope=np.zeros(64, np.int64)))
    np.testing.assert_array_equal(np.diff(times.codes), 1)  # four dividers keep up with heads of eight beats


def test_one_instruction_equals_a_run(rng: np.random.Generator) -> None:
    """The incremental form gives, with rows that came long ago, what the whole-trace form gives."""
    timing = VectorTiming(TINY)
    for _ in range(30):
        job = vector.draw_job(TINY, rng, Source.VALUES)
        counts = {"params": timing.params_rows(job.fields), "rope": timing.rope_rows(*job)}
        if counts["params"] > TINY.params_rows:
            continue
        source = 500 + np.cumsum(rng.integers(0, 3, job.tokens * job.fields["columns"] // TINY.lanes))
        sinks = {name: Ready(rng.random(6000) < 0.6) for name in ("codes", "done")}
        early = {name: np.zeros(count, np.int64) for name, count in counts.items()}
        whole = timing.run([job], {"instr": np.array([500]), "values": source, **early}, sinks)
        opens = timing.opens(job.fields, 500, params=early["params"], rope=early["rope"])
        last_z = int(timing.take(*job, opens, source).z[-1])
        after = timing.requantise(*job, sink=Ready(sinks["codes"].trace[last_z:]).next_ready)
        times = timing.instruction(*job, opens, source=source, requantised=after, done_ready=sinks["done"])
        for name, cycles in {"values": times.source, "codes": times.codes, "params_freed": times.params_freed, "rope_freed": times.rope_freed}.items():
            np.testing.assert_array_equal(whole[name], cycles)
        assert whole["done"].tolist() == [times.done] and whole["instr"].tolist() == [500]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lanes": 5}, "lanes must be even, not 5; nearest: 6"),
        ({"hidden": 162}, "hidden must be a multiple of lanes = 4, not 162; nearest: 160"),
        ({"head_dim": 30}, "head_dim must be a multiple of lanes = 4, not 30; nearest: 32"),
        ({"max_columns": 100}, "max_columns must be at least hidden = 160, not 100"),
        ({"partials": 4}, "partials must be a power of two of at least 6, not 4; nearest: 8"),
        ({"params_rows": 1, "lanes": 4}, "params_rows"),
        ({"rope_rows": 63}, r"rope_rows must be at least max_tokens \* head_dim / lanes = 64, not 63"),
        ({"format": FP32}, "format must have at most 24 bits, not 32"),
        ({"activation": "gelu"}, "activation"),
        ({"lane": 4}, "lane"),
    ],
)
def test_refused_configurations(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        VectorConfig(**change)


@pytest.mark.parametrize(
    ("change", "tokens", "message"),
    [
        ({}, 9, "VECTOR.tokens must be in 1 … 8, not 9"),
        ({"columns": 162}, 1, "VECTOR.columns must be a positive multiple of 4, not 162"),
        ({"operation": Operation.GATE, "columns": 164}, 1, "VECTOR.columns must be a positive multiple of 8, not 164"),
        ({"columns": 388, "group_columns": 4}, 1, "VECTOR.columns must be at most 384, not 388"),
        ({"operation": Operation.RESIDUAL, "columns": 164}, 1, "VECTOR.columns must be at most 160, not 164"),
        ({"group_columns": 64}, 1, "VECTOR.group_columns must be a multiple of 4 that divides 160, not 64"),
        ({"group_columns": 4}, 1, "VECTOR.group_columns must be at least 20, not 4"),
        ({"norm": 1, "group_columns": 80, "destination": Destination.HEAD}, 1, "VECTOR.group_columns must be the whole row of 160"),
        ({"operation": Operation.GATE, "write_x": 1}, 1, "VECTOR.write_x must be 0 but for COPY, not 1"),
        ({"segment1": 3}, 1, "VECTOR.segment1 must be a multiple of 4, not 3"),
    ],
)
def test_refused_instructions(change: dict[str, int], tokens: int, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        TINY.check({**BASE, **change}, tokens)


def test_too_many_gains_for_the_ring_are_refused() -> None:
    config = TINY.model_copy(update={"params_rows": 16})
    with pytest.raises(ConfigError, match="tile_columns must be at most 64 "):
        config.check({**BASE, "norm": 1}, 1)


def test_jobs_of_every_kind_are_drawn(rng: np.random.Generator) -> None:
    """The sample cannot quietly lose a kind of instruction."""
    jobs: list[VectorJob] = [vector.draw_job(TINY, rng) for _ in range(400)]
    assert len({(job.fields["source"], job.fields["operation"], job.fields["norm"], job.fields["destination"]) for job in jobs}) == 3 * 4 * 2 * 3
