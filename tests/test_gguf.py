# SPDX-License-Identifier: Apache-2.0
"""GGUF files written by the ``gguf`` package: what comes out is what went in, on every architecture; every other file is refused in one line."""

import itertools
import json
import struct
import tracemalloc
from pathlib import Path
from typing import Any

import gguf
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file
from test_cli import timing

from lutra import api, engine
from lutra.hls_models.errors import LutraError, ModelError
from lutra.hls_models.load import load_config
from lutra.hls_models.ternary.config import CoreConfig
from lutra.mapping.catalogue import config_shape, open_model
from lutra.mapping.gguf_file import read_gguf, stored_trits
from lutra.mapping.gguf_importer import load
from lutra.mapping.importer import NORM_NAMES, PLACES
from lutra.mapping.importer import load as load_folder
from lutra.mapping.lower import compile_model
from lutra.mapping.model import TernaryModel, given
from lutra.mapping.tensor import Tensor

TYPES = {"TQ1_0": gguf.GGMLQuantizationType.TQ1_0, "TQ2_0": gguf.GGMLQuantizationType.TQ2_0}
SIZES: dict[str, Any] = {"hidden": 256, "ffn": 512, "layers": 2, "heads": 4, "kv_heads": 2, "head_dim": 64, "vocabulary": 19, "context": 32}
NAMES = {
    **{f"self_attn.{a}_proj": f"attn_{b}" for a, b in zip("qkvo", ("q", "k", "v", "output"), strict=True)},
    **{f"mlp.{a}_proj": f"ffn_{a}" for a in ("gate", "up", "down")},
    **{"input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm", "self_attn.attn_sub_norm": "attn_sub_norm", "mlp.ffn_sub_norm": "ffn_sub_norm"},
}
Tensors = dict[str, np.ndarray]


def weights(rng: np.random.Generator, sub_norms: bool, tied: bool) -> Tensors:
    """A checkpoint under Hugging Face's names: ternary matrices of an fp16 scale each."""
    s = SIZES
    q, kv, d, f = s["heads"] * s["head_dim"], s["kv_heads"] * s["head_dim"], s["hidden"], s["ffn"]
    matrices = {"q": (q, d), "k": (kv, d), "v": (kv, d), "o": (d, q), "gate": (f, d), "up": (f, d), "down": (d, f)}
    gains = {"input_norm": d, "post_norm": d} | ({"attention_norm": q, "ffn_norm": f} if sub_norms else {})
    out: Tensors = {"model.embed_tokens.weight": rng.standard_normal((s["vocabulary"], d)), "model.norm.weight": rng.uniform(0.5, 2, d)}
    if not tied:
        out["lm_head.weight"] = rng.standard_normal((s["vocabulary"], d))
    for layer, (name, size) in itertools.product(range(s["layers"]), matrices.items()):
        scale = float(np.float16(rng.uniform(0.001, 2)))
        out[f"model.layers.{layer}.{PLACES[f'{name}_proj']}.weight"] = rng.integers(-1, 2, size) * scale
    for layer, (name, count) in itertools.product(range(s["layers"]), gains.items()):
        out[f"model.layers.{layer}.{NORM_NAMES[name][0]}.weight"] = rng.uniform(0.5, 2, count)
    return {name: array.astype(np.float32) for name, array in out.items()}


def permuted(array: np.ndarray, heads: int) -> np.ndarray:
    """Rows of "llama" files: dimensions i and i + head_dim/2 of a head side by side."""
    half = len(array) // heads // 2
    return np.array([array[head * 2 * half + part * half + i] for head in range(heads) for i in range(half) for part in range(2)])


