// The formulas of ternary.h as plain loops, for reading and for `ggml_backend_cpu_set_use_ref`.

#include "kernels.h"
#include "ternary.h"

#include <vector>

namespace qvac {

void ternary_mul_mat_ref(ggml_tensor * dst) {
    const ggml_tensor * w = dst->src[0];
    const ggml_tensor * x = dst->src[1];
    const int64_t       n = w->ne[0];
    const tq_scales     scales = tq_scan(w, 0, w->ne[1]);

    std::vector<int8_t> q(n);
    std::vector<int8_t> t(n);
    for (int64_t token = 0; token < ggml_nrows(x); ++token) {
        const int64_t i1 = token % x->ne[1];
        const int64_t i2 = token / x->ne[1] % x->ne[2];
        const int64_t i3 = token / x->ne[1] / x->ne[2];
        const char *  xt = (const char *) x->data + i1 * x->nb[1] + i2 * x->nb[2] + i3 * x->nb[3];
        float *       yt = (float *) ((char *) dst->data + i1 * dst->nb[1] + i2 * dst->nb[2] + i3 * dst->nb[3]);

        int32_t     unused;
        const float scale = tq_quantize(xt, x->nb[0], n, 1, q.data(), n, &unused);
        for (int64_t r = 0; r < w->ne[1]; ++r) {
            const char * row = (const char *) w->data + r * w->nb[1];
            tq_decode_row(w->type, row, n, t.data());
            float   by_block = 0.0f;
            int32_t total    = 0;
            for (int64_t b = 0; b < n / tq_block; ++b) {
                int32_t s = 0;
                for (int64_t i = b * tq_block; i < (b + 1) * tq_block; ++i) {
                    s += q[i] * t[i];
                }
                total += s;
                by_block += (float) s * tq_block_scale(w->type, row, b);
            }
            yt[r] = scales.kind == tq_scale::mixed ? by_block * scale : (float) total * (scale * tq_value(scales));
        }
    }
}

}  // namespace qvac
