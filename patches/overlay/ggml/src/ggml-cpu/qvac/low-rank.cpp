// Products with the low-rank matrices of an adapter (GGML_TRAIN_OP_LOW_RANK_PROJECT, _ADD, _GRAD).
//
// The short side, the rank, is 4 to 64; the long one and the tokens are read once, so these run at the speed of the cache
// or memory that holds them. Vectors lie along the long side. A p that is transposed (B) is brought to rows of n first,
// each thread a part of it; so is a transposed gradient at the end.
// Not here: splitting a sum over threads. Each element is summed by one thread in one order.

#include "fused.h"

#include "ggml-cpu-impl.h"
#include "ggml-train.h"
#include "simd-math.h"

#include <algorithm>
#include <cstring>

namespace qvac {

namespace {

// Registers of accumulators: 16 of 32, or 8 of 16.
constexpr int     n_regs     = vf_lanes == 8 || gemm_mr == 4 ? 8 : 16;
constexpr int     dot_tokens = n_regs / 4;
constexpr int     add_vecs   = n_regs / 4;
constexpr int     add_tokens = 4;
constexpr int     grad_vecs  = 2;
constexpr int     grad_rows  = n_regs / grad_vecs;
constexpr int64_t n_tile     = 256;  // floats of a row that are worked at a time
constexpr int64_t t_tile     = 32;   // tokens
static_assert(n_tile % (add_vecs * vf_lanes) == 0 && n_tile % (grad_vecs * vf_lanes) == 0, "whole register tiles");

struct range {
    range(const ggml_compute_params * params, int64_t n) :
        begin(n * params->ith / params->nth), end(n * (params->ith + 1) / params->nth) {}

    int64_t begin, end;
};

struct rows {
    const float * data;
    int64_t       stride;

