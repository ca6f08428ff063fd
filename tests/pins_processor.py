# SPDX-License-Identifier: Apache-2.0
"""Runs inside the simulator: the core beside a processor, which is a master of cocotbext-axi: registers, a whole conversation by the PYNQ host program, a core
that is stopped in the middle, a memory that fails."""

import importlib
import json
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import cocotb
import numpy as np
from cocotb.clock import Clock
from cocotb.task import bridge, resume
from cocotb.triggers import ClockCycles, RisingEdge
from cocotbext.axi import AxiLiteBus, AxiLiteMaster, AxiRamRead, AxiRamWrite, AxiReadBus, AxiWriteBus
from pins_masters import Checked
from processor_case import SPEC, small_program

from lutra.hls_models.ternary.control import Entry, SystemRegister, control_map
from lutra.hls_models.ternary.device_model import DECODE_ERROR, OKAY, SLAVE_ERROR, UNCOUNTED, DeviceModel
from lutra.hls_models.ternary.executor import Executor
from lutra.hls_models.ternary.memory import PORT_BYTES
from lutra.hls_models.ternary.registers import IDENTITY, Register

PORTS = 2
PROGRAM = small_program()
PROMPT = [3, 7, 1, 2, 9]
MEMORY_BYTES = 1 << 20
BASES = (0x3000, 0x9000)


def golden(prompt: list[int], count: int) -> list[int]:
    return [done.token for done in Executor(SPEC, PROGRAM).generate(prompt, count) if done.last and done.token is not None]


class Board:
    """Core, memory and processor; ``lazy``: the share of clocks in which a channel pauses, at most."""

    def __init__(self, dut: Any, lazy: float = 0.5) -> None:
        self.dut, self.rng = dut, random.Random(int(cocotb.plusargs["seed"]))
        self.memory, self.lazy = bytearray(MEMORY_BYTES), lazy
        self.failing = range(0)
        names = [f"m_axi_memory{port}" for port in range(PORTS)]
        self.checked = [Checked(dut, name, "ar", clock="aclk") for name in names] + [Checked(dut, names[0], "aw", clock="aclk")]
        reset = {"reset": dut.aresetn, "reset_active_level": False}
        self.reads = [AxiRamRead(AxiReadBus.from_prefix(dut, name), dut.aclk, size=16, **reset) for name in names]
        self.writes = AxiRamWrite(AxiWriteBus.from_prefix(dut, names[0]), dut.aclk, size=16, **reset)
        self.control = AxiLiteMaster(AxiLiteBus.from_prefix(dut, "s_axi_control"), dut.aclk, **reset)
        for ram in (*self.reads, self.writes):
            ram._read, ram._write = self._read, self._write
        for part in (*self.reads, self.writes, self.control.write_if, self.control.read_if):
            part.log.setLevel("ERROR")
        write, read = self.control.write_if, self.control.read_if
        self.processor = [write.aw_channel, write.w_channel, write.b_channel, read.ar_channel, read.r_channel]
        memory = [channel for ram in self.reads for channel in (ram.ar_channel, ram.r_channel)]
        for channel in [*memory, self.writes.aw_channel, self.writes.w_channel, self.writes.b_channel, *self.processor]:
            channel.set_pause_generator(self._pauses())
        self._next = BASES[0]

    def _pauses(self) -> Iterator[bool]:
        share = self.rng.random() * self.lazy
        while True:
            yield self.rng.random() < share

    async def _read(self, address: int, length: int) -> bytes:
        if address in self.failing or address + length > MEMORY_BYTES:
            raise ValueError("no memory there")
        return bytes(self.memory[address : address + length])

    async def _write(self, address: int, data: bytes) -> None:
        self.memory[address : address + len(data)] = data

    async def start(self) -> None:
        Clock(self.dut.aclk, 2, "step").start(start_high=False)
        self.dut.aresetn.value = 0
        await ClockCycles(self.dut.aclk, 4)
        self.dut.aresetn.value = 1
        await ClockCycles(self.dut.aclk, 2)

    async def read(self, address: int, length: int = 4) -> tuple[int, int]:
        done = await self.control.read(address, length)
        return int.from_bytes(done.data, "little"), int(done.resp)

    async def write(self, address: int, value: int, length: int = 4) -> int:
        return int((await self.control.write(address, value.to_bytes(length, "little"))).resp)

    def image(self) -> None:
        """The model's regions, at ``BASES``."""
        assert PROGRAM.image is not None
        parts = np.asarray(PROGRAM.image).reshape(-1, PORTS, PORT_BYTES)
        for port, base in enumerate(BASES):
            self.memory[base : base + parts[:, port].size] = parts[:, port].tobytes()

    async def run_core(self) -> None:
        for port, base in enumerate(BASES):
            assert await self.write(4 * (SystemRegister.PORT_BASE + port), base >> 12) == OKAY
        assert await self.write(4 * SystemRegister.RUN, 1) == OKAY
        await self.wait(SystemRegister.STATE, 1, 1)

    async def wait(self, word: int, mask: int, wanted: int) -> None:
        while (await self.read(4 * word))[0] & mask != wanted:
            pass

    async def begin(self, prompt: list[int], count: int) -> None:
        for register, value in [(Register.TOKEN_INDEX, 0), *((Register.TOKEN, token) for token in prompt), (Register.START_POSITION, 0)]:
            assert await self.write(4 * register, value) == OKAY
        for register, value in [(Register.PROMPT_LENGTH, len(prompt)), (Register.MAX_NEW, count), (Register.STOP_TOKEN, 0), (Register.CONTROL, 1)]:
            assert await self.write(4 * register, value) == OKAY

    async def written(self, prompt: list[int], count: int) -> list[int]:
        await self.wait(Register.STATUS, 1, 0)
        out = []
        for at in range(len(prompt), len(prompt) + count):
            await self.write(4 * Register.TOKEN_INDEX, at)
            out.append((await self.read(4 * Register.TOKEN))[0])
        return out


