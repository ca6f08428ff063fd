# SPDX-License-Identifier: Apache-2.0
"""The PIM target on the cycle model: GPT-3 XL against its row bound, eight models over contexts, channel scaling, in-order issue.

Every case is one token of one model on one configuration; cases are spread over the machine's cores. Weights are not needed: cycles do not depend on them.
"""

import multiprocessing
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from lutra import pim
from lutra.hls_models.errors import ModelError
from lutra.hls_models.load import load_config
from lutra.hls_models.pim import in_order
from lutra.hls_models.pim.config import PimConfig
from lutra.hls_models.pim.system import SystemModel
from lutra.hls_models.pim.timing import load_timing
from lutra.mapping.catalogue import HERE
from lutra.mapping.pim.costs import Costs
from lutra.mapping.pim.lower import clear
from lutra.mapping.pim.partition import chunk_columns, partition
from lutra.mapping.pim.shape import GptShape
from lutra.mapping.pim.trace import parse_trace
from lutra.progress import step

__all__ = ["CHANNELS", "CONTEXTS", "MODELS", "SCALING_CONTEXT", "Case", "cases", "clearing", "layer_trace", "measure", "token"]

MODELS = ("gpt2-small", "gpt2-medium", "gpt2-large", "gpt2-xl", "gpt3-small", "gpt3-medium", "gpt3-large", "gpt3-xl")
CONTEXTS = (*(1 << i for i in range(11)), 2048, 4096, 8192)
CHANNELS = (1, 2, 4, 8, 16, 32)
SCALING_CONTEXT = 1024
PRESET = "pim-gpt"
XL = "gpt3-xl"
Changes = tuple[tuple[str, Any], ...]
OFF: Changes = (("refresh", False),)

VARIANTS: dict[str, Changes] = {
    "1 accumulator": OFF,
    "1 accumulator, no activate in register mode": (*OFF, ("activate_in_register_mode", False)),
    "2 accumulators": (*OFF, ("accumulators_per_bank", 2)),
    "4 accumulators": (*OFF, ("accumulators_per_bank", 4)),
    "8 accumulators": (*OFF, ("accumulators_per_bank", 8)),
    "16 accumulators": (*OFF, ("accumulators_per_bank", 16)),
    "1 accumulator, refresh 105 ns / 1.667 us": (),
    "1 accumulator, no activate in register mode, refresh": (("activate_in_register_mode", False),),
    "plain GDDR6, refresh 120 ns / 1.9 us": (("timing", "gddr6-1900"),),
    "plain GDDR6, refresh 83 ns / 7.8 us": (("timing", "gddr6-7800"),),
}
"""GPT-3 XL's configurations by name: what differs from the preset."""
TURNS = "1 accumulator, channels and companion chip in turn"


@dataclass(frozen=True)
class Case:
    """A token of a model; ``group``: what it is for, ``name``: within the group."""

    group: str
    name: str
    model: str
    context: int
    changes: Changes = ()
    ignore_capacity: bool = False
    overlap: bool = True


def cases() -> Iterator[Case]:
    """All tokens, the longest first."""
    for model in reversed(MODELS):
        for channels in CHANNELS:
            yield Case("scaling", str(channels), model, SCALING_CONTEXT, (("channels", channels),), ignore_capacity=True)
        for context in reversed(CONTEXTS):
            yield Case("sweep", str(context), model, context)
    for context in (1, 1024):
        for name, changes in VARIANTS.items():
            yield Case("gpt3-xl", name, XL, context, changes)
        yield Case("gpt3-xl", TURNS, XL, context, OFF, overlap=False)
        yield Case("gpt3-xl", "1 accumulator, the reading of 24 heads x 128", "gpt3-xl-24", context, OFF)


def _shape(model: str) -> GptShape:
    return GptShape.from_yaml(HERE / "shapes" / "pim" / f"{model}.yaml")


