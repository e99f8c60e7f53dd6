#!/usr/bin/env python3
"""Makes the golden numbers of tests/golden.rs: one training step, and a second, of tiny models in PyTorch.

usage: scripts/golden.py [OUT]        (default: tests/fixtures/golden)

Needs torch (made with 2.7; 1.13 gives the same to the last few bits of f64). CI does not run this: the numbers are
committed, and the test refuses them when this file has changed since.

Each architecture is made twice: with float weights, and with ternary ones, whose linear layers are integers in both
directions as docs/kernels.md has it. There a value that lies near the middle of two integers would fall on either side,
depending on the last bits of f32; so a seed is looked for with which none does.

The network is written down plainly from the papers and not from any other implementation, in f64:
RMSNorm arXiv:1910.07467, rotary embedding arXiv:2104.09864, SwiGLU arXiv:2002.05202, grouped queries arXiv:2305.13245,
BitNet's sub-norms arXiv:2310.11453 and 2402.17764, the squared ReLU of bitnet-b1.58 arXiv:2504.12285, LoRA
arXiv:2106.09685, AdamW arXiv:1711.05101.
Matrices are stored as GGUF has them: rows are outputs.
"""

import functools
import hashlib
import json
import math
import pathlib
import struct
import sys
import typing

import torch


class Shape(typing.NamedTuple):
    n_embd: int
    n_layer: int
    n_head: int
    n_head_kv: int
    n_ff: int
    n_vocab: int


# Rows of ternary weights are whole blocks of 256. Keys and values are half as wide as that.
SHAPES = {"float": Shape(32, 2, 4, 2, 48, 40), "ternary": Shape(256, 1, 4, 2, 256, 40)}
ARCHITECTURES = ["llama", "bitnet", "bitnet-b1.58"]
RMS_EPS, ROPE_BASE = 1e-5, 10000.0
RANK, ALPHA = 2, 6.0
ADAMW = {"lr": 1e-2, "betas": (0.9, 0.999), "weight_decay": 0.1}
# Large enough that no value's update hangs on the sign of a tiny gradient, or on its error where it is made of integers.
ADAMW_EPS = {"float": 1e-4, "ternary": 1e-3}
CLIP = 0.5
# How far a value that is rounded to 8 bits stays from the middle between two: f32 sums are off by some 1e-5 there.
MARGIN = 1e-4
TARGETS = ["attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"]
# Tokens of a row, and lengths of the samples in each: the first row is packed, the second ends in padding.
SEQ_LEN = {"float": 12, "ternary": 8}
ROWS = {"float": [[7, 5], [9]], "ternary": [[5, 3], [6]]}


