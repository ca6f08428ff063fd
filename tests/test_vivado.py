# SPDX-License-Identifier: Apache-2.0
"""Vivado projects, checked without Vivado: Tcl in a Tcl interpreter that records the vendor's commands, IP against the rules of IP-XACT and the Verilog beside it."""

import json
import re
import shutil
import tkinter
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pytest
from processor_case import CONFIG, SHAPE, small_program

from lutra import api
from lutra.cli import main
from lutra.fpga_flows.vivado.project import without_primitives
from lutra.hls_models.errors import ConfigError
from lutra.hls_models.ternary.config import CoreConfig
from lutra.hls_models.ternary.control import control_map
from lutra.hls_models.ternary.memory import MemoryConfig
from lutra.mapping.lower import compile_model
from lutra.mapping.model import TernaryModel
from lutra.rtl.verilog import LIBRARY
from lutra.runs import Run, create_run, open_run
from lutra.vivado import ProjectReport

SPIRIT = "{http://www.spiritconsortium.org/XMLSchema/SPIRIT/1685-2009}"
PORTS = 2


def compiled_run(path: Path, config: CoreConfig, program: Any) -> Run:
    with create_run(path, command="compile", config=config) as draft:
        program.save(draft.path / "program")
    return open_run(path)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    run = compiled_run(tmp_path_factory.mktemp("vivado") / "run", CONFIG, small_program())
    api.fpga(run.path, "kv260")
    return run


@pytest.fixture(scope="module")
def folder(run: Run) -> Path:
    return run.path / "fpga" / "kv260-core"


# What lutra fpga says and refuses


