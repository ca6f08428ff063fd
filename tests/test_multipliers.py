# SPDX-License-Identifier: Apache-2.0
"""Multipliers that spill into look-up tables: exact products of every width and sign, the predicted number of blocks, no more than must."""

import re
from typing import Any

import numpy as np
import pytest
from amaranth import Cat, Module, Shape, Signal
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

from lutra.cosim import gates
from lutra.cosim.harness import Bench, Stimulus
from lutra.fpga_flows.flow import flat_module, map_netlist
from lutra.fpga_flows.multipliers import SOFT, blocks_needed, blocks_of, rows_places, spill, spilled
from lutra.fpga_flows.multipliers import TIMES as MARK
from lutra.rtl.verilog import emit_rtlil

PRODUCTS = (
    (8, 8, True),
    (8, 8, True),
    (9, 8, True),
    (5, 7, True),
    (24, 24, False),
    (20, 16, False),
    (12, 24, False),
    (3, 3, False),
    (18, 18, True),
    (18, 2, False),
)
"""Bits, bits, signed."""
TIMES = (5, -3, 0x155, 1)
"""Constants; the products of the first operand and each of them stand at the top of a beat."""
TIMES_BITS = 18
WIDTH = sum(a + b for a, b, _ in PRODUCTS)
OUTPUT_WIDTH = WIDTH + TIMES_BITS * len(TIMES)


class Products(wiring.Component):
    def __init__(self) -> None:
        super().__init__({"input": In(stream.Signature(WIDTH, always_ready=True)), "output": Out(stream.Signature(OUTPUT_WIDTH, always_ready=True))})

    def elaborate(self, platform: object) -> Any:
        m = Module()
        at, products = 0, []
        for a, b, signed in PRODUCTS:
            x, y = self.input.payload[at : at + a], self.input.payload[at + a : at + a + b]
            product = Signal(a + b)
            m.d.comb += product.eq(x.as_signed() * y.as_signed() if signed else x * y)
            products.append(product)
            at += a + b
        first = self.input.payload[: PRODUCTS[0][0]].as_signed()
        for constant in TIMES:
            times = Signal(Shape(TIMES_BITS, signed=True))
            m.d.comb += times.eq(first * constant if constant > 0 else constant * first)
            products.append(times)
        m.d.sync += [self.output.payload.eq(Cat(products)), self.output.valid.eq(self.input.valid)]
        return m


def numbers(words: np.ndarray) -> list[list[int]]:
    """Operands of every beat, as the signs say."""
    out = []
    for row in words:
        value, beat = int.from_bytes(row.tobytes(), "little"), []
        for a, b, signed in PRODUCTS:
            for bits in (a, b):
                one, value = value & (1 << bits) - 1, value >> bits
                beat.append(one - (1 << bits) if signed and one >> bits - 1 else one)
        out.append(beat)
    return out


@pytest.fixture(scope="module")
def text() -> str:
    return emit_rtlil(Products(), "top")


def test_what_spills(text: str) -> None:
    needed = sum(blocks_of(a, b) for a, b, _ in PRODUCTS)
    assert blocks_needed(text, "top") == needed == 15
    assert SOFT not in spill(text, "top", needed) and spill(text, "top", needed).count(MARK) == text.count("cell $mul") - len(PRODUCTS) >= 3
    one = spill(text, "top", needed - 1)
    assert len(re.findall(re.escape(SOFT), one)) == 1 and "SOFT 4'0001" in one  # the product of 3 x 3 bits is the cheapest
    both = spill(text, "top", needed - 6)
    assert both.count("SOFT 4'1000") == 1 and both.count("SOFT 4'0001") >= 2  # the upper corner of 24 x 24 bits as well
    assert spilled(text, "top", needed) == (needed, {})
    assert spilled(text, "top", needed - 1) == (needed - 1, {"top": rows_places(3, 3)})
    assert spilled(text, "top", 0) == (
        0,
        {
            "top": sum(
                rows_places(a, b)
                for a, b in (
                    (8, 8),
                    (8, 8),
                    (9, 8),
                    (5, 7),
                    (18, 16),
                    (2, 16),
                    (12, 18),
                    (12, 6),
                    (3, 3),
                    (18, 18),
                    (18, 2),
                    (18, 18),
                    (18, 6),
                    (18, 6),
                    (6, 6),
                )
            )
        },
    )
    assert rows_places(6, 6) < rows_places(8, 8) < rows_places(18, 6) == rows_places(6, 18) < rows_places(18, 18)


@pytest.mark.parametrize("available", [9, 0])
def test_products_of_the_netlist(text: str, rng: np.random.Generator, available: int) -> None:
    folder = map_netlist(text, "ecp5", clock_hz=50e6, multipliers=available)
    mapped = flat_module(folder)
    kinds = [cell["type"] for cell in mapped["cells"].values()]
    assert kinds.count("MULT18X18D") == available
    bench = Bench("products", modules=gates.cell_models(set(kinds)) + gates.gate_level(mapped, "products_gates"))
    bench.add("c0", gates.Gates(Products(), "products_gates"))
    bench.build()
    words = rng.integers(0, 1 << 32, (400, -(-WIDTH // 32)), dtype=np.uint32)
    words[:2] = [[0], [0xFFFFFFFF]]
    words[2:40] |= np.where(rng.random((38, 1)) < 0.5, 0x80808080, 0).astype(np.uint32)
    words[:, -1] &= (1 << (WIDTH % 32 or 32)) - 1
    found = bench.run(stimuli={"c0": {"input": Stimulus(words)}}, beats={"c0": {"output": len(words)}}, max_cycles=2000)
    for row, beat in zip(found["c0"]["output"].payloads, numbers(words), strict=True):
        value = int.from_bytes(row.tobytes(), "little")
        for i, (a, b, _) in enumerate(PRODUCTS):
            assert value & (1 << a + b) - 1 == beat[2 * i] * beat[2 * i + 1] & (1 << a + b) - 1, PRODUCTS[i]
            value >>= a + b
        for constant in TIMES:
            assert value & (1 << TIMES_BITS) - 1 == beat[0] * constant & (1 << TIMES_BITS) - 1, constant
            value >>= TIMES_BITS
