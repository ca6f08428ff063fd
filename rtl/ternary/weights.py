# SPDX-License-Identifier: Apache-2.0
"""Weight path: beats of packed trits in, rows of table indices out, through a ring that replays tiles."""

from amaranth.hdl import C, Cat, Module, Mux, Signal, Value
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

from lutra.hls_models.ternary.trits import TRITS_PER_BYTE
from lutra.hls_models.ternary.weights import WeightPathConfig
from lutra.rtl.ternary.ram import OneReadRam
from lutra.rtl.ternary.rows import LINEAR_INSTRUCTION, RowWalk
from lutra.rtl.verilog import once

__all__ = ["WeightPath"]


class _Table(wiring.Component):
    """A function of few bits, by its values: ``y`` = values[a], registered. Synthesis finds fewer look-up tables for it than for the arithmetic behind it."""

    def __init__(self, *, values: list[int], bits: int) -> None:
        self._values, self._bits = values, bits
        super().__init__({"a": In((len(values) - 1).bit_length()), "y": Out(bits)})

    def elaborate(self, platform):
        m = Module()
        y = Signal(self._bits, reset_less=True)
        m.d.comb += self.y.eq(y)
        for bit in range(self._bits):
            column = sum((value >> bit & 1) << i for i, value in enumerate(self._values))
            m.d.sync += y[bit].eq(C(column, len(self._values)).bit_select(self.a, 1))
        return m


class _Adders(wiring.Component):
    """``_digits`` of a byte, registered: each trit is the top of three times what the one before left."""

    def __init__(self) -> None:
        super().__init__({"a": In(8), "y": Out(2 * TRITS_PER_BYTE)})

    def elaborate(self, platform):
        m = Module()
        rest, digits = self.a, []
        for _ in range(TRITS_PER_BYTE):
            tripled = Signal(10, name="tripled")
            m.d.comb += tripled.eq(rest + (rest << 1))
            digits.append(tripled[8:])
            rest = tripled[:8]
        y = Signal(2 * TRITS_PER_BYTE, reset_less=True)
        m.d.sync += y.eq(Cat(digits))
        m.d.comb += self.y.eq(y)
        return m


def _look_up(m: Module, values: list[int], bits: int, a: Value, name: str, place: str) -> Value:
    """``values`` at ``a``, a clock later, through submodule ``place``: a module ``name`` that all equal ones share."""
    table = _Table(values=values, bits=bits)
    m.submodules[place] = once(table, name)
    m.d.comb += table.a.eq(a)
    return table.y


def _add(m: Module, byte: Value, place: str) -> Value:
    """The trits of a code byte by adders, a clock later, through submodule ``place``."""
    adders = _Adders()
    m.submodules[place] = once(adders, "trit_adders")
    m.d.comb += adders.a.eq(byte)
    return adders.y


def _digits(byte: int) -> int:
    """The five trits t = w + 1 of a code byte, two bits each, first lowest: the top of three times the fraction, five times."""
    out, rest = 0, byte
    for i in range(TRITS_PER_BYTE):
        out |= rest * 3 // 256 << 2 * i
        rest = rest * 3 % 256
    return out