def test_the_command(run: Run, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    with pytest.raises(SystemExit) as caught:
        main(["fpga", str(run.path), "--board", "kv260", "--json"])
    out, err = capsys.readouterr()
    assert caught.value.code == 0, err
    report = ProjectReport.model_validate_json((folder / "report.json").read_bytes())
    assert json.loads(out) == {"run": str(run.path), **report.model_dump(mode="json")}
    assert {path.relative_to(folder).as_posix() for path in before} == {*report.files, "report.json"}
    assert {path: path.read_bytes() for path in before} == before  # the same bytes again
    assert report.ports == {"m_axi_memory0": "S_AXI_HP0_FPD", "m_axi_memory1": "S_AXI_HP1_FPD"} and report.clock_hz == 250e6
    assert 0 < report.used["lut"] < report.available["lut"] == 117120
    assert report.tokens_per_second["24"] > 1000
    assert open_run(run.path).manifest.commands[-1] == "fpga kv260-core"
    with pytest.raises(SystemExit) as caught:
        main(["fpga", str(run.path), "--board", "kv260", "--clock", "200e6"])
    shown = capsys.readouterr().out
    assert caught.value.code == 0 and "clock 200 MHz, Vivado project" in shown and "create_project.tcl" in shown and "README.md tells how" in shown
    assert "-period 5.000" in (folder / "ip/lutra_core/lutra_core_ooc.xdc").read_text()
    api.fpga(run.path, "kv260")
    assert {path: path.read_bytes() for path in before} == before


def test_what_does_not_fit_is_refused_before_anything_is_written(run: Run, tmp_path: Path) -> None:
    program = small_program()
    big = CONFIG.model_copy(update={"name": "big", "tables": 96, "columns": 40, "lanes": 8, "ring_rows": 4096, "chunk": 8})
    large = compiled_run(tmp_path / "large", big, compile_model(TernaryModel.random(SHAPE, 1), big))
    with pytest.raises(ConfigError, match=r"config big for small does not fit kv260: .*lut [\d,]+ of 99,552 \(85 % of 117,120\), [\d,]+ too many"):
        api.fpga(large.path, "kv260")
    memory = MemoryConfig(ports=8, burst_beats=8, outstanding=2, latency=16, write_latency=8)
    shape = SHAPE.model_copy(update={"head_dim": 128})
    wide = CONFIG.model_copy(update={"name": "wide", "beat_bytes": 128, "memory": memory, "max_tile_columns": 128})
    many = compiled_run(tmp_path / "many", wide, compile_model(TernaryModel.random(shape, 1), wide))
    with pytest.raises(ConfigError, match=r"config wide does not fit kv260: ports 8 of 6 \(all there are\), 2 too many"):
        api.fpga(many.path, "kv260")
    chip = CONFIG.model_copy(update={"name": "chip", "memory": None})
    alone = compiled_run(tmp_path / "alone", chip, compile_model(TernaryModel.random(SHAPE, 1), chip))
    with pytest.raises(ConfigError, match="config chip must have a shared memory for board kv260, which holds the model in its DDR; nearest: kv260"):
        api.fpga(alone.path, "kv260")
    for one in (large, many, alone):
        assert not (one.path / "fpga").exists()
    for given, what in (({"block": "tlmm"}, "block tlmm"), ({"seeds": 3}, "3 seeds"), ({"clock_hz": -1.0}, r"clock must be above 0 Hz, not -1")):
        with pytest.raises(ConfigError, match=what):
            api.fpga(run.path, "kv260", **given)  # type: ignore[arg-type]
    assert program.image is not None


# IP


def module_ports(text: str, name: str) -> dict[str, tuple[str, int]]:
    """Direction and width of the ports of a Verilog module."""
    body = re.search(rf"^module {name}\(.*?^endmodule", text, re.MULTILINE | re.DOTALL)
    assert body
    found = {}
    for direction, left, port in re.findall(r"^  (input|output) (?:\[(\d+):0\] )?(\w+);", body[0], re.MULTILINE):
        found[port] = (direction.removesuffix("put"), int(left) + 1 if left else 1)
    return found


def one(element: ElementTree.Element, path: str) -> str:
    text = element.findtext("/".join(SPIRIT + part for part in path.split("/")))
    assert text is not None, path
    return text


def every(element: ElementTree.Element, path: str) -> list[ElementTree.Element]:
    return element.findall("/".join(SPIRIT + part for part in path.split("/")))


ORDER = {
    "component": "vendor library name version busInterfaces addressSpaces memoryMaps model fileSets description parameters",
    "busInterface": "name busType abstractionType master slave portMaps parameters",
    "portMap": "logicalPort physicalPort",
    "addressSpace": "name range width",
    "memoryMap": "name addressBlock",
    "addressBlock": "name baseAddress range width usage access register",
    "register": "name description addressOffset size access field",
    "field": "name description bitOffset bitWidth access",
    "model": "views ports",
    "view": "name envIdentifier language modelName fileSetRef",
    "port": "name wire",
    "wire": "direction vector wireTypeDefs",
    "vector": "left right",
    "wireTypeDef": "typeName viewNameRef",
    "fileSet": "name file",
    "file": "name fileType userFileType",
    "parameter": "name value",
}
"""The children that IEEE 1685-2009 allows of an element, as far as ours has them, in its order."""
NEEDED = {
    "component": "vendor library name version",
    "busInterface": "name busType abstractionType",
    "portMap": "logicalPort physicalPort",
    "addressSpace": "name range width",
    "memoryMap": "name",
    "addressBlock": "name baseAddress range width",
    "register": "name addressOffset size",
    "field": "name bitOffset bitWidth",
    "view": "name envIdentifier",
    "port": "name wire",
    "wire": "direction",
    "vector": "left right",
    "wireTypeDef": "typeName",
    "fileSet": "name",
    "file": "name",
    "parameter": "name value",
}
"""Those that it requires."""
MANY = "busInterface portMap addressSpace memoryMap addressBlock register field view port wireTypeDef viewNameRef fileSet file userFileType parameter".split()
"""Those of which there may be several."""


def check_component(component: Path) -> None:
    """Everything that can be said of the IP without its vendor's tools."""
    root = ElementTree.parse(component).getroot()
    for element in root.iter():
        assert element.tag.startswith(SPIRIT)
        tag, children = element.tag.removeprefix(SPIRIT), [child.tag.removeprefix(SPIRIT) for child in element]
        if tag in ORDER:
            order = ORDER[tag].split()
            assert set(children) <= set(order), f"{tag} has {set(children) - set(order)}"
            assert children == sorted(children, key=order.index), f"{tag}: order of {children}"
            assert all(children.count(child) == 1 or child in MANY for child in children), f"{tag} has too many of a child: {children}"
            assert tag != "busInterface" or ("master" in children) + ("slave" in children) == 1
            assert set(NEEDED.get(tag, "").split()) <= set(children), f"{tag} lacks {set(NEEDED.get(tag, '').split()) - set(children)}"
        names = [name for child in element if (name := child.findtext(SPIRIT + "name")) is not None]
        if tag not in ("portMaps",):
            assert len(names) == len(set(names)), f"{tag} has equal names"
    # Files, and the module in them.
    files = {one(file, "name") for file in every(root, "fileSets/fileSet/file")}
    assert files == {path.relative_to(component.parent).as_posix() for path in component.parent.rglob("*") if path.is_file()} - {"component.xml"}
    sets = {one(files, "name") for files in every(root, "fileSets/fileSet")}
    name = one(root, "name")
    assert {one(view, "fileSetRef/localName") for view in every(root, "model/views/view")} == sets
    assert {one(view, "modelName") for view in every(root, "model/views/view")} == {name}
    views = {one(view, "name") for view in every(root, "model/views/view")}
    assert {ref.text for ref in root.iter(SPIRIT + "viewNameRef")} == views
    verilog = module_ports((component.parent / f"hdl/{name}.v").read_text(), name)
    ports = {one(port, "name"): port for port in every(root, "model/ports/port")}
    described = {}
    for port, element in ports.items():
        left = element.findtext(f"{SPIRIT}wire/{SPIRIT}vector/{SPIRIT}left")
        described[port] = (one(element, "wire/direction"), int(left) + 1 if left else 1)
    assert described == verilog
    _check_interfaces(root, verilog)


CHANNELS = {
    "slave": {
        "AW": ("in", "VALID ADDR PROT"),
        "W": ("in", "VALID DATA STRB"),
        "B": ("out", "VALID RESP"),
        "AR": ("in", "VALID ADDR PROT"),
        "R": ("out", "VALID DATA RESP"),
    },
    "master": {
        "AW": ("out", "VALID ADDR LEN SIZE BURST ID CACHE PROT"),
        "W": ("out", "VALID DATA STRB LAST"),
        "B": ("in", "VALID RESP ID"),
        "AR": ("out", "VALID ADDR LEN SIZE BURST ID CACHE PROT"),
        "R": ("in", "VALID DATA RESP LAST ID"),
    },
}
"""Pins that our interfaces must have, and which way they go; READY goes the other one."""
READ_CHANNELS = ("AR", "R")


def axi_pins(mode: str, channels: list[str]) -> dict[str, str]:
    found = {}
    for channel in channels:
        direction, pins = CHANNELS[mode][channel]
        found |= {channel + pin: direction for pin in pins.split()} | {f"{channel}READY": "out" if direction == "in" else "in"}
    return found


def _check_interfaces(root: ElementTree.Element, verilog: dict[str, tuple[str, int]]) -> None:
    """Every port belongs to one interface, under the right name and in the right direction; spaces, maps and clocks are all referred to."""
    used: list[str] = []
    interfaces = {one(bus, "name"): bus for bus in every(root, "busInterfaces/busInterface")}
    memories = [f"m_axi_memory{port}" for port in range(PORTS)]
    assert set(interfaces) == {"s_axi_control", *memories, "aclk", "aresetn", "interrupt"}
    parameters = {}
    for name, bus in interfaces.items():
        kind = bus.find(SPIRIT + "busType")
        abstraction = bus.find(SPIRIT + "abstractionType")
        assert kind is not None and abstraction is not None
        bus_type = kind.attrib[SPIRIT + "name"]
        assert abstraction.attrib[SPIRIT + "name"] == f"{bus_type}_rtl"
        mapped = {one(pin, "logicalPort/name"): one(pin, "physicalPort/name") for pin in every(bus, "portMaps/portMap")}
        used += mapped.values()
        directions = {logical: verilog[physical][0] for logical, physical in mapped.items()}
        mode = "master" if bus.find(SPIRIT + "master") is not None else "slave"
        parameters[name] = {one(one_of, "name"): one(one_of, "value") for one_of in every(bus, "parameters/parameter")}
        if bus_type == "aximm":
            channels = ["AR", "R"] if name in memories[1:] else list(CHANNELS["master"])
            assert directions == axi_pins(mode, channels), name
            assert all(physical == f"{name}_{logical.lower()}" for logical, physical in mapped.items())
            assert verilog[mapped["RDATA"]][1] == int(parameters[name]["DATA_WIDTH"])
            if mode == "master":
                assert verilog[mapped["ARADDR"]][1] == int(parameters[name]["ADDR_WIDTH"]) == 40
                assert parameters[name]["READ_WRITE_MODE"] == ("READ_ONLY" if len(channels) == 2 else "READ_WRITE")
        else:
            expected = {"aclk": {"CLK": "in"}, "aresetn": {"RST": "in"}, "interrupt": {"INTERRUPT": "out"}}
            assert directions == expected[name] and mode == ("master" if name == "interrupt" else "slave")
    assert sorted(used) == sorted(verilog)  # nothing is left over, nothing twice
    assert parameters["aclk"] == {"ASSOCIATED_BUSIF": ":".join(["s_axi_control", *memories]), "ASSOCIATED_RESET": "aresetn"}
    assert parameters["aresetn"] == {"POLARITY": "ACTIVE_LOW"} and parameters["s_axi_control"]["PROTOCOL"] == "AXI4LITE"
    spaces = {one(space, "name"): int(one(space, "range"), 0) for space in every(root, "addressSpaces/addressSpace")}
    refs = {ref.attrib[SPIRIT + "addressSpaceRef"] for ref in root.iter(SPIRIT + "addressSpaceRef")}
    assert spaces == dict.fromkeys(memories, 1 << 40) and refs == set(memories)
    maps = [one(memory, "name") for memory in every(root, "memoryMaps/memoryMap")]
    assert [ref.attrib[SPIRIT + "memoryMapRef"] for ref in root.iter(SPIRIT + "memoryMapRef")] == maps
    (block,) = every(root, "memoryMaps/memoryMap/addressBlock")
    assert int(one(block, "range"), 0) == 1 << verilog["s_axi_control_araddr"][1]
    access = {"read-only": ("r",), "write-only": ("w",), "read-write": ("rw", "w1c")}
    entries = control_map(PORTS)
    registers = every(block, "register")
    assert [(one(item, "name"), int(one(item, "addressOffset"), 0)) for item in registers] == [(entry.name, entry.offset) for entry in entries]
    for item, entry in zip(registers, entries, strict=True):
        assert entry.access in access[one(item, "access")]
        fields = [(one(bits, "name"), int(one(bits, "bitOffset")), int(one(bits, "bitWidth"))) for bits in every(item, "field")]
        assert fields == [(bits.name, bits.low, bits.width) for bits in entry.fields]


def test_the_ip(folder: Path) -> None:
    check_component(folder / "ip/lutra_core/component.xml")


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (">m_axi_memory1_araddr<", ">m_axi_memory1_aradr<"),
        (">WDATA<", ">WDATE<"),
        ("<spirit:left>127<", "<spirit:left>63<"),
        ("<spirit:direction>out<", "<spirit:direction>in<"),
        (">s_axi_control:m_axi_memory0:", ">s_axi_control:"),
        (">0x10c<", ">0x110<"),
        (">hdl/lutra_core.v<", ">hdl/lutra.v<"),
        ("<spirit:version>1.0</spirit:version>", ""),
        ("<spirit:slave>", "<spirit:slave /><spirit:slave>"),
        ("</spirit:component>", ""),
    ],
)
def test_a_wrong_ip_is_caught(folder: Path, tmp_path: Path, old: str, new: str) -> None:
    copy = tmp_path / "ip"
    shutil.copytree(folder / "ip/lutra_core", copy)
    text = (copy / "component.xml").read_text()
    assert old in text
    (copy / "component.xml").write_text(text.replace(old, new, 1))
    with pytest.raises((AssertionError, ElementTree.ParseError, KeyError)):
        check_component(copy / "component.xml")


