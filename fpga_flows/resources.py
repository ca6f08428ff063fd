# SPDX-License-Identifier: Apache-2.0
"""Resources of a core's blocks by synthesis: what ``hls_models.ternary.resources`` is fitted to."""

from collections.abc import Callable, Mapping
from typing import Any

from lutra.fpga_flows.yosys import Netlist, synthesize
from lutra.hls_models.ternary.core import CoreSpec
from lutra.hls_models.ternary.memory import PORT_BYTES
from lutra.hls_models.ternary.resources import Resources, block_configs
from lutra.rtl.axi.reader import AxiReader
from lutra.rtl.axi.writer import AxiWriter
from lutra.rtl.ternary.attention import Attention
from lutra.rtl.ternary.core import CodeRouter
from lutra.rtl.ternary.dispatch import Dispatch
from lutra.rtl.ternary.head import Head
from lutra.rtl.ternary.kv_rows import KvRows
from lutra.rtl.ternary.loader import Loader
from lutra.rtl.ternary.registers import Registers
from lutra.rtl.ternary.sequencer import Sequencer
from lutra.rtl.ternary.tlmm import Tlmm
from lutra.rtl.ternary.vector import Vector
from lutra.rtl.ternary.weights import WeightPath

__all__ = ["COMPONENTS", "block_netlists", "core_netlists", "measured"]


def _control(spec: CoreSpec) -> list[Any]:
    config, shape = spec.config, spec.shape
    id_bits = max(1, (shape.vocabulary - 1).bit_length())
    sequencer = Sequencer(
        beat_bytes=config.beat_bytes,
        program_words=config.program_words,
        chunk=config.chunk,
        context=shape.context,
        id_bits=id_bits,
        program_ram="block" if config.device_ram == "ultra" else "distributed",
    )
    registers = Registers(context=shape.context, id_bits=id_bits, best=config.best, lanes=config.draft_lanes, config_hash=spec.hash)
    return [sequencer, Dispatch(depth=config.queue), registers, CodeRouter(spec.vector)]


def _memory(spec: CoreSpec) -> list[Any]:
    return [AxiReader(ports=spec.config.beat_bytes // PORT_BYTES), AxiWriter(spec.kv_layout), KvRows(spec.kv_layout)]


COMPONENTS: Mapping[str, Callable[[Any], list[Any]]] = {
    "linear": lambda config: [Tlmm(config=config)],
    "weights": lambda config: [WeightPath(config=config)],
    "vector": lambda config: [Vector(config)],
    "attention": lambda config: [Attention(config)],
    "head": lambda config: [Head(config)],
    "loader": lambda config: [Loader(config)],
    "control": _control,
    "memory": _memory,
}
"""Components of a block, by its name and configuration."""


def block_netlists(block: str, config: Any, family: str = "xcup") -> list[Netlist]:
    """Mapped netlists of a block's components."""
    return [synthesize(component, family) for component in COMPONENTS[block](config)]


def core_netlists(spec: CoreSpec, family: str = "xcup") -> dict[str, list[Netlist]]:
    """Of every block of a core, one after another: minutes each at full size, none where they are in the cache."""
    return {block: block_netlists(block, config, family) for block, config in block_configs(spec).items()}


def measured(netlists: list[Netlist]) -> Resources:
    """Resources of mapped netlists. Inverters count as look-up tables, although most vanish in their neighbours."""
    total = Resources()
    for netlist in netlists:
        kinds = netlist.kinds()
        lutram = kinds.get("lutram", 0)
        total += Resources(
            lut=kinds.get("lut", 0) + kinds.get("inverter", 0) + lutram,
            lutram=lutram,
            ff=kinds.get("ff", 0),
            bram36=kinds.get("bram36", 0),
            uram=kinds.get("uram", 0),
            dsp=kinds.get("dsp", 0),
        )
    return total
