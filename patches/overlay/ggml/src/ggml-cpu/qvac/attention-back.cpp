// The gradients of causal attention (GGML_TRAIN_OP_ATTENTION_BACK).
//
// The probabilities are made again, a tile of queries against a tile of keys at a time, from the log-sum-exp that the
// forward kept: P = exp(q.k - lse), and with D = sum(dy * y) of a query dS = P * (dy.v - D). Then dv += P^T dy,
// dk += dS^T q, dq += dS k. Query heads of a group follow one another, so dk and dv have one order of sums.
//
// A unit of work is a key head with all of it, or with some of the samples. Where that leaves threads without work, units
// are smaller and of two kinds, gradients of keys and gradients of queries: each makes the scores for itself, seven
// products instead of five. Every element is the same chain of multiply-adds either way.

#include "attention.h"

#include "fused.h"
#include "ggml-cpu-impl.h"
#include "panel.h"
#include "simd-math.h"

#include <algorithm>
#include <cstring>

namespace qvac {

namespace {

struct gradients {
    const float * y;    // [d, n_head, n_tokens]
    const float * lse;  // [n_head, n_tokens]
    const float * dy;   // as y
    float *       dq;   // as y
    float *       dk;   // [d, n_head_kv, n_tokens]
    float *       dv;   // as dk
};

struct buffers {
    explicit buffers(const attn_shape & s, char * base) {
        const int64_t n_whole = (s.n_tokens + attn_keys - 1) / attn_keys * attn_keys;
        attn_arena    arena(base);
        k_cols = arena.take(n_whole * s.d);
        v_cols = arena.take(n_whole * s.d);
        k_rows = arena.take(n_whole * s.dp);
        dk     = arena.take(n_whole * s.dp);
        dv     = arena.take(n_whole * s.dp);
        q_rows = arena.take(attn_queries * s.dp);
        y_rows = arena.take(attn_queries * s.dp);
        q      = arena.take(attn_panels_size(attn_queries, s.d));
        dy     = arena.take(attn_panels_size(attn_queries, s.d));
        p      = arena.take(attn_queries * attn_ld);
        ds     = arena.take(attn_queries * attn_ld);
        dq     = arena.take(attn_queries * s.dp);
        lse    = arena.take(attn_queries);
        dot    = arena.take(attn_queries);
        bytes  = arena.used();
    }