def test_the_verilog_leaves_the_devices_cells_to_the_vendor() -> None:
    model = (LIBRARY / "DSP48E2.v").read_text()
    text = f"module a; DSP48E2 b(); endmodule\n\n{model}\nmodule c; endmodule\n"
    assert without_primitives(text, frozenset({"DSP48E2"})) == "module a; DSP48E2 b(); endmodule\n\nmodule c; endmodule\n"


# Tcl

PS_PINS = {
    *("pl_clk0", "pl_resetn0", "pl_ps_irq0", "maxihpm0_fpd_aclk"),
    *(f"saxihp{port}_fpd_aclk" for port in range(4)),
    *(f"saxihpc{port}_fpd_aclk" for port in range(2)),
}
PS_INTERFACES = {"M_AXI_HPM0_FPD", *(f"S_AXI_HP{port}_FPD" for port in range(4)), *(f"S_AXI_HPC{port}_FPD" for port in range(2))}
PS_GROUPS = {"HP0": "GP2", "HP1": "GP3", "HP2": "GP4", "HP3": "GP5", "HPC0": "GP0", "HPC1": "GP1"}
"""Of AMD UG1085 and PG201: what a Zynq UltraScale+ processor system has towards the logic."""
CELL_PINS = {
    "xilinx.com:ip:zynq_ultra_ps_e": (PS_PINS, PS_INTERFACES),
    "xilinx.com:ip:clk_wiz": ({"clk_in1", "clk_out1", "resetn", "locked"}, set()),
    "xilinx.com:ip:proc_sys_reset": ({"slowest_sync_clk", "ext_reset_in", "dcm_locked", "interconnect_aresetn", "peripheral_aresetn"}, set()),
    "xilinx.com:ip:smartconnect": ({"aclk", "aresetn"}, {"S00_AXI", "M00_AXI"}),
}
OUTPUTS = {"ps/pl_clk0", "ps/pl_resetn0", "clock/clk_out1", "clock/locked", "reset/interconnect_aresetn", "reset/peripheral_aresetn", "core/interrupt"}
COMMANDS = """create_project set_property update_ip_catalog add_files create_bd_design create_bd_cell apply_bd_automation connect_bd_net connect_bd_intf_net
assign_bd_address exclude_bd_addr_seg validate_bd_design save_bd_design update_compile_order generate_target launch_runs wait_on_runs open_run close_design
report_utilization report_timing_summary report_power create_clock""".split()
"""The vendor's, in effect; anything else that Tcl does not know is an error."""


