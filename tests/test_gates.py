# SPDX-License-Identifier: Apache-2.0
"""Netlists after synthesis for an ECP5, simulated with own models of its cells: every model against the RTL that its cell came from, a block against golden."""

from contextlib import closing
from typing import Any

import numpy as np
import pytest
from amaranth import C, Cat, Module, Signal, signed
from amaranth.lib import stream, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out
from smallest import CONFIG, SHAPE

from lutra import fpga
from lutra.cosim import gates, serial, simulator
from lutra.cosim.benches import tlmm as benches
from lutra.cosim.harness import Bench, Stimulus
from lutra.fpga_flows.boards import load_board
from lutra.fpga_flows.flow import flat_module, map_netlist
from lutra.hls_models.errors import ToolError
from lutra.hls_models.ternary.core import CoreSpec
from lutra.hls_models.ternary.executor import Executor
from lutra.hls_models.ternary.tlmm import TlmmConfig
from lutra.hls_models.uart import UartConfig
from lutra.link import Conversation, Device
from lutra.mapping.lower import compile_model
from lutra.mapping.model import TernaryModel
from lutra.rtl.board.top import BlockPins, BoardTop
from lutra.rtl.ternary.tlmm import Tlmm
from lutra.rtl.verilog import emit_rtlil, from_rtlil, share_modules

MEMORIES = ((1, 16384), (2, 8192), (4, 4096), (9, 2048), (18, 1024), (36, 512))
OUTPUT_BITS = 5 * 36 + 18 + 19 + 1 + 1 + 1 + 6 + 4 + sum(width for width, _ in MEMORIES)


class Zoo(wiring.Component):
    """Logic that synthesis maps to every kind of cell that the core takes."""

    def __init__(self) -> None:
        super().__init__({"input": In(stream.Signature(64, always_ready=True)), "output": Out(stream.Signature(OUTPUT_BITS, always_ready=True))})

    def elaborate(self, platform: object) -> Any:
        m = Module()
        word = self.input.payload
        a, b, place, write, row = word[:18], word[18:36], word[36:50], word[50] & self.input.valid, word[52:56]
        counted = Signal(6, init=5)
        with m.If(word[51] & self.input.valid):
            m.d.sync += counted.eq(0)
        with m.Elif(word[50] & self.input.valid):
            m.d.sync += counted.eq(counted + 11)
        m.submodules.shallow = shallow = Memory(shape=4, depth=16, init=[3 * i & 15 for i in range(16)], attrs={"ram_style": "distributed"})
        into, out = shallow.write_port(), shallow.read_port(domain="comb")
        m.d.comb += [into.addr.eq(row), into.data.eq(word[:4]), into.en.eq(write), out.addr.eq(word[56:60])]
        held_a, held_b = Signal(18, reset_less=True), Signal(18, reset_less=True)
        with m.If(word[60] & self.input.valid):
            m.d.sync += held_a.eq(a)
        with m.If(word[61] & self.input.valid):
            m.d.sync += held_b.eq(b)
        signed_a, signed_b = Signal(signed(18), reset_less=True), Signal(signed(18), reset_less=True)
        with m.If(word[62] & self.input.valid):
            m.d.sync += signed_a.eq(a)
        with m.If(word[63] & self.input.valid):
            m.d.sync += signed_b.eq(b)
        cleared = Signal(18, reset_less=True)
        with m.If(word[59] & self.input.valid):
            m.d.sync += cleared.eq(0)
        with m.Elif(self.input.valid):
            m.d.sync += cleared.eq(a)
        results = [
            a * b,
            a.as_signed() * b.as_signed(),
            held_a * held_b,
            signed_a * signed_b,
            cleared * held_b,
            held_b,
            a + b,
            a.as_signed() < b.as_signed(),
            word[:32].bit_select(word[52:57], 1),
        ]
        results += [C(0x9E3779B97F4A7C15, 64).bit_select(word[52:58], 1), counted, out.data]
        held = Signal(sum(len(result) for result in results), reset_less=True)
        m.d.sync += [held.eq(Cat(results)), self.output.valid.eq(self.input.valid)]
        rams = []
        for width, depth in MEMORIES:
            init = [(i * 2654435761 >> 3) & (1 << width) - 1 for i in range(depth)]
            memory = Memory(shape=width, depth=depth, init=init, attrs={"ram_style": "block", "no_rw_check": 1})
            m.submodules[f"deep{width}"] = memory
            store, fetch, data = memory.write_port(), memory.read_port(domain="comb"), Signal(width, reset_less=True)
            bits = depth.bit_length() - 1
            # 64 places all over the memory; never the one that is being written.
            address = Cat(place[:4], place[4:6].replicate(7))[: bits - 2]
            address = Cat(address, place[6:8])
            m.d.comb += [store.addr.eq(address), store.data.eq(Cat(a, b)), store.en.eq(write), fetch.addr.eq(Cat(~address[0], address[1:]))]
            with m.If(self.input.valid):
                m.d.sync += data.eq(fetch.data)
            rams.append(data)
        m.d.comb += self.output.payload.eq(Cat(held, *rams))
        return m


def netlist(component: Any) -> dict[str, Any]:
    """Flat netlist of a component for the ECP5 of the board ulx3s-85f."""
    return flat_module(map_netlist(emit_rtlil(component, "top"), "ecp5", clock_hz=50e6))


