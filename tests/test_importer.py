# SPDX-License-Identifier: Apache-2.0
"""Folders of the BitNet/Llama family: every layout and both meanings of the scale; damaged, hostile and unsupported ones, each refused in one line."""

import json
import re
import struct
import tracemalloc
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from lutra.hls_models.errors import ModelError
from lutra.hls_models.shape import ModelShape
from lutra.mapping.importer import NORM_NAMES, PLACES, load, pack_rows, unpack_rows
from lutra.mapping.model import ternarise
from lutra.mapping.safetensors_file import read_header, write

CONFIG = {
    "architectures": ["BitNetForCausalLM"],
    "model_type": "bitnet",
    "hidden_size": 24,
    "intermediate_size": 36,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "num_key_value_heads": 1,
    "vocab_size": 17,
    "max_position_embeddings": 32,
    "hidden_act": "relu2",
    "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "quantization_config": {"quant_method": "bitnet", "linear_class": "autobitlinear", "quantization_mode": "offline"},
}
LLAMA = CONFIG | {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu", "head_dim": 12, "tie_word_embeddings": False}
Tensors = dict[str, np.ndarray]


def tensors_of(config: dict[str, Any], rng: np.random.Generator, spelling: int = 0) -> Tensors:
    """Float master weights with the names of a checkpoint."""
    shape = ModelShape.from_mapping(config, Path("config.json"))
    sizes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (shape.vocabulary, shape.hidden), "model.norm.weight": (shape.hidden,)}
    if not shape.tied:
        sizes["lm_head.weight"] = (shape.vocabulary, shape.hidden)
    for layer in range(shape.layers):
        sizes |= {f"model.layers.{layer}.{PLACES[m.name]}.weight": (m.outputs, m.inputs) for m in shape.linears()}
        sizes |= {f"model.layers.{layer}.{NORM_NAMES[n][min(spelling, len(NORM_NAMES[n]) - 1)]}.weight": (size,) for n, size in shape.norms().items()}
    return {name: rng.standard_normal(size).astype(np.float32) for name, size in sizes.items()}


def packed(tensors: Tensors, reciprocal: bool) -> Tensors:
    out: Tensors = {}
    for name, array in tensors.items():
        if "_proj" in name:
            m = ternarise(array)
            out[name] = pack_rows(m.known())
            out[f"{name}_scale"] = np.array([1 / m.scales[0] if reciprocal else m.scales[0]], np.float32)
        else:
            out[name] = array
    return out


def store(folder: Path, config: dict[str, Any], tensors: Tensors) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    save_file(tensors, folder / "model.safetensors")
    return folder


def check(folder: Path, tensors: Tensors, exact: bool = True) -> None:
    model = load(folder)
    for layer in range(2):
        for m in model.shape.linears():
            want, have = ternarise(tensors[f"model.layers.{layer}.{PLACES[m.name]}.weight"]), model.matrices[f"layers.{layer}.{m.name}"]
            np.testing.assert_array_equal(have.known(), want.known())
            assert have.scales == pytest.approx(want.scales, rel=1e-6 if exact else 1e-2)
    np.testing.assert_allclose(model.gains["norm"], tensors["model.norm.weight"], rtol=0 if exact else 2**-8)
    assert (model.head is model.embedding) == model.shape.tied


def test_packed_layout_is_row_blocks() -> None:
    values = np.array([[-1], [0], [1], [1], [0], [-1], [1], [0]], np.int8)
    assert pack_rows(values)[:, 0].tolist() == [0b10_01_10_00, 0b01_00_10_01]
    np.testing.assert_array_equal(unpack_rows(pack_rows(values), 8), values)
    np.testing.assert_array_equal(unpack_rows(pack_rows(values[:6]), 6), values[:6])


@pytest.mark.parametrize("linear_class", ["autobitlinear", "bitlinear", None])
def test_both_meanings_of_the_scale(tmp_path: Path, rng: np.random.Generator, linear_class: str | None) -> None:
    config = CONFIG | {"quantization_config": {"quant_method": "bitnet"} | ({"linear_class": linear_class} if linear_class else {})}
    tensors = tensors_of(config, rng)
    check(store(tmp_path, config, packed(tensors, linear_class != "autobitlinear")), tensors)


def test_llama_without_sub_norms_untied_explicit_head_dim(tmp_path: Path, rng: np.random.Generator) -> None:
    config = LLAMA | {"quantization_config": {"quant_method": "bitnet", "modules_to_not_convert": ["lm_head"]}}
    tensors = tensors_of(config, rng)
    folder = store(tmp_path, config, packed(tensors, True))
    check(folder, tensors)
    assert not load(folder).shape.sub_norms and load(folder).shape.head_dim == 12


