# SPDX-License-Identifier: Apache-2.0
"""The folder from which Vivado makes a bitstream, as texts by path."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lutra.fpga_flows.boards import Board
from lutra.fpga_flows.vivado.interfaces import CLOCK, CONTROL, INTERRUPT, RESET, IpTop, ip_top
from lutra.fpga_flows.vivado.ipxact import LIBRARY, VENDOR, component_xml
from lutra.fpga_flows.vivado.registers import registers_python
from lutra.hls_models.errors import ConfigError
from lutra.hls_models.ternary import drafts
from lutra.hls_models.ternary.control import WINDOW_BITS, c_header, control_map
from lutra.hls_models.ternary.core import CoreSpec
from lutra.hls_models.ternary.memory import PORT_BYTES
from lutra.rtl.axi.ports import ADDRESS_BITS
from lutra.rtl.board.processor import ProcessorTop
from lutra.rtl.ternary.shared_system import SharedSystem
from lutra.rtl.verilog import LIBRARY as VERILOG_LIBRARY

__all__ = ["NAME", "Facts", "check_ports", "project_files", "top_of", "without_primitives"]

HERE = Path(__file__).parent
NAME, IP = "lutra", "lutra_core"
CONSTRAINTS = "constraints/lutra.xdc"
MEGABYTE = 1 << 20


@dataclass(frozen=True)
class Facts:
    """What the folder tells of a run: beats of the memory image; (used, available) by kind; tokens per second by context."""

    beats: int
    resources: Mapping[str, tuple[float, float]]
    tokens_per_second: Mapping[str, float]


def check_ports(board: Board, spec: CoreSpec) -> None:
    """ConfigError where a core's memory is none that the board's processor system has."""
    assert board.vivado is not None  # a board's own rule
    memory, there = spec.config.memory, len(board.vivado.memory_ports)
    if memory is None:
        raise ConfigError(f"config {spec.config.name} must have a shared memory for board {board.name}, which holds the model in its DDR; nearest: kv260")
    if memory.ports > there:
        raise ConfigError(
            f"config {spec.config.name} does not fit {board.name}: ports {memory.ports} of {there} (all there are), {memory.ports - there} too many"
        )


def top_of(spec: CoreSpec) -> tuple[ProcessorTop, IpTop]:
    """The top as it is emitted, and as IP."""
    top = ProcessorTop(SharedSystem(spec))
    return top, ip_top(IP, top, spec)


def project_files(spec: CoreSpec, board: Board, facts: Facts, *, clock_hz: float, top: IpTop, verilog: str) -> dict[str, str]:
    """Texts by path in the folder.

    Parameters
    ----------
    top : the module of ``verilog``.
    """
    import jinja2

    about, memory = board.vivado, spec.config.memory
    assert about is not None and memory is not None  # check_ports refuses them
    region = facts.beats * PORT_BYTES
    ports = about.memory_ports[: memory.ports]
    title = f"{spec.shape.name} on {spec.config.name} for {board.name}, {_mhz(clock_hz)} MHz"
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE / "templates"), undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    )
    names: dict[str, Any] = {"hex": hex, "mhz": _mhz, "name": NAME, "title": title, "board": about, "board_name": board.name, "constraints": CONSTRAINTS}
    names |= {"ports": ports, "pairs": list(zip([one.name for one in top.memories], ports, strict=True)), "vlnv": f"{VENDOR}:{LIBRARY}:{IP}"}
    names |= {"clock": CLOCK, "reset": RESET, "interrupt": INTERRUPT, "control": CONTROL, "window": 1 << WINDOW_BITS, "ip": IP}
    names |= {"clock_hz": clock_hz, "oscillator_hz": board.clock_hz, "resources": facts.resources, "tokens_per_second": facts.tokens_per_second}
    names |= {"region_bytes": region, "image_bytes": region * memory.ports, "cma_mb": -(-region * memory.ports // MEGABYTE) + 64}
    names["draft_lanes"] = spec.config.draft_lanes

    def render(name: str) -> str:
        return environment.get_template(name).render(names)

    entries = control_map(memory.ports)
    files = {
        "README.md": render("README.md"),
        "create_project.tcl": render("create_project.tcl"),
        CONSTRAINTS: render("project.xdc"),
        f"ip/{IP}/component.xml": component_xml(top, entries, f"hdl/{IP}.v", f"{IP}_ooc.xdc", title),
        f"ip/{IP}/hdl/{IP}.v": verilog,
        f"ip/{IP}/{IP}_ooc.xdc": render("core.xdc"),
        "address_map.json": json.dumps(_address_map(spec, board, facts), indent=1) + "\n",
        "software/lutra_registers.h": c_header(memory.ports),
        "software/lutra_registers.py": registers_python(spec),
        "software/model.json": json.dumps(_model(spec, facts, clock_hz), indent=1) + "\n",
    }
    programs = {f"software/{path.name}": path.read_text() for path in sorted((HERE / "programs").glob("lutra_*.py"))}
    # The board has no lutra: the drafts of cosim and golden model go there as they are.
    return files | programs | {"software/lutra_drafts.py": Path(drafts.__file__).read_text()}


def without_primitives(verilog: str, primitives: frozenset[str]) -> str:
    """Verilog without the simulation models of the device's own cells, which the vendor's tools have."""
    for name in sorted(primitives):
        verilog = verilog.replace("\n" + (VERILOG_LIBRARY / f"{name}.v").read_text(), "")
    return verilog


def _mhz(hertz: float) -> str:
    return f"{hertz / 1e6:.3f}"


def _model(spec: CoreSpec, facts: Facts, clock_hz: float) -> dict[str, Any]:
    """What the host program has to know."""
    memory, shape = spec.config.memory, spec.shape
    assert memory is not None
    return {
        "model": shape.name,
        "config": spec.config.name,
        "config_hash": f"{spec.hash:016x}",
        "clock_hz": clock_hz,
        "context": shape.context,
        "vocabulary": shape.vocabulary,
        "ports": memory.ports,
        "port_bytes": PORT_BYTES,
        "beats": facts.beats,
    }


def _address_map(spec: CoreSpec, board: Board, facts: Facts) -> dict[str, Any]:
    """What the processor and the core see where."""
    about, memory = board.vivado, spec.config.memory
    assert about is not None and memory is not None
    return {
        "control": {
            "base": hex(about.control_base),
            "bytes": 1 << WINDOW_BITS,
            "registers": [{"name": one.name, "offset": hex(one.offset), "access": one.access} for one in control_map(memory.ports)],
        },
        "memory": {
            "address_bits": ADDRESS_BITS,
            "ranges": [{"segment": one.segment, "base": hex(one.base), "bytes": one.bytes} for one in about.memory],
            "regions": memory.ports,
            "region_bytes": facts.beats * PORT_BYTES,
            "rule": f"byte i of beat b of the image is byte i % {PORT_BYTES} at {PORT_BYTES} * b of region i // {PORT_BYTES}; regions begin at pages of 4 KB",
        },
        "ports": {one.name: f"S_AXI_{one.name}_FPD" for one in about.memory_ports[: memory.ports]},
    }
