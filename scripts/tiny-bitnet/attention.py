"""Attention of one new token a row over that row's cache: a Triton kernel that reads no more keys than there are.

`chosen` gives it back where it runs and says the same as PyTorch, else PyTorch's own over the whole cache.
"""

import torch
import torch.nn.functional as F

try:
    import triton
    import triton.language as tl
except ImportError:
    triton = None

BLOCK, ROWS = 64, 16


def plain(q, keys, values, positions):
    """q: [n, n_head_kv, group, d]; keys, values: [n, n_head_kv, n_ctx, d]; positions: [n] -> as q"""
    later = torch.arange(keys.shape[2], device=q.device) > positions[:, None]
    bias = torch.zeros(later.shape, dtype=q.dtype, device=q.device).masked_fill(later, -torch.inf)
    bias = bias[:, None, None, :].expand(*q.shape[:3], -1)
    return F.scaled_dot_product_attention(q, keys, values, attn_mask=bias)


if triton:

    @triton.jit
    def kernel(
        q,
        keys,
        values,
        positions,
        out,
        n_ctx,
        scale,
        N_KV: tl.constexpr,
        GROUP: tl.constexpr,
        D: tl.constexpr,
        BLOCK: tl.constexpr,
        ROWS: tl.constexpr,
    ):
        # One program a row and key head; its queries are the first rows of a tile.
        pair = tl.program_id(0).to(tl.int64)
        n = tl.load(positions + pair // N_KV).to(tl.int32) + 1
        g, d, t = tl.arange(0, ROWS), tl.arange(0, D), tl.arange(0, BLOCK)
        at = (pair * GROUP + g[:, None]) * D + d[None, :]
        mine = (g < GROUP)[:, None]
        asked = tl.load(q + at, mask=mine, other=0.0)
        most = tl.full([ROWS], -1e30, tl.float32)
        total = tl.zeros([ROWS], tl.float32)
        sums = tl.zeros([ROWS, D], tl.float32)
        base = pair * n_ctx * D
        for start in range(0, n, BLOCK):
            there = start + t < n
            place = base + (start + t)[:, None] * D + d[None, :]
            k = tl.load(keys + place, mask=there[:, None], other=0.0)
            v = tl.load(values + place, mask=there[:, None], other=0.0)
            score = tl.dot(asked, tl.trans(k)).to(tl.float32) * scale
            score = tl.where(there[None, :], score, -1e30)
            now = tl.maximum(most, tl.max(score, 1))
            p = tl.exp(score - now[:, None])
            old = tl.exp(most - now)
            total = total * old + tl.sum(p, 1)
            sums = sums * old[:, None] + tl.dot(p.to(v.dtype), v).to(tl.float32)
            most = now
        tl.store(out + at, (sums / total[:, None]).to(asked.dtype), mask=mine)


def fast(q, keys, values, positions):
    q, out = q.contiguous(), torch.empty(q.shape, dtype=q.dtype, device=q.device)
    n, n_kv, group, d = q.shape
    kernel[(n * n_kv,)](
        q, keys, values, positions, out, keys.shape[2], d**-0.5, n_kv, group, d, BLOCK, ROWS, num_warps=2
    )
    return out


def chosen(device, dtype):
    if not triton or device == "cpu":
        return plain
    try:
        q = torch.randn(64, 3, 3, 64, device=device, dtype=dtype)
        keys, values = (torch.randn(64, 3, 384, 64, device=device, dtype=dtype) for _ in range(2))
        positions = torch.arange(64, device=device) * 6
        error = (fast(q, keys, values, positions) - plain(q, keys, values, positions)).abs().max().item()
    except Exception as e:  # whatever the compiler has to say: there is another way
        print(f"attention: PyTorch's own, as Triton's fails: {type(e).__name__}: {e}", flush=True)
        return plain
    print(f"attention: largest difference {error:.4f}", flush=True)
    return fast if error < 0.05 else plain