def test_plain_master_weights_of_1bitllm(tmp_path: Path, rng: np.random.Generator) -> None:
    config = {k: v for k, v in CONFIG.items() if k != "quantization_config"} | {"architectures": ["BitnetForCausalLM"], "weight_bits": 1, "hidden_act": "silu"}
    tensors = tensors_of(config, rng, spelling=1)
    assert "model.layers.0.self_attn.inner_attn_ln.weight" in tensors and "model.layers.1.mlp.ffn_layernorm.weight" in tensors
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.zeros(4, np.float32)
    check(store(tmp_path, config, tensors), tensors)


def test_already_ternary_values_keep_their_own_scale(tmp_path: Path, rng: np.random.Generator) -> None:
    config = {k: v for k, v in LLAMA.items() if k != "quantization_config"}
    tensors = tensors_of(config, rng)
    want = {name: ternarise(a).known() for name, a in tensors.items() if "_proj" in name}
    tensors |= {name: (values * np.float32(0.375)).astype(np.float16) for name, values in want.items()}
    model = load(store(tmp_path, config, tensors))
    for name, values in want.items():
        layer, _, linear = name.removeprefix("model.layers.").removesuffix(".weight").split(".")
        have = model.matrices[f"layers.{layer}.{linear}"]
        np.testing.assert_array_equal(have.known(), values)
        assert have.scales == (0.375,)
    with pytest.raises(ModelError, match=r"model\.layers\.0\.mlp\.up_proj\.weight must be ternary, or config\.json must declare a BitNet"):
        load(store(tmp_path, config, tensors | {"model.layers.0.mlp.up_proj.weight": tensors["model.layers.0.mlp.up_proj.weight"] + np.float16(0.1)}))


def test_bfloat16_and_shards(tmp_path: Path, rng: np.random.Generator) -> None:
    tensors = {name: array.astype(ml_dtypes.bfloat16) for name, array in tensors_of(CONFIG, rng).items()}
    store(tmp_path, CONFIG, tensors)
    want = {name: array.astype(np.float32) for name, array in tensors.items()}
    check(tmp_path, want)
    (tmp_path / "model.safetensors").unlink()
    names = sorted(tensors)
    for number, part in enumerate((names[:9], names[9:])):
        save_file({name: tensors[name] for name in part}, tmp_path / f"model-{number}.safetensors")
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {name: f"model-{int(i >= 9)}.safetensors" for i, name in enumerate(names)}}))
    check(tmp_path, want)
    index.write_text(json.dumps({"weight_map": {"a": "../model-0.safetensors"}}))
    with pytest.raises(ModelError, match=r"weight_map must name \.safetensors files of this folder, not '\.\./model-0\.safetensors'"):
        load(tmp_path)
    index.write_text(json.dumps({"weight_map": {"model.norm.weight": "model-0.safetensors"}}))
    with pytest.raises(ModelError, match=r"not there: model\.norm\.weight in model-0"):
        load(tmp_path)


def test_everything_unsupported_is_listed_at_once(tmp_path: Path, rng: np.random.Generator) -> None:
    tensors = packed(tensors_of(CONFIG, rng), False)
    del tensors["model.layers.1.mlp.ffn_sub_norm.weight"]
    tensors["model.layers.0.self_attn.q_proj.bias"] = np.zeros(24, np.float32)
    tensors["model.layers.0.mlp.down_proj.weight"] = np.zeros((6, 35), np.uint8)
    tensors["model.layers.1.self_attn.k_proj.weight"][1, 2] |= 3 << 4
    tensors["model.layers.1.self_attn.v_proj.weight_scale"][0] = -1
    tensors["model.layers.1.input_layernorm.weight"][3] = np.nan
    with pytest.raises(ModelError) as caught:
        load(store(tmp_path, CONFIG, tensors))
    message = str(caught.value)
    for part in (
        "missing tensor model.layers.1.mlp.ffn_sub_norm.weight or model.layers.1.mlp.ffn_layernorm.weight",
        "unknown tensor model.layers.0.self_attn.q_proj.bias",
        "model.layers.0.mlp.down_proj.weight must have shape [6, 36], not [6, 35]",
        "model.layers.1.self_attn.k_proj.weight must hold the codes 0, 1 and 2, not 3 at row 5, column 2",
        "model.layers.1.self_attn.v_proj.weight_scale must be above zero, not -1",
        "tensor 'model.layers.1.input_layernorm.weight': every value must be finite, not nan at index [3]",
    ):
        assert part in message
    assert "\n" not in message and message.count(";") == 5


