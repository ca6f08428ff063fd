# SPDX-License-Identifier: Apache-2.0
"""The published layouts, written here from their description and not with the importer's own tables, at a fraction of their size.

Names, types, packing and scales are those of microsoft/bitnet-b1.58-2B-4T (and its bf16 twin), 1bitLLM/bitnet_b1_58-* and tiiuae/Falcon3-*-1.58bit.
"""

import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from lutra import api, engine
from lutra.hls_models.errors import ConfigError, ModelError
from lutra.hls_models.load import load_config
from lutra.hls_models.shape import ModelShape
from lutra.hls_models.ternary.config import CoreConfig
from lutra.mapping.catalogue import open_model
from lutra.mapping.importer import load

MICROSOFT: dict[str, Any] = {
    **{"architectures": ["BitNetForCausalLM"], "model_type": "bitnet", "bos_token_id": 128000, "eos_token_id": 128001, "hidden_act": "relu2"},
    **{"hidden_size": 2560, "initializer_range": 0.02, "intermediate_size": 6912, "max_position_embeddings": 4096, "num_attention_heads": 20},
    **{"num_hidden_layers": 30, "num_key_value_heads": 5, "rms_norm_eps": 1e-05, "rope_theta": 500000.0, "tie_word_embeddings": True},
    **{"torch_dtype": "bfloat16", "use_cache": True, "vocab_size": 128256},
    "quantization_config": {"quant_method": "bitnet", "linear_class": "autobitlinear", "quantization_mode": "offline"},
}
"""config.json of microsoft/bitnet-b1.58-2B-4T."""

ONE_BIT: dict[str, Any] = {
    **{"architectures": ["BitnetForCausalLM"], "attention_bias": False, "bos_token_id": 1, "eos_token_id": 2, "hidden_act": "silu"},
    **{"hidden_size": 1536, "initializer_range": 0.02, "input_bits": 8, "intermediate_size": 4096, "max_position_embeddings": 2048, "model_type": "llama"},
    **{"num_attention_heads": 16, "num_hidden_layers": 24, "num_key_value_heads": 16, "pad_token_id": 32000, "pretraining_tp": 1, "rms_norm_eps": 1e-05},
    **{"rope_scaling": None, "rope_theta": 10000.0, "tie_word_embeddings": True, "torch_dtype": "float16", "use_cache": True, "vocab_size": 32002},
    "weight_bits": 1,
}
"""config.json of 1bitLLM/bitnet_b1_58-large."""


def falcon(hidden: int, ffn: int, layers: int, heads: int, context: int) -> dict[str, Any]:
    """config.json of a Falcon3 model in 1.58 bit."""
    return {
        **{"architectures": ["LlamaForCausalLM"], "attention_bias": False, "attention_dropout": 0.0, "eos_token_id": 11, "head_dim": 256},
        **{"hidden_act": "silu", "hidden_size": hidden, "intermediate_size": ffn, "max_position_embeddings": context, "mlp_bias": False},
        **{"model_type": "llama", "num_attention_heads": heads, "num_hidden_layers": layers, "num_key_value_heads": 4, "pretraining_tp": 1},
        **{"rms_norm_eps": 1e-06, "rope_scaling": None, "rope_theta": 1000042, "tie_word_embeddings": False, "torch_dtype": "bfloat16"},
        **{"use_cache": False, "vocab_size": 131072, "quantization_config": {"modules_to_not_convert": ["lm_head"], "quant_method": "bitnet"}},
    }


FALCON = {"1B": falcon(2048, 8192, 18, 8, 8192), "3B": falcon(3072, 9216, 22, 12, 4096), "10B": falcon(3072, 23040, 40, 12, 32768)}
LITTLE = {"hidden_size": 24, "intermediate_size": 38, "num_hidden_layers": 2, "num_attention_heads": 6, "num_key_value_heads": 2, "vocab_size": 13}
LITTLE |= {"max_position_embeddings": 16}
"""A fraction of the sizes: 38 and, with heads of 6, 12 rows are odd for the packing of four."""

Tensors = dict[str, np.ndarray]


