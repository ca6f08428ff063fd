# SPDX-License-Identifier: Apache-2.0
"""Emission of Verilog: deterministic text, self-contained, without source paths."""

import contextlib
import gc
import itertools
import re
from collections.abc import Iterator
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from amaranth.back import rtlil, verilog
from amaranth.hdl import ClockSignal, Const, Elaboratable, EnableInserter, Fragment, Instance, ResetInserter, ResetSignal, Signal, Value
from amaranth.hdl._ir import PortDirection
from amaranth.lib.wiring import In, Out

from lutra.rtl.verilog_text import plain

__all__ = ["LIBRARY", "emit", "emit_rtlil", "enabled", "from_rtlil", "library_text", "once", "restarted", "share_modules", "spare"]

LIBRARY = Path(__file__).parent / "verilog"
"""Folder of the hand-written modules that components instantiate, one per file of the same name."""


def emit_rtlil(component: Any, name: str = "top", *, ports: dict[str, Any] | None = None) -> str:
    """Amaranth's intermediate text of a component: all that ``from_rtlil`` needs, in a fraction of its time, so that a cache can be asked first.

    ``ports`` (name: (signal, direction or None)) is for elaboratables that are no components.
    """
    modules: dict[str, Any] = {}
    token = _modules.set(modules)
    try:
        with _without_collection():
            text = _convert(component, name, _ports(component) if ports is None else ports)
            for number in itertools.count():
                if number == len(modules):  # modules may bring others
                    break
                module, (single, enable) = list(modules.items())[number]
                pins = _ports(single)
                if enable is not None:
                    single, pins = enabled(single, enable), {**pins, "enable": (enable, PortDirection.Input)}
                text += TOP.sub("", _convert(single, module, pins))
    finally:
        _modules.reset(token)
    return text


TOP = re.compile(r"^ *attribute \\top 1\n", re.MULTILINE)
_modules: ContextVar[dict[str, tuple[Any, Signal | None]] | None] = ContextVar("_modules", default=None)
"""Of the text that is being emitted: components that are a module of their own, and their clock enable, by name."""
_enable: ContextVar[Signal | None] = ContextVar("_enable", default=None)
"""The clock enable of what is being elaborated."""
_reset: ContextVar[Signal | None] = ContextVar("_reset", default=None)
"""Its additional reset."""


def _convert(component: Any, name: str, ports: dict[str, Any]) -> str:
    return rtlil.convert(component, name=name, ports=ports, emit_src=False)


def _ports(component: Any) -> dict[str, Any]:
    """As Amaranth does it, but for constants (the ready of a stream that is always ready), which it refuses."""
    directions = {In: PortDirection.Input, Out: PortDirection.Output}
    members = [("__".join(map(str, path)), member.flow, Value.cast(value)) for path, member, value in component.signature.flatten(component)]
    return {port: (value, directions[flow]) for port, flow, value in members if not isinstance(value, Const)}


class _Enabled(Elaboratable):
    def __init__(self, component: Any, enable: Signal) -> None:
        self._component, self._enable = component, enable

    def elaborate(self, platform: Any) -> Fragment:
        token = _enable.set(self._enable)
        try:
            return Fragment.get(EnableInserter(self._enable)(self._component), platform)
        finally:
            _enable.reset(token)


def enabled(component: Any, enable: Signal) -> Elaboratable:
    """A component whose ``sync`` domain acts in cycles with ``enable`` only, ``once``'s modules inside it included."""
    return _Enabled(component, enable)


class _Restarted(Elaboratable):
    def __init__(self, component: Any, reset: Signal) -> None:
        self._component, self._reset = component, reset

    def elaborate(self, platform: Any) -> Fragment:
        token = _reset.set(self._reset)
        try:
            return Fragment.get(ResetInserter(self._reset)(self._component), platform)
        finally:
            _reset.reset(token)


def restarted(component: Any, reset: Signal) -> Elaboratable:
    """A component whose ``sync`` domain is also reset by ``reset``, ``once``'s modules inside it included."""
    return _Restarted(component, reset)


