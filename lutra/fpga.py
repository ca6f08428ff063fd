# SPDX-License-Identifier: Apache-2.0
"""``lutra fpga``: a compiled run, or one block of its core, as a bitstream for a board, with what it takes there and how fast it runs."""

import os
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from statistics import median
from typing import Any

from pydantic import Field, ValidationError

from lutra import engine
from lutra.cosim.core import hex_image
from lutra.cosim.simulator import kept_texts
from lutra.fpga_flows.boards import Board, load_board
from lutra.fpga_flows.flow import Design, Flow, Placement, Synthesis, check_family, check_fits, constraints
from lutra.fpga_flows.least import least
from lutra.hls_models.config import Config
from lutra.hls_models.errors import ConfigError, ToolError
from lutra.hls_models.load import nearest, rule_of
from lutra.hls_models.pll import PllSettings, pll_settings
from lutra.hls_models.ternary.core import CoreSpec
from lutra.hls_models.ternary.ecp5 import block_predictions, board_resources, stored
from lutra.hls_models.ternary.program import Program
from lutra.hls_models.uart import UartConfig
from lutra.inputs import check_on_chip
from lutra.rtl.board.top import BlockPins, BoardTop
from lutra.rtl.link.system import LinkedSystem, SerialLink
from lutra.rtl.ternary.system import OnChipSystem
from lutra.rtl.verilog import emit_rtlil

__all__ = ["BLOCKS", "FpgaReport", "SeedFigures", "TooSlowError", "build", "synthesis", "table"]

CORE = "core"
LINK = "link"
BLOCKS = (CORE, *(name for name in engine.BLOCKS if name != CORE), LINK)
MEMORY = "memory.hex"
CONTEXT = 256
"""Context for which the tokens per second are given."""
REPORT = "report.json"
BLOCKS_SHOWN = 12
"""On a terminal, the largest first; report.json has all."""
SURE = 0.85
"""Of the logic that the resource model predicts, what a core takes surely: several times the model's stated error below it."""
BLOCK_SURE = 0.5
"""The same of a block alone: of the smallest ones the model, fitted to whole cores, predicts up to 1.6 times what they take."""
MODELLED = {"tlmm": "linear"}
"""Blocks that the resource model calls otherwise."""


class TooSlowError(ToolError):
    """No placement reaches the clock; the report is written."""


class SeedFigures(Config):
    """One placement."""

    seed: int
    fmax_hz: float
    path_from: str = Field(description="cell in which the slowest path begins")
    path_to: str
    path_block: str = Field(description="module that holds both ends")
    logic_ns: float
    routing_ns: float


class FpgaReport(Config):
    """What a design takes of a board and how fast it runs there."""

    board: str
    block: str
    clock_hz: float
    used: dict[str, float] = Field(description="counted after synthesis, by kind; lut: places of look-up tables")
    predicted: dict[str, float] = Field({}, description="before synthesis, by the fitted model; multiplier blocks, by the RTL and what there are")
    predicted_error: dict[str, float] = Field({}, description="of that model over a core that took no part in its fit, as shares")
    available: dict[str, float]
    blocks: dict[str, dict[str, float]] = Field(description="of modules, those below them included")
    placed: dict[str, tuple[int, int]] = Field(description="used and available by nextpnr's kinds, of the fastest placement")
    seeds: list[SeedFigures]
    fmax_median_hz: float
    tokens_per_second: dict[str, float] = Field({}, description="decode at a context, by the cycle model and the clock")
    bitstream: str | None = Field(description="file beside this report; none where no placement reaches the clock")


@dataclass(frozen=True)
class _Target:
    board: Board
    block: str
    clock_hz: float
    pll: PllSettings | None
    uart: UartConfig

    @property
    def name(self) -> str:
        return f"{self.board.name}-{self.block}"


def _target(spec: CoreSpec, board: str | Path, block: str, clock_hz: float | None) -> _Target:
    found = load_board(board)
    check_family(found)
    if block not in BLOCKS:
        near = nearest(block, BLOCKS)
        raise ConfigError(f"block must be one of {', '.join(BLOCKS)}, not {block!r}" + (f"; nearest: {near}" if near else ""))
    if block == CORE:
        check_on_chip(spec, f"board {found.name}")
    pll = None
    if found.family == "ecp5":
        pll = pll_settings(found.clock_hz, spec.config.clock_hz if clock_hz is None else clock_hz)
    elif clock_hz not in (None, found.clock_hz):
        raise ConfigError(f"board {found.name} has no PLL: its clock must be that of its oscillator, {found.clock_hz:g} Hz, not {clock_hz:g}")
    clock = pll.output_hz if pll else found.clock_hz
    try:
        return _Target(found, block, clock, pll, UartConfig(clock_hz=clock, baud=found.baud))
    except ValidationError as error:
        raise ConfigError(f"board {found.name} at {clock:g} Hz: {rule_of(error)}") from None