    float * k_cols;
    float * v_cols;
    float * k_rows;
    float * dk;      // rows
    float * dv;      // rows
    float * q_rows;  // of the tile of queries, scaled
    float * y_rows;  // dy of the tile
    float * q;       // q_rows as panels
    float * dy;      // y_rows as panels
    float * p;       // tile of probabilities
    float * ds;      // tile of their gradients
    float * dq;      // rows
    float * lse;
    float * dot;     // sum(dy * y) of each query
    size_t  bytes;
};

// What a unit makes: gradients of the keys of some tokens, of the queries of some tokens, or both.
struct unit {
    int64_t head_kv;
    int64_t head_begin, head_end;    // query heads
    int64_t key_begin, key_end;      // tokens; a tile of keys belongs to its first token
    int64_t query_begin, query_end;  // tokens; likewise
    bool    keys, queries;
};

// Probabilities of one query, and their gradients, over the scores and the products with dy; `valid` of them count, the
// rest up to `n` become 0.
void probabilities(int64_t valid, int64_t n, float lse, float dot, float * p, float * ds) {
    const vf l = vf_set1(lse);
    const vf d = vf_set1(dot);
    for (int64_t j = 0; j < n; j += vf_lanes) {
        const vf e = vf_exp(vf_sub(vf_load(p + j), l));
        vf_store(p + j, e);
        vf_store(ds + j, vf_mul(e, vf_sub(vf_load(ds + j), d)));
    }
    for (int64_t j = valid; j < n; ++j) {
        p[j]  = 0.0f;
        ds[j] = 0.0f;
    }
}

// The tile of queries at q0 against the tile of keys at k0, places within the sample.
void run_pair(const attn_shape & s, const buffers & b, const unit & u, int64_t q0, int64_t n_q, int64_t k0) {
    const int64_t n_keys = std::min(attn_keys, q0 + n_q - k0);
    for (int64_t i0 = 0; i0 < n_q; i0 += gemm_mr) {
        const int64_t reach = std::min<int64_t>(n_keys, q0 + i0 + gemm_mr - k0);
        if (reach <= 0) {
            continue;
        }
        const int64_t n  = (reach + vf_lanes - 1) / vf_lanes * vf_lanes;
        float *       p  = b.p + i0 * attn_ld;
        float *       ds = b.ds + i0 * attn_ld;
        panel<1, gemm_mr>(true, n, s.d, b.q + i0 * s.d, b.k_cols + k0 * s.d, attn_keys, p, attn_ld);
        panel<1, gemm_mr>(true, n, s.d, b.dy + i0 * s.d, b.v_cols + k0 * s.d, attn_keys, ds, attn_ld);
        for (int64_t i = 0; i < gemm_mr && i0 + i < n_q; ++i) {
            probabilities(std::min(attn_keys, q0 + i0 + i - k0 + 1), n, b.lse[i0 + i], b.dot[i0 + i], p + i * attn_ld,
                          ds + i * attn_ld);
        }
        if (u.queries) {
            panel<attn_ld, 1>(k0 == 0, s.dp, reach, ds, b.k_rows + k0 * s.dp, s.dp, b.dq + i0 * s.dp, s.dp);
        }
    }
    for (int64_t j0 = 0; j0 < n_keys && u.keys; j0 += gemm_mr) {
        const int64_t i0 = std::max<int64_t>(k0 + j0 - q0, 0);  // the first query that looks at one of these keys
        panel<1, attn_ld>(false, s.dp, n_q - i0, b.p + i0 * attn_ld + j0, b.y_rows + i0 * s.dp, s.dp,
                          b.dv + (k0 + j0) * s.dp, s.dp);
        panel<1, attn_ld>(false, s.dp, n_q - i0, b.ds + i0 * attn_ld + j0, b.q_rows + i0 * s.dp, s.dp,
                          b.dk + (k0 + j0) * s.dp, s.dp);
    }
}

// Packs the tile of queries at token `t` of a head.
void load_tile(const attn_shape & s, const gradients & g, const buffers & b, int64_t head, int64_t t, int64_t n_q) {
    const int64_t at = t * s.q_stride() + head * s.d;
    attn_pack_rows(s.q + at, s.q_stride(), 0, n_q, s.d, s.dp, s.scale, b.q_rows);
    attn_pack_rows(g.dy + at, s.q_stride(), 0, n_q, s.d, s.dp, 1.0f, b.y_rows);
    attn_pack_panels(b.q_rows, n_q, s.d, s.dp, b.q);
    attn_pack_panels(b.y_rows, n_q, s.d, s.dp, b.dy);
    for (int64_t i = 0; i < n_q; ++i) {
        const float * y   = g.y + at + i * s.q_stride();
        vf            dot = vf_zero();
        for (int64_t e = 0; e < s.d; e += vf_lanes) {
            dot = vf_fma(vf_load(b.y_rows + i * s.dp + e), vf_load_most(y + e, s.d - e), dot);
        }
        b.dot[i] = vf_sum(dot);
        b.lse[i] = g.lse[(t + i) * s.n_head + head];
    }
}

void store_rows(const float * rows, int64_t begin, int64_t end, int64_t d, int64_t dp, float scale, float * dst,
                int64_t stride) {
    const vf by = vf_set1(scale);
    for (int64_t i = begin; i < end; ++i) {
        for (int64_t e = 0; e < d; e += vf_lanes) {
            vf_store_most(dst + i * stride + e, vf_mul(vf_load(rows + i * dp + e), by), d - e);
        }
    }
}

// The tiles of `size` that start at the tokens [begin, end), as places within the sample.
struct tiles {
    tiles(const attn_sample & s, int64_t size, int64_t begin, int64_t end) :
        begin(std::max<int64_t>(begin - s.first + size - 1, 0) / size * size),
        end(std::min(s.n, std::max<int64_t>(end - s.first + size - 1, 0) / size * size)) {}

