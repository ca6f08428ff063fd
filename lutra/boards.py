# SPDX-License-Identifier: Apache-2.0
"""A run on a board: its bitstream, and a conversation with it over a serial line."""

from collections.abc import Callable, Iterable
from contextlib import ExitStack
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING

from lutra.hls_models.errors import ConfigError
from lutra.inputs import TOKENIZER, OnText, check_on_chip, compiled, tokenizer
from lutra.progress import step
from lutra.runs import open_run, update_run

if TYPE_CHECKING:  # heavy at start-up: the functions import what they need
    from lutra.fpga import FpgaReport
    from lutra.talk import Turn
    from lutra.vivado import ProjectReport

__all__ = ["fpga", "talk"]


def fpga(
    run: str | Path, board: str | Path = "ulx3s-85f", *, block: str = "core", seeds: int = 1, clock_hz: float | None = None
) -> "FpgaReport | ProjectReport":
    """A compiled run as a bitstream for a board, or as a Vivado project where the board's tools are the vendor's (the whole core, no seeds): bitstream and
    logs, or project, and report.json go to ``fpga/BOARD-BLOCK`` in the run.

    Parameters
    ----------
    block, seeds, clock_hz : as for ``lutra.fpga.build``
    """
    from lutra import fpga as boards
    from lutra import vivado
    from lutra.fpga_flows.boards import load_board

    if seeds < 1:
        raise ConfigError(f"seeds must be at least 1, not {seeds}")
    opened = open_run(run)
    spec, program = compiled(opened)
    target = load_board(board)
    name = f"{target.name}-{block}"
    if target.vivado and (block != vivado.CORE or seeds > 1):
        given = f"block {block}" if block != vivado.CORE else f"{seeds} seeds"
        raise ConfigError(f"board {target.name} must be given the whole core and no seeds, which Vivado has none of, not {given}")
    failed = None
    with update_run(opened, command=f"fpga {name}") as draft, ExitStack() as bars:
        draft.replaced.add(f"fpga/{name}")

        def on_step(title: str) -> None:
            bars.pop_all().close()
            bars.enter_context(step(title))

        try:
            if target.vivado:
                return vivado.build(spec, program, target, draft.path / "fpga" / name, clock_hz=clock_hz, on_step=on_step)
            found = boards.build(spec, program, board, draft.path / "fpga" / name, block=block, seeds=seeds, clock_hz=clock_hz, on_step=on_step)
        except boards.TooSlowError as error:  # the report and the logs stay, to see why
            failed = error
    if failed is not None:
        raise failed
    return found


def talk(
    port: str,
    prompts: Iterable[str],
    *,
    run: str | Path | None = None,
    tokens: int = 64,
    baud: float | None = None,
    on_text: OnText | None = None,
    on_notice: Callable[[str], None] | None = None,
    patient: bool = False,
) -> "list[Turn]":
    """A conversation with a core at the other end of a serial line.

    Parameters
    ----------
    port : a serial port of this machine, or ``sim:RUN``: the run's core simulated with its UART, bit by bit
    run : the compiled run that the board's bitstream was made from
    baud : of a port of this machine (default: that of the boards' bitstreams)
    others : as for ``lutra.talk.talk``

    Raises
    ------
    ConfigError : a port without a run, or a simulated one with a run or a baud rate of its own
    """
    from lutra import talk as talking

    simulated = port.startswith(talking.SIMULATED)
    if simulated and (run is not None or baud is not None):
        raise ConfigError(f"port {port} must be given no {'run' if run is not None else 'baud rate'}: it is the simulation of its run's core and line")
    folder = port.removeprefix(talking.SIMULATED) if simulated else run
    if folder is None:
        raise ConfigError(f"port {port} must be given a run with --run: the one whose bitstream the board holds; or talk to a simulation: --port sim:RUN")
    if baud is not None and not (isfinite(baud) and baud >= 1):
        raise ConfigError(f"baud must be at least 1, not {baud:g}; that of the boards' bitstreams: {talking.BAUD:,}")
    opened = open_run(folder)
    spec, program = compiled(opened)
    check_on_chip(spec, "a serial line")
    words = tokenizer(opened.path / TOKENIZER, spec.shape.vocabulary)
    line = talking.open_port(port, spec, program, talking.BAUD if baud is None else baud)
    return talking.talk(line, spec, words, prompts, tokens=tokens, on_text=on_text, on_notice=on_notice, patient=patient)
