# SPDX-License-Identifier: Apache-2.0
"""A trained BitNet model as a Hugging Face style folder: config.json, model.safetensors, tokenizer.json and a model card."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lutra.hls_models.errors import ModelError
from lutra.hls_models.shape import CONFIG_NAMES, ModelShape
from lutra.mapping.importer import NORM_NAMES, PLACES, pack_rows
from lutra.mapping.model import ternarise
from lutra.mapping.safetensors_file import write
from lutra.mapping.tokenizer import write_characters

__all__ = ["export"]

CARD = """---
license: apache-2.0
language: en
pipeline_tag: text-generation
tags: [bitnet, ternary, character-level]
---
# {name}

A character-level language model with ternary weights (BitNet b1.58): weights in {{-1, 0, 1}} with one scale per matrix, int8 activations, RMSNorm
with sub-layer norms, RoPE, squared-ReLU gated feed-forward layers and grouped-query attention. Small enough for the on-chip memory of an FPGA.

| | |
|---|---|
| parameters | {parameters:,}, of which {ternary:,} ternary ({zeros:.0%} zeros) |
| shape | {layers} layers, hidden {hidden}, {heads} heads x {head_dim} ({kv_heads} key/value), FFN {ffn}, context {context}, {vocabulary} characters |
| training text | {data}, first 90 % |
| recipe | {steps:,} steps of {batch} x {context} characters ({tokens:.1f} M), AdamW, learning rate {lr:g} in two stages, dropout {dropout:g}, seed {seed} |
| held-out loss | **{loss:.4f} nats per character** ({bits:.3f} bits) |
{twin}
The held-out loss is the mean over the last 10 % of the text, non-overlapping windows of {context} characters, all positions, with the arithmetic of training
(ternary weights, int8 activations, the rest in float32).{remark}

Trained from random weights by `examples/train_tiny_lm.py` of lutra (quantisation-aware from step 0, straight-through estimator):

    python examples/train_tiny_lm.py {text} -o {name} --seed {seed} --steps {steps} --batch {batch} --dropout {dropout:g} --lr {lr:g}

Licence: Apache-2.0 (weights). It writes in the manner of its training text and knows nothing else.
"""

REMARK = """

The twin's recipe was taken over from the ternary model, its learning rate aside (one cosine), and not tuned; ternary weights also regularise, so that a
worse twin does not mean that full precision can do no better."""


def export(
    folder: Path,
    shape: ModelShape,
    weights: Mapping[str, np.ndarray],
    alphabet: Sequence[str],
    facts: Mapping[str, Any],
    twin: Mapping[str, Any] | None,
    data: str,
) -> None:
    """Write the folder; existing files of the same names are replaced.

    Parameters
    ----------
    shape
        Of the model; with sub-norms and a tied head.
    weights
        Float32 master weights under Hugging Face's BitNet names ("model.layers.0.self_attn.q_proj.weight", …); matrices are ternarised by absmean.
    alphabet
        Character of each token id.
    facts, twin
        ``training.json`` of the run and, if there is one, of its full-precision twin.
    data
        What the model was trained on, for the card: file name, then anything in brackets.

    Raises
    ------
    ModelError
        Weights are missing, unknown, not finite or of the wrong shape; all are listed.
    """
    matrices, plain = _names(shape)
    expected = matrices | plain
    problems = [f"missing {name}" for name in expected if name not in weights] + [f"unknown {name}" for name in weights if name not in expected]
    for name, size in expected.items():
        if name in weights and weights[name].shape != size:
            problems.append(f"{name} must have shape {list(size)}, not {list(weights[name].shape)}")
        elif name in weights and not np.isfinite(weights[name]).all():
            problems.append(f"{name} must be finite")
    if len(alphabet) != shape.vocabulary:
        problems.append(f"alphabet must have {shape.vocabulary} characters, not {len(alphabet)}")
    if problems:
        raise ModelError(f"{folder}: nothing exported: {'; '.join(problems)}")
    tensors: dict[str, np.ndarray] = {}
    zeros = 0
    for name in expected:
        if name in plain:
            tensors[name] = weights[name].astype(np.float32)
            continue
        matrix = ternarise(weights[name])
        values = matrix.known()
        zeros += int((values == 0).sum())
        tensors[name] = pack_rows(values)
        tensors[f"{name}_scale"] = np.array(matrix.scales, np.float32)
    folder.mkdir(parents=True, exist_ok=True)
    write(folder / "model.safetensors", tensors, {"format": "pt"})
    (folder / "config.json").write_text(json.dumps(_config(shape), indent=2) + "\n", encoding="utf-8")
    write_characters(folder / "tokenizer.json", alphabet)
    (folder / "README.md").write_text(_card(shape, facts, twin, data, zeros / shape.ternary_weights), encoding="utf-8")


def _names(shape: ModelShape) -> tuple[dict[str, tuple[int, ...]], dict[str, tuple[int, ...]]]:
    """Shapes of the matrices and of everything else, by Hugging Face name."""
    matrices: dict[str, tuple[int, ...]] = {}
    plain: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (shape.vocabulary, shape.hidden), "model.norm.weight": (shape.hidden,)}
    for layer in range(shape.layers):
        matrices |= {f"model.layers.{layer}.{PLACES[m.name]}.weight": (m.outputs, m.inputs) for m in shape.linears()}
        plain |= {f"model.layers.{layer}.{NORM_NAMES[name][0]}.weight": (size,) for name, size in shape.norms().items()}
    return matrices, plain


def _config(shape: ModelShape) -> dict[str, Any]:
    sizes = {theirs: getattr(shape, ours) for ours, theirs in CONFIG_NAMES.items()}
    return {
        "architectures": ["BitNetForCausalLM"],
        "model_type": "bitnet",
        **sizes,
        "attention_bias": False,
        "tie_word_embeddings": shape.tied,
        "torch_dtype": "float32",
        "quantization_config": {"quant_method": "bitnet", "linear_class": "autobitlinear", "quantization_mode": "offline"},
    }


def _card(shape: ModelShape, facts: Mapping[str, Any], twin: Mapping[str, Any] | None, data: str, zeros: float) -> str:
    loss = facts["held_out_loss"]
    other = remark = ""
    if twin:
        remark = REMARK if twin["held_out_loss"] > loss else ""
        recipe = f"same sizes and text, {twin['steps']:,} steps, learning rate {twin['lr']:g}"
        other = f"| full-precision twin | {twin['held_out_loss']:.4f} nats per character ({recipe}) |\n"
    return CARD.format(
        **{**shape.model_dump(), **{key: facts[key] for key in ("steps", "batch", "seed", "dropout", "lr")}},
        parameters=shape.parameters,
        ternary=shape.ternary_weights,
        zeros=zeros,
        tokens=facts["steps"] * facts["batch"] * shape.context / 1e6,
        loss=loss,
        bits=loss / math.log(2),
        twin=other,
        remark=remark,
        data=data,
        text=data.split(" ")[0],
    )
