# SPDX-License-Identifier: Apache-2.0
"""The preset kv260 on the cycle model: decode over contexts, time to the first token over prompts, curves of bandwidth, ports, clock and refresh.

Shapes alone are enough. A context of n: n rows of keys and values are attended, the present token included. Contexts beyond a model's own positions are
timed on the same sizes with room for 4,096 tokens; only addresses differ.
"""

import multiprocessing
import os
import time
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from benchmarks import tellme
from benchmarks.results import newest
from lutra import engine
from lutra.exploration.fit import Fit, check_fit
from lutra.figures import report_of
from lutra.fpga_flows.devices import load_device
from lutra.hls_models.errors import ConfigError
from lutra.hls_models.load import load_config, rule_of
from lutra.hls_models.shape import ModelShape
from lutra.hls_models.ternary.config import CoreConfig
from lutra.hls_models.ternary.core import CoreSpec
from lutra.hls_models.ternary.core_cycles import CoreTiming
from lutra.hls_models.ternary.core_units import PassPlan
from lutra.hls_models.ternary.memory import MemoryConfig
from lutra.hls_models.ternary.resources import KINDS
from lutra.mapping.catalogue import open_model
from lutra.progress import step
from lutra.proofs import sizes_hash

__all__ = ["CONTEXTS", "MODELS", "PLANES", "PRESET", "PROMPTS", "Case", "cases", "measure", "timed"]

PRESET = "kv260"
MODELS = ("bitnet-0.73b", "bitnet-2b4t")
CONTEXTS = (1, 16, 64, 128, 256, 512, 768, 1024, 1536, 2048, 3072, 4096)
PROMPTS = (64, 128, 512, 2048, 4096)
CURVE_CONTEXTS = (128, 1024)
CURVE_PROMPT = 128
ROOM = 4096
PLANES = "kv260-planes"
SHARES = (0.0, 0.1, 1.0)
"""Of a head's rows that are scored again: none (a row of each segment), a tenth, all; and what the shipped model was measured at (`planes`)."""

Changes = tuple[tuple[str, Any], ...]
CURVES: dict[str, dict[str, Changes]] = {
    "bandwidth": {
        "12.7 GB/s": (("rate_numerator", 127), ("rate_denominator", 160)),
        "14.0 GB/s": (("rate_numerator", 7), ("rate_denominator", 8)),
        "15.0 GB/s": (("rate_numerator", 15), ("rate_denominator", 16)),
        "16.0 GB/s (preset)": (),
    },
    "clock, four ports": {f"{mhz} MHz": (("clock_hz", mhz * 1e6),) for mhz in (200, 225, 250, 275, 300)},
    "ports at 250 MHz, 19.2 GB/s at most": {
        "4 ports": (),
        "5 ports": (("ports", 5),),
        "6 ports": (("ports", 6),),
    },
    "refresh": {"none visible (preset)": (), "88 of 1,950 cycles": (("refresh_period", 1950), ("refresh_window", 88))},
}
"""Variants by curve: what differs from the preset. 12.7 GB/s is what bitnet-kv260 reached on its body; no variant goes beyond the DDR4's peak."""


@dataclass(frozen=True)
class Case:
    """A model on a variant of the preset."""

    curve: str
    name: str
    model: str
    changes: Changes = ()
    prompts: tuple[int, ...] = (CURVE_PROMPT,)
    contexts: tuple[int, ...] = CURVE_CONTEXTS


def cases() -> list[Case]:
    """The longest first."""
    found = [Case("preset", PRESET, model, (), PROMPTS, CONTEXTS) for model in reversed(MODELS)]
    return found + [Case(curve, name, model, changes) for model in MODELS for curve, variants in CURVES.items() for name, changes in variants.items()]


def shape_of(case: Case) -> ModelShape:
    """The case's model, which is a shape alone."""
    shape = open_model(case.model)
    assert isinstance(shape, ModelShape)
    return shape


