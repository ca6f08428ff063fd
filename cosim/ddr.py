# SPDX-License-Identifier: Apache-2.0
"""The shared memory beside RTL in a simulation: an Amaranth shell around ``lutra_ddr.v``, and the files that it reads and writes."""

from typing import Any

from amaranth.hdl import Cat, ClockSignal, Const, Elaboratable, Instance, Module, ResetSignal
from amaranth.lib import wiring
from amaranth.lib.wiring import In

from lutra.hls_models.ternary.memory import MemoryConfig
from lutra.rtl.axi.ports import ADDRESS_BITS, PAGE_BITS, AxiRead, AxiWrite

__all__ = ["REGION_BITS", "Ddr", "region_pages", "region_setting", "skew_setting"]

REGION_BITS = 36
"""A port's region by default: 2^32 beats of 16 bytes."""


class Ddr(wiring.Component):
    """A memory of 16-byte beats behind ``config.ports`` read ports and a write port; its clocks are those of ``MemoryTiming``. For simulation only.

    Parameters
    ----------
    config : ports, latencies, slots.
    name : of the files. ``name.memory`` holds the wide beats, one after the other; it is mapped, not changed, and may be a link to an image of any size, holes
        included. With ``name.skew`` (``skew_setting``) every channel waits at random. With ``name.region`` (``region_setting``) those beats are in
        ``name.dump`` at the end.
    base : byte address of port 0's region, a multiple of 4 KB; port p's follows p regions later.
    region_bits : binary logarithm of a region's bytes, at least 12.
    address_bits : of the ports.

    Members
    -------
    read : P times ``In(AxiRead)``. ``write`` : ``In(AxiWrite)``; it reaches every port's region.
    """

    def __init__(self, config: MemoryConfig, *, name: str, base: int = 0, region_bits: int = REGION_BITS, address_bits: int = ADDRESS_BITS) -> None:
        if base % (1 << PAGE_BITS):
            raise ValueError(f"base must be a multiple of {1 << PAGE_BITS}, not {base}; nearest: {base >> PAGE_BITS << PAGE_BITS}")
        end = base + (config.ports << region_bits)
        if region_bits < PAGE_BITS or end > 1 << address_bits:
            raise ValueError(f"{config.ports} regions of 2^{region_bits} bytes from {base:#x} must be whole pages and end within 2^{address_bits}")
        self._config, self._name, self._base, self._region_bits, self._address_bits = config, name, base, region_bits, address_bits
        super().__init__({"read": In(AxiRead(address_bits=address_bits)).array(config.ports), "write": In(AxiWrite(address_bits=address_bits))})

    def elaborate(self, platform: Any) -> Elaboratable:
        m = Module()
        config = self._config
        inputs, outputs = ("arvalid", "araddr", "arlen", "arsize", "arburst", "rready"), ("arready", "rvalid", "rdata", "rresp", "rlast")
        written, answers = (
            ("awvalid", "awaddr", "awlen", "awsize", "awburst", "wvalid", "wdata", "wstrb", "wlast", "bready"),
            ("awready", "wready", "bvalid", "bresp"),
        )
        m.submodules.ddr = Instance(
            "lutra_ddr",
            p_NAME=self._name,
            p_PORTS=config.ports,
            p_ADDRESS=self._address_bits,
            p_REGION=self._region_bits,
            p_BASE=Const(self._base, 64),
            p_OUTSTANDING=config.outstanding,
            p_LATENCY=config.latency,
            p_WRITE_LATENCY=config.write_latency,
            p_RATE_NUMERATOR=config.rate_numerator,
            p_RATE_DENOMINATOR=config.rate_denominator,
            p_REFRESH_PERIOD=config.refresh_period,
            p_REFRESH_WINDOW=config.refresh_window,
            i_clk=ClockSignal(),
            i_rst=ResetSignal(),
            **{f"i_{name}": Cat(getattr(port, name) for port in self.read) for name in inputs},
            **{f"o_{name}": Cat(getattr(port, name) for port in self.read) for name in outputs},
            **{f"i_{name}": getattr(self.write, name) for name in written},
            **{f"o_{name}": getattr(self.write, name) for name in answers},
        )
        return m


def region_pages(config: MemoryConfig, *, base: int = 0, region_bits: int = REGION_BITS) -> list[int]:
    """What ``AxiReader.base`` and ``AxiWriter.base`` have to be for such a memory: the page of 4 KB with which each port's region starts."""
    return [(base + (port << region_bits)) >> PAGE_BITS for port in range(config.ports)]


def skew_setting(seed: int) -> bytes:
    """Contents of ``name.skew``."""
    return seed.to_bytes(8, "big")


def region_setting(first: int, beats: int) -> bytes:
    """Contents of ``name.region``: ``beats`` wide beats from ``first`` on."""
    return first.to_bytes(8, "big") + beats.to_bytes(8, "big")
