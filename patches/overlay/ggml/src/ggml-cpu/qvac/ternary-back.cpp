// TQ_MUL_MAT_BACK on the CPU: add + W^T y, by the backward formula of ternary.h.
//
// The rows of A are the limbs of the tokens, both limbs of a token side by side. Columns of W are taken in groups of
// blocks: all threads decode a group into panels, and after a barrier hand out units of rows of A by panels. So a weight
// is decoded once, whatever the number of threads and tokens.

#include "ternary.h"

#include "gemm.h"
#include "ggml-cpu-impl.h"
#include "kernels.h"
#include "ternary-tile.h"

#include <algorithm>
#include <cstring>

namespace qvac {

namespace {

constexpr size_t  line        = 64;
constexpr int64_t cache_bytes = 1 << 20;  // of A for a unit, and of panels for a group: they meet in the second-level cache
static_assert(tile_mr % 2 == 0, "both limbs of a token in one tile");

size_t pad(size_t n) {
    return (n + line - 1) / line * line;
}

// The work buffer: one scan result per thread, then the integer path's scales, sums, A and panels. The float path of mixed
// scales lies over the latter: y, then what its GEMM needs.
struct layout {
    int     limbs;
    int64_t n_tokens, n, m, n_blocks;
    int64_t group;  // blocks
    int64_t chunk;  // rows of A in a unit
    size_t  scans, scale, sums, a, panels, y, gemm, total;

    int64_t rows() const { return n_tokens * limbs; }
    int64_t n4() const { return m / 4; }
    int64_t block_dwords() const { return n4() * tq_block; }
};

layout plan(int nth, const ggml_tensor * dst) {
    const ggml_tensor * w  = dst->src[0];
    const ggml_tensor * yq = dst->src[1];
    layout              l;
    l.n        = w->ne[0];
    l.m        = w->ne[1];
    l.limbs    = tq_limbs(yq, l.m);
    l.n_tokens = yq->ne[1];
    l.n_blocks = l.n / tq_block;
    l.group    = std::min(std::max<int64_t>(1, 2 * cache_bytes / (l.m * tq_block)), l.n_blocks);

    const int64_t at_most  = std::max<int64_t>(tile_mr, cache_bytes / l.m);
    const int64_t n_chunks = (l.rows() + at_most - 1) / at_most;
    l.chunk                = (l.rows() + n_chunks - 1) / n_chunks;
    l.chunk                = (l.chunk + tile_mr - 1) / tile_mr * tile_mr;

    size_t     at   = 0;
    const auto take = [&](size_t bytes) {
        const size_t here = at;
        at += pad(bytes);
        return here;
    };
    l.scans                = take(nth * line);
    const size_t by_scales = at;
    l.scale                = take(l.n_tokens * sizeof(float));
    l.sums                 = take(l.rows() * sizeof(int32_t));
    l.a                    = take(tile_rows_size(l.rows(), l.n4()));
    l.panels               = take(l.group * l.block_dwords() * sizeof(uint32_t));
    l.total                = at;
    at                     = by_scales;
    l.y                    = take(l.n_tokens * l.m * sizeof(float));
    l.gemm                 = take(gemm_work_size(nth));
    l.total                = std::max(l.total, at);
    return l;
}

struct task {
    const ggml_tensor * w;
    const ggml_tensor * yq;
    const ggml_tensor * add;
    ggml_tensor *       dst;
    layout              l;
    char *              work;

    template <typename T> T * at(size_t offset) const { return (T *) (work + offset); }

