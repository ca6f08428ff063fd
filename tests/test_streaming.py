# SPDX-License-Identifier: Apache-2.0
"""Large checkpoints stream: memory does not grow with layers or vocabulary, progress goes to the end, a failure leaves nothing."""

import json
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import importing
from benchmarks.importing import write_checkpoint
from lutra import api, engine
from lutra.hls_models.errors import LutraError, ModelError
from lutra.hls_models.load import load_config
from lutra.hls_models.shape import ModelShape
from lutra.hls_models.ternary.config import CoreConfig
from lutra.hls_models.ternary.program import IMAGE, Program
from lutra.inputs import facts
from lutra.mapping import importer
from lutra.mapping.catalogue import open_model
from lutra.mapping.model import given
from lutra.mapping.tensor import Tensor
from lutra.runs import file_hash

QUARTER: dict[str, Any] = {
    **{"name": "quarter", "hidden": 640, "heads": 5, "kv_heads": 1, "head_dim": 128, "ffn": 1728, "context": 64, "activation": "relu2"},
    **{"rope_theta": 500000.0, "layers": 2, "vocabulary": 2048},
}
"""2B4T, a quarter as wide: 4.3 M ternary weights a layer, 0.87 MB of image."""

KV260 = load_config("kv260", CoreConfig).model_copy(update={"device": None})


def compiled(folder: Path, **sizes: int) -> tuple[int, int]:
    """(largest memory of arrays and objects, bytes of the image) of importing and compiling a checkpoint of random weights."""
    write_checkpoint(folder / "model", ModelShape(**QUARTER | sizes), 1)
    tracemalloc.start()
    try:
        program = engine.compile_program(open_model(str(folder / "model")), KV260, folder / "program")
        return tracemalloc.get_traced_memory()[1], program.beats * program.beat_bytes
    finally:
        tracemalloc.stop()


def test_memory_does_not_grow_with_the_model(tmp_path: Path) -> None:
    peaks, images = {}, {}
    for name, sizes in {"base": {}, "deep": {"layers": 24}, "wordy": {"vocabulary": 1 << 15}}.items():
        peaks[name], images[name] = compiled(tmp_path / name, **sizes)
    assert min(images["deep"], images["wordy"]) > images["base"] + 19_000_000
    # gains, instructions and labels; peaks and scales of the table's rows
    assert max(peaks["deep"], peaks["wordy"]) < peaks["base"] + 5_000_000, peaks
    assert peaks["base"] < 60_000_000


def test_a_written_image_is_the_array(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "m", ModelShape(**QUARTER), 2)
    model = open_model(str(tmp_path / "m"))
    done: list[tuple[int, int]] = []
    written = engine.compile_program(model, KV260, tmp_path / "p", lambda *at: done.append(at))
    held = engine.compile_program(model, KV260)
    assert isinstance(written.image, np.memmap) and not isinstance(held.image, np.memmap)
    np.testing.assert_array_equal(written.image, given(held.image))
    np.testing.assert_array_equal(given(Program.load(tmp_path / "p").image), given(held.image))
    assert written.instructions == held.instructions and written.regions == held.regions
    size = (tmp_path / "p" / IMAGE).stat().st_size
    assert size == written.beats * written.beat_bytes and sorted(done) == done
    assert {total for _, total in done} == {size} and 0.99 * size < done[-1][0] <= size
    held.save(tmp_path / "q")
    assert (tmp_path / "q" / IMAGE).read_bytes() == (tmp_path / "p" / IMAGE).read_bytes()


def test_reading_tells_how_far_it_is(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "m", ModelShape(**QUARTER), 3)
    done: list[tuple[int, int]] = []
    importer.load(tmp_path / "m", lambda *at: done.append(at))
    file = tmp_path / "m" / "model.safetensors"
    header = int.from_bytes(file.read_bytes()[:8], "little") + 8
    assert sorted(done) == done and done[-1] == (file.stat().st_size - header,) * 2 and len(done) > 20