class Vivado:
    """A Tcl interpreter in which the vendor's commands are recorded."""

    def __init__(self, folder: Path, *, progress: str = "100%", slack: str = "0.1", installed: bool = True) -> None:
        self.folder, self.calls = folder, list[tuple[str, ...]]()
        self.tcl = tkinter.Tcl()
        for name in COMMANDS:
            self.tcl.createcommand(name, lambda *words, name=name: self._record(name, *words))
        answers: dict[str, Any] = {
            "get_ipdefs": lambda *words: (
                f"{words[-1].removesuffix(':*')}:1.0 {words[-1].removesuffix(':*')}:10.0 {words[-1].removesuffix(':*')}:9.0" if installed else ""
            ),
            "get_board_parts": lambda pattern: "xilinx.com:kv260_som:part0:1.3 xilinx.com:kv260_som:part0:1.4",
            "get_boards": lambda pattern: "xilinx.com:kv260_carrier:1.3",
            "get_files": lambda name: f"/project/{name}",
            "make_wrapper": lambda *words: "/project/system_wrapper.v",
            "get_timing_paths": lambda *words: "path",
            "get_property": lambda name, thing: {"PROGRESS": progress, "STATUS": "synth_design ERROR", "SLACK": slack, "DIRECTORY": f"{folder}/runs"}[name],
        }
        for name in ("current_project", "current_fileset", "current_design"):
            answers[name] = lambda name=name: name
        for name in ("get_bd_pins", "get_bd_intf_pins", "get_bd_cells", "get_bd_addr_spaces", "get_bd_addr_segs", "get_runs", "get_ports"):
            answers[name] = lambda thing: thing
        for name, answer in answers.items():
            self.tcl.createcommand(name, answer)

    def _record(self, name: str, *words: str) -> str:
        self.calls.append((name, *words))
        if name == "launch_runs" and "write_bitstream" in words:
            runs = self.folder / "runs"
            for path in (runs / "system_wrapper.bit", runs / "lutra.gen/sources_1/bd/system/hw_handoff/system.hwh"):
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(path.name)
        return ""

    def source(self, script: str = "create_project.tcl", *arguments: str) -> None:
        # puts would write to this process's output
        self.tcl.eval("proc puts {text} {}")
        self.tcl.eval(f"set argv [list {' '.join(arguments)}]")
        self.tcl.call("source", str(self.folder / script))

    def named(self, name: str) -> list[tuple[str, ...]]:
        return [words[1:] for words in self.calls if words[0] == name]

    def options(self, cell: str) -> dict[str, str]:
        found: dict[str, str] = {}
        for words in self.named("set_property"):
            if words[0] == "-dict" and words[-1] == cell:
                flat = self.tcl.splitlist(words[1])
                found |= dict(zip(flat[::2], flat[1::2], strict=True))
        return found


