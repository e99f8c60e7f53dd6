// The gradients of attention within samples in exact arithmetic (exact.h).
//
// Gradients of queries and of keys are units of their own, each of which makes the probabilities again.

#include "exact-attention.h"

#include "exact.h"
#include "ggml-cpu-impl.h"
#include "ggml-train.h"
#include "qvac/exact-math.h"

#include <algorithm>

namespace qvac {

namespace {

struct gradients {
    gradients(const exact_heads & s, const ggml_tensor * dst)
        : y((const float *) dst->src[4]->data), lse(y + s.d * s.n_head * s.n_tokens), dy((const float *) dst->src[5]->data),
          dq((float *) dst->data), dk(dq + s.d * s.n_head * s.n_tokens), dv(dk + s.d * s.n_head_kv * s.n_tokens) {}

    const float * y;   // [d, n_head, n_tokens]
    const float * lse; // [n_head, n_tokens]
    const float * dy;  // as y
    float *       dq;  // as y
    float *       dk;  // [d, n_head_kv, n_tokens]
    float *       dv;  // as dk
};

// Of one chunk of keys, then of a thread's sums.
struct buffers {
    buffers(const exact_heads & s, float * base) {
        const int64_t n = exact_chunk * s.d;
        k_columns = base;
        v_columns = base + n;
        k_rows    = base + 2 * n;
        dk_part   = base + 3 * n;
        dv_part   = base + 4 * n;
        dk        = base + 5 * n;
        dv        = base + 6 * n;
        floats    = 7 * n + 16;
    }

