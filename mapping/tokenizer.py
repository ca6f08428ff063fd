# SPDX-License-Identifier: Apache-2.0
"""Text to token ids and back: any ``tokenizer.json`` that the ``tokenizers`` package reads, and the character-level one that the exporter writes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import tokenizers
from tokenizers import Regex, decoders, models, pre_tokenizers

from lutra.hls_models.errors import ModelError
from lutra.hls_models.shape import read_config

__all__ = ["Tokenizer", "write_characters"]


class Tokenizer:
    """A folder's tokenizer and stop tokens.

    Parameters
    ----------
    inner
        The ``tokenizers`` object.
    stop
        Ids that end a text (``eos_token_id`` of generation_config.json or config.json).
    path
        File named in messages.
    """

    def __init__(self, inner: tokenizers.Tokenizer, stop: frozenset[int], path: Path) -> None:
        self._inner, self.stop, self._path = inner, stop, path

    @classmethod
    def load(cls, folder: Path, vocabulary: int | None = None, limit: int | None = None) -> Tokenizer:
        """The tokenizer of a model folder; ModelError where it is missing, damaged or knows ids that a model of ``vocabulary`` rows lacks.

        Texts are neither padded nor cut, whatever the file says, but to ``limit`` tokens where one is given.
        """
        path = folder / "tokenizer.json"
        if not path.exists():
            raise ModelError(f"{path}: no such file; text needs a tokenizer: add tokenizer.json (lutra eval takes --ids instead)")
        try:
            inner = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # the package raises bare Exception
            raise ModelError(f"{path}: no tokenizer that tokenizers {tokenizers.__version__} reads ({error})") from None
        inner.no_padding()
        if limit is None:
            inner.no_truncation()
        else:
            inner.enable_truncation(limit)
        largest = max(inner.get_vocab(with_added_tokens=True).values(), default=-1)
        if vocabulary is not None and largest >= vocabulary:
            raise ModelError(f"{path}: token ids must be below the model's vocabulary of {vocabulary}, not {largest}")
        return cls(inner, _stop_ids(folder), path)

    def encode(self, text: str) -> list[int]:
        """Token ids of ``text``, special tokens included; ModelError where the tokenizer has no tokens for it."""
        try:
            ids = self._inner.encode(text).ids
        except Exception as error:  # the package raises bare Exception
            known = self._inner.get_vocab()
            strange = sorted({c for c in text if c not in known})
            raise ModelError(f"{self._path}: no token for {', '.join(map(repr, strange)) or 'this text'} ({error})") from None
        if text and not ids:
            raise ModelError(f"{self._path}: no tokens for {text[:40]!r}")
        return [int(i) for i in ids]

    def decode(self, ids: Sequence[int]) -> str:
        """Text of token ids, special tokens left out."""
        return str(self._inner.decode(list(ids), skip_special_tokens=True))


def write_characters(path: Path, alphabet: Sequence[str]) -> None:
    """A ``tokenizer.json`` in which character ``alphabet[i]`` is token i; every text over the alphabet encodes and decodes exactly."""
    inner = tokenizers.Tokenizer(models.WordLevel({c: i for i, c in enumerate(alphabet)}))
    inner.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    inner.decoder = decoders.Fuse()
    path.write_text(json.dumps(json.loads(inner.to_str()), indent=1, ensure_ascii=True) + "\n", encoding="utf-8")


def _stop_ids(folder: Path) -> frozenset[int]:
    for name in ("generation_config.json", "config.json"):
        path = folder / name
        if path.exists():
            stop = read_config(path).get("eos_token_id")
            if stop is not None:
                ids = stop if isinstance(stop, list) else [stop]
                if not all(isinstance(i, int) and i >= 0 for i in ids):
                    raise ModelError(f"{path}: eos_token_id must be a token id or a list of them, not {stop!r}")
                return frozenset(ids)
    return frozenset()
