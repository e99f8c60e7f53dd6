// The formulas of ternary.h as plain loops, for reading and for `ggml_backend_cpu_set_use_ref`.

#include "kernels.h"
#include "ternary.h"

#include <cstring>
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

        int32_t unused;
        float   scale;
        if (x->type == GGML_TYPE_I8) {
            memcpy(q.data(), xt, n);
            scale = tq_token_scale(x, token);
        } else {
            scale = tq_quantize(xt, x->nb[0], n, 1, q.data(), n, &unused);
        }
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

void ternary_mul_mat_back_ref(ggml_tensor * dst) {
    const ggml_tensor * w      = dst->src[0];
    const ggml_tensor * yq     = dst->src[1];
    const ggml_tensor * add    = dst->src[2];
    const int64_t       n      = w->ne[0];
    const int64_t       m      = w->ne[1];
    const bool          two    = tq_limbs(yq, m) == 2;
    const tq_scales     scales = tq_scan(w, 0, m);

    std::vector<int8_t> t(n * m);
    for (int64_t r = 0; r < m; ++r) {
        tq_decode_row(w->type, (const char *) w->data + r * w->nb[1], n, t.data() + r * n);
    }
    for (int64_t token = 0; token < yq->ne[1]; ++token) {
        const int8_t * q1    = (const int8_t *) yq->data + token * yq->nb[1];
        const int8_t * q2    = q1 + m;
        const float    scale = tq_token_scale(yq, token);
        for (int64_t c = 0; c < n; ++c) {
            int32_t s1 = 0;
            int32_t s2 = 0;
            float   mixed = 0.0f;
            for (int64_t r = 0; r < m; ++r) {
                const int   tr = t[r * n + c];
                const float d  = tq_block_scale(w->type, (const char *) w->data + r * w->nb[1], c / tq_block);
                s1 += q1[r] * tr;
                s2 += two ? q2[r] * tr : 0;
                mixed += ((float) q1[r] + (two ? q2[r] / 254.0f : 0.0f)) * scale * (d * (float) tr);
            }
            const float exact = ((float) s1 + (float) s2 / 254.0f) * (scale * tq_value(scales));
            const float dx    = scales.kind == tq_scale::mixed ? mixed : exact;
            const int64_t at  = token * n + c;  // dst and add are contiguous
            ((float *) dst->data)[at] = add ? dx + ((const float *) add->data)[at] : dx;
        }
    }
}

}  // namespace qvac
