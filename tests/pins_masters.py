# SPDX-License-Identifier: Apache-2.0
"""Runs inside the simulator: AxiReader and AxiWriter at cocotbext-axi's memories, every channel pausing at random, and what they answer to errors."""

import random
from collections.abc import Iterator
from typing import Any

import cocotb
from cocotb.clock import Clock
from cocotb.triggers import ClockCycles, ReadOnly, RisingEdge
from cocotbext.axi import AxiRamRead, AxiRamWrite, AxiReadBus, AxiWriteBus

from lutra.hls_models.ternary.kv_layout import KvLayout

KV = KvLayout(beat_bytes=32, layers=1, kv_heads=1, head_dim=32, context=16, key_tile=8, base=512)
PORTS, BEATS, BURSTS, ROWS = 2, 4096, 20, 30
BASES = (0x1_0000_3000, 0x2_0004_5000)
PAGE = 4096


class Checked:
    """What cannot occur by construction is asserted of every address on the bus: 16 bytes a beat, incrementing, aligned, within 4 KB, kept until taken."""

    def __init__(self, dut: Any, prefix: str, channel: str, *, clock: str = "clk") -> None:
        self.bursts: list[tuple[int, int]] = []
        names = ("addr", "len", "size", "burst", "id", "cache", "prot")
        self._pins = {name: getattr(dut, f"{prefix}_{channel}{name}") for name in (*names, "valid", "ready")}
        cocotb.start_soon(self._watch(getattr(dut, clock)))

    async def _watch(self, clk: Any) -> None:
        offered = None
        while True:
            await RisingEdge(clk)
            seen = {name: int(pin.value) for name, pin in self._pins.items()}
            valid, ready = seen.pop("valid"), seen.pop("ready")
            if offered is not None:
                assert valid and seen == offered, f"an address changed before it was taken: {offered} {seen}"
            offered = seen if valid and not ready else None
            if valid and ready:
                address, beats = seen["addr"], seen["len"] + 1
                assert (seen["size"], seen["burst"], seen["id"], seen["prot"]) == (4, 1, 0, 0)
                assert address % 16 == 0 and address // PAGE == (address + 16 * beats - 1) // PAGE
                self.bursts.append((address, beats))


def pauses(rng: random.Random) -> Iterator[bool]:
    share = rng.choice([0.0, 0.3, 0.8])
    while True:
        yield rng.random() < share


class Bench:
    """Memories behind the ports: one array of bytes per region, ``failing`` addresses answer with errors."""

    def __init__(self, dut: Any) -> None:
        self.dut, self.rng = dut, random.Random(int(cocotb.plusargs["seed"]))
        self.regions = [bytearray(self.rng.randbytes(16 * BEATS)) for _ in range(PORTS)]
        self.failing: set[int] = set()
        self.checked = [Checked(dut, f"axi_read{port}", "ar") for port in range(PORTS)] + [Checked(dut, "axi_write", "aw")]
        self.reads = [AxiRamRead(AxiReadBus.from_prefix(dut, f"axi_read{port}"), dut.clk, dut.rst, size=16) for port in range(PORTS)]
        self.writes = AxiRamWrite(AxiWriteBus.from_prefix(dut, "axi_write"), dut.clk, dut.rst, size=16)
        for ram in (*self.reads, self.writes):
            ram.log.setLevel("ERROR")
            ram._read, ram._write = self._read, self._write
        channels = [channel for ram in self.reads for channel in (ram.ar_channel, ram.r_channel)]
        for channel in [*channels, self.writes.aw_channel, self.writes.w_channel, self.writes.b_channel]:
            channel.set_pause_generator(pauses(self.rng))

    def _place(self, address: int) -> tuple[bytearray, int]:
        if address // 16 in self.failing:
            raise ValueError("an error, as the test asks for")
        port = next(port for port in reversed(range(PORTS)) if address >= BASES[port])
        return self.regions[port], address - BASES[port]

    async def _read(self, address: int, length: int) -> bytes:
        region, at = self._place(address)
        return bytes(region[at : at + length])

    async def _write(self, address: int, data: bytes) -> None:
        region, at = self._place(address)
        region[at : at + len(data)] = data

    async def start(self) -> None:
        dut = self.dut
        Clock(dut.clk, 2, "step").start(start_high=False)
        for pin in (dut.request_valid, dut.data_ready, dut.row_valid):
            pin.value = 0
        for port, base in enumerate(BASES):
            getattr(dut, f"base{port}").value = base // PAGE
        dut.rst.value = 1
        await ClockCycles(dut.clk, 4)
        dut.rst.value = 0
        await RisingEdge(dut.clk)

    async def offer(self, valid: Any, ready: Any, pins: list[tuple[Any, int]]) -> None:
        """One handshake, a while after the last one."""
        while self.rng.random() < 0.3:
            await RisingEdge(self.dut.clk)
        valid.value = 1
        for pin, value in pins:
            pin.value = value
        while True:
            await ReadOnly()
            taken = bool(int(ready.value))
            await RisingEdge(self.dut.clk)
            if taken:
                break
        valid.value = 0

    async def request(self, bursts: list[tuple[int, int]]) -> None:
        dut = self.dut
        for address, beats in bursts:
            await self.offer(dut.request_valid, dut.request_ready, [(dut.request_address, address), (dut.request_beats, beats)])

    async def rows(self, rows: list[tuple[int, bytes, bytes]]) -> None:
        dut = self.dut
        for number, codes, scale in rows:
            payload = [(dut.row_address, number), (dut.row_codes, int.from_bytes(codes, "little")), (dut.row_scale, int.from_bytes(scale, "little"))]
            await self.offer(dut.row_valid, dut.row_ready, payload)

    async def idle(self) -> None:
        """The writer has its responses, and their errors are told."""
        await ClockCycles(self.dut.clk, 2)
        while not int(self.dut.idle.value):
            await RisingEdge(self.dut.clk)
        await ClockCycles(self.dut.clk, 2)

    async def take(self, beats: int) -> list[bytes]:
        dut, out = self.dut, list[bytes]()
        while len(out) < beats:
            ready = self.rng.random() < 0.8
            dut.data_ready.value = int(ready)
            await ReadOnly()
            if ready and int(dut.data_valid.value):
                out.append(int(dut.data_payload.value).to_bytes(16 * PORTS, "little"))
            await RisingEdge(dut.clk)
        dut.data_ready.value = 0
        return out


