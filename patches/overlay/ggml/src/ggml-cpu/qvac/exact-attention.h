// What both directions of exact attention share (docs/exactness.md has the definition).

#pragma once

#include "ggml.h"

#include <cstddef>
#include <cstdint>

struct ggml_compute_params;

namespace qvac {

constexpr int64_t exact_chunk = 32; // keys of a chunk, and terms of a segment

// The operands of attention over a cache (FLASH_ATTN_EXT) or within samples (ATTENTION*). Strides are in bytes.
struct exact_heads {
    explicit exact_heads(const ggml_tensor * op);

    const char *    q;        // F32
    const char *    k;        // F32 or F16
    const char *    v;        // as k
    const char *    mask;     // F16, or none: the samples say who sees whom
    const int32_t * segments; // [2, n_tokens], or none
    float           scale;
    bool            is_f16;
    int64_t         d, n_head, n_head_kv, n_tokens, n_keys;
    size_t          q_token, q_head, k_token, k_head, v_token, v_head, mask_token, mask_head;
    int64_t         mask_heads;

    int64_t group() const { return n_head / n_head_kv; }
    const float * query(int64_t token, int64_t head) const { return (const float *) (q + token * q_token + head * q_head); }
};

// Tokens [begin, end) of one sample, which begins with the token `first`.
struct exact_run {
    int64_t first, last, begin, end;
};

// The next run of at most `n` tokens from token t on; over a cache all tokens are one sample.
exact_run exact_run_at(const exact_heads & s, int64_t t, int64_t n);

// Keys (or values) from `first` on as columns [d][exact_chunk] and as rows [exact_chunk][d], zeros behind `n`. Each may be null.
void exact_load(const char * from, size_t token, bool is_f16, int64_t first, int64_t n, int64_t d, float * columns, float * rows);

// s[j] = sum_d a[d] * columns[d][j], by segments.
void exact_scores(const float * a, const float * columns, int64_t d, float * s);

// The sum of a[i] * b[i], by segments.
float exact_dot(const float * a, const float * b, int64_t n);

void   exact_attention_forward(const ggml_compute_params * params, ggml_tensor * dst);
size_t exact_attention_forward_work(int n_tasks, const ggml_tensor * dst);
void   exact_attention_backward(const ggml_compute_params * params, ggml_tensor * dst);
size_t exact_attention_backward_work(int n_tasks, const ggml_tensor * dst);

}  // namespace qvac
