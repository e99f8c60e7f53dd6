// Quantization of tokens (the formulas of ternary.h).

#include "ternary.h"

#include "ggml-cpu-impl.h"
#include "kernels.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

namespace qvac {

namespace {

constexpr uint32_t f32_abs_mask = 0x7fffffff;
constexpr uint32_t f32_inf_bits = 0x7f800000;

uint32_t bits_of(float x) {
    uint32_t u;
    memcpy(&u, &x, sizeof(u));
    return u;
}

// Round half to even for |x| < 2^22: adding 1.5 * 2^23 leaves no bit for the fraction.
int32_t round_even(float x) {
    constexpr float magic = 12582912.0f;
    return (int32_t) (bits_of(x + magic) - bits_of(magic));
}

int32_t clamp127(int32_t q) {
    return std::min(std::max(q, -127), 127);
}

}  // namespace

float tq_quantize(const char * x, size_t nb, int64_t n, int limbs, int8_t * q, size_t q_stride, int32_t * sums) {
    constexpr int64_t step = 1024;
    float             buf[step];
    const auto        part = [&](int64_t i0, int64_t len) -> const float * {
        if (nb == sizeof(float)) {
            return (const float *) x + i0;
        }
        for (int64_t i = 0; i < len; ++i) {
            memcpy(buf + i, x + (i0 + i) * nb, sizeof(float));
        }
        return buf;
    };

    // As integers the magnitudes compare as the floats do, and a NaN is above all.
    uint32_t top = 0;
    for (int64_t i0 = 0; i0 < n; i0 += step) {
        const int64_t len = std::min(step, n - i0);
        const float * f   = part(i0, len);
        for (int64_t i = 0; i < len; ++i) {
            top = std::max(top, bits_of(f[i]) & f32_abs_mask);
        }
    }
    std::fill(sums, sums + limbs, 0);
    if (top >= f32_inf_bits || top < bits_of(amax_min)) {
        for (int l = 0; l < limbs; ++l) {
            memset(q + l * q_stride, 0, n);
        }
        return top >= f32_inf_bits ? std::numeric_limits<float>::quiet_NaN() : 0.0f;
    }

    float a;
    memcpy(&a, &top, sizeof(a));
    const float s = 127.0f / a;
    for (int64_t i0 = 0; i0 < n; i0 += step) {
        const int64_t len = std::min(step, n - i0);
        const float * f   = part(i0, len);
        int8_t *      q1  = q + i0;
        int32_t       s1  = 0;
        for (int64_t i = 0; i < len; ++i) {
            const int32_t v = clamp127(round_even(f[i] * s));
            q1[i]           = (int8_t) v;
            s1 += v;
        }
        sums[0] += s1;
        if (limbs < 2) {
            continue;
        }
        int8_t * q2 = q + q_stride + i0;
        int32_t  s2 = 0;
        for (int64_t i = 0; i < len; ++i) {
            const float   u = f[i] * s;
            const int32_t v = clamp127(round_even((u - (float) q1[i]) * 254.0f));
            q2[i]           = (int8_t) v;
            s2 += v;
        }
        sums[1] += s2;
    }
    return a / 127.0f;
}

float tq_token_scale(const ggml_tensor * q, int64_t token) {
    float scale;
    memcpy(&scale, (const char *) q->data + (token + 1) * q->nb[1] - GGML_TQ_TOKEN_TAIL, sizeof(scale));
    return scale;
}

bool tq_quantize_tokens(const ggml_compute_params * params, ggml_tensor * dst) {
    const ggml_tensor * x     = dst->src[0];
    const int64_t       n     = x->ne[0];
    const int           limbs = tq_limbs(dst, n);
    for (int64_t token = params->ith; token < x->ne[1]; token += params->nth) {
        int8_t *    q = (int8_t *) dst->data + token * dst->nb[1];
        int32_t     unused[2];
        const float scale = tq_quantize((const char *) x->data + token * x->nb[1], sizeof(float), n, limbs, q, n, unused);
        memset(q + limbs * n, 0, GGML_TQ_TOKEN_TAIL);
        memcpy(q + limbs * n, &scale, sizeof(scale));
    }
    return true;
}

}  // namespace qvac
