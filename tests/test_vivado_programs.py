# SPDX-License-Identifier: Apache-2.0
"""The programs of a Vivado project: C header and Python module against the table of registers, driver and PYNQ host against the golden device."""

import importlib
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from processor_case import SHAPE, SPEC, small_program, write_software

from lutra.hls_models.ternary.control import control_map
from lutra.hls_models.ternary.device_model import OKAY, DeviceModel
from lutra.hls_models.ternary.executor import Executor
from lutra.hls_models.ternary.program import Program
from lutra.hls_models.ternary.registers import Register

PORTS = 2
PROMPT = [3, 7, 1, 2, 9]


@pytest.fixture(scope="module")
def program() -> Program:
    return small_program()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, program: Program) -> Path:
    """The project's software, and the image beside it."""
    path = tmp_path_factory.mktemp("software")
    write_software(path, program)
    return path


MODULES = ("lutra_registers", "lutra_drafts", "lutra_driver", "lutra_host")


class Board:
    """A board with PYNQ: contiguous memory, and the golden device behind its registers."""

    def __init__(self, program: Program, *, cma: int = 0x4_0000_5000) -> None:
        self.buffers: dict[int, np.ndarray] = {}
        self.flushed: list[int] = []
        self.freed: list[int] = []
        self._next, self.loaded = cma, ""
        self.device = DeviceModel(SPEC, program, self.memory)
        self.accesses: list[tuple[int, int | None]] = []

    def memory(self, address: int, count: int) -> np.ndarray:
        for base, content in self.buffers.items():
            if base <= address and address + count <= base + content.nbytes:
                assert base in self.flushed, "the core would read what is still in the processor's caches"
                return np.asarray(content).reshape(-1)[address - base :][:count]
        raise LookupError(f"no memory at {address:#x}")

    def module(self) -> ModuleType:
        board = self

        class Buffer(np.ndarray):
            physical_address: int

            def flush(self) -> None:
                board.flushed.append(self.physical_address)

            def freebuffer(self) -> None:
                board.freed.append(self.physical_address)

        def allocate(shape: tuple[int, ...], dtype: Any) -> Buffer:
            buffer = np.full(shape, 0xA5, dtype).view(Buffer)
            buffer.physical_address = board._next
            board.buffers[board._next] = buffer
            board._next += -(-buffer.nbytes // 4096) * 4096
            return buffer

        class Overlay:
            def __init__(self, bitstream: str) -> None:
                board.loaded = bitstream
                self.ip_dict = {"core": {"phys_addr": 0xA0000000, "addr_range": 4096}}

        class Mmio:
            def __init__(self, base: int, length: int) -> None:
                assert (base, length) == (0xA0000000, 4096)

            def read(self, offset: int) -> int:
                data, response = board.device.read(offset)
                board.accesses.append((offset, None))
                assert response == OKAY, f"the processor would fault at a read of {offset:#x}"
                return data

            def write(self, offset: int, value: int) -> None:
                assert 0 <= value < 1 << 32
                board.accesses.append((offset, value))
                assert board.device.write(offset, value) == OKAY, f"the processor would fault at a write of {offset:#x}"

        module: Any = ModuleType("pynq")
        module.allocate, module.Overlay, module.MMIO = allocate, Overlay, Mmio
        return module


@pytest.fixture
def board(program: Program, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Board]:
    made = Board(program)
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setitem(sys.modules, "pynq", made.module())
    for name in MODULES:
        monkeypatch.delitem(sys.modules, name, raising=False)
    yield made
    for name in MODULES:
        sys.modules.pop(name, None)


def golden(program: Program, prompt: list[int], count: int, **more: Any) -> list[int]:
    return [done.token for done in Executor(SPEC, program).generate(prompt, count, **more) if done.last and done.token is not None]


def test_the_host_program_from_bitstream_to_tokens(board: Board, program: Program, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    host = importlib.import_module("lutra_host")
    written = host.main(["lutra.bit", str(folder / "memory.bin"), "--ids", ",".join(map(str, PROMPT)), "--tokens", "6"])
    expected = golden(program, PROMPT, 6)
    assert written == expected and len(set(expected)) > 1
    assert capsys.readouterr().out.split() == [str(token) for token in expected]
    assert board.loaded == "lutra.bit" and sorted(board.freed) == sorted(board.buffers) and len(board.buffers) == PORTS
    # The core is let go only where every region is told, and stopped before memory is given back.
    run = 4 * 0x40
    assert [value for offset, value in board.accesses if offset == run and value is not None] == [0, 0, 1, 0]


def test_drafts_write_the_same_text_in_fewer_passes(board: Board, program: Program, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    host = importlib.import_module("lutra_host")
    image, most = str(folder / "memory.bin"), SPEC.config.draft_lanes - 1
    whole = golden(program, PROMPT, SHAPE.context)
    for drafts, stop in ((1, None), (most, None), (most, whole[4])):
        board.accesses.clear()
        more = [] if stop is None else ["--stop", str(stop)]
        written = host.main(["lutra.bit", image, "--ids", ",".join(map(str, PROMPT)), "--tokens", "99", "--drafts", str(drafts), *more])
        assert written == (whole if stop is None else whole[: whole.index(stop) + 1])
        begun = [value for offset, value in board.accesses if offset == 4 * Register.CONTROL and value is not None]
        assert begun[0] == 1 and set(begun[1:]) == {4} and (stop is not None or len(begun) < len(whole) - 4)
    for wrong in ("-1", str(most + 1)):
        with pytest.raises(SystemExit, match=f"--drafts must be 0 to {most} on this core, not {wrong}"):
            host.main(["lutra.bit", image, "--ids", "3", "--drafts", wrong])


def test_what_the_image_holds_decides(board: Board, program: Program, folder: Path, tmp_path: Path) -> None:
    """Negative control: one wrong weight, other tokens."""
    host = importlib.import_module("lutra_host")
    image = np.fromfile(folder / "memory.bin", np.uint8)
    region = program.region("head")
    image[region.address * 32 : region.end * 32] = np.random.default_rng(1).permutation(image[region.address * 32 : region.end * 32])
    image.tofile(tmp_path / "memory.bin")
    written = host.main(["lutra.bit", str(tmp_path / "memory.bin"), "--ids", "3,7,1", "--tokens", "6"])
    assert written != golden(program, [3, 7, 1], 6)


def test_the_host_refuses(board: Board, folder: Path, tmp_path: Path) -> None:
    host = importlib.import_module("lutra_host")
    image = str(folder / "memory.bin")
    (tmp_path / "short.bin").write_bytes(b"123")
    for arguments, message in (
        (["lutra.bit", image], "--ids, or --tokenizer and --prompt, must be given"),
        (["lutra.bit", image, "--ids", "3,30"], "ids must be below 30, not 30"),
        (["lutra.bit", image, "--ids", ",".join(["1"] * 25)], "there must be 1 to 24 tokens, not 25"),
        (["lutra.bit", str(tmp_path / "short.bin"), "--ids", "3"], r"must have \d+ bytes, not 3"),
    ):
        with pytest.raises(SystemExit, match=message):
            host.main(arguments)
    facts = json.loads((folder / "model.json").read_text())
    wrong = {**facts, "config_hash": "0" * 16}
    (folder / "model.json").write_text(json.dumps(wrong))
    try:
        with pytest.raises(SystemExit, match="holds another core"):
            host.main(["lutra.bit", image, "--ids", "3"])
    finally:
        (folder / "model.json").write_text(json.dumps(facts))


def test_the_driver(board: Board, program: Program, folder: Path) -> None:
    host, driver = importlib.import_module("lutra_host"), importlib.import_module("lutra_driver")
    model = json.loads((folder / "model.json").read_text())
    core = host.open_core("lutra.bit", model)
    with pytest.raises(ValueError, match="bases must be 2, one per port, not 1"):
        core.start([0])
    with pytest.raises(ValueError, match=r"base must be a multiple of 4096 below 2\^40, not 0x10"):
        core.start([0, 16])
    core.start([buffer.physical_address for buffer in host.load(folder / "memory.bin", model)])
    executor = Executor(SPEC, program)
    first = [done.token for done in executor.generate(PROMPT, 2) if done.last]
    assert list(core.generate(PROMPT, 2)) == first
    # A second turn, with a token that stops it.
    passes = [done for done in executor.generate([4], 5, start=len(PROMPT) + 2) if done.last]
    tokens = [done.token for done in passes]
    stop = tokens[2]
    assert list(core.generate([4], 5, position=len(PROMPT) + 2, stop=stop)) == tokens[: tokens.index(stop) + 1]
    assert core.counters()["passes"] == tokens.index(stop) + 1
    ends = [done for done in executor.generate([4], tokens.index(stop) + 1, start=len(PROMPT) + 2) if done.last][-1]
    assert ends.best is not None and ends.activation_scale is not None
    scale = ends.activation_scale.view(np.float32)[-1]
    assert core.best() == [(int(token), float(score) * float(scale)) for token, score in zip(ends.best[0], ends.best[1].view(np.float32), strict=True)]
    # Drafts behind an earlier turn, and how many ids a pass takes.
    assert list(core.generate(PROMPT, 2)) == first
    assert list(core.generate([4], 5, position=len(PROMPT) + 2, drafts=SPEC.config.draft_lanes - 1)) == tokens
    with pytest.raises(ValueError, match=f"ids must be 1 to {SPEC.config.draft_lanes}, not 0"):
        core.verify([], 0)
    # To the end of the context: the last token has no place in it.
    whole = golden(program, [1] * 20, 100)
    assert list(core.generate([1] * 20, 100)) == whole and len(whole) == SHAPE.context - 20 + 1
    board.device.read = lambda address: (0, OKAY)  # type: ignore[method-assign]
    lost = driver.Accelerator(SimpleNamespace(read=lambda offset: 0, write=lambda offset, value: None), timeout_s=0.01)
    with pytest.raises(driver.DriverError, match="the core does not leave reset"):
        lost.start([0, 0])
    failing = driver.Accelerator(SimpleNamespace(read=lambda offset: 2, write=lambda offset, value: None))
    with pytest.raises(driver.DriverError, match="the memory answered with an error"):
        next(failing.generate([1], 1))


CHECK = r"""
#include <stdio.h>
#include <stdint.h>
#include "lutra_registers.h"
#define SHOW(name) printf("%s %llu\n", #name, (unsigned long long)(name));
int main(void) {
"""


def test_header_and_module_say_what_the_table_says(folder: Path, tmp_path: Path) -> None:
    expected: dict[str, int] = {"WINDOW_BYTES": 4096, "PORT_COUNT": PORTS}
    for entry in control_map(PORTS):
        expected[entry.name] = entry.offset
        for field in entry.fields:
            expected |= {f"{entry.name}_{field.name}_MASK": field.mask, f"{entry.name}_{field.name}_SHIFT": field.low}
    defined = re.findall(r"#define LUTRA_(\w+) ", (folder / "lutra_registers.h").read_text())
    assert sorted(defined) == sorted(expected)
    source = tmp_path / "check.c"
    source.write_text(CHECK + "".join(f"    SHOW(LUTRA_{name})\n" for name in defined) + "    return 0;\n}\n")
    subprocess.run(["cc", "-std=c99", "-Wall", "-Wextra", "-Werror", "-I", str(folder), "-o", str(tmp_path / "check"), str(source)], check=True)
    lines = subprocess.run([str(tmp_path / "check")], capture_output=True, text=True, check=True).stdout.splitlines()
    assert {name.removeprefix("LUTRA_"): int(value) for name, value in map(str.split, lines)} == expected
    names: dict[str, Any] = {}
    exec((folder / "lutra_registers.py").read_text(), names)
    assert {name: names[name] for name in expected} == expected
    assert names["REGISTERS"] == {entry.name: (entry.offset, entry.access) for entry in control_map(PORTS)}


def test_the_table_is_sound() -> None:
    for ports in (1, 8):
        entries = control_map(ports)
        offsets = [entry.offset for entry in entries]
        assert sorted(set(offsets)) == offsets and all(offset % 4 == 0 and offset < 4096 for offset in offsets)
        assert {entry.name for entry in entries} > {register.name for register in Register}
        for entry in entries:
            taken = 0
            for field in entry.fields:
                assert not taken & field.mask and field.mask < 1 << 32
                taken |= field.mask
    with pytest.raises(ValueError, match="ports must be 1 to 8, not 9"):
        control_map(9)