class WeightPath(wiring.Component):
    """Assembles, unpacks, stores and replays weight rows; values and cycles: ``hls_models.ternary.weights``.

    A row's last beat at cycle t can be read from t + 4 and offered from t + 5; then one row per clock. ``beats.ready`` = the ring has space for the row
    that the beat belongs to, from a register: a loader that counts ``ring_rows`` credits and the pulses of ``freed`` never meets ready = 0. Rows of the next
    tile and of the next instruction load while the present ones are read. ``instr.ready`` is 1 while no instruction is read.
    ``rows`` obeys back-pressure; its valid does not depend on ready.

    Parameters
    ----------
    config : WeightPathConfig

    Members
    -------
    instr : {k_blocks, columns, tile_columns, tokens}
    beats : 8 * B bits, lowest byte first
    rows : T * Q indices, position q * T + t, lowest first
    freed : one beat per row whose space was given back; always ready
    """

    def __init__(self, *, config: WeightPathConfig):
        self.config = config
        super().__init__(
            {
                "instr": In(stream.Signature(LINEAR_INSTRUCTION)),
                "beats": In(stream.Signature(8 * config.beat_bytes)),
                "rows": Out(stream.Signature(config.row_bits)),
                "freed": Out(stream.Signature(1, always_ready=True)),
            }
        )

    def elaborate(self, platform):
        m = Module()
        row, valid, taken = self._unpack(m)
        config = self.config
        m.submodules.ring = ring = OneReadRam(width=config.row_bits, depth=config.ring_rows, style=config.ring_ram)
        m.submodules.walk = walk = RowWalk(columns=config.columns, lanes=config.lanes)
        m.d.comb += [ring.write_data.eq(row), ring.write_enable.eq(valid)]

        def step(pointer):
            return Mux(pointer == config.ring_rows - 1, 0, pointer + 1)

        write_address = Signal.like(ring.write_address)
        m.d.comb += ring.write_address.eq(write_address)
        with m.If(valid):
            m.d.sync += write_address.eq(step(write_address))

        counter = range(config.ring_rows + 1)
        unread = Signal(counter)  # rows in the ring from the read pointer on
        played = Signal(counter)  # rows of the tile before the read pointer
        pointer, tile_base = Signal.like(ring.address), Signal.like(ring.address)
        move, issue, rewind = Signal(), Signal(), Signal()
        m.d.comb += [
            walk.instruction.eq(self.instr.payload),
            walk.start.eq(self.instr.valid & self.instr.ready),
            self.instr.ready.eq(~walk.active),
            move.eq(~self.rows.valid | self.rows.ready),
            issue.eq(move & walk.active & (unread != 0)),
            walk.advance.eq(issue),
            rewind.eq(issue & walk.last_row & walk.last_block & ~walk.last_group),
            ring.address.eq(pointer),
            ring.enable.eq(issue),
            self.rows.payload.eq(ring.data),
        ]
        m.d.sync += unread.eq(unread + valid - issue + Mux(rewind, played + 1, 0))
        with m.If(move):
            m.d.sync += self.rows.valid.eq(issue)
        with m.If(issue):
            m.d.sync += [pointer.eq(step(pointer)), played.eq(played + 1)]
            with m.If(walk.last_row & walk.last_block):
                m.d.sync += played.eq(0)
                with m.If(walk.last_group):
                    m.d.sync += tile_base.eq(step(pointer))
                with m.Else():
                    m.d.sync += pointer.eq(tile_base)

        free = Signal(counter, init=config.ring_rows)
        release = issue & walk.last_group
        m.d.comb += self.beats.ready.eq(free != 0)
        m.d.comb += self.freed.payload.eq(1)
        m.d.sync += [free.eq(free + release - taken), self.freed.valid.eq(release)]
        return m

    def _unpack(self, m: Module) -> tuple[Value, Value, Value]:
        """Beats to indices in three registers: (row of indices, valid, the last beat of a row is taken)."""
        config = self.config
        accepted = self.beats.valid & self.beats.ready
        taken = Signal()
        if config.row_beats == 1:
            m.d.comb += taken.eq(accepted)
        else:
            beat = Signal(range(config.row_beats))
            m.d.comb += taken.eq(accepted & (beat == config.row_beats - 1))
            with m.If(accepted):
                m.d.sync += beat.eq(Mux(taken, 0, beat + 1))
        # Decoders of a beat's bytes only: what is assembled is digits, behind them.
        digit_bits = 2 * TRITS_PER_BYTE
        decoded = [_digits(byte) for byte in range(256)]
        beat_bytes = [self.beats.payload[8 * i : 8 * i + 8] for i in range(config.beat_bytes)]
        if config.decoder == "adders":
            fresh = Cat(_add(m, byte, f"byte{i}") for i, byte in enumerate(beat_bytes))
        else:
            fresh = Cat(_look_up(m, decoded, digit_bits, byte, "trit_decoder", f"byte{i}") for i, byte in enumerate(beat_bytes))
        digits = Signal(digit_bits * config.row_bytes, reset_less=True)
        arrived = Signal()
        m.d.sync += arrived.eq(accepted)
        with m.If(arrived):
            m.d.sync += digits.eq(Cat(digits, fresh)[len(fresh) :])
        size, groups = 2 * config.group, config.tables * config.columns
        table = [self._index(digits) for digits in range(1 << size)]
        name = f"group_index_{config.group}{'_half' if config.half_tables else ''}"
        indices = [_look_up(m, table, config.index_bits, digits[i * size : (i + 1) * size], name, f"group{i}") for i in range(groups)]
        valid = Signal(3)
        m.d.sync += valid.eq(Cat(taken, valid)[:3])
        return Cat(indices), valid[2], taken

    def _index(self, digits: int) -> int:
        """Index of a group of digits t = w + 1, two bits each, most significant digit lowest."""
        config = self.config
        value = sum((digits >> 2 * g & 3) * 3 ** (config.group - 1 - g) for g in range(config.group))
        largest = (3**config.group - 1) // 2
        mask = (1 << config.index_bits - config.half_tables) - 1
        if not config.half_tables:
            return value & mask
        return abs(value - largest) & mask | (value < largest) << config.index_bits - 1
