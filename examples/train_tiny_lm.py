# SPDX-License-Identifier: Apache-2.0
"""Train a small BitNet b1.58 language model on any text file, character level, and store it as a Hugging Face style folder.

    pip install "lutra[train]"
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
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 (torch's own habit)
from torch import Tensor, nn

from lutra.hls_models.shape import ModelShape
from lutra.mapping.exporter import export


@dataclass(frozen=True)
class Shape:
    """Sizes of the model; the defaults fit an ECP5-85F with weights, embedding and cache on chip (docs/architecture.md)."""

    vocabulary: int
    hidden: int = 160
    layers: int = 4
    heads: int = 5
    kv_heads: int = 1
    head_dim: int = 32
    ffn: int = 384
    context: int = 256
    rope_theta: float = 10000.0
    eps: float = 1e-5


class BitLinear(nn.Module):
    """Linear layer with absmean-ternary weights and absmax-int8 activations; both gradients straight through."""

    def __init__(self, inputs: int, outputs: int, ternary: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs) * 0.8 / math.sqrt(inputs))
        self.ternary = ternary

    def forward(self, x: Tensor) -> Tensor:
        w = self.weight
        if self.ternary:
            mean = w.detach().abs().mean().clamp(min=1e-5)
            w = w + ((w.detach() / mean).round().clamp(-1, 1) * mean - w.detach())
            scale = 127 / x.detach().abs().amax(-1, keepdim=True).clamp(min=1e-5)
            x = x + ((x.detach() * scale).round().clamp(-128, 127) / scale - x.detach())
        return F.linear(x, w)


class RMSNorm(nn.Module):
    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        x = x.float()
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps) * self.weight


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """RoPE in the "rotate half" form: dimension i turns with dimension i + head_dim/2."""
    a, b = x.chunk(2, -1)
    return x * cos + torch.cat((-b, a), -1) * sin


class Layer(nn.Module):
    def __init__(self, s: Shape, ternary: bool, dropout: float) -> None:
        super().__init__()
        self.s, self.dropout = s, dropout
        self.input_layernorm = RMSNorm(s.hidden, s.eps)
        self.post_attention_layernorm = RMSNorm(s.hidden, s.eps)
        self.attn_sub_norm = RMSNorm(s.heads * s.head_dim, s.eps)
        self.ffn_sub_norm = RMSNorm(s.ffn, s.eps)
        self.q_proj = BitLinear(s.hidden, s.heads * s.head_dim, ternary)
        self.k_proj = BitLinear(s.hidden, s.kv_heads * s.head_dim, ternary)
        self.v_proj = BitLinear(s.hidden, s.kv_heads * s.head_dim, ternary)
        self.o_proj = BitLinear(s.heads * s.head_dim, s.hidden, ternary)
        self.gate_proj = BitLinear(s.hidden, s.ffn, ternary)
        self.up_proj = BitLinear(s.hidden, s.ffn, ternary)
        self.down_proj = BitLinear(s.ffn, s.hidden, ternary)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        s, (batch, length, _) = self.s, x.shape
        drop = self.dropout if self.training else 0.0
        h = self.input_layernorm(x)
        q, k, v = (p(h).view(batch, length, -1, s.head_dim).transpose(1, 2).float() for p in (self.q_proj, self.k_proj, self.v_proj))
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        group = s.heads // s.kv_heads
        a = F.scaled_dot_product_attention(q, k.repeat_interleave(group, 1), v.repeat_interleave(group, 1), is_causal=True)
        a = self.attn_sub_norm(a.transpose(1, 2).reshape(batch, length, -1))
        x = x + F.dropout(self.o_proj(a), drop, self.training)
        h = self.post_attention_layernorm(x)
        h = self.ffn_sub_norm(F.relu(self.gate_proj(h)).float().square() * self.up_proj(h))
        return x + F.dropout(self.down_proj(h), drop, self.training)


class LanguageModel(nn.Module):
    def __init__(self, s: Shape, ternary: bool = True, dropout: float = 0.0) -> None:
        super().__init__()
        self.s, self.dropout = s, dropout
        self.embed_tokens = nn.Parameter(torch.randn(s.vocabulary, s.hidden) * 0.02)
        self.layers = nn.ModuleList(Layer(s, ternary, dropout) for _ in range(s.layers))
        self.norm = RMSNorm(s.hidden, s.eps)
        inverse = s.rope_theta ** (-torch.arange(0, s.head_dim, 2).float() / s.head_dim)
        angle = torch.outer(torch.arange(s.context).float(), inverse).repeat(1, 2)
        self.register_buffer("cos", angle.cos(), persistent=False)
        self.register_buffer("sin", angle.sin(), persistent=False)

    def forward(self, ids: Tensor) -> Tensor:
        """Logits, (batch, length, vocabulary) float32, of token ids (batch, length)."""
        n = ids.shape[1]
        x = F.dropout(F.embedding(ids, self.embed_tokens), self.dropout if self.training else 0.0, self.training)
        for layer in self.layers:
            x = layer(x, self.cos[:n], self.sin[:n])
        return F.linear(self.norm(x), self.embed_tokens).float()


def held_out_loss(model: LanguageModel, ids: Tensor) -> float:
    """Mean nats per character over the non-overlapping windows of one context length, all positions, in float32."""
    c = model.s.context
    windows = (len(ids) - 1) // c
    x = ids[: windows * c].view(windows, c)
    y = ids[1 : windows * c + 1].view(windows, c)
    model.eval()
    with torch.no_grad():
        losses = [F.cross_entropy(model(a).flatten(0, 1), b.flatten(), reduction="sum").item() for a, b in zip(x.split(16), y.split(16), strict=True)]
    model.train()
    return sum(losses) / (windows * c)


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
    cut = int(len(data) * 0.9)
    trained, held = data[:cut], data[cut:]
    shape = Shape(vocabulary=len(alphabet))
    model = LanguageModel(shape, ternary=not args.float, dropout=args.dropout)
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
            print(f"held-out loss after {step + 1} steps: {held_out_loss(model, held):.4f} nats per character", flush=True)
            kept = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "generator": generator.get_state()}
            torch.save(kept | {"rng": torch.get_rng_state(), "step": step + 1}, checkpoint)
    final = held_out_loss(model, held)
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


def model_shape(s: Shape, name: str) -> ModelShape:
    return ModelShape(name=name, activation="relu2", sub_norms=True, tied=True, **asdict(s))


def arrays(model: LanguageModel) -> dict[str, np.ndarray]:
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
