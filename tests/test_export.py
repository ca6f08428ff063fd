# SPDX-License-Identifier: Apache-2.0
"""A trained model goes out as a folder and comes back the same."""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from lutra.hls_models.errors import ModelError
from lutra.hls_models.shape import ModelShape
from lutra.mapping.catalogue import HERE, open_model
from lutra.mapping.exporter import export
from lutra.mapping.graph import build
from lutra.mapping.importer import NORM_NAMES, PLACES, load, unpack_rows
from lutra.mapping.model import TernaryModel, ternarise
from lutra.mapping.reference import evaluate
from lutra.mapping.tokenizer import Tokenizer

SHAPE = ModelShape(
    name="small", hidden=160, layers=4, heads=5, kv_heads=1, head_dim=32, ffn=384, vocabulary=65, context=256, activation="relu2", sub_norms=True, tied=True
)
ALPHABET = [chr(33 + i) for i in range(65)]
FACTS = {"held_out_loss": 1.4693, "steps": 15000, "batch": 8, "seed": 1, "dropout": 0.05, "lr": 4e-3}
TWIN = {"held_out_loss": 1.4512, "steps": 15000, "lr": 2e-3}


@pytest.fixture
def weights(rng: np.random.Generator) -> dict[str, np.ndarray]:
    out = {"model.embed_tokens.weight": (65, 160), "model.norm.weight": (160,)}
    for layer in range(4):
        out |= {f"model.layers.{layer}.{PLACES[m.name]}.weight": (m.outputs, m.inputs) for m in SHAPE.linears()}
        out |= {f"model.layers.{layer}.{NORM_NAMES[name][0]}.weight": (size,) for name, size in SHAPE.norms().items()}
    return {name: rng.standard_normal(size).astype(np.float32) for name, size in out.items()}


def test_the_folder_comes_back_the_same(tmp_path: Path, weights: dict[str, np.ndarray]) -> None:
    export(tmp_path / "small", SHAPE, weights, ALPHABET, FACTS, TWIN, "text.txt (public domain)")
    model = load(tmp_path / "small")
    assert model.shape == SHAPE
    for layer in range(4):
        for m in SHAPE.linears():
            back, want = model.matrices[f"layers.{layer}.{m.name}"], ternarise(weights[f"model.layers.{layer}.{PLACES[m.name]}.weight"])
            np.testing.assert_array_equal(back.known(), want.known())
            assert back.scales == want.scales
        for name in SHAPE.norms():
            np.testing.assert_array_equal(model.gains[f"layers.{layer}.{name}"], weights[f"model.layers.{layer}.{NORM_NAMES[name][0]}.weight"])
    np.testing.assert_array_equal(model.embedding.known(), weights["model.embed_tokens.weight"])
    assert Tokenizer.load(tmp_path / "small", 65).encode('!"`a') == [0, 1, 63, 64]
    assert np.isfinite(evaluate(build(model), np.arange(20))).all()
    assert sum(path.stat().st_size for path in (tmp_path / "small").iterdir()) < 1_500_000


def test_others_read_the_file(tmp_path: Path, weights: dict[str, np.ndarray]) -> None:
    """The safetensors package reads what our writer wrote: BitNet's names, packed matrices with the multiplier as scale."""
    export(tmp_path, SHAPE, weights, ALPHABET, FACTS, None, "text.txt")
    tensors, name = load_file(tmp_path / "model.safetensors"), "model.layers.2.mlp.down_proj.weight"
    assert tensors[name].dtype == np.uint8 and tensors[name].shape == (40, 384) and tensors[f"{name}_scale"].shape == (1,)
    want = np.abs(weights[name]).mean()
    np.testing.assert_allclose(tensors[f"{name}_scale"], want, rtol=1e-6)
    np.testing.assert_array_equal(unpack_rows(tensors[name], 160), np.clip(np.rint(weights[name] / want), -1, 1))
    assert len(tensors) == 2 + 4 * (7 * 2 + 4)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["architectures"] == ["BitNetForCausalLM"] and config["quantization_config"]["linear_class"] == "autobitlinear"


