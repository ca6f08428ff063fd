# SPDX-License-Identifier: Apache-2.0
"""The torch model that ``train_tiny_lm.py`` trains: BitNet b1.58 2B4T's architecture made small, quantised in the forward pass.

Import it before torch: where torch is missing it says in one line how to get it.
"""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass

try:
    import torch
except ModuleNotFoundError as error:
    if error.name != "torch":
        raise
    print("error: torch is not installed; in a clone of lutra: .venv/bin/python -m pip install --editable '.[train]'", file=sys.stderr)
    raise SystemExit(2) from None

import torch.nn.functional as F  # noqa: N812 (torch's own habit)
from torch import Tensor, nn

__all__ = ["BitLinear", "LanguageModel", "Shape", "held_out_loss", "split"]


def split(length: int) -> int:
    """Where the held-out part of a text of ``length`` characters begins: its last 10 % are never trained on."""
    return int(length * 0.9)


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

    def ternarised(self) -> Tensor:
        """The weights that the product sees: {-1, 0, 1} times their absolute mean."""
        w = self.weight.detach()
        mean = w.abs().mean().clamp(min=1e-5)
        return (w / mean).round().clamp(-1, 1) * mean

    def forward(self, x: Tensor) -> Tensor:
        w: Tensor = self.weight
        if self.ternary:
            w = w + (self.ternarised() - w.detach())
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
    cos: Tensor
    sin: Tensor

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


def held_out_loss(model: nn.Module, ids: Tensor, context: int) -> float:
    """Mean nats per character over the non-overlapping windows of one context length, all positions, in float32."""
    c = context
    windows = (len(ids) - 1) // c
    x = ids[: windows * c].view(windows, c)
    y = ids[1 : windows * c + 1].view(windows, c)
    model.eval()
    with torch.no_grad():
        losses = [F.cross_entropy(model(a).flatten(0, 1), b.flatten(), reduction="sum").item() for a, b in zip(x.split(16), y.split(16), strict=True)]
    model.train()
    return sum(losses) / (windows * c)
