#!/usr/bin/env python3
"""Makes the golden numbers of tests/golden.rs: one training step, and a second, of tiny models in PyTorch.

usage: scripts/golden.py [OUT]        (default: tests/fixtures/golden)

Needs torch (made with 1.13; any newer one gives the same to the last few bits of f64). CI does not run this: the numbers
are committed, and the test refuses them when this file has changed since.

The network is written down plainly from the papers and not from any other implementation, in f64:
RMSNorm arXiv:1910.07467, rotary embedding arXiv:2104.09864, SwiGLU arXiv:2002.05202, grouped queries arXiv:2305.13245,
BitNet's sub-norms arXiv:2310.11453 and 2402.17764, LoRA arXiv:2106.09685, AdamW arXiv:1711.05101.
Matrices are stored as GGUF has them: rows are outputs.
"""

import hashlib
import json
import math
import pathlib
import struct
import sys

import torch

N_EMBD, N_LAYER, N_HEAD, N_HEAD_KV, N_FF, N_VOCAB = 32, 2, 4, 2, 48, 40
N_HEAD_DIM = N_EMBD // N_HEAD
RMS_EPS, ROPE_BASE = 1e-5, 10000.0
RANK, ALPHA = 2, 6.0
# Large enough an eps that no value's update hangs on the sign of a tiny gradient.
ADAMW = {"lr": 1e-2, "betas": (0.9, 0.999), "eps": 1e-4, "weight_decay": 0.1}
CLIP = 0.5
TARGETS = ["attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"]
# Lengths of the samples in each row of SEQ_LEN: the first row is packed, the second ends in padding.
SEQ_LEN, ROWS = 12, [[7, 5], [9]]


def sizes(target):
    """Inputs and outputs of a linear layer."""
    kv = N_HEAD_KV * N_HEAD_DIM
    return {
        "attn_q": (N_EMBD, N_EMBD),
        "attn_k": (N_EMBD, kv),
        "attn_v": (N_EMBD, kv),
        "attn_output": (N_EMBD, N_EMBD),
        "ffn_gate": (N_EMBD, N_FF),
        "ffn_up": (N_EMBD, N_FF),
        "ffn_down": (N_FF, N_EMBD),
    }[target]


def make_weights(arch, generator):
    def bell(shape, deviation, mean=0.0):
        # Through f32, which is what the file and the other side have.
        return (torch.randn(shape, generator=generator) * deviation + mean).double()

    w = {"token_embd.weight": bell((N_VOCAB, N_EMBD), 0.5), "output_norm.weight": bell((N_EMBD,), 0.2, 1.0)}
    if arch == "llama":
        w["output.weight"] = bell((N_VOCAB, N_EMBD), 0.3)
    for il in range(N_LAYER):
        for target in TARGETS:
            n_in, n_out = sizes(target)
            w[f"blk.{il}.{target}.weight"] = bell((n_out, n_in), 1.0 / math.sqrt(n_in))
        norms = {"attn_norm": N_EMBD, "ffn_norm": N_EMBD}
        if arch == "bitnet":
            norms |= {"attn_sub_norm": N_EMBD, "ffn_sub_norm": N_FF}
        for name, n in norms.items():
            w[f"blk.{il}.{name}.weight"] = bell((n,), 0.2, 1.0)
    return w


def make_adapter(generator):
    adapter = {}
    for il in range(N_LAYER):
        for target in TARGETS:
            n_in, n_out = sizes(target)
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


