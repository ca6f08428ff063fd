# SPDX-License-Identifier: Apache-2.0
"""Benches without cocotb: the same top, players, recorders and files under a plain C++ main (``verilog/lutra_main.cpp``), for runs of millions of cycles.

Cycles, recordings and faults are those of the run under cocotb; what is missing is Python inside the simulator, and waves.
"""

import os
import subprocess
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from lutra.hls_models.errors import ToolError

__all__ = ["MAIN", "OPTIMIZATION", "compile_bench", "play"]

MAIN = Path(__file__).parent / "verilog" / "lutra_main.cpp"
OPTIMIZATION = "-O1"  # a core of 5,760 MACs per clock: 75 s of compiling; -O3 -march=native takes 170 and makes it a tenth faster
PREFIX = "Vtop"
TAIL = 20  # lines of the log in an error


def compile_bench(
    verilator: Path,
    top: str,
    sources: Sequence[Path],
    arguments: Sequence[str],
    objects: Path,
    *,
    environment: Mapping[str, str],
    kept: Sequence[Path],
    log: Path,
) -> None:
    """Verilates and compiles ``sources`` (Verilog, C++ and control files) with ``lutra_main.cpp`` into ``objects / top``.

    Parameters
    ----------
    arguments : of Verilator
    environment : of it and of make
    kept : objects of Verilator's run time, which are then not compiled

    Raises
    ------
    RuntimeError
        Verilator or the compiler failed; the log says why.
    """
    files = [str(path) for path in (*sources, MAIN)]
    verilate = [str(verilator), "--cc", "--exe", "-Mdir", str(objects), "--top-module", top, "--prefix", PREFIX, "-o", top, *arguments, *files]
    make = ["make", "-j", str(os.cpu_count() or 1), "-C", str(objects), "-f", f"{PREFIX}.mk"]
    # As the kept ones are younger than the makefile, make leaves them alone.
    commands = [verilate, *([["cp", *map(str, kept), str(objects)]] if kept else []), make]
    with log.open("w") as file:
        for command in commands:
            file.write(f"{' '.join(command)}\n")
            file.flush()
            done = subprocess.run(command, env=environment, stdout=file, stderr=subprocess.STDOUT, check=False)
            if done.returncode:
                raise RuntimeError(f"{Path(command[0]).name} ended with {done.returncode}")


def play(program: Path, folder: Path, *, plusargs: Sequence[str] = (), on_cycle: Callable[[int, float], None] | None = None) -> None:
    """Runs ``program`` in ``folder`` until its top says stop; its words go to ``run.log`` there.

    Parameters
    ----------
    on_cycle : called with the cycles and the seconds so far about every +progress seconds, and at the end

    Raises
    ------
    ToolError
        The simulator crashed: the last lines of its log.
    """
    tail: deque[str] = deque(maxlen=TAIL)
    with (
        (folder / "run.log").open("w") as log,
        subprocess.Popen([str(program), *plusargs], cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace") as process,
    ):
        try:
            assert process.stdout is not None
            for line in process.stdout:
                log.write(line)
                tail.append(line.rstrip())
                fields = line.split()
                if on_cycle and len(fields) == 2 and fields[0].isdecimal():
                    on_cycle(int(fields[0]), float(fields[1]))
        except BaseException:
            process.kill()
            raise
    if process.returncode:
        raise ToolError(f"the simulation failed (it ended with {process.returncode})\n" + "\n".join(tail))
