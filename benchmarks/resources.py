# SPDX-License-Identifier: Apache-2.0
"""The resource model against synthesis for xcup: fits its coefficients over small and large blocks, states its error over blocks that took no part, and
counts the whole cores of the presets for a KV260 with the slowest path of every block, and the slowest one through a DSP block."""

import json
from collections.abc import Iterable
from datetime import date
from typing import Any

import numpy as np

from benchmarks.resource_samples import HELD_OUT, SAMPLES
from lutra.fpga_flows.devices import load_device
from lutra.fpga_flows.paths import Path, slowest_paths
from lutra.fpga_flows.resources import block_netlists, measured
from lutra.fpga_flows.yosys import version
from lutra.hls_models.load import load_config
from lutra.hls_models.ternary import resources as model
from lutra.hls_models.ternary.block_features import FEATURES, Features
from lutra.hls_models.ternary.block_memories import MEMORIES
from lutra.hls_models.ternary.config import CoreConfig
from lutra.hls_models.ternary.core import CoreSpec
from lutra.hls_models.ternary.resources import DATA, FITTED, KINDS, Resources, block_configs, block_resources, counted
from lutra.mapping.catalogue import open_model

__all__ = ["check_samples", "fit", "measure", "non_negative"]

CORES = [(preset, shape) for preset in ("kv260", "kv260-planes") for shape in ("bitnet-0.73b", "bitnet-2b4t")]
CLOCK_HZ = 250e6


_found: dict[tuple[str, str], Resources] = {}
"""Synthesised resources of this run, by block and configuration."""


def _synthesised(block: str, config: Any) -> Resources:
    key = block, config.model_dump_json()
    if key not in _found:
        _found[key] = measured(block_netlists(block, config))
    return _found[key]


def _targets(block: str, config: Any) -> tuple[Resources, dict[str, float]]:
    """Synthesised resources, and what of them the coefficients have to explain."""
    found = _synthesised(block, config)
    rams = Resources()
    for memory in MEMORIES[block](config, "xcup"):
        rams += counted(memory)
    return found, {"logic": found.lut - found.lutram, "shift": max(0.0, found.lutram - rams.lutram), "ff": found.ff, "dsp": found.dsp}