    int64_t begin, end;
};

void run_sample(const attn_shape & s, const gradients & g, const buffers & b, const unit & u, const attn_sample & sample) {
    tiles queries(sample, attn_queries, u.query_begin, u.query_end);
    tiles keys(sample, attn_keys, u.key_begin, u.key_end);
    keys.end      = std::min(keys.end, queries.end);
    queries.begin = std::max(queries.begin, keys.begin);  // a tile of keys starts with a tile of queries
    if (queries.begin >= queries.end || keys.begin >= keys.end) {
        return;
    }
    const int64_t at_kv = sample.first * s.kv_stride() + u.head_kv * s.d;
    attn_pack_columns(s.k + at_kv, s.kv_stride(), keys.begin, keys.end, s.d, b.k_cols);
    attn_pack_columns(s.v + at_kv, s.kv_stride(), keys.begin, keys.end, s.d, b.v_cols);
    if (u.queries) {
        attn_pack_rows(s.k + at_kv, s.kv_stride(), keys.begin, keys.end, s.d, s.dp, 1.0f, b.k_rows);
    }
    if (u.keys) {
        const int64_t whole = (keys.end - keys.begin + gemm_mr - 1) / gemm_mr * gemm_mr;
        memset(b.dk + keys.begin * s.dp, 0, whole * s.dp * sizeof(float));
        memset(b.dv + keys.begin * s.dp, 0, whole * s.dp * sizeof(float));
    }
    for (int64_t head = u.head_begin; head < u.head_end; ++head) {
        for (int64_t q0 = queries.begin; q0 < queries.end; q0 += attn_queries) {
            const int64_t n_q = std::min(attn_queries, sample.n - q0);
            load_tile(s, g, b, head, sample.first + q0, n_q);
            for (int64_t k0 = keys.begin; k0 < std::min(keys.end, q0 + n_q); k0 += attn_keys) {
                run_pair(s, b, u, q0, n_q, k0);
            }
            if (u.queries) {
                store_rows(b.dq, 0, n_q, s.d, s.dp, s.scale, g.dq + (sample.first + q0) * s.q_stride() + head * s.d,
                           s.q_stride());
            }
        }
    }
    if (u.keys) {
        store_rows(b.dk, keys.begin, keys.end, s.d, s.dp, 1.0f, g.dk + at_kv, s.kv_stride());
        store_rows(b.dv, keys.begin, keys.end, s.d, s.dp, 1.0f, g.dv + at_kv, s.kv_stride());
    }
}

// The cut into units, the same for all threads.
class units {
  public:
    units(const attn_shape & s, int nth) : s_(s) {
        int64_t n_samples = 0;
        for (int64_t t = 0; t < s.n_tokens; t += attn_sample_at(s, t).n) {
            ++n_samples;
        }
        const int64_t wanted = 2 * nth;
        parts_               = std::min((wanted + s.n_head_kv - 1) / s.n_head_kv, n_samples);
        n_both_              = s.n_head_kv * parts_;
        if ((n_both_ + nth - 1) / nth * nth * 5 <= n_both_ * 7) {
            return;
        }
        parts_   = std::min((wanted + s.n_head_kv - 1) / s.n_head_kv, (s.n_tokens + attn_keys - 1) / attn_keys);
        q_parts_ = std::min((wanted + s.n_head - 1) / s.n_head, (s.n_tokens + attn_queries - 1) / attn_queries);
        n_both_  = 0;
        n_keys_  = s.n_head_kv * parts_;
        n_       = n_keys_ + s.n_head * q_parts_;
    }

    int64_t count() const { return n_both_ ? n_both_ : n_; }

    // A unit of whole samples takes those that start within its tokens.
    bool whole_samples() const { return n_both_ > 0; }

    unit at(int64_t i) const {
        if (n_both_ || i < n_keys_) {
            const int64_t kv   = i % s_.n_head_kv;
            const int64_t part = i / s_.n_head_kv;
            return { kv, kv * s_.group(), (kv + 1) * s_.group(), part * s_.n_tokens / parts_,
                     (part + 1) * s_.n_tokens / parts_, 0, s_.n_tokens, true, n_both_ > 0 };
        }
        const int64_t head = (i - n_keys_) % s_.n_head;
        const int64_t part = q_parts_ - 1 - (i - n_keys_) / s_.n_head;  // the costliest first
        return { head / s_.group(), head, head + 1, 0, s_.n_tokens, part * s_.n_tokens / q_parts_,
                 (part + 1) * s_.n_tokens / q_parts_, false, true };
    }

  private:
    const attn_shape & s_;
    int64_t            parts_, q_parts_ = 1;
    int64_t            n_both_, n_keys_ = 0, n_ = 0;
};

void run_unit(const attn_shape & s, const gradients & g, const buffers & b, unit u, bool whole_samples) {
    for (int64_t t = 0; t < s.n_tokens;) {
        const attn_sample sample = attn_sample_at(s, t);
        t += sample.n;
        if (!whole_samples) {
            run_sample(s, g, b, u, sample);
        } else if (sample.first >= u.key_begin && sample.first < u.key_end) {
            unit all      = u;
            all.key_begin = 0;
            all.key_end   = s.n_tokens;
            run_sample(s, g, b, all, sample);
        }
    }
}

}  // namespace

size_t attention_back_work_size(int n_tasks, const ggml_tensor * dst) {
    return attn_work_size(n_tasks, buffers(attn_shape(dst), nullptr).bytes);
}

void attention_back(const ggml_compute_params * params, ggml_tensor * dst) {
    const attn_shape s(dst);
    const size_t     bytes = buffers(s, nullptr).bytes;
    const buffers    b(s, attn_work(params, bytes));

    const float *   fwd = (const float *) dst->src[4]->data;
    float *         out = (float *) dst->data;
    const int64_t   n_q = s.q_stride() * s.n_tokens;
    const int64_t   n_k = s.kv_stride() * s.n_tokens;
    const gradients g   = { fwd, fwd + n_q, (const float *) dst->src[5]->data, out, out + n_q, out + n_q + n_k };

    const units all(s, params->nth);
    attn_units_start(params);
    for (int64_t i = params->ith; i < all.count(); i = attn_units_next(params)) {
        run_unit(s, g, b, all.at(i), all.whole_samples());
    }
}

}  // namespace qvac
