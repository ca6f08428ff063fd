# SPDX-License-Identifier: Apache-2.0
"""VECTOR: the element-wise unit of the ternary core, connected from control, datapath, statistics and requantisation."""

from amaranth import Module, signed
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from lutra.hls_models.floats import FP32
from lutra.hls_models.ternary.isa import Unit
from lutra.hls_models.ternary.vector import LANE_BITS, VectorConfig
from lutra.hls_models.ternary.vector_cycles import VectorLatencies
from lutra.rtl.float_parts import register
from lutra.rtl.ternary.dispatch import unit_layout
from lutra.rtl.ternary.requantise import Codes, Scaler, codes_layout
from lutra.rtl.ternary.vector_control import Control, Cursor, Ring
from lutra.rtl.ternary.vector_datapath import Dequantise, Operate, Results, delay
from lutra.rtl.ternary.vector_statistics import Maxima, MeanSquares

__all__ = ["Vector"]


class Vector(wiring.Component):
    """Dequantisation, RoPE, gate, residual sum, RMSNorm and requantisation of one instruction after another.

    Inside a tile a source beat is taken every clock; codes leave one beat per clock and wait for ``codes.ready``. Cycles: hls_models/ternary/vector_cycles.py.

    Parameters
    ----------
    config : :class:`VectorConfig`

    Members
    -------
    instr : ``In(stream)`` of the VECTOR fields and those of the pass; taken when the instruction before is done and settled.
    sums, values, embed : ``In(stream)`` of V lanes, in the order "for tile: for token: for beat"; ``embed`` with the row's scale beside every beat.
    params, rope : ``In(stream)`` of rows of V * 24 bits, ready while the ring has room (``params_rows``, ``rope_rows``).
    params_freed, rope_freed : ``Out(stream)``, one beat per row that left its ring.
    codes : ``Out(stream)``, see ``codes_layout``.
    done : ``Out(stream)``, one beat per instruction, after its last code.
    """

    def __init__(self, config: VectorConfig) -> None:
        self.config = config
        v, F = config.lanes, config.format
        row, flag = stream.Signature(LANE_BITS * v), stream.Signature(1)
        embed = data.StructLayout({"codes": data.ArrayLayout(signed(8), v), "scale": FP32.bits})
        super().__init__(
            {
                "instr": In(stream.Signature(unit_layout(Unit.VECTOR))),
                "sums": In(stream.Signature(data.StructLayout({"values": data.ArrayLayout(signed(config.accumulator_bits), v)}))),
                "values": In(stream.Signature(data.StructLayout({"values": data.ArrayLayout(F.bits, v)}))),
                "embed": In(stream.Signature(embed)),
                "params": In(row),
                "rope": In(row),
                "params_freed": Out(flag),
                "rope_freed": Out(flag),
                "codes": Out(stream.Signature(codes_layout(config))),
                "done": Out(flag),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        config = self.config
        m.submodules.control = control = Control(config)
        m.submodules.params = params = Ring(lanes=config.lanes, depth=config.params_rows)
        m.submodules.cursor = cursor = Cursor(depth=config.params_rows)
        m.submodules.rope = rope = Ring(lanes=config.lanes, depth=config.rope_rows)
        m.submodules.dequantise = dequantise = Dequantise(config)
        m.submodules.operate = operate = Operate(config)
        m.submodules.results = results = Results(config)
        m.submodules.maxima = maxima = Maxima(config)
        m.submodules.mean_squares = mean_squares = MeanSquares(config)
        m.submodules.scaler = scaler = Scaler(config)
        m.submodules.requantise = requantise = Codes(config)

        for port, inner in (
            ("instr", control.instr),
            ("done", control.done),
            ("params", params.rows),
            ("params_freed", params.freed),
            ("rope", rope.rows),
            ("rope_freed", rope.freed),
            ("codes", requantise.codes),
        ):
            wiring.connect(m, wiring.flipped(getattr(self, port)), inner)
        wiring.connect(m, mean_squares.variance, scaler.variance)
        wiring.connect(m, scaler.group, requantise.group)
        m.d.comb += [part.job.eq(control.job) for part in (dequantise, operate, results, scaler, requantise)]

        m.d.comb += [
            # rings
            params.address.eq(cursor.row),
            params.claim.eq(control.params_claim),
            params.free.eq(control.header_pop | results.gain_free),
            cursor.step.eq(control.header_pop | results.gain_step),
            cursor.rewind.eq(results.gain_rewind),
            cursor.mark.eq(control.header_pop | results.gain_mark),
            rope.address.eq(operate.rope_row),
            rope.claim.eq(control.rope_claim),
            rope.free.eq(control.rope_free),
            control.params_available.eq(params.available),
            control.rope_available.eq(rope.available),
            control.header_data.eq(params.data),
            # source beats
            *(getattr(control.valid, name).eq(getattr(self, name).valid) for name in ("sums", "values", "embed")),
            *(getattr(self, name).ready.eq(getattr(control.ready, name)) for name in ("sums", "values", "embed")),
            dequantise.step.eq(control.step),
            dequantise.token.eq(control.token),
            dequantise.segment.eq(control.segment),
            dequantise.place.x_row.eq(control.x_row),
            dequantise.place.rope_row.eq(control.rope_row),
            dequantise.place.turn.eq(control.turn),
            dequantise.sums.eq(self.sums.payload.values),
            dequantise.values.eq(self.values.payload.values),
            dequantise.codes.eq(self.embed.payload.codes),
            dequantise.row_scale.eq(self.embed.payload.scale),
            dequantise.scale_write.eq(scaler.scale_write),
            # results
            operate.early_valid.eq(dequantise.early_valid),
            operate.early.eq(dequantise.early),
            operate.y.eq(dequantise.y),
            operate.rope_data.eq(rope.data),
            operate.x_write.eq(results.x_write),
            results.load.eq(control.load),
            results.z_valid.eq(operate.z_valid),
            results.z.eq(operate.z),
            results.gains.eq(params.data),
            control.finished.eq(operate.z_valid & results.place.end),
            mean_squares.z_valid.eq(operate.z_valid),
            mean_squares.z.eq(operate.z),
            mean_squares.place.eq(results.place),
            mean_squares.enable.eq(control.job.norm),
            mean_squares.tokens.eq(control.job.tokens),
            mean_squares.last_beat.eq(results.last_beat),
            mean_squares.reciprocal.eq(control.job.header.reciprocal),
            mean_squares.eps.eq(control.job.header.eps),
        ]
        gain = VectorLatencies(config).gain
        place = data.View(results.place.shape(), register(m, results.place.as_value(), "place_u", gain))
        u_valid = delay(m, operate.z_valid, gain, "u_valid")
        m.d.comb += [
            maxima.u_valid.eq(u_valid),
            maxima.u.eq(results.u),
            maxima.place.eq(place),
            maxima.row.eq(scaler.a_row),
            scaler.a.eq(maxima.a),
            scaler.start.eq(maxima.measured),
            scaler.last_group.eq(results.last_group),
            requantise.start.eq(maxima.measured),
            requantise.u_write.enable.eq(u_valid),
            requantise.u_write.row.eq(place.u_row),
            requantise.u.eq(results.u),
            control.accepted.eq(requantise.accepted),
            control.settled.eq(scaler.idle),
        ]
        return m
