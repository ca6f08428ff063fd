# SPDX-License-Identifier: Apache-2.0
"""What a processor sees of a core behind AXI4-Lite: the core's registers, those of its system, and their bit fields, as one table for RTL, IP, C and Python."""

from enum import IntEnum
from typing import NamedTuple

from lutra.hls_models.ternary.registers import REGISTERS, Register

__all__ = ["BASE_BITS", "MAX_PORTS", "WINDOW_BITS", "Entry", "Field", "Interrupt", "SystemRegister", "c_header", "control_map"]

WINDOW_BITS = 12
"""Binary logarithm of the window's bytes: a page of the processor's."""
BASE_BITS = 28
"""Of a page's number: addresses have 40 bits, pages 4 KB."""
MAX_PORTS = 8


class SystemRegister(IntEnum):
    """Word addresses behind those of the core."""

    RUN = 0x40
    STATE = 0x41
    INTERRUPT_ENABLE = 0x42
    INTERRUPT_STATUS = 0x43
    PORTS = 0x44
    PORT_BASE = 0x48


class Interrupt(IntEnum):
    """Bits of INTERRUPT_ENABLE and INTERRUPT_STATUS."""

    DONE = 0
    TOKEN = 1
    ERROR = 2


class Field(NamedTuple):
    """Bits ``low`` to ``low + width - 1`` of a register."""

    name: str
    low: int
    width: int
    meaning: str

    @property
    def mask(self) -> int:
        return ((1 << self.width) - 1) << self.low


class Entry(NamedTuple):
    """A register. ``access``: r, w, rw, or w1c (read; a written 1 clears its bit); ``offset``: byte address in the window."""

    name: str
    offset: int
    access: str
    meaning: str
    fields: tuple[Field, ...] = ()

    @property
    def readable(self) -> bool:
        return self.access != "w"

    @property
    def writable(self) -> bool:
        return self.access != "r"


INTERRUPTS = (
    Field("DONE", Interrupt.DONE, 1, "a run has ended"),
    Field("TOKEN", Interrupt.TOKEN, 1, "a token was chosen"),
    Field("ERROR", Interrupt.ERROR, 1, "the memory answered with an error"),
)
CORE_FIELDS: dict[Register, tuple[Field, ...]] = {
    Register.CONTROL: (
        Field("START", 0, 1, "start a run"),
        Field("ABORT", 1, 1, "end the run behind the present pass"),
        Field("VERIFY", 2, 1, "start a pass that verifies the prompt"),
    ),
    Register.STATUS: (Field("BUSY", 0, 1, "a run is under way"), Field("LOADED", 1, 1, "the program is loaded")),
    Register.STOP_TOKEN: (Field("ID", 0, 20, "token that ends a run"), Field("ENABLED", 31, 1, "it does")),
    Register.TOKEN: (Field("ID", 0, 20, "token"),),
    Register.BEST_ID: (Field("ID", 0, 20, "token"),),
    Register.CHOICE: (Field("ID", 0, 20, "token"),),
}


def control_map(ports: int) -> tuple[Entry, ...]:
    """Every register of a system with so many read ports, by ascending address.

    The core's words may be written only while it runs, and read as 0 otherwise; PORT_BASE only while it does not run.
    """
    if not 1 <= ports <= MAX_PORTS:
        raise ValueError(f"ports must be 1 to {MAX_PORTS}, not {ports}")
    core = [Entry(register.name, 4 * register, info.access, info.meaning, CORE_FIELDS.get(register, ())) for register, info in REGISTERS.items()]
    system = [
        Entry(
            "RUN",
            4 * SystemRegister.RUN,
            "rw",
            "0: the core is in reset, as it is at first; before that, what it asked of the memory is waited for",
            (Field("RUN", 0, 1, "let the core run"),),
        ),
        Entry(
            "STATE",
            4 * SystemRegister.STATE,
            "r",
            "what has become of RUN",
            (Field("RUNNING", 0, 1, "the core is out of reset"), Field("ERROR", 1, 1, "the memory answered with an error since")),
        ),
        Entry("INTERRUPT_ENABLE", 4 * SystemRegister.INTERRUPT_ENABLE, "rw", "which bits of INTERRUPT_STATUS raise the interrupt", INTERRUPTS),
        Entry("INTERRUPT_STATUS", 4 * SystemRegister.INTERRUPT_STATUS, "w1c", "what has happened; a written 1 clears its bit", INTERRUPTS),
        Entry("PORTS", 4 * SystemRegister.PORTS, "r", "read ports: beat b of the memory image has 16 bytes at PORT_BASE of each, 16 * b further"),
    ]
    bases = [
        Entry(
            f"PORT_BASE_{port}",
            4 * (SystemRegister.PORT_BASE + port),
            "rw",
            f"where the part of the memory image behind read port {port} begins",
            (Field("PAGE", 0, BASE_BITS, "address in pages of 4 KB"),),
        )
        for port in range(ports)
    ]
    return tuple([*core, *system, *bases])


def c_header(ports: int) -> str:
    """The map as a C header: byte offsets, masks and positions of fields."""
    lines = ["/* SPDX-License-Identifier: Apache-2.0 */", "#ifndef LUTRA_REGISTERS_H", "#define LUTRA_REGISTERS_H", ""]
    lines += [f"#define LUTRA_WINDOW_BYTES 0x{1 << WINDOW_BITS:x}u", f"#define LUTRA_PORT_COUNT {ports}u"]
    for entry in control_map(ports):
        lines += ["", f"/* {entry.access}: {entry.meaning} */", f"#define LUTRA_{entry.name} 0x{entry.offset:03x}u"]
        for field in entry.fields:
            name = f"LUTRA_{entry.name}_{field.name}"
            lines += [f"#define {name}_MASK 0x{field.mask:08x}u /* {field.meaning} */", f"#define {name}_SHIFT {field.low}u"]
    return "\n".join([*lines, "", "#endif", ""])
