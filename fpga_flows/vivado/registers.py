# SPDX-License-Identifier: Apache-2.0
"""lutra_registers.py: the register map for programs on the processor."""

from lutra.hls_models.ternary.control import WINDOW_BITS, control_map
from lutra.hls_models.ternary.core import CoreSpec
from lutra.hls_models.ternary.registers import IDENTITY, VERSION

__all__ = ["registers_python"]


def registers_python(spec: CoreSpec) -> str:
    """Offsets, masks and positions of fields, as ``lutra_registers.h`` has them, and sizes of this core."""
    memory = spec.config.memory
    assert memory is not None  # SharedSystem refuses it
    lines = [
        "# SPDX-License-Identifier: Apache-2.0",
        '"""Control registers of the core: byte offsets, masks and positions of fields."""',
        "",
        f"WINDOW_BYTES = 0x{1 << WINDOW_BITS:X}",
        f"PORT_COUNT = {memory.ports}",
        f"EXPECTED_IDENTITY = 0x{IDENTITY:08X}",
        f"EXPECTED_VERSION = 0x{VERSION:08X}",
        f"CONTEXT = {spec.shape.context}",
        f"BEST_COUNT = {min(spec.config.best, spec.shape.vocabulary)}",
        f"DRAFT_LANES = {spec.config.draft_lanes}",
    ]
    entries = control_map(memory.ports)
    for entry in entries:
        lines += ["", f"{entry.name} = 0x{entry.offset:03X}  # {entry.access}: {entry.meaning}"]
        for field in entry.fields:
            lines += [f"{entry.name}_{field.name}_MASK = 0x{field.mask:08X}  # {field.meaning}", f"{entry.name}_{field.name}_SHIFT = {field.low}"]
    lines += ["", "REGISTERS = {", *(f'    "{entry.name}": ({entry.name}, "{entry.access}"),' for entry in entries), "}"]
    return "\n".join(lines) + "\n"