def test_a_tied_model_may_store_its_head_twice_but_not_another(tmp_path: Path, rng: np.random.Generator) -> None:
    tensors = tensors_of(CONFIG, rng)
    check(store(tmp_path, CONFIG, tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"].copy()}), tensors)
    with pytest.raises(ModelError, match=r"lm_head\.weight must equal model\.embed_tokens\.weight"):
        load(store(tmp_path, CONFIG, tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"] + 1}))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"architectures": ["GPT2LMHeadModel"], "attention_bias": True, "hidden_act": "gelu"},
            "architectures must be .*GPT2LMHeadModel.*; hidden_act must be .*; attention_bias",
        ),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "rope_scaling.rope_type must be default, not 'llama3'"),
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4}}, "rope_parameters.rope_type must be default, not 'yarn'"),
        ({"quantization_config": {"quant_method": "gptq"}}, "quantization_config.quant_method must be bitnet, not 'gptq'"),
        ({"quantization_config": "bitnet"}, "quantization_config must be an object, not 'bitnet'"),
        ({"sliding_window": 4096}, "sliding_window must be null"),
        ({"pretraining_model_parallel": 2}, "pretraining_model_parallel must be 1"),
        ({"num_key_value_heads": 2}, "kv_heads must divide heads = 3, not 2; nearest: 1"),
        ({"num_attention_heads": 5}, "head_dim must be given where num_attention_heads = 5 does not divide hidden_size = 24"),
        ({"hidden_size": None, "vocab_size": None}, "missing hidden_size, head_dim, vocab_size"),
        ({"hidden_size": 10**12, "head_dim": 8}, "hidden_size: .*less than or equal to 65536, not 1000000000000"),
        ({"num_hidden_layers": "many"}, "num_hidden_layers: .*integer.*, not 'many'"),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps"),
        ({"architectures": 5}, "architectures must be"),
    ],
)
def test_unsupported_configurations(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG | change))
    with pytest.raises(ModelError, match=message) as caught:
        load(tmp_path)
    assert "\n" not in str(caught.value) and "config.json" in str(caught.value)


def test_both_generations_of_configurations(tmp_path: Path) -> None:
    old = ModelShape.from_mapping(CONFIG, tmp_path / "config.json")
    new = {k: v for k, v in CONFIG.items() if k not in ("rope_theta", "torch_dtype")} | {
        "rope_parameters": {"rope_theta": 500000.0, "rope_type": "default"},
        "dtype": "bfloat16",
    }
    assert ModelShape.from_mapping(new, tmp_path / "config.json") == old
    assert old.rope_theta == 500000.0 and old.head_dim == 8 and old.sub_norms and old.tied