def test_a_part_of_a_tensor(tmp_path: Path, rng: np.random.Generator) -> None:
    values = rng.standard_normal((7, 3, 2)).astype(np.float32)
    path = tmp_path / "x"
    path.write_bytes(b"abcd" + values.tobytes())
    tensor = Tensor("x", path, "F32", (7, 3, 2), 4, 4 + values.nbytes)
    np.testing.assert_array_equal(tensor.read(), values)
    for first in range(8):
        for end in range(first, 8):
            np.testing.assert_array_equal(tensor.read(first, end), values[first:end])
    values[5, 1, 0] = np.inf
    path.write_bytes(b"abcd" + values.tobytes())
    tensor.read(0, 5)
    with pytest.raises(ModelError, match=r"not inf at index \[5, 1, 0\]"):
        tensor.read(4, 7)


def test_a_value_that_is_wrong_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sizes are checked before values, values before anything is written; what fails while the image is written goes with it."""
    write_checkpoint(tmp_path / "m", ModelShape(**QUARTER), 4)
    file = tmp_path / "m" / "model.safetensors"
    whole = bytearray(file.read_bytes())
    last = importer.load(tmp_path / "m").shape.layers - 1
    place = json.loads(whole[8 : 8 + int.from_bytes(whole[:8], "little")])[f"model.layers.{last}.mlp.down_proj.weight"]["data_offsets"][1]
    good = whole[at := 8 + int.from_bytes(whole[:8], "little") + place - 1]
    whole[at] = 0xFF
    file.write_bytes(whole)
    with pytest.raises(ModelError, match=r"layers\.1\.mlp\.down_proj\.weight must hold the codes 0, 1 and 2, not 3 at row 159, column 1727"):
        api.compile_model(tmp_path / "m", KV260, tmp_path / "run")
    assert [path.name for path in tmp_path.iterdir()] == ["m"]
    whole[at] = good
    file.write_bytes(whole)

    def broken(tensor: Tensor, first: int = 0, end: int | None = None) -> np.ndarray:
        if tensor.name.endswith("layers.1.mlp.down_proj.weight") and list(tmp_path.glob(f".run.*/program/{IMAGE}")):
            raise OSError(5, "Input/output error", str(tensor.path))
        return raw(tensor, first, end)

    raw = Tensor.raw
    monkeypatch.setattr(Tensor, "raw", broken)
    with pytest.raises(OSError, match="Input/output error"):
        api.compile_model(tmp_path / "m", KV260, tmp_path / "run")
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


def test_manifests_hash_every_file_of_a_checkpoint(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, ModelShape(**QUARTER), 6)
    shape = ModelShape(**QUARTER)
    alone = facts(tmp_path, shape)["sha256"]
    assert alone == file_hash(tmp_path / "model.safetensors")
    (tmp_path / "model.safetensors").rename(tmp_path / "model-00001-of-00001.safetensors")
    assert "sha256" not in facts(tmp_path, shape)
    (tmp_path / "model.safetensors.index.json").write_text('{"weight_map": {}}')
    index = facts(tmp_path, shape)["sha256"]
    (tmp_path / "model-00002-of-00002.safetensors").write_bytes(b"more")
    assert len({alone, index, facts(tmp_path, shape)["sha256"]}) == 3


def test_the_benchmark_measures_a_command() -> None:
    found = importing.measured("presets")
    assert found["seconds"] > 0.05 and found["peak_bytes"] > 10_000_000
    with pytest.raises(LutraError, match=r"lutra estimate nothing: error: model nothing: no such folder"):
        importing.measured("estimate", "nothing")


def test_estimate_of_2b4t_takes_seconds(tmp_path: Path) -> None:
    """From a config.json alone: below 10 s of a processor and 1 GB, the interpreter's start included."""
    shape = open_model("bitnet-2b4t")
    assert isinstance(shape, ModelShape)
    write_checkpoint(tmp_path / "tiny", ModelShape(**QUARTER), 5)
    config = json.loads((tmp_path / "tiny" / "config.json").read_text())
    config |= {"hidden_size": shape.hidden, "num_hidden_layers": shape.layers, "num_attention_heads": shape.heads, "num_key_value_heads": shape.kv_heads}
    config |= {"intermediate_size": shape.ffn, "vocab_size": shape.vocabulary, "max_position_embeddings": shape.context}
    (tmp_path / "config.json").write_text(json.dumps(config))
    found = importing.measured("estimate", str(tmp_path / "config.json"), "--config", "kv260")
    assert found["processor_seconds"] < 10 and 1e7 < found["peak_bytes"] < 1e9
