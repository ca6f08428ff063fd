# SPDX-License-Identifier: Apache-2.0
"""Layouts inside the companion chip: the packed instruction, its path, and what goes with an item through the pipeline."""

from amaranth.hdl import Module, Mux, Signal, Value
from amaranth.lib import data

from lutra.hls_models.pim.config import PimConfig
from lutra.hls_models.pim.instructions import PATH_FIELDS, WORK_FIELDS
from lutra.rtl.pim.companion_sram import address_bits

__all__ = ["Line", "instruction_layout", "item_layout", "path_layout"]


def path_layout() -> data.StructLayout:
    """Which stages all items in the pipeline pass."""
    return data.StructLayout(dict(PATH_FIELDS))


def instruction_layout(config: PimConfig) -> data.StructLayout:
    """Payload of the ``instructions`` stream, as ``Work.pack`` makes it."""
    fields = dict(WORK_FIELDS[len(PATH_FIELDS) :])
    return data.StructLayout({"path": path_layout(), **fields, "mask": config.channels})


def item_layout(config: PimConfig) -> data.StructLayout:
    """An item: ``count`` valid values from lane 0 on, addresses, scalars, ``first`` of what its statistic gathers, ``last`` of its instruction."""
    address = address_bits(config)
    return data.StructLayout(
        {
            "count": range(config.lanes + 1),
            "b": address,
            "c": address,
            "dst": address,
            "store": 1,
            "s": 5,
            "stat": 5,
            "first": 1,
            "last": 1,
            "mask": config.channels,
        }
    )


class Line:
    """A value and its valid bit, delayed stage by stage; only the valid bits are reset."""

    def __init__(self, m: Module, valid: Value, payload: Value, name: str) -> None:
        self._m, self.valid, self.payload, self._name = m, valid, payload, name

    def delayed(self, clocks: int, name: str) -> "Line":
        """The line ``clocks`` clocks later."""
        line = self
        for clock in range(clocks):
            valid = Signal(name=f"{self._name}_{name}_valid_{clock}")
            payload = Signal(len(line.payload), name=f"{self._name}_{name}_{clock}", reset_less=True)
            self._m.d.sync += [valid.eq(line.valid), payload.eq(line.payload)]
            line = Line(self._m, valid, payload, self._name)
        return line

    def optional(self, used: Value, clocks: int, name: str) -> "Line":
        """The line ``clocks`` clocks later where the stage is used."""
        return self.chosen(used, self.gated(used).delayed(clocks, name), name)

    def gated(self, used: Value) -> "Line":
        """The line where ``used`` is 1: what passes a stage by must not come out of it later, when another path uses it."""
        return Line(self._m, self.valid & used, self.payload, self._name)

    def chosen(self, used: Value, other: "Line", name: str) -> "Line":
        """The other line where ``used`` is 1."""
        valid = Signal(name=f"{self._name}_{name}_valid")
        payload = Signal(len(self.payload), name=f"{self._name}_{name}")
        self._m.d.comb += [valid.eq(Mux(used, other.valid, self.valid)), payload.eq(Mux(used, other.payload, self.payload))]
        return Line(self._m, valid, payload, self._name)
