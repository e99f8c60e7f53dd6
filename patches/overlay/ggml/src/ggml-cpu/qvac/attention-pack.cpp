// The parts of attention.h that are not arithmetic.

#include "attention.h"

#include "ggml-cpu-impl.h"
#include "ggml-train.h"
#include "simd-math.h"

#include <algorithm>
#include <cstring>

namespace qvac {

attn_shape::attn_shape(const ggml_tensor * dst) :
    q((const float *) dst->src[0]->data),
    k((const float *) dst->src[1]->data),
    v((const float *) dst->src[2]->data),
    segments((const int32_t *) dst->src[3]->data),
    scale(ggml_train_op_param(dst)),
    d(dst->src[0]->ne[0]),
    n_head(dst->src[0]->ne[1]),
    n_head_kv(dst->src[1]->ne[1]),
    n_tokens(dst->src[0]->ne[2]),
    dp((d + vf_lanes - 1) / vf_lanes * vf_lanes) {}

attn_sample attn_sample_at(const attn_shape & s, int64_t t) {
    const int64_t last = std::min<int64_t>(std::max<int64_t>(s.segments[2 * t + 1], t), s.n_tokens - 1);
    return { t, last - t + 1 };
}

int64_t attn_columns_size(int64_t n, int64_t d) {
    return (n + attn_keys - 1) / attn_keys * attn_keys * d;
}

int64_t attn_panels_size(int64_t n, int64_t d) {
    return (n + gemm_mr - 1) / gemm_mr * gemm_mr * d;
}

void attn_pack_columns(const float * src, int64_t stride, int64_t begin, int64_t end, int64_t d, float * dst) {
    for (int64_t k0 = begin; k0 < end; k0 += attn_keys) {
        float *       tile = dst + k0 * d;
        const float * rows = src + k0 * stride;
        const int64_t n    = std::min(attn_keys, end - k0);
        int64_t       i    = 0;
        for (; i + 4 <= n; i += 4) {
            const float * const four[4] = { rows + i * stride, rows + (i + 1) * stride, rows + (i + 2) * stride,
                                            rows + (i + 3) * stride };
            int64_t e = 0;
            for (; e + 4 <= d; e += 4) {
                transpose4(four, e, tile + e * attn_keys + i, attn_keys);
            }
            for (; e < d; ++e) {
                for (int j = 0; j < 4; ++j) {
                    tile[e * attn_keys + i + j] = four[j][e];
                }
            }
        }
        const int64_t n_pad = (n + vf_lanes - 1) / vf_lanes * vf_lanes;
        for (int64_t e = 0; e < d && i < n_pad; ++e) {
            for (int64_t j = i; j < n_pad; ++j) {
                tile[e * attn_keys + j] = j < n ? rows[j * stride + e] : 0.0f;
            }
        }
    }
}

void attn_pack_rows(const float * src, int64_t stride, int64_t begin, int64_t end, int64_t d, int64_t dp, float scale,
                    float * dst) {
    const vf s = vf_set1(scale);
    for (int64_t i = begin; i < end; ++i) {
        const float * from = src + i * stride;
        float *       to   = dst + i * dp;
        for (int64_t e = 0; e < dp; e += vf_lanes) {
            vf_store(to + e, vf_mul(vf_load_most(from + e, d - e), s));
        }
    }
}

void attn_pack_panels(const float * rows, int64_t n, int64_t d, int64_t dp, float * dst) {
    for (int64_t p = 0; p < n; p += gemm_mr, dst += d * gemm_mr) {
        const float * from = rows + p * dp;
        const int64_t full = std::min<int64_t>(gemm_mr, n - p);
        int64_t       i    = 0;
        for (; i + 4 <= full; i += 4) {
            const float * const four[4] = { from + i * dp, from + (i + 1) * dp, from + (i + 2) * dp, from + (i + 3) * dp };
            int64_t e = 0;
            for (; e + 4 <= d; e += 4) {
                transpose4(four, e, dst + e * gemm_mr + i, gemm_mr);
            }
            for (; e < d; ++e) {
                for (int j = 0; j < 4; ++j) {
                    dst[e * gemm_mr + i + j] = four[j][e];
                }
            }
        }
        for (; i < gemm_mr; ++i) {
            for (int64_t e = 0; e < d; ++e) {
                dst[e * gemm_mr + i] = i < full ? from[i * dp + e] : 0.0f;
            }
        }
    }
}

char * attn_work(const ggml_compute_params * params, size_t bytes) {
    GGML_ASSERT(params->wsize >= attn_work_size(params->nth, bytes));
    char * base = (char *) (((uintptr_t) params->wdata + 63) & ~(uintptr_t) 63);
    return base + bytes * params->ith;
}

size_t attn_work_size(int nth, size_t bytes) {
    return bytes * nth + 64;
}

// Handed out as threads come for them: units differ in cost, and a core may be busy elsewhere.
void attn_units_start(const ggml_compute_params * params) {
    if (params->ith == 0) {
        ggml_threadpool_chunk_set(params->threadpool, params->nth);
    }
    ggml_barrier(params->threadpool);
}

int64_t attn_units_next(const ggml_compute_params * params) {
    return ggml_threadpool_chunk_add(params->threadpool, 1);
}

}  // namespace qvac
