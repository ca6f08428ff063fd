# SPDX-License-Identifier: Apache-2.0
"""Simulation-only stream components: player, sink, recorder and saboteur of ``cosim/verilog``, wrapped for Amaranth.

Each reads or writes files called after its ``name`` in the simulator's working directory; ``Bench`` writes and reads them. A core's simulation top
puts ``tap`` on its internal boundaries.
"""

from typing import Any

from amaranth.hdl import Cat, ClockSignal, Const, Instance, Module, ResetSignal, Signal, Value
from amaranth.lib import stream

__all__ = ["play", "record", "sabotage", "sink", "tap", "words_of"]


def words_of(shape: Any) -> int:
    """32-bit words of one recorded payload: at least one, also for empty payloads."""
    return max(1, -(-Value.cast(Signal(shape)).shape().width // 32))


def _padded(payload: Any, words: int) -> Value:
    value = Value.cast(payload)
    return Cat(value, Const(0, 32 * words - value.shape().width))


def _common(name: str) -> dict[str, Any]:
    return {"p_NAME": name, "i_clk": ClockSignal(), "i_rst": ResetSignal()}


def play(m: Module, name: str, shape: Any, cycle: Value) -> Any:
    """A player's stream interface (to be connected to a consumer): offers the beats of ``name``.in."""
    source = stream.Interface(stream.Signature(shape), path=(f"{name}.source",))
    words = words_of(shape)
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
    words = words_of(port.payload.shape())
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
    words = words_of(source.payload.shape())
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


def tap(m: Module, name: str, source: Any, cycle: Value) -> tuple[Any, Signal]:
    """An internal boundary: ``source`` behind a saboteur, recorded. Returns (stream to connect to the consumer, done)."""
    behind = sabotage(m, name, source)
    return behind, record(m, name, behind, cycle)
