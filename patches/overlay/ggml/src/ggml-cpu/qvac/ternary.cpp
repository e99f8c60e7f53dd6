// MUL_MAT with a TQ1_0 or TQ2_0 src0 and TQ_MUL_MAT on the CPU, by the forward formula of ternary.h.
//
// First all threads quantize the tokens (TQ_MUL_MAT's are already), arrange them and scan the scales; after a barrier,
// units of rows are handed out.

#include "ternary.h"

#include "ggml-cpu-impl.h"
#include "kernels.h"
#include "ternary-tile.h"
#include "ternary-vec.h"

#include <algorithm>
#include <cstring>

namespace qvac {

namespace {

// The work buffer: one scan result per thread, the tokens (arranged for rows one by one, or for tiles), and per thread a
// slot of one token's q and, for tiles, a panel with its block scales.
struct layout {
    int64_t n_tokens, n_blocks;
    int64_t chunk;     // tokens
    int64_t n_panels;  // of a slot: several, where one alone would read the q's of all tokens from afar
    size_t  arranged_stride;
    size_t  scans, scale, sums, block_sums, q, slots, slot, slot_d, slot_panels, total;
};

constexpr size_t  line       = 64;
constexpr int64_t max_tokens = 512 / tile_mr * tile_mr;  // of a unit, whole tiles
constexpr int64_t chunk_size = 1 << 20;                  // bytes of q that stay in the second-level cache,
constexpr int64_t panel_size = 3 << 18;                  // and of panels with which they meet there
constexpr int64_t max_panels = 8;

size_t pad(size_t n) {
    return (n + line - 1) / line * line;
}

layout plan(int nth, const ggml_tensor * dst) {
    const ggml_tensor * w = dst->src[0];
    layout              l;
    l.n_tokens        = ggml_nrows(dst->src[1]);
    l.n_blocks        = w->ne[0] / tq_block;
    l.arranged_stride = tq_vec_size(w->type, w->ne[0]);

    size_t     at   = 0;
    const auto take = [&](size_t bytes) {
        const size_t here = at;
        at += pad(bytes);
        return here;
    };
    l.scans      = take(nth * line);
    l.scale      = take(l.n_tokens * sizeof(float));
    l.sums       = take(l.n_tokens * sizeof(int32_t));
    l.block_sums = take(l.n_tokens * l.n_blocks * sizeof(int32_t));
    const bool vec = l.n_tokens <= vec_tokens;
    l.q          = take(vec ? l.n_tokens * l.arranged_stride : tile_rows_size(l.n_tokens, w->ne[0] / 4));
    l.chunk      = std::max<int64_t>(1, chunk_size / (w->ne[0] * tile_mr)) * tile_mr;
    l.n_panels   = std::min(l.n_tokens, max_tokens) <= l.chunk ?
                       1 :
                       std::min(std::max<int64_t>(1, panel_size / (w->ne[0] * tile_nr)), max_panels);
    l.slot_d     = pad(w->ne[0]);
    l.slot_panels = l.slot_d + pad(l.n_blocks * tile_nr * l.n_panels * sizeof(float));
    l.slot       = vec ? l.slot_d : l.slot_panels + w->ne[0] * tile_nr * l.n_panels;
    l.slots      = take(nth * l.slot);
    l.total      = at;
    return l;
}

struct task {
    const ggml_tensor * w;
    ggml_tensor *       dst;
    layout              l;
    char *              work;
    tq_scales           scales;

    template <typename T> T * at(size_t offset) const { return (T *) (work + offset); }

    const char * src(int64_t token) const {
        const ggml_tensor * x = dst->src[1];
        return (const char *) x->data + token % x->ne[1] * x->nb[1] + token / x->ne[1] % x->ne[2] * x->nb[2] +
               token / x->ne[1] / x->ne[2] * x->nb[3];
    }

    float * out(int64_t token) const {
        return (float *) ((char *) dst->data + token % dst->ne[1] * dst->nb[1] + token / dst->ne[1] % dst->ne[2] * dst->nb[2] +
                          token / dst->ne[1] / dst->ne[2] * dst->nb[3]);
    }

