// What a block of a quantized type holds, in exact arithmetic (docs/exactness.md), one source for C++ and GLSL: each formula's
// operations are rounded one by one. Where the bits of a value lie is each side's own.

#ifdef __cplusplus
#pragma once

#include "exact-math.h"

namespace qvac {

#define precise
#endif

// Q8_0, Q4_0 and Q5_0 (q - 8, q - 16), Q6_K (q - 32, with the scale of its 16), TQ1_0 and TQ2_0 (q - 1).
EXACT_FN float exact_scaled(const float d, const int q) {
    precise float y = d * float(q);
    return y;
}

// Q4_1
EXACT_FN float exact_scaled_plus(const float d, const int q, const float m) {
    precise float y = d * float(q);
    y = y + m;
    return y;
}

// Q4_K, with the scale and the minimum of its 32
EXACT_FN float exact_scaled_minus(const float d, const int q, const float m) {
    precise float y = d * float(q);
    y = y - m;
    return y;
}

// Q4_K: the 6 bits of the scale, and those of the minimum, of the j-th 32 of a block; the `s` are its 12 bytes of scales.
EXACT_FN int exact_q4_k_scale(const uint s0, const uint s2, const uint j) {
    const uint at = (j & 3u) * 8u;
    return int(j < 4u ? (s0 >> at) & 63u : ((s2 >> at) & 15u) | (((s0 >> at) & 0xc0u) >> 2));
}

EXACT_FN int exact_q4_k_min(const uint s1, const uint s2, const uint j) {
    const uint at = (j & 3u) * 8u;
    return int(j < 4u ? (s1 >> at) & 63u : ((s2 >> (at + 4u)) & 15u) | (((s1 >> at) & 0xc0u) >> 2));
}

// TQ1_0: the n-th digit of a byte, -1 to 1; `power` is 3^n.
EXACT_FN int exact_tq1_digit(const uint byte, const uint power) {
    return int((((byte * power) & 0xffu) * 3u) >> 8) - 1;
}

#ifdef __cplusplus
#undef precise
}  // namespace qvac
#endif