def token(case: Case) -> dict[str, Any]:
    """Figures of a case, or ``refused`` with the reason; room for as many tokens as the context needs."""
    found: dict[str, Any] = {"group": case.group, "name": case.name, "model": case.model, "context": case.context}
    config = load_config(PRESET, PimConfig).model_copy(update=dict(case.changes))
    shape, timing, begin = _shape(case.model), load_timing(config.timing), time.process_time()
    try:
        made = partition(shape, config, tokens=case.context, ignore_capacity=case.ignore_capacity)
    except ModelError as error:
        return found | {"refused": str(error)}
    run = pim.token_time(made, timing, case.context, overlap=case.overlap)
    seconds, report = time.process_time() - begin, pim.report_of(run)
    dram, energy = report.dram, report.energy
    assert dram is not None and energy is not None
    rows = pim.bound_rows(shape, config, case.context)
    return found | {
        "shape_only": case.context > shape.context,
        "fits": dram.fits,
        "channels": config.channels,
        "parameters": shape.parameters,
        "cycles": run.cycles,
        "cycles_without_buffer_write_in_array_mode": run.cycles + pim.later_mode_changes(run),
        "tokens_per_second": 1 / run.seconds,
        "joules_per_token": energy.joules_per_token,
        "row_hit_rate": dram.row_hit_rate,
        "bound_rows": rows,
        "row_cycles": pim.row_cycles(config, timing),
        "fraction_of_row_bound": run.fraction_of_row_bound,
        "over_row_bound": 1 / run.fraction_of_row_bound,
        "fraction_of_bandwidth": report.memory.fraction_of_ceiling if report.memory else None,
        "used_bytes": dram.used_bytes,
        "capacity_bytes": dram.capacity_bytes,
        "idle_banks": dram.idle_banks,
        "row_switches": dram.row_switches,
        "pin_bytes": dram.pin_bytes,
        "nanoseconds": dram.nanoseconds,
        "energy": energy.parts,
        "layer_cycles": sorted(layer.cycles for layer in report.layers or ())[shape.layers // 2],
        "cpu_seconds": round(seconds, 3),
    }


def layer_trace(shape: GptShape, config: PimConfig) -> str:
    """The matrices of a layer as an AiM trace in the naive order: per chunk the buffer, per row of outputs bias, MACs and read-out."""
    mask, banks = (1 << config.channels) - 1, config.channels * config.banks
    d, q = shape.hidden, shape.query_columns
    lines, row = ["W CFR 0 0"], 0
    for outputs, inputs in ((3 * q, d), (d, q), (shape.ffn, d), (d, shape.ffn)):
        groups = -(-outputs // banks)
        for columns in chunk_columns(inputs, groups, Costs.of(config)):
            lines.append(f"AiM WR_GB {columns} 0 {mask}")
            for _ in range(groups):
                lines += [f"AiM WR_BIAS 0 {mask}", f"AiM MAC_ABK {columns} {mask} {row}", f"AiM RD_MAC 0 {mask}"]
                row += 1
    return "\n".join([*lines, "AiM EOC"])


def _in_order() -> dict[str, Any]:
    """One layer of GPT-3 XL, its matrices only, under the open simulator's policy."""
    config, timing = load_config(PRESET, PimConfig), load_timing("gddr6-aim")
    requests = parse_trace(layer_trace(_shape(XL), config))
    rows = sum(request.opcode is in_order.Opcode.MAC_ABK for request in requests)
    bound = rows * pim.row_cycles(config, timing)
    cycles = {name: in_order.run_trace(requests, timing, refresh=refresh).cycles for name, refresh in (("without refresh", False), ("with refresh", True))}
    return {"rows": rows, "bound_cycles": bound, "cycles": cycles, "over_row_bound": {name: value / bound for name, value in cycles.items()}}


def clearing() -> dict[str, Any]:
    """Zeroing the values' room of one step of tokens of GPT-3 XL, refresh on: what no token's figures contain."""
    config = load_config(PRESET, PimConfig)
    made = partition(_shape(XL), config, tokens=1)
    run = SystemModel(config, load_timing(config.timing), clear(made)).run()
    return {"model": XL, "tokens": made.reservation, "cycles": run.cycles, "cycles_per_token": run.cycles / made.reservation}


def measure(cores: int | None = None) -> dict[str, Any]:
    """Every case by group; ``seconds`` of wall-clock time on ``cores`` (default: all of them)."""
    begin, todo = time.perf_counter(), list(cases())
    found: list[dict[str, Any]] = []
    with step("timing tokens") as update, multiprocessing.get_context("spawn").Pool(cores or os.cpu_count()) as pool:
        layer, zeros = pool.apply_async(_in_order), pool.apply_async(clearing)
        for done, figures in enumerate(pool.imap(token, todo), 1):
            found.append(figures)
            update(done, len(todo))
        in_turn, cleared = layer.get(), zeros.get()
    groups: dict[str, list[dict[str, Any]]] = {}
    for figures in found:
        groups.setdefault(figures.pop("group"), []).append(figures)
    _efficiency(groups["scaling"])
    spent = {"seconds": round(time.perf_counter() - begin, 1), "cpu_seconds": round(sum(row.get("cpu_seconds", 0) for row in found), 1)}
    return {**spent, "cores": cores or os.cpu_count(), "in_order_layer": in_turn, "clearing": cleared, **groups}


def _efficiency(points: list[dict[str, Any]]) -> None:
    """Speed-up over channels, against the smallest number of channels that holds the model."""
    for model in MODELS:
        its = [point for point in points if point["model"] == model]
        first = min((point for point in its if point["fits"]), key=lambda point: point["channels"])
        for point in its:
            point["efficiency"] = first["cycles"] * first["channels"] / (point["cycles"] * point["channels"])
