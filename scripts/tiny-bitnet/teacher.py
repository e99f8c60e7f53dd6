"""The teacher: SmolLM2-135M-Instruct read from its GGUF file, in plain PyTorch.

Two ways through it: `hidden` for whole rows (distillation), `decode` for one token of each of many rows at once
(sampling, with a cache that a CUDA graph can replay). The vocabulary can be cut to its first `n_vocab` ids: ids are in
the order of the merges, so a prefix of them is a byte-level BPE vocabulary of its own.

Not here: any other architecture than `llama` with tied embeddings.
"""

import re

import gguf
import numpy as np
import torch
import torch.nn.functional as F


def rope_tables(n_rot, base, n_ctx, device):
    """cos and sin, [n_ctx, n_rot / 2] each, in f32."""
    frequency = base ** (-torch.arange(0, n_rot, 2, dtype=torch.float64) / n_rot)
    angle = torch.arange(n_ctx, dtype=torch.float64)[:, None] * frequency
    return angle.cos().float().to(device), angle.sin().float().to(device)


def rotate_pairs(x, cos, sin):
    """Rotary positions on neighbouring pairs, the order in which GGUF stores a llama's heads. x: [..., n_head, d]"""
    a, b = x[..., 0::2], x[..., 1::2]
    cos, sin = cos.to(x.dtype).unsqueeze(-2), sin.to(x.dtype).unsqueeze(-2)
    return torch.stack((a * cos - b * sin, a * sin + b * cos), -1).flatten(-2)


def qkv(layer, x, cos, sin, d_head, eps):
    """x: [..., n_embd] -> q [..., n_head, d], k and v [..., n_head_kv, d], rotated"""
    h = F.rms_norm(x, x.shape[-1:], layer["attn_norm"], eps)
    q, k, v = (F.linear(h, layer[f"attn_{name}"]).unflatten(-1, (-1, d_head)) for name in "qkv")
    return rotate_pairs(q, cos, sin), rotate_pairs(k, cos, sin), v


def ffn(layer, x, eps):
    h = F.rms_norm(x, x.shape[-1:], layer["ffn_norm"], eps)
    gate, up = F.linear(h, layer["ffn_gate_up"]).chunk(2, -1)
    return x + F.linear(F.silu(gate) * up, layer["ffn_down"])


def row_block(layer, x, cos, sin, bias, d_head, eps):
    """A layer over whole rows. x: [B, T, n_embd]"""
    q, k, v = (t.transpose(1, 2) for t in qkv(layer, x, cos, sin, d_head, eps))
    k, v = (t.repeat_interleave(q.shape[1] // t.shape[1], 1) for t in (k, v))
    y = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
    x = x + F.linear(y.transpose(1, 2).flatten(-2), layer["attn_output"])
    return ffn(layer, x, eps)


class Teacher:
    """Weights of one type on one device; no gradients."""

    def __init__(self, path, n_vocab=None, n_ctx=1024, dtype=torch.bfloat16, device="cuda"):
        reader = gguf.GGUFReader(path)

        def key(name):
            return reader.get_field(f"llama.{name}").contents()

        self.n_layer, self.n_embd = key("block_count"), key("embedding_length")
        self.n_head, self.n_head_kv = key("attention.head_count"), key("attention.head_count_kv")
        self.eps = key("attention.layer_norm_rms_epsilon")
        self.d_head = self.n_embd // self.n_head
        self.device, self.dtype = device, dtype
        self.cos, self.sin = rope_tables(self.d_head, key("rope.freq_base"), n_ctx, device)
        self.layers = [{} for _ in range(self.n_layer)]
        for tensor in reader.tensors:
            values = gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
            if tensor.name == "token_embd.weight":
                values = values[:n_vocab]
            value = torch.from_numpy(values).to(device=device, dtype=dtype)
            if match := re.fullmatch(r"blk\.(\d+)\.(\w+)\.weight", tensor.name):
                self.layers[int(match[1])][match[2]] = value
            else:
                setattr(self, tensor.name.removesuffix(".weight"), value)
        # What a caller may compile.
        self.row_block, self.qkv, self.ffn = row_block, qkv, ffn
        for layer in self.layers:
            layer["ffn_gate_up"] = torch.cat([layer.pop("ffn_gate"), layer.pop("ffn_up")])

    def hidden(self, tokens, positions, bias):
        """tokens, positions: [B, T]; bias: [B, 1, T, T], added to what attention weighs -> [B, T, n_embd], normed"""
        x = self.token_embd[tokens]
        cos, sin = self.cos[positions], self.sin[positions]
        for layer in self.layers:
            x = self.row_block(layer, x, cos, sin, bias, self.d_head, self.eps)
        return F.rms_norm(x, (self.n_embd,), self.output_norm, self.eps)

    def logits(self, hidden):
        return F.linear(hidden, self.token_embd)

    def cache(self, n_rows, n_ctx):
        """Keys and values of each layer: [n_rows, n_head_kv, n_ctx, d]"""
        shape = (n_rows, self.n_head_kv, n_ctx, self.d_head)
        zeros = lambda: torch.zeros(shape, dtype=self.dtype, device=self.device)
        return [(zeros(), zeros()) for _ in self.layers]

    def decode(self, tokens, positions, cache, attend):
        """One token of each row, at a place of its own: tokens, positions [B] -> logits [B, n_vocab]"""
        rows = torch.arange(len(tokens), device=tokens.device)
        x = self.token_embd[tokens]
        cos, sin = self.cos[positions], self.sin[positions]
        for layer, (keys, values) in zip(self.layers, cache):
            q, k, v = self.qkv(layer, x, cos, sin, self.d_head, self.eps)
            keys[rows, :, positions] = k
            values[rows, :, positions] = v
            # The queries that share a key lie side by side.
            y = attend(q.unflatten(1, (self.n_head_kv, -1)), keys, values, positions)
            x = x + F.linear(y.flatten(1), layer["attn_output"])
            x = self.ffn(layer, x, self.eps)
        return self.logits(F.rms_norm(x, (self.n_embd,), self.output_norm, self.eps))