def burst(rng: random.Random) -> tuple[int, int]:
    """Any that a client may ask for; often up to the end of its 4 KB, often all of these."""
    page = rng.randrange(BEATS // 256)
    at = rng.choice([0, rng.randrange(256), 255])
    return 256 * page + at, rng.choice([256 - at, rng.randrange(256 - at) + 1])


def written(regions: list[bytearray], rows: list[tuple[int, bytes, bytes]]) -> list[tuple[int, int]]:
    """Stores rows as ``KvLayout`` says; returns (address, beats) of the writes."""
    out = []
    for number, codes, scale in rows:
        for write in KV.writes(number):
            data = 4 * scale if write.unit is None else codes[16 * write.unit :][:16]
            for byte in range(16):
                if write.strobe >> byte & 1:
                    regions[write.lane][16 * write.beat + byte] = data[byte]
            out.append((BASES[write.lane] + 16 * write.beat, 1))
    return out


@cocotb.test()
async def values(dut: Any) -> None:
    bench = Bench(dut)
    rng = bench.rng
    await bench.start()
    kept = KV.base + KV.beats  # rows change while others are read: reads stay away from them
    bursts = [(0, 256), *(burst(rng) for _ in range(BURSTS))]
    bursts = [(address, beats) for address, beats in bursts if address >= kept or address + beats <= KV.base]
    rows = [(rng.randrange(2 * KV.context), rng.randbytes(32), rng.randbytes(4)) for _ in range(ROWS)]
    expected = [bytes(region) for region in bench.regions]
    after = [bytearray(region) for region in bench.regions]
    writes = written(after, rows)
    asking, storing = cocotb.start_soon(bench.request(bursts)), cocotb.start_soon(bench.rows(rows))
    got = await bench.take(sum(beats for _, beats in bursts))
    await asking
    await storing
    await bench.idle()
    beats = [beat for address, count in bursts for beat in range(address, address + count)]
    assert got == [b"".join(region[16 * beat :][:16] for region in expected) for beat in beats]
    assert bench.regions == after
    for port in range(PORTS):
        assert bench.checked[port].bursts == [(BASES[port] + 16 * address, count) for address, count in bursts]
    assert bench.checked[PORTS].bursts == writes
    assert not int(dut.read_error.value) and not int(dut.write_error.value)


@cocotb.test()
async def errors(dut: Any) -> None:
    """An error of one beat on one port is told from then on; the beats are all there; and so for a write."""
    bench = Bench(dut)
    await bench.start()
    bench.failing = {(BASES[1] >> 4) + 700, (BASES[0] >> 4) + KV.writes(3)[0].beat}
    taking = cocotb.start_soon(bench.take(20))
    await bench.request([(680, 20)])
    await taking
    assert not int(dut.read_error.value)
    taking = cocotb.start_soon(bench.take(20))
    await bench.request([(690, 20)])
    await taking
    assert int(dut.read_error.value) and not int(dut.write_error.value)
    await bench.rows([(3, bytes(32), bytes(4))])
    await bench.idle()
    assert int(dut.write_error.value)
    await bench.rows([(5, bytes(32), bytes(4))])
    await bench.idle()
    assert int(dut.write_error.value) and int(dut.read_error.value)
