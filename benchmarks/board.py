# SPDX-License-Identifier: Apache-2.0
"""The whole core of the shipped model on a ULX3S: placements with several seeds, what they take and reach, and a token of its netlist at gate level."""

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lutra import api, fpga
from lutra.cosim.serial import SimulatedPort, build_gates
from lutra.fpga_flows.boards import load_board
from lutra.hls_models.errors import MismatchError
from lutra.hls_models.ternary.executor import Executor
from lutra.hls_models.uart import UartConfig
from lutra.inputs import TOKENIZER, compiled, tokenizer
from lutra.runs import open_run
from lutra.talk import talk

__all__ = ["gate_level_tokens", "measure"]

BOARD = "ulx3s-85f"
CONFIG = "tiny-ulx3s"
SEEDS = 5
PROMPT, TOKENS = "R", 2


def gate_level_tokens(run: Path, on_step: Callable[[str], None] = print) -> dict[str, Any]:
    """Tokens of a run's netlist after synthesis, through its UART pins at the board's baud rate, beside the golden model's and those of the RTL.

    Raises
    ------
    MismatchError : they differ
    """
    opened = open_run(run)
    spec, program = compiled(opened)
    words = tokenizer(opened.path / TOKENIZER, spec.shape.vocabulary)
    board = load_board(BOARD)
    netlist = fpga.synthesis(spec, program, BOARD).module
    on_step("building the gates")
    begun = time.perf_counter()
    gates = build_gates(netlist, inverted_reset=board.pins["reset"].inverted)
    built = time.perf_counter()
    line = UartConfig(clock_hz=spec.config.clock_hz, baud=board.baud)
    ports = {"gates": SimulatedPort(spec, program, design=(gates, line)), "rtl": SimulatedPort(spec, program)}
    turns = {name: talk(port, spec, words, [PROMPT], tokens=TOKENS)[0] for name, port in ports.items()}
    golden = [done.token for done in Executor(spec, program).generate(words.encode(PROMPT), TOKENS) if done.token is not None]
    for name, turn in turns.items():
        if turn.tokens != golden or turn.notices:
            raise MismatchError(f"tokens of {name} must be the golden {golden}, not {turn.tokens} {turn.notices}")
    return {
        "cells": len(netlist["cells"]),
        "prompt": PROMPT,
        "tokens": turns["gates"].tokens,
        "golden": golden,
        "clocks": ports["gates"].clock,
        "build_s": round(built - begun, 1),
        "run_s": round(time.perf_counter() - built, 1),
    }


def measure() -> dict[str, Any]:
    """Seeds are placed side by side, an hour and more in all; each is kept, so that a second call goes on where the first one stopped."""
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        api.compile_model("tiny-shakespeare", CONFIG, run)
        try:
            report = api.fpga(run, BOARD, seeds=SEEDS)
        except fpga.TooSlowError:
            report = fpga.FpgaReport.model_validate_json((run / "fpga" / f"{BOARD}-core" / "report.json").read_bytes())
        return {"config": CONFIG, **report.model_dump(mode="json"), "gate_level": gate_level_tokens(run)}