@pytest.mark.parametrize("text", ["", "[1]", "{", "[" * 100000, "\xff"])
def test_a_damaged_config_is_one_line(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_text(text, encoding="latin-1")
    with pytest.raises(ModelError, match=r"config\.json: (not a JSON text file|must hold a JSON object)"):
        load(tmp_path)


def test_missing_files(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"config\.json: no such file"):
        load(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    with pytest.raises(ModelError, match=r"model\.safetensors: no such file"):
        load(tmp_path)


def raw(header: object, data: bytes = b"", length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def entry(dtype: object = "F32", shape: object = (2,), offsets: object = (0, 8)) -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


EIGHT = b"\0" * 8
HOSTILE: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "truncated: 0 bytes"),
    "header cut": (raw({"a": entry()}, EIGHT)[:20], "header length must be at most 12 bytes, not 61"),
    "terabytes": (raw({}, length=1 << 42), "header length must be at most 2 bytes, not 4398046511104"),
    "all ones": (b"\xff" * 64, "header length must be at most 56 bytes"),
    "data cut": (raw({"a": entry()}, EIGHT[:5]), r"tensor 'a': data_offsets must be \[begin, end\] within the file's 5 bytes of data, not \[0, 8\]"),
    "claims terabytes": (
        raw({"a": entry(shape=[1 << 20, 1 << 20])}, EIGHT),
        r"tensor 'a': data_offsets must span the 4398046511104 bytes of F32 \[1048576, 1048576\], not 8",
    ),
    "beyond the file": (raw({"a": entry(shape=[1 << 40], offsets=[0, 1 << 42])}, EIGHT), "within the file's 8 bytes"),
    "backwards": (raw({"a": entry(offsets=[8, 0])}, EIGHT), r"not \[8, 0\]"),
    "negative": (raw({"a": entry(shape=[-2, -1])}, EIGHT), "shape must be at most 8 whole numbers"),
    "fraction": (raw({"a": entry(shape=[2.0])}, EIGHT), "shape must be at most 8 whole numbers"),
    "boolean": (raw({"a": entry(shape=[True, 2])}, EIGHT), "shape must be at most 8 whole numbers"),
    "nine dimensions": (raw({"a": entry(shape=[1] * 8 + [2])}, EIGHT), "at most 8"),
    "unknown type": (raw({"a": entry(dtype="F128")}, EIGHT), "tensor 'a': dtype must be one of BF16, F16, F32, U8, I8, I64, not F128"),
    "type is a list": (raw({"a": entry(dtype=["F32"])}, EIGHT), "dtype must be one of"),
    "one offset": (raw({"a": entry(offsets=[0])}, EIGHT), "data_offsets must be"),
    "no shape": (raw({"a": {"dtype": "F32"}}, EIGHT), "must have dtype, shape and data_offsets"),
    "no object": (raw({"a": 3}, EIGHT), "must have dtype, shape and data_offsets, not 3"),
    "overlap": (raw({"a": entry(), "b": entry(shape=[1], offsets=[4, 8])}, EIGHT), "tensor 'b': overlaps 'a'"),
    "hole": (raw({"a": entry(), "b": entry(offsets=[12, 20])}, EIGHT * 3), "tensor 'b': leaves a hole of 4 bytes after 'a'"),
    "hole in front": (raw({"a": entry(offsets=[4, 12])}, EIGHT * 2), "tensor 'a': leaves a hole of 4 bytes after the header"),
    "rest": (raw({"a": entry()}, EIGHT + b"x"), "1 bytes after the last tensor belong to none"),
    "twice": (raw(b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"a":{}}', EIGHT), "header names 'a' twice"),
    "no text": (raw(b"\xff\xfe{}"), "header is no JSON text"),
    "pickle": (raw(b"\x80\x04cos\nsystem\n"), "header is no JSON text"),
    "deep": (raw(b'{"a":' + b"[" * 200000), "header is no JSON text"),
    "huge number": (raw(b'{"a":' + b"9" * 10000 + b"}"), "header is no JSON text"),
    "list": (raw([1, 2]), "header must be a JSON object, not list"),
    "metadata": (raw({"__metadata__": {"a": 1}}), "__metadata__ must map names to strings"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_files_are_refused_in_one_line(tmp_path: Path, case: str) -> None:
    content, message = HOSTILE[case]
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    tracemalloc.start()
    try:
        with pytest.raises(ModelError, match=message) as caught:
            read_header(path)
        assert tracemalloc.get_traced_memory()[1] < 20_000_000
    finally:
        tracemalloc.stop()
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400 + len(str(path))


def test_every_truncation_of_a_good_file_is_refused(tmp_path: Path, rng: np.random.Generator) -> None:
    path = tmp_path / "model.safetensors"
    save_file({"a": rng.standard_normal((3, 5)).astype(np.float32), "b": np.arange(7, dtype=np.uint8)}, path)
    whole = path.read_bytes()
    assert list(read_header(path)) == ["a", "b"]
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        with pytest.raises(ModelError):
            read_header(path)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_values_that_are_not_finite_are_named(tmp_path: Path, value: float, dtype: Any) -> None:
    array = np.zeros((3, 4), dtype)
    array[2, 1] = value
    save_file({"a": array}, tmp_path / "model.safetensors")
    with pytest.raises(ModelError, match=re.escape(f"tensor 'a': every value must be finite, not {value} at index [2, 1]")):
        read_header(tmp_path / "model.safetensors")["a"].read()


def test_own_writer_against_the_reference_reader(tmp_path: Path, rng: np.random.Generator) -> None:
    arrays: Tensors = {
        "x": rng.standard_normal((2, 3)).astype(np.float32),
        "y": np.arange(5, dtype=np.int8),
        "z": np.zeros((0, 4), np.float16),
        "s": np.full((), 3, np.float32),
    }
    write(tmp_path / "a.safetensors", arrays, {"format": "pt"})
    ours, theirs = read_header(tmp_path / "a.safetensors"), load_file(tmp_path / "a.safetensors")
    for name, array in arrays.items():
        np.testing.assert_array_equal(ours[name].read(), array)
        np.testing.assert_array_equal(theirs[name], array)
        assert ours[name].shape == theirs[name].shape == array.shape
