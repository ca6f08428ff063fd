# SPDX-License-Identifier: Apache-2.0
"""Lookup tables of signed activation sums: built on line from the activation buffer, one entry per clock, double-buffered."""

from math import gcd

from amaranth.hdl import C, Cat, Module, Mux, Signal, signed
from amaranth.lib import data, stream, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

from lutra.hls_models.ternary.tlmm import LOAD_AHEAD, TlmmConfig
from lutra.rtl.streams import Gearbox
from lutra.rtl.ternary.ram import OneReadRam
from lutra.rtl.ternary.rows import LINEAR_INSTRUCTION
from lutra.rtl.verilog import once

__all__ = ["Activations", "Tables"]


class Activations(wiring.Component):
    """Buffer of the int8 codes of up to ``max_tokens`` rows, re-packed from beats of V to words of T * G.

    Words are written in the order of arrival from address 0 on, a row's last word zero-padded; ``rewind`` sends the writer back to 0.
    A word that completes with the beat at t is written at t + 1 (a row's two last words: t + 1 and t + 2) and can be read one cycle later.
    Reads: address at t, ``word`` from t + 2 (memory register, operand register), one per clock.

    Parameters
    ----------
    config : TlmmConfig

    Members
    -------
    codes : stream of {codes: V x signed(8), last: final beat of a token}
    rewind : In(1)
    address : In, word : Out(T * G * activation_bits), activation i of the block at bit i * activation_bits
    """

    def __init__(self, *, config: TlmmConfig):
        self.config = config
        self.depth = config.max_tokens * config.max_blocks
        layout = data.StructLayout({"codes": data.ArrayLayout(8, config.vector_lanes), "last": 1})
        super().__init__(
            {
                "codes": In(stream.Signature(layout)),
                "rewind": In(1),
                "address": In(range(self.depth)),
                "word": Out(config.block * config.activation_bits),
            }
        )

    def elaborate(self, platform):
        m = Module()
        config = self.config
        bits = config.activation_bits
        # A beat is always whole: what both sides have in common moves as one item, and the shifter has that many times fewer places.
        together = gcd(config.vector_lanes, config.block)
        m.submodules.gearbox = gearbox = Gearbox(shape=bits * together, inputs=config.vector_lanes // together, outputs=config.block // together)
        m.submodules.buffer = buffer = OneReadRam(width=config.block * bits, depth=self.depth, style=config.activation_ram)
        write_address = Signal.like(buffer.write_address)
        m.d.comb += [
            gearbox.input.valid.eq(self.codes.valid),
            self.codes.ready.eq(gearbox.input.ready),
            gearbox.input.payload.count.eq(config.vector_lanes // together),
            gearbox.input.payload.last.eq(self.codes.payload.last),
            gearbox.output.ready.eq(1),
            buffer.write_address.eq(write_address),
            buffer.write_enable.eq(gearbox.output.valid),
            buffer.write_data.eq(gearbox.output.payload.items.as_value()),
            buffer.address.eq(self.address),
            buffer.enable.eq(1),
        ]
        m.d.comb += gearbox.input.payload.items.as_value().eq(Cat(code[:bits] for code in self.codes.payload.codes))
        with m.If(self.rewind):
            m.d.sync += write_address.eq(0)
        with m.Elif(gearbox.output.valid):
            m.d.sync += write_address.eq(write_address + 1)
        m.d.sync += self.word.eq(buffer.data)
        return m


class Table(wiring.Component):
    """One table of M lanes in two sets: LUT-RAM with one write port and Q asynchronous read ports, and the sums that are written, entry by entry.

    Parameters
    ----------
    config : TlmmConfig

    Members
    -------
    operands : G activations, held where ``loads`` says so (a bit per lane)
    progress : an entry is written at ``write_address`` (entry, set), and the next one is made: the ``pick``-th difference is added
    addresses : Q times (entry, set); values : Q times M * value_bits, combinational
    """

    def __init__(self, *, config: TlmmConfig):
        self.config = config
        super().__init__(
            {
                "operands": In(config.group * config.activation_bits),
                "loads": In(config.lanes),
                "progress": In(1),
                "pick": In(range(config.group)),
                "write_address": In(config.entry_bits + 1),
                "addresses": In(config.columns * (config.entry_bits + 1)),
                "values": Out(config.columns * config.lanes * config.value_bits),
            }
        )

    def elaborate(self, platform):
        m = Module()
        config = self.config
        bits, lanes, group, size = config.value_bits, config.lanes, config.group, config.activation_bits
        m.submodules.memory = memory = Memory(shape=lanes * bits, depth=2 << config.entry_bits, init=[], attrs={"ram_style": "distributed"})
        write = memory.write_port()
        start, differences = self._differences([self.operands[g * size : (g + 1) * size].as_signed() for g in range(group)])
        sums = []
        for i in range(lanes):
            total = Signal(bits, name=f"sum_{i}", reset_less=True)
            held = [Signal(signed(bits), name=f"difference_{i}_{c}", reset_less=True) for c in range(group)]
            chosen = Signal(signed(bits), name=f"chosen_{i}")
            with m.Switch(self.pick):
                for c in range(group):
                    with m.Case(c):
                        m.d.comb += chosen.eq(held[c])
            with m.If(self.loads[i]):
                m.d.sync += [total.eq(start), *(held[c].eq(differences[c]) for c in range(group))]
            with m.Elif(self.progress):
                # total + chosen as total - ~chosen - 1, an extra lowest bit borrows: synthesis keeps a difference's operands in order, and a bit takes one
                # look-up table, which chooses and inverts, too.
                m.d.sync += total.eq((Cat(C(0, 1), total) - Cat(C(1, 1), ~chosen))[1:])
            sums.append(total)
        m.d.comb += [write.addr.eq(self.write_address), write.data.eq(Cat(sums)), write.en.eq(self.progress)]
        address_bits, row = config.entry_bits + 1, lanes * bits
        for q in range(config.columns):
            read = memory.read_port(domain="comb")
            m.d.comb += [
                read.addr.eq(self.addresses[q * address_bits : (q + 1) * address_bits]),
                self.values[q * row : (q + 1) * row].eq(read.data),
            ]
        return m

    def _differences(self, operands):
        """(first entry, what an increment adds when c trailing trits carry), of the operands of one table."""
        differences, lower = [], None
        for operand in reversed(operands):
            differences.append(operand if lower is None else operand - (lower << 1))
            lower = operand if lower is None else lower + operand
        return (0 if self.config.half_tables else -lower), differences


class Tables(wiring.Component):
    """T tables of M lanes in two sets; builds the sets of an instruction in order (tile, token group, k-block) as soon as a set is free.

    Operands of a build are read lane by lane into registers (address, memory, operand, lane register), the next build's while the present one
    writes its last entries; then one entry of all tables is written per clock: an entry is the one before plus one of G differences, because
    counting up in balanced ternary changes c trailing trits from +1 to -1 and the trit before them by +1. A set can be looked up in the cycle after
    its last entry was written. Cycles: ``hls_models.ternary.tlmm``.

    Parameters
    ----------
    config : TlmmConfig

    Members
    -------
    instruction, start : as in RowWalk
    address, word : to Activations
    present : a set can be looked up
    release : the present set is used for the last time in this cycle
    lookup_set : set that is looked up
    index_set, indices : set and table addresses (T * Q, position q * T + t) of a lookup
    values : T * Q * M * value_bits, combinational, position (q * T + t) * M + lane
    """

    def __init__(self, *, config: TlmmConfig):
        self.config = config
        self.lookups = config.tables * config.columns
        super().__init__(
            {
                "instruction": In(LINEAR_INSTRUCTION),
                "start": In(1),
                "address": Out(range(config.max_tokens * config.max_blocks)),
                "word": In(config.block * config.activation_bits),
                "present": Out(1),
                "release": In(1),
                "lookup_set": Out(1),
                "index_set": In(1),
                "indices": In(data.ArrayLayout(config.entry_bits, self.lookups)),
                "values": Out(self.lookups * config.lanes * config.value_bits),
            }
        )

    def elaborate(self, platform):
        m = Module()
        config = self.config
        entries, lanes, group = config.entries, config.lanes, config.group
        more, loading, loaded, progress, last_entry = Signal(), Signal(), Signal(), Signal(), Signal()
        entry = Signal(range(entries))
        sets = Signal(range(3))  # complete and not yet released
        build_set = Signal()
        m.d.comb += [
            progress.eq(loaded & (sets != 2)),
            last_entry.eq(progress & (entry == entries - 1)),
            self.present.eq(sets != 0),
        ]
        m.d.sync += [
            sets.eq(sets + last_entry - self.release),
            build_set.eq(build_set ^ last_entry),
            self.lookup_set.eq(self.lookup_set ^ self.release),
        ]
        with m.If(progress):
            m.d.sync += entry.eq(Mux(last_entry, 0, entry + 1))
        with m.If(last_entry):
            m.d.sync += loaded.eq(0)
        with m.If(progress & (entry == entries - 1 - LOAD_AHEAD) & more):
            m.d.sync += loading.eq(1)
        lane_ready, lane, final = self._load(m, more, loading)
        with m.If(lane_ready & final):
            m.d.sync += loaded.eq(1)

        # The counter in balanced ternary, digits 0..2 for -1..+1, last trit first; full tables start at -max, half tables at 0.
        digits = [Signal(2, init=int(config.half_tables), name=f"digit{g}") for g in range(group)]
        pick = Signal(range(group))
        carry = progress
        for g, digit in enumerate(digits):
            with m.If(last_entry):
                m.d.sync += digit.eq(int(config.half_tables))
            with m.Elif(carry):
                m.d.sync += digit.eq(Mux(digit == 2, 0, digit + 1))
            with m.If(carry):
                m.d.comb += pick.eq(g)
            carry &= digit == 2

        loads = Signal(lanes)  # lane registers are written from the operands
        m.d.comb += [loads[i].eq(lane_ready & (lane == i)) for i in range(lanes)]
        bits, size = lanes * config.value_bits, config.group * config.activation_bits
        name = f"lookup_table_{group}_{config.columns}_{lanes}_{config.activation_bits}{'_half' if config.half_tables else ''}"
        for t in range(config.tables):
            table = Table(config=config)
            m.submodules[f"table{t}"] = once(table, name)
            m.d.comb += [
                table.operands.eq(self.word[t * size : (t + 1) * size]),
                table.loads.eq(loads),
                table.progress.eq(progress),
                table.pick.eq(pick),
                table.write_address.eq(Cat(entry, Signal(config.entry_bits - len(entry)), build_set)),
                table.addresses.eq(Cat(Cat(self.indices[q * config.tables + t], self.index_set) for q in range(config.columns))),
            ]
            for q in range(config.columns):
                position = q * config.tables + t
                m.d.comb += self.values[position * bits : (position + 1) * bits].eq(table.values[q * bits : (q + 1) * bits])
        return m

    def _load(self, m: Module, more, loading):
        """Reads the operands of the next build, lane by lane: (lane register is written in this cycle, lane, it is the build's last)."""
        config = self.config
        held = Signal(LINEAR_INSTRUCTION)
        rest, tokens, blocks = Signal.like(held.columns), Signal.like(held.tokens), Signal.like(held.k_blocks)
        lane = Signal(range(max(2, config.lanes)))
        first = Signal.like(self.address)  # lane 0 of the present k-block
        last_lane, last_block, last_group, last_tile = Signal(), Signal(), Signal(), Signal()
        m.d.comb += [
            last_lane.eq((lane == config.lanes - 1) | (lane + 1 == tokens)),
            last_block.eq(blocks == 1),
            last_group.eq(tokens <= config.lanes),
            last_tile.eq(rest <= held.tile_columns),
        ]
        with m.If(self.start):
            given = self.instruction
            m.d.sync += [held.eq(given), rest.eq(given.columns), tokens.eq(given.tokens), blocks.eq(given.k_blocks)]
            m.d.sync += [first.eq(0), self.address.eq(0), lane.eq(0), more.eq(1), loading.eq(1)]
        with m.If(loading):
            m.d.sync += [lane.eq(lane + 1), self.address.eq(self.address + held.k_blocks)]
            with m.If(last_lane):
                following = Signal.like(first)
                m.d.comb += following.eq(Mux(last_block, Mux(last_group, 0, self.address + 1), first + 1))
                m.d.sync += [loading.eq(0), lane.eq(0), first.eq(following), self.address.eq(following), blocks.eq(blocks - 1)]
                with m.If(last_block):
                    m.d.sync += [blocks.eq(held.k_blocks), tokens.eq(Mux(last_group, held.tokens, tokens - config.lanes))]
                    with m.If(last_group):
                        m.d.sync += [rest.eq(rest - held.tile_columns), more.eq(~last_tile)]
        stages = [(loading, lane, last_lane)]
        for i in range(2):  # memory register, operand register
            stage = Signal(name=f"load_valid{i}"), Signal.like(lane, name=f"load_lane{i}"), Signal(name=f"load_last{i}")
            m.d.sync += [after.eq(before) for after, before in zip(stage, stages[-1], strict=True)]
            stages.append(stage)
        return stages[-1]
