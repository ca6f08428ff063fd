# SPDX-License-Identifier: Apache-2.0
"""A design's modules one by one: what synthesis that keeps the hierarchy makes of a module depends on its own text and on its submodules' ports only."""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass

from lutra.rtl.verilog import CELL, MODULE

__all__ = ["Part", "split"]

PORT = re.compile(r"^ *wire (?P<about>[^\n\\]*\b(?:input|output|inout) \d+(?: +signed)?) +(?P<name>\\\S+)$", re.MULTILINE)
TOP = re.compile(r"^ *attribute \\top 1\n", re.MULTILINE)


@dataclass(frozen=True)
class Part:
    """A module of RTLIL under a name that its content gives, whatever the design: ``text``, ``stub`` (ports only), names of what it instantiates."""

    name: str
    text: str
    stub: str
    children: frozenset[str]


def split(text: str) -> tuple[str, Mapping[str, Part]]:
    """(name of the top module, parts by name); equal modules with equal submodules are one part."""
    modules = {found["name"]: (found["head"], found["body"]) for found in MODULE.finditer(text)}
    top = next(name for name, (head, _) in modules.items() if TOP.search(head))
    names: dict[str, str] = {}
    parts: dict[str, Part] = {}

    def visit(name: str) -> str:
        if name not in names:
            head, body = modules[name]
            children = {}
            for cell in CELL.finditer(body):
                if cell["type"] in modules:
                    children[cell["type"]] = visit(cell["type"])
            body = CELL.sub(lambda cell: f"{cell['indent']}{children.get(cell['type'], cell['type'])}{cell['rest']}", body)
            names[name] = given = "m_" + hashlib.sha256(body.encode()).hexdigest()[:20]
            ports = "".join(f"  wire {port['about']} {port['name']}\n" for port in PORT.finditer(body))
            stub = f"attribute \\blackbox 1\nmodule \\{given}\n{ports}end\n"
            parts[given] = Part(given, f"{TOP.sub('', head)}module \\{given}\n{body}end\n", stub, frozenset(children.values()))
        return names[name]

    return visit(top), parts
