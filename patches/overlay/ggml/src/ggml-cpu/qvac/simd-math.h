// What the fused float kernels need of a vector beyond simd.h: arithmetic, partial loads, reductions, exp.
//
// Sums over a vector have one fixed tree per target. Where `vf_min` meets a NaN it gives its second argument.
// A new target needs the block below beside its block in simd.h.

#pragma once

#include "simd.h"

#include <cstring>

namespace qvac {

#if defined(__AVX512F__)

static inline vf vf_add(vf a, vf b) { return _mm512_add_ps(a, b); }
static inline vf vf_sub(vf a, vf b) { return _mm512_sub_ps(a, b); }
static inline vf vf_mul(vf a, vf b) { return _mm512_mul_ps(a, b); }
static inline vf vf_div(vf a, vf b) { return _mm512_div_ps(a, b); }
static inline vf vf_max(vf a, vf b) { return _mm512_max_ps(a, b); }
static inline vf vf_min(vf a, vf b) { return _mm512_min_ps(a, b); }

static inline float vf_sum(vf a) { return _mm512_reduce_add_ps(a); }
static inline float vf_top(vf a) { return _mm512_reduce_max_ps(a); }

static inline __mmask16 vf_first(int64_t n) { return (__mmask16) ((1u << n) - 1u); }
static inline vf   vf_load_n(const float * p, int64_t n) { return _mm512_maskz_loadu_ps(vf_first(n), p); }
static inline void vf_store_n(float * p, vf x, int64_t n) { _mm512_mask_storeu_ps(p, vf_first(n), x); }

// 2^n for z = n + 1.5 * 2^23
static inline vf vf_pow2(vf z) {
    const __m512i shifted = _mm512_slli_epi32(_mm512_castps_si512(z), 23);
    return _mm512_castsi512_ps(_mm512_add_epi32(shifted, _mm512_castps_si512(vf_set1(1.0f))));
}

// y, or 0 where x < low
static inline vf vf_zero_below(vf x, vf low, vf y) {
    return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(x, low, _CMP_NLT_UQ), y);
}

#elif defined(__AVX2__) && (defined(__FMA__) || defined(_MSC_VER))

static inline vf vf_add(vf a, vf b) { return _mm256_add_ps(a, b); }
static inline vf vf_sub(vf a, vf b) { return _mm256_sub_ps(a, b); }
static inline vf vf_mul(vf a, vf b) { return _mm256_mul_ps(a, b); }
static inline vf vf_div(vf a, vf b) { return _mm256_div_ps(a, b); }
static inline vf vf_max(vf a, vf b) { return _mm256_max_ps(a, b); }
static inline vf vf_min(vf a, vf b) { return _mm256_min_ps(a, b); }

static inline float vf_sum(vf a) {
    __m128 s = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    s        = _mm_add_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
}

static inline float vf_top(vf a) {
    __m128 s = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    s        = _mm_max_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_max_ss(s, _mm_movehdup_ps(s)));
}

