# SPDX-License-Identifier: Apache-2.0
"""Train a small GPT-2 on any text file, character level, and store it as a Hugging Face style folder (float32 weights).

    python -m pip install --editable '.[train]'     # torch
    python examples/train_tiny_gpt.py input.txt -o my-gpt --seed 1

GPT-2's architecture (pre-norm, biases, learned positions, tanh GELU, tied head) made small, for the PIM target, whose banks hold bf16 values.
The last 10 % of the text are never trained on.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import tiny_lm  # before torch, whose absence it explains
import torch
import torch.nn.functional as F  # noqa: N812 (torch's own habit)
from torch import Tensor, nn

from lutra.mapping.safetensors_file import write
from lutra.mapping.tokenizer import write_characters


@dataclass(frozen=True)
class Shape:
    """Sizes of the model."""

    vocabulary: int
    hidden: int = 96
    layers: int = 3
    heads: int = 3
    context: int = 256
    eps: float = 1e-5


class Block(nn.Module):
    """Decoder layer with GPT-2's names; matrices (outputs, inputs)."""

    def __init__(self, s: Shape, dropout: float) -> None:
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(s.hidden, s.eps), nn.LayerNorm(s.hidden, s.eps)
        self.attn = nn.ModuleDict({"c_attn": nn.Linear(s.hidden, 3 * s.hidden), "c_proj": nn.Linear(s.hidden, s.hidden)})
        self.mlp = nn.ModuleDict({"c_fc": nn.Linear(s.hidden, 4 * s.hidden), "c_proj": nn.Linear(4 * s.hidden, s.hidden)})
        self.heads, self.dropout = s.heads, nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        n, t, d = x.shape
        parts = self.attn["c_attn"](self.ln_1(x)).view(n, t, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4)
        queries, keys, values = parts.unbind(0)
        mixed = F.scaled_dot_product_attention(queries, keys, values, is_causal=True).transpose(1, 2).reshape(n, t, d)
        x = x + self.dropout(self.attn["c_proj"](mixed))
        return x + self.dropout(self.mlp["c_proj"](F.gelu(self.mlp["c_fc"](self.ln_2(x)), approximate="tanh")))


class Gpt(nn.Module):
    """Token ids (n, t) to logits (n, t, vocabulary)."""

    def __init__(self, s: Shape, dropout: float) -> None:
        super().__init__()
        self.s = s
        self.wte, self.wpe = nn.Embedding(s.vocabulary, s.hidden), nn.Embedding(s.context, s.hidden)
        self.h = nn.ModuleList(Block(s, dropout) for _ in range(s.layers))
        self.ln_f = nn.LayerNorm(s.hidden, s.eps)
        for name, weight in self.named_parameters():
            if weight.ndim == 2:
                nn.init.normal_(weight, std=0.02 if name.startswith("w") else 0.5 / math.sqrt(weight.shape[1]))

    def forward(self, ids: Tensor) -> Tensor:
        x = self.wte(ids) + self.wpe(torch.arange(ids.shape[1]))
        for block in self.h:
            x = block(x)
        return F.linear(self.ln_f(x), self.wte.weight)


def train(args: argparse.Namespace) -> None:
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    text = args.text.read_text(encoding="utf-8")
    alphabet = sorted(set(text))
    lookup = {c: i for i, c in enumerate(alphabet)}
    data = torch.tensor([lookup[c] for c in text])
    cut = tiny_lm.split(len(data))
    trained, held = data[:cut], data[cut:]
    shape = Shape(vocabulary=len(alphabet))
    model = Gpt(shape, args.dropout)
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr, betas=(0.9, 0.95), weight_decay=0.1)
    fast = torch.compile(model) if args.compile else model
    started, c = time.monotonic(), shape.context
    for step in range(args.steps):
        for group in optimizer.param_groups:
            group["lr"] = args.lr * min(1.0, (step + 1) / 100) * max(0.5 * (1 + math.cos(math.pi * step / args.steps)), 0.01)
        at = torch.randint(len(trained) - c - 1, (args.batch,))
        x = torch.stack([trained[i : i + c] for i in at])
        y = torch.stack([trained[i + 1 : i + c + 1] for i in at])
        with torch.autocast("cpu", torch.bfloat16):
            logits = fast(x)
        loss = F.cross_entropy(logits.float().flatten(0, 1), y.flatten())
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if (step + 1) % 50 == 0:
            speed = (step + 1) * args.batch * c / (time.monotonic() - started)
            print(f"step {step + 1}/{args.steps}  loss {loss.item():.4f}  {speed:,.0f} characters/s", flush=True)
        if (step + 1) % 1000 == 0:
            print(f"held-out loss after {step + 1} steps: {tiny_lm.held_out_loss(model, held, shape.context):.4f} nats per character", flush=True)
    final = tiny_lm.held_out_loss(model, held, shape.context)
    facts = {"held_out_loss": final, **{k: getattr(args, k) for k in ("steps", "batch", "seed", "dropout", "lr")}, "shape": asdict(shape)}
    store(args.output, model, alphabet, facts, args.data or args.text.name)
    print(f"held-out loss: {final:.4f} nats per character; model written to {args.output}")


