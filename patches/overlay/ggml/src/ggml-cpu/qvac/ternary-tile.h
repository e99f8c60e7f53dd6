// Int32 vectors of the compile target and the integer register tile: C[m][n] = sum_k A[m][k] * W[k][n], A int8, W codes 0..3.
//
// Where the CPU has a matrix unit (AMX), the tile is made there; vectors of 512 bits are its fallback.
//
// `vi_dot` adds to each int32 lane the products of its four bytes of codes with four bytes of activations. Every form of it
// is exact: the AVX2 form adds pairs in 16 bits, at most 2 * 3 * 127.

#pragma once

#include "simd.h"

#include <cstdint>
#include <cstring>

// Linux alone: a process must ask the system for the tiles' registers.
#if defined(__AMX_INT8__) && defined(__AVX512VNNI__) && defined(__AVX512BW__) && defined(__linux__)
#define QVAC_AMX 1
#else
#define QVAC_AMX 0
#endif

namespace qvac {

#if defined(__AVX512F__) && defined(__AVX512BW__)

using vi = __m512i;
static constexpr int vi_lanes = 16;
static constexpr int tile_nv  = 2;

static inline vi   vi_set1(int32_t x) { return _mm512_set1_epi32(x); }
static inline vi   vi_load(const void * p) { return _mm512_loadu_si512(p); }
static inline void vi_store(void * p, vi x) { _mm512_storeu_si512(p, x); }
static inline vi   vi_add(vi a, vi b) { return _mm512_add_epi32(a, b); }
static inline int32_t vi_sum(vi x) { return _mm512_reduce_add_epi32(x); }

#if defined(__AVX512VNNI__)
static constexpr int tile_mr = QVAC_AMX ? 32 : 12;

static inline vi vi_dot(vi acc, vi codes, vi q) { return _mm512_dpbusd_epi32(acc, codes, q); }
#else
static constexpr int tile_mr = 8;

static inline vi vi_dot(vi acc, vi codes, vi q) {
    return _mm512_add_epi32(acc, _mm512_madd_epi16(_mm512_maddubs_epi16(codes, q), _mm512_set1_epi16(1)));
}
#endif

#elif defined(__AVX2__)

using vi = __m256i;
static constexpr int vi_lanes = 8;
static constexpr int tile_nv  = 2;
static constexpr int tile_mr  = 4;

static inline vi   vi_set1(int32_t x) { return _mm256_set1_epi32(x); }
static inline vi   vi_load(const void * p) { return _mm256_loadu_si256((const __m256i *) p); }
static inline void vi_store(void * p, vi x) { _mm256_storeu_si256((__m256i *) p, x); }
static inline vi   vi_add(vi a, vi b) { return _mm256_add_epi32(a, b); }

static inline int32_t vi_sum(vi x) {
    __m128i s = _mm_add_epi32(_mm256_castsi256_si128(x), _mm256_extracti128_si256(x, 1));
    s         = _mm_add_epi32(s, _mm_shuffle_epi32(s, 0x4E));
    s         = _mm_add_epi32(s, _mm_shuffle_epi32(s, 0xB1));
    return _mm_cvtsi128_si32(s);
}

#if defined(__AVXVNNI__)
static inline vi vi_dot(vi acc, vi codes, vi q) { return _mm256_dpbusd_avx_epi32(acc, codes, q); }
#else
static inline vi vi_dot(vi acc, vi codes, vi q) {
    return _mm256_add_epi32(acc, _mm256_madd_epi16(_mm256_maddubs_epi16(codes, q), _mm256_set1_epi16(1)));
}
#endif

#elif defined(__ARM_NEON) && defined(__aarch64__)

using vi = int32x4_t;
static constexpr int vi_lanes = 4;
static constexpr int tile_nv  = 4;
static constexpr int tile_mr  = 6;

static inline vi      vi_set1(int32_t x) { return vdupq_n_s32(x); }
static inline vi      vi_load(const void * p) { return vreinterpretq_s32_u8(vld1q_u8((const uint8_t *) p)); }
static inline void    vi_store(void * p, vi x) { vst1q_s32((int32_t *) p, x); }
static inline vi      vi_add(vi a, vi b) { return vaddq_s32(a, b); }
static inline int32_t vi_sum(vi x) { return vaddvq_s32(x); }

#if defined(__ARM_FEATURE_DOTPROD)
static inline vi vi_dot(vi acc, vi codes, vi q) {
    return vdotq_s32(acc, vreinterpretq_s8_s32(codes), vreinterpretq_s8_s32(q));
}
#else
static inline vi vi_dot(vi acc, vi codes, vi q) {
    const int8x16_t c = vreinterpretq_s8_s32(codes);
    const int8x16_t a = vreinterpretq_s8_s32(q);
    const int16x8_t lo = vmull_s8(vget_low_s8(c), vget_low_s8(a));
    const int16x8_t hi = vmull_s8(vget_high_s8(c), vget_high_s8(a));
    return vaddq_s32(acc, vpaddq_s32(vpaddlq_s16(lo), vpaddlq_s16(hi)));
}
#endif

#else

struct vi {
    int32_t v[4];
};

static constexpr int vi_lanes = 4;
static constexpr int tile_nv  = 2;
static constexpr int tile_mr  = 4;

static inline vi vi_set1(int32_t x) { return vi{ { x, x, x, x } }; }

static inline vi vi_load(const void * p) {
    vi x;
    memcpy(x.v, p, sizeof(x.v));
    return x;
}

static inline void    vi_store(void * p, vi x) { memcpy(p, x.v, sizeof(x.v)); }
static inline vi      vi_add(vi a, vi b) { return vi{ { a.v[0] + b.v[0], a.v[1] + b.v[1], a.v[2] + b.v[2], a.v[3] + b.v[3] } }; }
static inline int32_t vi_sum(vi x) { return x.v[0] + x.v[1] + x.v[2] + x.v[3]; }

static inline vi vi_dot(vi acc, vi codes, vi q) {
    int8_t c[16];
    int8_t a[16];
    memcpy(c, codes.v, sizeof(c));
    memcpy(a, q.v, sizeof(a));
    for (int i = 0; i < 4; ++i) {
        for (int j = 0; j < 4; ++j) {
            acc.v[i] += c[4 * i + j] * a[4 * i + j];
        }
    }
    return acc;
}

#endif

static constexpr int tile_nr = tile_nv * vi_lanes;  // columns of a panel: 32, 16, 16 or 8

// Rows of A, four int8 to a dword, lie in groups of tile_mr, so that one pointer serves all rows of a tile: within a group
// runs of tile_run dwords of one row after another, then the next runs. n4 is a multiple of 16.
static constexpr int tile_run = QVAC_AMX ? 16 : 1;

static inline int64_t tile_at(int64_t row, int64_t k4) {
    return k4 / tile_run * tile_run * tile_mr + row * tile_run + k4 % tile_run;
}

static inline void tile_put_row(uint32_t * a, int64_t row, int64_t n4, const int8_t * q) {
    uint32_t * out = a + row / tile_mr * n4 * tile_mr + tile_at(row % tile_mr, 0);
    for (int64_t k = 0; k < n4; k += tile_run) {
        memcpy(out + k * tile_mr, q + 4 * k, tile_run * sizeof(uint32_t));
    }
}

static inline int64_t tile_rows_size(int64_t n_rows, int64_t n4) {
    return (n_rows + tile_mr - 1) / tile_mr * tile_mr * n4 * (int64_t) sizeof(uint32_t);
}

// Holds the matrix unit for the calling thread, and gives it back as it was: ggml's own kernels configure it once.
class tile_scope {
  public:
    tile_scope();
    ~tile_scope();
    tile_scope(const tile_scope &)             = delete;
    tile_scope & operator=(const tile_scope &) = delete;

  private:
    alignas(64) char before[64];
};

// sum[m][0..tile_nr) = -base[m] + sum over n4 steps of row m with the panel, for `mr` rows of the group at `a`; `sum` is a
// whole tile, whose other rows may be written too.
// With base[m] the sum of A's row, codes t + 1 give the sum with t. A tile_scope must be alive.
void tile_int8(int mr, int64_t n4, const uint32_t * a, const int32_t * base, const uint32_t * panel, int32_t * sum);

}  // namespace qvac
