// Attention in exact arithmetic (exact.h), forward: over a cache and within samples.

#include "exact-attention.h"

#include "exact.h"
#include "ggml-cpu-impl.h"
#include "ggml-train.h"
#include "qvac/exact-attention-op.h"
#include "qvac/exact-math.h"

#include <algorithm>
#include <cmath>
#include <cstring>

namespace qvac {

namespace {

constexpr int64_t rows_of_unit = 16; // queries times heads that share the keys that are loaded

float tree(const float * p) {
    float sum[exact_chunk];
    std::copy(p, p + exact_chunk, sum);
    for (int64_t h = exact_chunk / 2; h > 0; h /= 2) {
        for (int64_t l = 0; l < h; ++l) {
            sum[l] = sum[l] + sum[l + h];
        }
    }
    return sum[0];
}

// What a thread has of each row: maximum and sum of each chunk, and its weighted values.
struct unit_rows {
    unit_rows(const exact_heads & s, char * base) {
        const int64_t n_rows = std::max(rows_of_unit, s.group());
        n_chunks = (s.n_keys + exact_chunk - 1) / exact_chunk;
        float * at = (float *) base;
        k   = at;
        v   = k + exact_chunk * s.d;
        max = v + exact_chunk * s.d;
        sum = max + n_rows * n_chunks;
        out = sum + n_rows * n_chunks;
        bytes = (char *) (out + n_rows * n_chunks * s.d) - base;
    }