def _top(target: _Target, spec: CoreSpec, beats: int) -> BoardTop:
    system: Any
    if target.block == CORE:
        system = LinkedSystem(OnChipSystem(spec, beats=beats, file=MEMORY), target.uart)
    elif target.block == LINK:
        system = BlockPins(SerialLink(target.uart, context=spec.shape.context, vocabulary=spec.shape.vocabulary))
    else:
        module, name = engine.BLOCKS[target.block]
        system = BlockPins(getattr(import_module(f"lutra.rtl.ternary.{module}"), name)(config=getattr(spec, target.block)))
    pins = target.board.pins
    return BoardTop(system, pins=list(pins), inverted=frozenset(role for role, pin in pins.items() if pin.inverted), pll=target.pll)


def _design(target: _Target, spec: CoreSpec, program: Program) -> Design:
    """The board's top, from the cache where it is there."""
    description = ["fpga", target.block, target.board.model_dump(mode="json"), target.clock_hz, program.beats, spec.model_dump(mode="json")]
    text = kept_texts(description, lambda: {"rtlil": emit_rtlil(_top(target, spec, program.beats), "top")}, __file__)["rtlil"]
    return Design(text, target.clock_hz, {MEMORY: hex_image(program)} if target.block == CORE else {})


def build(
    spec: CoreSpec,
    program: Program,
    board: str | Path,
    folder: Path,
    *,
    block: str = CORE,
    seeds: int = 1,
    clock_hz: float | None = None,
    on_step: Callable[[str], None] = lambda name: None,
) -> FpgaReport:
    """Synthesises, places, routes and packs; bitstream, logs and report.json go to ``folder``.

    Parameters
    ----------
    block : one of ``BLOCKS``: the whole core with its memories and the serial link, or a part behind registers at two pins
    seeds : placements, side by side on the machine's cores, of which the fastest is packed
    clock_hz : of the core (default: the configuration's); a board without PLL runs at its oscillator's
    on_step : called with each step's name as it begins, and as placements end

    Raises
    ------
    ConfigError : the design does not fit the board, with the numbers
    ToolError : a tool stopped
    TooSlowError : no placement reaches the clock; the report is written first
    """
    target = _target(spec, board, block, clock_hz)
    what = f"{spec.config.name} for {spec.shape.name}" if block == CORE else f"block {block} of {spec.config.name}"
    predicted: dict[str, float] = {}
    if block == CORE:
        known = dict(least(spec, program.beats, target.board.family))
        check_fits(target.board, known, what, "its memories alone")
    elif modelled := block_predictions(spec, target.board.family).get(MODELLED.get(block, block)):
        source = f"{100 * BLOCK_SURE:.0f} % of what the resource model predicts"
        check_fits(target.board, {kind: BLOCK_SURE * count for kind, count in modelled.items()}, what, source)
    on_step("RTL")
    flow = Flow(target.board, _design(target, spec, program), what=what, on_step=on_step)
    if block == CORE:
        known["dsp"], spilled = flow.multipliers
        known["lut"] = known.get("lut", 0) + sum(spilled.values())
        check_fits(target.board, known, what, "its memories and multipliers alone")
        if target.board.family == "ecp5":
            predicted = board_resources(spec, program.beats) | {"dsp": known["dsp"]}
            predicted["lut"] += sum(spilled.values())
            surely = {kind: SURE * predicted[kind] for kind in ("lut", "ff")}
            check_fits(target.board, surely, what, f"{100 * SURE:.0f} % of what the resource model predicts")
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(flow.synthesis.folder / "yosys.log", folder / "synthesis.log")
    (folder / "pins.txt").write_text(constraints(target.board))
    flow.check()

    def place(seed: int) -> Placement:
        placement = flow.place(seed)
        shutil.copy(placement.folder / "place.log", folder / f"place-{seed}.log")
        return placement

    on_step(f"place and route, {seeds} seed{'s' if seeds > 1 else ''}")
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        placing = [pool.submit(place, seed) for seed in range(1, seeds + 1)]
        for done, _ in enumerate(as_completed(placing), 1):
            if done < seeds:
                on_step(f"place and route, {done} of {seeds} seeds done")
        placements = [one.result() for one in placing]
    best = max(placements, key=lambda one: one.fmax_hz)
    fast = best.fmax_hz >= target.clock_hz
    bitstream = None
    if fast:
        packed = flow.pack(best)
        bitstream = f"{target.name}{packed.suffix}"
        shutil.copy(packed, folder / bitstream)
    report = _report(target, flow, placements, best, bitstream, predicted, _speed(spec, program, target.clock_hz) if block == CORE else {})
    (folder / REPORT).write_text(report.model_dump_json(indent=1) + "\n", encoding="utf-8")
    if not fast:
        path, reached = best.path, best.fmax_hz / 1e6
        raise TooSlowError(
            f"{what} reaches {reached:.1f} MHz on {target.board.name} (best of {seeds}), not {target.clock_hz / 1e6:g}: the slowest path is in {path.block}"
            + (f"; --clock {int(reached)}e6 is one that it reaches" if target.pll else "; its board has no PLL for a slower clock")
        )
    return report


