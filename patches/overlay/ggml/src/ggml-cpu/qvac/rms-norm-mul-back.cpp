// The gradient of a weighted RMS norm (GGML_TRAIN_OP_RMS_NORM_MUL_BACK), with a residual added.
//
// With g = dy * w and r = 1 / sqrt(mean(x^2) + eps): dx = r * (g - x * r^2 * mean(g * x)) + add. A row is one thread's; it
// is read twice, the second time from the first-level cache.

#include "fused.h"

#include "ggml-cpu-impl.h"
#include "ggml-train.h"
#include "simd-math.h"

#include <cmath>

namespace qvac {

namespace {

constexpr int n_sums = 4;  // independent chains, to hide the latency of a multiply-add

// sum(x^2) and sum(dy * w * x)
void sums(int64_t n, const float * dy, const float * x, const float * w, float * xx, float * gx) {
    vf a[n_sums];
    vf b[n_sums];
    for (int j = 0; j < n_sums; ++j) {
        a[j] = b[j] = vf_zero();
    }
    const auto step = [&](vf dyv, vf xv, vf wv, int j) {
        a[j] = vf_fma(xv, xv, a[j]);
        b[j] = vf_fma(vf_mul(dyv, wv), xv, b[j]);
    };
    int64_t i = 0;
    for (; i + n_sums * vf_lanes <= n; i += n_sums * vf_lanes) {
        QVAC_UNROLL
        for (int j = 0; j < n_sums; ++j) {
            const int64_t at = i + j * vf_lanes;
            step(vf_load(dy + at), vf_load(x + at), vf_load(w + at), j);
        }
    }
    for (; i < n; i += vf_lanes) {
        step(vf_load_most(dy + i, n - i), vf_load_most(x + i, n - i), vf_load_most(w + i, n - i), 0);
    }
    *xx = vf_sum(vf_add(vf_add(a[0], a[1]), vf_add(a[2], a[3])));
    *gx = vf_sum(vf_add(vf_add(b[0], b[1]), vf_add(b[2], b[3])));
}

}  // namespace

void rms_norm_mul_back(const ggml_compute_params * params, ggml_tensor * dst) {
    const ggml_tensor * add = dst->src[3];
    const int64_t       n   = dst->ne[0];
    const int64_t       n_t = dst->ne[1];
    const float         eps = ggml_train_op_param(dst);
    const float *       w   = (const float *) dst->src[2]->data;

    for (int64_t t = n_t * params->ith / params->nth; t < n_t * (params->ith + 1) / params->nth; ++t) {
        const float * dy = (const float *) dst->src[0]->data + t * n;
        const float * x  = (const float *) dst->src[1]->data + t * n;
        const float * to_add = add ? (const float *) add->data + t * n : nullptr;
        float *       dx = (float *) dst->data + t * n;

        float xx, gx;
        sums(n, dy, x, w, &xx, &gx);
        const float mean = xx / (float) n + eps;
        const vf    r    = vf_set1(1.0f / std::sqrt(mean));
        const vf    back = vf_set1(-(gx / (float) n) / mean);
        for (int64_t i = 0; i < n; i += vf_lanes) {
            const int64_t left = n - i;
            const vf      g    = vf_mul(vf_load_most(dy + i, left), vf_load_most(w + i, left));
            const vf      d    = vf_fma(vf_load_most(x + i, left), back, g);
            vf_store_most(dx + i, to_add ? vf_fma(r, d, vf_load_most(to_add + i, left)) : vf_mul(r, d), left);
        }
    }
}

}  // namespace qvac
