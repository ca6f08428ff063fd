# SPDX-License-Identifier: Apache-2.0
"""Rules that a component.xml must keep, and what it says against the Verilog and the table of registers."""

import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path

from lutra.hls_models.ternary.control import control_map

SPIRIT = "{http://www.spiritconsortium.org/XMLSchema/SPIRIT/1685-2009}"
PORTS = 2


def module_ports(text: str, name: str) -> dict[str, tuple[str, int]]:
    """Direction and width of the ports of a Verilog module."""
    body = re.search(rf"^module {name}\(.*?^endmodule", text, re.MULTILINE | re.DOTALL)
    assert body
    found: dict[str, tuple[str, int]] = {}
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
MANY = [
    "busInterface",
    "portMap",
    "addressSpace",
    "memoryMap",
    "addressBlock",
    "register",
    "field",
    "view",
    "port",
    "wireTypeDef",
    "viewNameRef",
    "fileSet",
    "file",
    "userFileType",
    "parameter",
]
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
    found: dict[str, str] = {}
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