def written(path: Path, tensors: Tensors, architecture: str, kind: str | None = "TQ2_0", keys: dict[str, Any] | None = None) -> Path:
    """A file as a converter writes it: ``kind`` None keeps matrices as floats; ``keys`` change or (None) drop pairs; arrays under gguf's names are added."""
    writer = gguf.GGUFWriter(path, architecture)
    s, a = SIZES, architecture
    facts: dict[str, Any] = {
        **{f"{a}.embedding_length": s["hidden"], f"{a}.feed_forward_length": s["ffn"], f"{a}.block_count": s["layers"]},
        **{f"{a}.attention.head_count": s["heads"], f"{a}.attention.head_count_kv": s["kv_heads"], f"{a}.context_length": s["context"]},
        **{f"{a}.rope.freq_base": 500000.0, f"{a}.attention.layer_norm_rms_epsilon": 1e-5, f"{a}.rope.dimension_count": s["head_dim"]},
        **{"tokenizer.ggml.tokens": [f"<{i}>" for i in range(s["vocabulary"])], "tokenizer.ggml.eos_token_id": 3},
    }
    for key, value in (facts | (keys or {})).items():
        match value:
            case None:
                pass
            case str():
                writer.add_string(key, value)
            case float():
                writer.add_float32(key, value)
            case int():
                writer.add_uint32(key, value)
            case _:
                writer.add_array(key, value)
    fixed = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
    for name, array in tensors.items():
        place = name.removesuffix(".weight").removeprefix("model.layers.")
        layer, _, part = place.partition(".")
        ours = name if not name.startswith(("model.", "lm_head")) else f"{fixed[place]}.weight" if place in fixed else f"blk.{layer}.{NAMES[part]}.weight"
        if architecture == "llama" and part in ("self_attn.q_proj", "self_attn.k_proj"):
            array = permuted(array, s["heads"] if "q_proj" in part else s["kv_heads"])
        if kind and "_proj" in name:
            writer.add_tensor(ours, gguf.quants.quantize(array, TYPES[kind]), raw_dtype=TYPES[kind])
        elif array.dtype == ml_dtypes.bfloat16:
            writer.add_tensor(ours, array.view(np.uint8), raw_dtype=gguf.GGMLQuantizationType.BF16)
        else:
            writer.add_tensor(ours, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def same(model: TernaryModel, tensors: Tensors) -> None:
    for layer, (name, place) in itertools.product(range(SIZES["layers"]), PLACES.items()):
        want, have = tensors[f"model.layers.{layer}.{place}.weight"], model.matrices[f"layers.{layer}.{name}"]
        np.testing.assert_array_equal(have.known(), np.sign(want))
        assert have.scales == (np.abs(want).max(),) and have.known().dtype == np.int8
    np.testing.assert_array_equal(model.embedding.known(), tensors["model.embed_tokens.weight"].astype(np.float32))
    np.testing.assert_array_equal(model.gains["norm"], tensors["model.norm.weight"])
    np.testing.assert_array_equal(model.head.known(), tensors.get("lm_head.weight", tensors["model.embed_tokens.weight"]).astype(np.float32))


@pytest.mark.parametrize("kind", ["TQ1_0", "TQ2_0", None])
@pytest.mark.parametrize(("architecture", "tied"), [("llama", False), ("bitnet", True), ("bitnet-b1.58", True)])
def test_every_architecture_equals_its_folder(tmp_path: Path, rng: np.random.Generator, architecture: str, tied: bool, kind: str | None) -> None:
    """Same weights as a GGUF file and as a folder: one model, and one memory image, rotary pairs included."""
    sub_norms, activation = architecture != "llama", "relu2" if architecture == "bitnet-b1.58" else "silu"
    tensors = weights(rng, sub_norms, tied)
    model = load(written(tmp_path / "a.gguf", tensors, architecture, kind))
    same(model, tensors)
    assert (model.head is model.embedding) == model.shape.tied == tied and model.shape.sub_norms == sub_norms and model.shape.activation == activation
    assert config_shape(tmp_path / "a.gguf") == model.shape and model.shape.eps == 1e-5 and model.shape.rope_theta == 500000.0
    folder = tmp_path / "a"
    folder.mkdir()
    config = {
        **{"architectures": ["BitNetForCausalLM" if sub_norms else "LlamaForCausalLM"], "hidden_act": activation, "tie_word_embeddings": tied},
        **{"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 19},
        **{"max_position_embeddings": 32, "rope_theta": 500000.0, "rms_norm_eps": 1e-5},
    }
    (folder / "config.json").write_text(json.dumps(config))
    save_file(tensors, folder / "model.safetensors")
    other = load_folder(folder)
    assert other.shape == model.shape
    core = load_config("tiny", CoreConfig).model_copy(update={"params_rows": 256, "rope_rows": 256, "ring_rows": 4096})
    np.testing.assert_array_equal(given(compile_model(model, core).image), given(compile_model(other, core).image))


def test_floats_of_every_width(tmp_path: Path, rng: np.random.Generator) -> None:
    tensors = weights(rng, True, True)
    for number, dtype in enumerate((np.float32, np.float16, ml_dtypes.bfloat16)):
        narrow = {name: array.astype(dtype) if "embed" in name else array for name, array in tensors.items()}
        same(load(written(tmp_path / f"{number}.gguf", narrow, "bitnet")), narrow)


def test_master_weights_are_ternarised_where_the_architecture_says_so(tmp_path: Path, rng: np.random.Generator) -> None:
    tensors = weights(rng, True, True)
    name = "model.layers.1.mlp.up_proj.weight"
    tensors[name] = rng.standard_normal(tensors[name].shape).astype(np.float32)
    have = load(written(tmp_path / "a.gguf", tensors, "bitnet", None)).matrices["layers.1.up_proj"]
    scale = np.abs(tensors[name]).mean()
    assert have.scales == pytest.approx((scale,))
    np.testing.assert_array_equal(have.known(), np.clip(np.rint(tensors[name] / scale), -1, 1))
    with pytest.raises(ModelError, match=r"blk\.1\.ffn_up\.weight must be ternary, or general\.architecture must be bitnet or bitnet-b1\.58"):
        load(written(tmp_path / "b.gguf", {n: a for n, a in tensors.items() if "sub_norm" not in n}, "llama", None))


def test_a_factor_beside_a_matrix_and_blocks_of_zeros(tmp_path: Path, rng: np.random.Generator) -> None:
    tensors = weights(rng, True, True)
    name = "model.layers.0.self_attn.v_proj.weight"
    tensors[name] = np.sign(tensors[name])
    tensors[name][5] = 0
    tensors["model.layers.1.mlp.down_proj.weight"] *= 0
    extra = {"blk.0.attn_v.scale": np.array([0.01234], np.float32)}
    for kind in TYPES:
        model = load(written(tmp_path / f"{kind}.gguf", tensors | extra, "bitnet", kind))
        assert model.matrices["layers.0.v_proj"].scales == pytest.approx((0.01234,), rel=1e-7)
        np.testing.assert_array_equal(model.matrices["layers.0.v_proj"].known(), tensors[name])
        assert not model.matrices["layers.1.down_proj"].known().any()


def test_bits_of_a_block(tmp_path: Path, rng: np.random.Generator) -> None:
    """Both types against their definition, value by value."""
    path = tmp_path / "block"
    for kind, size in (("TQ1_0", 54), ("TQ2_0", 66)):
        trits = rng.integers(-1, 2, 256)
        codes = [int(t) + 1 for t in trits]
        stored = bytearray(size)
        if kind == "TQ2_0":
            for position, code in enumerate(codes):
                half, rest = divmod(position, 128)
                stored[32 * half + rest % 32] |= code << 2 * (rest // 32)
        else:
            places = [[m + 32 * i for i in range(5)] for m in range(32)] + [[160 + m + 16 * i for i in range(5)] for m in range(16)]
            places += [[240 + m + 4 * i for i in range(4)] for m in range(4)]
            for byte, positions in enumerate(places):
                value = sum(codes[p] * 3 ** (4 - i) for i, p in enumerate(positions))
                stored[byte] = -(-value * 256 // 243)
        stored[-2:] = np.float16(0.5).tobytes()
        path.write_bytes(stored)
        np.testing.assert_array_equal(stored_trits(Tensor("x", path, kind, (1, 256), 0, size), 0, 1)[0], trits)
        path.write_bytes(stored[:-2] + bytes(2))  # times nothing, whatever the codes
        assert not stored_trits(Tensor("x", path, kind, (1, 256), 0, size), 0, 1).any()


def test_wrong_blocks(tmp_path: Path, rng: np.random.Generator) -> None:
    tensors = weights(rng, True, True)
    tensors["model.layers.0.mlp.up_proj.weight"] = rng.standard_normal((512, 256)).astype(np.float32)
    path = written(tmp_path / "a.gguf", tensors, "bitnet", "TQ2_0")
    found = read_gguf(path).tensors
    data = bytearray(path.read_bytes())
    data[found["blk.1.ffn_down.weight"].start + 66 * 5 + 33] |= 0b1100  # row 2, second half of its second block, values 32 to 63
    at = found["blk.1.attn_k.weight"].start + 64
    data[at : at + 2] = np.float16(np.nan).tobytes()
    at = found["blk.1.attn_q.weight"].start + 64
    data[at : at + 2] = np.float16(-1).tobytes()
    path.write_bytes(data)
    with pytest.raises(ModelError) as caught:
        load(path)
    message = str(caught.value)
    for part in (
        r"blk.0.ffn_up.weight must have one scale, not ",
        "its weights were not ternary before TQ2_0",
        "blk.1.ffn_down.weight must hold the codes 0, 1 and 2, not 3 at row 2, column 417",
        "blk.1.attn_k.weight must have finite scales above zero, not nan",
        "blk.1.attn_q.weight must have finite scales above zero, not -1",
    ):
        assert part in message, part
    assert "\n" not in message and message.count(";") == 3


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"bitnet.block_count": 3}, "block_count must be 2, the layers of the checkpoint, not 3"),
        ({"bitnet.embedding_length": 512, "bitnet.rope.dimension_count": 128}, r"token_embd\.weight must have shape \[19, 512\], not \[19, 256\]"),
        ({"bitnet.feed_forward_length": 256}, r"blk\.0-1\.ffn_gate\.weight must have shape \[256, 256\], not \[512, 256\]"),
        ({"bitnet.attention.head_count_kv": 4}, r"blk\.0-1\.attn_k\.weight must have shape \[256, 256\], not \[128, 256\]"),
        ({"bitnet.attention.head_count_kv": [2, 2]}, r"bitnet\.attention\.head_count_kv must be one number, not one of 2 items"),
        ({"bitnet.attention.head_count": 3}, r"missing bitnet\.attention\.key_length"),
        ({"bitnet.attention.head_count": "four"}, "missing bitnet.attention.key_length"),
        ({"bitnet.attention.layer_norm_rms_epsilon": None}, r"missing bitnet\.attention\.layer_norm_rms_epsilon"),
        ({"bitnet.attention.layer_norm_rms_epsilon": float("nan")}, r"bitnet\.attention\.layer_norm_rms_epsilon: .*not nan"),
        ({"bitnet.attention.value_length": 32}, r"attention\.value_length must be bitnet\.attention\.key_length = 64, not 32"),
        ({"bitnet.rope.dimension_count": 32}, r"rope\.dimension_count must be bitnet\.attention\.key_length = 64, not 32"),
        ({"bitnet.rope.scaling.type": "yarn", "bitnet.rope.scaling.factor": 4.0}, r"rope\.scaling\.type must be none, not 'yarn' by 4\.0"),
        ({"bitnet.expert_count": 8}, r"expert_count must be 0, not 8"),
        ({"split.count": 2}, "split.count must be 1, not 2; nearest: one file"),
        ({"bitnet.context_length": 1 << 30}, r"bitnet\.context_length: .*less than or equal to 65536, not 1073741824"),
        ({"bitnet.vocab_size": 20}, r"token_embd\.weight must have shape \[20, 256\], not \[19, 256\]"),
    ],
)
def test_metadata_that_disagrees(tmp_path: Path, rng: np.random.Generator, keys: dict[str, Any], message: str) -> None:
    path = written(tmp_path / "a.gguf", weights(rng, True, True), "bitnet", "TQ1_0", keys)
    with pytest.raises(ModelError, match=message) as caught:
        load(path)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 900 + len(str(path))


