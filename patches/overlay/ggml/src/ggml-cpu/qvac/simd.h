// Float vectors of the compile target, behind the few names the GEMM needs.
//
// What it does: `vf` (one register of floats), load, store, broadcast, fused multiply-add, and the register tile
// (`gemm_mr` rows of A by `gemm_nv` vectors of B) that fills the target's register file.
// What it does not: choose at run time; ggml builds this file once per CPU variant where it needs several.
// A new target is one more `#elif`; `vf_fma` must round the same way in every kernel shape of that target, because
// results may not depend on how a matrix was cut into tiles.

#pragma once

#include <cstdint>

#if defined(__SSE2__) || defined(_M_X64)
#include <immintrin.h>
#elif defined(__ARM_NEON) && defined(__aarch64__)
#include <arm_neon.h>
#endif

// The loops over a register tile: unrolled before the compiler decides what lives in registers, or it keeps the
// accumulators in memory.
#if defined(__clang__)
#define QVAC_UNROLL _Pragma("clang loop unroll(full)")
#elif defined(__GNUC__)
#define QVAC_UNROLL _Pragma("GCC unroll 16")
#else
#define QVAC_UNROLL
#endif

namespace qvac {

#if defined(__AVX512F__)

using vf = __m512;
static constexpr int vf_lanes = 16;
static constexpr int gemm_mr  = 12;  // 12 x 2 accumulators + 2 of B + 1 broadcast = 27 of 32
static constexpr int gemm_nv  = 2;

static inline vf   vf_zero() { return _mm512_setzero_ps(); }
static inline vf   vf_set1(float x) { return _mm512_set1_ps(x); }
static inline vf   vf_load(const float * p) { return _mm512_loadu_ps(p); }
static inline void vf_store(float * p, vf x) { _mm512_storeu_ps(p, x); }
static inline vf   vf_fma(vf a, vf b, vf c) { return _mm512_fmadd_ps(a, b, c); }

#elif defined(__AVX2__) && (defined(__FMA__) || defined(_MSC_VER))

using vf = __m256;
static constexpr int vf_lanes = 8;
static constexpr int gemm_mr  = 6;  // 6 x 2 + 2 + 1 = 15 of 16
static constexpr int gemm_nv  = 2;

static inline vf   vf_zero() { return _mm256_setzero_ps(); }
static inline vf   vf_set1(float x) { return _mm256_set1_ps(x); }
static inline vf   vf_load(const float * p) { return _mm256_loadu_ps(p); }
static inline void vf_store(float * p, vf x) { _mm256_storeu_ps(p, x); }
static inline vf   vf_fma(vf a, vf b, vf c) { return _mm256_fmadd_ps(a, b, c); }

#elif defined(__ARM_NEON) && defined(__aarch64__)

using vf = float32x4_t;
static constexpr int vf_lanes = 4;
static constexpr int gemm_mr  = 6;  // 6 x 4 + 4 + 1 = 29 of 32
static constexpr int gemm_nv  = 4;

static inline vf   vf_zero() { return vdupq_n_f32(0.0f); }
static inline vf   vf_set1(float x) { return vdupq_n_f32(x); }
static inline vf   vf_load(const float * p) { return vld1q_f32(p); }
static inline void vf_store(float * p, vf x) { vst1q_f32(p, x); }
static inline vf   vf_fma(vf a, vf b, vf c) { return vfmaq_f32(c, a, b); }

#else

// Four plain floats: what any compiler turns into its baseline vectors, or leaves as scalars.
struct vf {
    float v[4];
};

static constexpr int vf_lanes = 4;
static constexpr int gemm_mr  = 4;
static constexpr int gemm_nv  = 2;

static inline vf vf_set1(float x) { return vf{ { x, x, x, x } }; }
static inline vf vf_zero() { return vf_set1(0.0f); }
static inline vf vf_load(const float * p) { return vf{ { p[0], p[1], p[2], p[3] } }; }

static inline void vf_store(float * p, vf x) {
    for (int i = 0; i < 4; ++i) {
        p[i] = x.v[i];
    }
}

static inline vf vf_fma(vf a, vf b, vf c) {
    for (int i = 0; i < 4; ++i) {
        c.v[i] += a.v[i] * b.v[i];
    }
    return c;
}

#endif

// dst[j * ld + i] = src[i][j], 4 x 4
static inline void transpose4(const float * const * src, int64_t at, float * dst, int64_t ld) {
#if defined(__SSE2__) || defined(_M_X64)
    __m128 r0 = _mm_loadu_ps(src[0] + at);
    __m128 r1 = _mm_loadu_ps(src[1] + at);
    __m128 r2 = _mm_loadu_ps(src[2] + at);
    __m128 r3 = _mm_loadu_ps(src[3] + at);
    _MM_TRANSPOSE4_PS(r0, r1, r2, r3);
    _mm_storeu_ps(dst, r0);
    _mm_storeu_ps(dst + ld, r1);
    _mm_storeu_ps(dst + 2 * ld, r2);
    _mm_storeu_ps(dst + 3 * ld, r3);
#else
    for (int j = 0; j < 4; ++j) {
        for (int i = 0; i < 4; ++i) {
            dst[j * ld + i] = src[i][at + j];
        }
    }
#endif
}

static constexpr int gemm_nr = gemm_nv * vf_lanes;  // columns of one register tile

}  // namespace qvac
