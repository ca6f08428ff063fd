# SPDX-License-Identifier: Apache-2.0
"""Vivado projects, checked without Vivado: Tcl in a Tcl interpreter that records the vendor's commands, IP against the rules of IP-XACT and the Verilog beside it."""

import json
import re
import shutil
import tkinter
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
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
    with pytest.raises(ConfigError, match=r"config big for small does not fit kv260: lut [\d,]+ of 99,552 \(85 % of 117,120\), [\d,]+ too many; "):
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
    "slave": {"AW": ("in", "VALID ADDR PROT"), "W": ("in", "VALID DATA STRB"), "B": ("out", "VALID RESP"), "AR": ("in", "VALID ADDR PROT"), "R": ("out", "VALID DATA RESP")},
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