    float * k;   // columns
    float * v;   // rows
    float * max; // [n_chunks] a row
    float * sum;
    float * out; // [d, n_chunks] a row
    int64_t n_chunks;
    size_t  bytes;
};

// One query against one chunk of keys; those up to `n_seen` are seen, unless the mask says otherwise.
void run_chunk(const exact_heads & s, const float * q, const ggml_fp16_t * mask, int64_t n_seen, const unit_rows & u, int64_t at) {
    float score[exact_chunk];
    exact_scores(q, u.k, s.d, score);
    for (int64_t j = 0; j < exact_chunk; ++j) {
        score[j] = s.scale * score[j];
    }
    bool seen[exact_chunk];
    for (int64_t j = 0; j < exact_chunk; ++j) {
        seen[j] = j < n_seen;
        if (mask && seen[j]) {
            const float m = exact_from_f16(mask[j]);
            seen[j]  = m != -INFINITY;
            score[j] = score[j] + m;
        }
        if (!seen[j]) {
            score[j] = -INFINITY;
        }
    }
    float max = -INFINITY;
    for (int64_t j = 0; j < exact_chunk; ++j) {
        max = score[j] > max ? score[j] : max;
    }
    float p[exact_chunk];
    for (int64_t j = 0; j < exact_chunk; ++j) {
        const float e = exact_exp(score[j] - max);
        p[j] = score[j] == -INFINITY ? 0.0f : e;
    }
    float * out = u.out + at * s.d;
    std::fill(out, out + s.d, 0.0f);
    for (int64_t j = 0; j < exact_chunk; ++j) {
        const float * v = u.v + j * s.d;
        for (int64_t e = 0; seen[j] && e < s.d; ++e) {
            out[e] = out[e] + p[j] * v[e];
        }
    }
    u.max[at] = max;
    u.sum[at] = tree(p);
}

// The chunks [0, n) of a row to its output, and the logarithm of the sum of its exponentials.
void join(const unit_rows & u, int64_t row, int64_t n, int64_t d, float * y, float * lse) {
    const float * max = u.max + row * u.n_chunks;
    const float * sum = u.sum + row * u.n_chunks;
    const float * out = u.out + row * u.n_chunks * d;
    float m = -INFINITY;
    for (int64_t c = 0; c < n; ++c) {
        m = max[c] > m ? max[c] : m;
    }
    float l = 0.0f;
    std::fill(y, y + d, 0.0f);
    for (int64_t c = 0; c < n; ++c) {
        if (sum[c] == 0.0f) {
            continue;
        }
        const float e = exact_exp(max[c] - m);
        l = l + sum[c] * e;
        for (int64_t i = 0; i < d; ++i) {
            y[i] = y[i] + out[c * d + i] * e;
        }
    }
    const float r = l == 0.0f ? 0.0f : exact_recip(l);
    for (int64_t i = 0; i < d; ++i) {
        y[i] = y[i] * r;
    }
    if (lse) {
        *lse = m + exact_log(l);
    }
}

// A key head's queries of one run.
void run_unit(const exact_heads & s, const unit_rows & u, int64_t head_kv, const exact_run & run, float * y, float * lse) {
    const int64_t n_keys   = s.segments ? run.end - run.first : s.n_keys;
    const int64_t n_chunks = (n_keys + exact_chunk - 1) / exact_chunk;
    const int64_t n_rows   = (run.end - run.begin) * s.group();
    for (int64_t c = 0; c < n_chunks; ++c) {
        const int64_t n     = std::min(exact_chunk, n_keys - c * exact_chunk);
        const int64_t first = run.first + c * exact_chunk;
        exact_load(s.k + head_kv * s.k_head, s.k_token, s.is_f16, first, n, s.d, u.k, nullptr);
        exact_load(s.v + head_kv * s.v_head, s.v_token, s.is_f16, first, n, s.d, nullptr, u.v);
        for (int64_t row = 0; row < n_rows; ++row) {
            const int64_t token = run.begin + row / s.group();
            const int64_t head  = head_kv * s.group() + row % s.group();
            const int64_t at    = row * u.n_chunks + c;
            const ggml_fp16_t * mask = s.mask
                ? (const ggml_fp16_t *) (s.mask + token * s.mask_token + head % s.mask_heads * s.mask_head) + first : nullptr;
            const int64_t n_seen = s.segments ? std::min(n, token + 1 - first) : n;
            if (n_seen <= 0) {
                u.max[at] = -INFINITY;
                u.sum[at] = 0.0f;
                continue;
            }
            run_chunk(s, s.query(token, head), mask, n_seen, u, at);
        }
    }
    for (int64_t row = 0; row < n_rows; ++row) {
        const int64_t at = (run.begin + row / s.group()) * s.n_head + head_kv * s.group() + row % s.group();
        join(u, row, n_chunks, s.d, y + at * s.d, lse ? lse + at : nullptr);
    }
}

}  // namespace

exact_heads::exact_heads(const ggml_tensor * op) {
    const ggml_tensor * sq = op->src[0];
    const ggml_tensor * sk = op->src[1];
    const ggml_tensor * sv = op->src[2];
    const bool cached = op->op == GGML_OP_FLASH_ATTN_EXT;
    const int  token  = cached ? 1 : 2; // the dimension that counts them
    const int  head   = cached ? 2 : 1;
    q         = (const char *) sq->data;
    k         = (const char *) sk->data;
    v         = (const char *) sv->data;
    mask      = cached ? (const char *) op->src[3]->data : nullptr;
    segments  = cached ? nullptr : (const int32_t *) op->src[3]->data;
    is_f16    = sk->type == GGML_TYPE_F16;
    d         = sq->ne[0];
    n_head    = sq->ne[head];
    n_head_kv = sk->ne[head];
    n_tokens  = sq->ne[token];
    n_keys    = sk->ne[token];
    q_token   = sq->nb[token];
    q_head    = sq->nb[head];
    k_token   = sk->nb[token];
    k_head    = sk->nb[head];
    v_token   = sv->nb[token];
    v_head    = sv->nb[head];
    mask_token = cached ? op->src[3]->nb[1] : 0;
    mask_head  = cached ? op->src[3]->nb[2] : 0;
    mask_heads = cached ? op->src[3]->ne[2] : 1;
    if (cached) {
        memcpy(&scale, op->op_params, sizeof(scale));
    } else {
        scale = ggml_train_op_param(op);
    }
}

exact_run exact_run_at(const exact_heads & s, int64_t t, int64_t n) {
    if (!s.segments) {
        return { 0, s.n_tokens - 1, t, std::min(t + n, s.n_tokens) };
    }
    const int64_t first = std::clamp<int64_t>(s.segments[2 * t], 0, t);
    const int64_t last  = std::clamp<int64_t>(s.segments[2 * t + 1], t, s.n_tokens - 1);
    return { first, last, t, std::min(t + n, last + 1) };
}

void exact_load(const char * from, size_t token, bool is_f16, int64_t first, int64_t n, int64_t d, float * columns, float * rows) {
    for (int64_t j = 0; j < exact_chunk; ++j) {
        const char * at = from + (first + j) * token;
        for (int64_t e = 0; e < d; ++e) {
            const float x = j >= n ? 0.0f : is_f16 ? exact_from_f16(((const ggml_fp16_t *) at)[e]) : ((const float *) at)[e];
            if (columns) {
                columns[e * exact_chunk + j] = x;
            }
            if (rows) {
                rows[j * d + e] = x;
            }
        }
    }
}

void exact_scores(const float * a, const float * columns, int64_t d, float * s) {
    std::fill(s, s + exact_chunk, 0.0f);
    for (int64_t begin = 0; begin < d; begin += exact_chunk) {
        float part[exact_chunk] = {};
        for (int64_t e = begin; e < std::min(begin + exact_chunk, d); ++e) {
            const float * b = columns + e * exact_chunk;
            for (int64_t j = 0; j < exact_chunk; ++j) {
                part[j] = part[j] + a[e] * b[j];
            }
        }
        for (int64_t j = 0; j < exact_chunk; ++j) {
            s[j] = s[j] + part[j];
        }
    }
}

float exact_dot(const float * a, const float * b, int64_t n) {
    float sum = 0.0f;
    for (int64_t begin = 0; begin < n; begin += exact_chunk) {
        float part = 0.0f;
        for (int64_t i = begin; i < std::min(begin + exact_chunk, n); ++i) {
            part = part + a[i] * b[i];
        }
        sum = sum + part;
    }
    return sum;
}

size_t exact_attention_forward_work(int n_tasks, const ggml_tensor * dst) {
    return (unit_rows(exact_heads(dst), nullptr).bytes + 64) * n_tasks;
}

void exact_attention_forward(const ggml_compute_params * params, ggml_tensor * dst) {
    const exact_heads s(dst);
    const size_t      bytes = unit_rows(s, nullptr).bytes + 64;
    const unit_rows   u(s, (char *) params->wdata + params->ith * bytes);
    float *           y   = (float *) dst->data;
    float *           lse = s.segments ? y + s.d * s.n_head * s.n_tokens : nullptr;

    // Threads take units in turn.
    int64_t unit = 0;
    for (int64_t t = 0; t < s.n_tokens;) {
        const exact_run run = exact_run_at(s, t, std::max<int64_t>(rows_of_unit / s.group(), 1));
        for (int64_t head_kv = 0; head_kv < s.n_head_kv; ++head_kv, ++unit) {
            if (unit % params->nth == params->ith) {
                run_unit(s, u, head_kv, run, y, lse);
            }
        }
        t = run.end;
    }
}

const exact_kernel * exact_attention(const ggml_tensor * op) {
    static const exact_kernel forward  = { exact_attention_forward, exact_attention_forward_work };
    static const exact_kernel backward = { exact_attention_backward, exact_attention_backward_work };
    if (op->op == GGML_OP_FLASH_ATTN_EXT) {
        return exact_takes_flash_attn(op) ? &forward : nullptr;
    }
    switch (ggml_get_train_op(op)) {
        case GGML_TRAIN_OP_ATTENTION:
            return &forward;
        case GGML_TRAIN_OP_ATTENTION_BACK:
            return &backward;
        default:
            return nullptr;
    }
}

}  // namespace qvac
