# SPDX-License-Identifier: Apache-2.0
"""LINEAR: table-lookup ternary matrix multiplication."""

from amaranth.hdl import Cat, Module, Mux, Signal
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

from lutra.hls_models.ternary.tlmm import TlmmConfig
from lutra.rtl.ternary.accumulators import Accumulators
from lutra.rtl.ternary.rows import LINEAR_INSTRUCTION, RowWalk
from lutra.rtl.ternary.tables import Activations, Tables

__all__ = ["Tlmm"]


class Tlmm(wiring.Component):
    """codes (n, K) times ternary rows (N, K): per clock one row, T * Q lookups, for M tokens.

    Pipeline of a row accepted at x: index register x + 1, table read registered x + 2, ceil(log2 T) adder levels, with half tables one more for the
    count of signs, then added and stored at x + ``sum_latency``. ``rows.ready`` comes from registers: a table set is present, and the drain bank is free
    where the row would overwrite it; the pipeline itself never stalls. Initiation interval 1. ``codes`` is taken at any time (ready falls only where the
    last beat of a token completes two words, or where V > T * G) into rows from 0 on; the row counter restarts when an instruction is taken. Its rows must be
    written by then: at the earliest ceil((T * G - 1 + V) / (T * G)) cycles after the handshake of their last beat; they stay until its last build.
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
        """Index register, table reads, adder trees; ``flags`` = {accept, first_row, first_block, last_block} travel beside."""
        config = self.config
        T, Q, M = config.tables, config.columns, config.lanes
        row = Signal(config.row_bits, reset_less=True)
        m.d.sync += [row.eq(self.rows.payload), tables.index_set.eq(tables.lookup_set)]
        size = config.index_bits
        indices = [row[i * size : (i + 1) * size] for i in range(T * Q)]
        m.d.comb += [tables.indices[i].eq(index[: config.entry_bits]) for i, index in enumerate(indices)]
        values = []
        for q in range(Q):
            signs = [indices[q * T + t][-1] for t in range(T)]
            for lane in range(M):
                operands = []
                for t in range(T):
                    first = ((q * T + t) * M + lane) * config.value_bits
                    value = tables.values[first : first + config.value_bits]
                    # -x = ~x + 1: the ones of all signs are counted once for all lanes.
                    operands.append((value ^ signs[t].replicate(config.value_bits)).as_signed() if config.half_tables else value.as_signed())
                values.append(self._tree(m, operands, f"sum{q}_{lane}"))
            if config.half_tables:
                count = self._tree(m, signs, f"signs{q}")
                for lane in range(M):
                    total = Signal.like(values[q * M + lane] + count, name=f"total{q}_{lane}", reset_less=True)
                    m.d.sync += total.eq(values[q * M + lane] + count)
                    values[q * M + lane] = total
        m.d.comb += accumulators.addends.eq(Cat(value.as_signed()[: config.sum_bits] for value in values))
        for i in range(config.sum_latency):
            stage = Signal(len(flags), name=f"flags{i}")
            m.d.sync += stage.eq(flags)
            flags = stage
        names = ("valid", "first_row", "first_block", "last_block")
        m.d.comb += [getattr(accumulators, name).eq(flag) for name, flag in zip(names, flags, strict=True)]

    def _tree(self, m, operands, name):
        """Registered operands, then a balanced adder tree with a register per level."""
        level = 0
        while True:
            registers = []
            for i, operand in enumerate(operands):
                register = Signal(operand.shape(), name=f"{name}_{level}_{i}", reset_less=True)
                m.d.sync += register.eq(operand)
                registers.append(register)
            if len(registers) == 1:
                return registers[0]
            operands = [registers[i] + registers[i + 1] if i + 1 < len(registers) else registers[i] for i in range(0, len(registers), 2)]
            level += 1