static inline __m256i vf_first(int64_t n) {
    return _mm256_cmpgt_epi32(_mm256_set1_epi32((int) n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
static inline vf   vf_load_n(const float * p, int64_t n) { return _mm256_maskload_ps(p, vf_first(n)); }
static inline void vf_store_n(float * p, vf x, int64_t n) { _mm256_maskstore_ps(p, vf_first(n), x); }

static inline vf vf_pow2(vf z) {
    const __m256i shifted = _mm256_slli_epi32(_mm256_castps_si256(z), 23);
    return _mm256_castsi256_ps(_mm256_add_epi32(shifted, _mm256_castps_si256(vf_set1(1.0f))));
}

static inline vf vf_zero_below(vf x, vf low, vf y) { return _mm256_and_ps(_mm256_cmp_ps(x, low, _CMP_NLT_UQ), y); }

#elif defined(__ARM_NEON) && defined(__aarch64__)

static inline vf vf_add(vf a, vf b) { return vaddq_f32(a, b); }
static inline vf vf_sub(vf a, vf b) { return vsubq_f32(a, b); }
static inline vf vf_mul(vf a, vf b) { return vmulq_f32(a, b); }
static inline vf vf_div(vf a, vf b) { return vdivq_f32(a, b); }
static inline vf vf_max(vf a, vf b) { return vmaxq_f32(a, b); }
static inline vf vf_min(vf a, vf b) { return vminq_f32(a, b); }

static inline float vf_sum(vf a) { return vaddvq_f32(a); }
static inline float vf_top(vf a) { return vmaxvq_f32(a); }

static inline vf vf_load_n(const float * p, int64_t n) {
    float all[4] = {};
    memcpy(all, p, n * sizeof(float));
    return vf_load(all);
}

static inline void vf_store_n(float * p, vf x, int64_t n) {
    float all[4];
    vf_store(all, x);
    memcpy(p, all, n * sizeof(float));
}

static inline vf vf_pow2(vf z) {
    const uint32x4_t shifted = vshlq_n_u32(vreinterpretq_u32_f32(z), 23);
    return vreinterpretq_f32_u32(vaddq_u32(shifted, vreinterpretq_u32_f32(vf_set1(1.0f))));
}

static inline vf vf_zero_below(vf x, vf low, vf y) {
    return vreinterpretq_f32_u32(vbicq_u32(vreinterpretq_u32_f32(y), vcltq_f32(x, low)));
}

#else

template <typename F> static inline vf vf_each(vf a, vf b, F f) {
    for (int i = 0; i < 4; ++i) {
        a.v[i] = f(a.v[i], b.v[i]);
    }
    return a;
}

static inline vf vf_add(vf a, vf b) { return vf_each(a, b, [](float x, float y) { return x + y; }); }
static inline vf vf_sub(vf a, vf b) { return vf_each(a, b, [](float x, float y) { return x - y; }); }
static inline vf vf_mul(vf a, vf b) { return vf_each(a, b, [](float x, float y) { return x * y; }); }
static inline vf vf_div(vf a, vf b) { return vf_each(a, b, [](float x, float y) { return x / y; }); }
static inline vf vf_max(vf a, vf b) { return vf_each(a, b, [](float x, float y) { return x > y ? x : y; }); }
static inline vf vf_min(vf a, vf b) { return vf_each(a, b, [](float x, float y) { return x < y ? x : y; }); }

static inline float vf_sum(vf a) { return (a.v[0] + a.v[2]) + (a.v[1] + a.v[3]); }

static inline float vf_top(vf a) {
    float top = a.v[0];
    for (int i = 1; i < 4; ++i) {
        top = a.v[i] > top ? a.v[i] : top;
    }
    return top;
}

static inline vf vf_load_n(const float * p, int64_t n) {
    vf x = vf_zero();
    memcpy(x.v, p, n * sizeof(float));
    return x;
}

static inline void vf_store_n(float * p, vf x, int64_t n) { memcpy(p, x.v, n * sizeof(float)); }

static inline vf vf_pow2(vf z) {
    for (int i = 0; i < 4; ++i) {
        uint32_t bits;
        memcpy(&bits, &z.v[i], sizeof(bits));
        bits = (bits << 23) + 0x3f800000u;
        memcpy(&z.v[i], &bits, sizeof(bits));
    }
    return z;
}

static inline vf vf_zero_below(vf x, vf low, vf y) {
    for (int i = 0; i < 4; ++i) {
        y.v[i] = x.v[i] < low.v[i] ? 0.0f : y.v[i];
    }
    return y;
}

#endif

// The first n values at p, n beyond a whole vector counting as one; the others are 0.
static inline vf vf_load_most(const float * p, int64_t n) { return n >= vf_lanes ? vf_load(p) : vf_load_n(p, n); }

static inline void vf_store_most(float * p, vf x, int64_t n) {
    if (n >= vf_lanes) {
        vf_store(p, x);
    } else {
        vf_store_n(p, x, n);
    }
}

// e^x within 1 ulp for -87.3 <= x <= 88; 0 below, e^88 above, NaN of NaN.
//
// x = n ln 2 + r with |r| <= ln(2)/2, then 1 + r + r^2 q(r), q of degree 4 through (e^r - 1 - r) / r^2 at the Chebyshev
// points of |r| <= 0.3475.
static inline vf vf_exp(vf x) {
    const vf magic = vf_set1(12582912.0f);  // 1.5 * 2^23: what is added to it is rounded to an integer
    x              = vf_min(vf_set1(88.0f), x);
    const vf z     = vf_fma(x, vf_set1(1.44269502f), magic);
    const vf n     = vf_sub(z, magic);
    vf       r     = vf_fma(n, vf_set1(-0.693145752f), x);  // ln 2 in two parts; n times the first is exact
    r              = vf_fma(n, vf_set1(-1.42860677e-6f), r);
    vf q           = vf_fma(vf_set1(1.39263761e-3f), r, vf_set1(8.36333353e-3f));
    q              = vf_fma(q, r, vf_set1(4.16665524e-2f));
    q              = vf_fma(q, r, vf_set1(1.66665763e-1f));
    q              = vf_fma(q, r, vf_set1(0.5f));
    const vf e     = vf_add(vf_set1(1.0f), vf_fma(vf_mul(r, r), q, r));
    return vf_zero_below(x, vf_set1(-87.3f), vf_mul(e, vf_pow2(z)));
}

}  // namespace qvac
