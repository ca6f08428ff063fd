# SPDX-License-Identifier: Apache-2.0
"""The ternary core: units, sequencer and registers, connected."""

from amaranth import Module, Mux
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

from lutra.hls_models.ternary.core import CoreSpec
from lutra.hls_models.ternary.isa import Destination, Source, Unit
from lutra.hls_models.ternary.vector import VectorConfig
from lutra.rtl.tap import connect
from lutra.rtl.ternary.attention import Attention
from lutra.rtl.ternary.attention_items import kv_write_layout
from lutra.rtl.ternary.dispatch import Dispatch
from lutra.rtl.ternary.head import Head
from lutra.rtl.ternary.kv_rows import KvRows
from lutra.rtl.ternary.loader import Loader
from lutra.rtl.ternary.loader_issue import REQUEST
from lutra.rtl.ternary.registers import RegisterPort, Registers
from lutra.rtl.ternary.requantise import codes_layout
from lutra.rtl.ternary.sequencer import Sequencer
from lutra.rtl.ternary.tlmm import Tlmm
from lutra.rtl.ternary.vector import Vector
from lutra.rtl.ternary.weights import WeightPath

__all__ = ["CodeRouter", "Core"]


class Core(wiring.Component):
    """A whole decoder-only ternary transformer behind a register bus and its memory.

    Members
    -------
    bus : ``In(RegisterPort())``
    read, data : memory that is read (program, tables, parameters, weights; keys and values, too, where it is shared): bursts {address, beats} out, beats back
        in order.
    kv_write, kv_read, kv_data : key/value memory on chip, one row (fp32 scale and head_dim codes, or head_dim 16-bit floats) per address.
    kv_write, writer_idle : with a shared memory new rows go there; ``writer_idle`` is 1 while all of them are in it, 0 from the clock after a row's handshake.
    token : ``Out(stream)``
        Every chosen id as it comes; one clock, never waits for ``ready``.
    busy : ``Out(1)``
        A run is under way: an interrupt line for its falling edge.
    """

    def __init__(self, spec: CoreSpec) -> None:
        self.spec = spec
        row = spec.attention.row_bits
        cache = {"kv_read": Out(stream.Signature(24)), "kv_data": In(stream.Signature(row))}
        super().__init__(
            {
                "bus": In(RegisterPort()),
                "read": Out(stream.Signature(REQUEST)),
                "data": In(stream.Signature(8 * spec.config.beat_bytes)),
                "kv_write": Out(stream.Signature(kv_write_layout(spec.attention))),
                **({"writer_idle": In(1)} if spec.config.memory else cache),
                "token": Out(stream.Signature(20)),
                "busy": Out(1),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        spec, config, shape = self.spec, self.spec.config, self.spec.shape
        m.submodules.loader = loader = Loader(spec.loader)
        m.submodules.weights = weights = WeightPath(config=spec.weights)
        m.submodules.linear = linear = Tlmm(config=spec.tlmm)
        m.submodules.vector = vector = Vector(spec.vector)
        m.submodules.attend = attend = Attention(spec.attention)
        m.submodules.head = head = Head(spec.head)
        m.submodules.dispatch = dispatch = Dispatch(depth=config.queue)
        id_bits = max(1, (shape.vocabulary - 1).bit_length())
        m.submodules.sequencer = sequencer = Sequencer(
            beat_bytes=config.beat_bytes,
            program_words=config.program_words,
            chunk=config.chunk,
            context=shape.context,
            id_bits=id_bits,
            program_ram="block" if config.device_ram == "ultra" else "distributed",
        )
        m.submodules.registers = registers = Registers(
            context=shape.context, id_bits=id_bits, best=config.best, lanes=config.draft_lanes, config_hash=spec.hash
        )

        self._connect_control(m, sequencer, dispatch, registers)
        wiring.connect(m, dispatch.loader, loader.instr)
        self._connect_vector(m, dispatch, vector)
        wiring.connect(m, dispatch.attend, attend.instr)
        wiring.connect(m, dispatch.head, head.instr)
        # A LINEAR instruction starts the reader of the weight ring and the engine together.
        both = dispatch.linear.valid & weights.instr.ready & linear.instr.ready
        m.d.comb += [
            weights.instr.valid.eq(both),
            linear.instr.valid.eq(both),
            dispatch.linear.ready.eq(weights.instr.ready & linear.instr.ready),
        ]
        for field in ("k_blocks", "columns", "tile_columns", "tokens"):
            m.d.comb += [unit.instr.payload[field].eq(dispatch.linear.payload[field]) for unit in (weights, linear)]
        for unit, port in ((Unit.LOADER, loader), (Unit.LINEAR, linear), (Unit.VECTOR, vector), (Unit.ATTEND, attend), (Unit.HEAD, head)):
            connect(m, f"{unit.name.lower()}_done", port.done, getattr(dispatch, f"{unit.name.lower()}_done"))

        self._connect_memory(m, sequencer, loader)
        wiring.connect(m, loader.id_request, registers.id_request)
        wiring.connect(m, registers.id, loader.id)

        connect(m, "weights", loader.weights, weights.beats)
        connect(m, "params", loader.params, vector.params)
        connect(m, "rope", loader.rope, vector.rope)
        connect(m, "embed", loader.embed, vector.embed)
        connect(m, "head_rows", loader.head, head.rows)
        if spec.planes:
            connect(m, "rescore", head.rescore, loader.rescore)
        m.d.comb += [loader.weights_freed.valid.eq(weights.freed.valid), loader.weights_freed.payload.eq(weights.freed.payload)]
        wiring.connect(m, vector.params_freed, loader.params_freed)
        wiring.connect(m, vector.rope_freed, loader.rope_freed)
        connect(m, "rows", weights.rows, linear.rows)
        connect(m, "sums", linear.sums, vector.sums)
        connect(m, "values", attend.values, vector.values)

        m.submodules.router = router = CodeRouter(spec.vector)
        connect(m, "codes", vector.codes, router.codes)
        m.d.comb += [
            linear.codes.valid.eq(router.linear.valid),
            linear.codes.payload.codes.eq(router.linear.payload.codes),
            linear.codes.payload.last.eq(router.linear.payload.last),
            router.linear.ready.eq(linear.codes.ready),
        ]
        wiring.connect(m, router.attend, attend.qkv)
        wiring.connect(m, router.head, head.codes)
        connect(m, "kv_write", attend.kv_write, wiring.flipped(self.kv_write))
        if config.memory:
            m.submodules.kv_rows = rows = KvRows(spec.kv_layout)
            connect(m, "kv", loader.kv, rows.kv)
            connect(m, "kv_data", rows.kv_data, attend.kv_data)
            connect(m, "k_freed", attend.k_freed, loader.k_freed)
            connect(m, "v_freed", attend.v_freed, loader.v_freed)
            m.d.comb += [attend.idle.eq(self.writer_idle), dispatch.stored.eq(attend.stored)]
        else:
            connect(m, "kv_read", attend.kv_read, wiring.flipped(self.kv_read))
            connect(m, "kv_data", wiring.flipped(self.kv_data), attend.kv_data)

        m.d.comb += [
            head.token.ready.eq(1),
            head.best.ready.eq(1),
            self.token.valid.eq(head.token.valid),
            self.token.payload.eq(head.token.payload.id),
            self.busy.eq(sequencer.busy),
            sequencer.token.valid.eq(head.token.valid),
            sequencer.token.payload.eq(head.token.payload.id),
            registers.token_valid.eq(head.token.valid),
            registers.token_id.eq(head.token.payload.id),
            registers.token_scale.eq(head.token.payload.activation_scale),
            registers.best_valid.eq(head.best.valid),
            registers.best_id.eq(head.best.payload.id),
            registers.best_score.eq(head.best.payload.score),
        ]
        return m

    def _connect_memory(self, m: Module, sequencer: Sequencer, loader: Loader) -> None:
        """The sequencer reads the program before the loader has anything to do."""
        booting, read, answer = ~sequencer.booted, stream.Signature(REQUEST).create(), stream.Signature(8 * self.spec.config.beat_bytes).create()
        m.d.comb += [
            self.read.valid.eq(Mux(booting, sequencer.read.valid, read.valid)),
            self.read.payload.address.eq(Mux(booting, sequencer.read.payload, read.payload.address)),
            self.read.payload.beats.eq(Mux(booting, 1, read.payload.beats)),
            sequencer.read.ready.eq(self.read.ready & booting),
            read.ready.eq(self.read.ready & ~booting),
            sequencer.data.valid.eq(self.data.valid & booting),
            sequencer.data.payload.eq(self.data.payload),
            answer.valid.eq(self.data.valid & ~booting),
            answer.payload.eq(self.data.payload),
            self.data.ready.eq(Mux(booting, sequencer.data.ready, answer.ready)),
        ]
        if self.spec.config.memory:
            connect(m, "bursts", loader.read, wiring.flipped(read))
            connect(m, "data", answer, loader.data)
        else:
            wiring.connect(m, loader.read, wiring.flipped(read))
            wiring.connect(m, answer, loader.data)

    def _connect_vector(self, m: Module, dispatch: Dispatch, vector: Vector) -> None:
        """In a serial pass attention's values come token after token: as one tile."""
        given, taken = dispatch.vector, vector.instr
        one_tile = given.payload.serial & (given.payload.source == Source.VALUES)
        m.d.comb += [
            taken.valid.eq(given.valid),
            given.ready.eq(taken.ready),
            taken.payload.eq(given.payload),
            taken.payload.tile_columns.eq(Mux(one_tile, given.payload.columns, given.payload.tile_columns)),
        ]

    def _connect_control(self, m: Module, sequencer: Sequencer, dispatch: Dispatch, registers: Registers) -> None:
        wiring.connect(m, wiring.flipped(self.bus), registers.bus)
        wiring.connect(m, sequencer.push, dispatch.push)
        m.d.comb += [
            sequencer.start.eq(registers.start),
            sequencer.abort.eq(registers.abort),
            sequencer.start_position.eq(registers.start_position),
            sequencer.prompt_length.eq(registers.prompt_length),
            sequencer.max_new.eq(registers.max_new),
            sequencer.stop_token.eq(registers.stop_token),
            sequencer.stop_enable.eq(registers.stop_enable),
            sequencer.verify.eq(registers.verify),
            sequencer.idle.eq(dispatch.idle),
            dispatch.clear.eq(sequencer.clear),
            dispatch.grant_token.eq(sequencer.grant_token),
            registers.busy.eq(sequencer.busy),
            registers.booted.eq(sequencer.booted),
            registers.generated.eq(sequencer.generated),
            registers.pass_done.eq(sequencer.pass_done),
            registers.next_position.eq(sequencer.next_position),
            registers.running.eq(dispatch.running),
        ]


class CodeRouter(wiring.Component):
    """Requantised codes go to the unit that the VECTOR instruction names; combinational, no latency. Where ATTEND takes 16 bits the others take the lower 8."""

    def __init__(self, config: VectorConfig) -> None:
        self._targets = {Destination.LINEAR: "linear", Destination.ATTEND: "attend", Destination.HEAD: "head"}
        wide, narrow = codes_layout(config), codes_layout(config, 8)
        targets = {name: Out(stream.Signature(wide if name == "attend" else narrow)) for name in self._targets.values()}
        super().__init__({"codes": In(stream.Signature(wide))} | targets)

    def elaborate(self, platform: object) -> Module:
        m = Module()
        for destination, name in self._targets.items():
            port = getattr(self, name)
            for field in port.payload.shape().members:
                if field != "codes":
                    m.d.comb += port.payload[field].eq(self.codes.payload[field])
            m.d.comb += [lane.eq(code) for lane, code in zip(port.payload.codes, self.codes.payload.codes, strict=True)]
            with m.If(self.codes.payload.destination == destination):
                m.d.comb += [port.valid.eq(self.codes.valid), self.codes.ready.eq(port.ready)]
        return m
