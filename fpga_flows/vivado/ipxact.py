# SPDX-License-Identifier: Apache-2.0
"""component.xml: the core as IP in the form of IEEE 1685-2009 (IP-XACT), which Vivado's catalogue reads."""

import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from xml.etree.ElementTree import Element, SubElement

from lutra.fpga_flows.vivado.interfaces import CONTROL, Interface, IpTop
from lutra.hls_models.ternary.control import WINDOW_BITS, Entry
from lutra.rtl.axi.ports import ADDRESS_BITS

__all__ = ["NAMESPACE", "VENDOR", "VERSION", "component_xml"]

NAMESPACE = "http://www.spiritconsortium.org/XMLSchema/SPIRIT/1685-2009"
VENDOR, LIBRARY, VERSION = "lutra", "ip", "1.0"
MEMORY_MAP = "registers"
SYNTHESIS, SIMULATION = "xilinx_anylanguagesynthesis", "xilinx_anylanguagebehavioralsimulation"
BUS_TYPES = {
    "aximm": ("interface", "aximm", "aximm_rtl"),
    "clock": ("signal", "clock", "clock_rtl"),
    "reset": ("signal", "reset", "reset_rtl"),
    "interrupt": ("signal", "interrupt", "interrupt_rtl"),
}
ACCESS = {"r": "read-only", "w": "write-only", "rw": "read-write", "w1c": "read-write"}


def component_xml(top: IpTop, entries: Sequence[Entry], verilog: str, constraints: str, description: str) -> str:
    """The component.

    Parameters
    ----------
    entries : registers behind the control interface. verilog, constraints : files of the IP's folder, relative to it.
    """
    ElementTree.register_namespace("spirit", NAMESPACE)
    root = Element(_name("component"))
    for tag, text in (("vendor", VENDOR), ("library", LIBRARY), ("name", top.name), ("version", VERSION)):
        _text(root, tag, text)
    buses = _add(root, "busInterfaces")
    for interface in top.interfaces:
        _bus_interface(buses, interface)
    spaces = _add(root, "addressSpaces")
    for memory in top.memories:
        space = _add(spaces, "addressSpace")
        _text(space, "name", memory.name)
        _text(space, "range", hex(1 << ADDRESS_BITS))
        _text(space, "width", dict(memory.parameters)["DATA_WIDTH"])
    _memory_map(_add(root, "memoryMaps"), entries)
    _model(_add(root, "model"), top)
    sets = _add(root, "fileSets")
    for view in (SYNTHESIS, SIMULATION):
        files = _add(sets, "fileSet")
        _text(files, "name", f"{view}_files")
        _file(files, verilog, "verilogSource")
        if view == SYNTHESIS:
            _file(files, constraints, "xdc", "USED_IN_out_of_context")
    _text(root, "description", description)
    _parameters(root, [("Component_Name", top.name)], top.name)
    ElementTree.indent(root)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ElementTree.tostring(root, encoding="unicode") + "\n"


def _name(tag: str) -> str:
    return f"{{{NAMESPACE}}}{tag}"


def _add(parent: Element, tag: str, **attributes: str) -> Element:
    return SubElement(parent, _name(tag), {_name(name): value for name, value in attributes.items()})


def _text(parent: Element, tag: str, text: str | int, **attributes: str) -> None:
    _add(parent, tag, **attributes).text = str(text)


def _parameters(parent: Element, values: Sequence[tuple[str, str]], owner: str) -> None:
    group = _add(parent, "parameters")
    for name, value in values:
        parameter = _add(group, "parameter")
        _text(parameter, "name", name)
        _text(parameter, "value", value, id=f"{'PARAM_VALUE' if name == 'Component_Name' else f'BUSIFPARAM_VALUE.{owner.upper()}'}.{name}")


def _bus_interface(parent: Element, interface: Interface) -> None:
    bus = _add(parent, "busInterface")
    library, name, abstraction = BUS_TYPES[interface.kind]
    _text(bus, "name", interface.name)
    for tag, kind in (("busType", name), ("abstractionType", abstraction)):
        _add(bus, tag, vendor="xilinx.com", library=library, name=kind, version="1.0")
    mode = _add(bus, interface.mode)
    if interface.kind == "aximm":
        if interface.mode == "master":
            _add(mode, "addressSpaceRef", addressSpaceRef=interface.name)
        else:
            _add(mode, "memoryMapRef", memoryMapRef=MEMORY_MAP)
    maps = _add(bus, "portMaps")
    for logical, physical in interface.pins:
        one = _add(maps, "portMap")
        _text(_add(one, "logicalPort"), "name", logical)
        _text(_add(one, "physicalPort"), "name", physical)
    _parameters(bus, interface.parameters, interface.name)


def _memory_map(parent: Element, entries: Sequence[Entry]) -> None:
    one = _add(parent, "memoryMap")
    _text(one, "name", MEMORY_MAP)
    block = _add(one, "addressBlock")
    _text(block, "name", CONTROL)
    _text(block, "baseAddress", "0x0")
    _text(block, "range", hex(1 << WINDOW_BITS))
    _text(block, "width", 32)
    _text(block, "usage", "register")
    _text(block, "access", "read-write")
    for entry in entries:
        register = _add(block, "register")
        _text(register, "name", entry.name)
        _text(register, "description", entry.meaning)
        _text(register, "addressOffset", hex(entry.offset))
        _text(register, "size", 32)
        _text(register, "access", ACCESS[entry.access])
        for field in entry.fields:
            bits = _add(register, "field")
            _text(bits, "name", field.name)
            _text(bits, "description", field.meaning)
            _text(bits, "bitOffset", field.low)
            _text(bits, "bitWidth", field.width)
            _text(bits, "access", ACCESS[entry.access])


def _model(parent: Element, top: IpTop) -> None:
    views = _add(parent, "views")
    for view in (SYNTHESIS, SIMULATION):
        one = _add(views, "view")
        _text(one, "name", view)
        _text(one, "envIdentifier", f":vivado.xilinx.com:{'synthesis' if view == SYNTHESIS else 'simulation'}")
        _text(one, "language", "verilog")
        _text(one, "modelName", top.name)
        _text(_add(one, "fileSetRef"), "localName", f"{view}_files")
    ports = _add(parent, "ports")
    for pin in top.pins:
        port = _add(ports, "port")
        _text(port, "name", pin.name)
        wire = _add(port, "wire")
        _text(wire, "direction", "out" if pin.output else "in")
        if pin.width > 1:
            vector = _add(wire, "vector")
            _text(vector, "left", pin.width - 1)
            _text(vector, "right", 0)
        kind = _add(_add(wire, "wireTypeDefs"), "wireTypeDef")
        _text(kind, "typeName", "wire")
        for view in (SYNTHESIS, SIMULATION):
            _text(kind, "viewNameRef", view)


def _file(parent: Element, name: str, kind: str, user: str | None = None) -> None:
    file = _add(parent, "file")
    _text(file, "name", name)
    if kind == "verilogSource":
        _text(file, "fileType", kind)
    else:
        _text(file, "userFileType", kind)
    if user:
        _text(file, "userFileType", user)