def row_bytes(spec: CoreSpec) -> dict[str, tuple[int, int]]:
    """Useful and stored bytes of a row of weights (what a lookup cycle needs) and of one of keys or values."""
    c = spec.config
    return {
        "weights": (-(-c.tables * c.columns * c.group // 5), c.row_beats * c.beat_bytes),
        "keys and values": (spec.shape.head_dim, spec.kv_layout.row_bytes),
    }


def core(case: Case, preset: str = PRESET) -> CoreSpec:
    """Its core; ConfigError where the variant is not possible for the model."""
    values = load_config(preset, CoreConfig).model_dump()
    for name, value in case.changes:
        (values["memory"] if name in values["memory"] else values)[name] = value
    device = load_device(values["device"])
    assert device.peak is not None
    memory = MemoryConfig.model_validate(values["memory"]).at_most(device.peak, values["clock_hz"])
    values |= {"memory": memory.model_dump(), "beat_bytes": memory.beat_bytes}
    shape = shape_of(case)
    try:
        spec = CoreSpec(config=CoreConfig.model_validate(values), shape=shape.model_copy(update={"context": max(ROOM, shape.context)}))
    except ValidationError as error:
        raise ConfigError(rule_of(error)) from None
    return spec


def fit_of(case: Case, spec: CoreSpec) -> Fit:
    """What the core takes with room for the model's own positions."""
    taken = check_fit(CoreSpec(config=spec.config, shape=shape_of(case)))
    assert taken is not None
    return taken[0]


def timed(case: Case) -> dict[str, Any]:
    """Figures of a case, or ``refused`` with the reason."""
    found: dict[str, Any] = {"curve": case.curve, "name": case.name, "model": case.model}
    begin = time.process_time()
    try:
        spec = core(case)
        program = engine.compile_program(spec.shape, spec.config)
    except ConfigError as error:
        return found | {"refused": str(error)}
    prefill, decode, facts = [], [], {}
    for prompt in case.prompts:
        report = report_of(spec, program, engine.timing(spec, program, prompt=prompt, contexts=[]))
        assert report.prefill is not None
        prefill.append({"tokens": prompt, "cycles": report.prefill.cycles, "seconds": report.prefill.seconds, "limit": report.prefill.limit})
    for context in case.contexts:
        report = report_of(spec, program, engine.timing(spec, program, prompt=1, contexts=[context]))
        assert report.decode is not None and report.memory is not None
        facts = {
            "bits_per_weight": report.memory.bits_per_weight,
            "bandwidth": report.memory.bandwidth_bytes_per_second,
            "image_bytes": report.memory.image_bytes,
            "row_bytes": row_bytes(spec),
        }
        decode.append(
            {
                "context": context,
                "cycles": int(report.decode.cycles_per_token),
                "tokens_per_second": report.decode.tokens_per_second,
                "ceiling": report.memory.ceiling_tokens_per_second,
                "fraction": report.memory.fraction_of_ceiling,
                "limit": report.decode.limit,
                "bytes": report.memory.bytes_per_token,
                "least_bytes": report.memory.least_bytes_per_token,
                "bytes_by_kind": report.memory.bytes_by_kind,
            }
        )
    fit = fit_of(case, spec)
    return (
        found
        | facts
        | {
            "clock_hz": spec.config.clock_hz,
            "positions": shape_of(case).context,
            "parameters": spec.shape.parameters,
            "core": sizes_hash(spec),
            "sizes": spec.config.model_dump(mode="json"),
            "prefill": prefill,
            "decode": decode,
            "resources": {kind: round(fit.used[kind], 1) for kind in KINDS},
            "fits": not fit.excess,
            "cpu_seconds": round(time.process_time() - begin, 2),
        }
    )


def serial() -> dict[str, dict[str, dict[str, int]]]:
    """Cycles of passes that verify drafts on the preset, by model, rows of keys and values that the last token attends, and tokens of the pass."""
    found: dict[str, dict[str, dict[str, int]]] = {}
    for model in MODELS:
        spec = core(Case("serial", PRESET, model))
        timing = CoreTiming(spec, engine.compile_program(spec.shape, spec.config))
        for context in CURVE_CONTEXTS:
            plans = [PassPlan(context - tokens, tokens, True, True) for tokens in range(1, spec.config.draft_lanes + 1)]
            found.setdefault(model, {})[str(context)] = {str(plan.tokens): one.cycles for plan, one in zip(plans, timing.passes(plans), strict=True)}
    return found


def planes() -> list[dict[str, Any]]:
    """Decoding with the head in two planes, by model, context and share of the rows that are scored again."""
    found, measured = [], newest("planes")
    shares = sorted({*SHARES, *([measured["rescored_share"]] if measured else [])})
    for model in MODELS:
        case = Case("planes", PLANES, model)
        spec = core(case, PLANES)
        program = engine.compile_program(spec.shape, spec.config)
        points = []
        for context in CURVE_CONTEXTS:
            for share in shares:
                report = report_of(spec, program, engine.timing(spec, program, prompt=2, contexts=[context], rescored=share))
                assert report.decode is not None and report.memory is not None
                points.append(
                    {
                        "context": context,
                        "share": share,
                        "cycles": int(report.decode.cycles_per_token),
                        "tokens_per_second": report.decode.tokens_per_second,
                        "ceiling": report.memory.ceiling_tokens_per_second,
                        "fraction": report.memory.fraction_of_ceiling,
                        "bytes": report.memory.bytes_per_token,
                        "least_bytes": report.memory.least_bytes_per_token,
                    }
                )
        fit = fit_of(case, spec)
        resources = {kind: round(fit.used[kind], 1) for kind in KINDS}
        about = {"model": model, "core": sizes_hash(spec), "resources": resources, "fits": not fit.excess}
        found.append({**about, "vocabulary": spec.shape.vocabulary, "points": points})
    return found


def measure(cores: int | None = None) -> dict[str, Any]:
    """Every case by curve, and TeLLMe's schedule; ``seconds`` of wall-clock time on ``cores`` (default: all of them)."""
    begin, todo = time.perf_counter(), cases()
    found: dict[str, list[dict[str, Any]]] = {}
    with step("timing kv260") as update, multiprocessing.get_context("spawn").Pool(cores or os.cpu_count()) as pool:
        for done, figures in enumerate(pool.imap(timed, todo), 1):
            found.setdefault(figures["curve"], []).append(figures)
            update(done, len(todo))
    return {
        "seconds": round(time.perf_counter() - begin, 1),
        "cores": cores or os.cpu_count(),
        "tellme": tellme.measure(),
        "serial": serial(),
        "planes": planes(),
        "curves": found,
    }