def store(folder: Path, model: Gpt, alphabet: list[str], facts: dict[str, object], data: str) -> None:
    """Write config.json, model.safetensors (GPT-2's names; Conv1D matrices are (inputs, outputs)), tokenizer.json, training.json and the model card."""
    s = model.s
    tensors: dict[str, np.ndarray] = {}
    for name, value in model.state_dict().items():
        conv = name.startswith("h.") and value.ndim == 2
        tensors[name] = np.ascontiguousarray((value.T if conv else value).float().numpy())
    folder.mkdir(parents=True, exist_ok=True)
    write(folder / "model.safetensors", tensors, {"format": "pt"})
    config = {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "n_embd": s.hidden,
        "n_layer": s.layers,
        "n_head": s.heads,
        "n_positions": s.context,
        "n_inner": None,
        "vocab_size": s.vocabulary,
        "activation_function": "gelu_new",
        "layer_norm_epsilon": s.eps,
        "tie_word_embeddings": True,
        "torch_dtype": "float32",
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    (folder / "training.json").write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    write_characters(folder / "tokenizer.json", alphabet)
    parameters = sum(value.size for value in tensors.values())
    card = CARD.format(
        name=folder.resolve().name,
        parameters=parameters,
        **asdict(s),
        data=data,
        text=data.split(" (")[0],
        bits=float(str(facts["held_out_loss"])) / math.log(2),
        **facts,
    )
    (folder / "README.md").write_text(card, encoding="utf-8")


CARD = """---
license: apache-2.0
language: en
pipeline_tag: text-generation
tags: [gpt2, character-level]
---
# {name}

A character-level GPT-2 (pre-norm, learned positions, tanh GELU, tied head), small enough that whole tokens of it run on simulated process-in-memory hardware.

| | |
|---|---|
| parameters | {parameters:,}, float32 |
| shape | {layers} layers, hidden {hidden}, {heads} heads, context {context}, {vocabulary} characters |
| training text | {data}, first 90 % |
| recipe | {steps:,} steps of {batch} x {context} characters, AdamW, learning rate {lr:g} (cosine), dropout {dropout:g}, seed {seed} |
| held-out loss | **{held_out_loss:.4f} nats per character** ({bits:.3f} bits) |

The held-out loss is the mean over the last 10 % of the text, non-overlapping windows of {context} characters, all positions, in float32.

Trained from random weights by `examples/train_tiny_gpt.py` of lutra:

    python examples/train_tiny_gpt.py {text} -o {name} --seed {seed} --steps {steps} --batch {batch} --dropout {dropout:g} --lr {lr:g}

Licence: Apache-2.0 (weights). It writes in the manner of its training text and knows nothing else.
"""

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("text", type=Path, help="a UTF-8 text file")
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder that receives the model")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--steps", type=int, default=6000)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--dropout", type=float, default=0.05)
    parser.add_argument("--lr", type=float, default=3e-3, help="peak learning rate")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--no-compile", dest="compile", action="store_false", help="without torch.compile: no C++ compiler needed, slower")
    parser.add_argument("--data", help="what the text is, for the model card (default: its file name)")
    train(parser.parse_args())