def check_design(vivado: Vivado, component: Path) -> None:
    """Files exist, pins and interfaces exist and are driven once, the clock is right, memory ports are all connected, addresses do not overlap."""
    root = ElementTree.parse(component).getroot()
    vlnv = ":".join(one(root, part) for part in ("vendor", "library", "name"))
    interfaces = {one(bus, "name"): bus for bus in every(root, "busInterfaces/busInterface")}
    axi = {name for name in interfaces if "_axi_" in name}
    known = CELL_PINS | {vlnv: ({one(port, "name") for port in every(root, "model/ports/port")}, axi)}
    cells = {}
    for words in vivado.named("create_bd_cell"):
        assert words[:3] == ("-type", "ip", "-vlnv")
        core, _, version = words[3].rpartition(":")
        assert version == "10.0" and core in known  # the newest, not the last by letters
        cells[words[4]] = core
    pins = {f"{cell}/{pin}" for cell, core in cells.items() for pin in known[core][0]}
    driver: dict[str, str] = {}
    for source, *loads in vivado.named("connect_bd_net"):
        assert source in OUTPUTS and {source, *loads} <= pins, f"no such pin: {({source, *loads} - pins) | ({source} - OUTPUTS)}"
        for load in loads:
            assert load not in driver and load not in OUTPUTS
            driver[load] = source
    memories = sorted(name for name, bus in interfaces.items() if "_axi_" in name and bus.find(SPIRIT + "master") is not None)
    pairs = [tuple(words) for words in vivado.named("connect_bd_intf_net")]
    there = {f"{cell}/{interface}" for cell, core in cells.items() for interface in known[core][1]}
    assert all({*pair} <= there for pair in pairs) and len({end for pair in pairs for end in pair}) == 2 * len(pairs)
    assert ("ps/M_AXI_HPM0_FPD", "control/S00_AXI") in pairs and ("control/M00_AXI", "core/s_axi_control") in pairs
    ports = {own.removeprefix("core/"): port.removeprefix("ps/S_AXI_").removesuffix("_FPD") for own, port in pairs if own.startswith("core/m_axi")}
    assert sorted(ports) == memories and len(set(ports.values())) == len(memories) and all(port.startswith("HP") for port in ports.values())
    # One clock for everything that is connected, and its reset.
    clocked = ["reset/slowest_sync_clk", "control/aclk", "core/aclk", "ps/maxihpm0_fpd_aclk", *(f"ps/saxi{port.lower()}_fpd_aclk" for port in ports.values())]
    assert {load for load, source in driver.items() if source == "clock/clk_out1"} == set(clocked)
    assert (driver["clock/clk_in1"], driver["clock/resetn"], driver["reset/ext_reset_in"]) == ("ps/pl_clk0", "ps/pl_resetn0", "ps/pl_resetn0")
    assert (driver["reset/dcm_locked"], driver["control/aresetn"]) == ("clock/locked", "reset/interconnect_aresetn")
    assert (driver["core/aresetn"], driver["ps/pl_ps_irq0"]) == ("reset/peripheral_aresetn", "core/interrupt")
    clock, ps = vivado.options("clock"), vivado.options("ps")
    assert float(clock["CONFIG.CLKOUT1_REQUESTED_OUT_FREQ"]) == 250
    assert float(clock["CONFIG.PRIM_IN_FREQ"]) == float(ps["CONFIG.PSU__CRL_APB__PL0_REF_CTRL__FREQMHZ"]) == 100
    slaves = {PS_GROUPS[port] for port in ports.values()}
    assert {name for name in PS_GROUPS.values() if ps.get(f"CONFIG.PSU__USE__S_AXI_{name}") == "1"} == slaves
    assert all(ps[f"CONFIG.PSU__SAXI{name}__DATA_WIDTH"] == "128" for name in slaves)
    assert (ps["CONFIG.PSU__USE__M_AXI_GP0"], ps["CONFIG.PSU__USE__IRQ0"], ps["CONFIG.PSU__FPGA_PL0_ENABLE"]) == ("1", "1", "1")
    _check_addresses(vivado, ports)


