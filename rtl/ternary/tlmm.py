# SPDX-License-Identifier: Apache-2.0
"""LINEAR: table-lookup ternary matrix multiplication."""

from amaranth.hdl import Cat, Module, Mux, Signal
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

from lutra.hls_models.ternary.tlmm import TlmmConfig
from lutra.rtl.ternary.accumulators import Accumulators
from lutra.rtl.ternary.rows import LINEAR_INSTRUCTION, RowWalk
from lutra.rtl.ternary.tables import Activations, Tables
from lutra.rtl.ternary.trees import ColumnSums
from lutra.rtl.verilog import once

__all__ = ["Tlmm"]


class Tlmm(wiring.Component):
    """codes (n, K) times ternary rows (N, K): per clock one row, T * Q lookups, for M tokens.

    Pipeline of a row accepted at x: index register x + 1, table read registered x + 2, ceil(log2 T) adder levels, with half tables one more for the
    sum's sign (``ColumnSums``), then added and stored at x + ``sum_latency``. ``rows.ready`` comes from registers: a table set is present, and the drain bank
    is free where the row would overwrite it; the pipeline itself never stalls. Initiation interval 1. ``codes`` is taken at any time (ready falls only where
    the last beat of a token completes two words, or where V > T * G) into rows from 0 on; the row counter restarts when an instruction is taken. Its rows
    must be written by then: at the earliest ceil((T * G - 1 + V) / (T * G)) cycles after the handshake of their last beat; they stay until its last build.
    ``sums``: for tile: for token: beats of V columns, zeros past the tile's last column; full back-pressure.
    ``done`` is valid from the cycle after the last sum until accepted; ``instr.ready`` from the cycle after that.
    Exact cycles: ``hls_models.ternary.tlmm``.

    Parameters
    ----------
    config : TlmmConfig

    Members
    -------
    instr : {k_blocks, columns, tile_columns, tokens}
    codes : {codes: V x signed(8), last}
    rows : T * Q indices, position q * T + t
    sums : {values: V x signed(accumulator_bits)}
    done : 1 bit
    """

    def __init__(self, *, config: TlmmConfig):
        self.config = config
        self.activations = Activations(config=config)
        self.accumulators = Accumulators(config=config)
        super().__init__(
            {
                "instr": In(stream.Signature(LINEAR_INSTRUCTION)),
                "codes": In(self.activations.codes.signature.flip()),
                "rows": In(stream.Signature(config.row_bits)),
                "sums": Out(self.accumulators.sums.signature),
                "done": Out(stream.Signature(1)),
            }
        )

    def elaborate(self, platform):
        m = Module()
        config = self.config
        m.submodules.activations = activations = self.activations
        m.submodules.tables = tables = Tables(config=config)
        m.submodules.accumulators = accumulators = self.accumulators
        m.submodules.walk = walk = RowWalk(columns=config.columns, lanes=config.lanes)
        busy, accept, start = Signal(), Signal(), Signal()
        wiring.connect(m, wiring.flipped(self.codes), activations.codes)
        wiring.connect(m, accumulators.sums, wiring.flipped(self.sums))
        enters_bank = walk.last_block & walk.first_row
        m.d.comb += [
            start.eq(self.instr.valid & self.instr.ready),
            self.instr.ready.eq(~busy),
            walk.instruction.eq(self.instr.payload),
            walk.start.eq(start),
            tables.instruction.eq(self.instr.payload),
            tables.start.eq(start),
            activations.rewind.eq(start),
            activations.address.eq(tables.address),
            tables.word.eq(activations.word),
            self.rows.ready.eq(walk.active & tables.present & ~(enters_bank & accumulators.draining)),
            accept.eq(self.rows.valid & self.rows.ready),
            walk.advance.eq(accept),
            tables.release.eq(accept & walk.last_row),
            accumulators.begin.eq(accept & enters_bank),
            accumulators.tile.eq(walk.tile),
            accumulators.last_lane.eq(Mux(walk.last_group, walk.tokens - 1, config.lanes - 1)),
        ]
        self._look_up(m, tables, accumulators, Cat(accept, walk.first_row, walk.first_block, walk.last_block))

        with m.If(start):
            m.d.sync += busy.eq(1)
        with m.If(accumulators.ended & ~walk.active):
            m.d.sync += self.done.valid.eq(1)
        with m.Elif(self.done.valid & self.done.ready):
            m.d.sync += [self.done.valid.eq(0), busy.eq(0)]
        return m

    def _look_up(self, m, tables, accumulators, flags):
        """Index register, table reads, reduction trees; ``flags`` = {accept, first_row, first_block, last_block} travel beside."""
        config = self.config
        T, Q, M = config.tables, config.columns, config.lanes
        row = Signal(config.row_bits, reset_less=True)
        m.d.sync += [row.eq(self.rows.payload), tables.index_set.eq(tables.lookup_set)]
        size = config.index_bits
        indices = [row[i * size : (i + 1) * size] for i in range(T * Q)]
        m.d.comb += [tables.indices[i].eq(index[: config.entry_bits]) for i, index in enumerate(indices)]
        name = f"column_sums_{T}_{M}_{config.value_bits}_{config.sum_bits}_{config.tree}{'_half' if config.half_tables else ''}"
        span, addends = T * M * config.value_bits, []
        for q in range(Q):
            column = ColumnSums(config=config)
            m.submodules[f"column{q}"] = once(column, name)
            m.d.comb += column.values.eq(tables.values[q * span : (q + 1) * span])
            if config.half_tables:
                m.d.comb += column.signs.eq(Cat(indices[q * T + t][-1] for t in range(T)))
            addends.append(column.sums)
        m.d.comb += accumulators.addends.eq(Cat(addends))
        for i in range(config.sum_latency):
            stage = Signal(len(flags), name=f"flags{i}")
            m.d.sync += stage.eq(flags)
            flags = stage
        names = ("valid", "first_row", "first_block", "last_block")
        m.d.comb += [getattr(accumulators, name).eq(flag) for name, flag in zip(names, flags, strict=True)]
