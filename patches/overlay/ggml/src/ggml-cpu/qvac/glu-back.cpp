// The gradients of silu(gate) * up (GGML_TRAIN_OP_SWIGLU_BACK): with s = 1 / (1 + exp(-gate))
//
//     dgate = dy * up * s * (1 + gate * (1 - s))
//     dup   = dy * gate * s
//
// and of relu(gate)^2 * up (GGML_TRAIN_OP_RELU_SQR_GLU_BACK): with r = max(gate, 0)
//
//     dgate = dy * up * 2 * r
//     dup   = dy * r * r

#include "fused.h"

#include "ggml-cpu-impl.h"
#include "simd-math.h"

#include <algorithm>

namespace qvac {

namespace {

struct gradients {
    vf gate, up;
};

// `of(dy, gate, up)` for each element.
template <typename F> void glu_back(const ggml_compute_params * params, ggml_tensor * dst, const F & of) {
    const float * dy   = (const float *) dst->src[0]->data;
    const float * gate = (const float *) dst->src[1]->data;
    const float * up   = (const float *) dst->src[2]->data;

    const int64_t n     = ggml_nelements(dst->src[0]);
    float *       dgate = (float *) dst->data;
    float *       dup   = dgate + n;

    const int64_t n_vec = (n + vf_lanes - 1) / vf_lanes;
    const int64_t end   = std::min(n_vec * (params->ith + 1) / params->nth * vf_lanes, n);
    for (int64_t i = n_vec * params->ith / params->nth * vf_lanes; i < end; i += vf_lanes) {
        const int64_t   left = end - i;
        const gradients d    = of(vf_load_most(dy + i, left), vf_load_most(gate + i, left), vf_load_most(up + i, left));
        vf_store_most(dgate + i, d.gate, left);
        vf_store_most(dup + i, d.up, left);
    }
}

}  // namespace

void swiglu_back(const ggml_compute_params * params, ggml_tensor * dst) {
    const vf one = vf_set1(1.0f);
    glu_back(params, dst, [&](vf d, vf g, vf u) {
        const vf s    = vf_div(one, vf_add(one, vf_exp(vf_sub(vf_zero(), g))));
        const vf ds   = vf_mul(d, s);
        const vf rise = vf_fma(g, vf_sub(one, s), one);
        return gradients{ vf_mul(vf_mul(ds, u), rise), vf_mul(ds, g) };
    });
}

void relu_sqr_glu_back(const ggml_compute_params * params, ggml_tensor * dst) {
    glu_back(params, dst, [&](vf d, vf g, vf u) {
        const vf dr = vf_mul(d, vf_max(g, vf_zero()));
        return gradients{ vf_mul(vf_add(dr, dr), u), vf_mul(dr, vf_max(g, vf_zero())) };
    });
}

}  // namespace qvac
