# SPDX-License-Identifier: Apache-2.0
"""The serial link: packets through garbage, the UART's timing, and every part of the RTL against its golden model."""

import gc
import warnings
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import pytest
from amaranth import Module
from amaranth.lib import wiring
from amaranth.lib.memory import Memory
from amaranth.sim import Simulator
from pydantic import ValidationError

from lutra.hls_models.link import ESCAPE, FLAG, MAX_PAYLOAD, MAX_WORDS, Decoder, Fault, Packet, PacketType, crc, encode
from lutra.hls_models.link_bridge import BridgeModel, start_payload
from lutra.hls_models.ternary.registers import Register
from lutra.hls_models.uart import TOLERANCE, UartConfig
from lutra.rtl.link.bridge import Bridge
from lutra.rtl.link.frames import Deframer, Enframer
from lutra.rtl.link.uart import UartReceiver, UartTransmitter

PATIENCE = 200


def simulate(component: Any, *benches: Callable[[Any], Any], background: Iterable[Callable[[Any], Any]] = ()) -> None:
    simulator = Simulator(component)
    simulator.add_clock(1e-6)
    for bench in benches:
        simulator.add_testbench(bench)
    for bench in background:
        simulator.add_testbench(bench, background=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        simulator.run()


def draw(rng: np.random.Generator) -> Packet:
    """A packet, rich in bytes that must be escaped."""
    payload = rng.choice([FLAG, ESCAPE, 0, 255, *range(16)], int(rng.integers(MAX_PAYLOAD + 1)))
    return Packet(int(rng.choice([FLAG, *PacketType])), int(rng.integers(256)), bytes(payload.tolist()))


def test_the_checksum_is_hdlcs() -> None:
    assert crc(b"123456789") ^ 0xFFFF == 0x906E  # published check value of CRC-16/IBM-SDLC


def test_packets_come_back(rng: np.random.Generator) -> None:
    decoder, packets = Decoder(), [draw(rng) for _ in range(100)]
    assert decoder.feed(b"".join(map(encode, packets))) == packets
    with pytest.raises(ValueError, match="payload must have at most 61 bytes, not 62"):
        encode(Packet(1, 2, bytes(62)))


@pytest.mark.parametrize("damage", ["lost", "changed", "added", "cut"])
def test_no_damaged_packet_passes_and_the_next_one_does(rng: np.random.Generator, damage: str) -> None:
    for _ in range(200):
        first, second = draw(rng), draw(rng)
        line = bytearray(encode(first))
        at = int(rng.integers(2, len(line) - 1))
        match damage:
            case "lost":
                del line[at]
            case "changed":
                line[at] ^= 1 << int(rng.integers(8))
            case "added":
                line.insert(at, int(rng.integers(256)))
            case "cut":
                del line[at:]
        found = Decoder().feed(bytes(line) + encode(second))
        assert found[-1] == second
        assert found[:-1] and all(isinstance(one, Fault) for one in found[:-1])


def test_garbage_before_the_first_flag_is_ignored_and_after_it_reported(rng: np.random.Generator) -> None:
    garbage = bytes(byte for byte in rng.integers(0, 256, 500).tolist() if byte != FLAG)
    packet = draw(rng)
    assert Decoder().feed(garbage + encode(packet)) == [packet]
    assert Decoder().feed(encode(packet) + garbage + encode(packet)) == [packet, Fault.LENGTH, packet]
    late = Decoder()
    assert late.feed(encode(packet)[:-3]) == []
    assert late.within and late.fail(Fault.TIMEOUT) == [Fault.TIMEOUT] and late.fail(Fault.TIMEOUT) == []
    assert late.feed(encode(packet)) == [packet]


def test_dividers() -> None:
    assert UartConfig(clock_hz=50e6, baud=1e6).clocks == 50
    with pytest.raises(ValidationError, match=r"baud must be at most a quarter of the clock of 5e\+07 Hz, not 2e\+07; nearest: 1.25e\+07"):
        UartConfig(clock_hz=50e6, baud=20e6)
    with pytest.raises(ValidationError, match=r"baud must be within 2 % of 5e\+07 Hz over a whole number, not 1.2e\+07; nearest: 1.25e\+07"):
        UartConfig(clock_hz=50e6, baud=12e6)


def bits(data: bytes, *, bad: int = -1) -> list[int]:
    """Levels of the line bit by bit; byte ``bad`` has no stop bit."""
    return [bit for i, byte in enumerate(data) for bit in (0, *(byte >> n & 1 for n in range(8)), int(i != bad), *([1, 1] if i == bad else []))]


@pytest.mark.parametrize("clocks", [4, 7, 16])
@pytest.mark.parametrize("skew", [1 - TOLERANCE, 1.0, 1 + TOLERANCE])
def test_the_receiver(rng: np.random.Generator, clocks: int, skew: float) -> None:
    config = UartConfig(clock_hz=1e6, baud=1e6 / clocks)
    data = bytes(rng.integers(0, 256, 40).tolist())
    line, receiver, got = bits(data, bad=17), UartReceiver(config), []

    async def bench(ctx: Any) -> None:
        for clock in range(int(len(line) * clocks * skew) + 20):
            at = int(clock / (clocks * skew))
            ctx.set(receiver.pin, line[at] if at < len(line) else 1)
            if ctx.get(receiver.output.valid):
                got.append((clock, ctx.get(receiver.output.payload.byte), ctx.get(receiver.output.payload.good)))
            await ctx.tick()

    simulate(receiver, bench)
    assert bytes(byte for _, byte, _ in got) == data
    assert [good for *_, good in got] == [int(i != 17) for i in range(len(data))]
    assert got[0][0] == config.receive_latency
    if skew == 1:
        assert [clock for clock, *_ in got[:17]] == [config.receive_latency + config.byte_clocks * i for i in range(17)]


def test_a_start_bit_that_is_too_short_is_noise() -> None:
    receiver = UartReceiver(UartConfig(clock_hz=1e6, baud=1e6 / 16))

    async def bench(ctx: Any) -> None:
        for clock in range(400):
            ctx.set(receiver.pin, int(not 10 <= clock < 16))
            assert not ctx.get(receiver.output.valid)
            await ctx.tick()

    simulate(receiver, bench)


@pytest.mark.parametrize("clocks", [4, 9])
def test_the_transmitter(rng: np.random.Generator, clocks: int) -> None:
    config = UartConfig(clock_hz=1e6, baud=1e6 / clocks)
    data = bytes(rng.integers(0, 256, 10).tolist())
    transmitter, levels = UartTransmitter(config), list[int]()

    async def bench(ctx: Any) -> None:
        position = 0
        for _ in range(len(data) * config.byte_clocks + 20):
            ctx.set(transmitter.input.valid, position < len(data))
            ctx.set(transmitter.input.payload, data[min(position, len(data) - 1)])
            position += ctx.get(transmitter.input.ready)
            levels.append(ctx.get(transmitter.pin))
            await ctx.tick()

    simulate(transmitter, bench)
    assert levels == [1] + [bit for bit in bits(data) for _ in range(clocks)] + [1] * 19


def test_the_deframer_is_its_model(rng: np.random.Generator) -> None:
    """Packets, damaged packets, garbage, silence and bytes without stop bit: the same packets and faults, in the clock after the byte that completes them."""
    deframer, model = Deframer(patience=PATIENCE), Decoder()
    line: list[int | Fault] = []
    for _ in range(150):
        piece: list[int | Fault] = list(encode(draw(rng)))
        match int(rng.integers(6)):
            case 0:
                del piece[int(rng.integers(len(piece)))]
            case 1:
                piece[int(rng.integers(len(piece)))] = int(rng.integers(256))
            case 2:
                piece = rng.integers(0, 256, int(rng.integers(1, 150))).tolist()
            case 3:
                piece.insert(int(rng.integers(len(piece))), Fault.LINE if rng.integers(2) else Fault.TIMEOUT)
        line += piece
    expected = [model.feed(bytes([one])) if not isinstance(one, Fault) else model.fail(one) for one in line]
    found: list[list[Packet | Fault]] = []

    async def bench(ctx: Any) -> None:
        for one in line:
            silence = one is Fault.TIMEOUT
            ctx.set(deframer.input.valid, not silence)
            ctx.set(deframer.input.payload, {"byte": one if not isinstance(one, Fault) else 0, "good": one is not Fault.LINE})
            await ctx.tick().repeat(PATIENCE + 2 if silence else 1)
            ctx.set(deframer.input.valid, 0)
            got: list[Packet | Fault] = [Fault(ctx.get(deframer.fault.payload))] if ctx.get(deframer.fault.valid) else []
            ctx.set(deframer.fault.ready, len(got))
            if ctx.get(deframer.request.valid):
                header = ctx.get(deframer.request.payload)
                payload = []
                for address in range(header.length):
                    ctx.set(deframer.address, address)
                    payload.append(ctx.get(deframer.byte))
                ctx.set(deframer.request.ready, 1)
                await ctx.tick()
                ctx.set(deframer.request.ready, 0)
                got.append(Packet(header.type, header.sequence, bytes(payload)))
            elif got or rng.integers(3) == 0:
                await ctx.tick().repeat(int(rng.integers(1, PATIENCE // 2)))
            found.append(got)

    simulate(deframer, bench)
    assert found == expected
    assert {one for some in expected for one in some if isinstance(one, Fault)} == {Fault.CRC, Fault.LENGTH, Fault.LINE, Fault.TIMEOUT}


def test_bytes_that_come_too_early_are_an_overrun(rng: np.random.Generator) -> None:
    deframer, packet = Deframer(patience=PATIENCE), draw(rng)

    async def bench(ctx: Any) -> None:
        async def send(data: bytes) -> None:
            ctx.set(deframer.input.valid, 1)
            for byte in data:
                ctx.set(deframer.input.payload, {"byte": byte, "good": 1})
                await ctx.tick()
            ctx.set(deframer.input.valid, 0)

        await send(encode(packet) + bytes([FLAG]))
        assert ctx.get(deframer.request.valid)
        await send(encode(packet)[:4])
        ctx.set(deframer.request.ready, 1)
        await ctx.tick().repeat(2)
        assert ctx.get(deframer.fault.valid) and ctx.get(deframer.fault.payload) == Fault.OVERRUN
        assert not ctx.get(deframer.request.valid)
        await send(encode(packet))
        assert ctx.get(deframer.request.valid)

    simulate(deframer, bench)


def test_the_enframer_is_its_model(rng: np.random.Generator) -> None:
    enframer, packets, line = Enframer(), [draw(rng) for _ in range(30)], bytearray()
    expected = b"".join(map(encode, packets))

    async def source(ctx: Any) -> None:
        for packet in packets:
            content = bytes([len(packet.payload), packet.type, packet.sequence]) + packet.payload
            for i, byte in enumerate(content):
                await ctx.tick().repeat(int(rng.integers(1, 3)))
                ctx.set(enframer.input.payload, {"byte": byte, "last": i == len(content) - 1})
                ctx.set(enframer.input.valid, 1)
                await ctx.tick().until(enframer.input.ready)
                ctx.set(enframer.input.valid, 0)

    async def sink(ctx: Any) -> None:
        while len(line) < len(expected):
            ctx.set(enframer.output.ready, int(rng.integers(3) > 0))
            _, _, valid, ready, byte = await ctx.tick().sample(enframer.output.valid, enframer.output.ready, enframer.output.payload)
            if valid and ready:
                line.append(byte)

    simulate(enframer, source, sink)
    assert bytes(line) == expected


CONTEXT, VOCABULARY = 40, 300


class Stub:
    """Registers that keep what is written."""

    def __init__(self) -> None:
        self.busy, self.words, self.resets = False, [0] * 64, 0
        self.writes: list[tuple[int, int]] = []

    def read(self, register: int) -> int:
        return self.words[register]

    def write(self, register: int, value: int) -> None:
        self.words[register] = value
        self.writes.append((register, value))

    def reset(self) -> None:
        self.resets += 1


class Bridged(wiring.Component):
    """A bridge between deframer and enframer, with a memory as the core's registers."""

    def __init__(self) -> None:
        self.deframer, self.bridge, self.enframer = Deframer(patience=PATIENCE), Bridge(context=CONTEXT, vocabulary=VOCABULARY), Enframer()
        super().__init__({})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.submodules += [self.deframer, self.bridge, self.enframer]
        m.submodules.registers = registers = Memory(shape=32, depth=64, init=[])
        store, fetch, bus = registers.write_port(), registers.read_port(), self.bridge.bus
        m.d.comb += [store.addr.eq(bus.address), store.data.eq(bus.write_data), store.en.eq(bus.write), fetch.addr.eq(bus.address), fetch.en.eq(1)]
        m.d.comb += [bus.read_data.eq(fetch.data), self.deframer.address.eq(self.bridge.address), self.bridge.byte.eq(self.deframer.byte)]
        wiring.connect(m, self.deframer.request, self.bridge.request)
        wiring.connect(m, self.deframer.fault, self.bridge.fault)
        wiring.connect(m, self.bridge.output, self.enframer.input)
        return m


def request(rng: np.random.Generator, sequence: int) -> Packet:
    """Any request, often a wrong one."""
    kind = int(rng.choice([PacketType.HELLO, PacketType.RESET, PacketType.READ, PacketType.WRITE, PacketType.START, 0x55]))
    match kind:
        case PacketType.READ:
            payload = bytes([int(rng.integers(64)), int(rng.choice([0, 1, 2, MAX_WORDS, MAX_WORDS + 1]))])
        case PacketType.WRITE:
            register = int(rng.choice([Register.CONTROL, Register.TOKEN, Register.TOKEN_INDEX, 0x44]))
            payload = bytes([register]) + b"".join(int(rng.integers(310)).to_bytes(4, "little") for _ in range(int(rng.integers(MAX_WORDS + 1))))
        case PacketType.START:
            position, length = int(rng.integers(CONTEXT)), int(rng.integers(CONTEXT // 2))
            payload = start_payload(position, length, int(rng.integers(3)), 7 if rng.integers(2) else None)
        case _:
            payload = b""
    if rng.integers(8) == 0:
        payload = payload[:-1] if rng.integers(2) and payload else payload + b"\0" * (len(payload) < MAX_PAYLOAD)
    return Packet(kind, sequence, payload)


def test_the_bridge_is_its_model(rng: np.random.Generator) -> None:
    """Requests, wrong and repeated ones, faults of the line, an idle and a busy core: the same replies and the same writes."""
    dut, stub = Bridged(), Stub()
    model = BridgeModel(context=CONTEXT, vocabulary=VOCABULARY, core=stub)
    writes, resets, replies, expected = list[tuple[int, int]](), 0, list[Packet | Fault](), list[Packet]()
    decoder = Decoder()

    async def host(ctx: Any) -> None:
        ctx.set(dut.enframer.output.ready, 1)
        while not replies:  # the event of a device that has just been switched on
            await ctx.tick()
        assert replies.pop() == Packet(PacketType.RESTARTED, 0, model.welcome)
        sequence = 1
        for _ in range(400):
            sequence = sequence + int(rng.integers(4) > 0) & 0xFF
            one = request(rng, sequence)
            line, asked = bytearray(encode(one)), one if rng.integers(10) else Fault.CRC
            if asked is Fault.CRC:
                line[2] ^= 0xC0  # the type, which is never a special byte
            stub.busy = bool(rng.integers(4) == 0)
            ctx.set(dut.bridge.busy, stub.busy)
            expected.append(model.respond(asked))
            for byte in line:
                ctx.set(dut.deframer.input.payload, {"byte": byte, "good": 1})
                ctx.set(dut.deframer.input.valid, 1)
                await ctx.tick()
                ctx.set(dut.deframer.input.valid, 0)
                await ctx.tick().repeat(int(rng.integers(1, 3)))
            while len(replies) < len(expected):
                await ctx.tick()
            ctx.set(dut.bridge.busy, 0)
            await ctx.tick().repeat(40)  # the end of that run
            replies[:] = [reply for reply in replies if not (isinstance(reply, Packet) and reply.type == PacketType.DONE)]

    async def line_out(ctx: Any) -> None:
        port, bus = dut.enframer.output, dut.bridge.bus
        nonlocal resets
        while True:
            _, _, valid, ready, byte, written, address, value, reset = await ctx.tick().sample(
                port.valid, port.ready, port.payload, bus.write, bus.address, bus.write_data, dut.bridge.core_reset
            )
            if valid and ready:
                replies.extend(decoder.feed(bytes([byte])))
            if written:
                writes.append((address, value))
            resets += reset

    simulate(dut, host, background=[line_out])
    assert replies == expected
    assert writes == stub.writes
    assert resets == stub.resets > 0
    assert {reply.payload[0] for reply in expected if reply.type == PacketType.ERROR} == {
        Fault.CRC, Fault.TYPE, Fault.PAYLOAD, Fault.BUSY, Fault.RANGE
    }  # fmt: skip


def test_tokens_and_the_end_of_a_run_are_events(rng: np.random.Generator) -> None:
    """Tokens that come faster than the line takes them are not sent, and their numbers tell; a START waits until the run before it is told of."""
    dut, decoder, got = Bridged(), Decoder(), list[Packet | Fault]()
    ids = rng.integers(0, VOCABULARY, 40).tolist()

    async def host(ctx: Any) -> None:
        async def send(packet: Packet) -> None:
            for byte in encode(packet):
                ctx.set(dut.deframer.input.payload, {"byte": byte, "good": 1})
                ctx.set(dut.deframer.input.valid, 1)
                await ctx.tick()
            ctx.set(dut.deframer.input.valid, 0)

        ctx.set(dut.enframer.output.ready, 1)
        await ctx.tick().repeat(40)
        await send(Packet(PacketType.START, 1, start_payload(0, 1, 40)))
        await ctx.tick().repeat(60)
        ctx.set(dut.bridge.busy, 1)
        for token in ids:
            ctx.set(dut.bridge.token.payload, token)
            ctx.set(dut.bridge.token.valid, 1)
            await ctx.tick()
            ctx.set(dut.bridge.token.valid, 0)
            await ctx.tick()
        await ctx.tick().repeat(4)
        ctx.set(dut.bridge.busy, 0)
        await send(Packet(PacketType.START, 2, start_payload(0, 1, 40)))
        await ctx.tick().repeat(800)

    async def line_out(ctx: Any) -> None:
        port: Any = dut.enframer.output
        while True:
            *_, valid, byte = await ctx.tick().sample(port.valid, port.payload)
            if valid:
                got.extend(decoder.feed(bytes([byte])))

    simulate(dut, host, background=[line_out])
    kinds = [one.type for one in got if isinstance(one, Packet)]
    tokens = [one for one in got if isinstance(one, Packet) and one.type == PacketType.TOKEN]
    assert kinds == [PacketType.RESTARTED, PacketType.ACK, *[PacketType.TOKEN] * len(tokens), PacketType.DONE, PacketType.ACK]
    assert 16 < len(tokens) < len(ids)
    assert [int.from_bytes(one.payload, "little") for one in tokens] == [ids[one.sequence] for one in tokens]
    done = next(one for one in got if isinstance(one, Packet) and one.type == PacketType.DONE)
    assert done == Packet(PacketType.DONE, len(ids), len(ids).to_bytes(2, "little"))


def test_patience_must_be_positive() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a refused component is never elaborated, which Amaranth remarks on
        with pytest.raises(ValueError, match="patience must be at least 1 clock, not 0"):
            Deframer(patience=0)
        gc.collect()
