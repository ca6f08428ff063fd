# SPDX-License-Identifier: Apache-2.0
"""The smallest core on a shared memory of two ports, as tests of the processor's side use it, and its simulations with pins."""

from pathlib import Path
from typing import Any

import numpy as np
from amaranth.hdl import Elaboratable, Module, Signal
from amaranth.lib.wiring import Out

from lutra.cosim import simulator
from lutra.fpga_flows.boards import load_board
from lutra.fpga_flows.vivado.project import Facts, project_files, top_of
from lutra.hls_models.shape import ModelShape
from lutra.hls_models.ternary.config import CoreConfig
from lutra.hls_models.ternary.core import CoreSpec
from lutra.hls_models.ternary.kv_layout import KvLayout
from lutra.hls_models.ternary.memory import PORT_BYTES, MemoryConfig
from lutra.hls_models.ternary.program import Program
from lutra.mapping.lower import compile_model
from lutra.mapping.model import TernaryModel
from lutra.rtl.axi.reader import AxiReader
from lutra.rtl.axi.writer import AxiWriter
from lutra.rtl.board.processor import ProcessorTop
from lutra.rtl.ternary.shared_system import SharedSystem
from lutra.rtl.verilog import emit_rtlil, from_rtlil, library_text, share_modules, spare

SHAPE = ModelShape(
    name="small", hidden=64, layers=1, heads=1, kv_heads=1, head_dim=32, ffn=16, vocabulary=30, context=24, activation="relu2", sub_norms=False, tied=False
)
CONFIG = CoreConfig(
    name="small-shared",
    clock_hz=250e6,
    tables=2,
    columns=2,
    lanes=3,
    draft_lanes=3,
    vector_lanes=4,
    allow_stalls=True,
    ring_rows=256,
    max_tile_columns=32,
    chunk=3,
    key_tile=8,
    beat_bytes=32,
    params_rows=128,
    rope_rows=64,
    program_words=64,
    best=3,
    queue=2,
    memory=MemoryConfig(ports=2, burst_beats=8, outstanding=2, latency=16, write_latency=8),
)
SPEC = CoreSpec(config=CONFIG, shape=SHAPE)
MODEL_SEED = 4
"""Of a model whose greedy text is no single token, and repeats itself."""


def small_program() -> Program:
    return compile_model(TernaryModel.random(SHAPE, MODEL_SEED), CONFIG)


def write_software(folder: Path, program: Program) -> None:
    """What a project's folder has for the processor, and the memory image beside it."""
    module, top = top_of(SPEC)
    spare(module)
    for name, text in project_files(SPEC, load_board("kv260"), Facts(program.beats, {}, {}), clock_hz=CONFIG.clock_hz, top=top, verilog="").items():
        if name.startswith("software/"):
            (folder / Path(name).name).write_text(text)
    assert program.image is not None
    np.asarray(program.image).tofile(folder / "memory.bin")


class MastersTop(Elaboratable):
    """Reader and writer with flat pins."""

    def __init__(self, kv: KvLayout) -> None:
        self._reader, self._writer = AxiReader(ports=kv.beat_bytes // PORT_BYTES, queue_beats=4), AxiWriter(kv)
        reader, writer = self._reader, self._writer
        self.ports: dict[str, tuple[Signal, None]] = {}
        self._pins: list[tuple[Signal, Any, bool]] = []
        for prefix, interface, flow in [*((f"axi_read{i}", axi, Out) for i, axi in enumerate(reader.axi)), ("axi_write", writer.axi, Out)]:
            for path, member, value in interface.signature.flatten(interface):
                self._add(f"{prefix}_{path[0]}", value, driven=member.flow is flow)
        request, row = reader.request.payload, writer.row.payload
        given = {"request_valid": reader.request.valid, "request_address": request.address, "request_beats": request.beats, "data_ready": reader.data.ready}
        given |= {"row_valid": writer.row.valid, "row_address": row.address, "row_codes": row.row.codes.as_value(), "row_scale": row.row.scale}
        shown = {"request_ready": reader.request.ready, "data_valid": reader.data.valid, "data_payload": reader.data.payload, "row_ready": writer.row.ready}
        shown |= {"idle": writer.idle, "read_error": reader.error, "write_error": writer.error}
        for name, value in given.items():
            self._add(name, value, driven=False)
        for name, value in shown.items():
            self._add(name, value, driven=True)
        self._bases = [Signal(28, name=f"base{port}") for port in range(reader.ports)]
        self.ports |= {base.name: (base, None) for base in self._bases}

    def _add(self, name: str, value: Any, *, driven: bool) -> None:
        pin = Signal(len(value), name=name)
        self._pins.append((pin, value, driven))
        self.ports[name] = (pin, None)

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.submodules.reader, m.submodules.writer = self._reader, self._writer
        m.d.comb += [pin.eq(value) if driven else value.eq(pin) for pin, value, driven in self._pins]
        m.d.comb += [part.base[port].eq(base) for part in (self._reader, self._writer) for port, base in enumerate(self._bases)]
        return m


def build_masters(kv: KvLayout) -> simulator.Build:
    """AxiReader and AxiWriter for ``pins_masters``."""
    top = MastersTop(kv)
    rtlil = share_modules(emit_rtlil(top, "top", ports=top.ports))
    return simulator.build_pins(rtlil + library_text(rtlil), lambda: from_rtlil(rtlil))


def build_processor() -> simulator.Build:
    """The core and everything up to a processor, for ``pins_processor``."""

    def make() -> dict[str, str]:
        top = ProcessorTop(SharedSystem(SPEC))
        return {"rtlil": share_modules(emit_rtlil(top, "top", ports=top.ports))}

    rtlil = simulator.kept_texts(["processor", SPEC.model_dump(mode="json")], make)["rtlil"]
    return simulator.build_pins(rtlil + library_text(rtlil), lambda: from_rtlil(rtlil))