def once(component: Any, name: str) -> Any:
    """A component as a submodule that is elaborated once per text, however many equal ones there are: as module ``name``, which tells its parameters.

    It may be in the ``sync`` domain only, and of inserters and renamers only ``enabled`` and ``restarted`` may stand around it. Outside of ``emit_rtlil`` it
    is the component itself.
    """
    modules, enable = _modules.get(), _enable.get()
    if modules is None:
        return component
    kinds = {PortDirection.Input: "i", PortDirection.Output: "o"}
    pins = {f"{kinds[direction]}_{port}": value for port, (value, direction) in _ports(component).items()}
    if enable is not None:
        name, pins = f"{name}_enabled", {**pins, "i_enable": enable}
    if modules.setdefault(name, (component, None if enable is None else Signal(name="enable")))[0] is not component:
        component._MustUse__used = True  # else Amaranth warns of the equal ones
    reset = _reset.get()
    return Instance(name, i_clk=ClockSignal(), i_rst=ResetSignal() if reset is None else ResetSignal() | reset, **pins)


@contextlib.contextmanager
def _without_collection() -> Iterator[None]:
    """No garbage collection: among the millions of objects of a large design, which all stay to the end, it is half of the time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def library_text(text: str, folder: Path = LIBRARY) -> str:
    """The hand-written modules of a folder that a text, RTLIL or Verilog, instantiates."""
    return "".join("\n" + path.read_text() for path in sorted(folder.glob("*.v")) if re.search(rf"\b{path.stem} ", text))


def from_rtlil(text: str) -> str:
    """Verilog of ``emit_rtlil``'s text, followed by the library modules that it instantiates."""
    # Amaranth has no public way from RTLIL to Verilog; its version is pinned.
    return plain(verilog._convert_rtlil_text(text, strip_internal_attrs=True)) + library_text(text)


def emit(component: Any, name: str = "top", *, ports: dict[str, Any] | None = None) -> str:
    """Verilog of a component as module ``name``; equal bytes for equal components, whatever the folder, process or hash seed."""
    return from_rtlil(emit_rtlil(component, name, ports=ports))


def spare(component: Any) -> None:
    """Tells Amaranth not to warn of a component, and of those that it holds, that is never elaborated: its text was in a cache."""
    component._MustUse__used = True
    for part in vars(component).values():
        for one in part if isinstance(part, list | tuple) else [part]:
            if isinstance(one, Elaboratable) and not getattr(one, "_MustUse__used", True):
                spare(one)


MODULE = re.compile(r"^(?P<head>(?:attribute [^\n]*\n)*)module \\(?P<name>\S+)\n(?P<body>.*?)^end\n", re.MULTILINE | re.DOTALL)
CELL = re.compile(r"^(?P<indent> *cell \\)(?P<type>\S+)(?P<rest> .*)$", re.MULTILINE)


def share_modules(text: str) -> str:
    """RTLIL in which modules of equal content are one module.

    Amaranth writes a module per instance. Sixteen equal lanes are then sixteen times as much for Verilator and the C++ compiler to work through.
    """
    modules = {found["name"]: (found["head"], found["body"]) for found in MODULE.finditer(text)}
    first: dict[tuple[str, str], str] = {}
    named: dict[str, str] = {}
    bodies: dict[str, str] = {}

    def shared(name: str) -> str:
        """The name under which a module stays; those it instantiates are settled first."""
        if name not in modules:
            return name  # of the library, or a primitive
        if name not in named:
            head, body = modules[name]
            body = CELL.sub(lambda cell: f"{cell['indent']}{shared(cell['type'])}{cell['rest']}", body)
            named[name] = first.setdefault((head, body), name)
            bodies[name] = body
        return named[name]

    for name in modules:
        shared(name)
    return MODULE.sub(
        lambda found: f"{found['head']}module \\{found['name']}\n{bodies[found['name']]}end\n" if named[found["name"]] == found["name"] else "", text
    )
