# SPDX-License-Identifier: Apache-2.0
"""The hardware's arithmetic beside the torch model as it was trained, on text that neither has seen.

    python -m pip install --editable '.[train]'     # torch
    python examples/compare_with_torch.py tinyshakespeare.txt

TEXT is the whole training text; its last 10 % are held out. The folder's weights go into the training script's own module, whose forward
quantises weights and activations as it did in training, and both models run the same windows of one context length. The exit code is 1 where
the losses lie more than 0.5 % apart, 2 where the input is wrong.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import numpy as np
import tiny_lm  # before torch, whose absence it explains
import torch
import torch.nn.functional as F  # noqa: N812 (torch's own habit)

from lutra import api
from lutra.hls_models.errors import LutraError, ModelError
from lutra.hls_models.shape import read_config
from lutra.mapping.catalogue import HERE, model_names, open_model
from lutra.mapping.importer import NORM_NAMES
from lutra.mapping.model import Matrix, TernaryModel
from lutra.mapping.tokenizer import Tokenizer

LIMIT = 0.005
"""Largest relative difference of the losses."""

FEWEST = 4096
"""Characters, below which a loss says too little."""


def master(matrix: Matrix) -> np.ndarray:
    """Weights, float32, that the module's absmean quantiser turns into ``matrix``: spread over fewer weights, its scale is larger by their share."""
    values = matrix.known().astype(np.float64)
    share = np.abs(values).mean() or 1.0
    return (values * matrix.scales[0] / share).astype(np.float32)


def trained(model: TernaryModel) -> tiny_lm.LanguageModel:
    """The torch module with a folder's weights.

    Raises
    ------
    ModelError
        The module is of another kind than the model, or does not quantise its weights to those of the folder.
    """
    s = model.shape
    if s.activation != "relu2" or not s.sub_norms or not s.tied:
        raise ModelError(f"{s.name}: must have activation relu2, sub-norms and a tied head, not {s.activation}, sub_norms {s.sub_norms}, tied {s.tied}")
    module = tiny_lm.LanguageModel(tiny_lm.Shape(**{name: getattr(s, name) for name in tiny_lm.Shape.__dataclass_fields__}))
    arrays = {"embed_tokens": model.embedding.known(), "norm.weight": model.gains["norm"]}
    arrays |= {f"{name}.weight": master(matrix) for name, matrix in model.matrices.items()}
    for layer in range(s.layers):
        arrays |= {f"layers.{layer}.{NORM_NAMES[norm][0].split('.')[-1]}.weight": model.gains[f"layers.{layer}.{norm}"] for norm in s.norms()}
    module.load_state_dict({name: torch.tensor(values) for name, values in arrays.items()})
    for name, part in module.named_modules():
        if isinstance(part, tiny_lm.BitLinear):
            stored = model.matrices[name].known() * model.matrices[name].row_scales()[:, None]
            if not np.allclose(part.ternarised().numpy(), stored, rtol=1e-5, atol=0):
                raise ModelError(f"{s.name}: {name}: torch quantises its weights to others than the folder holds")
    return module.eval()


def loss(module: tiny_lm.LanguageModel, ids: torch.Tensor) -> float:
    """Mean nats of every token that has a successor, in windows of one context length; ``api.evaluate``'s definition."""
    with torch.no_grad():
        logits = torch.cat([module(window[None])[0] for window in ids.split(module.s.context)])
    return F.cross_entropy(logits[:-1].double(), ids[1:]).item()


def held_out(text: Path) -> str:
    try:
        whole = text.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise LutraError(f"{text}: must be UTF-8 text") from None
    except OSError as error:
        raise LutraError(f"{text}: cannot be read: {error.strerror}") from None
    found = whole[tiny_lm.split(len(whole)) :]
    if len(found) <= FEWEST:
        raise LutraError(f"{text}: must have more than {FEWEST:,} characters in its last 10 %, not {len(found):,}")
    return found


def compare(args: argparse.Namespace) -> int:
    """Prints the losses; the exit code."""
    if args.characters < FEWEST:
        raise LutraError(f"--characters must be at least {FEWEST:,}, not {args.characters:,}")
    text = held_out(args.text)
    folder = HERE / "models" / args.model if args.model in model_names() else Path(args.model)
    model = open_model(args.model)
    if not isinstance(model, TernaryModel):
        raise ModelError(f"{args.model}: only a shape, and this needs weights; give a folder with config.json and model.safetensors")
    module = trained(model)
    ids = np.array(Tokenizer.load(folder, model.shape.vocabulary).encode(text))
    every = tiny_lm.held_out_loss(module, torch.tensor(ids), module.s.context)
    facts = folder / "training.json"
    recorded = read_config(facts).get("held_out_loss") if facts.exists() else None
    beside = f"; recorded in training: {recorded:.4f}" if isinstance(recorded, float) else ""
    print(f"torch {torch.__version__}, all {len(ids):,} held-out characters: {every:.4f} nats per character{beside}", flush=True)
    part = ids[: args.characters]
    by_torch = loss(module, torch.tensor(part))
    with tempfile.TemporaryDirectory() as scratch:
        np.save(Path(scratch) / "ids.npy", part)
        found = api.evaluate(args.model, args.config, ids=Path(scratch) / "ids.npy")
    difference = found.loss_golden / by_torch - 1
    passed = abs(difference) <= LIMIT
    print(f"the first {len(part):,} of them, in windows of {model.shape.context}:")
    print(f"  torch    {by_torch:.5f}")
    print(f"  golden   {found.loss_golden:.5f}  ({difference:+.3%}: {'within' if passed else 'beyond'} {LIMIT:.1%} of torch)")
    print(f"  float64  {found.loss_float64:.5f}")
    return 0 if passed else 1


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("text", type=Path, help="the training text, a UTF-8 file")
    parser.add_argument("--model", default="tiny-shakespeare", help="folder that train_tiny_lm.py wrote, or the shipped model's name (default)")
    parser.add_argument("--config", default="tiny", help="the hardware: a preset's name or a YAML file (default: tiny)")
    parser.add_argument("--characters", type=int, default=8192, help="held-out characters to run (default: 8192)")
    try:
        sys.exit(compare(parser.parse_args()))
    except LutraError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