def _check_addresses(vivado: Vivado, ports: dict[str, str]) -> None:
    spaces: dict[str, list[tuple[int, int, str]]] = {}
    for words in vivado.named("assign_bd_address"):
        assert (words[0], words[2], words[4], words[-1]) == ("-offset", "-range", "-target_address_space", "-force")
        base, size = int(words[1], 0), int(words[3], 0)
        assert size & (size - 1) == 0 and base % size == 0  # as the vendor demands
        spaces.setdefault(words[5], []).append((base, base + size, words[6]))
    for ranges in spaces.values():
        ranges.sort()
        assert all(before[1] <= after[0] for before, after in zip(ranges, ranges[1:], strict=False)) and ranges[-1][1] <= 1 << 40
    assert set(spaces) == {"ps/Data", *(f"core/{name}" for name in ports)}
    ((base, end, segment),) = spaces["ps/Data"]
    assert 0xA0000000 <= base < end <= 0xB0000000 and segment == "core/s_axi_control/s_axi_control"  # the window of HPM0_FPD
    for name, port in ports.items():
        segments = [f"ps/SAXI{PS_GROUPS[port]}/{port}_{part}" for part in ("DDR_LOW", "DDR_HIGH")]
        assert spaces[f"core/{name}"] == [(0, 1 << 31, segments[0]), (1 << 35, (1 << 35) + (1 << 31), segments[1])]  # 4 GiB
    left = {words[0] for words in vivado.named("exclude_bd_addr_seg")}
    assert left == {f"ps/SAXI{PS_GROUPS[port]}/{port}_{part}" for port in ports.values() for part in ("LPS_OCM", "QSPI")}