def test_scaling_by_one_is_none(tmp_path: Path, rng: np.random.Generator) -> None:
    tensors = weights(rng, True, True)
    same(load(written(tmp_path / "a.gguf", tensors, "bitnet", keys={"bitnet.rope.scaling.type": "linear", "bitnet.rope.scaling.factor": 1.0})), tensors)


def test_other_architectures_and_tensors(tmp_path: Path, rng: np.random.Generator) -> None:
    tensors = weights(rng, True, True)
    with pytest.raises(ModelError, match=r"general\.architecture must be llama, bitnet, bitnet-b1\.58, not 'qwen2'"):
        load(written(tmp_path / "a.gguf", tensors, "qwen2"))
    with pytest.raises(ModelError, match=r"rope_freqs\.weight: scaled rotary"):
        path = written(tmp_path / "b.gguf", tensors | {"extra": np.zeros(4, np.float32)}, "bitnet")
        path.write_bytes(path.read_bytes().replace(struct.pack("<Q", 5) + b"extra", struct.pack("<Q", 17) + b"rope_freqs.weight"))
        load(path)
    del tensors["model.layers.1.mlp.ffn_sub_norm.weight"]
    extra = {"extra": np.zeros(4, np.float32), "blk.0.attn_q.bias": np.zeros(256, np.float32), "blk.1.attn_q.bias": np.zeros(256, np.float32)}
    with pytest.raises(ModelError) as caught:
        load(written(tmp_path / "c.gguf", tensors | extra, "bitnet"))
    assert str(caught.value).endswith(
        "unsupported checkpoint: missing tensor blk.1.ffn_sub_norm.weight; unknown tensor extra; unknown tensor blk.0-1.attn_q.bias"
    )


