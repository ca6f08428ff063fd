# SPDX-License-Identifier: Apache-2.0
"""The device's end of the link: requests to register accesses and replies, chosen tokens to events (``hls_models.link_bridge``)."""

from amaranth import Cat, Const, Module, Mux, ResetInserter, Signal, Value
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from lutra.hls_models.link import MAX_PAYLOAD, MAX_WORDS, PAYLOAD_BYTES, PROTOCOL, Fault, PacketType
from lutra.hls_models.link_bridge import ABORT, WHILE_BUSY
from lutra.hls_models.ternary.registers import Register
from lutra.rtl.link.frames import HEADER, OCTET
from lutra.rtl.streams import Queue
from lutra.rtl.ternary.registers import RegisterPort

__all__ = ["Bridge"]

RESET_CLOCKS = 4
"""From the request to its reply: one of reset, then two until the end of the run that it broke off has shown, one to forget that."""
STARTING = (Register.START_POSITION, Register.PROMPT_LENGTH, Register.MAX_NEW, Register.STOP_TOKEN, Register.CONTROL)


class Bridge(wiring.Component):
    """Carries out one request after another; between replies it sends tokens as they come, and the end of a run once its tokens are through.

    Parameters
    ----------
    context, vocabulary : of the core's model.
    tokens : chosen ids that wait for the line; one that finds them full is not sent (its number is missing then, and the host reads it from the registers).

    Members
    -------
    request, address, byte, fault : of the ``Deframer``; a request is taken with the last byte of its reply.
    output : ``Out(stream)`` of ``OCTET``.
    bus, busy : the core's. ``token`` : ``In(stream)`` of its ids, always ready.
    core_reset : ``Out(1)``, for one clock.
    """

    def __init__(self, *, context: int, vocabulary: int, tokens: int = 16) -> None:
        self._context, self._vocabulary, self._tokens = context, vocabulary, tokens
        super().__init__(
            {
                "request": In(stream.Signature(HEADER)),
                "address": Out(range(MAX_PAYLOAD + 1)),
                "byte": In(8),
                "fault": In(stream.Signature(4)),
                "output": Out(stream.Signature(OCTET)),
                "bus": Out(RegisterPort()),
                "busy": In(1),
                "token": In(stream.Signature(20, always_ready=True)),
                "core_reset": Out(1),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        bus, request = self.bus, self.request.payload
        queue = Queue(shape=data.StructLayout({"id": 20, "number": 8}), depth=self._tokens)
        m.submodules.queue = ResetInserter(self.core_reset)(queue)
        number, was_busy, done, restarted = Signal(16), Signal(), Signal(), Signal(init=1)
        m.d.comb += [
            queue.input.valid.eq(self.token.valid),
            queue.input.payload.id.eq(self.token.payload),
            queue.input.payload.number.eq(number),
        ]
        m.d.sync += [was_busy.eq(self.busy), number.eq(number + self.token.valid), self.core_reset.eq(0)]
        with m.If(was_busy & ~self.busy):
            m.d.sync += done.eq(1)
        ending = queue.output.valid | done | (was_busy & ~self.busy)  # the events of a run come before the next one begins

        # The packet that is being sent.
        head = Signal(HEADER)
        body, left, place = Signal(48), Signal(range(MAX_PAYLOAD + 1)), Signal(2)
        answers, pointer = Signal(), Signal(6)
        # What a request holds, in the order of its bytes: the last ones on top.
        gathered, missing = Signal(80), Signal(4)
        last, last_valid = Signal(8), Signal()
        timer, step = Signal(range(RESET_CLOCKS)), Signal(range(len(STARTING)))
        welcome = Cat(Const(PROTOCOL, 8), Const(self._context, 16), Const(self._vocabulary, 24))

        def send(kind: PacketType, body_value: Value | int = 0, *, sequence: Value | int, length: Value | int | None = None, reply: bool = True) -> None:
            m.d.sync += [
                head.type.eq(kind),
                head.sequence.eq(sequence),
                head.length.eq(PAYLOAD_BYTES[kind] if length is None else length),
                body.eq(body_value),
                place.eq(0),
                answers.eq(reply),
            ]
            m.next = "HEADER"

        def answer(kind: PacketType, body_value: Value | int = 0, length: Value | int | None = None) -> None:
            send(kind, body_value, sequence=request.sequence, length=length)

        def refuse(fault: Fault) -> None:
            answer(PacketType.ERROR, fault)

        def acknowledge() -> None:
            m.d.sync += [last.eq(request.sequence), last_valid.eq(1)]
            answer(PacketType.ACK)

        def gather(count: int) -> None:
            m.d.sync += missing.eq(count)
            m.next = "GATHER"

        word = gathered[48:]
        position, length, wanted, _ = gathered[:16], gathered[16:32], gathered[32:48], word
        register, first, count = gathered[72:78], gathered[64:70], gathered[72:]
        m.d.comb += bus.address.eq(pointer)
        with m.FSM():
            with m.State("IDLE"):
                m.d.sync += self.address.eq(0)
                with m.If(self.fault.valid):
                    m.d.comb += self.fault.ready.eq(1)
                    send(PacketType.ERROR, self.fault.payload, sequence=0, reply=False)
                with m.Elif(self.request.valid & ~((request.type == PacketType.START) & ending)), m.Switch(request.type):
                    with m.Case(PacketType.HELLO):
                        with m.If(request.length == PAYLOAD_BYTES[PacketType.HELLO]):
                            m.d.sync += last_valid.eq(0)
                            answer(PacketType.WELCOME, welcome)
                        with m.Else():
                            refuse(Fault.PAYLOAD)
                    with m.Case(PacketType.RESET):
                        with m.If(request.length == PAYLOAD_BYTES[PacketType.RESET]):
                            m.d.sync += [last_valid.eq(0), self.core_reset.eq(1), timer.eq(RESET_CLOCKS - 1)]
                            m.next = "RESET"
                        with m.Else():
                            refuse(Fault.PAYLOAD)
                    with m.Case(PacketType.READ):
                        with m.If(request.length == PAYLOAD_BYTES[PacketType.READ]):
                            gather(PAYLOAD_BYTES[PacketType.READ])
                        with m.Else():
                            refuse(Fault.PAYLOAD)
                    with m.Case(PacketType.WRITE, PacketType.START):
                        with m.If(last_valid & (request.sequence == last)):
                            acknowledge()
                        with m.Elif((request.type == PacketType.START) & (request.length == PAYLOAD_BYTES[PacketType.START])):
                            gather(PAYLOAD_BYTES[PacketType.START])
                        with m.Elif((request.type == PacketType.WRITE) & (request.length[:2] == 1) & (request.length >= 5)):
                            gather(1)
                        with m.Else():
                            refuse(Fault.PAYLOAD)
                    with m.Default():
                        refuse(Fault.TYPE)
                with m.Elif(restarted):
                    m.d.sync += restarted.eq(0)
                    send(PacketType.RESTARTED, welcome, sequence=0, reply=False)
                with m.Elif(queue.output.valid):
                    m.d.comb += queue.output.ready.eq(1)
                    send(PacketType.TOKEN, queue.output.payload.id, sequence=queue.output.payload.number, reply=False)
                with m.Elif(done):
                    m.d.sync += done.eq(0)
                    send(PacketType.DONE, number, sequence=number[:8], reply=False)
            with m.State("RESET"):
                m.d.sync += timer.eq(timer - 1)
                with m.If(timer == 0):
                    m.d.sync += done.eq(0)
                    answer(PacketType.WELCOME, welcome)

            with m.State("GATHER"):
                m.d.sync += [gathered.eq(Cat(gathered[8:], self.byte)), self.address.eq(self.address + 1), missing.eq(missing - 1)]
                with m.If(missing == 1):
                    m.next = "CHECK"
            with m.State("CHECK"), m.Switch(request.type):
                with m.Case(PacketType.READ):
                    m.d.sync += pointer.eq(first)
                    with m.If((count == 0) | (count > MAX_WORDS)):
                        refuse(Fault.PAYLOAD)
                    with m.Else():
                        answer(PacketType.DATA, length=count << 2)
                with m.Case(PacketType.START):
                    m.d.sync += step.eq(0)
                    with m.If(self.busy):
                        refuse(Fault.BUSY)
                    with m.Elif((length == 0) | (wanted == 0) | (position + length > self._context)):
                        refuse(Fault.RANGE)
                    with m.Else():
                        m.d.sync += number.eq(0)
                        m.next = "APPLY"
                with m.Case(PacketType.WRITE):
                    with m.If(self.address != 1):
                        m.next = "WORD"
                    with m.Else():
                        m.d.sync += pointer.eq(register)
                        with m.If(self.busy & ~register.matches(*WHILE_BUSY)):
                            refuse(Fault.BUSY)
                        with m.Else():
                            gather(4)
            with m.State("WORD"):
                with m.If((pointer == Register.TOKEN) & (word >= self._vocabulary)):
                    refuse(Fault.RANGE)
                with m.Else():
                    m.d.comb += [bus.write.eq(1), bus.write_data.eq(Mux(pointer == Register.CONTROL, word & ABORT, word))]
                    with m.If(self.address == request.length):
                        acknowledge()
                    with m.Else():
                        gather(4)
            with m.State("APPLY"):
                m.d.comb += bus.write.eq(1)
                m.d.sync += step.eq(step + 1)
                with m.Switch(step):
                    for i, (name, value) in enumerate(zip(STARTING, (position, length, wanted, word, Const(1, 1)), strict=True)):
                        with m.Case(i):
                            m.d.comb += [bus.address.eq(name), bus.write_data.eq(value)]
                with m.If(step == len(STARTING) - 1):
                    acknowledge()

            with m.State("HEADER"):
                m.d.comb += [
                    self.output.valid.eq(1),
                    self.output.payload.byte.eq(head.as_value().word_select(place, 8)),
                    self.output.payload.last.eq((place == 2) & (head.length == 0)),
                ]
                m.d.sync += left.eq(head.length)
                with m.If(self.output.ready):
                    m.d.sync += place.eq(place + 1)
                    with m.If(place == 2):
                        m.d.sync += place.eq(0)
                        m.next = "BODY"
                        with m.If(head.length == 0):
                            m.d.comb += self.request.ready.eq(answers)
                            m.next = "IDLE"
                        with m.Elif(head.type == PacketType.DATA):
                            m.next = "FETCH"
            with m.State("FETCH"):
                m.d.sync += pointer.eq(pointer + 1)
                m.next = "LOAD"
            with m.State("LOAD"):
                m.d.sync += body.eq(bus.read_data)
                m.next = "BODY"
            with m.State("BODY"):
                m.d.comb += [self.output.valid.eq(1), self.output.payload.byte.eq(body[:8]), self.output.payload.last.eq(left == 1)]
                with m.If(self.output.ready):
                    m.d.sync += [body.eq(body >> 8), left.eq(left - 1), place.eq(place + 1)]
                    with m.If(left == 1):
                        m.d.comb += self.request.ready.eq(answers)
                        m.next = "IDLE"
                    with m.Elif((head.type == PacketType.DATA) & (place == 3)):
                        m.next = "FETCH"
        return m
