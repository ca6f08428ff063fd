# SPDX-License-Identifier: Apache-2.0
"""The core's top as IP: its pins, its interfaces, and which pin of an interface each pin is."""

from dataclasses import dataclass
from typing import Any

from amaranth.hdl._ir import PortDirection

from lutra.hls_models.ternary.core import CoreSpec
from lutra.hls_models.ternary.memory import PORT_BYTES
from lutra.rtl.axi.ports import ADDRESS_BITS
from lutra.rtl.board.processor import ProcessorTop, memory_name

__all__ = ["CLOCK", "CONTROL", "INTERRUPT", "RESET", "Interface", "IpTop", "Pin", "ip_top"]

CONTROL, CLOCK, RESET, INTERRUPT = "s_axi_control", "aclk", "aresetn", "interrupt"


@dataclass(frozen=True)
class Pin:
    """A port of the Verilog module."""

    name: str
    output: bool
    width: int


@dataclass(frozen=True)
class Interface:
    """A bus interface: ``kind`` is its bus type (``aximm``, ``clock``, ``reset``, ``interrupt``); ``pins``: (logical name, pin's name)."""

    name: str
    kind: str
    mode: str
    pins: tuple[tuple[str, str], ...]
    parameters: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class IpTop:
    """Module ``name``, its pins in order, its interfaces."""

    name: str
    pins: tuple[Pin, ...]
    interfaces: tuple[Interface, ...]

    @property
    def memories(self) -> list[Interface]:
        return [one for one in self.interfaces if one.kind == "aximm" and one.mode == "master"]


def ip_top(name: str, top: ProcessorTop, spec: CoreSpec) -> IpTop:
    """Of a top as it is emitted."""
    memory = spec.config.memory
    assert memory is not None  # SharedSystem refuses it
    pins = tuple(Pin(pin, direction == PortDirection.Output, len(signal)) for pin, (signal, direction) in top.ports.items())

    def bus(prefix: str) -> tuple[tuple[str, str], ...]:
        return tuple((pin.name.removeprefix(f"{prefix}_").upper(), pin.name) for pin in pins if pin.name.startswith(f"{prefix}_"))

    memories = [memory_name(port) for port in range(memory.ports)]
    common: dict[str, Any] = {"PROTOCOL": "AXI4", "DATA_WIDTH": 8 * PORT_BYTES, "ADDR_WIDTH": ADDRESS_BITS, "ID_WIDTH": 1, "SUPPORTS_NARROW_BURST": 0}
    common |= {"MAX_BURST_LENGTH": memory.burst_beats, "NUM_READ_OUTSTANDING": memory.outstanding}
    interfaces = [Interface(CONTROL, "aximm", "slave", bus(CONTROL), _texts({"PROTOCOL": "AXI4LITE", "DATA_WIDTH": 32}))]
    for port, memory_pins in enumerate(memories):
        mode = {"READ_WRITE_MODE": "READ_ONLY" if port else "READ_WRITE"}
        interfaces.append(Interface(memory_pins, "aximm", "master", bus(memory_pins), _texts(common | mode)))
    associated = {"ASSOCIATED_BUSIF": ":".join([CONTROL, *memories]), "ASSOCIATED_RESET": RESET}
    interfaces += [
        Interface(CLOCK, "clock", "slave", (("CLK", CLOCK),), _texts(associated)),
        Interface(RESET, "reset", "slave", (("RST", RESET),), _texts({"POLARITY": "ACTIVE_LOW"})),
        Interface(INTERRUPT, "interrupt", "master", (("INTERRUPT", INTERRUPT),), _texts({"SENSITIVITY": "LEVEL_HIGH"})),
    ]
    return IpTop(name, pins, tuple(interfaces))


def _texts(values: dict[str, Any]) -> tuple[tuple[str, str], ...]:
    return tuple((name, str(value)) for name, value in values.items())
