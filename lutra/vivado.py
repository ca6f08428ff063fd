# SPDX-License-Identifier: Apache-2.0
"""``lutra fpga`` for boards whose tools are the vendor's: a compiled run as a Vivado project."""

from collections.abc import Callable
from pathlib import Path

from pydantic import Field

from lutra import engine
from lutra.cosim.simulator import kept_texts
from lutra.exploration.fit import counter, fit_of, refusal
from lutra.fpga_flows.boards import Board
from lutra.fpga_flows.devices import load_device
from lutra.fpga_flows.families import FAMILIES
from lutra.fpga_flows.vivado import interfaces, project
from lutra.fpga_flows.vivado.interfaces import IpTop
from lutra.fpga_flows.vivado.project import Facts, check_ports, project_files, top_of, without_primitives
from lutra.hls_models.config import Config
from lutra.hls_models.errors import ConfigError
from lutra.hls_models.ternary.core import CoreSpec
from lutra.hls_models.ternary.program import Program
from lutra.rtl.verilog import emit_rtlil, from_rtlil, share_modules, spare

__all__ = ["ProjectReport", "build", "table"]

CORE = "core"
CONTEXT = 256
"""Context for which the tokens per second are given."""
MMCM_HZ = (6.25e6, 725e6)
"""Output of an MMCM at 0.72 V, speed grade -2 (AMD DS925, MMCM specification)."""
REPORT = "report.json"


class ProjectReport(Config):
    """What a Vivado project holds, and what its core takes of the board by the fitted model."""

    board: str
    block: str = CORE
    part: str
    clock_hz: float
    used: dict[str, float] = Field(description="by the fitted resource model, by kind")
    available: dict[str, float]
    tokens_per_second: dict[str, float] = Field(description="decode at a context, by the cycle model and the clock")
    memory_bytes: int = Field(description="of the image, keys and values included")
    ports: dict[str, str] = Field(description="ports of the processor's memory by the core's interfaces")
    files: list[str] = Field(description="beside this report")


def build(
    spec: CoreSpec, program: Program, board: Board, folder: Path, *, clock_hz: float | None = None, on_step: Callable[[str], None] = lambda name: None
) -> ProjectReport:
    """Writes the project and report.json to ``folder``; no tool is started.

    Raises
    ------
    ConfigError : the core does not fit the board, with the numbers, before anything is written
    """
    clock = spec.config.clock_hz if clock_hz is None else clock_hz
    if not MMCM_HZ[0] <= clock <= MMCM_HZ[1]:
        raise ConfigError(f"clock of {clock:g} Hz must be one that the board's MMCM makes, {MMCM_HZ[0] / 1e6:g} to {MMCM_HZ[1] / 1e6:g} MHz")
    assert board.vivado is not None  # a board's own rule
    check_ports(board, spec)
    device = load_device(board.device or board.name)
    count = counter(device)
    fit = fit_of(spec, device, count)
    if fit.excess:
        raise ConfigError(refusal(spec, device, fit, count))
    resources: dict[str, tuple[float, float]] = {kind: (float(fit.used[kind]), total) for kind, total in device.totals.items() if kind in fit.used}
    on_step("cycle model")
    context = min(CONTEXT, spec.shape.context)
    timing = engine.timing(spec, program, prompt=1, contexts=[context])
    speed = {str(context): clock / float(timing.end[-1] - timing.end[-2])}
    on_step("RTL")
    top, verilog = _verilog(spec, FAMILIES[board.family].primitives)
    on_step("project")
    files = project_files(spec, board, Facts(program.beats, resources, speed), clock_hz=clock, top=top, verilog=verilog)
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
    report = ProjectReport(
        board=board.name,
        part=board.vivado.part,
        clock_hz=clock,
        used={kind: used for kind, (used, _) in resources.items()},
        available={kind: total for kind, (_, total) in resources.items()},
        tokens_per_second=speed,
        memory_bytes=program.beats * program.beat_bytes,
        ports={one.name: f"S_AXI_{port.name}_FPD" for one, port in zip(top.memories, board.vivado.memory_ports, strict=False)},
        files=sorted(files),
    )
    (folder / REPORT).write_text(report.model_dump_json(indent=1) + "\n", encoding="utf-8")
    return report


def _verilog(spec: CoreSpec, primitives: frozenset[str]) -> tuple[IpTop, str]:
    """The top as IP, and its Verilog, from the cache where it is there."""
    top, about = top_of(spec)

    def make() -> dict[str, str]:
        return {"verilog": from_rtlil(share_modules(emit_rtlil(top, about.name, ports=top.ports)))}

    verilog = kept_texts(["vivado", about.name, spec.model_dump(mode="json")], make, __file__, interfaces.__file__, project.__file__)["verilog"]
    spare(top)
    return about, without_primitives(verilog, primitives)


def table(report: ProjectReport) -> str:
    """A report as lines for a terminal."""
    lines = [f"{report.block} on {report.board} ({report.part}), clock {report.clock_hz / 1e6:g} MHz, Vivado project", ""]
    lines += [
        f"{kind:8s}{used:>10,.0f} of {report.available[kind]:>10,.0f}  {100 * used / report.available[kind]:5.1f} %" for kind, used in report.used.items()
    ]
    lines.append("by the fitted resource model; the clock is a claim until Vivado has routed it")
    lines += [f"tokens/s at context {context}: {value:,.1f}" for context, value in report.tokens_per_second.items()]
    lines.append(f"memory: {report.memory_bytes / 1e6:,.1f} MB, " + ", ".join(f"{own} → {port}" for own, port in report.ports.items()))
    return "\n".join([*lines, "", *report.files])