async def latency(dut: Any, asked: str, answered: str) -> int:
    """Clocks from the next handshake of one channel of the control interface to the offer on another."""

    async def clock(*pins: str) -> None:
        while True:
            await RisingEdge(dut.aclk)
            if all(int(getattr(dut, f"s_axi_control_{pin}").value) for pin in pins):
                return

    await clock(f"{asked}valid", f"{asked}ready")
    begin = cocotb.simtime.get_sim_time("step")
    await clock(f"{answered}valid")
    return int(cocotb.simtime.get_sim_time("step") - begin) // 2


@cocotb.test()
async def registers(dut: Any) -> None:
    """Any accesses, one after another: the golden model's answers."""
    board = Board(dut, 0.8)
    await board.start()
    board.image()
    model = DeviceModel(SPEC, PROGRAM, lambda address, count: np.frombuffer(board.memory, np.uint8)[address : address + count])
    rng, entries = board.rng, control_map(PORTS)
    answers: set[tuple[int, str]] = set()
    both = {entry.offset: {"w": 0, "r": 0} for entry in entries}

    async def access(entry: Entry | None, *, write: bool) -> None:
        offset = entry.offset if entry else rng.choice([0x068, 0x0FC, 0x114, 0x11C, 0x128, 0x200, 0xFFC])
        if entry and write and entry.name in ("RUN", "CONTROL", "TOKEN_INDEX", "BEST_INDEX", "CHOICE_INDEX", "TOKEN"):
            return  # what these do is told apart below
        at, length = rng.choice([(0, 4), (0, 4), (0, 1), (1, 1), (2, 2), (1, 3), (3, 1), (0, 2)])
        if write:
            value = rng.getrandbits(8 * length)
            strobe = ((1 << length) - 1) << at
            response = await board.write(offset + at, value, length)
            assert response == model.write(offset + at, value << 8 * at, strobe), f"write of {offset + at:#x}"
        else:
            data, response = await board.read(offset + at, length)
            expected = model.read(offset + at)
            if entry is None or entry.offset // 4 not in UNCOUNTED:
                assert (data, response) == (expected[0] >> 8 * at & (1 << 8 * length) - 1, expected[1]), f"read of {offset + at:#x}"
        answers.add((response, "w" if write else "r"))
        if entry:
            both[entry.offset]["w" if write else "r"] += 1

    async def everything(times: int) -> None:
        for _ in range(times):
            some = [*entries, None, None]
            rng.shuffle(some)
            for entry in some:
                for write in rng.sample([False, True], 2):
                    await access(entry, write=write)
        for entry in entries:
            await access(entry, write=False)

    await everything(2)
    for port, base in enumerate(BASES):
        offset = 4 * (SystemRegister.PORT_BASE + port)
        assert await board.write(offset, base >> 12) == model.write(offset, base >> 12) == OKAY
    run = 4 * SystemRegister.RUN
    assert await board.write(run, 0xFFFFFFF1) == model.write(run, 0xFFFFFFF1) == OKAY
    await board.wait(SystemRegister.STATE, 1, 1)
    await everything(2)
    indices = [(Register.TOKEN_INDEX, 2), (Register.BEST_INDEX, 1), (Register.CHOICE_INDEX, 2)]
    for register, value in [(Register.TOKEN_INDEX, 2), (Register.TOKEN, 0x3FFFFF13), (Register.TOKEN, 5), *indices]:
        assert await board.write(4 * register, value) == model.write(4 * register, value) == OKAY
        for entry in entries:
            await access(entry, write=False)
    assert await board.write(run, 0) == model.write(run, 0) == OKAY
    await board.wait(SystemRegister.STATE, 1, 0)
    await everything(1)
    assert answers == {(OKAY, "r"), (OKAY, "w"), (SLAVE_ERROR, "r"), (SLAVE_ERROR, "w"), (DECODE_ERROR, "r"), (DECODE_ERROR, "w")}
    assert all(count["r"] for count in both.values())