def copied(folder: Path, tmp_path: Path) -> Path:
    shutil.copytree(folder, tmp_path / "project")
    return tmp_path / "project"


def test_the_tcl_builds_the_design(folder: Path, tmp_path: Path) -> None:
    project = copied(folder, tmp_path)
    vivado = Vivado(project)
    vivado.source()
    component = project / "ip/lutra_core/component.xml"
    check_design(vivado, component)
    ((name, path, *rest),) = vivado.named("create_project")
    assert (name, path, rest) == ("lutra", str(project / "project"), ["-part", "xck26-sfvc784-2LV-c", "-force"])
    properties = vivado.named("set_property")
    assert ("board_part", "xilinx.com:kv260_som:part0:1.4", "current_project") in properties
    assert ("board_connections", "som240_1_connector xilinx.com:kv260_carrier:som240_1_connector:1.3", "current_project") in properties
    (repository,) = [words[1] for words in properties if words[0] == "ip_repo_paths"]
    assert component.is_relative_to(Path(repository))
    constraints, wrapper = vivado.named("add_files")
    assert Path(constraints[-1]).is_file() and constraints[:2] == ("-fileset", "constrs_1") and wrapper[-1] == "/project/system_wrapper.v"
    order = [name for name, *_ in vivado.calls]
    for before, after in (
        ("update_ip_catalog", "create_bd_cell"),
        ("assign_bd_address", "validate_bd_design"),
        ("validate_bd_design", "save_bd_design"),
        ("save_bd_design", "generate_target"),
        ("generate_target", "launch_runs"),
    ):
        assert max(i for i, name in enumerate(order) if name == before) < min(i for i, name in enumerate(order) if name == after)
    assert [words[0] for words in vivado.named("launch_runs")] == ["synth_1", "impl_1"] == [words[0] for words in vivado.named("wait_on_runs")]
    reports = {
        Path(words[words.index("-file") + 1]) for name in ("report_utilization", "report_timing_summary", "report_power") for words in vivado.named(name)
    }
    assert {path.name for path in reports} == {"utilization_synthesis.txt", "utilization.txt", "timing.txt", "power.txt"}
    assert {path.parent for path in reports} == {project / "output"}
    assert (project / "output/lutra.bit").read_text() == "system_wrapper.bit" and (project / "output/lutra.hwh").read_text() == "system.hwh"