def non_negative(rows: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Least squares with coefficients of at least zero (Lawson and Hanson, Solving Least Squares Problems, chapter 23)."""
    found, free = np.zeros(rows.shape[1]), np.zeros(rows.shape[1], bool)
    for _ in range(3 * len(found)):
        slope = np.where(free, 0, rows.T @ (values - rows @ found))
        if slope.max() <= 1e-9:
            break
        free[slope.argmax()] = True
        while True:
            wanted = np.zeros_like(found)
            wanted[free] = np.linalg.lstsq(rows[:, free], values, rcond=None)[0]
            below = free & (wanted <= 0)
            if not below.any():
                found = wanted
                break
            found += (wanted - found) * (found[below] / (found[below] - wanted[below])).min()  # up to the first that would change its sign
            free &= found > 1e-12
            found[~free] = 0
    return found


def check_samples() -> None:
    """Whether a fit can tell every feature's share, and is held against what it has not seen.

    Raises
    ------
    ValueError
        Samples of a block have too little between them, or a held-out configuration is a sample in all that the model sees of it.
    """
    for block, samples in SAMPLES.items():
        seen = [FEATURES[block](config) for config in samples]
        rank = np.linalg.matrix_rank(_matrix(seen)[0])
        if rank < len(seen[0]):
            raise ValueError(f"samples of {block} must tell its {len(seen[0])} features apart, not {rank} of them")
        if known := [config for config in HELD_OUT[block] if FEATURES[block](config) in seen]:
            raise ValueError(f"held-out configurations of {block} must differ from its samples, not be {known[0]}")


def _matrix(features: list[Features]) -> tuple[np.ndarray, np.ndarray]:
    """A row for each configuration, columns scaled to 1 at most, and the scales."""
    rows = np.array([list(one.values()) for one in features], np.float64)
    scale = np.maximum(np.abs(rows).max(axis=0), 1e-9)
    return rows / scale, scale


def fit(block: str) -> dict[str, dict[str, float]]:
    """Coefficients of a block over its samples: relative errors are squared, so that small blocks count as much as large ones."""
    targets = [_targets(block, config)[1] for config in SAMPLES[block]]
    features = [FEATURES[block](config) for config in SAMPLES[block]]
    matrix, scale = _matrix(features)
    out: dict[str, dict[str, float]] = {}
    for kind in FITTED:
        wanted = np.array([target[kind] for target in targets])
        weight = 1 / (wanted + 0.02 * max(1.0, wanted.max()))
        found = non_negative(matrix * weight[:, None], wanted * weight) / scale
        out[kind] = {name: float(f"{value:.6g}") for name, value in zip(features[0], found, strict=True) if value > 0}
    return out


def _errors(block: str, coefficients: dict[str, dict[str, float]], configs: list[Any]) -> list[dict[str, float]]:
    """Relative errors of the kinds that a block has."""
    out = []
    for config in configs:
        found, predicted = _synthesised(block, config), block_resources(block, config, coefficients)
        out.append({kind: getattr(predicted, kind) / getattr(found, kind) - 1 for kind in KINDS if getattr(found, kind) >= 8})
    return out


def _statistics(errors: list[dict[str, float]]) -> dict[str, dict[str, float]]:
    kinds = sorted({kind for one in errors for kind in one}, key=KINDS.index)
    sizes = {kind: [abs(one[kind]) for one in errors if kind in one] for kind in kinds}
    return {kind: {"mean": round(float(np.mean(found)), 4), "max": round(max(found), 4), "blocks": len(found)} for kind, found in sizes.items()}


def _slowest(found: Iterable[Path]) -> Path:
    return max(found, key=lambda path: path.nanoseconds)


def _stated(path: Path) -> dict[str, Any]:
    steps = {"levels": path.levels, "carries": path.carries, "inside": list(path.inside)}
    return {**steps, "nanoseconds": round(path.nanoseconds, 2), "from": path.start, "to": path.end}


def _core(preset: str, shape: str, limit: float, totals: dict[str, float]) -> dict[str, Any]:
    """A core of a preset by synthesis and by the model, block by block, with the slowest path of each."""
    spec = CoreSpec(config=load_config(preset, CoreConfig), shape=open_model(shape))  # type: ignore[arg-type]
    whole, predicted = Resources(), model.resources(spec)
    blocks: dict[str, dict[str, Any]] = {}
    for block, config in block_configs(spec).items():
        netlists = block_netlists(block, config)
        found = measured(netlists)
        whole += found
        paths = [list(slowest_paths(netlist)) for netlist in netlists]
        path = _slowest(one[0] for one in paths if one)  # a component of wires has none
        through = [path for one in paths for path in one if path.inside]
        slow, likely, fast = netlists[0].family.timing.clock_hz(path.nanoseconds)
        blocks[block] = {
            "synthesis": {kind: getattr(found, kind) for kind in KINDS},
            "model": {kind: round(getattr(predicted.parts[block], kind), 1) for kind in KINDS},
            "path": _stated(path),
            "dsp_path": _stated(_slowest(through)) if through else None,
            "clock_mhz": {"pessimistic": round(slow / 1e6), "likely": round(likely / 1e6), "optimistic": round(fast / 1e6)},
        }
    shares = whole.shares(totals)
    return {
        "blocks": blocks,
        "synthesis": {kind: getattr(whole, kind) for kind in KINDS},
        "model": {kind: round(getattr(predicted, kind), 1) for kind in KINDS},
        "shares": {kind: round(share, 4) for kind, share in shares.items()},
        "fits": all(share <= limit for share in shares.values()),
        "slowest_clock_mhz": min((one["clock_mhz"] for one in blocks.values()), key=lambda clock: clock["likely"]),
    }


def measure() -> dict[str, Any]:
    """Fits, stores the coefficients where the model reads them, and counts the cores; hours without a cache, a minute with it."""
    check_samples()
    blocks = {block: fit(block) for block in SAMPLES}
    by_block = {block: _errors(block, blocks[block], HELD_OUT[block]) for block in SAMPLES}
    errors = {"all": _statistics([one for found in by_block.values() for one in found]), **{block: _statistics(found) for block, found in by_block.items()}}
    about = {"date": date.today().isoformat(), "yosys": version(), "errors": errors, "blocks": blocks}
    DATA.write_text(json.dumps(about, indent=1) + "\n")
    model.coefficients.cache_clear()
    device = load_device("kv260")
    totals = {str(kind): float(total) for kind, total in device.totals.items()}
    cores = {shape if preset == "kv260" else f"{shape}, {preset}": _core(preset, shape, device.limit, totals) for preset, shape in CORES}
    rule = "paths before placement, by the rule in fpga_flows/families.py; 250 MHz is a claim until a routed design backs it"
    return {"yosys": version(), "errors": errors, "clock_rule": rule, "cores": cores}