def raw(pairs: bytes = b"", tensors: bytes = b"", counts: tuple[int, int] = (0, 0), data: bytes = b"", version: int = 3, magic: bytes = b"GGUF") -> bytes:
    """A file by hand; counts are of tensors and pairs."""
    head = magic + struct.pack("<IQQ", version, *counts) + pairs + tensors
    return head + b"\0" * (-len(head) % 32) + data


def text(value: bytes, size: int | None = None) -> bytes:
    return struct.pack("<Q", len(value) if size is None else size) + value


def info(name: bytes, sizes: list[int], kind: int, offset: int = 0) -> bytes:
    return text(name) + struct.pack("<I", len(sizes)) + struct.pack(f"<{len(sizes)}QIQ", *sizes, kind, offset)


ARCHITECTURE = text(b"general.architecture") + struct.pack("<I", 8) + text(b"bitnet-b1.58")


def test_types_of_other_programs(tmp_path: Path, rng: np.random.Generator) -> None:
    """Microsoft's own type, which the package does not know, and ggml's others: what it is, how often, what is supported, what to do."""
    path = tmp_path / "i2_s.gguf"
    entries = [info(b"blk.%d.attn_q.weight" % layer, [256, 256], 36, 16416 * layer) for layer in range(3)] + [info(b"output_norm.weight", [256], 0, 49248)]
    path.write_bytes(raw(ARCHITECTURE, b"".join(entries), (4, 1), bytes(49248 + 1024)))
    with pytest.raises(ModelError) as caught:
        load(path)
    assert str(caught.value) == (
        f"{path}: blk.0.attn_q.weight is I2_S (bitnet.cpp's own type); tensors of unsupported types: 3 of I2_S; supported are TQ1_0 and TQ2_0 for matrices "
        "and F32, F16 and BF16 for everything; nearest: a file made with convert_hf_to_gguf.py --outtype tq1_0 (llama.cpp), or the checkpoint's folder with "
        "config.json and model.safetensors"
    )
    tensors = weights(rng, True, True)
    for kind in ("Q8_0", "Q4_0"):
        number = gguf.GGMLQuantizationType[kind]
        writer = gguf.GGUFWriter(path, "bitnet")
        writer.add_tensor("token_embd.weight", gguf.quants.quantize(tensors["model.embed_tokens.weight"], number), raw_dtype=number)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        with pytest.raises(ModelError, match=rf"token_embd\.weight is {kind}; .*: 1 of {kind}; supported are TQ1_0"):
            config_shape(path)
    path.write_bytes(raw(ARCHITECTURE, info(b"a", [256], 39, 0) + info(b"b", [256], 99, 160), (2, 1), bytes(192)))
    with pytest.raises(ModelError, match=r"a is MXFP4; tensors of unsupported types: 1 of MXFP4, 1 of type 99;"):
        load(path)
    data, name = bytearray(written(path, tensors, "bitnet").read_bytes()), b"token_embd.weight"
    data[data.index(name) + len(name) + 20] = 35  # a table must be of floats
    path.write_bytes(data)
    with pytest.raises(ModelError, match=r"token_embd\.weight must be BF16, F16, F32, not TQ2_0"):
        load(path)