def forward(arch, w, adapter, tokens):
    """Logits [tokens, N_VOCAB] of one sample, alone."""

    def linear(il, target, x):
        name = f"blk.{il}.{target}.weight"
        a, b = adapter[f"{name}.lora_a"], adapter[f"{name}.lora_b"]
        return x @ w[name].T + ALPHA / RANK * (x @ a.T) @ b.T

    n = len(tokens)
    causal = torch.full((n, n), -math.inf).double().triu(1)
    x = w["token_embd.weight"][tokens]
    for il in range(N_LAYER):
        h = rms_norm(x, w[f"blk.{il}.attn_norm.weight"])
        q = rotate(linear(il, "attn_q", h).reshape(n, N_HEAD, N_HEAD_DIM), arch)
        k = rotate(linear(il, "attn_k", h).reshape(n, N_HEAD_KV, N_HEAD_DIM), arch)
        v = linear(il, "attn_v", h).reshape(n, N_HEAD_KV, N_HEAD_DIM)
        heads = []
        for head in range(N_HEAD):
            group = head // (N_HEAD // N_HEAD_KV)
            scores = q[:, head] @ k[:, group].T / math.sqrt(N_HEAD_DIM) + causal
            heads.append(torch.softmax(scores, -1) @ v[:, group])
        h = torch.cat(heads, -1)
        if arch == "bitnet":
            h = rms_norm(h, w[f"blk.{il}.attn_sub_norm.weight"])
        x = x + linear(il, "attn_output", h)

        h = rms_norm(x, w[f"blk.{il}.ffn_norm.weight"])
        gate, up = linear(il, "ffn_gate", h), linear(il, "ffn_up", h)
        h = gate * torch.sigmoid(gate) * up
        if arch == "bitnet":
            h = rms_norm(h, w[f"blk.{il}.ffn_sub_norm.weight"])
        x = x + linear(il, "ffn_down", h)
    head = w.get("output.weight", w["token_embd.weight"])
    return rms_norm(x, w["output_norm.weight"]) @ head.T


def make_samples(generator):
    """Token ids, and for each whether it is trained; about half are, the last always."""
    samples = []
    for n in (n for row in ROWS for n in row):
        tokens = torch.randint(0, N_VOCAB, (n,), generator=generator)
        train = torch.rand(n, generator=generator) < 0.5
        train[-1] = True
        samples.append((tokens, train))
    return samples


def step(arch, w, adapter, samples, optimizer):
    """One step; gives the logits, the losses of the trained tokens, the gradients of their mean and the gradients'
    norm."""
    optimizer.zero_grad()
    logits = [forward(arch, w, adapter, tokens) for tokens, _ in samples]
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


def main():
    default = pathlib.Path(__file__).resolve().parent.parent / "tests/fixtures/golden"
    out = pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else default
    out.mkdir(parents=True, exist_ok=True)
    for number, arch in enumerate(["llama", "bitnet"]):
        generator = torch.Generator().manual_seed(1000 + number)
        w, adapter = make_weights(arch, generator), make_adapter(generator)
        samples = make_samples(generator)
        tensors = dict(w)
        tensors["tokens"] = torch.cat([tokens for tokens, _ in samples]).int()
        tensors["train"] = torch.cat([train for _, train in samples]).int()
        tensors |= {f"start.{name}": p.detach().clone() for name, p in adapter.items()}
        optimizer = torch.optim.AdamW(list(adapter.values()), **ADAMW)
        norms = []
        for n in [1, 2]:
            logits, losses, gradients, norm = step(arch, w, adapter, samples, optimizer)
            norms.append(norm)
            tensors[f"losses.{n}"] = losses
            if n == 1:
                tensors["logits"] = logits
                tensors |= {f"grad.{name}": g for name, g in gradients.items()}
            tensors |= {f"step{n}.{name}": p.detach().clone() for name, p in adapter.items()}
        metadata = {
            "architecture": arch,
            "generator_sha256": hashlib.sha256(pathlib.Path(__file__).read_bytes()).hexdigest(),
            "torch": torch.__version__,
            "rows": json.dumps(ROWS),
            "seq_len": str(SEQ_LEN),
            "sizes": json.dumps([N_EMBD, N_LAYER, N_HEAD, N_HEAD_KV, N_FF, N_VOCAB]),
            "rms_eps": str(RMS_EPS),
            "rope_base": str(ROPE_BASE),
            "rank": str(RANK),
            "alpha": str(ALPHA),
            "adamw": json.dumps(ADAMW | {"clip": CLIP}),
            "norms": json.dumps(norms),
        }
        path = out / f"{arch}.safetensors"
        save(path, tensors, metadata)
        print(f"{path}: {path.stat().st_size} bytes, gradient norms {norms}")


main()