    const char * row(int64_t r) const { return (const char *) w->data + r * w->nb[1]; }
};

// q of a token, its scale and its sum; `slot` takes q where it must be made.
const int8_t * token_q(const task & t, int64_t token, char * slot) {
    const int64_t       n     = t.w->ne[0];
    const ggml_tensor * x     = t.dst->src[1];
    float &             scale = t.at<float>(t.l.scale)[token];
    int32_t &           sum   = t.at<int32_t>(t.l.sums)[token];
    if (x->type == GGML_TYPE_I8) {
        scale            = tq_token_scale(x, token);
        const int8_t * q = (const int8_t *) t.src(token);
        sum              = tq_sum(q, n);
        return q;
    }
    scale = tq_quantize(t.src(token), x->nb[0], n, 1, (int8_t *) slot, n, &sum);
    return (const int8_t *) slot;
}

void arrange(const task & t, int64_t token, char * slot) {
    const int64_t  n = t.w->ne[0];
    const int8_t * q = token_q(t, token, slot);

    int32_t * block_sums = t.at<int32_t>(t.l.block_sums) + token * t.l.n_blocks;
    for (int64_t b = 0; b < t.l.n_blocks; ++b) {
        block_sums[b] = tq_sum(q + b * tq_block, tq_block);
    }
    if (t.l.n_tokens <= vec_tokens) {
        tq_vec_arrange(t.w->type, q, n, t.at<int8_t>(t.l.q) + token * t.l.arranged_stride);
    } else {
        tile_put_row(t.at<uint32_t>(t.l.q), token, n / 4, q);
    }
}

struct vec_operands {
    int             n_tokens;
    const int8_t *  q;
    const float *   scale;
    const int32_t * sums;
    const char *    end;
    float *         out[vec_tokens];
};

vec_operands vec_of(const task & t) {
    vec_operands v = { (int) t.l.n_tokens, t.at<int8_t>(t.l.q), t.at<float>(t.l.scale), t.at<int32_t>(t.l.sums),
                       t.row(t.w->ne[1]), {} };
    for (int i = 0; i < v.n_tokens; ++i) {
        v.out[i] = t.out(i);
    }
    return v;
}

// Few tokens, rows [r0, r1), as if the tensor had one scale. Returns what the scales were: where the tensor's turn out to
// be mixed, the outputs are computed again. Weights are read from memory once this way.
tq_scales run_vec(const task & t, int64_t r0, int64_t r1) {
    const vec_operands v      = vec_of(t);
    tq_scales          all    = { tq_scale::none, 0 };
    float              factor[vec_tokens];
    const auto         add = [&](int64_t r) {
        all = tq_merge(all, tq_scan(t.w, r, r + 1));
        for (int i = 0; i < v.n_tokens; ++i) {
            factor[i] = v.scale[i] * tq_value(all);
        }
    };
    if (r0 < r1) {
        add(r0);
    }
    for (int64_t r = r0; r < r1 && all.kind != tq_scale::mixed; ++r) {
        int32_t s[vec_tokens];
        if (tq_vec_dot(t.w->type, t.row(r), 0, t.w->ne[0], all.bits, v.end, v.n_tokens, v.q, t.l.arranged_stride, v.sums, s)) {
            add(r);
        }
        for (int i = 0; i < v.n_tokens; ++i) {
            v.out[i][r] = (float) s[i] * factor[i];
        }
    }
    return all;
}

void run_vec_mixed(const task & t, int64_t r0, int64_t r1) {
    const vec_operands v = vec_of(t);
    for (int64_t r = r0; r < r1; ++r) {
        float y[vec_tokens] = {};
        for (int64_t b = 0; b < t.l.n_blocks; ++b) {
            int32_t base[vec_tokens];
            int32_t s[vec_tokens];
            for (int i = 0; i < v.n_tokens; ++i) {
                base[i] = t.at<int32_t>(t.l.block_sums)[i * t.l.n_blocks + b];
            }
            tq_vec_dot(t.w->type, t.row(r), b, tq_block, 0, v.end, v.n_tokens, v.q, t.l.arranged_stride, base, s);
            const float d = tq_block_scale(t.w->type, t.row(r), b);
            for (int i = 0; i < v.n_tokens; ++i) {
                y[i] += (float) s[i] * d;
            }
        }
        for (int i = 0; i < v.n_tokens; ++i) {
            v.out[i][r] = y[i] * v.scale[i];
        }
    }
}

// Many tokens: n_rows rows from r on, decoded to a panel and its block scales, by tokens [t0, t1).
void run_panel(const task & t, int64_t r, int64_t n_rows, const uint32_t * panel, const float * block_d, int64_t t0, int64_t t1) {
    const layout & l        = t.l;
    const bool     mixed    = t.scales.kind == tq_scale::mixed;
    const float    d        = tq_value(t.scales);
    const float *  scale    = t.at<float>(l.scale);
    const int64_t  block_n4 = tq_block / 4;
    const int64_t  n4       = l.n_blocks * block_n4;
    for (int64_t m = t0; m < t1; m += tile_mr) {
        const int             mr = (int) std::min<int64_t>(tile_mr, t1 - m);
        const uint32_t *      q  = t.at<uint32_t>(l.q) + m * n4;  // m is a multiple of tile_mr
        alignas(line) int32_t s[tile_mr * tile_nr];
        if (!mixed) {
            tile_int8(mr, n4, q, t.at<int32_t>(l.sums) + m, panel, s);
            for (int i = 0; i < mr; ++i) {
                float *     out    = t.out(m + i) + r;
                const float factor = scale[m + i] * d;
                for (int64_t c = 0; c < n_rows; ++c) {
                    out[c] = (float) s[i * tile_nr + c] * factor;
                }
            }
            continue;
        }
        float y[tile_mr * tile_nr] = {};
        for (int64_t b = 0; b < l.n_blocks; ++b) {
            int32_t base[tile_mr];
            for (int i = 0; i < mr; ++i) {
                base[i] = t.at<int32_t>(l.block_sums)[(m + i) * l.n_blocks + b];
            }
            tile_int8(mr, block_n4, q + b * block_n4 * tile_mr, base, panel + b * block_n4 * tile_nr, s);
            for (int i = 0; i < mr; ++i) {
                for (int64_t c = 0; c < n_rows; ++c) {
                    y[i * tile_nr + c] += (float) s[i * tile_nr + c] * block_d[b * tile_nr + c];
                }
            }
        }
        for (int i = 0; i < mr; ++i) {
            float * out = t.out(m + i) + r;
            for (int64_t c = 0; c < n_rows; ++c) {
                out[c] = y[i * tile_nr + c] * scale[m + i];
            }
        }
    }
}

// Rows [r0, r1) by tokens [t0, t1): as many panels as the slot holds by one chunk of tokens after another.
void run_unit(const task & t, int64_t r0, int64_t r1, int64_t t0, int64_t t1, char * slot) {
    const layout & l       = t.l;
    const int64_t  panel_n = t.w->ne[0] / 4 * tile_nr;
    float *        block_d = (float *) (slot + l.slot_d);
    uint32_t *     panels  = (uint32_t *) (slot + l.slot_panels);
    const auto     count   = [&](int64_t r) { return std::min<int64_t>(tile_nr, r1 - r); };
    for (int64_t g = r0; g < r1; g += l.n_panels * tile_nr) {
        const int64_t end = std::min(g + l.n_panels * tile_nr, r1);
        for (int64_t r = g; r < end; r += tile_nr) {
            const int64_t p = (r - g) / tile_nr;
            tq_pack_rows(t.w, r, count(r), panels + p * panel_n);
            for (int64_t i = 0; t.scales.kind == tq_scale::mixed && i < count(r); ++i) {
                for (int64_t b = 0; b < l.n_blocks; ++b) {
                    block_d[(p * l.n_blocks + b) * tile_nr + i] = tq_block_scale(t.w->type, t.row(r + i), b);
                }
            }
        }
        for (int64_t m = t0; m < t1; m += l.chunk) {
            for (int64_t r = g; r < end; r += tile_nr) {
                const int64_t p = (r - g) / tile_nr;
                run_panel(t, r, count(r), panels + p * panel_n, block_d + p * l.n_blocks * tile_nr, m, std::min(m + l.chunk, t1));
            }
        }
    }
}

bool supported(const ggml_tensor * dst) {
    if (ggml_get_train_op(dst) == GGML_TRAIN_OP_TQ_MUL_MAT) {
        return true;
    }
    const ggml_tensor * w = dst->src[0];
    return is_ternary(w->type) && dst->src[1]->type == GGML_TYPE_F32 && dst->type == GGML_TYPE_F32 && w->ne[2] == 1 &&
           w->ne[3] == 1 && w->nb[0] == ggml_type_size(w->type) && dst->nb[0] == sizeof(float);
}

}  // namespace

size_t ternary_mul_mat_work_size(int n_tasks, const ggml_tensor * dst) {
    return supported(dst) ? plan(n_tasks, dst).total + line : 0;
}

bool ternary_mul_mat(const ggml_compute_params * params, ggml_tensor * dst) {
    if (!supported(dst)) {
        return false;
    }
    if (params->use_ref) {
        if (params->ith == 0) {
            ternary_mul_mat_ref(dst);
        }
        return true;
    }
    const int ith = params->ith;
    const int nth = params->nth;
    task      t   = { dst->src[0], dst, plan(nth, dst), (char *) pad((size_t) params->wdata), {} };
    GGML_ASSERT(params->wsize >= t.l.total + line);

    const int64_t n_rows     = t.w->ne[1];
    const bool    vec        = t.l.n_tokens <= vec_tokens;
    const int64_t own0       = n_rows * ith / nth;
    const int64_t own1       = n_rows * (ith + 1) / nth;
    char *        slot       = t.at<char>(t.l.slots + ith * t.l.slot);
    for (int64_t i = ith; i < t.l.n_tokens; i += nth) {
        arrange(t, i, slot);
    }
    if (ith == 0) {
        ggml_threadpool_chunk_set(params->threadpool, nth);
    }
    tq_scales & own = *t.at<tq_scales>(t.l.scans + ith * line);
    if (vec) {
        ggml_barrier(params->threadpool);
        own = run_vec(t, own0, own1);
    } else {
        own = tq_scan(t.w, own0, own1);
    }
    ggml_barrier(params->threadpool);

    t.scales = { tq_scale::none, 0 };
    for (int i = 0; i < nth; ++i) {
        t.scales = tq_merge(t.scales, *t.at<tq_scales>(t.l.scans + i * line));
    }
    if (vec) {
        if (t.scales.kind == tq_scale::mixed) {
            run_vec_mixed(t, own0, own1);
        }
        return true;
    }
    // A unit has as many panels as its slot, if that leaves every thread eight of them; few tokens take more, for taking a
    // unit costs an atomic operation.
    const int64_t n_panels = (n_rows + tile_nr - 1) / tile_nr;
    const int64_t at_most  = t.l.n_tokens < 64 ? n_panels : t.l.n_panels;
    const int64_t per_unit = tile_nr * std::max<int64_t>(1, std::min(at_most, n_panels / (8 * nth)));
    const int64_t n_r      = (n_rows + per_unit - 1) / per_unit;
    const int64_t n_t      = (t.l.n_tokens + max_tokens - 1) / max_tokens;
    const tile_scope scope;
    for (int64_t u = ith; u < n_r * n_t; u = ggml_threadpool_chunk_add(params->threadpool, 1)) {
        const int64_t r0 = u % n_r * per_unit;
        const int64_t t0 = u / n_r * max_tokens;
        run_unit(t, r0, std::min(r0 + per_unit, n_rows), t0, std::min(t0 + max_tokens, t.l.n_tokens), slot);
    }
    return true;
}

}  // namespace qvac
