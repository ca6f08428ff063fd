# SPDX-License-Identifier: Apache-2.0
"""Emission of Verilog: deterministic text, self-contained, without source paths."""

import re
from pathlib import Path
from typing import Any

from amaranth.back import rtlil, verilog

__all__ = ["LIBRARY", "emit", "emit_rtlil", "from_rtlil"]

LIBRARY = Path(__file__).parent / "verilog"
"""Folder of the hand-written modules that components instantiate, one per file of the same name."""


def emit_rtlil(component: Any, name: str = "top", *, ports: dict[str, Any] | None = None) -> str:
    """Amaranth's intermediate text of a component: all that ``from_rtlil`` needs, a fraction of its time (a cache can ask for it first)."""
    # Components know their ports; ports is for plain Elaboratables.
    return rtlil.convert(component, name=name, ports=ports, emit_src=False)


def from_rtlil(text: str) -> str:
    """Verilog of ``emit_rtlil``'s text, followed by the library modules that it instantiates."""
    # Amaranth has no public way from RTLIL to Verilog; its version is pinned.
    body = verilog._convert_rtlil_text(text, strip_internal_attrs=True)
    used = [path for path in sorted(LIBRARY.glob("*.v")) if re.search(rf"\b{path.stem} ", body)]
    return body + "".join("\n" + path.read_text() for path in used)


def emit(component: Any, name: str = "top", *, ports: dict[str, Any] | None = None) -> str:
    """Verilog of a component as module ``name``; equal bytes for equal components, whatever the folder, process or hash seed."""
    return from_rtlil(emit_rtlil(component, name, ports=ports))
