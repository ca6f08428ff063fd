# SPDX-License-Identifier: Apache-2.0
"""Run folders appear whole or not at all, and say what they were made of."""

import json
from pathlib import Path

import pytest
from test_report import made

from lutra.hls_models.config import Config
from lutra.hls_models.errors import LutraError
from lutra.runs import MANIFEST, Run, config_hash, create_run, open_run, update_run

pytestmark = pytest.mark.smoke


class Sizes(Config):
    name: str = "tiny"
    tables: int = 6


def compiled(out: Path, text: str = "module top; endmodule\n") -> Run:
    with create_run(out, command="compile", config=Sizes()) as draft:
        (draft.path / "rtl").mkdir()
        (draft.path / "rtl" / "top.v").write_text(text)
        draft.seeds["master"] = 1
        draft.inputs["model"] = {"name": "tiny-shakespeare", "sha256": "0" * 64}
    return open_run(out)


def test_create(tmp_path: Path) -> None:
    run = compiled(tmp_path / "a" / "run")
    assert run.manifest.config == {"name": "tiny", "hash": config_hash(Sizes()), "values": {"name": "tiny", "tables": 6}}
    assert list(run.manifest.files) == ["rtl/top.v"] and run.manifest.seeds == {"master": 1} and run.manifest.commands == ["compile"]
    assert {"python", "lutra", "numpy"} <= set(run.manifest.versions) and run.manifest.times["compile"].seconds >= 0
    assert run.report is None and [path.name for path in run.path.parent.iterdir()] == ["run"]


def test_equal_inputs_equal_bytes(tmp_path: Path) -> None:
    facts = []
    for name in ("one", "two"):
        run = compiled(tmp_path / name)
        with update_run(run, command="cosim") as draft:
            draft.write_report(made())
        manifest = json.loads((run.path / MANIFEST).read_text())
        manifest.pop("times")
        facts.append((manifest, (run.path / "report.json").read_bytes()))
    assert facts[0] == facts[1] and str(tmp_path) not in json.dumps(facts[0][0])


@pytest.mark.parametrize("fault", [KeyboardInterrupt, ValueError, LutraError])
def test_nothing_is_left_behind(tmp_path: Path, fault: type[BaseException]) -> None:
    with pytest.raises(fault), create_run(tmp_path / "deep" / "er" / "run", command="compile", config=Sizes()) as draft:
        (draft.path / "half").write_text("half")
        raise fault
    assert list(tmp_path.iterdir()) == []


def test_an_earlier_run_survives_a_failure(tmp_path: Path) -> None:
    run = compiled(tmp_path / "run")
    before = (run.path / MANIFEST).read_bytes()
    with pytest.raises(ValueError), create_run(run.path, command="compile", config=Sizes()):
        raise ValueError
    with pytest.raises(ValueError), update_run(run, command="cosim") as draft:
        (draft.path / "report.json").write_text("half")
        raise ValueError
    assert (run.path / MANIFEST).read_bytes() == before and sorted(path.name for path in run.path.iterdir()) == [MANIFEST, "rtl"]
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_an_earlier_run_is_replaced(tmp_path: Path) -> None:
    run = compiled(tmp_path / "run")
    (run.path / "old").write_text("old")
    again = compiled(tmp_path / "run", "module other; endmodule\n")
    assert not (again.path / "old").exists() and again.manifest.files != run.manifest.files
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_update(tmp_path: Path) -> None:
    run = compiled(tmp_path / "run")
    with update_run(run, command="cosim") as draft:
        draft.write_report(made())
        (draft.path / "logs").mkdir()
        (draft.path / "logs" / "simulation.txt").write_text("passed\n")
        draft.seeds["prompt"] = 2
    new = open_run(run.path)
    assert sorted(new.manifest.files) == ["logs/simulation.txt", "report.json", "rtl/top.v"] and new.report == made()
    assert new.manifest.commands == ["compile", "cosim"] and new.manifest.seeds == {"master": 1, "prompt": 2}
    assert set(new.manifest.times) == {"compile", "cosim"} and [path.name for path in tmp_path.iterdir()] == ["run"]


def test_foreign_folders_are_refused(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("all of it")
    (tmp_path / "file").write_text("")
    (tmp_path / "empty").mkdir()
    for name, message in (("mine", "exists and is not a run folder"), ("file", "exists and is not a folder")):
        with pytest.raises(LutraError, match=message):
            compiled(tmp_path / name)
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "all of it"
    assert compiled(tmp_path / "empty").manifest.files
    with pytest.raises(LutraError, match="cannot be written"):
        compiled(tmp_path / "file" / "run")


def test_open_refuses(tmp_path: Path) -> None:
    with pytest.raises(LutraError, match="no such run folder"):
        open_run(tmp_path / "none")
    with pytest.raises(LutraError, match=r"is not a run folder: it has no manifest\.json"):
        open_run(tmp_path)
    run = compiled(tmp_path / "run")
    (run.path / "rtl" / "top.v").write_text("module top; endmodule // mended\n")
    with pytest.raises(LutraError, match=r"top\.v: content differs from manifest\.json"):
        open_run(run.path)
    assert open_run(run.path, verify=False).manifest == run.manifest
    (run.path / "rtl" / "top.v").unlink()
    with pytest.raises(LutraError, match=r"top\.v: is named in manifest\.json and missing"):
        open_run(run.path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema": "lutra-run/7"}, "is not a lutra-run/1 manifest: schema"),
        ({"files": {"../../elsewhere": "0"}}, "must lie inside the run folder"),
        ({"colour": "red"}, "colour: Extra inputs"),
    ],
)
def test_manifests_that_are_none(tmp_path: Path, change: dict[str, object], message: str) -> None:
    run = compiled(tmp_path / "run")
    path = run.path / MANIFEST
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(LutraError, match=message) as caught:
        open_run(run.path)
    assert "\n" not in str(caught.value)
    path.write_text("{")
    with pytest.raises(LutraError, match="is not a lutra-run/1 manifest"):
        open_run(run.path)
