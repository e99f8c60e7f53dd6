// The gradients of silu(gate) * up (GGML_TRAIN_OP_SWIGLU_BACK): with s = 1 / (1 + exp(-gate))
//
//     dgate = dy * up * s * (1 + gate * (1 - s))
//     dup   = dy * gate * s

#include "fused.h"

#include "ggml-cpu-impl.h"
#include "simd-math.h"

#include <algorithm>

namespace qvac {

void swiglu_back(const ggml_compute_params * params, ggml_tensor * dst) {
    const float * dy   = (const float *) dst->src[0]->data;
    const float * gate = (const float *) dst->src[1]->data;
    const float * up   = (const float *) dst->src[2]->data;

    const int64_t n     = ggml_nelements(dst->src[0]);
    float *       dgate = (float *) dst->data;
    float *       dup   = dgate + n;

    const int64_t n_vec = (n + vf_lanes - 1) / vf_lanes;
    const int64_t end   = std::min(n_vec * (params->ith + 1) / params->nth * vf_lanes, n);
    const vf      one   = vf_set1(1.0f);
    for (int64_t i = n_vec * params->ith / params->nth * vf_lanes; i < end; i += vf_lanes) {
        const int64_t left = end - i;
        const vf      d    = vf_load_most(dy + i, left);
        const vf      g    = vf_load_most(gate + i, left);
        const vf      s    = vf_div(one, vf_add(one, vf_exp(vf_sub(vf_zero(), g))));
        const vf      ds   = vf_mul(d, s);
        const vf      rise = vf_fma(g, vf_sub(one, s), one);
        vf_store_most(dgate + i, vf_mul(vf_mul(ds, vf_load_most(up + i, left)), rise), left);
        vf_store_most(dup + i, vf_mul(ds, g), left);
    }
}

}  // namespace qvac