def sizes(s, target):
    """Inputs and outputs of a linear layer."""
    kv = s.n_head_kv * (s.n_embd // s.n_head)
    return {
        "attn_q": (s.n_embd, s.n_embd),
        "attn_k": (s.n_embd, kv),
        "attn_v": (s.n_embd, kv),
        "attn_output": (s.n_embd, s.n_embd),
        "ffn_gate": (s.n_embd, s.n_ff),
        "ffn_up": (s.n_embd, s.n_ff),
        "ffn_down": (s.n_ff, s.n_embd),
    }[target]


class Ternary(typing.NamedTuple):
    """A weight of -1, 0 and 1 times a scale."""

    trits: torch.Tensor  # [outputs, inputs]
    scale: float


@functools.cache
def make_ternary(n_in, n_out, number):
    """Made from `number` by a generator that the test has too, and not stored: x = 1664525 x + 1013904223 modulo 2^32,
    and of each x the remainder of its upper half by 3. The scale is exact in f16."""
    x, trits = number, []
    for _ in range(n_in * n_out):
        x = (1664525 * x + 1013904223) % 2**32
        trits.append((x >> 16) % 3 - 1)
    return Ternary(torch.tensor(trits).double().reshape(n_out, n_in), (64 + number) / 1024)


class Product(torch.autograd.Function):
    """x W^T of a Ternary W: x as 8-bit integers with one scale a token, the gradient as two integers of 8 bits."""

    least_margin = 0.5  # of a value of x, from the middle between two integers

    @staticmethod
    def forward(ctx, x, trits, scale):
        ctx.trits, ctx.scale = trits, scale
        a = x.abs().amax(-1, keepdim=True)
        u = x * 127 / a
        Product.least_margin = min(Product.least_margin, (0.5 - (u - u.round()).abs()).min().item())
        return u.round() @ trits.T * (a / 127 * scale)

    @staticmethod
    def backward(ctx, dy):
        a = dy.abs().amax(-1, keepdim=True).clamp(min=1e-30)
        u = dy * 127 / a
        first = u.round()
        second = ((u - first) * 254).round()
        return (first + second / 254) @ ctx.trits * (a / 127 * ctx.scale), None, None


def make_weights(arch, s, kind, generator):
    def bell(shape, deviation, mean=0.0):
        # Through f32, which is what the file and the other side have.
        return (torch.randn(shape, generator=generator) * deviation + mean).double()

    w = {"token_embd.weight": bell((s.n_vocab, s.n_embd), 0.5), "output_norm.weight": bell((s.n_embd,), 0.2, 1.0)}
    if arch == "llama":
        w["output.weight"] = bell((s.n_vocab, s.n_embd), 0.3)
    for il in range(s.n_layer):
        for number, target in enumerate(TARGETS):
            n_in, n_out = sizes(s, target)
            name = f"blk.{il}.{target}.weight"
            if kind == "ternary":
                w[name] = make_ternary(n_in, n_out, il * len(TARGETS) + number)
            else:
                w[name] = bell((n_out, n_in), 1.0 / math.sqrt(n_in))
        norms = {"attn_norm": s.n_embd, "ffn_norm": s.n_embd}
        if arch != "llama":
            norms |= {"attn_sub_norm": s.n_embd, "ffn_sub_norm": s.n_ff}
        for name, n in norms.items():
            w[f"blk.{il}.{name}.weight"] = bell((n,), 0.2, 1.0)
    return w


def make_adapter(s, generator):
    adapter = {}
    for il in range(s.n_layer):
        for target in TARGETS:
            n_in, n_out = sizes(s, target)
            name = f"blk.{il}.{target}.weight"
            a = torch.randn((RANK, n_in), generator=generator) / math.sqrt(n_in)
            b = torch.randn((n_out, RANK), generator=generator) * 0.3
            adapter[f"{name}.lora_a"] = a.double().requires_grad_()
            adapter[f"{name}.lora_b"] = b.double().requires_grad_()
    return adapter


def rms_norm(x, weight):
    return x / torch.sqrt((x * x).mean(-1, keepdim=True) + RMS_EPS) * weight


def rotate(x, arch):
    """x [tokens, heads, dim]: each pair of values turned by position * base^(-2i/dim). A pair is two neighbours in
    llama's files, and value i with value i + dim/2 in bitnet's."""
    n, _, dim = x.shape
    half = dim // 2
    angle = torch.outer(torch.arange(n).double(), ROPE_BASE ** (-2.0 * torch.arange(half).double() / dim))
    cos, sin = torch.cos(angle)[:, None, :], torch.sin(angle)[:, None, :]
    if arch == "llama":
        first, second = x[..., 0::2], x[..., 1::2]
        return torch.stack([first * cos - second * sin, first * sin + second * cos], -1).reshape(x.shape)
    first, second = x[..., :half], x[..., half:]
    return torch.cat([first * cos - second * sin, first * sin + second * cos], -1)


def forward(arch, s, w, adapter, tokens):
    """Logits [tokens, n_vocab] of one sample, alone."""

    def linear(il, target, x):
        name = f"blk.{il}.{target}.weight"
        a, b = adapter[f"{name}.lora_a"], adapter[f"{name}.lora_b"]
        product = Product.apply(x, *w[name]) if isinstance(w[name], Ternary) else x @ w[name].T
        return product + ALPHA / RANK * (x @ a.T) @ b.T

    n = len(tokens)
    causal = torch.full((n, n), -math.inf).double().triu(1)
    x = w["token_embd.weight"][tokens]
    n_head_dim = s.n_embd // s.n_head
    for il in range(s.n_layer):
        h = rms_norm(x, w[f"blk.{il}.attn_norm.weight"])
        q = rotate(linear(il, "attn_q", h).reshape(n, s.n_head, n_head_dim), arch)
        k = rotate(linear(il, "attn_k", h).reshape(n, s.n_head_kv, n_head_dim), arch)
        v = linear(il, "attn_v", h).reshape(n, s.n_head_kv, n_head_dim)
        heads = []
        for head in range(s.n_head):
            group = head // (s.n_head // s.n_head_kv)
            scores = q[:, head] @ k[:, group].T / math.sqrt(n_head_dim) + causal
            heads.append(torch.softmax(scores, -1) @ v[:, group])
        h = torch.cat(heads, -1)
        if arch != "llama":
            h = rms_norm(h, w[f"blk.{il}.attn_sub_norm.weight"])
        x = x + linear(il, "attn_output", h)

        h = rms_norm(x, w[f"blk.{il}.ffn_norm.weight"])
        gate, up = linear(il, "ffn_gate", h), linear(il, "ffn_up", h)
        h = (torch.relu(gate) ** 2 if arch == "bitnet-b1.58" else gate * torch.sigmoid(gate)) * up
        if arch != "llama":
            h = rms_norm(h, w[f"blk.{il}.ffn_sub_norm.weight"])
        x = x + linear(il, "ffn_down", h)
    head = w.get("output.weight", w["token_embd.weight"])
    return rms_norm(x, w["output_norm.weight"]) @ head.T


def make_samples(s, kind, generator):
    """Token ids, and for each whether it is trained; about half are, the last always."""
    samples = []
    for n in (n for row in ROWS[kind] for n in row):
        tokens = torch.randint(0, s.n_vocab, (n,), generator=generator)
        train = torch.rand(n, generator=generator) < 0.5
        train[-1] = True
        samples.append((tokens, train))
    return samples


def step(arch, s, w, adapter, samples, optimizer):
    """One step; gives the logits, the losses of the trained tokens, the gradients of their mean and the gradients'
    norm."""
    optimizer.zero_grad()
    logits = [forward(arch, s, w, adapter, tokens) for tokens, _ in samples]
    losses = []
    for (tokens, train), rows in zip(samples, logits):
        for at in range(1, len(tokens)):
            if train[at]:
                losses.append(-torch.log_softmax(rows[at - 1], -1)[tokens[at]])
    losses = torch.stack(losses)
    losses.mean().backward()
    gradients = {name: p.grad.clone() for name, p in adapter.items()}
    norm = torch.sqrt(sum((g * g).sum() for g in gradients.values()))
    if norm > CLIP:
        for p in adapter.values():
            p.grad *= CLIP / norm
    optimizer.step()
    return torch.cat(logits).detach(), losses.detach(), gradients, norm.item()


def save(path, tensors, metadata):
    """A safetensors file, whose metadata hold the data's own checksum."""
    header, parts, offset = {}, [], 0
    for name, tensor in tensors.items():
        floats = tensor.dtype.is_floating_point
        values = tensor.flatten().tolist()
        data = struct.pack(f"<{len(values)}{'f' if floats else 'i'}", *values)
        header[name] = {
            "dtype": "F32" if floats else "I32",
            "shape": list(tensor.shape),
            "data_offsets": [offset, offset + len(data)],
        }
        parts.append(data)
        offset += len(data)
    data = b"".join(parts)
    metadata = metadata | {"data_sha256": hashlib.sha256(data).hexdigest()}
    text = json.dumps({"__metadata__": metadata} | header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


def steps(arch, kind, seed):
    """All numbers of one architecture, and the norms of the gradients."""
    s = SHAPES[kind]
    generator = torch.Generator().manual_seed(seed)
    w, adapter = make_weights(arch, s, kind, generator), make_adapter(s, generator)
    samples = make_samples(s, kind, generator)
    tensors = {name: tensor for name, tensor in w.items() if not isinstance(tensor, Ternary)}
    tensors["tokens"] = torch.cat([tokens for tokens, _ in samples]).int()
    tensors["train"] = torch.cat([train for _, train in samples]).int()
    tensors |= {f"start.{name}": p.detach().clone() for name, p in adapter.items()}
    optimizer = torch.optim.AdamW(list(adapter.values()), eps=ADAMW_EPS[kind], **ADAMW)
    norms = []
    for n in [1, 2]:
        logits, losses, gradients, norm = step(arch, s, w, adapter, samples, optimizer)
        norms.append(norm)
        tensors[f"losses.{n}"] = losses
        if n == 1:
            tensors["logits"] = logits
            tensors |= {f"grad.{name}": g for name, g in gradients.items()}
        tensors |= {f"step{n}.{name}": p.detach().clone() for name, p in adapter.items()}
    return tensors, norms


def main():
    default = pathlib.Path(__file__).resolve().parent.parent / "tests/fixtures/golden"
    out = pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else default
    out.mkdir(parents=True, exist_ok=True)
    for number, arch in enumerate(ARCHITECTURES):
        for kind in SHAPES:
            seed = 1000 + number
            while True:
                Product.least_margin = 0.5
                tensors, norms = steps(arch, kind, seed)
                if Product.least_margin > MARGIN:
                    break
                seed += len(ARCHITECTURES)
            metadata = {
                "architecture": arch,
                "kind": kind,
                "seed": str(seed),
                "generator_sha256": hashlib.sha256(pathlib.Path(__file__).read_bytes()).hexdigest(),
                "torch": torch.__version__,
                "rows": json.dumps(ROWS[kind]),
                "seq_len": str(SEQ_LEN[kind]),
                "sizes": json.dumps(SHAPES[kind]),
                "rms_eps": str(RMS_EPS),
                "rope_base": str(ROPE_BASE),
                "rank": str(RANK),
                "alpha": str(ALPHA),
                "adamw": json.dumps(ADAMW | {"eps": ADAMW_EPS[kind], "clip": CLIP}),
                "norms": json.dumps(norms),
            }
            path = out / f"{arch}-{kind}.safetensors"
            save(path, tensors, metadata)
            print(f"{path}: seed {seed}, {path.stat().st_size} bytes, gradient norms {norms}")


main()