def synthesis(spec: CoreSpec, program: Program, board: str | Path, *, block: str = CORE, clock_hz: float | None = None) -> Synthesis:
    """The netlist for a board and what it takes there, from the cache where ``build`` has made it; whether it fits or not."""
    target = _target(spec, board, block, clock_hz)
    return Flow(target.board, _design(target, spec, program), what=spec.config.name).synthesis


def _speed(spec: CoreSpec, program: Program, clock_hz: float) -> dict[str, float]:
    context = min(CONTEXT, spec.shape.context)
    timing = engine.timing(spec, program, prompt=1, contexts=[context])
    return {str(context): clock_hz / float(timing.end[-1] - timing.end[-2])}


def _report(
    target: _Target,
    flow: Flow,
    placements: list[Placement],
    best: Placement,
    bitstream: str | None,
    predicted: dict[str, float],
    speed: dict[str, float],
) -> FpgaReport:
    seeds = [
        SeedFigures(
            seed=one.seed,
            fmax_hz=one.fmax_hz,
            path_from=one.path.start,
            path_to=one.path.end,
            path_block=one.path.block,
            logic_ns=one.path.logic_ns,
            routing_ns=one.path.routing_ns,
        )
        for one in placements
    ]
    return FpgaReport(
        board=target.board.name,
        block=target.block,
        clock_hz=target.clock_hz,
        used=flow.synthesis.used,
        predicted=predicted,
        predicted_error=stored()["errors"] if predicted else {},
        available=dict(target.board.available),
        blocks=flow.synthesis.blocks,
        placed=best.used,
        seeds=seeds,
        fmax_median_hz=median(one.fmax_hz for one in placements),
        tokens_per_second=speed,
        bitstream=bitstream,
    )


def table(report: FpgaReport) -> str:
    """A report as lines for a terminal."""
    lines = [f"{report.block} on {report.board}, clock {report.clock_hz / 1e6:g} MHz", "", f"{'after synthesis':16s}{'used':>8s}    {'of':>8s}"]
    for kind, count in report.used.items():
        of = f" of {report.available[kind]:>8,.0f}  {100 * count / report.available[kind]:5.1f} %" if kind in report.available else ""
        lines.append(f"{kind:16s}{count:>8,.0f}{of}" + (f", predicted {report.predicted[kind]:,.0f}" if kind in report.predicted else ""))
    lines += ["", f"{'placed':16s}{'used':>8s}    {'of':>8s}"]
    lines += [f"{kind:16s}{used:>8,} of {total:>8,}  {100 * used / total:5.1f} %" for kind, (used, total) in report.placed.items()]
    kinds = [kind for kind in report.available if kind in report.used]
    blocks = sorted(report.blocks.items(), key=lambda one: -one[1]["lut"])[:BLOCKS_SHOWN]
    wide = max([16, *(len(name) for name, _ in blocks)])
    lines += ["", f"{'block, all in it':{wide}s}" + "".join(f"{kind:>9s}" for kind in kinds)]
    lines += [f"{name:{wide}s}" + "".join(f"{used.get(kind, 0):>9,.0f}" for kind in kinds) for name, used in blocks]
    lines.append("")
    for one in report.seeds:
        lines.append(f"seed {one.seed:<3d} {one.fmax_hz / 1e6:7.2f} MHz  {one.logic_ns:.2f} ns logic, {one.routing_ns:.2f} ns routing in {one.path_block}")
    spread = [one.fmax_hz / 1e6 for one in report.seeds]
    lines.append(f"median   {report.fmax_median_hz / 1e6:7.2f} MHz, {min(spread):.2f} to {max(spread):.2f}")
    lines += [f"tokens/s at context {context}: {value:,.0f}" for context, value in report.tokens_per_second.items()]
    return "\n".join(lines)