    const float * operator[](int64_t i) const { return data + i * stride; }
};

rows rows_of(const ggml_tensor * t) {
    return { (const float *) t->data, (int64_t) (t->nb[1] / sizeof(float)) };
}

bool is_rows(const ggml_tensor * t) {
    return (t->nb[0] == sizeof(float) || t->ne[0] == 1) && t->nb[1] % sizeof(float) == 0;
}

// dst[k][i] = p[i0 + i, k]; for a p whose ranks lie side by side by blocks of 4 x 4
void gather_rows(const ggml_tensor * p, int64_t i0, int64_t i1, float * dst, int64_t ld) {
    const char *  data = (const char *) p->data;
    const int64_t r    = p->ne[1];
    int64_t       i    = i0;
    for (; p->nb[1] == sizeof(float) && i + 4 <= i1; i += 4) {
        const float * four[4];
        for (int j = 0; j < 4; ++j) {
            four[j] = (const float *) (data + (i + j) * p->nb[0]);
        }
        int64_t k = 0;
        for (; k + 4 <= r; k += 4) {
            transpose4(four, k, dst + k * ld + i - i0, ld);
        }
        for (; k < r; ++k) {
            for (int j = 0; j < 4; ++j) {
                dst[k * ld + i - i0 + j] = four[j][k];
            }
        }
    }
    for (; i < i1; ++i) {
        for (int64_t k = 0; k < r; ++k) {
            memcpy(dst + k * ld + i - i0, data + i * p->nb[0] + k * p->nb[1], sizeof(float));
        }
    }
}

// p as rows of n, in place or packed by all threads together.
rows pack_rows(const ggml_compute_params * params, const ggml_tensor * p) {
    if (is_rows(p)) {
        return rows_of(p);
    }
    const int64_t n      = p->ne[0];
    float *       packed = (float *) params->wdata;
    GGML_ASSERT(params->wsize >= (size_t) (n * p->ne[1]) * sizeof(float));
    const range blocks(params, (n + 15) / 16);
    const int64_t i0 = blocks.begin * 16;
    gather_rows(p, i0, std::min(blocks.end * 16, n), packed + i0, n);
    ggml_barrier(params->threadpool);
    return { packed, n };
}

// z[t][k0 .. k0 + nk] = scale * sum_n p[k][n] v[t][n] for nt tokens
template <int nt, int nk>
void dot_tile(int64_t n, const rows & p, const rows & v, int64_t t, int64_t k0, float scale, float * z, int64_t r) {
    vf acc[nt][nk];
    QVAC_UNROLL
    for (int i = 0; i < nt; ++i) {
        QVAC_UNROLL
        for (int k = 0; k < nk; ++k) {
            acc[i][k] = vf_zero();
        }
    }
    const auto step = [&](auto load, int64_t at) {
        vf x[nt];
        QVAC_UNROLL
        for (int i = 0; i < nt; ++i) {
            x[i] = load(v[t + i] + at);
        }
        QVAC_UNROLL
        for (int k = 0; k < nk; ++k) {
            const vf w = load(p[k0 + k] + at);
            QVAC_UNROLL
            for (int i = 0; i < nt; ++i) {
                acc[i][k] = vf_fma(x[i], w, acc[i][k]);
            }
        }
    };
    int64_t at = 0;
    for (; at + vf_lanes <= n; at += vf_lanes) {
        step([](const float * x) { return vf_load(x); }, at);
    }
    if (at < n) {
        step([&](const float * x) { return vf_load_n(x, n - at); }, at);
    }
    for (int i = 0; i < nt; ++i) {
        for (int k = 0; k < nk; ++k) {
            z[(t + i) * r + k0 + k] = scale * vf_sum(acc[i][k]);
        }
    }
}

template <int nt>
void dot_ranks(int64_t n, const rows & p, const rows & v, int64_t t, float scale, float * z, int64_t r) {
    int64_t k = 0;
    for (; k + 4 <= r; k += 4) {
        dot_tile<nt, 4>(n, p, v, t, k, scale, z, r);
    }
    for (; k < r; ++k) {
        dot_tile<nt, 1>(n, p, v, t, k, scale, z, r);
    }
}

struct add_op {
    rows          p, z;
    const float * add;
    float *       y;
    int64_t       n, r;
    float         scale;
};

// y[t][at..] += scale * sum_k z[t][k] p[k][at..] + add[t][at..], `left` floats of a row being left
template <int nt, int nv> void add_tile(const add_op & op, int64_t t, int64_t at, int64_t left) {
    const auto load = [=](const float * x) { return nv > 1 ? vf_load(x) : vf_load_most(x, left); };

    vf acc[nt][nv];
    QVAC_UNROLL
    for (int i = 0; i < nt; ++i) {
        QVAC_UNROLL
        for (int j = 0; j < nv; ++j) {
            acc[i][j] = vf_zero();
        }
    }
    for (int64_t k = 0; k < op.r; ++k) {
        vf w[nv];
        QVAC_UNROLL
        for (int j = 0; j < nv; ++j) {
            w[j] = load(op.p[k] + at + j * vf_lanes);
        }
        QVAC_UNROLL
        for (int i = 0; i < nt; ++i) {
            const vf x = vf_set1(op.z[t + i][k]);
            QVAC_UNROLL
            for (int j = 0; j < nv; ++j) {
                acc[i][j] = vf_fma(x, w[j], acc[i][j]);
            }
        }
    }
    const vf s = vf_set1(op.scale);
    QVAC_UNROLL
    for (int i = 0; i < nt; ++i) {
        QVAC_UNROLL
        for (int j = 0; j < nv; ++j) {
            const int64_t to = (t + i) * op.n + at + j * vf_lanes;
            vf            v  = vf_fma(s, acc[i][j], load(op.y + to));
            if (op.add) {
                v = vf_add(v, load(op.add + to));
            }
            vf_store_most(op.y + to, v, left);
        }
    }
}

template <int nt> void add_part(const add_op & op, int64_t t, int64_t begin, int64_t end) {
    int64_t at = begin;
    for (; at + add_vecs * vf_lanes <= end; at += add_vecs * vf_lanes) {
        add_tile<nt, add_vecs>(op, t, at, end - at);
    }
    for (; at < end; at += vf_lanes) {
        add_tile<nt, 1>(op, t, at, end - at);
    }
}

// acc[k0 + k][at..] += sum_t v[t][n0 + at..] z[t][k0 + k] for tokens [t0, t1)
template <int nk, int nv>
void grad_tile(const rows & v, const rows & z, int64_t t0, int64_t t1, int64_t n0, int64_t at, int64_t left, int64_t k0,
               float * acc) {
    vf sum[nk][nv];
    float * to = acc + k0 * n_tile + at;
    QVAC_UNROLL
    for (int k = 0; k < nk; ++k) {
        QVAC_UNROLL
        for (int j = 0; j < nv; ++j) {
            sum[k][j] = vf_load(to + k * n_tile + j * vf_lanes);
        }
    }
    for (int64_t t = t0; t < t1; ++t) {
        const float * x = v[t] + n0 + at;
        const float * w = z[t] + k0;
        vf            xv[nv];
        QVAC_UNROLL
        for (int j = 0; j < nv; ++j) {
            xv[j] = nv > 1 ? vf_load(x + j * vf_lanes) : vf_load_most(x, left);
        }
        QVAC_UNROLL
        for (int k = 0; k < nk; ++k) {
            const vf wk = vf_set1(w[k]);
            QVAC_UNROLL
            for (int j = 0; j < nv; ++j) {
                sum[k][j] = vf_fma(wk, xv[j], sum[k][j]);
            }
        }
    }
    QVAC_UNROLL
    for (int k = 0; k < nk; ++k) {
        QVAC_UNROLL
        for (int j = 0; j < nv; ++j) {
            vf_store(to + k * n_tile + j * vf_lanes, sum[k][j]);
        }
    }
}

template <int nv>
void grad_ranks(const rows & v, const rows & z, int64_t t0, int64_t t1, int64_t n0, int64_t at, int64_t left, int64_t r,
                float * acc) {
    int64_t k = 0;
    for (; k + grad_rows <= r; k += grad_rows) {
        grad_tile<grad_rows, nv>(v, z, t0, t1, n0, at, left, k, acc);
    }
    for (; k + 2 <= r; k += 2) {
        grad_tile<2, nv>(v, z, t0, t1, n0, at, left, k, acc);
    }
    for (; k < r; ++k) {
        grad_tile<1, nv>(v, z, t0, t1, n0, at, left, k, acc);
    }
}

// grad[n0 + i, k] += scale * acc[k][i]
void add_to_grad(ggml_tensor * grad, int64_t n0, int64_t n, float scale, const float * acc) {
    const int64_t r = grad->ne[1];
    if (is_rows(grad)) {
        for (int64_t k = 0; k < r; ++k) {
            float * to = (float *) ((char *) grad->data + k * grad->nb[1]) + n0;
            for (int64_t i = 0; i < n; i += vf_lanes) {
                const vf sum = vf_fma(vf_set1(scale), vf_load(acc + k * n_tile + i), vf_load_most(to + i, n - i));
                vf_store_most(to + i, sum, n - i);
            }
        }
        return;
    }
    const auto add = [&](int64_t i, int64_t k, float value) {
        char * to = (char *) grad->data + (n0 + i) * grad->nb[0] + k * grad->nb[1];
        float  sum;
        memcpy(&sum, to, sizeof(sum));
        sum += scale * value;
        memcpy(to, &sum, sizeof(sum));
    };
    for (int64_t i = 0; i < n; i += 4) {
        const int64_t n_i = std::min<int64_t>(4, n - i);
        int64_t       k   = 0;
        for (; k + 4 <= r; k += 4) {
            const float * four[4];
            float         turned[4][4];
            for (int j = 0; j < 4; ++j) {
                four[j] = acc + (k + j) * n_tile;
            }
            transpose4(four, i, turned[0], 4);
            for (int64_t j = 0; j < n_i; ++j) {
                for (int l = 0; l < 4; ++l) {
                    add(i + j, k + l, turned[j][l]);
                }
            }
        }
        for (; k < r; ++k) {
            for (int64_t j = 0; j < n_i; ++j) {
                add(i + j, k, acc[k * n_tile + i + j]);
            }
        }
    }
}

}  // namespace

size_t low_rank_work_size(int n_tasks, const ggml_tensor * dst) {
    const ggml_tensor * p = dst->src[ggml_get_train_op(dst) == GGML_TRAIN_OP_LOW_RANK_ADD ? 1 : 0];
    if (ggml_get_train_op(dst) == GGML_TRAIN_OP_LOW_RANK_GRAD) {
        return n_tasks * p->ne[1] * n_tile * sizeof(float);
    }
    return is_rows(p) ? 0 : p->ne[0] * p->ne[1] * sizeof(float);
}

void low_rank_project(const ggml_compute_params * params, ggml_tensor * dst) {
    const rows    p = pack_rows(params, dst->src[0]);
    const rows    v = rows_of(dst->src[1]);
    const int64_t n = dst->src[0]->ne[0];
    const int64_t r = dst->ne[0];
    const float   s = ggml_train_op_param(dst);
    float *       z = (float *) dst->data;

    const range tokens(params, dst->ne[1]);
    int64_t     t = tokens.begin;
    for (; t + dot_tokens <= tokens.end; t += dot_tokens) {
        dot_ranks<dot_tokens>(n, p, v, t, s, z, r);
    }
    for (; t < tokens.end; ++t) {
        dot_ranks<1>(n, p, v, t, s, z, r);
    }
}

void low_rank_add(const ggml_compute_params * params, ggml_tensor * dst) {
    const ggml_tensor * add = dst->src[3];
    const rows          p   = pack_rows(params, dst->src[1]);
    const add_op        op  = { p, rows_of(dst->src[2]), add ? (const float *) add->data : nullptr, (float *) dst->data,
                                dst->ne[0], dst->src[1]->ne[1], ggml_train_op_param(dst) };

    const int64_t n_t = (dst->ne[1] + t_tile - 1) / t_tile;
    const int64_t n_n = (op.n + n_tile - 1) / n_tile;
    const range   tiles(params, n_t * n_n);
    for (int64_t i = tiles.begin; i < tiles.end; ++i) {
        const int64_t begin = i % n_n * n_tile;
        const int64_t end   = std::min(begin + n_tile, op.n);
        int64_t       t     = i / n_n * t_tile;
        const int64_t t_end = std::min(t + t_tile, dst->ne[1]);
        for (; t + add_tokens <= t_end; t += add_tokens) {
            add_part<add_tokens>(op, t, begin, end);
        }
        for (; t < t_end; ++t) {
            add_part<1>(op, t, begin, end);
        }
    }
}

void low_rank_grad(const ggml_compute_params * params, ggml_tensor * dst) {
    const rows    v   = rows_of(dst->src[1]);
    const rows    z   = rows_of(dst->src[2]);
    const int64_t n_t = dst->src[1]->ne[1];
    const int64_t r   = dst->ne[1];
    float *       acc = (float *) params->wdata + params->ith * r * n_tile;
    GGML_ASSERT(params->wsize >= low_rank_work_size(params->nth, dst));

    const range vectors(params, (dst->ne[0] + vf_lanes - 1) / vf_lanes);
    const int64_t n_end = std::min(vectors.end * vf_lanes, dst->ne[0]);
    for (int64_t n0 = vectors.begin * vf_lanes; n0 < n_end; n0 += n_tile) {
        const int64_t n = std::min(n_tile, n_end - n0);
        memset(acc, 0, r * n_tile * sizeof(float));
        for (int64_t t = 0; t < n_t; t += t_tile) {
            const int64_t t_end = std::min(t + t_tile, n_t);
            int64_t       at    = 0;
            for (; at + grad_vecs * vf_lanes <= n; at += grad_vecs * vf_lanes) {
                grad_ranks<grad_vecs>(v, z, t, t_end, n0, at, n - at, r, acc);
            }
            for (; at < n; at += vf_lanes) {
                grad_ranks<1>(v, z, t, t_end, n0, at, n - at, r, acc);
            }
        }
        add_to_grad(dst, n0, n, ggml_train_op_param(dst), acc);
    }
}

}  // namespace qvac
