// Row by row products of ternary-vec.h.

#include "ternary-vec.h"

#include "ternary-tile.h"

#define GGML_COMMON_DECL_CPP
#include "ggml-common.h"

#include <cstddef>
#include <cstring>
#include <utility>

namespace qvac {

namespace {

constexpr int run = 64;  // bytes of a digit-major run; 52 (TQ1_0) or 64 (TQ2_0) of them in use

// The digits of `vi` many bytes at a time. `next` leaves the digit's codes in `code`.
#if defined(__AVX512F__) && defined(__AVX512BW__)
inline vi and3(vi x) { return _mm512_and_si512(x, _mm512_set1_epi8(3)); }
inline vi shift2(vi x) { return _mm512_srli_epi16(x, 2); }
inline vi times3(vi x) { return _mm512_add_epi8(x, _mm512_add_epi8(x, x)); }
inline vi digit3(vi x) {
    const __m512i one = _mm512_set1_epi8(1);
    const vi      c   = _mm512_maskz_mov_epi8(_mm512_cmpge_epu8_mask(x, _mm512_set1_epi8(86)), one);
    return _mm512_mask_add_epi8(c, _mm512_cmpge_epu8_mask(x, _mm512_set1_epi8((char) 171)), c, one);
}
#elif defined(__AVX2__)
inline vi and3(vi x) { return _mm256_and_si256(x, _mm256_set1_epi8(3)); }
inline vi shift2(vi x) { return _mm256_srli_epi16(x, 2); }
inline vi times3(vi x) { return _mm256_add_epi8(x, _mm256_add_epi8(x, x)); }
inline vi at_least(vi x, int y) {  // 1 where the unsigned byte is >= y
    const vi limit = _mm256_set1_epi8((char) y);
    return _mm256_and_si256(_mm256_cmpeq_epi8(_mm256_max_epu8(x, limit), x), _mm256_set1_epi8(1));
}
inline vi digit3(vi x) { return _mm256_add_epi8(at_least(x, 86), at_least(x, 171)); }
#elif defined(__ARM_NEON) && defined(__aarch64__)
inline uint8x16_t u8(vi x) { return vreinterpretq_u8_s32(x); }
inline vi         s32(uint8x16_t x) { return vreinterpretq_s32_u8(x); }
inline vi and3(vi x) { return s32(vandq_u8(u8(x), vdupq_n_u8(3))); }
inline vi shift2(vi x) { return s32(vshrq_n_u8(u8(x), 2)); }
inline vi times3(vi x) { return s32(vmulq_u8(u8(x), vdupq_n_u8(3))); }
inline vi digit3(vi x) {
    // a comparison that holds is 255, which is -1
    return s32(vsubq_u8(vdupq_n_u8(0), vaddq_u8(vcgeq_u8(u8(x), vdupq_n_u8(86)), vcgeq_u8(u8(x), vdupq_n_u8(171)))));
}
#else
template <typename F> vi each_byte(vi x, F f) {
    uint8_t b[16];
    memcpy(b, x.v, sizeof(b));
    for (uint8_t & y : b) {
        y = (uint8_t) f(y);
    }
    memcpy(x.v, b, sizeof(b));
    return x;
}
inline vi and3(vi x) { return each_byte(x, [](int y) { return y & 3; }); }
inline vi shift2(vi x) { return each_byte(x, [](int y) { return y >> 2; }); }
inline vi times3(vi x) { return each_byte(x, [](int y) { return y * 3; }); }
inline vi digit3(vi x) { return each_byte(x, [](int y) { return (y >= 86) + (y >= 171); }); }
#endif

// TQ2_0's shift runs over 16-bit lanes on x86: a byte's upper bits are its neighbour's then, and `and3` drops them.
struct tq2 {
    using block                    = block_tq2_0;
    static constexpr int n_digits = 4;
    static constexpr int n_bytes  = 64;

    static vi code(vi raw) { return and3(raw); }
    static vi next(vi raw) { return shift2(raw); }

    // byte i of digit d is weight i/32*128 + d*32 + i%32
    static void arrange(const int8_t * q, int8_t * out) {
        for (int d = 0; d < n_digits; ++d) {
            memcpy(out + d * run, q + d * 32, 32);
            memcpy(out + d * run + 32, q + 128 + d * 32, 32);
        }
    }
};

struct tq1 {
    using block                    = block_tq1_0;
    static constexpr int n_digits = 5;
    static constexpr int n_bytes  = 52;

