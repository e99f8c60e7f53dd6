// The values of `a` as floats, for products in exact arithmetic: of an unquantized type by element, of a quantized one four at
// a time. A_F32, A_F16 .. name the type. Everything is read as 32-bit words; blocks may begin in the middle of one.

#include "../../qvac/exact-math.h"
#include "../../qvac/exact-types.h"

layout(binding = 0) readonly buffer A  { uint data_a[]; };
layout(binding = 0) readonly buffer A2 { uvec2 data_a2[]; };
layout(binding = 0) readonly buffer A4 { uvec4 data_a4[]; };

#if defined(A_F32) || defined(A_F16) || defined(A_BF16)

float a_value(const uint i) {
#if defined(A_F32)
    return uintBitsToFloat(data_a[i]);
#else
    const uint h = (data_a[i >> 1] >> ((i & 1u) << 4)) & 0xffffu;
#if defined(A_F16)
    return exact_from_f16(h);
#else
    return exact_from_bf16(h);
#endif
#endif
}

// Those from i on, a multiple of four at a multiple of 16 bytes.
vec4 a_four(const uint i) {
#if defined(A_F32)
    return uintBitsToFloat(data_a4[i >> 2]);
#else
    const uvec2 w = data_a2[i >> 2];
#if defined(A_F16)
    return vec4(exact_from_f16(w.x & 0xffffu), exact_from_f16(w.x >> 16), exact_from_f16(w.y & 0xffffu), exact_from_f16(w.y >> 16));
#else
    return vec4(exact_from_bf16(w.x & 0xffffu), exact_from_bf16(w.x >> 16), exact_from_bf16(w.y & 0xffffu), exact_from_bf16(w.y >> 16));
#endif
#endif
}

#else

#define A_QUANTIZED

// By the number of 16 bits before them.
uint a_half(const uint h) {
    return (data_a[h >> 1] >> ((h & 1u) << 4)) & 0xffffu;
}

uint a_word(const uint h) {
    const uint low = data_a[h >> 1];
    return (h & 1u) == 0u ? low : (low >> 16) | (data_a[(h >> 1) + 1u] << 16);
}

float a_scale(const uint h) {
    return exact_from_f16(a_half(h));
}

vec4 scaled_four(const float d, const ivec4 q) {
    return vec4(exact_scaled(d, q.x), exact_scaled(d, q.y), exact_scaled(d, q.z), exact_scaled(d, q.w));
}

// Four bytes of a word, as they are and with their sign.
ivec4 bytes_of(const uint w) {
    return ivec4(w & 0xffu, (w >> 8) & 0xffu, (w >> 16) & 0xffu, w >> 24);
}

ivec4 signed_bytes_of(const uint w) {
    return ivec4(int(w << 24) >> 24, int(w << 16) >> 24, int(w << 8) >> 24, int(w) >> 24);
}

#if defined(A_Q8_0) || defined(A_Q4_0) || defined(A_Q4_1) || defined(A_Q5_0)
const uint A_BLOCK = 32;
#else
const uint A_BLOCK = 256;
#endif

// Values e to e + 3 of a block, e a multiple of four.
vec4 a_four(const uint block, const uint e) {
#if defined(A_Q8_0)
    const uint h = block * 17u;
    return scaled_four(a_scale(h), signed_bytes_of(a_word(h + 1u + e / 2u)));
#elif defined(A_Q4_0)
    const uint h = block * 9u;
    const uint w = a_word(h + 1u + (e & 15u) / 2u) >> (e < 16u ? 0u : 4u);
    return scaled_four(a_scale(h), bytes_of(w & 0x0f0f0f0fu) - 8);
#elif defined(A_Q4_1)
    const uint  h = block * 10u;
    const ivec4 q = bytes_of((a_word(h + 2u + (e & 15u) / 2u) >> (e < 16u ? 0u : 4u)) & 0x0f0f0f0fu);
    const float d = a_scale(h);
    const float m = a_scale(h + 1u);
    return vec4(exact_scaled_plus(d, q.x, m), exact_scaled_plus(d, q.y, m), exact_scaled_plus(d, q.z, m), exact_scaled_plus(d, q.w, m));
#elif defined(A_Q5_0)
    const uint  h    = block * 11u;
    const ivec4 low  = bytes_of((a_word(h + 3u + (e & 15u) / 2u) >> (e < 16u ? 0u : 4u)) & 0x0f0f0f0fu);
    const uint  bits = a_word(h + 1u) >> e;
    const ivec4 high = ivec4(bits & 1u, (bits >> 1) & 1u, (bits >> 2) & 1u, (bits >> 3) & 1u) * 16;
    return scaled_four(a_scale(h), low + high - 16);
#elif defined(A_Q4_K)
    const uint  h  = block * 72u;
    const uint  j  = e / 32u;
    const uint  s0 = a_word(h + 2u);
    const uint  s1 = a_word(h + 4u);
    const uint  s2 = a_word(h + 6u);
    const float d  = exact_scaled(a_scale(h), exact_q4_k_scale(s0, s2, j));
    const float m  = exact_scaled(a_scale(h + 1u), exact_q4_k_min(s1, s2, j));
    const ivec4 q  = bytes_of((a_word(h + 8u + (j / 2u) * 16u + (e & 31u) / 2u) >> ((j & 1u) * 4u)) & 0x0f0f0f0fu);
    return vec4(exact_scaled_minus(d, q.x, m), exact_scaled_minus(d, q.y, m), exact_scaled_minus(d, q.z, m), exact_scaled_minus(d, q.w, m));
#elif defined(A_Q6_K)
    const uint  h    = block * 105u;
    const uint  n    = e / 128u;
    const uint  j    = (e / 32u) & 3u;
    const uint  l    = e & 31u;
    const ivec4 low  = bytes_of((a_word(h + n * 32u + (j & 1u) * 16u + l / 2u) >> ((j / 2u) * 4u)) & 0x0f0f0f0fu);
    const ivec4 high = bytes_of((a_word(h + 64u + n * 16u + l / 2u) >> (j * 2u)) & 0x03030303u) * 16;
    const uint  s    = a_half(h + 96u + n * 4u + j);
    const int   sc   = l < 16u ? int(s << 24) >> 24 : int(s << 16) >> 24;
    return scaled_four(exact_scaled(a_scale(h + 104u), sc), low + high - 32);
#elif defined(A_TQ2_0)
    const uint h = block * 33u;
    const uint w = a_word(h + (e / 128u) * 16u + (e & 31u) / 2u) >> (((e / 32u) & 3u) * 2u);
    return scaled_four(a_scale(h + 32u), bytes_of(w & 0x03030303u) - 1);
#elif defined(A_TQ1_0)
    // 32 bytes of five values 32 apart, 16 of five values 16 apart, 4 of four values 4 apart
    const uint  h = block * 27u;
    const uint  n = e < 160u ? e / 32u : e < 240u ? (e - 160u) / 16u : (e - 240u) / 4u;
    const uint  w = a_word(h + (e < 160u ? (e & 31u) / 2u : e < 240u ? 16u + (e & 15u) / 2u : 24u));
    const uint  p = n == 0u ? 1u : n == 1u ? 3u : n == 2u ? 9u : n == 3u ? 27u : 81u;
    const ivec4 b = bytes_of(w);
    return scaled_four(a_scale(h + 26u), ivec4(exact_tq1_digit(uint(b.x), p), exact_tq1_digit(uint(b.y), p),
                                               exact_tq1_digit(uint(b.z), p), exact_tq1_digit(uint(b.w), p)));
#endif
}

#endif