def logical(config: dict[str, Any], sub_norms: tuple[str, str] | None) -> dict[str, tuple[int, ...]]:
    """Name and shape of every weight, as the model card's safetensors view lists them."""
    d, f, v = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    head = config.get("head_dim", d // config["num_attention_heads"])
    q, kv = config["num_attention_heads"] * head, config["num_key_value_heads"] * head
    sizes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (v, d)}
    for i in range(config["num_hidden_layers"]):
        p = f"model.layers.{i}."
        sizes |= {f"{p}input_layernorm.weight": (d,), f"{p}post_attention_layernorm.weight": (d,)}
        sizes |= {f"{p}self_attn.q_proj.weight": (q, d), f"{p}self_attn.k_proj.weight": (kv, d), f"{p}self_attn.v_proj.weight": (kv, d)}
        sizes |= {f"{p}self_attn.o_proj.weight": (d, q), f"{p}mlp.gate_proj.weight": (f, d), f"{p}mlp.up_proj.weight": (f, d)}
        sizes |= {f"{p}mlp.down_proj.weight": (d, f)}
        if sub_norms:
            sizes |= {f"{p}self_attn.{sub_norms[0]}.weight": (q,), f"{p}mlp.{sub_norms[1]}.weight": (f,)}
    sizes["model.norm.weight"] = (d,)
    if not config["tie_word_embeddings"]:
        sizes["lm_head.weight"] = (v, d)
    return sizes


