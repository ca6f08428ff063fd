# SPDX-License-Identifier: Apache-2.0
"""The stored result of the full sweeps: a selection that ran later is put into it."""

import json
from pathlib import Path
from typing import Any

import pytest
import soak


def result(day: str, outcomes: dict[str, str]) -> dict[str, Any]:
    about = {"date": day, "commit": f"of {day}", "machine": {"cores": 2}, "versions": {"lutra": "0.1.0"}}
    return {**about, "exit_code": int("failure" in outcomes.values()), "tests": [{"test": name, "outcome": outcome} for name, outcome in outcomes.items()]}


@pytest.mark.parametrize(
    ("arguments", "some"), [([], False), (["-n", "2"], False), (["-k", "shared"], True), (["tests/test_axi.py"], True), (["tests/test_axi.py::test_x"], True)]
)
def test_what_a_selection_is(arguments: list[str], some: bool) -> None:
    assert soak.selects(arguments) is some


def test_a_selection_goes_into_the_whole_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(soak, "RESULTS", tmp_path)
    path = tmp_path / "soak-2026-11-24.json"
    assert soak.keep(result("2026-11-24", {"a": "passed", "b": "failure"}), "whole\n", selection=False) == "docs/results/soak-2026-11-24.txt and .json"
    whole = json.loads(path.read_text())
    soak.keep(result("2026-11-30", {"b": "passed", "c": "passed"}), "some\n", selection=True)
    found = json.loads(path.read_text())
    assert [file.name for file in sorted(tmp_path.iterdir())] == ["soak-2026-11-24.json", "soak-2026-11-24.txt"]
    assert found["date"] == "2026-11-24" and found["exit_code"] == 0 and whole["exit_code"] == 1
    assert found["tests"] == [
        {"test": "a", "outcome": "passed"},
        *({"test": name, "outcome": "passed", "date": "2026-11-30", "commit": "of 2026-11-30"} for name in "bc"),
    ]
    assert path.with_suffix(".txt").read_text() == "whole\nsome\n"
    soak.keep(result("2026-12-01", {"c": "failure"}), "", selection=True)
    assert json.loads(path.read_text())["exit_code"] == 1
    assert soak.keep(result("2026-12-02", {}), "", selection=True).startswith("nothing") and json.loads(path.read_text())["tests"][-1]["date"] == "2026-12-01"
    soak.keep(result("2026-12-03", {"a": "passed"}), "", selection=False)
    assert len(list(tmp_path.glob("*.json"))) == 2
