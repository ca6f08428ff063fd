# SPDX-License-Identifier: Apache-2.0
"""Train a small BitNet b1.58 language model on any text file, character level, and store it as a Hugging Face style folder.

    python -m pip install --editable '.[train]'     # torch
    python examples/train_tiny_lm.py input.txt -o my-model --seed 1

The model is the BitNet b1.58 2B4T architecture (arXiv 2504.12285) made small: ternary weights by absmean, int8 activations by per-token absmax,
RMSNorm with sub-layer norms, RoPE, squared-ReLU gated FFN, grouped-query attention. Quantisation-aware from step 0 with a straight-through
estimator; two-stage learning rate and weight decay (arXiv 2402.17764's training tips). ``--float`` trains the full-precision twin instead.
A run that was interrupted continues from ``OUT/checkpoint.pt``; the last 10 % of the text are never trained on. Of a finished run the same
command writes the folder anew, with ``--twin TWIN`` the card names the twin's figure too.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
import tiny_lm  # before torch, whose absence it explains
import torch
import torch.nn.functional as F  # noqa: N812 (torch's own habit)
from torch import nn

from lutra.hls_models.shape import ModelShape
from lutra.mapping.exporter import export


def learning_rate(step: int, steps: int, peak: float, ternary: bool) -> tuple[float, float]:
    """(learning rate, weight decay) at ``step``: two stages for ternary weights, one cosine for the float twin."""
    warm = min(1.0, (step + 1) / 100)
    t = step / steps
    if not ternary:
        return peak * warm * 0.5 * (1 + math.cos(math.pi * t)), 0.1
    if t < 0.5:
        return peak * warm * (1 - 0.35 * t / 0.5), 0.1
    return peak * 0.4 * (1 - (t - 0.5) / 0.5) + 1e-6, 0.0


def train(args: argparse.Namespace) -> None:
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    text = args.text.read_text(encoding="utf-8")
    alphabet = sorted(set(text))
    lookup = {c: i for i, c in enumerate(alphabet)}
    data = torch.tensor([lookup[c] for c in text])
    cut = tiny_lm.split(len(data))
    trained, held = data[:cut], data[cut:]
    shape = tiny_lm.Shape(vocabulary=len(alphabet))
    model = tiny_lm.LanguageModel(shape, ternary=not args.float, dropout=args.dropout)
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr, betas=(0.9, 0.95))
    generator = torch.Generator().manual_seed(args.seed)
    args.output.mkdir(parents=True, exist_ok=True)
    checkpoint = args.output / "checkpoint.pt"
    first = 0
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        generator.set_state(state["generator"])
        torch.set_rng_state(state["rng"])
        first = state["step"]
    fast = torch.compile(model) if args.compile else model
    started, c = time.monotonic(), shape.context
    for step in range(first, args.steps):
        rate, decay = learning_rate(step, args.steps, args.lr, not args.float)
        for group in optimizer.param_groups:
            group["lr"], group["weight_decay"] = rate, decay
        at = torch.randint(len(trained) - c - 1, (args.batch,), generator=generator)
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
            speed = (step + 1 - first) * args.batch * c / (time.monotonic() - started)
            print(f"step {step + 1}/{args.steps}  loss {loss.item():.4f}  {speed:,.0f} characters/s", flush=True)
        if (step + 1) % 1000 == 0 or step + 1 == args.steps:
            print(f"held-out loss after {step + 1} steps: {tiny_lm.held_out_loss(model, held, shape.context):.4f} nats per character", flush=True)
            kept = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "generator": generator.get_state()}
            torch.save(kept | {"rng": torch.get_rng_state(), "step": step + 1}, checkpoint)
    final = tiny_lm.held_out_loss(model, held, shape.context)
    facts = {
        "held_out_loss": final,
        "steps": args.steps,
        "batch": args.batch,
        "seed": args.seed,
        "dropout": args.dropout,
        "lr": args.lr,
        "float": args.float,
        "shape": asdict(shape),
    }
    (args.output / "training.json").write_text(json.dumps(facts, indent=2) + "\n")
    print(f"held-out loss: {final:.4f} nats per character")
    if not args.float:
        twin = json.loads((args.twin / "training.json").read_text()) if args.twin else None
        export(args.output, model_shape(shape, args.output.resolve().name), arrays(model), alphabet, facts, twin, args.data or args.text.name)
        print(f"model written to {args.output}")


def model_shape(s: tiny_lm.Shape, name: str) -> ModelShape:
    return ModelShape(name=name, activation="relu2", sub_norms=True, tied=True, **asdict(s))


def arrays(model: tiny_lm.LanguageModel) -> dict[str, np.ndarray]:
    """Master weights under Hugging Face's BitNet names."""
    renamed = {}
    for name, value in model.state_dict().items():
        for part in ("q_proj", "k_proj", "v_proj", "o_proj", "attn_sub_norm"):
            name = name.replace(f".{part}.", f".self_attn.{part}.")
        for part in ("gate_proj", "up_proj", "down_proj", "ffn_sub_norm"):
            name = name.replace(f".{part}.", f".mlp.{part}.")
        renamed["model." + name.replace("embed_tokens", "embed_tokens.weight")] = value.float().numpy()
    return renamed


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("text", type=Path, help="a UTF-8 text file")
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder that receives the model")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--steps", type=int, default=15000)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--dropout", type=float, default=0.05)
    parser.add_argument("--lr", type=float, default=4e-3, help="peak learning rate (the float twin trains best at 2e-3)")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--no-compile", dest="compile", action="store_false", help="without torch.compile: no C++ compiler needed, 1.5x slower")
    parser.add_argument("--float", action="store_true", help="train the full-precision twin")
    parser.add_argument("--twin", type=Path, help="output folder of the full-precision twin, for the model card")
    parser.add_argument("--data", help="what the text is, for the model card (default: its file name)")
    train(parser.parse_args())
