# SPDX-License-Identifier: Apache-2.0
"""A wire between two stream ports that co-simulation can watch and disturb."""

from amaranth import ClockSignal, Instance, Module, ResetSignal, Value
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

__all__ = ["Tap", "connect"]


class Tap(wiring.Component):
    """Passes a stream through unchanged, with no latency, under a name.

    In synthesis ``lutra_tap`` (rtl/verilog) is plain wires. A simulation built with LUTRA_TAPS records every handshake there and can flip, drop or
    delay a beat for the negative controls.
    """

    def __init__(self, signature: stream.Signature, name: str) -> None:
        self._name = name
        super().__init__({"i": In(signature), "o": Out(signature)})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        payload, target = Value.cast(self.i.payload), Value.cast(self.o.payload)
        m.submodules.tap = Instance(
            "lutra_tap",
            p_WIDTH=len(payload),
            p_NAME=self._name,
            i_clk=ClockSignal(),
            i_rst=ResetSignal(),
            i_i_valid=self.i.valid,
            o_i_ready=self.i.ready,
            i_i_payload=payload,
            o_o_valid=self.o.valid,
            i_o_ready=self.o.ready,
            o_o_payload=target,
        )
        return m


def connect(m: Module, name: str, source: stream.Interface, sink: stream.Interface) -> None:
    """Connects an output stream to an input stream of the same payload through a ``Tap`` called ``name``."""
    tap = Tap(stream.Signature(sink.signature.members["payload"].shape), name)
    m.submodules[f"tap_{name}"] = tap
    wiring.connect(m, source, tap.i)
    wiring.connect(m, tap.o, sink)