@cocotb.test()
async def channels(dut: Any) -> None:
    """The five channels wait for nothing but their own: data before addresses, many accesses at once, responses that nobody takes, no strobes."""
    board = Board(dut)
    await board.start()
    for channel in board.processor:
        channel.clear_pause_generator()
        channel.pause = False
    write = board.control.write_if
    enable = 4 * SystemRegister.INTERRUPT_ENABLE
    base = [4 * (SystemRegister.PORT_BASE + port) for port in range(PORTS)]

    async def raw(address: int, data: int, strobe: int, first: str) -> int:
        aw, w = write.aw_channel._transaction_obj(), write.w_channel._transaction_obj()
        aw.awaddr, w.wdata, w.wstrb = address, data, strobe
        sends = [lambda: write.aw_channel.send(aw), lambda: write.w_channel.send(w)]
        for send in sends if first == "aw" else reversed(sends):
            await send()
            await ClockCycles(dut.aclk, 12)
        return int((await write.b_channel.recv()).bresp)

    # The master's own bookkeeping of responses is passed by: its queues are empty in between.
    assert await raw(base[0], 0x1234567, 0xF, "w") == OKAY
    assert await raw(base[1], 0x7654321, 0xF, "aw") == OKAY
    assert await raw(base[0], 0xFFFFFFF, 0, "w") == OKAY
    assert [(await board.read(one))[0] for one in base] == [0x1234567, 0x7654321]
    # A write whose response waits does not hold reads up, and the next write does not overtake it.
    write.b_channel.pause = True
    first, second = board.control.init_write(enable, bytes([5, 0, 0, 0])), board.control.init_write(enable, bytes([2, 0, 0, 0]))
    await ClockCycles(dut.aclk, 30)
    assert await board.read(enable) == (5, OKAY) and int(dut.s_axi_control_bvalid.value)
    write.b_channel.pause = False
    await first.wait()
    await second.wait()
    assert await board.read(enable) == (2, OKAY)
    # And a read whose data wait does not hold writes up.
    board.control.read_if.r_channel.pause = True
    reading = board.control.init_read(enable, 4)
    await ClockCycles(dut.aclk, 20)
    assert await board.write(enable, 7) == OKAY and int(dut.s_axi_control_rvalid.value)
    board.control.read_if.r_channel.pause = False
    await reading.wait()
    assert bytes(reading.data.data) == bytes([2, 0, 0, 0])
    reading = cocotb.start_soon(latency(dut, "ar", "r"))
    await board.read(enable)
    storing = cocotb.start_soon(latency(dut, "aw", "b"))
    await board.write(enable, 0)
    assert (await reading, await storing) == (4, 5)
    # Back to back, both ways at once.
    begin = cocotb.simtime.get_sim_time("step")
    events: list[Any] = []
    for number in range(40):
        events += [board.control.init_write(base[number % 2], number.to_bytes(4, "little")), board.control.init_read(base[number % 2], 4)]
    for event in events:
        await event.wait()
    assert all(int(event.data.resp) == OKAY for event in events)
    assert [(await board.read(one))[0] for one in base] == [38, 39]
    assert (cocotb.simtime.get_sim_time("step") - begin) / 2 < 12 * len(events)


