# SPDX-License-Identifier: Apache-2.0
"""Sequencer: fetches the program once, then runs it pass after pass, prefill chunks first, one decoded token per pass after that."""

from amaranth import Cat, Module, Mux, Signal
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

from lutra.hls_models.ternary.isa import COMMON_FIELDS, INSTRUCTION_BITS, Unit, When
from lutra.rtl.ternary.dispatch import dispatched_layout
from lutra.rtl.ternary.ram import OneReadRam

__all__ = ["Sequencer"]


class Sequencer(wiring.Component):
    """Runs the program for every pass of a run.

    Boot (first start after reset): one instruction word after another is read from memory address 0 until END, one beat at a time.
    A pass: two clocks per instruction (FETCH, DISPATCH) while its unit's queue has room; at END it waits until every unit is idle, then one clock
    (NEXT) decides about the next pass, one (SETUP) sizes it. A run ends after ``max_new`` tokens, at the stop token, at the end of the
    context, or on abort (at the end of the pass). A run that is started with ``verify`` is one serial pass over the prompt, which must fit a chunk.

    Parameters
    ----------
    beat_bytes : memory port width; an instruction takes ceil(24 / beat_bytes) beats.
    program_words, chunk, context : capacities. program_ram : "distributed" or "block" RAM.

    Members
    -------
    start, abort : ``In(1)`` pulses. ``busy``, ``booted`` : ``Out(1)``.
    start_position, prompt_length, max_new, stop_token, stop_enable, verify : ``In``, stable while busy.
    read, data : memory port, used while booting only.
    push : ``Out(stream)`` to the dispatch queues; ``idle``, ``clear``, ``grant_token``: see ``Dispatch``.
    token : ``In(stream)`` of the chosen id, always ready; at most one per pass.
    generated, position, next_position : ``Out(16)``
        Tokens of this run so far; first position of the present pass and of the one after it.
    pass_done : ``Out(1)`` pulse at the end of each pass.
    """

    def __init__(self, *, beat_bytes: int, program_words: int, chunk: int, context: int, id_bits: int, program_ram: str = "distributed") -> None:
        self._beat_bytes, self._words, self._chunk, self._context = beat_bytes, program_words, chunk, context
        self._program_ram = program_ram
        super().__init__(
            {
                "start": In(1),
                "abort": In(1),
                "busy": Out(1),
                "booted": Out(1),
                "start_position": In(16),
                "prompt_length": In(16),
                "max_new": In(16),
                "stop_token": In(id_bits),
                "stop_enable": In(1),
                "verify": In(1),
                "read": Out(stream.Signature(32)),
                "data": In(stream.Signature(8 * beat_bytes)),
                "push": Out(stream.Signature(dispatched_layout())),
                "idle": In(1),
                "clear": Out(1),
                "grant_token": Out(1),
                "token": In(stream.Signature(id_bits)),
                "generated": Out(16),
                "position": Out(16),
                "next_position": Out(16),
                "pass_done": Out(1),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        beats = -(-INSTRUCTION_BITS // (8 * self._beat_bytes))
        m.submodules.program = program = OneReadRam(width=INSTRUCTION_BITS, depth=self._words, style=self._program_ram)
        pc = Signal(range(self._words))
        address = Signal(32)
        end, tokens, last = Signal(17), Signal(8), Signal()
        aborted, token = Signal(), Signal.like(self.stop_token)
        remaining = Signal(17)

        # Boot: beats shift in from the top, so that the first ends up lowest.
        gathered = Signal(beats * 8 * self._beat_bytes)
        beat = Signal(range(beats + 1))
        arrived = Cat(gathered, self.data.payload)[8 * self._beat_bytes :]
        m.d.comb += [
            program.write_address.eq(pc),
            program.write_data.eq(arrived[:INSTRUCTION_BITS]),
            program.address.eq(pc),
            program.enable.eq(1),
            self.read.payload.eq(address),
            self.data.ready.eq(1),
            self.token.ready.eq(1),
            remaining.eq(end - self.position),
            self.next_position.eq(self.position + tokens),
        ]
        opcode_bits, when_bits = COMMON_FIELDS[0].bits, COMMON_FIELDS[1].bits
        opcode = program.data[:opcode_bits]
        when = program.data[opcode_bits : opcode_bits + when_bits]
        one = Signal()  # from FETCH on
        m.d.sync += one.eq(tokens == 1)
        wanted = (when == When.ALWAYS) | Mux(last, (when == When.LAST) | (when == Mux(one, When.LAST_ONE, When.LAST_MANY)), when == When.NOT_LAST)
        m.d.comb += [
            self.push.payload.word.eq(program.data),
            self.push.payload.tokens.eq(tokens),
            self.push.payload.position.eq(self.position),
            self.push.payload.serial.eq(self.verify),
        ]
        with m.If(self.token.valid):
            m.d.sync += token.eq(self.token.payload)
        with m.If(self.abort):
            m.d.sync += aborted.eq(1)

        with m.FSM():
            with m.State("IDLE"), m.If(self.start):
                m.d.comb += self.clear.eq(1)
                m.d.sync += [
                    self.busy.eq(1),
                    aborted.eq(0),
                    self.generated.eq(0),
                    self.position.eq(self.start_position),
                    end.eq(self.start_position + self.prompt_length),
                    pc.eq(0),
                    address.eq(0),
                    beat.eq(0),
                ]
                with m.If(self.booted):
                    m.next = "SETUP"
                with m.Else():
                    m.next = "BOOT_READ"
            with m.State("BOOT_READ"):
                m.d.comb += self.read.valid.eq(1)
                with m.If(self.read.ready):
                    m.d.sync += address.eq(address + 1)
                    m.next = "BOOT_STORE"
            with m.State("BOOT_STORE"), m.If(self.data.valid):
                m.d.sync += gathered.eq(arrived)
                m.next = "BOOT_READ"
                with m.If(beat == beats - 1):
                    m.d.comb += program.write_enable.eq(1)
                    m.d.sync += [beat.eq(0), pc.eq(pc + 1)]
                    with m.If(arrived[:opcode_bits] == Unit.END):
                        m.d.sync += self.booted.eq(1)
                        m.next = "SETUP"
                with m.Else():
                    m.d.sync += beat.eq(beat + 1)
            with m.State("SETUP"):
                m.d.sync += [
                    tokens.eq(Mux(remaining > self._chunk, self._chunk, remaining)),
                    last.eq(remaining <= self._chunk),
                    pc.eq(0),
                ]
                m.next = "FETCH"
            with m.State("FETCH"):
                m.next = "DISPATCH"
            with m.State("DISPATCH"):
                with m.If(opcode == Unit.END):
                    m.next = "DRAIN"
                with m.Elif(~wanted):
                    m.d.sync += pc.eq(pc + 1)
                    m.next = "FETCH"
                with m.Else():
                    m.d.comb += self.push.valid.eq(1)
                    with m.If(self.push.ready):
                        m.d.sync += pc.eq(pc + 1)
                        m.next = "FETCH"
            with m.State("DRAIN"), m.If(self.idle):
                m.d.comb += self.pass_done.eq(1)
                m.d.sync += self.position.eq(self.next_position)
                with m.If(last & ~self.verify):
                    m.d.sync += [self.generated.eq(self.generated + 1), end.eq(end + 1)]
                m.next = "NEXT"
            with m.State("NEXT"):
                m.next = "SETUP"
                with m.If(~last):
                    m.d.comb += self.grant_token.eq(1)
                stop = (self.generated == self.max_new) | (self.stop_enable & (token == self.stop_token)) | (self.position == self._context)
                with m.If(aborted | self.verify | (last & stop)):
                    m.d.sync += self.busy.eq(0)
                    m.next = "IDLE"
        return m
