// The functions of exact arithmetic (docs/exactness.md), one source for C++ and GLSL.
//
// A device rounds additions, multiplications and conversions of integers as IEEE 754 has it; what it makes of a division,
// a root, an exponential or a fused multiply-add is its own. So everything here is made of the former, each rounded by
// itself: C++ is compiled with -ffp-contract=off, GLSL has every result in a `precise` variable. Denormals are numbers.
//
// Errors, over all floats of the range that matters, are what `tests/exact/math.rs` holds them to.

#ifdef __cplusplus
#pragma once

#include <cstdint>
#include <cstring>

namespace qvac {

#define EXACT_FN static inline
#define precise

typedef uint32_t uint;

EXACT_FN uint floatBitsToUint(const float x) {
    uint bits;
    memcpy(&bits, &x, sizeof(bits));
    return bits;
}

EXACT_FN float uintBitsToFloat(const uint bits) {
    float x;
    memcpy(&x, &bits, sizeof(x));
    return x;
}
#else
#define EXACT_FN
#endif

// 1/x within 2 ulp, for 2^-126 <= |x| < 2^126; 0 of a larger x, infinity of a smaller one, each with the sign of x.
EXACT_FN float exact_recip(const float x) {
    const uint sign = floatBitsToUint(x) & 0x80000000u;
    const uint bits = floatBitsToUint(x) & 0x7fffffffu;
    precise float a = uintBitsToFloat(bits);
    precise float r = uintBitsToFloat(0x7ef311c7u - bits); // within 13%; each step squares the error
    precise float e = 1.0f - a * r;
    r = r + r * e;
    e = 1.0f - a * r;
    r = r + r * e;
    e = 1.0f - a * r;
    r = r + r * e;
    e = 1.0f - a * r;
    r = r + r * e;
    const uint y = bits > 0x7f800000u ? 0x7fc00000u : bits >= 0x7e800000u ? 0u : bits < 0x00800000u ? 0x7f800000u : floatBitsToUint(r);
    return uintBitsToFloat(y | sign);
}

// a/b, of one more rounding.
EXACT_FN float exact_div(const float a, const float b) {
    precise float y = a * exact_recip(b);
    return y;
}

// 1/sqrt(x) within 2 ulp, from 2^-125 on; within 3 for smaller normal x, infinity of what is smaller still.
EXACT_FN float exact_rsqrt(const float x) {
    const uint bits = floatBitsToUint(x);
    precise float h = x * 0.5f;
    precise float r = uintBitsToFloat(0x5f375a86u - (bits >> 1)); // within 3.5%
    precise float e = 0.5f - (h * r) * r;
    r = r + r * e;
    e = 0.5f - (h * r) * r;
    r = r + r * e;
    e = 0.5f - (h * r) * r;
    r = r + r * e;
    e = 0.5f - (h * r) * r;
    r = r + r * e;
    return (bits & 0x7fffffffu) > 0x7f800000u ? x : bits < 0x00800000u ? uintBitsToFloat(0x7f800000u) : r;
}

// sqrt(x) within 2 ulp, for normal x > 0; 0 of a smaller one.
EXACT_FN float exact_sqrt(const float x) {
    precise float y = x * exact_rsqrt(x);
    return floatBitsToUint(x) < 0x00800000u ? 0.0f : y;
}

// e^x within 1 ulp for -87.3 <= x <= 88; 0 below, e^88 above, NaN of NaN.
//
// x = n ln 2 + r with |r| <= ln(2)/2, then 1 + r + r^2 q(r), q of degree 4 through (e^r - 1 - r) / r^2 at the Chebyshev
// points of |r| <= 0.3475.
EXACT_FN float exact_exp(const float x) {
    precise float a = x > 88.0f ? 88.0f : x;
    precise float z = a * 1.44269502f + 12582912.0f; // 1.5 * 2^23: what is added to it is rounded to an integer
    precise float n = z - 12582912.0f;
    precise float h = a - n * 0.693145752f; // ln 2 in two parts; n times the first is exact
    precise float c = n * 1.42860677e-6f;
    precise float r = h - c;
    precise float q = 1.39263761e-3f * r + 8.36333353e-3f;
    q = q * r + 4.16665524e-2f;
    q = q * r + 1.66665763e-1f;
    q = q * r + 0.5f;
    precise float p = r * r;
    p = p * q - c; // not r's own rounding: it would be a quarter of an ulp
    p = h + p;
    p = p + 1.0f;
    precise float y = p * uintBitsToFloat((floatBitsToUint(z) << 23) + 0x3f800000u);
    // By its bits: a compiler may make a minimum of the comparison above, which loses a NaN.
    return (floatBitsToUint(x) & 0x7fffffffu) > 0x7f800000u ? x : x < -87.3f ? 0.0f : y;
}

// log(x) for normal x > 0, within 2 ulp where that is above 1, and within 2^-23 below.
//
// x = 2^n m with sqrt(1/2) <= m < sqrt(2); log(m) = 2 atanh((m - 1) / (m + 1)).
EXACT_FN float exact_log(const float x) {
    const uint bits = floatBitsToUint(x);
    const uint up   = bits + (0x3f800000u - 0x3f3504f3u);
    precise float n = float(int(up >> 23) - 127);
    precise float m = uintBitsToFloat((up & 0x007fffffu) + 0x3f3504f3u);
    precise float f = m - 1.0f;
    precise float d = f + 2.0f;
    precise float s = f * exact_recip(d);
    precise float w = s * s;
    precise float q = 0.1538462f * w + 0.18181818f;
    q = q * w + 0.22222222f;
    q = q * w + 0.28571429f;
    q = q * w + 0.4f;
    q = q * w + 0.66666667f;
    q = q * w;
    // 2s = f - s f, and so log(m) = f - s (f - q): what is cut off is small beside f.
    precise float t = s * (f - q);
    t = t - n * 1.42860677e-6f;
    precise float y = f - t;
    y = y + n * 0.693145752f;
    return (bits & 0x7fffffffu) > 0x7f800000u ? x : y;
}

// 1 / (1 + e^-x)
EXACT_FN float exact_sigmoid(const float x) {
    precise float d = 1.0f + exact_exp(-x);
    return exact_recip(d);
}

// x / (1 + e^-x)
EXACT_FN float exact_silu(const float x) {
    precise float y = x * exact_sigmoid(x);
    return y;
}

// Of an angle in turns of 2^-32, from -1/8 to 1/8 of the circle around a multiple of a quarter: the angle.
EXACT_FN float exact_eighth(const uint turn) {
    const int rest = int(turn << 2) / 4;
    precise float a = float(rest) * 1.46291807926715968105e-9f; // 2 pi / 2^32
    return a;
}

EXACT_FN float exact_sin_eighth(const float a) {
    precise float w = a * a;
    precise float q = 2.7183114939898219e-6f * w - 1.9839334836096632e-4f;
    q = q * w + 8.3333293858894632e-3f;
    q = q * w - 1.6666666641626524e-1f;
    q = q * w;
    precise float y = q * a + a;
    return y;
}

EXACT_FN float exact_cos_eighth(const float a) {
    precise float w = a * a;
    precise float q = 2.4390448796277409e-5f * w - 1.3886763774609929e-3f;
    q = q * w + 4.1666638908271166e-2f;
    q = q * w - 0.5f;
    precise float y = q * w + 1.0f;
    return y;
}

// The sine of an angle in turns of 2^-32.
EXACT_FN float exact_sin_turn(const uint turn) {
    const uint  quarter = (turn + 0x20000000u) >> 30;
    const float a       = exact_eighth(turn);
    const float y       = (quarter & 1u) != 0u ? exact_cos_eighth(a) : exact_sin_eighth(a);
    return (quarter & 2u) != 0u ? -y : y;
}

// The cosine of an angle in turns of 2^-32.
EXACT_FN float exact_cos_turn(const uint turn) {
    return exact_sin_turn(turn + 0x40000000u);
}

// The float of an f16.
EXACT_FN float exact_from_f16(const uint h) {
    const uint  sign     = (h & 0x8000u) << 16;
    const uint  exponent = h & 0x7c00u;
    precise float small  = float(int(h & 0x3ffu)) * 5.9604644775390625e-8f; // 2^-24
    const uint  normal   = ((h & 0x7fffu) << 13) + 0x38000000u;
    const uint  bits     = exponent == 0u ? floatBitsToUint(small) : exponent == 0x7c00u ? normal + 0x38000000u : normal;
    return uintBitsToFloat(bits | sign);
}

// The f16 next to x, half to even.
EXACT_FN uint exact_to_f16(const float x) {
    const uint sign = (floatBitsToUint(x) >> 16) & 0x8000u;
    const uint bits = floatBitsToUint(x) & 0x7fffffffu;
    precise float shifted = uintBitsToFloat(bits > 0x38800000u ? 0u : bits) + 0.5f; // its last place is the smallest f16
    const uint tiny   = floatBitsToUint(shifted) - 0x3f000000u;
    const uint normal = (bits + 0xfffu + ((bits >> 13) & 1u) - 0x38000000u) >> 13;
    const uint y = bits > 0x7f800000u ? 0x7e00u : bits >= 0x477ff000u ? 0x7c00u : bits < 0x38800000u ? tiny : normal;
    return y | sign;
}

EXACT_FN float exact_from_bf16(const uint h) {
    return uintBitsToFloat(h << 16);
}

#ifdef __cplusplus
#undef precise
}  // namespace qvac
#endif
