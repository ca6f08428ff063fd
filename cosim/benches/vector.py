# SPDX-License-Identifier: Apache-2.0
"""Bench of rtl/ternary/vector.py: random instructions of every kind, ordinary and adversarial values, stalls on every port."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from lutra.cosim.benches.head import Case
from lutra.cosim.harness import Stimulus
from lutra.hls_models import floats
from lutra.hls_models.floats import BF16, E8M11, FP16, FP32, FloatFormat
from lutra.hls_models.streams import Ready, pack
from lutra.hls_models.ternary.isa import PASS_FIELDS, UNIT_FIELDS, Destination, Operation, Source, Unit
from lutra.hls_models.ternary.vector import LANE_BITS, Parameters, Requantised, Vector, VectorConfig, rope_rows, to_beats
from lutra.hls_models.ternary.vector_cycles import PORTS, VectorJob, VectorTiming

__all__ = ["case", "configurations", "draw_job", "pack_codes", "pack_instruction"]

Bits = NDArray[np.uint32]


def configurations(seed: int, count: int = 12) -> list[VectorConfig]:
    """The smallest unit, the tiny preset's, other formats, many lanes (6 or 8); every other size is drawn from the seed. A third feeds ATTEND floats."""
    rng = np.random.default_rng(seed)
    found = [
        VectorConfig(lanes=2, max_tokens=1, max_columns=2, hidden=2, head_dim=2, params_rows=4, rope_rows=1, max_groups=1, dividers=1, accumulator_bits=2),
        VectorConfig(lanes=4, activation="relu2"),
        _draw(rng, 2, "relu2", BF16),
        _draw(rng, 2, "relu2", FP16).model_copy(update={"kv_format": "fp16"}),
        _draw(rng, (8, 6)[seed // 2 % 2], "silu", E8M11),
    ]
    while len(found) < count:  # two lanes: the sizes matter here, and more lanes take longer to build
        kv_format = "int8" if len(found) % 3 else "fp16"
        found.append(_draw(rng, 2, ("relu2", "silu")[len(found) % 2], E8M11).model_copy(update={"kv_format": kv_format}))
    return found[:count]


def _draw(rng: np.random.Generator, v: int, activation: str, F: FloatFormat) -> VectorConfig:
    hidden, heads, tokens = v * int(rng.integers(1, 12)), int(rng.integers(1, 4)), int(rng.integers(1, 6))
    rope = tokens * heads
    return VectorConfig.model_validate(
        {
            "lanes": v,
            "format": F,
            "accumulator_bits": int(rng.integers(2, 25)),
            "max_tokens": tokens,
            "max_columns": hidden + v * int(rng.integers(0, 20)),
            "hidden": hidden,
            "head_dim": v * heads,
            "activation": activation,
            "partials": int(rng.choice([8, 16])),
            "params_rows": max(-(-160 // (24 * v)), int(rng.integers(2, 24))),
            "rope_rows": rope + int(rng.integers(0, 5)),
            "max_groups": int(rng.integers(1, 12)),
            "dividers": int(rng.choice([1, 2, 3, 4])),
        }
    )


def draw_job(config: VectorConfig, rng: np.random.Generator, source: Source | None = None) -> VectorJob:
    """A random instruction that the unit can execute."""
    v = config.lanes
    while True:
        operation = Operation(int(rng.integers(0, 4)))
        gated = int(operation == Operation.GATE)
        limit = config.hidden if operation == Operation.RESIDUAL else config.max_columns
        beats = int(rng.choice([1, limit // v, int(rng.integers(1, limit // v + 1))]))
        write_x = int(operation == Operation.COPY and beats * v <= config.hidden and rng.random() < 0.6)
        norm = int(rng.random() < 0.6)
        most = min(beats, config.params_rows) if norm else beats
        tile = int(rng.choice([1, most, int(rng.integers(1, most + 1))]))
        groups = [g for g in range(1, beats + 1) if beats % g == 0 and beats // g <= config.max_groups]
        group = beats if rng.random() < 0.3 and beats in groups else int(rng.choice(groups))
        tile += int(tile == most == beats and not norm and rng.random() < 0.3)  # a tile wider than the row
        destination = Destination(int(rng.integers(0, 3)))
        if norm and destination == Destination.HEAD:
            group = beats
        columns = beats * v << gated
        fields = {
            "source": int(rng.integers(0, 3) if source is None else source),
            "operation": int(operation),
            "norm": norm,
            "write_x": write_x,
            "destination": int(destination),
            "columns": columns,
            "tile_columns": tile * v << gated,
            "group_columns": group * v,
            "rope_columns": v * int(rng.integers(0, columns // v + 2)),
            "segment1": v * int(rng.integers(0, columns // v + 1)),
            "segment2": v * int(rng.integers(0, columns // v + 1)),
        }
        tokens = int(rng.choice([1, config.max_tokens, int(rng.integers(1, config.max_tokens + 1))]))
        config.check(fields, tokens)
        return VectorJob(fields, tokens)


def _patterns(rng: np.random.Generator, F: FloatFormat, shape: tuple[int, ...], spread: float, wild: float) -> Bits:
    """Normal values of the given spread; a share ``wild`` are patterns of any kind (every NaN being the one)."""
    ordinary = floats.from_float64(F, rng.normal(0, spread, shape))
    kinds = rng.integers(0, 8, shape)
    special = rng.choice(np.array([0, F.sign, F.infinity, F.infinity | F.sign, F.nan, F.min_normal, F.max_finite, 1]), shape)
    bits = np.where(kinds < 4, rng.integers(0, F.mask + 1, shape), special)
    bits = np.where((bits & F.magnitude) > F.infinity, F.nan, bits)
    return np.where(rng.random(shape) < wild, bits, ordinary).astype(np.uint32)


def _source(config: VectorConfig, rng: np.random.Generator, job: VectorJob, wild: float) -> dict[str, Any]:
    shape = (job.tokens, job.fields["columns"])
    zeros = rng.random(shape[0]) < wild
    if job.fields["source"] == Source.VALUES:
        halves = config.kv_format == "fp16" and job.fields["destination"] == Destination.ATTEND  # some of which overflow
        values = _patterns(rng, config.format, shape, 10.0 ** rng.integers(-2, 7 if halves else 3), wild)
        values[0, -1] = config.format.infinity if halves else values[0, -1]
        return {"values": np.where(zeros[:, None], values & config.format.sign, values)}
    if job.fields["source"] == Source.EMBED:
        codes = rng.integers(-128, 128, shape).astype(np.int8)
        return {"embed": (np.where(zeros[:, None], 0, codes).astype(np.int8), _patterns(rng, FP32, shape[:1], 0.01, wild))}
    limit = 1 << (config.accumulator_bits - 1)
    sums = rng.integers(-limit, limit, shape)
    return {"sums": np.where(zeros[:, None], 0, sums)}


def _parameters(config: VectorConfig, rng: np.random.Generator, job: VectorJob, wild: float) -> Parameters:
    results = job.fields["columns"] >> (job.fields["operation"] == Operation.GATE)
    scales = _patterns(rng, FP32, (3,), 10.0 ** rng.integers(-3, 2), wild)
    reciprocal, eps = floats.from_float64(FP32, [1 / results, 1e-5]).tolist()
    gains = _patterns(rng, config.format, (results,), 1.0, wild / 4) if job.fields["norm"] else None
    if rng.random() < wild:
        reciprocal, eps = _patterns(rng, FP32, (2,), 1.0, 1.0).tolist()
    return Parameters(scales, reciprocal, eps, gains)


def pack_instruction(job: VectorJob, position: int = 0) -> Bits:
    """Payload of ``instr``: (1, words)."""
    values = {**job.fields, "tokens": job.tokens, "position": position, "serial": 0}
    return pack(*((np.array([values[f.name]]), f.bits) for f in UNIT_FIELDS[Unit.VECTOR] + PASS_FIELDS))


def pack_codes(config: VectorConfig, job: VectorJob, result: Requantised) -> Bits:
    """Payloads of ``codes``, in order: (beats, words)."""
    beats = result.beats(config.lanes)
    n, groups, per_group, _ = beats.shape
    token, group, beat = (index.reshape(-1) for index in np.indices((n, groups, per_group)))
    group_last = beat == per_group - 1
    return pack(
        (beats.reshape(-1, config.lanes), config.code_bits),
        (np.repeat(result.scales.reshape(-1), per_group), 32),
        (np.full(len(token), job.fields["destination"]), 2),
        (token, 8),
        (group, 8),
        (group_last & (group == groups - 1), 1),
        (group_last, 1),
    )


def _gaps(rng: np.random.Generator, count: int, rest: int) -> NDArray[np.int64]:
    """Earliest cycles: at once, with short gaps, with long ones, or in bursts ``rest`` cycles apart."""
    steps = rng.integers(0, rng.choice([1, 3, 9]), count)
    bursts = np.where(rng.random(count) < rng.choice([0.0, 0.05]), rng.integers(0, max(1, rest), count), 0)
    return np.cumsum(steps + bursts).astype(np.int64)


def case(config: VectorConfig, rng: np.random.Generator, instructions: int = 6) -> Case:
    """A few instructions from reset on, the first from the embedding, with golden payloads and predicted cycles of every port."""
    golden, jobs = Vector(config), []
    words: dict[str, list[Bits]] = {name: [] for name in PORTS}
    for number in range(instructions):
        job = draw_job(config, rng, Source.EMBED if number == 0 else None)
        wild = float(rng.choice([0.0, 0.1, 0.5]))
        jobs.append(job)
        data, params = _source(config, rng, job, wild), _parameters(config, rng, job, wild)
        pairs = _patterns(rng, config.format, (job.tokens, config.head_dim // 2, 2), 1.0, wild / 4)
        result = golden.run(job.fields, job.tokens, params=params, rope_pairs=pairs, **data)
        v, tile = config.lanes, job.fields["tile_columns"]
        words["instr"].append(pack_instruction(job, number))
        if "sums" in data:
            words["sums"].append(pack((to_beats(data["sums"], tile, v), config.accumulator_bits)))
        elif "values" in data:
            words["values"].append(pack((to_beats(data["values"], tile, v), config.format.bits)))
        else:
            codes, scales = data["embed"]
            beside = to_beats(np.repeat(scales[:, None], codes.shape[1], axis=1), tile, v)[:, 0]
            words["embed"].append(pack((to_beats(codes, tile, v), 8), (beside, 32)))
        words["params"].append(pack((params.rows(config), LANE_BITS)))
        if job.fields["operation"] == Operation.ROPE:
            words["rope"].append(pack((rope_rows(pairs, v), LANE_BITS)))
        words["codes"].append(pack_codes(config, job, result))
    joined = {name: np.concatenate(parts) for name, parts in words.items() if parts}
    offered = {name: _gaps(rng, len(joined.get(name, ())), 400) for name in ("instr", "sums", "values", "embed", "params", "rope")}
    rate = rng.choice([0.1, 0.5, 0.9, 1.0])
    ready = {name: np.repeat(rng.random(4000) < rate, rng.choice([1, 9]))[:4000] for name in ("codes", "done")}
    times = VectorTiming(config).run(jobs, offered, {name: Ready(trace) for name, trace in ready.items()})
    ones = {name: np.ones((len(times[name]), 1), np.uint32) for name in ("params_freed", "rope_freed", "done")}
    return Case(
        stimuli={name: Stimulus(joined[name], cycles) for name, cycles in offered.items() if len(cycles)},
        ready=ready,
        expected={name: ((joined | ones).get(name, np.zeros((0, 1), np.uint32)), times[name]) for name in PORTS},
    )
