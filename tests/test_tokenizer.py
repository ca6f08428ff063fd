# SPDX-License-Identifier: Apache-2.0
"""Text to ids and back, for the character-level tokenizer and for others."""

import json
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer as Inner
from tokenizers import decoders, models, pre_tokenizers, trainers

from lutra.hls_models.errors import ModelError
from lutra.mapping.tokenizer import Tokenizer, write_characters

ALPHABET = sorted("\n !$&',-.3:;?" + "ABCDEFGHIJKLMNOPQRSTUVWXYZ" + "abcdefghijklmnopqrstuvwxyz")


def test_every_text_over_the_alphabet_survives(tmp_path: Path, rng: np.random.Generator) -> None:
    write_characters(tmp_path / "tokenizer.json", ALPHABET)
    tokenizer = Tokenizer.load(tmp_path, len(ALPHABET))
    for text in ("", "\n", "  two  spaces\n\n\nlines ", "O Romeo, Romeo!\nwherefore art thou?", *("".join(rng.choice(ALPHABET, 300)) for _ in range(20))):
        ids = tokenizer.encode(text)
        assert ids == [ALPHABET.index(c) for c in text]
        assert tokenizer.decode(ids) == text
    assert [tokenizer.decode([i]) for i in range(65)] == ALPHABET


def test_any_alphabet(tmp_path: Path) -> None:
    alphabet = ["é", "\\", '"', "\t", "\r", "漢", "😀", " "]
    write_characters(tmp_path / "tokenizer.json", alphabet)
    tokenizer = Tokenizer.load(tmp_path)
    assert tokenizer.encode('漢\\ "\té\r😀') == [5, 1, 7, 2, 3, 0, 4, 6]
    assert tokenizer.decode([5, 1, 7, 2, 3, 0, 4, 6]) == '漢\\ "\té\r😀'


def test_byte_level_bpe_is_read(tmp_path: Path) -> None:
    inner = Inner(models.BPE())
    inner.pre_tokenizer, inner.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    corpus = ["the cat sat on the mat with the hat"] * 4
    inner.train_from_iterator(corpus, trainers.BpeTrainer(vocab_size=300, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False))
    inner.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "config.json").write_text(json.dumps({"eos_token_id": [7, 9]}))
    tokenizer = Tokenizer.load(tmp_path, 300)
    assert tokenizer.decode(tokenizer.encode("the hat, naïvely\n")) == "the hat, naïvely\n"
    assert tokenizer.stop == {7, 9}


def test_unknown_characters_are_named(tmp_path: Path) -> None:
    write_characters(tmp_path / "tokenizer.json", ALPHABET)
    with pytest.raises(ModelError, match="no token for '#', 'é'"):
        Tokenizer.load(tmp_path).encode("é is #")


def test_missing_and_damaged_files(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"tokenizer\.json: no such file; text needs a tokenizer"):
        Tokenizer.load(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ModelError, match="no tokenizer that tokenizers"):
        Tokenizer.load(tmp_path)
    write_characters(tmp_path / "tokenizer.json", ALPHABET)
    with pytest.raises(ModelError, match="token ids must be below the model's vocabulary of 64, not 64"):
        Tokenizer.load(tmp_path, 64)
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": "no"}))
    with pytest.raises(ModelError, match="eos_token_id must be a token id"):
        Tokenizer.load(tmp_path)
