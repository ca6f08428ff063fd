# SPDX-License-Identifier: Apache-2.0
"""AXI4 interfaces of 128 bits, reading and writing apart, and AXI4-Lite, with the standard's names (Arm IHI 0022), seen from the master."""

from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from lutra.hls_models.ternary.memory import PORT_BYTES

__all__ = ["ADDRESS_BITS", "PAGE_BITS", "PORT_BITS", "SIZE", "AxiLite", "AxiRead", "AxiWrite", "base_layout"]

PORT_BITS = 8 * PORT_BYTES
ADDRESS_BITS = 40
PAGE_BITS = 12
"""No burst crosses a multiple of 4 KB; regions start at one."""
SIZE = PORT_BYTES.bit_length() - 1
"""``arsize``, ``awsize``: 16 bytes per beat."""
INCREMENTING = 1
BUFFERABLE, MODIFIABLE = 1, 2


def _address(prefix: str, address_bits: int) -> dict[str, wiring.Member]:
    """Members of an address channel; those that never change have their values as initial ones."""
    return {
        f"{prefix}valid": Out(1),
        f"{prefix}ready": In(1),
        f"{prefix}addr": Out(address_bits),
        f"{prefix}len": Out(8),
        f"{prefix}size": Out(3, init=SIZE),
        f"{prefix}burst": Out(2, init=INCREMENTING),
        f"{prefix}id": Out(1),
        f"{prefix}cache": Out(4, init=BUFFERABLE | MODIFIABLE),
        f"{prefix}prot": Out(3),
    }


class AxiRead(wiring.Signature):
    """Channels ar and r of a master that only reads. All bursts have id 0: their data come in the order of their addresses."""

    def __init__(self, *, address_bits: int = ADDRESS_BITS) -> None:
        response = {"rvalid": In(1), "rready": Out(1), "rdata": In(PORT_BITS), "rresp": In(2), "rlast": In(1), "rid": In(1)}
        super().__init__(_address("ar", address_bits) | response)


class AxiWrite(wiring.Signature):
    """Channels aw, w and b of a master that only writes, with id 0."""

    def __init__(self, *, address_bits: int = ADDRESS_BITS) -> None:
        beat = {"wvalid": Out(1), "wready": In(1), "wdata": Out(PORT_BITS), "wstrb": Out(PORT_BYTES), "wlast": Out(1, init=1)}
        response = {"bvalid": In(1), "bready": Out(1), "bresp": In(2), "bid": In(1)}
        super().__init__(_address("aw", address_bits) | beat | response)


def base_layout(ports: int, address_bits: int = ADDRESS_BITS) -> data.ArrayLayout:
    """Where each port's region starts, in pages of 4 KB."""
    return data.ArrayLayout(address_bits - PAGE_BITS, ports)


class AxiLite(wiring.Signature):
    """AXI4-Lite of 32 bits."""

    def __init__(self, *, address_bits: int) -> None:
        def address(prefix: str) -> dict[str, wiring.Member]:
            return {f"{prefix}valid": Out(1), f"{prefix}ready": In(1), f"{prefix}addr": Out(address_bits), f"{prefix}prot": Out(3)}

        write = {"wvalid": Out(1), "wready": In(1), "wdata": Out(32), "wstrb": Out(4), "bvalid": In(1), "bready": Out(1), "bresp": In(2)}
        read = {"rvalid": In(1), "rready": Out(1), "rdata": In(32), "rresp": In(2)}
        super().__init__(address("aw") | write | address("ar") | read)