    float * k_columns;
    float * v_columns;
    float * k_rows;
    float * dk_part; // rows
    float * dv_part;
    float * dk;
    float * dv;
    int64_t floats;
};

struct row {
    const float * q;
    const float * dy;
    float         lse, delta;
};

row row_of(const exact_heads & s, const gradients & g, const float * delta, int64_t token, int64_t head) {
    const int64_t at = token * s.n_head + head;
    return { s.query(token, head), g.dy + at * s.d, g.lse[at], delta[at] };
}

// The probabilities of a query over the keys at hand, and the gradients of its scores.
void probabilities(const exact_heads & s, const row & r, const buffers & b, float * p, float * ds) {
    float score[exact_chunk];
    float dp[exact_chunk];
    exact_scores(r.q, b.k_columns, s.d, score);
    exact_scores(r.dy, b.v_columns, s.d, dp);
    for (int64_t j = 0; j < exact_chunk; ++j) {
        p[j] = exact_exp(s.scale * score[j] - r.lse);
    }
    for (int64_t j = 0; j < exact_chunk; ++j) {
        ds[j] = s.scale * (p[j] * (dp[j] - r.delta));
    }
}

void load_keys(const exact_heads & s, const buffers & b, int64_t head_kv, int64_t first, int64_t n) {
    exact_load(s.k + head_kv * s.k_head, s.k_token, false, first, n, s.d, b.k_columns, b.k_rows);
    exact_load(s.v + head_kv * s.v_head, s.v_token, false, first, n, s.d, b.v_columns, nullptr);
}

// dq of the queries of a run, one head.
void run_queries(const exact_heads & s, const gradients & g, const buffers & b, const float * delta, int64_t head, const exact_run & run) {
    for (int64_t t = run.begin; t < run.end; ++t) {
        float * dq = g.dq + (t * s.n_head + head) * s.d;
        std::fill(dq, dq + s.d, 0.0f);
    }
    for (int64_t first = run.first; first < run.end; first += exact_chunk) {
        load_keys(s, b, head / s.group(), first, std::min(exact_chunk, run.end - first));
        for (int64_t t = std::max(run.begin, first); t < run.end; ++t) {
            float p[exact_chunk], ds[exact_chunk];
            probabilities(s, row_of(s, g, delta, t, head), b, p, ds);
            float * part = b.dk_part;
            std::fill(part, part + s.d, 0.0f);
            for (int64_t j = 0; j < std::min(exact_chunk, t + 1 - first); ++j) {
                const float * k = b.k_rows + j * s.d;
                for (int64_t e = 0; e < s.d; ++e) {
                    part[e] = part[e] + ds[j] * k[e];
                }
            }
            float * dq = g.dq + (t * s.n_head + head) * s.d;
            for (int64_t e = 0; e < s.d; ++e) {
                dq[e] = dq[e] + part[e];
            }
        }
    }
}

// dk and dv of the keys of a run of at most a chunk, one key head.
void run_keys(const exact_heads & s, const gradients & g, const buffers & b, const float * delta, int64_t head_kv, const exact_run & run) {
    const int64_t n      = run.end - run.begin;
    const int64_t floats = n * s.d;
    load_keys(s, b, head_kv, run.begin, n);
    std::fill(b.dk, b.dk + floats, 0.0f);
    std::fill(b.dv, b.dv + floats, 0.0f);
    for (int64_t head = head_kv * s.group(); head < (head_kv + 1) * s.group(); ++head) {
        const int64_t skipped = (run.begin - run.first) / exact_chunk * exact_chunk;
        for (int64_t first = run.first + skipped; first <= run.last; first += exact_chunk) {
            std::fill(b.dk_part, b.dk_part + floats, 0.0f);
            std::fill(b.dv_part, b.dv_part + floats, 0.0f);
            for (int64_t t = std::max(first, run.begin); t < std::min(first + exact_chunk, run.last + 1); ++t) {
                const row r = row_of(s, g, delta, t, head);
                float p[exact_chunk], ds[exact_chunk];
                probabilities(s, r, b, p, ds);
                for (int64_t j = 0; j < std::min(n, t + 1 - run.begin); ++j) {
                    float * dk = b.dk_part + j * s.d;
                    float * dv = b.dv_part + j * s.d;
                    for (int64_t e = 0; e < s.d; ++e) {
                        dk[e] = dk[e] + ds[j] * r.q[e];
                        dv[e] = dv[e] + p[j] * r.dy[e];
                    }
                }
            }
            for (int64_t i = 0; i < floats; ++i) {
                b.dk[i] = b.dk[i] + b.dk_part[i];
                b.dv[i] = b.dv[i] + b.dv_part[i];
            }
        }
    }
    for (int64_t j = 0; j < n; ++j) {
        const int64_t at = ((run.begin + j) * s.n_head_kv + head_kv) * s.d;
        std::copy(b.dk + j * s.d, b.dk + (j + 1) * s.d, g.dk + at);
        std::copy(b.dv + j * s.d, b.dv + (j + 1) * s.d, g.dv + at);
    }
}

}  // namespace

size_t exact_attention_backward_work(int n_tasks, const ggml_tensor * dst) {
    const exact_heads s(dst);
    return (buffers(s, nullptr).floats * n_tasks + s.n_head * s.n_tokens) * sizeof(float);
}

void exact_attention_backward(const ggml_compute_params * params, ggml_tensor * dst) {
    const exact_heads s(dst);
    const gradients   g(s, dst);
    float *           delta  = (float *) params->wdata; // [n_head, n_tokens]
    const int64_t     n_rows = s.n_head * s.n_tokens;
    const buffers     b(s, delta + n_rows + params->ith * buffers(s, nullptr).floats);

    for (int64_t i = params->ith; i < n_rows; i += params->nth) {
        delta[i] = exact_dot(g.dy + i * s.d, g.y + i * s.d, s.d);
    }
    ggml_barrier(params->threadpool);

    // Threads take units in turn.
    int64_t unit = 0;
    for (int64_t t = 0; t < s.n_tokens;) {
        const exact_run run = exact_run_at(s, t, exact_chunk);
        for (int64_t head_kv = 0; head_kv < s.n_head_kv; ++head_kv, ++unit) {
            if (unit % params->nth == params->ith) {
                run_keys(s, g, b, delta, head_kv, run);
            }
        }
        for (int64_t head = 0; head < s.n_head; ++head, ++unit) {
            if (unit % params->nth == params->ith) {
                run_queries(s, g, b, delta, head, run);
            }
        }
        t = run.end;
    }
}

}  // namespace qvac
