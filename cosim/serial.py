# SPDX-License-Identifier: Apache-2.0
"""A simulated serial port: the host program's bytes become bits on the pins of the RTL, and its bits bytes, in simulated time.

The simulation stands still between calls, and waiting is counted in its clocks: equal calls give equal answers, however busy the machine is.
"""

import struct
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from lutra.cosim import simulator
from lutra.cosim.core import hex_image
from lutra.cosim.gates import board_level
from lutra.hls_models.errors import ToolError
from lutra.hls_models.ternary.core import CoreSpec
from lutra.hls_models.ternary.program import Program
from lutra.hls_models.uart import FRAME_BITS, UartConfig
from lutra.rtl.link.system import LinkedSystem
from lutra.rtl.ternary.system import OnChipSystem
from lutra.rtl.verilog import emit_rtlil, from_rtlil, library_text, share_modules

__all__ = ["SIMULATED_CLOCKS", "SimulatedPort", "build", "build_gates", "serial_line"]

MAIN = Path(__file__).parent / "serial.cpp"
SIMULATED_CLOCKS = 8
"""Clocks of a bit in simulations: fewer than on a board, so that the line takes little of the time."""
IMAGE = "memory.hex"


def serial_line(spec: CoreSpec) -> UartConfig:
    """The line of a simulated device."""
    return UartConfig(clock_hz=spec.config.clock_hz, baud=spec.config.clock_hz / SIMULATED_CLOCKS)


def build(spec: CoreSpec, beats: int, *, optimization: str = simulator.OPTIMIZATION) -> simulator.Build:
    """The program that simulates a core with its serial link and a memory of so many beats (rounded up to a power of two); from the cache where it is there."""
    beats = 1 << (beats - 1).bit_length()

    def make() -> dict[str, str]:
        return {"rtlil": share_modules(emit_rtlil(LinkedSystem(OnChipSystem(spec, beats=beats, file=IMAGE), serial_line(spec)), simulator.TOP))}

    rtlil = simulator.kept_texts(["linked", beats, SIMULATED_CLOCKS, spec.model_dump(mode="json")], make)["rtlil"]
    return simulator.build_program(rtlil + library_text(rtlil), lambda: from_rtlil(rtlil), MAIN, optimization=optimization)


def build_gates(netlist: Mapping[str, Any], *, inverted_reset: bool, optimization: str = simulator.OPTIMIZATION) -> simulator.Build:
    """The program that simulates a board's netlist after synthesis (a flat module of yosys' JSON), the contents of its memories inside."""
    text = board_level(netlist, inverted=inverted_reset)
    return simulator.build_program(text, lambda: text, MAIN, optimization=optimization)


class SimulatedPort:
    """The serial port of a simulated device: as ``lutra.link.Port``, and what may go wrong with a line.

    Parameters
    ----------
    spec, program : the core and what its memory holds
    skew : bit time of this end, in bit times of the device
    optimization : of the C++ compiler
    design : what is simulated in place of the core's RTL, with its clocks of a bit (``build_gates``)
    """

    latency_s = 0.0

    def __init__(
        self,
        spec: CoreSpec,
        program: Program,
        *,
        skew: float = 1.0,
        optimization: str = simulator.OPTIMIZATION,
        design: tuple[simulator.Build, UartConfig] | None = None,
    ) -> None:
        built, uart = design or (build(spec, program.beats, optimization=optimization), serial_line(spec))
        self.byte_s = FRAME_BITS / uart.baud
        self._clock_hz = uart.clock_hz
        self._folder = tempfile.TemporaryDirectory(prefix="lutra-serial-")
        (Path(self._folder.name) / IMAGE).write_bytes(hex_image(program))
        command = [str(built.folder.resolve() / simulator.TOP), repr(uart.clocks * skew)]
        self._process = subprocess.Popen(command, cwd=self._folder.name, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.clock = 0

    def write(self, data: bytes) -> None:
        """Puts bytes on the line, behind those that wait."""
        self._command(b"S", len(data), data)

    def read(self, seconds: float) -> bytes:
        """Bytes of the device: the next one to come within so many simulated seconds, b"" without any."""
        self._command(b"R", max(1, round(seconds * self._clock_hz)))
        stdout = self._process.stdout
        assert stdout is not None
        facts = stdout.read(16)
        if len(facts) < 16:
            raise ToolError(f"the simulated device stopped with exit code {self._process.wait()}")
        self.clock, count = struct.unpack("<QQ", facts)
        return stdout.read(count)

    def send_break(self, bits: int = 20) -> None:
        """Keeps the line low for so many bits."""
        self._command(b"B", bits)

    def press_reset(self, clocks: int = 4) -> None:
        """The board's reset button."""
        self._command(b"P", clocks)

    def close(self) -> None:
        """Ends the simulation."""
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe:
                pipe.close()
        self._process.wait()
        self._folder.cleanup()

    def __enter__(self) -> "SimulatedPort":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _command(self, letter: bytes, number: int, data: bytes = b"") -> None:
        stdin = self._process.stdin
        assert stdin is not None
        try:
            stdin.write(letter + struct.pack("<Q", number) + data)
            stdin.flush()
        except BrokenPipeError:
            raise ToolError(f"the simulated device stopped with exit code {self._process.wait()}") from None