def modules_of(netlists: dict[str, dict[str, Any]]) -> str:
    kinds = {cell["type"] for one in netlists.values() for cell in one["cells"].values()}
    return gates.cell_models(kinds) + "".join(gates.gate_level(one, name) for name, one in netlists.items())


def test_models_of_cells_equal_the_rtl_that_they_came_from(rng: np.random.Generator) -> None:
    mapped = netlist(Zoo())
    kinds = {cell["type"] for cell in mapped["cells"].values()}
    assert kinds == {path.stem for path in gates.CELLS.glob("*.v")} - {"EHXPLLL"}, "every model is here, and nothing else"
    assert sum(cell["type"] == "DP16KD" for cell in mapped["cells"].values()) == len(MEMORIES)
    multipliers = [cell for cell in mapped["cells"].values() if cell["type"] == "MULT18X18D"]
    assert [cell["parameters"].get("REG_INPUTA_CLK") for cell in multipliers].count("CLK0") == 2 and len(multipliers) == 5
    bench = Bench("cells", modules=modules_of({"zoo_gates": mapped}))
    bench.add("rtl", Zoo())
    bench.add("gates", gates.Gates(Zoo(), "zoo_gates"))
    bench.build()
    words = rng.integers(0, 1 << 32, (3000, 2), dtype=np.uint32)
    stimuli = {name: {"input": Stimulus(words, np.cumsum(rng.integers(0, 3, len(words))))} for name in ("rtl", "gates")}
    beats = {name: {"output": len(words)} for name in ("rtl", "gates")}
    found = bench.run(stimuli=stimuli, beats=beats, max_cycles=20_000)
    expected = found["rtl"]["output"].payloads
    np.testing.assert_array_equal(found["gates"]["output"].payloads, expected)
    bits = np.unpackbits(expected.view(np.uint8), axis=1, bitorder="little")[:, :OUTPUT_BITS]
    assert bits.mean(0).min() > 0 and bits.mean(0).max() < 1, "every bit takes both values"


def test_a_block_of_gates_equals_golden_values_and_cycles(seed: int) -> None:
    config = TlmmConfig(group=3, tables=2, columns=2, lanes=2, vector_lanes=2, half_tables=True, max_tokens=3, max_k=24, max_tile_columns=24, allow_stalls=True)
    made = Bench("gates", modules=modules_of({"tlmm_gates": netlist(Tlmm(config=config))}))
    made.add("c0", gates.Gates(Tlmm(config=config), "tlmm_gates"))
    made.build()
    assert benches.check(made, {"c0": config}, seed) > 100


def test_a_board_of_gates_does_what_its_rtl_does(rng: np.random.Generator) -> None:
    """All of a board's bitstream through its pins, clock by clock: PLL, reset, button and a block."""
    spec, program = CoreSpec(config=CONFIG, shape=SHAPE), compile_model(TernaryModel.random(SHAPE, 1), CONFIG)
    board = load_board("ulx3s-85f")
    top = BoardTop(BlockPins(Tlmm(config=spec.tlmm)), pins=list(board.pins), inverted=frozenset({"reset"}))
    rtl = from_rtlil(share_modules(emit_rtlil(top, "board"))) + gates.board_main(inverted=True)
    programs = {
        "rtl": simulator.build_program(rtl, lambda: rtl, serial.MAIN),
        "gates": serial.build_gates(fpga.synthesis(spec, program, "ulx3s-85f", block="tlmm").module, inverted_reset=True),
    }
    sent = [rng.bytes(40) for _ in range(90)]
    found = {}
    for name, built in programs.items():
        with closing(serial.SimulatedPort(spec, program, design=(built, serial.serial_line(spec)))) as port:
            came = []
            for i, data in enumerate(sent):
                port.write(data)
                port.send_break(60)  # the block's outputs are shifted out while the line is low
                while byte := port.read(50 * port.byte_s):
                    came.append((port.clock, byte))
                if i % 30 == 29:
                    port.press_reset()
            found[name] = came
    assert found["gates"] == found["rtl"]
    assert len(found["rtl"]) > 80 and len({byte for _, byte in found["rtl"]}) > 12


@pytest.mark.soak
def test_a_whole_core_of_gates_writes_the_golden_tokens() -> None:
    spec, program = CoreSpec(config=CONFIG, shape=SHAPE), compile_model(TernaryModel.random(SHAPE, 1), CONFIG)
    board, prompts = load_board("ulx3s-85f"), ([3, 1, 4], [26, 0, 13], [17, 3])
    built = serial.build_gates(fpga.synthesis(spec, program, board.name).module, inverted_reset=True)
    golden = [[done.token for done in Executor(spec, program).generate(prompt, 3) if done.token is not None] for prompt in prompts]
    notices: list[str] = []
    found = []
    with closing(serial.SimulatedPort(spec, program, design=(built, UartConfig(clock_hz=spec.config.clock_hz, baud=board.baud)))) as port:
        device = Device(port, notices.append)
        device.connect(config_hash=spec.hash)
        notices.clear()  # the first request may come while the board still waits for its clock
        for prompt in prompts:
            found.append(list(Conversation(device).say(prompt, 3)))
            device.connect()
    assert found == golden and not notices
    assert len({tuple(tokens) for tokens in golden}) == len(prompts)


def test_a_cell_without_a_model() -> None:
    with pytest.raises(ToolError, match=r"no model for cells DCUA; there are CCU2C, DP16KD, EHXPLLL, "):
        gates.cell_models({"LUT4", "DCUA"})