def test_the_card_carries_the_figures(tmp_path: Path, weights: dict[str, np.ndarray]) -> None:
    export(tmp_path, SHAPE, weights, ALPHABET, FACTS, TWIN, "text.txt (public domain)")
    card = (tmp_path / "README.md").read_text()
    for part in (
        "license: apache-2.0",
        "983,040 ternary",
        "**1.4693 nats",
        "(2.120 bits)",
        "1.4512 nats",
        "15,000 steps of 8 x 256",
        "text.txt (public domain), first 90 %",
    ):
        assert part in card
    assert "examples/train_tiny_lm.py text.txt -o small --seed 1 --steps 15000" in card
    assert "not tuned" not in card
    export(tmp_path, SHAPE, weights, ALPHABET, FACTS, TWIN | {"held_out_loss": 1.4897}, "text.txt")
    assert "The twin's recipe was taken over" in (tmp_path / "README.md").read_text(), "a twin that is worse is explained"
    export(tmp_path, SHAPE, weights, ALPHABET, FACTS, None, "text.txt")
    assert "twin" not in (tmp_path / "README.md").read_text()


def test_two_exports_are_equal_bytes(tmp_path: Path, weights: dict[str, np.ndarray]) -> None:
    for name in ("a", "b"):
        export(tmp_path / name, SHAPE, weights, ALPHABET, FACTS, TWIN, "text.txt")
    assert [p.read_bytes() for p in sorted((tmp_path / "a").iterdir())] == [p.read_bytes() for p in sorted((tmp_path / "b").iterdir())]


def test_unusable_weights_leave_nothing(tmp_path: Path, weights: dict[str, np.ndarray]) -> None:
    del weights["model.norm.weight"]
    weights["model.layers.0.input_layernorm.weight"] = np.zeros(3, np.float32)
    weights["model.layers.1.mlp.up_proj.weight"][5, 7] = np.nan
    with pytest.raises(
        ModelError, match=r"missing model.norm.weight; .*up_proj.weight must be finite; .*input_layernorm.weight must have shape \[160\], not \[3\]; alphabet"
    ):
        export(tmp_path / "small", SHAPE, weights, ALPHABET[1:], FACTS, None, "text.txt")
    assert not (tmp_path / "small").exists()


# Hamlet, in the manner of the training text (which has none of it)
PASSAGE = """HAMLET:
To be, or not to be: that is the question:
Whether 'tis nobler in the mind to suffer
The slings and arrows of outrageous fortune,
Or to take arms against a sea of troubles,
And by opposing end them?
"""


def test_the_shipped_model() -> None:
    folder, model = HERE / "models" / "tiny-shakespeare", open_model("tiny-shakespeare")
    assert isinstance(model, TernaryModel)
    assert sum(path.stat().st_size for path in folder.iterdir()) <= 1_500_000 and 800_000 <= model.shape.ternary_weights <= 1_000_000
    facts = json.loads((folder / "training.json").read_text())
    assert facts["held_out_loss"] <= 1.48 and f"**{facts['held_out_loss']:.4f} nats" in (folder / "README.md").read_text()
    assert {name: getattr(model.shape, name) for name in facts["shape"]} == facts["shape"]
    tokenizer = Tokenizer.load(folder, model.shape.vocabulary)
    ids = np.array(tokenizer.encode(PASSAGE))
    assert tokenizer.decode(ids.tolist()) == PASSAGE
    logits = evaluate(build(model), ids[:-1])
    loss = (np.log(np.exp(logits).sum(-1)) - logits[np.arange(len(ids) - 1), ids[1:]]).mean()
    assert loss < 2.0, "a character by chance costs ln 65 = 4.17 nats"