    static vi code(vi raw) { return digit3(raw); }
    static vi next(vi raw) { return times3(raw); }

    // byte i of digit d is weight d*32 + i, from byte 32 on 160 + d*16 + i-32, from byte 48 on 240 + d*4 + i-48
    static void arrange(const int8_t * q, int8_t * out) {
        for (int d = 0; d < n_digits; ++d) {
            memcpy(out + d * run, q + d * 32, 32);
            memcpy(out + d * run + 32, q + 160 + d * 16, 16);
            memset(out + d * run + 48, 0, 16);
            if (d < 4) {
                memcpy(out + d * run + 48, q + 240 + d * 4, 4);
            }
        }
    }
};

template <typename F> void arrange(const int8_t * q, int64_t n, int8_t * out) {
    for (int64_t b = 0; b < n / tq_block; ++b) {
        F::arrange(q + b * tq_block, out + b * F::n_digits * run);
    }
}

template <typename F, int n_tokens>
uint16_t dot(const char * row, int64_t b0, int64_t n, uint16_t d_bits, const char * end, const int8_t * q, size_t stride,
             const int32_t * base, int32_t * sum) {
    constexpr int step  = vi_lanes * 4;
    // chains of additions per token: one alone waits for itself
    constexpr int n_acc = n_tokens == 1 ? 4 : n_tokens <= 3 ? 2 : 1;
    vi            acc[n_tokens][n_acc];
    uint16_t      differ = 0;
    for (int t = 0; t < n_tokens; ++t) {
        for (int i = 0; i < n_acc; ++i) {
            acc[t][i] = vi_set1(0);
        }
    }
    for (int64_t b = b0; b < b0 + n / tq_block; ++b) {
        const char * p = row + b * sizeof(typename F::block);
        uint16_t     d;
        memcpy(&d, p + offsetof(typename F::block, d), sizeof(d));
        differ |= d ^ d_bits;
        char         tail[run];
        if (end - p < run) {
            memset(tail, 0, sizeof(tail));
            memcpy(tail, p, F::n_bytes);
            p = tail;
        }
        const int8_t * qb = q + b * F::n_digits * run;
        for (int o = 0; o < run; o += step) {
            vi raw = vi_load(p + o);
            QVAC_UNROLL
            for (int i = 0; i < F::n_digits; ++i) {
                const vi code = F::code(raw);
                QVAC_UNROLL
                for (int t = 0; t < n_tokens; ++t) {
                    vi & a = acc[t][i % n_acc];
                    a      = vi_dot(a, code, vi_load(qb + t * stride + i * run + o));
                }
                raw = F::next(raw);
            }
        }
    }
    for (int t = 0; t < n_tokens; ++t) {
        vi all = acc[t][0];
        for (int i = 1; i < n_acc; ++i) {
            all = vi_add(all, acc[t][i]);
        }
        sum[t] = vi_sum(all) - base[t];
    }
    return differ;
}

using dot_fn = uint16_t (*)(const char *, int64_t, int64_t, uint16_t, const char *, const int8_t *, size_t, const int32_t *,
                            int32_t *);

template <typename F, size_t... i> dot_fn pick(int n_tokens, std::index_sequence<i...>) {
    static constexpr dot_fn table[] = { dot<F, (int) i + 1>... };
    return table[n_tokens - 1];
}

}  // namespace

size_t tq_vec_size(ggml_type type, int64_t n) {
    return n / tq_block * (type == GGML_TYPE_TQ1_0 ? tq1::n_digits : tq2::n_digits) * run;
}

void tq_vec_arrange(ggml_type type, const int8_t * q, int64_t n, int8_t * out) {
    type == GGML_TYPE_TQ1_0 ? arrange<tq1>(q, n, out) : arrange<tq2>(q, n, out);
}

uint16_t tq_vec_dot(ggml_type type, const char * row, int64_t b0, int64_t n, uint16_t d, const char * end, int n_tokens,
                    const int8_t * q, size_t stride, const int32_t * base, int32_t * sum) {
    using counts    = std::make_index_sequence<vec_tokens>;
    const dot_fn fn = type == GGML_TYPE_TQ1_0 ? pick<tq1>(n_tokens, counts{}) : pick<tq2>(n_tokens, counts{});
    return fn(row, b0, n, d, end, q, stride, base, sum);
}

}  // namespace qvac
