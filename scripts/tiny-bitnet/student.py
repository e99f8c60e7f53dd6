"""The student: BitNet b1.58 of llama.cpp's architecture `bitnet`, for training and for export.

A llama with ternary linear layers, 8-bit activations, a norm before each of the two output projections, and the
embedding for a head. `BitLinear` computes in training exactly what the exported file holds: the scale is rounded to
f16 in every forward, as a block of TQ1_0 stores it.
"""

from dataclasses import asdict, dataclass

import torch
import torch.nn.functional as F
from torch import nn

from teacher import rope_tables


@dataclass
class Shape:
    n_vocab: int = 16384
    n_embd: int = 512
    n_layer: int = 8
    n_head: int = 8
    n_ff: int = 1536
    n_ctx: int = 1024
    rope_base: float = 10000.0
    eps: float = 1e-5

    def config(self):
        return asdict(self)


def ternary(weight):
    """Values -1, 0 and 1, and their scale as f16 holds it (arXiv:2402.17764, absmean)."""
    scale = weight.abs().mean().clamp(min=1e-5).half().float()
    return (weight / scale).round().clamp(-1, 1), scale


class BitLinear(nn.Module):
    def __init__(self, n_in, n_out, deviation):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(n_out, n_in) * deviation)

    def forward(self, x):
        # Integers below 256 are exact in bf16, so the product is that of integers; gradients pass the rounding by.
        weight = self.weight.float()
        values, scale = ternary(weight.detach())
        values = (weight / scale + (values - weight / scale).detach()).to(x.dtype)
        x32 = x.float()
        largest = x32.abs().amax(-1, keepdim=True).clamp(min=1e-5)
        up = x32 * (127.0 / largest.detach())
        integers = (up + (up.round().clamp(-127, 127) - up).detach()).to(x.dtype)
        return F.linear(integers, values) * (largest.detach() / 127.0 * scale).to(x.dtype)


def rotate_halves(x, cos, sin):
    """x: [B, T, n_head, d]; cos, sin: [B, T, d / 2]"""
    a, b = x.chunk(2, -1)
    cos, sin = cos.to(x.dtype).unsqueeze(-2), sin.to(x.dtype).unsqueeze(-2)
    return torch.cat((a * cos - b * sin, a * sin + b * cos), -1)


class Norm(nn.Module):
    def __init__(self, n, eps):
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(n)), eps

    def forward(self, x):
        return F.rms_norm(x.float(), self.weight.shape, self.weight, self.eps).to(x.dtype)


class Block(nn.Module):
    def __init__(self, s):
        super().__init__()
        self.n_head = s.n_head
        deviation, out = s.n_embd**-0.5, s.n_embd**-0.5 * (2 * s.n_layer) ** -0.5
        self.attn_norm, self.attn_sub_norm = Norm(s.n_embd, s.eps), Norm(s.n_embd, s.eps)
        self.ffn_norm, self.ffn_sub_norm = Norm(s.n_embd, s.eps), Norm(s.n_ff, s.eps)
        self.q, self.k, self.v = (BitLinear(s.n_embd, s.n_embd, deviation) for _ in range(3))
        self.o = BitLinear(s.n_embd, s.n_embd, out)
        self.gate, self.up = (BitLinear(s.n_embd, s.n_ff, deviation) for _ in range(2))
        self.down = BitLinear(s.n_ff, s.n_embd, out)

    def forward(self, x, cos, sin, bias):
        h = self.attn_norm(x)
        q, k, v = (layer(h).unflatten(-1, (self.n_head, -1)) for layer in (self.q, self.k, self.v))
        q, k = rotate_halves(q, cos, sin), rotate_halves(k, cos, sin)
        y = F.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), attn_mask=bias)
        x = x + self.o(self.attn_sub_norm(y.transpose(1, 2).flatten(-2)))
        h = self.ffn_norm(x)
        return x + self.down(self.ffn_sub_norm(F.silu(self.gate(h)) * self.up(h)))


class Student(nn.Module):
    def __init__(self, shape):
        super().__init__()
        self.shape = shape
        self.embedding = nn.Parameter(torch.randn(shape.n_vocab, shape.n_embd) * 0.02)
        self.blocks = nn.ModuleList(Block(shape) for _ in range(shape.n_layer))
        self.output_norm = Norm(shape.n_embd, shape.eps)
        cos, sin = rope_tables(shape.n_embd // shape.n_head, shape.rope_base, shape.n_ctx, "cpu")
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)

    def forward(self, tokens, positions, bias, dtype=torch.bfloat16):
        """tokens, positions: [B, T]; bias: [B, 1, T, T], added to what attention weighs -> [B, T, n_embd], normed"""
        x = self.embedding[tokens].to(dtype)
        cos, sin = self.cos[positions], self.sin[positions]
        for block in self.blocks:
            x = block(x, cos, sin, bias)
        return self.output_norm(x)

    def logits(self, hidden):
        return F.linear(hidden, self.embedding.to(hidden.dtype))

    def n_ternary(self):
        return sum(m.weight.numel() for m in self.modules() if isinstance(m, BitLinear))