F32_PAIR = text(b"x") + struct.pack("<If", 6, 1.0)
HOSTILE: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "truncated: 0 bytes"),
    "other magic": (raw(magic=b"GGML"), "must start with 'GGUF', not b'GGML'"),
    "version 1": (raw(version=1), "GGUF version must be 2 or 3, little-endian, not 1"),
    "big-endian": (raw(version=3 << 24), r"not 50331648 \(big-endian\?\)"),
    "tensors without end": (raw(counts=(1 << 60, 0)), "number of tensors must be at most 65536, not 1152921504606846976"),
    "pairs without end": (raw(counts=(0, (1 << 64) - 1)), "number of key-value pairs must be at most 65536"),
    "more pairs than bytes": (raw(counts=(0, 60000)), "must lie within the file's 32 bytes"),
    "key of terabytes": (raw(text(b"", 1 << 42), counts=(0, 1)), r"key 0 must lie within the file's 32 bytes, not end at 4398046511136: truncated or damaged"),
    "key no text": (raw(text(b"\xff\xfe") + struct.pack("<II", 4, 1), counts=(0, 1)), "key 0 must be UTF-8 text"),
    "key too long": (raw(text(b"k" * 70000) + struct.pack("<II", 4, 1), counts=(0, 1)), "key 0 must have at most 65536 bytes, not 70000"),
    "same key": (raw(F32_PAIR * 2, counts=(0, 2)), "metadata names 'x' twice"),
    "value of a type that is none": (raw(text(b"x") + struct.pack("<II", 13, 1), counts=(0, 1)), "metadata 'x': type must be 0 to 12, not 13"),
    "array of terabytes": (raw(text(b"x") + struct.pack("<IIQ", 9, 0, 1 << 42), counts=(0, 1)), "items of metadata 'x' must be at most 16777216"),
    "array past the end": (raw(text(b"x") + struct.pack("<IIQ", 9, 12, 1 << 20), counts=(0, 1)), "metadata 'x' must lie within the file's"),
    "strings past the end": (raw(text(b"x") + struct.pack("<IIQ", 9, 8, 1 << 20), counts=(0, 1)), "metadata 'x' must lie within the file's"),
    "array of arrays": (raw(text(b"x") + struct.pack("<IIQ", 9, 9, 1), counts=(0, 1)), "items must be numbers or strings, not of type 9"),
    "alignment": (raw(text(b"general.alignment") + struct.pack("<II", 4, 24), counts=(0, 1)), "general.alignment must be a power of two from 8 on, not 24"),
    "alignment no number": (raw(text(b"general.alignment") + struct.pack("<I", 8) + text(b"x"), counts=(0, 1)), "general.alignment must be a power of two"),
    "dimensions": (raw(tensors=info(b"a", [1] * 5, 0), counts=(1, 0), data=bytes(32)), "tensor 'a' must have at most 4 dimensions, not 5"),
    "dimensions without end": (
        raw(tensors=text(b"a") + struct.pack("<I", (1 << 32) - 1), counts=(1, 0)),
        "tensor 'a' must have at most 4 dimensions, not 4294967295",
    ),
    "same tensor": (raw(tensors=info(b"a", [4], 0) * 2, counts=(2, 0), data=bytes(32)), "tensor 'a' stands there twice"),
    "claims terabytes": (
        raw(tensors=info(b"a", [1 << 20, 1 << 20], 0), counts=(1, 0), data=bytes(32)),
        r"tensor 'a': F32 \[1048576, 1048576\] takes 4398046511104 bytes, and the file has 32 left",
    ),
    "beyond 64 bits": (raw(tensors=info(b"a", [1 << 63] * 4, 0), counts=(1, 0), data=bytes(32)), "takes .* bytes, and the file has 32 left"),
    "offset past the end": (
        raw(tensors=info(b"a", [8], 0, 1 << 62), counts=(1, 0), data=bytes(32)),
        "must start within the file's 96 bytes, not at 4611686018427387968",
    ),
    "offset not aligned": (raw(tensors=info(b"a", [4], 0, 16), counts=(1, 0), data=bytes(64)), "offset must be a multiple of 32, not 16"),
    "overlap": (raw(tensors=info(b"a", [16], 0) + info(b"b", [4], 0, 32), counts=(2, 0), data=bytes(64)), "tensor 'b' overlaps 'a'"),
    "ragged rows": (raw(tensors=info(b"a", [100, 4], 35), counts=(1, 0), data=bytes(512)), "rows of TQ2_0 must be a multiple of 256 values, not 100"),
    "zeros": (b"GGUF" + struct.pack("<I", 3) + bytes(4096), "general.architecture must be .*not None"),
    "no architecture": (raw(), "general.architecture must be llama, bitnet, bitnet-b1.58, not None"),
    "architecture no text": (raw(text(b"general.architecture") + struct.pack("<If", 6, 1), counts=(0, 1)), "general.architecture must be .* not 1.0"),
    "endless architecture": (
        raw(text(b"general.architecture") + struct.pack("<I", 8) + text(b"a" * 100000), counts=(0, 1)),
        "general.architecture must be .*items",
    ),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_files_are_refused_in_one_line(tmp_path: Path, case: str) -> None:
    content, message = HOSTILE[case]
    path = tmp_path / "a.gguf"
    path.write_bytes(content)
    tracemalloc.start()
    try:
        with pytest.raises(ModelError, match=message) as caught:
            open_model(str(path))
        assert tracemalloc.get_traced_memory()[1] < 20_000_000
    finally:
        tracemalloc.stop()
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400 + len(str(path))


