# SPDX-License-Identifier: Apache-2.0
"""Boards as data: the FPGA, its clock, and the pins that a core uses. One YAML file per board, or a user's own."""

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from lutra.fpga_flows.devices import Excess, load_device
from lutra.hls_models.config import Config
from lutra.hls_models.load import load_named, preset_names

__all__ = ["OPEN_FAMILIES", "Board", "Pin", "VivadoBoard", "board_names", "load_board"]

HERE = Path(__file__).parent
OPEN_FAMILIES = ("ecp5", "ice40")
"""Families that open tools place and route."""
Role = Literal["clk", "rx", "tx", "reset", "busy", "ready", "high"]


class Pin(Config):
    """A pin of the FPGA."""

    site: str = Field(description="the vendor's name of the ball or pin")
    pull: Literal["none", "up", "down"] = "none"
    inverted: bool = Field(False, description="active when low")


class ProcessorPort(Config):
    """A port of the processor system's memory."""

    name: str = Field(description="of its interface: S_AXI_NAME_FPD")
    group: str = Field(description="of its parameters: PSU__USE__S_AXI_GROUP")


class MemoryRange(Config):
    """A part of the memory."""

    segment: str = Field(description="its name behind that of a port")
    base: int = Field(ge=0)
    bytes: int = Field(gt=0)


class VivadoBoard(Config):
    """What Vivado has to know of a board with a processor system."""

    part: str
    board_part: str = Field(description="without its version")
    carrier: str = Field(description="the card that the module is on, without its version")
    connector: str = Field(description="between them")
    control_base: int = Field(ge=0, multiple_of=4096, description="where the processor sees the control registers")
    memory_ports: list[ProcessorPort] = Field(min_length=1, description="in the order in which a core's read ports take them; the first is written through")
    memory: list[MemoryRange] = Field(min_length=1)


class Board(Config):
    """An FPGA board."""

    name: str
    family: Literal["ecp5", "ice40", "xcup"]
    options: list[str] = Field(description="device, package and speed grade, as nextpnr's options")
    clock_hz: float = Field(gt=0, description="of the oscillator")
    baud: float = Field(1e6, gt=0, description="of the serial line")
    device: str | None = Field(None, description="shipped device whose totals these are")
    totals: dict[Literal["lut", "ff", "ram4k", "dsp"], float] | None = Field(None, description="totals of an FPGA that is no shipped device")
    limit: float = Field(0.95, gt=0, le=1, description="share of the look-up tables with which placement and routing still come to an end")
    core: str | None = Field(None, description="shipped configuration whose whole core fits")
    pins: dict[Role, Pin]
    vivado: VivadoBoard | None = Field(None, description="of an FPGA that only the vendor's tools route")

    @cached_property
    def available(self) -> Mapping[str, float]:
        """Totals by kind."""
        found: Mapping[Any, float] = load_device(self.device).totals if self.device else self.totals or {}
        return found

    def excess(self, used: Mapping[str, float]) -> list[Excess]:
        """What is exceeded, the worst first; of look-up tables ``limit`` may be used, of everything else all."""
        shares = {"lut": self.limit}
        found = [
            Excess(kind, used[kind], shares.get(kind, 1) * total, total)
            for kind, total in self.available.items()
            if used.get(kind, 0) > shares.get(kind, 1) * total
        ]
        return sorted(found, key=lambda one: -one.used / one.allowed)

    @model_validator(mode="after")
    def _whole(self) -> "Board":
        if (self.device is None) == (self.totals is None):
            raise ValueError("device or totals must be given, and not both")
        needed: tuple[Role, ...] = ("clk", "rx", "tx")
        lacking = [role for role in needed if role not in self.pins]
        if self.family in OPEN_FAMILIES and lacking:
            raise ValueError(f"pins must have {' and '.join(lacking)}")
        for role, pin in self.pins.items():
            if role in needed and pin.inverted:
                raise ValueError(f"pins.{role}.inverted must be false: a serial line rests high, and a clock has no sense")
            if self.family == "ice40" and pin.pull == "down":
                raise ValueError(f"pins.{role}.pull must be none or up: family ice40 has no other")
        if self.family not in OPEN_FAMILIES and self.vivado is None:
            raise ValueError(f"vivado must be given: no open tools route family {self.family}")
        return self


def board_names() -> list[str]:
    """Names of the shipped boards."""
    return preset_names(HERE)


def load_board(name_or_path: str | Path) -> Board:
    """A shipped board by name, or a YAML file; ConfigError in one line."""
    return load_named("board", name_or_path, Board, HERE)