    const int8_t * q(int64_t token) const { return (const int8_t *) yq->data + token * yq->nb[1]; }
    float *        out(int64_t token) const { return (float *) dst->data + token * l.n; }
    const float *  added(int64_t token) const { return add ? (const float *) add->data + token * l.n : nullptr; }
};

void arrange(const task & t, int64_t token) {
    t.at<float>(t.l.scale)[token] = tq_token_scale(t.yq, token);
    for (int limb = 0; limb < t.l.limbs; ++limb) {
        const int8_t * q              = t.q(token) + limb * t.l.m;
        const int64_t  row            = token * t.l.limbs + limb;
        t.at<int32_t>(t.l.sums)[row] = tq_sum(q, t.l.m);
        tile_put_row(t.at<uint32_t>(t.l.a), row, t.l.n4(), q);
    }
}

// One token's columns of a tile; s2 is the second limb's sums or null.
void finish(const int32_t * s1, const int32_t * s2, float factor, const float * add, float * out) {
    float y[tile_nr];
    for (int c = 0; c < tile_nr; ++c) {
        y[c] = (float) s1[c];
    }
    for (int c = 0; s2 && c < tile_nr; ++c) {
        y[c] += over_254((float) s2[c]);
    }
    for (int c = 0; c < tile_nr; ++c) {
        y[c] *= factor;
    }
    for (int c = 0; add && c < tile_nr; ++c) {
        y[c] += add[c];
    }
    memcpy(out, y, sizeof(y));
}

// Rows [r0, r1) of A by panels [p0, p1) of the group that begins at block b0.
void run_unit(const task & t, float d, int64_t b0, int64_t r0, int64_t r1, int64_t p0, int64_t p1) {
    const layout & l = t.l;
    for (int64_t p = p0; p < p1; ++p) {
        const uint32_t * panel = t.at<uint32_t>(l.panels) + p * l.n4() * tile_nr;
        const int64_t    col   = b0 * tq_block + p * tile_nr;
        for (int64_t r = r0; r < r1; r += tile_mr) {
            const int mr = (int) std::min<int64_t>(tile_mr, r1 - r);
            alignas(line) int32_t s[tile_mr * tile_nr];
            tile_int8(mr, l.n4(), t.at<uint32_t>(l.a) + r * l.n4(), t.at<int32_t>(l.sums) + r, panel, s);
            for (int i = 0; i < mr; i += l.limbs) {
                const int64_t   token = (r + i) / l.limbs;
                const int32_t * s1    = s + i * tile_nr;
                const float *   add   = t.added(token);
                finish(s1, l.limbs == 2 ? s1 + tile_nr : nullptr, t.at<float>(l.scale)[token] * d,
                       add ? add + col : nullptr, t.out(token) + col);
            }
        }
    }
}

void run_exact(const ggml_compute_params * params, const task & t, float d) {
    const layout & l        = t.l;
    const int64_t  n_chunks = (l.rows() + l.chunk - 1) / l.chunk;
    const int64_t  row0     = l.n4() * params->ith / params->nth * 4;
    const int64_t  row1     = l.n4() * (params->ith + 1) / params->nth * 4;
    const tile_scope scope;
    for (int64_t b0 = 0; b0 < l.n_blocks; b0 += l.group) {
        const int64_t n_b = std::min(l.group, l.n_blocks - b0);
        for (int64_t b = 0; b < n_b; ++b) {
            tq_pack_cols(t.w, b0 + b, row0, row1, t.at<uint32_t>(l.panels) + b * l.block_dwords());
        }
        if (params->ith == 0) {
            ggml_threadpool_chunk_set(params->threadpool, params->nth);
        }
        ggml_barrier(params->threadpool);

        // eight units for every thread, if there are as many panels
        const int64_t n_panels = n_b * (tq_block / tile_nr);
        const int64_t per_unit = std::max<int64_t>(1, n_panels * n_chunks / (8 * params->nth));
        const int64_t n_p      = (n_panels + per_unit - 1) / per_unit;
        for (int64_t u = params->ith; u < n_chunks * n_p; u = ggml_threadpool_chunk_add(params->threadpool, 1)) {
            const int64_t r0 = u / n_p * l.chunk;
            const int64_t p0 = u % n_p * per_unit;
            run_unit(t, d, b0, r0, std::min(r0 + l.chunk, l.rows()), p0, std::min(p0 + per_unit, n_panels));
        }
        if (b0 + l.group < l.n_blocks) {
            ggml_barrier(params->threadpool);  // the panels are free again
        }
    }
}

gemm_batch mixed_batch(const void * ctx, int64_t) {
    const task & t = *(const task *) ctx;
    return { { t.at<char>(t.l.y), t.l.m * sizeof(float), sizeof(float) },
             { (const char *) t.w->data, t.w->type, gemm_rows::are_k, t.w->nb[1], t.w->nb[0] },
             (char *) t.dst->data, t.dst->nb[1], t.dst->nb[0] };
}

void run_mixed(const ggml_compute_params * params, const task & t) {
    const layout & l = t.l;
    for (int64_t token = params->ith; token < l.n_tokens; token += params->nth) {
        const int8_t * q     = t.q(token);
        const float    scale = tq_token_scale(t.yq, token);
        float *        y     = t.at<float>(l.y) + token * l.m;
        for (int64_t i = 0; i < l.m; ++i) {
            const float low = l.limbs == 2 ? over_254((float) q[l.m + i]) : 0.0f;
            y[i]            = ((float) q[i] + low) * scale;
        }
    }
    ggml_compute_params inner = *params;
    inner.wdata               = t.at<char>(l.gemm);
    inner.wsize               = gemm_work_size(params->nth);
    gemm_run(&inner, { l.n_tokens, l.n, l.m, 1 }, t.w->type, mixed_batch, &t);
    if (!t.add) {
        return;
    }
    ggml_barrier(params->threadpool);
    for (int64_t token = params->ith; token < l.n_tokens; token += params->nth) {
        float *       out = t.out(token);
        const float * add = t.added(token);
        for (int64_t i = 0; i < l.n; ++i) {
            out[i] += add[i];
        }
    }
}

}  // namespace

size_t ternary_mul_mat_back_work_size(int n_tasks, const ggml_tensor * dst) {
    return plan(n_tasks, dst).total + line;
}

bool ternary_mul_mat_back(const ggml_compute_params * params, ggml_tensor * dst) {
    if (params->use_ref) {
        if (params->ith == 0) {
            ternary_mul_mat_back_ref(dst);
        }
        return true;
    }
    const int  ith = params->ith;
    const int  nth = params->nth;
    const task t   = { dst->src[0], dst->src[1], dst->src[2], dst, plan(nth, dst), (char *) pad((size_t) params->wdata) };
    GGML_ASSERT(params->wsize >= t.l.total + line);

    for (int64_t token = ith; token < t.l.n_tokens; token += nth) {
        arrange(t, token);
    }
    *t.at<tq_scales>(t.l.scans + ith * line) = tq_scan(t.w, t.l.m * ith / nth, t.l.m * (ith + 1) / nth);
    ggml_barrier(params->threadpool);

    tq_scales scales = { tq_scale::none, 0 };
    for (int i = 0; i < nth; ++i) {
        scales = tq_merge(scales, *t.at<tq_scales>(t.l.scans + i * line));
    }
    if (scales.kind == tq_scale::mixed) {
        run_mixed(params, t);
    } else {
        run_exact(params, t, tq_value(scales));
    }
    return true;
}

}  // namespace qvac
