# SPDX-License-Identifier: Apache-2.0
"""Control and status registers, performance counters, and the token memory behind them."""

from amaranth import Cat, Module, Mux, Signal
from amaranth.lib import memory, stream, wiring
from amaranth.lib.wiring import In, Out

from lutra.hls_models.ternary.isa import Unit
from lutra.hls_models.ternary.registers import IDENTITY, VERSION, Register

__all__ = ["RegisterPort", "Registers"]


class RegisterPort(wiring.Signature):
    """A 32-bit register bus: ``write`` acts in its cycle; ``read_data`` follows ``address`` by one clock."""

    def __init__(self) -> None:
        super().__init__({"address": Out(6), "write": Out(1), "write_data": Out(32), "read_data": In(32)})


class Registers(wiring.Component):
    """Register file of the core (``hls_models.ternary.registers``), token memory, the k best logits of the last token and the choices of the last pass.

    Parameters
    ----------
    context, id_bits : size of the token memory. ``best`` : ranks kept, ``lanes`` : choices kept. ``config_hash`` : 64 bits.

    Members
    -------
    bus : ``In(RegisterPort())``
    start, abort : ``Out(1)`` pulses, one clock after the write.
    start_position, prompt_length, max_new, stop_token, stop_enable, verify : ``Out``
    busy, booted, generated, pass_done : ``In`` from the sequencer. ``running`` : ``In``, one bit per unit.
    next_position : ``In(16)``
        Where the chosen token goes.
    token : ``In(stream)`` of id, score, activation scale, always ready; the id is passed on as ``chosen`` in the same cycle.
    best : ``In(stream)`` of id and score, always ready; ranks in order after each token.
    id_request, id : token memory for the LOADER: the id follows its request by one clock, one request at a time.
    tokens : ``Out(stream)``
        Chosen ids for a host that listens; valid for one clock, never waits.
    """

    def __init__(self, *, context: int, id_bits: int, best: int, lanes: int, config_hash: int) -> None:
        self._context, self._id_bits, self._best, self._lanes, self._hash = context, id_bits, best, lanes, config_hash
        self.units = [unit for unit in Unit if unit is not Unit.END]
        super().__init__(
            {
                "bus": In(RegisterPort()),
                "start": Out(1),
                "abort": Out(1),
                "start_position": Out(16),
                "prompt_length": Out(16),
                "max_new": Out(16),
                "stop_token": Out(id_bits),
                "stop_enable": Out(1),
                "verify": Out(1),
                "busy": In(1),
                "booted": In(1),
                "generated": In(16),
                "pass_done": In(1),
                "running": In(len(self.units)),
                "next_position": In(16),
                "token_id": In(20),
                "token_scale": In(32),
                "token_valid": In(1),
                "best_id": In(20),
                "best_score": In(32),
                "best_valid": In(1),
                "id_request": In(stream.Signature(16)),
                "id": Out(stream.Signature(20)),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        bus, address = self.bus, self.bus.address

        m.submodules.tokens = tokens = memory.Memory(shape=self._id_bits, depth=self._context, init=[])
        store, to_loader, to_host = tokens.write_port(), tokens.read_port(), tokens.read_port()
        token_index = Signal(16)
        host_store = bus.write & (address == Register.TOKEN)
        # The host writes prompts while the core is idle, the head while it is busy: one port serves both. What a pass that verifies chooses is the host's to
        # accept, and stays out of the text.
        m.d.comb += [
            store.en.eq((self.token_valid & ~self.verify) | host_store),
            store.addr.eq(Mux(self.token_valid, self.next_position, token_index)),
            store.data.eq(Mux(self.token_valid, self.token_id, bus.write_data)),
            to_host.en.eq(1),
            to_host.addr.eq(token_index),
            to_loader.en.eq(self.id_request.valid & self.id_request.ready),
            to_loader.addr.eq(self.id_request.payload),
            self.id_request.ready.eq(~self.id.valid | self.id.ready),
            self.id.payload.eq(to_loader.data),
        ]
        with m.If(self.id_request.ready):
            m.d.sync += self.id.valid.eq(self.id_request.valid)

        m.submodules.best = best = memory.Memory(shape=52, depth=self._best, init=[])
        best_store, best_fetch = best.write_port(), best.read_port(domain="comb")
        rank, best_index = Signal(range(self._best + 1)), Signal(range(self._best))
        m.d.comb += [
            best_store.en.eq(self.best_valid),
            best_store.addr.eq(rank),
            best_store.data.eq(Cat(self.best_id, self.best_score)),
            best_fetch.addr.eq(best_index),
        ]
        with m.If(self.token_valid):
            m.d.sync += rank.eq(0)
        with m.Elif(self.best_valid):
            m.d.sync += rank.eq(rank + 1)

        m.submodules.choices = choices = memory.Memory(shape=self._id_bits, depth=max(2, self._lanes), init=[])
        choice_store, choice_fetch = choices.write_port(), choices.read_port(domain="comb")
        choice_index = Signal.like(choice_fetch.addr)
        m.d.comb += [choice_store.en.eq(self.token_valid), choice_store.data.eq(self.token_id), choice_fetch.addr.eq(choice_index)]
        with m.If(self.pass_done):
            m.d.sync += choice_store.addr.eq(0)
        with m.Elif(self.token_valid):
            m.d.sync += choice_store.addr.eq(choice_store.addr + 1)

        scale, cycles, passes = Signal(32), Signal(32), Signal(32)
        busy_counts = [Signal(32, name=f"busy_{unit.name.lower()}") for unit in self.units]
        with m.If(self.token_valid):
            m.d.sync += scale.eq(self.token_scale)
        with m.If(self.start):
            m.d.sync += [cycles.eq(0), passes.eq(0)] + [count.eq(0) for count in busy_counts]
        with m.Elif(self.busy):
            m.d.sync += [cycles.eq(cycles + 1), passes.eq(passes + self.pass_done)]
            m.d.sync += [count.eq(count + self.running[i]) for i, count in enumerate(busy_counts)]

        stop_token = Cat(self.stop_token, Signal(31 - self._id_bits), self.stop_enable)
        m.d.sync += [self.start.eq(0), self.abort.eq(0)]
        with m.If(bus.write), m.Switch(address):
            with m.Case(Register.CONTROL):
                starting = (bus.write_data[0] | bus.write_data[2]) & ~self.busy
                m.d.sync += [self.start.eq(starting), self.abort.eq(bus.write_data[1])]
                with m.If(starting):
                    m.d.sync += self.verify.eq(bus.write_data[2])
            with m.Case(Register.STOP_TOKEN):
                m.d.sync += [self.stop_token.eq(bus.write_data), self.stop_enable.eq(bus.write_data[31])]
            with m.Case(Register.TOKEN):
                m.d.sync += token_index.eq(token_index + 1)
            for register, signal in (
                (Register.START_POSITION, self.start_position),
                (Register.PROMPT_LENGTH, self.prompt_length),
                (Register.MAX_NEW, self.max_new),
                (Register.TOKEN_INDEX, token_index),
                (Register.BEST_INDEX, best_index),
                (Register.CHOICE_INDEX, choice_index),
            ):
                with m.Case(register):
                    m.d.sync += signal.eq(bus.write_data)

        values = {
            Register.IDENTITY: IDENTITY,
            Register.VERSION: VERSION,
            Register.CONFIG_HASH_LOW: self._hash & 0xFFFFFFFF,
            Register.CONFIG_HASH_HIGH: self._hash >> 32,
            Register.STATUS: Cat(self.busy, self.booted),
            Register.START_POSITION: self.start_position,
            Register.PROMPT_LENGTH: self.prompt_length,
            Register.MAX_NEW: self.max_new,
            Register.STOP_TOKEN: stop_token,
            Register.TOKEN_INDEX: token_index,
            Register.GENERATED: self.generated,
            Register.BEST_INDEX: best_index,
            Register.BEST_ID: best_fetch.data[:20],
            Register.BEST_SCORE: best_fetch.data[20:],
            Register.CHOICE_INDEX: choice_index,
            Register.CHOICE: choice_fetch.data,
            Register.ACTIVATION_SCALE: scale,
            Register.CYCLES: cycles,
            Register.PASSES: passes,
        } | {Register[f"BUSY_{unit.name}"]: count for unit, count in zip(self.units, busy_counts, strict=True)}
        read, is_token = Signal(32), Signal()
        m.d.sync += [read.eq(0), is_token.eq(address == Register.TOKEN)]
        with m.Switch(address):
            for register, value in values.items():
                with m.Case(register):
                    m.d.sync += read.eq(value)
        m.d.comb += bus.read_data.eq(Mux(is_token, to_host.data, read))
        return m