@cocotb.test()
async def host(dut: Any) -> None:
    """The PYNQ host program, as it is in the project's folder, beside the RTL."""
    board = Board(dut)
    await board.start()

    begun: list[int] = []

    class Buffer(np.ndarray):
        physical_address: int

        def flush(self) -> None:
            pass

        def freebuffer(self) -> None:
            pass

    def allocate(shape: tuple[int, ...], dtype: Any) -> Buffer:
        size = int(np.prod(shape))
        buffer = np.frombuffer(board.memory, np.uint8)[board._next : board._next + size].reshape(shape).view(Buffer)
        buffer.physical_address = board._next
        board._next += -(-size // 4096) * 4096 + 0x2000
        return buffer

    class Overlay:
        def __init__(self, bitstream: str) -> None:
            self.ip_dict = {"core": {"phys_addr": 0xA0000000, "addr_range": 4096}}

    class Mmio:
        def __init__(self, base: int, length: int) -> None:
            pass

        def read(self, offset: int) -> int:
            data, response = resume(board.read)(offset)
            assert response == OKAY
            return int(data)

        def write(self, offset: int, value: int) -> None:
            if offset == 4 * Register.CONTROL:
                begun.append(value)
            assert resume(board.write)(offset, value) == OKAY

    pynq: Any = ModuleType("pynq")
    pynq.allocate, pynq.Overlay, pynq.MMIO = allocate, Overlay, Mmio
    sys.modules["pynq"] = pynq
    sys.path.insert(0, str(Path.cwd()))
    program = importlib.import_module("lutra_host")
    written = await bridge(program.main)(["lutra.bit", "memory.bin", "--ids", ",".join(map(str, PROMPT)), "--tokens", "6"])
    assert written == golden(PROMPT, 6) and len(set(written)) > 2
    # Drafts: every pass is made of what the registers told of the one before.
    begun.clear()
    drafted = ["--tokens", "14", "--drafts", str(SPEC.config.draft_lanes - 1)]
    assert await bridge(program.main)(["lutra.bit", "memory.bin", "--ids", ",".join(map(str, PROMPT)), *drafted]) == golden(PROMPT, 14)
    assert begun[0] == 1 and begun.count(4) == len(begun) - 1 < 13 - 3
    assert json.loads(Path("model.json").read_text())["config_hash"] == f"{SPEC.hash:016x}"
    beats = [count for checked in board.checked[:PORTS] for _, count in checked.bursts]
    assert SPEC.config.memory is not None and max(beats) == SPEC.config.memory.burst_beats and len(board.checked[PORTS].bursts) > 6


@cocotb.test()
async def stopped(dut: Any) -> None:
    """A core that is stopped in the middle of its run, at any moment: nothing that it asked for is left, and then it works as before."""
    board = Board(dut, 0.95)
    await board.start()
    board.image()
    expected = golden(PROMPT, 3)
    for moment in [*board.rng.sample(range(200, 2500), 8), None]:
        await board.run_core()
        assert await board.write(4 * SystemRegister.PORT_BASE, 1) == SLAVE_ERROR
        await board.begin(PROMPT, 3)
        if moment is None:
            break
        await ClockCycles(dut.aclk, moment)
        assert await board.write(4 * SystemRegister.RUN, 0) == OKAY
        if board.rng.random() < 0.5:
            assert await board.write(4 * SystemRegister.RUN, 1) == OKAY  # takes effect behind the reset
            await board.wait(SystemRegister.STATE, 1, 1)
            assert await board.write(4 * SystemRegister.RUN, 0) == OKAY
        await board.wait(SystemRegister.STATE, 1, 0)
        assert await board.read(4 * Register.IDENTITY) == (0, OKAY) and await board.write(4 * Register.MAX_NEW, 1) == SLAVE_ERROR
        before = [len(checked.bursts) for checked in board.checked]
        await ClockCycles(dut.aclk, 50)
        assert [len(checked.bursts) for checked in board.checked] == before
        assert not any(int(getattr(dut, f"m_axi_memory{port}_rvalid").value) for port in range(PORTS)) and not int(dut.m_axi_memory0_bvalid.value)
    assert await board.written(PROMPT, 3) == expected
    assert await board.read(4 * Register.IDENTITY) == (IDENTITY, OKAY)


@cocotb.test()
async def late_answers(dut: Any) -> None:
    """As long as a burst or a write has no answer, the core that asked for it is not reset."""
    board = Board(dut, 0.1)
    await board.start()
    board.image()
    for channel, asked in ((board.reads[1].r_channel, board.checked[1]), (board.writes.b_channel, board.checked[PORTS])):
        channel.clear_pause_generator()
        channel.pause = True
        asked.bursts.clear()
        await board.run_core()
        await board.begin(PROMPT, 3)
        while not asked.bursts:
            await RisingEdge(dut.aclk)
        await ClockCycles(dut.aclk, 200)
        assert await board.write(4 * SystemRegister.RUN, 0) == OKAY
        for _ in range(5):
            assert await board.read(4 * SystemRegister.STATE) == (1, OKAY)
        assert await board.write(4 * SystemRegister.PORT_BASE, 1) == SLAVE_ERROR
        channel.pause = False
        await board.wait(SystemRegister.STATE, 1, 0)
    await board.run_core()
    await board.begin(PROMPT, 3)
    assert await board.written(PROMPT, 3) == golden(PROMPT, 3)


@cocotb.test()
async def interrupts_and_errors(dut: Any) -> None:
    """Bits of what happens, by themselves and on the interrupt; a memory that fails is told until the core is reset."""
    board = Board(dut, 0.1)
    await board.start()
    board.image()
    status, enable = 4 * SystemRegister.INTERRUPT_STATUS, 4 * SystemRegister.INTERRUPT_ENABLE
    await board.run_core()
    await board.begin(PROMPT, 2)
    await board.wait(SystemRegister.INTERRUPT_STATUS, 2, 2)
    assert not int(dut.interrupt.value)
    await board.write(enable, 1)
    await RisingEdge(dut.interrupt)
    assert await board.read(status) == (3, OKAY)
    await board.write(status, 0xFFFFFF00, 4)
    await board.write(status + 1, 0xFFFFFF, 3)  # the bytes that are left out read as ones, and clear nothing
    assert await board.read(status) == (3, OKAY) and int(dut.interrupt.value)
    await board.write(status, 1, 1)
    assert await board.read(status) == (2, OKAY) and not int(dut.interrupt.value)
    await board.write(status, 2)
    await board.write(enable, 4)
    table = PROGRAM.region("table")
    board.failing = range(BASES[1] + PORT_BYTES * table.address, BASES[1] + PORT_BYTES * table.end)
    await board.begin(PROMPT, 2)
    await RisingEdge(dut.interrupt)
    assert (await board.read(status))[0] & 4 and await board.read(4 * SystemRegister.STATE) == (3, OKAY)
    await board.write(4 * SystemRegister.RUN, 0)
    await board.wait(SystemRegister.STATE, 1, 0)
    board.failing = range(0)
    await board.write(status, 7)
    await board.run_core()
    assert await board.read(4 * SystemRegister.STATE) == (1, OKAY) and not int(dut.interrupt.value)
    await board.begin(PROMPT, 2)
    assert await board.written(PROMPT, 2) == golden(PROMPT, 2)
