// Causal attention forward (GGML_TRAIN_OP_ATTENTION), a tile of queries against a tile of keys at a time.
//
// Per query: a running maximum m, a running sum l of exp(score - m) and the running output, rescaled when m grows; at the
// end the output over l, and m + log(l). Keys behind the diagonal are not computed, panel by panel of gemm_mr queries.
// A unit of work is a head, or a part of its queries where there are few heads.

#include "attention.h"

#include "fused.h"
#include "ggml-cpu-impl.h"
#include "panel.h"
#include "simd-math.h"

#include <algorithm>
#include <cmath>

namespace qvac {

namespace {

struct buffers {
    explicit buffers(const attn_shape & s, char * base) {
        attn_arena arena(base);
        keys    = arena.take(attn_columns_size(s.n_tokens, s.d));
        values  = arena.take(s.n_tokens * s.dp);
        rows    = arena.take(attn_queries * s.dp);
        queries = arena.take(attn_panels_size(attn_queries, s.d));
        scores  = arena.take(gemm_mr * attn_ld);
        out     = arena.take(attn_queries * s.dp);
        max     = arena.take(attn_queries);
        sum     = arena.take(attn_queries * vf_lanes);
        bytes   = arena.used();
    }

    float * keys;     // columns
    float * values;   // rows
    float * rows;     // the tile's queries, scaled
    float * queries;  // the same as panels
    float * scores;   // of one panel
    float * out;      // rows
    float * max;
    float * sum;      // one vector a query
    size_t  bytes;
};

// Scores of one query against a tile of keys to probabilities over exp(max); `valid` of them count, the rest up to
// `n` become 0.
void soften(bool first, int64_t valid, int64_t n, float * scores, float * max, float * sum, float * out, int64_t dp) {
    for (int64_t j = valid; j < n; ++j) {
        scores[j] = -INFINITY;
    }
    vf top = vf_load(scores);
    for (int64_t j = vf_lanes; j < n; j += vf_lanes) {
        top = vf_max(top, vf_load(scores + j));
    }
    const float tile_max = vf_top(top);
    vf          l        = vf_zero();
    if (first) {
        *max = tile_max;
    } else {
        l = vf_load(sum);
        if (tile_max > *max) {
            const vf shrink = vf_exp(vf_set1(*max - tile_max));
            *max            = tile_max;
            l               = vf_mul(l, shrink);
            for (int64_t e = 0; e < dp; e += vf_lanes) {
                vf_store(out + e, vf_mul(vf_load(out + e), shrink));
            }
        }
    }
    const vf m = vf_set1(*max);
    for (int64_t j = 0; j < n; j += vf_lanes) {
        const vf p = vf_exp(vf_sub(vf_load(scores + j), m));
        vf_store(scores + j, p);
        l = vf_add(l, p);
    }
    vf_store(sum, l);
}

// Queries [q0, q0 + n_q) of a sample, against all keys up to the last of them.
void run_tile(const attn_shape & s, const buffers & b, int64_t q0, int64_t n_q) {
    const int64_t n_keys = q0 + n_q;
    for (int64_t k0 = 0; k0 < n_keys; k0 += attn_keys) {
        const bool first = k0 == 0;
        for (int64_t p = 0; p < n_q; p += gemm_mr) {
            const int64_t reach = std::min(attn_keys, q0 + p + gemm_mr - k0);
            if (reach <= 0) {
                continue;
            }
            const int64_t n = (std::min(reach, n_keys - k0) + vf_lanes - 1) / vf_lanes * vf_lanes;
            panel<1, gemm_mr>(true, n, s.d, b.queries + p * s.d, b.keys + k0 * s.d, attn_keys, b.scores, attn_ld);
            for (int64_t i = 0; i < gemm_mr && p + i < n_q; ++i) {
                soften(first, std::min(attn_keys, q0 + p + i - k0 + 1), n, b.scores + i * attn_ld, b.max + p + i,
                       b.sum + (p + i) * vf_lanes, b.out + (p + i) * s.dp, s.dp);
            }
            panel<attn_ld, 1>(first, s.dp, std::min(reach, n_keys - k0), b.scores, b.values + k0 * s.dp, s.dp,
                              b.out + p * s.dp, s.dp);
        }
    }
}

void store_tile(const attn_shape & s, const buffers & b, int64_t head, int64_t token, int64_t n_q, float * dst) {
    float * lse = dst + s.q_stride() * s.n_tokens;
    for (int64_t i = 0; i < n_q; ++i) {
        const float l    = vf_sum(vf_load(b.sum + i * vf_lanes));
        const vf    over = vf_set1(1.0f / l);
        float *     y    = dst + (token + i) * s.q_stride() + head * s.d;
        for (int64_t e = 0; e < s.d; e += vf_lanes) {
            vf_store_most(y + e, vf_mul(vf_load(b.out + i * s.dp + e), over), s.d - e);
        }
        lse[(token + i) * s.n_head + head] = b.max[i] + std::log(l);
    }
}

// The tiles of one head that start at the tokens [begin, end).
void run_unit(const attn_shape & s, const buffers & b, int64_t head, int64_t begin, int64_t end, float * dst) {
    const int64_t head_kv = head / s.group();
    for (int64_t t = 0; t < end;) {
        const attn_sample sample = attn_sample_at(s, t);
        t += sample.n;
        const int64_t skip = std::max<int64_t>(begin - sample.first + attn_queries - 1, 0) / attn_queries * attn_queries;
        const int64_t stop = std::min(sample.n, (end - sample.first + attn_queries - 1) / attn_queries * attn_queries);
        if (skip >= stop) {
            continue;
        }
        const float * q = s.q + sample.first * s.q_stride() + head * s.d;
        const float * k = s.k + sample.first * s.kv_stride() + head_kv * s.d;
        const float * v = s.v + sample.first * s.kv_stride() + head_kv * s.d;
        attn_pack_columns(k, s.kv_stride(), 0, stop, s.d, b.keys);
        attn_pack_rows(v, s.kv_stride(), 0, stop, s.d, s.dp, 1.0f, b.values);
        for (int64_t q0 = skip; q0 < stop; q0 += attn_queries) {
            const int64_t n_q = std::min(attn_queries, sample.n - q0);
            attn_pack_rows(q + q0 * s.q_stride(), s.q_stride(), 0, n_q, s.d, s.dp, s.scale, b.rows);
            attn_pack_panels(b.rows, n_q, s.d, s.dp, b.queries);
            run_tile(s, b, q0, n_q);
            store_tile(s, b, head, sample.first + q0, n_q, dst);
        }
    }
}

}  // namespace

size_t attention_work_size(int n_tasks, const ggml_tensor * dst) {
    return attn_work_size(n_tasks, buffers(attn_shape(dst), nullptr).bytes);
}

void attention(const ggml_compute_params * params, ggml_tensor * dst) {
    const attn_shape s(dst);
    const size_t     bytes = buffers(s, nullptr).bytes;
    const buffers    b(s, attn_work(params, bytes));

    const int64_t wanted  = (2 * params->nth + s.n_head - 1) / s.n_head;
    const int64_t n_parts = s.n_head >= 2 * params->nth ? 1 : std::min(wanted, (s.n_tokens + attn_queries - 1) / attn_queries);
    attn_units_start(params);
    for (int64_t u = params->ith; u < s.n_head * n_parts; u = attn_units_next(params)) {
        // the last part first: its queries look at the most keys
        const int64_t part = n_parts - 1 - u / s.n_head;
        run_unit(s, b, u % s.n_head, part * s.n_tokens / n_parts, (part + 1) * s.n_tokens / n_parts, (float *) dst->data);
    }
}

}  // namespace qvac
