# SPDX-License-Identifier: Apache-2.0
"""SRAM of the companion chip: words of B values, three read ports and a write port."""

from typing import Any

from amaranth.hdl import Module, Mux, Signal
from amaranth.lib import wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

from lutra.hls_models.pim.config import PimConfig
from lutra.rtl.float_parts import register

__all__ = ["CompanionSram", "address_bits"]

READS = ("a", "b", "c")


def address_bits(config: PimConfig) -> int:
    """Bits of a word's address."""
    return max(1, (config.sram_words - 1).bit_length())


class CompanionSram(wiring.Component):
    """A memory per word of a beat, each with its own write enable; synthesis makes a copy of each per read port.

    A word must not be read in the clock that writes it: RAM blocks leave that word undefined, and yosys is told so by ``no_rw_check``, which it honours
    where it merges an output register itself; hence the asynchronous ports and the registers here.

    Members
    -------
    address_a, address_b, address_c : word; of a beat its first
    wide : ``In(1)``, stable while items are on their way: beats instead of words
    a, b, c : ``Out(V x 32)``, two clocks later; of a word the lowest B values
    write_enable, write_address, write_data
        Of a word the lowest B values are written.
    """

    def __init__(self, config: PimConfig) -> None:
        self._config = config
        bits, row = address_bits(config), 32 * config.lanes
        reads = {f"address_{name}": In(bits) for name in READS} | {name: Out(row) for name in READS}
        super().__init__({**reads, "wide": In(1), "write_enable": In(1), "write_address": In(bits), "write_data": In(row)})

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        slots = self._config.words_per_beat
        shift, word = slots.bit_length() - 1, 32 * self._config.banks
        attributes = {"ram_style": "block", "no_rw_check": 1}
        fetched: dict[str, list[Signal]] = {name: [] for name in READS}
        for slot in range(slots):
            memory = Memory(shape=word, depth=-(-self._config.sram_words // slots), init=[], attrs=attributes)
            m.submodules[f"memory_{slot}"] = memory
            write = memory.write_port()
            m.d.comb += [
                write.addr.eq(self.write_address >> shift),
                write.data.eq(Mux(self.wide, self.write_data[slot * word : (slot + 1) * word], self.write_data[:word])),
                write.en.eq(self.write_enable & (self.wide | (self.write_address[:shift] == slot) if shift else 1)),
            ]
            for name in READS:
                port = memory.read_port(domain="comb")
                m.d.comb += port.addr.eq(getattr(self, f"address_{name}") >> shift)
                fetched[name].append(register(m, port.data, f"fetched_{name}_{slot}"))
        for name in READS:
            first = Signal(word, name=f"first_{name}")
            m.d.comb += first.eq(fetched[name][0])
            if shift:
                slot_of = register(m, Mux(self.wide, 0, getattr(self, f"address_{name}")[:shift]), f"slot_{name}")
                with m.Switch(slot_of):
                    for slot in range(1, slots):
                        with m.Case(slot):
                            m.d.comb += first.eq(fetched[name][slot])
            # Lanes above the first word are looked at in beats only.
            m.d.comb += getattr(self, name)[:word].eq(register(m, first, f"operand_{name}"))
            for slot in range(1, slots):
                m.d.comb += getattr(self, name)[slot * word : (slot + 1) * word].eq(register(m, fetched[name][slot], f"operand_{name}_{slot}"))
        return m
