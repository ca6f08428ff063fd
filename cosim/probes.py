# SPDX-License-Identifier: Apache-2.0
"""Simulation-only stream components: player, sink, recorder and saboteur of ``cosim/verilog``, wrapped for Amaranth.

Each reads or writes files called after its ``name`` in the simulator's working directory; ``Bench`` writes and reads them. Inside a design
``lutra.rtl.tap`` marks boundaries; Amaranth makes one module per instance, so that their names are told apart in its text.
"""

import re
from typing import Any

from amaranth.hdl import Cat, ClockSignal, Const, Instance, Module, ResetSignal, Signal, Value
from amaranth.lib import stream

from lutra.hls_models.streams import words_for

__all__ = ["name_taps", "play", "record", "sabotage", "sink"]

TAP = re.compile(
    r"^module \\(?P<module>\S+)$"
    r'|(?P<head>^ *cell \\lutra_tap .*\n *parameter \\WIDTH (?P<width>\d+)\n *parameter \\NAME )"(?P<name>[^"]*)"',
    re.MULTILINE,
)


def _words_of(shape: Any) -> int:
    return words_for(Value.cast(Signal(shape)).shape().width)


def _padded(payload: Any, words: int) -> Value:
    value = Value.cast(payload)
    return Cat(value, Const(0, 32 * words - value.shape().width))


def _common(name: str) -> dict[str, Any]:
    return {"p_NAME": name, "i_clk": ClockSignal(), "i_rst": ResetSignal()}


def play(m: Module, name: str, shape: Any, cycle: Value) -> Any:
    """A player's stream interface (to be connected to a consumer): offers the beats of ``name``.in."""
    source = stream.Interface(stream.Signature(shape), path=(f"{name}.source",))
    words = _words_of(shape)
    payload = Signal(32 * words)
    m.submodules[f"{name}.player"] = Instance(
        "lutra_player", **_common(name), p_WORDS=words, i_cycle=cycle, o_payload=payload, o_valid=source.valid, i_ready=source.ready
    )
    m.d.comb += Value.cast(source.payload).eq(payload)
    return source


def sink(m: Module, name: str, ready: Value, cycle: Value) -> None:
    """Drives ``ready`` from the trace ``name``.ready."""
    m.submodules[f"{name}.sink"] = Instance("lutra_sink", **_common(name), i_cycle=cycle, o_ready=ready)


def record(m: Module, name: str, port: Any, cycle: Value) -> Signal:
    """Records every handshake of a stream to ``name``.out; returns the flag that ``name``.expect beats have passed."""
    words = _words_of(port.payload.shape())
    done = Signal(name=f"{name}.done")
    m.submodules[f"{name}.recorder"] = Instance(
        "lutra_recorder",
        **_common(name),
        p_WORDS=words,
        i_cycle=cycle,
        i_payload=_padded(port.payload, words),
        i_valid=port.valid,
        i_ready=port.ready,
        o_done=done,
    )
    return done


def sabotage(m: Module, name: str, source: Any) -> Any:
    """The stream behind a saboteur: the same one, combinationally, unless ``name``.fault says otherwise."""
    words = _words_of(source.payload.shape())
    behind = stream.Interface(stream.Signature(source.payload.shape()), path=(f"{name}.behind",))
    payload = Signal(32 * words)
    m.submodules[f"{name}.saboteur"] = Instance(
        "lutra_saboteur",
        **_common(name),
        p_WORDS=words,
        i_i_payload=_padded(source.payload, words),
        i_i_valid=source.valid,
        # A port without back-pressure has a constant here.
        **({} if isinstance(source.ready, Const) else {"o_i_ready": source.ready}),
        o_o_payload=payload,
        o_o_valid=behind.valid,
        i_o_ready=behind.ready,
    )
    m.d.comb += Value.cast(behind.payload).eq(payload)
    return behind


def name_taps(rtlil: str, top: str) -> tuple[str, dict[str, dict[str, int]]]:
    """Makes the names of internal boundaries (``lutra.rtl.tap``) unique in a bench.

    NAME without a dot inside design d becomes ``d.NAME``; a name with one, ``group.NAME``, stays as it is. Returns the text and, per design or
    group, the payload width of each name.
    """
    found: dict[str, dict[str, int]] = {}
    design = ""

    def rename(match: re.Match[str]) -> str:
        nonlocal design
        if match["module"] is not None:
            design = match["module"].removeprefix(f"{top}.").split(".")[0]
            return match[0]
        group, _, name = match["name"].rpartition(".")
        group = group or design
        names = found.setdefault(group, {})
        if name in names:
            raise ValueError(f"two boundaries are called {group}.{name}")
        names[name] = int(match["width"])
        return f'{match["head"]}"{group}.{name}"'

    return TAP.sub(rename, rtlil), found