def test_the_tcl_stops_where_it_is_told_or_has_to(folder: Path, tmp_path: Path) -> None:
    project = copied(folder, tmp_path)
    for step, runs in (("design", 0), ("synthesis", 1)):
        vivado = Vivado(project)
        vivado.source("create_project.tcl", step, "8")
        check_design(vivado, project / "ip/lutra_core/component.xml")
        assert [words[-2:] for words in vivado.named("launch_runs")] == [("-jobs", "8")] * runs
    for changes, step, message in (
        ({"progress": "40%"}, "bitstream", "synth_1 stopped: synth_design ERROR; its log: "),
        ({"slack": "-0.2"}, "bitstream", "timing is not met"),
        ({"installed": False}, "design", "xilinx.com:ip:zynq_ultra_ps_e is not installed"),
        ({}, "bitstreem", "STEP must be design, synthesis or bitstream, not bitstreem"),
    ):
        with pytest.raises(tkinter.TclError, match=message):
            Vivado(project, **changes).source("create_project.tcl", step)  # type: ignore[arg-type]


def test_the_constraints(folder: Path) -> None:
    vivado = Vivado(folder)
    vivado.source("constraints/lutra.xdc")
    assert vivado.calls == [("set_property", "BITSTREAM.GENERAL.COMPRESS", "TRUE", "current_design")]
    vivado.source("ip/lutra_core/lutra_core_ooc.xdc")
    assert vivado.calls[1:] == [("create_clock", "-name", "aclk", "-period", "4.000", "aclk")]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("[get_bd_pins core/aresetn]", "[get_bd_pins core/aresetnn]"),
        ("core/m_axi_memory1] [get_bd_intf_pins ps/S_AXI_HP1_FPD]", "core/m_axi_memory1] [get_bd_intf_pins ps/S_AXI_HP0_FPD]"),
        ("connect_bd_intf_net [get_bd_intf_pins core/m_axi_memory1]", "#"),
        ("CLKOUT1_REQUESTED_OUT_FREQ {250.000}", "CLKOUT1_REQUESTED_OUT_FREQ {25.000}"),
        (" ps/saxihp1_fpd_aclk", ""),
        ("PSU__USE__S_AXI_GP3 {1}", "PSU__USE__S_AXI_GP4 {1}"),
        ("-offset 0x800000000 ", "-offset 0x40000000 "),
        ("validate_bd_design", "validate_bd_desing"),
        ("    CONFIG.PSU__USE__IRQ0 {1} \\", "    CONFIG.PSU__USE__IRQ0 {1} "),
        ("connect_bd_net [get_bd_pins core/interrupt]", "connect_bd_net [get_bd_pins core/busy]"),
    ],
)
def test_a_wrong_line_of_tcl_is_caught(folder: Path, tmp_path: Path, old: str, new: str) -> None:
    project = copied(folder, tmp_path)
    script = project / "create_project.tcl"
    assert old in script.read_text()
    script.write_text(script.read_text().replace(old, new, 1))
    with pytest.raises((AssertionError, tkinter.TclError, KeyError)):
        vivado = Vivado(project)
        vivado.source()
        check_design(vivado, project / "ip/lutra_core/component.xml")


# The folder


def test_the_address_map_and_the_readme(folder: Path, run: Run) -> None:
    found = json.loads((folder / "address_map.json").read_text())
    assert found["control"]["base"] == "0xa0000000" and found["control"]["bytes"] == 4096
    assert [(one["name"], int(one["offset"], 0)) for one in found["control"]["registers"]] == [(entry.name, entry.offset) for entry in control_map(PORTS)]
    image = (run.path / "program/memory.bin").stat().st_size
    assert found["memory"]["regions"] * found["memory"]["region_bytes"] == image
    text = (folder / "README.md").read_text()
    assert f"{image:,} bytes" in text and len(text.splitlines()) < 60
    for name in re.findall(r"`([\w./]+)`", text):
        assert (folder / name).exists() or list(folder.rglob(name)) or name.startswith(("output/", "program/", "tokenizer/", "lutra.", ".py")), name
