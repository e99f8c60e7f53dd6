// The driver and the register tiles of gemm.h.

#include "gemm.h"

#include "ggml-cpu-impl.h"
#include "ggml-cpu.h"
#include "simd.h"

#include <algorithm>
#include <cstring>
#include <utility>

namespace qvac {

namespace {

// One K block of B (kc x nc floats) stays in the second-level cache together with the rows of A it meets.
constexpr int64_t kc_max = 256;  // a multiple of every quantization block
constexpr int64_t nc_max = 256;
constexpr int64_t mc_max = 504;  // of 12, 6 and 4: whole register tiles on every target

// Row strides of the packed operands. Not powers of two: rows a power of two apart share a cache set.
constexpr int64_t lda = kc_max + 16;
constexpr int64_t ldb = nc_max + 16;

constexpr int64_t slot_floats = (mc_max + gemm_mr) * lda + kc_max * ldb + mc_max * nc_max;
constexpr size_t  slot_bytes  = slot_floats * sizeof(float);

// C[mr][nv * lanes] = (first ? 0 : C) + A[mr][kc] * B[kc][nv * lanes]
template <int mr, int nv>
void tile(bool first, int64_t kc, const float * GGML_RESTRICT a, const float * GGML_RESTRICT b, size_t b_stride,
          float * GGML_RESTRICT c, size_t ldc) {
    vf acc[mr][nv];
    QVAC_UNROLL
    for (int i = 0; i < mr; ++i) {
        QVAC_UNROLL
        for (int j = 0; j < nv; ++j) {
            acc[i][j] = first ? vf_zero() : vf_load(c + i * ldc + j * vf_lanes);
        }
    }
    for (int64_t k = 0; k < kc; ++k) {
        vf bv[nv];
        QVAC_UNROLL
        for (int j = 0; j < nv; ++j) {
            bv[j] = vf_load(b + k * b_stride + j * vf_lanes);
        }
        QVAC_UNROLL
        for (int i = 0; i < mr; ++i) {
            const vf av = vf_set1(a[i * lda + k]);
            QVAC_UNROLL
            for (int j = 0; j < nv; ++j) {
                acc[i][j] = vf_fma(av, bv[j], acc[i][j]);
            }
        }
    }
    QVAC_UNROLL
    for (int i = 0; i < mr; ++i) {
        QVAC_UNROLL
        for (int j = 0; j < nv; ++j) {
            vf_store(c + i * ldc + j * vf_lanes, acc[i][j]);
        }
    }
}

using tile_fn = void (*)(bool, int64_t, const float *, const float *, size_t, float *, size_t);

template <int nv, size_t... i> constexpr tile_fn pick_rows(int mr, std::index_sequence<i...>) {
    constexpr tile_fn table[] = { tile<(int) i + 1, nv>... };
    return table[mr - 1];
}

template <size_t... j> tile_fn pick_tile(int mr, int nv, std::index_sequence<j...>) {
    using rows = std::make_index_sequence<gemm_mr>;
    const tile_fn table[] = { pick_rows<(int) j + 1>(mr, rows{})... };
    return table[nv - 1];
}

// A's rows m0.. of one K block, each contiguous in k.
void pack_a(const gemm_a & a, int64_t m0, int64_t mc, int64_t k0, int64_t kc, float * dst) {
    const char * src = a.data + m0 * a.nb_m + k0 * a.nb_k;
    if (a.nb_k == sizeof(float)) {
        for (int64_t i = 0; i < mc; ++i) {
            memcpy(dst + i * lda, src + i * a.nb_m, kc * sizeof(float));
        }
        return;
    }
    // Sixteen rows at a time: of a transposed A they are one cache line per k.
    constexpr int64_t step = 16;
    for (int64_t i0 = 0; i0 < mc; i0 += step) {
        const int64_t rows = std::min(step, mc - i0);
        for (int64_t k = 0; k < kc; ++k) {
            for (int64_t i = i0; i < i0 + rows; ++i) {
                memcpy(dst + i * lda + k, src + i * a.nb_m + k * a.nb_k, sizeof(float));
            }
        }
    }
}

// Elements j0.. of row `r` of B as floats; f32 that needs no gathering is returned in place.
const float * b_row(const gemm_b & b, int64_t r, int64_t j0, int64_t n, float * buf) {
    const char * row = b.data + r * b.nb_row;
    if (b.type == GGML_TYPE_F32) {
        if (b.nb_elem == sizeof(float)) {
            return (const float *) row + j0;
        }
        for (int64_t j = 0; j < n; ++j) {
            memcpy(buf + j, row + (j0 + j) * b.nb_elem, sizeof(float));
        }
        return buf;
    }
    dequantize(b.type, row + ggml_row_size(b.type, j0), buf, n);
    return buf;
}

// B[k0..][n0..] as kc rows of nc floats, padded with zeros to whole register tiles.
void pack_b(const gemm_b & b, int64_t k0, int64_t kc, int64_t n0, int64_t nc, float * dst) {
    const int64_t nc_pad = (nc + gemm_nr - 1) / gemm_nr * gemm_nr;
    if (b.rows == gemm_rows::are_k) {
        for (int64_t k = 0; k < kc; ++k) {
            float *       row = dst + k * ldb;
            const float * src = b_row(b, k0 + k, n0, nc, row);
            if (src != row) {
                memcpy(row, src, nc * sizeof(float));
            }
            std::fill(row + nc, row + nc_pad, 0.0f);
        }
        return;
    }
    constexpr int64_t step = 4;
    static_assert(gemm_nr % step == 0, "whole groups of rows");
    for (int64_t j0 = 0; j0 < nc_pad; j0 += step) {
        float         rows[step][kc_max];
        const float * src[step];
        for (int64_t j = 0; j < step; ++j) {
            if (j0 + j < nc) {
                src[j] = b_row(b, n0 + j0 + j, k0, kc, rows[j]);
            } else {
                std::fill(rows[j], rows[j] + kc, 0.0f);
                src[j] = rows[j];
            }
        }
        float * out = dst + j0;
        int64_t k   = 0;
        for (; k + 4 <= kc; k += 4) {
            transpose4(src, k, out + k * ldb, ldb);
        }
        for (; k < kc; ++k) {
            for (int64_t j = 0; j < step; ++j) {
                out[k * ldb + j] = src[j][k];
            }
        }
    }
}

// mc x nc of C from packed A and B (packed, or in place with row stride `b_stride`).
void macro_tile(bool first, int64_t mc, int64_t nc, int64_t kc, const float * a, const float * b, size_t b_stride,
                float * c, size_t ldc) {
    using vectors = std::make_index_sequence<gemm_nv>;
    for (int64_t j = 0; j < nc; j += gemm_nr) {
        const int64_t cols = std::min<int64_t>(gemm_nr, nc - j);
        const int     nv   = (int) ((cols + vf_lanes - 1) / vf_lanes);
        const bool    full = cols == nv * vf_lanes;
        for (int64_t i = 0; i < mc; i += gemm_mr) {
            const int     rows = (int) std::min<int64_t>(gemm_mr, mc - i);
            const tile_fn fn   = pick_tile(rows, nv, vectors{});
            float *       ct   = c + i * ldc + j;
            if (full) {
                fn(first, kc, a + i * lda, b + j, b_stride, ct, ldc);
                continue;
            }
            // The last columns: through a copy, as whole vectors would write past the row.
            float edge[gemm_mr * gemm_nr];
            for (int r = 0; r < rows && !first; ++r) {
                memcpy(edge + r * gemm_nr, ct + r * ldc, cols * sizeof(float));
                std::fill(edge + r * gemm_nr + cols, edge + (r + 1) * gemm_nr, 0.0f);
            }
            fn(first, kc, a + i * lda, b + j, b_stride, edge, gemm_nr);
            for (int r = 0; r < rows; ++r) {
                memcpy(ct + r * ldc, edge + r * gemm_nr, cols * sizeof(float));
            }
        }
    }
}

// f32 rows that lie as the tiles want them need no packing when few rows of A use them.
bool in_place(const gemm_b & b, int64_t mc) {
    return b.type == GGML_TYPE_F32 && b.rows == gemm_rows::are_k && b.nb_elem == sizeof(float) &&
           b.nb_row % sizeof(float) == 0 && mc <= 2 * gemm_mr;
}

void run_unit(const gemm_batch & g, int64_t k_total, int64_t m0, int64_t mc, int64_t n0, int64_t nc, float * slot) {
    float *      a      = slot;
    float *      b      = a + (mc_max + gemm_mr) * lda;
    const bool   across = g.nb_n != sizeof(float);  // C's columns are not adjacent: compute aside, scatter at the end
    float *      c      = across ? b + kc_max * ldb : (float *) (g.c + m0 * g.nb_m) + n0;
    const size_t ldc    = across ? nc : g.nb_m / sizeof(float);
    const bool   direct = in_place(g.b, mc);
    // the last columns are packed even then: a whole vector would read past the row
    const int64_t nc_direct = direct ? nc / vf_lanes * vf_lanes : 0;

    for (int64_t k0 = 0; k0 < k_total; k0 += kc_max) {
        const int64_t kc    = std::min(kc_max, k_total - k0);
        const bool    first = k0 == 0;
        pack_a(g.a, m0, mc, k0, kc, a);
        if (nc_direct > 0) {
            const float * src = (const float *) (g.b.data + k0 * g.b.nb_row) + n0;
            macro_tile(first, mc, nc_direct, kc, a, src, g.b.nb_row / sizeof(float), c, ldc);
        }
        if (nc_direct < nc) {
            pack_b(g.b, k0, kc, n0 + nc_direct, nc - nc_direct, b);
            macro_tile(first, mc, nc - nc_direct, kc, a, b, ldb, c + nc_direct, ldc);
        }
    }
    if (across) {
        for (int64_t j = 0; j < nc; ++j) {
            for (int64_t i = 0; i < mc; ++i) {
                memcpy(g.c + (m0 + i) * g.nb_m + (n0 + j) * g.nb_n, c + i * ldc + j, sizeof(float));
            }
        }
    }
}

struct unit_plan {
    int64_t mc, nc;
    int64_t n_m, n_n;
};

// The cut into units of mc x nc that ends soonest, by cycles counted per k: a register tile's multiply-adds, plus
// what packing costs. The result of the GEMM does not depend on it.
unit_plan plan_units(const gemm_shape & s, ggml_type b_type, int nth) {
    const bool    quant  = ggml_is_quantized(b_type);
    const int64_t blck   = std::max<int64_t>(ggml_blck_size(b_type), gemm_nr);
    unit_plan     best   = {};
    double        lowest = 0;
    for (int64_t nc = nc_max; nc >= std::min<int64_t>(blck, nc_max); nc /= 2) {
        if (nc % blck != 0) {
            break;
        }
        const int64_t n_n = (s.n + nc - 1) / nc;
        for (int64_t n_m = (s.m + mc_max - 1) / mc_max; n_m <= std::min<int64_t>((s.m + gemm_mr - 1) / gemm_mr, 64); ++n_m) {
            int64_t mc = (s.m + n_m - 1) / n_m;
            mc         = std::min((mc + gemm_mr - 1) / gemm_mr * gemm_mr, mc_max);
            if ((s.m + mc - 1) / mc != n_m) {
                continue;
            }
            const double units = (double) ((n_m * n_n * s.n_batch + nth - 1) / nth);
            const double rows  = (double) std::min(mc, s.m);
            const double cols  = (double) std::min(nc, (s.n + gemm_nr - 1) / gemm_nr * gemm_nr);
            const double cost  = units * (rows * cols / (2.0 * vf_lanes) + rows * 0.25 + cols * (quant ? 1.0 : 0.25) + 2.0);
            if (best.mc == 0 || cost < lowest) {
                best   = { mc, nc, n_m, n_n };
                lowest = cost;
            }
        }
    }
    return best;
}

}  // namespace

gemm_slices slices(const ggml_tensor * dst, int64_t i) {
    const ggml_tensor * src0 = dst->src[0];
    const ggml_tensor * src1 = dst->src[1];

    const int64_t i2  = i % dst->ne[2];
    const int64_t i3  = i / dst->ne[2];
    const int64_t i02 = i2 / (dst->ne[2] / src0->ne[2]);
    const int64_t i03 = i3 / (dst->ne[3] / src0->ne[3]);
    return { (const char *) src0->data + i02 * src0->nb[2] + i03 * src0->nb[3],
             (const char *) src1->data + i2 * src1->nb[2] + i3 * src1->nb[3],
             (char *) dst->data + i2 * dst->nb[2] + i3 * dst->nb[3] };
}

size_t gemm_work_size(int nth) {
    return slot_bytes * nth + 64;
}

void gemm_run(const ggml_compute_params * params, const gemm_shape & s, ggml_type b_type,
              gemm_batch (*batch)(const void * ctx, int64_t i), const void * ctx) {
    const unit_plan plan    = plan_units(s, b_type, params->nth);
    const int64_t   n_units = plan.n_m * plan.n_n * s.n_batch;

    char * work = (char *) (((uintptr_t) params->wdata + 63) & ~(uintptr_t) 63);
    GGML_ASSERT(params->wsize >= gemm_work_size(params->nth));
    float * slot = (float *) (work + slot_bytes * params->ith);

    // Units are handed out as threads come for them: a core that is busy elsewhere does not hold the others up.
    if (params->ith == 0) {
        ggml_threadpool_chunk_set(params->threadpool, params->nth);
    }
    ggml_barrier(params->threadpool);

    for (int64_t u = params->ith; u < n_units; u = ggml_threadpool_chunk_add(params->threadpool, 1)) {
        const int64_t    im = u % plan.n_m;
        const int64_t    in = u / plan.n_m % plan.n_n;
        const int64_t    m0 = im * plan.mc;
        const int64_t    n0 = in * plan.nc;
        const gemm_batch g  = batch(ctx, u / (plan.n_m * plan.n_n));
        run_unit(g, s.k, m0, std::min(plan.mc, s.m - m0), n0, std::min(plan.nc, s.n - n0), slot);
    }
}

void dequantize(ggml_type type, const void * src, float * dst, int64_t n) {
    switch (type) {
        case GGML_TYPE_F16:
            ggml_cpu_fp16_to_fp32((const ggml_fp16_t *) src, dst, n);
            break;
        case GGML_TYPE_BF16:
            ggml_cpu_bf16_to_fp32((const ggml_bf16_t *) src, dst, n);
            break;
        default:
            ggml_get_type_traits(type)->to_float(src, dst, n);
    }
}

}  // namespace qvac