def test_every_truncation_is_refused(tmp_path: Path, rng: np.random.Generator) -> None:
    path = written(tmp_path / "a.gguf", weights(rng, True, True), "bitnet")
    whole = path.read_bytes()
    tensors = read_gguf(path).tensors
    first, last = min(t.start for t in tensors.values()), max(t.end for t in tensors.values())
    for size in [*range(0, first, 7), *rng.integers(first, last, 200), last - 1]:
        path.write_bytes(whole[: int(size)])
        with pytest.raises(ModelError, match=r"truncated|must start with 'GGUF'"):
            read_gguf(path)


def test_random_damage_is_a_line_or_a_model(tmp_path: Path, rng: np.random.Generator) -> None:
    path = written(tmp_path / "a.gguf", weights(rng, True, True), "bitnet", "TQ1_0")
    whole = path.read_bytes()
    header = min(t.start for t in read_gguf(path).tensors.values())
    refused = 0
    for _ in range(150):
        data = bytearray(whole)
        for at in rng.integers(4, header, 3):
            data[at] = rng.integers(256)
        path.write_bytes(data)
        try:
            load(path)
        except LutraError as error:
            assert "\n" not in str(error)
            refused += 1
    assert refused > 100


def test_commands_take_a_file(tmp_path: Path, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    """compile, estimate, eval and verilog of a .gguf file, with the tokenizer beside it; Verilog and cycles have tests of their own."""
    monkeypatch.setattr(engine, "timing", timing)
    monkeypatch.setattr(engine, "verilog", lambda spec, block: f"module lutra_{block}; // {spec.shape.name}")
    tensors = weights(rng, True, True)
    path = written(tmp_path / "small.gguf", tensors, "bitnet-b1.58", "TQ1_0")
    (tmp_path / "tokenizer.json").write_text("{}")
    changes = {"name": "c", "params_rows": 256, "rope_rows": 256, "ring_rows": 4096, "allow_stalls": True}
    core = CoreConfig.model_validate(load_config("tiny", CoreConfig).model_dump() | changes)
    run = api.compile_model(path, core, tmp_path / "run")
    facts = run.manifest.inputs["model"]
    assert facts["name"] == "small" and len(facts["sha256"]) == 64
    assert json.loads((run.path / "tokenizer" / "generation_config.json").read_text()) == {"eos_token_id": 3}
    image = np.fromfile(run.path / "program" / "memory.bin", np.uint8)
    np.testing.assert_array_equal(image, given(compile_model(load(path), core).image))
    assert api.estimate(path, core, prompt=4).model.name == "small"
    np.save(tmp_path / "ids.npy", rng.integers(0, 19, 12))
    found = api.evaluate(path, core, ids=tmp_path / "ids.npy")
    assert found.tokens == 12 and found.loss_golden == pytest.approx(found.loss_float64, rel=0.2)
    assert api.verilog(core, model=path, block="head") == "module lutra_head; // small"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ModelError, match=r"small\.gguf: tensor .* truncated"):
        api.compile_model(path, core, tmp_path / "other")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["ids.npy", "run", "small.gguf", "tokenizer.json"]