def bits(trits: np.ndarray) -> np.ndarray:
    """Codes 0, 1 and 2, two bits each: row i of the matrix in byte row i mod R at bit 2 * (i div R), R rows of bytes."""
    rows, columns = trits.shape
    quarter = (rows + 3) // 4
    out = np.zeros((quarter, columns), np.uint8)
    for i in range(rows):
        for j in range(columns):
            out[i % quarter, j] |= (int(trits[i, j]) + 1) << 2 * (i // quarter)
    return out


def random(rng: np.random.Generator, sizes: dict[str, tuple[int, ...]], dtype: Any) -> Tensors:
    return {name: rng.standard_normal(size).astype(dtype) for name, size in sizes.items()}


def store(folder: Path, config: dict[str, Any], tensors: Tensors) -> Path:
    (folder / "config.json").write_text(json.dumps(config))
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder


def packed(folder: Path, config: dict[str, Any], rng: np.random.Generator, sub_norms: tuple[str, str] | None, reciprocal: bool) -> tuple[Tensors, Tensors]:
    """Stores a packed checkpoint; trits and multipliers by the matrix's name."""
    sizes, trits, scales = logical(config, sub_norms), {}, {}
    tensors = random(rng, {name: size for name, size in sizes.items() if "_proj" not in name}, ml_dtypes.bfloat16)
    for name, size in sizes.items():
        if "_proj" in name:
            trits[name] = rng.integers(-1, 2, size)
            stored = np.array([rng.uniform(0.3, 3)], ml_dtypes.bfloat16)
            scales[name] = 1 / stored.astype(float) if reciprocal else stored.astype(float)
            tensors |= {name: bits(trits[name]), f"{name}_scale": stored}
    store(folder, config, tensors)
    return trits, scales


def matrices(folder: Path) -> dict[str, Any]:
    """What was imported, under Hugging Face's names."""
    part = {"q": "self_attn", "k": "self_attn", "v": "self_attn", "o": "self_attn", "gate": "mlp", "up": "mlp", "down": "mlp"}
    return {
        f"model.layers.{name.split('.')[1]}.{part[name.split('.')[2][:-5]]}.{name.split('.')[2]}.weight": matrix
        for name, matrix in load(folder).matrices.items()
    }


def equal(folder: Path, trits: Tensors, scales: Tensors, rel: float = 1e-12) -> None:
    found = matrices(folder)
    assert set(found) == set(trits)
    for name, matrix in found.items():
        np.testing.assert_array_equal(matrix.known(), trits[name])
        assert matrix.scales == pytest.approx(tuple(scales[name]), rel=rel)


@pytest.mark.parametrize("head_dim", [4, 6])
def test_microsoft_packed(tmp_path: Path, rng: np.random.Generator, head_dim: int) -> None:
    """The scale is the multiplier."""
    config = MICROSOFT | LITTLE | {"head_dim": head_dim}
    equal(tmp_path, *packed(tmp_path, config, rng, ("attn_sub_norm", "ffn_sub_norm"), reciprocal=False))
    model = load(tmp_path)
    assert model.shape.activation == "relu2" and model.shape.sub_norms and model.head is model.embedding and model.shape.rope_theta == 500000.0


def test_falcon_packed(tmp_path: Path, rng: np.random.Generator) -> None:
    """The scale is the reciprocal; heads wider than hidden / heads, no sub-norms, a head of its own."""
    config = FALCON["1B"] | LITTLE | {"head_dim": 10}
    equal(tmp_path, *packed(tmp_path, config, rng, None, reciprocal=True))
    model = load(tmp_path)
    assert not model.shape.sub_norms and model.head is not model.embedding and model.shape.query_columns == 60 and model.shape.eps == 1e-6
    assert model.shape.rope_theta == 1000042 and model.shape.activation == "silu"


def absmean(weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    wide = weights.astype(np.float64)
    scale = max(np.abs(wide).mean(), 1e-5)
    return np.clip(np.rint(wide / scale), -1, 1), np.array([scale])


@pytest.mark.parametrize("dtype", [np.float16, np.float32, ml_dtypes.bfloat16])
def test_one_bit_master_weights(tmp_path: Path, rng: np.random.Generator, dtype: Any) -> None:
    config = ONE_BIT | LITTLE
    tensors = random(rng, logical(config, ("inner_attn_ln", "ffn_layernorm")), dtype)
    store(tmp_path, config, tensors)
    wanted = {name: absmean(array) for name, array in tensors.items() if "_proj" in name}
    equal(tmp_path, {name: trits for name, (trits, _) in wanted.items()}, {name: scale for name, (_, scale) in wanted.items()}, rel=1e-7)
    assert load(tmp_path).shape.activation == "silu"


def test_microsoft_online(tmp_path: Path, rng: np.random.Generator) -> None:
    """bf16 master weights of the twin repository, rows pruned to denormals included: one scale per matrix, whatever a row's size."""
    config = MICROSOFT | LITTLE | {"quantization_config": {"quant_method": "bitnet", "linear_class": "autobitlinear", "quantization_mode": "online"}}
    tensors = random(rng, logical(config, ("attn_sub_norm", "ffn_sub_norm")), ml_dtypes.bfloat16)
    name = "model.layers.1.mlp.up_proj.weight"
    tensors[name][3:7] = np.array(1e-34, ml_dtypes.bfloat16)
    store(tmp_path, config, tensors)
    wanted = {n: absmean(array) for n, array in tensors.items() if "_proj" in n}
    equal(tmp_path, {n: trits for n, (trits, _) in wanted.items()}, {n: scale for n, (_, scale) in wanted.items()}, rel=1e-7)
    assert not matrices(tmp_path)[name].known()[3:7].any()
    tensors |= {name: np.zeros((10, 24), np.uint8), f"{name}_scale": np.ones(1, np.float32)}
    with pytest.raises(ModelError, match=r"mlp\.up_proj\.weight must be BF16, F16, F32 where quantization_config\.quantization_mode is online, not U8"):
        load(store(tmp_path, config, tensors))


def test_every_byte_of_codes(tmp_path: Path, rng: np.random.Generator) -> None:
    """All 81 legal bytes, decoded by their definition; each of the other 175 is named with the place of its code."""
    config = MICROSOFT | LITTLE | {"hidden_size": 84, "num_attention_heads": 2, "intermediate_size": 4, "num_hidden_layers": 1}
    sizes = logical(config, ("attn_sub_norm", "ffn_sub_norm"))
    tensors = random(rng, {n: s for n, s in sizes.items() if "_proj" not in n}, np.float32)
    for name, (rows, columns) in ((n, s) for n, s in sizes.items() if "_proj" in n):
        tensors |= {name: np.full((-(-rows // 4), columns), 0b01010101, np.uint8), f"{name}_scale": np.ones(1, np.float32)}
    gate = "model.layers.0.mlp.gate_proj.weight"
    legal = [byte for byte in range(256) if all(byte >> shift & 3 != 3 for shift in (0, 2, 4, 6))]
    assert len(legal) == 81
    tensors[gate][0, :81] = legal
    found = matrices(store(tmp_path, config, tensors))[gate].known()
    for column, byte in enumerate(legal):
        assert found[:, column].tolist() == [(byte >> shift & 3) - 1 for shift in (0, 2, 4, 6)]
    for byte in sorted(set(range(256)) - set(legal)):
        tensors[gate][0, 7] = byte
        row = next(row for row in range(4) if byte >> 2 * row & 3 == 3)
        with pytest.raises(ModelError, match=rf"gate_proj\.weight must hold the codes 0, 1 and 2, not 3 at row {row}, column 7"):
            load(store(tmp_path, config, tensors))


def disagreement(folder: Path, config: dict[str, Any], rng: np.random.Generator, **changes: Any) -> str:
    """What is said about a checkpoint of ``config`` beside a config.json with ``changes``."""
    packed(folder, config, rng, ("attn_sub_norm", "ffn_sub_norm"), reciprocal=False)
    (folder / "config.json").write_text(json.dumps(config | changes))
    with pytest.raises(ModelError) as caught:
        load(folder)
    message = str(caught.value)
    assert "\n" not in message and len(message) < 700 + len(str(folder)), "one clear line"
    return message.partition("unsupported checkpoint: ")[2]


@pytest.mark.parametrize(
    ("changes", "problems"),
    [
        ({"num_hidden_layers": 30}, {"num_hidden_layers in config.json must be 4, the layers of the checkpoint, not 30"}),
        ({"num_hidden_layers": 3}, {"num_hidden_layers in config.json must be 4, the layers of the checkpoint, not 3"}),
        ({"vocab_size": 128256}, {"model.embed_tokens.weight must have shape [128256, 24], not [13, 24]"}),
        ({"tie_word_embeddings": False}, {"missing tensor lm_head.weight"}),
        (  # gate and up have as many bytes as before: what depends on the exact width tells
            {"intermediate_size": 40},
            {
                "model.layers.0-3.mlp.down_proj.weight must have shape [6, 40], not [6, 38]",
                "model.layers.0-3.mlp.ffn_sub_norm.weight must have shape [40], not [38]",
            },
        ),
        (
            {"num_key_value_heads": 3},
            {f"model.layers.0-3.self_attn.{name}_proj.weight must have shape [3, 24], not [2, 24]" for name in "kv"},
        ),
        (
            {"architectures": ["LlamaForCausalLM"]},
            {f"unknown tensor model.layers.0-3.{name}.weight" for name in ("self_attn.attn_sub_norm", "mlp.ffn_sub_norm")},
        ),
    ],
)
def test_configurations_that_disagree(tmp_path: Path, rng: np.random.Generator, changes: dict[str, Any], problems: set[str]) -> None:
    said = disagreement(tmp_path, MICROSOFT | LITTLE | {"num_hidden_layers": 4}, rng, **changes)
    assert set(said.split("; ")) == problems and said.count(";") == len(problems) - 1


def test_many_problems_are_counted(tmp_path: Path, rng: np.random.Generator) -> None:
    config = MICROSOFT | LITTLE | {"num_hidden_layers": 1}
    packed(tmp_path, config, rng, ("attn_sub_norm", "ffn_sub_norm"), reciprocal=False)
    save_file({f"strange.{i}": np.zeros(1, np.float32) for i in range(500)}, tmp_path / "model.safetensors")
    with pytest.raises(ModelError, match=r"missing tensor model\.embed_tokens\.weight; .*; and 493 more$") as caught:
        load(tmp_path)
    assert len(str(caught.value)) < 2000


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_scaling.rope_type must be default, not 'linear'"),
        ({"rope_scaling": {"rope_type": "default"}}, None),
        ({"rope_scaling": None, "rope_parameters": {"rope_type": "default", "rope_theta": 500000.0}}, None),
        ({"rope_parameters": {"rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0}}, "rope_parameters.rope_type must be default, not 'llama3'"),
        ({"quantization_config": MICROSOFT["quantization_config"] | {"use_rms_norm": True}}, "quantization_config.use_rms_norm must be false"),
        ({"quantization_config": MICROSOFT["quantization_config"] | {"use_rms_norm": False}}, None),
        ({"quantization_config": MICROSOFT["quantization_config"] | {"quantization_mode": "dynamic"}}, "quantization_mode must be offline or online"),
    ],
)
def test_rope_and_quantisation_of_configurations(tmp_path: Path, change: dict[str, Any], message: str | None) -> None:
    path = tmp_path / "bitnet-2b4t" / "config.json"
    path.parent.mkdir()
    path.write_text(json.dumps(MICROSOFT | change))
    if message is None:
        assert ModelShape.from_config(path) == open_model("bitnet-2b4t")
    else:
        with pytest.raises(ModelError, match=message):
            ModelShape.from_config(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_key_value_heads": 0}, "num_key_value_heads: Input should be greater than 0, not 0"),
        ({"num_key_value_heads": None}, None),
        ({"num_hidden_layers": True}, "num_hidden_layers: Input should be a valid integer, not True"),
        ({"num_hidden_layers": 30.0}, "num_hidden_layers: Input should be a valid integer, not 30.0"),
        ({"hidden_size": "2560"}, "hidden_size: Input should be a valid integer, not '2560'"),
        ({"hidden_size": "2560", "head_dim": 128}, "hidden_size: Input should be a valid integer, not '2560'"),
        ({"hidden_size": False}, "hidden_size: Input should be a valid integer, not False"),
        ({"num_attention_heads": 0, "num_key_value_heads": 5}, "num_attention_heads: Input should be greater than 0, not 0"),
        ({"rope_theta": "500000"}, "rope_theta: Input should be a valid number, not '500000'"),
        ({"rope_theta": 500000}, None),
        ({"tie_word_embeddings": "yes"}, "tie_word_embeddings: Input should be a valid boolean, not 'yes'"),
        ({"tie_word_embeddings": 1}, "tie_word_embeddings: Input should be a valid boolean, not 1"),
        ({"tie_word_embeddings": None}, None),
    ],
)
def test_values_of_configurations_are_of_their_types(tmp_path: Path, change: dict[str, Any], message: str | None) -> None:
    path = tmp_path / "model" / "config.json"
    path.parent.mkdir()
    path.write_text(json.dumps(MICROSOFT | change))
    if message is None:
        shape = ModelShape.from_config(path)
        assert shape.kv_heads == (20 if "num_key_value_heads" in change else 5) and shape.tied == ("tie_word_embeddings" not in change)
        return
    with pytest.raises(ModelError) as caught:
        ModelShape.from_config(path)
    assert str(caught.value) == f"{path}: {message}"


@pytest.mark.parametrize(
    ("config", "name", "parameters"),
    [(MICROSOFT, "bitnet-2b4t", 2_412_820_480), (ONE_BIT, "bitnet-0.73b", None), (FALCON["1B"], None, 1.669e9), (FALCON["10B"], None, 10.305e9)],
    ids=["2b4t", "0.73b", "falcon 1B", "falcon 10B"],
)
def test_published_configurations(tmp_path: Path, config: dict[str, Any], name: str | None, parameters: float | None) -> None:
    """Shapes alone: those that ship by name are the same; the others have the published number of parameters."""
    path = tmp_path / (name or "model") / "config.json"
    path.parent.mkdir()
    path.write_text(json.dumps(config))
    shape = open_model(str(path))
    assert isinstance(shape, ModelShape) and (name is None or shape == open_model(name))
    if parameters:
        assert shape.parameters == pytest.approx(parameters, rel=1e-3 if name is None else 0)


HEADS_OF_100 = {"hidden_size": 3200, "num_attention_heads": 32, "num_key_value_heads": 32, "num_hidden_layers": 2, "intermediate_size": 8640}
"""1bitLLM/bitnet_b1_58-3B."""


def kv260(**changes: Any) -> CoreConfig:
    return CoreConfig.model_validate(load_config("kv260", CoreConfig).model_dump() | changes)


@pytest.mark.parametrize(
    ("config", "changes", "message"),
    [
        (FALCON["1B"], {}, "config kv260 for model: rope_rows must be at least .* = 768, not 512; nearest: 768"),
        (FALCON["10B"], {"rope_rows": 768}, r"layers\.0\.down: lookups wait for table builds .*; nearest: 640 and 4821, or allow_stalls"),
        (FALCON["10B"] | {"max_position_embeddings": 1 << 17}, {}, r"max_position_embeddings: .*less than or equal to 65536, not 131072"),
        (
            ONE_BIT | HEADS_OF_100,
            {},
            r"head_dim must be a multiple of the 16 bytes of a port where memory is shared, not 100; nearest: .* \(no memory\), .* 4$",
        ),
        (ONE_BIT | HEADS_OF_100, {"memory": None, "device": None}, "vector_lanes must divide the model's head_dim = 100, not 8; nearest: 4"),
    ],
    ids=["head_dim 256", "ffn 23040", "context", "head_dim 100", "head_dim 100 on chip"],
)
def test_shapes_that_a_core_cannot_take(tmp_path: Path, config: dict[str, Any], changes: dict[str, Any], message: str) -> None:
    path = tmp_path / "model" / "config.json"
    path.parent.mkdir()
    path.write_text(json.dumps(config | {"num_key_value_heads": 4}))
    with pytest.raises((ConfigError, ModelError), match=message) as caught:
        api.estimate(path, kv260(**changes))
    assert "\n" not in str(caught.value)


def test_nearest_choices_are_choices(tmp_path: Path) -> None:
    for name, changes in (("1B", {"rope_rows": 768}), ("3B", {"rope_rows": 768}), ("10B", {"rope_rows": 768, "ring_rows": 4821})):
        path = tmp_path / name / "config.json"
        path.parent.mkdir()
        path.write_text(json.dumps(FALCON[name]))
        shape = open_model(str(path))
        assert engine.compile_program(shape, kv260(**changes)).instructions
    path.write_text(json.dumps(ONE_BIT | HEADS_OF_100))
    on_chip = kv260(memory=None, device=None, vector_lanes=4, rope_rows=1024, params_rows=4096)
    assert api.estimate(path, on_chip, prompt=1).decode
