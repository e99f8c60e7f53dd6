// Angles of exact arithmetic (docs/exactness.md) as fractions of a turn, in integers: one source for C++ and GLSL.
// exact-math.h stands before it.

#ifdef __cplusplus
#pragma once

#include "exact-math.h"

namespace qvac {

EXACT_FN uint exact_mul_high(const uint a, const uint b) {
    return (uint) (((uint64_t) a * b) >> 32);
}
#else
uint exact_mul_high(const uint a, const uint b) {
    uint high;
    uint low;
    umulExtended(a, b, high, low);
    return high;
}
#endif

// hi 2^-32 + lo 2^-64; what is whole in a sum is lost, as whole turns are nothing.
struct exact_fraction {
    uint hi;
    uint lo;
};

EXACT_FN exact_fraction exact_fraction_of(const uint hi, const uint lo) {
    exact_fraction f;
    f.hi = hi;
    f.lo = lo;
    return f;
}

EXACT_FN exact_fraction exact_fraction_add(const exact_fraction a, const exact_fraction b) {
    const uint lo = a.lo + b.lo;
    return exact_fraction_of(a.hi + b.hi + (lo < b.lo ? 1u : 0u), lo);
}

EXACT_FN exact_fraction exact_fraction_sub(const exact_fraction a, const exact_fraction b) {
    return exact_fraction_of(a.hi - b.hi - (a.lo < b.lo ? 1u : 0u), a.lo - b.lo);
}

// a b, cut off at 2^-64.
EXACT_FN exact_fraction exact_fraction_mul(const exact_fraction a, const exact_fraction b) {
    const exact_fraction high  = exact_fraction_of(exact_mul_high(a.hi, b.hi), a.hi * b.hi);
    const exact_fraction left  = exact_fraction_of(exact_mul_high(a.hi, b.lo), a.hi * b.lo);
    const exact_fraction right = exact_fraction_of(exact_mul_high(a.lo, b.hi), a.lo * b.hi);
    // The sum of what stands at 2^-96, of which only the carry counts.
    const uint first  = left.lo + right.lo;
    const uint second = first + exact_mul_high(a.lo, b.lo);
    const uint carry  = (first < left.lo ? 1u : 0u) + (second < first ? 1u : 0u);
    const exact_fraction rest =
        exact_fraction_add(exact_fraction_add(exact_fraction_of(0u, left.hi), exact_fraction_of(0u, right.hi)), exact_fraction_of(0u, carry));
    return exact_fraction_add(high, rest);
}

EXACT_FN exact_fraction exact_fraction_half(const exact_fraction a) {
    return exact_fraction_of(a.hi >> 1, (a.lo >> 1) | (a.hi << 31));
}

EXACT_FN exact_fraction exact_fraction_twice(const exact_fraction a) {
    return exact_fraction_add(a, a);
}

// a / d for a < 1/2, cut off; 0 where d is no normal number.
EXACT_FN exact_fraction exact_fraction_div(const exact_fraction a, const float d) {
    const uint bits     = floatBitsToUint(d);
    const uint exponent = (bits >> 23) & 255u;
    if (exponent == 0u || exponent == 255u) {
        return exact_fraction_of(0u, 0u);
    }
    // 2^24 a over the 24 bits of d, a byte at a time.
    const uint m = (bits & 0x007fffffu) | 0x00800000u;
    exact_fraction left = a;
    exact_fraction y    = exact_fraction_of(0u, 0u);
    uint rest = 0u;
    for (int i = 0; i < 11; ++i) {
        rest = (rest << 8) | (left.hi >> 24);
        left = exact_fraction_of((left.hi << 8) | (left.lo >> 24), left.lo << 8);
        const uint digit = rest / m;
        rest -= digit * m;
        y = exact_fraction_of((y.hi << 8) | (y.lo >> 24), (y.lo << 8) | digit);
    }
    for (uint e = exponent; e > 126u; --e) {
        y = exact_fraction_half(y);
    }
    for (uint e = exponent; e < 126u; ++e) {
        y = exact_fraction_twice(y);
    }
    return (bits >> 31) != 0u ? exact_fraction_sub(exact_fraction_of(0u, 0u), y) : y;
}

// a / b for whole 0 < a < b < 2^16, cut off.
EXACT_FN exact_fraction exact_fraction_ratio(const uint a, const uint b) {
    exact_fraction y = exact_fraction_of(0u, 0u);
    uint rest = a;
    for (int i = 0; i < 4; ++i) {
        const uint digit = (rest << 16) / b;
        rest = (rest << 16) - digit * b;
        y = exact_fraction_of((y.hi << 16) | (y.lo >> 16), (y.lo << 16) | digit);
    }
    return y;
}

// What an op ROPE turns by, from its parameters (exact-rope.c); fractions of 1 and more are the largest one.
struct exact_rope {
    exact_fraction theta_scale; // freq_base^(-2 / n_dims)
    exact_fraction freq_scale;
    exact_fraction ext_factor; // of YaRN; 0: none
    int low;                   // pairs up to this one are not interpolated
    int high;                  // from this one on they are
};

// By how much of a turn pair `pair` moves on a position; `factor` is its frequency factor, or 1.
EXACT_FN exact_fraction exact_rope_turn(const exact_rope rope, const uint pair, const bool has_factor, const float factor) {
    exact_fraction f     = exact_fraction_of(0x28be60dbu, 0x9391054au); // 1 / (2 pi)
    exact_fraction power = rope.theta_scale;
    for (uint i = pair; i != 0u; i >>= 1) {
        if ((i & 1u) != 0u) {
            f = exact_fraction_mul(f, power);
        }
        power = exact_fraction_mul(power, power);
    }
    if (has_factor) {
        f = exact_fraction_div(f, factor);
    }
    const exact_fraction interpolated = exact_fraction_mul(f, rope.freq_scale);
    if ((rope.ext_factor.hi | rope.ext_factor.lo) == 0u || (int(pair) > rope.low && int(pair) >= rope.high)) {
        return interpolated;
    }
    exact_fraction share = rope.ext_factor; // of the angle that is not interpolated
    if (int(pair) > rope.low) {
        share = exact_fraction_mul(share, exact_fraction_ratio(uint(rope.high) - pair, uint(rope.high - rope.low)));
    }
    return exact_fraction_add(interpolated, exact_fraction_mul(exact_fraction_sub(f, interpolated), share));
}

// Where that is at a position: in turns of 2^-32, the nearest.
EXACT_FN uint exact_turn_at(const exact_fraction f, const int position) {
    const uint p    = uint(position);
    const uint turn = f.hi * p + exact_mul_high(f.lo, p) + ((f.lo * p) >> 31);
    return position < 0 ? turn - f.lo : turn;
}

// Bits of 1 / (2 pi) from 2^64 down, a word each.
EXACT_FN uint exact_turn_word(const uint i) {
    return i < 2u ? 0u : i == 2u ? 0x28be60dbu : i == 3u ? 0x9391054au : i == 4u ? 0x7f09d5f4u : i == 5u ? 0x7d4d3770u : i == 6u ? 0x36d8a566u : 0x4f10e410u;
}

// A finite angle in radians as turns of 2^-32, the nearest.
EXACT_FN uint exact_turn_of(const float x) {
    const uint bits  = floatBitsToUint(x);
    const int  place = int((bits >> 23) & 255u) - 150 + 64; // x is its 24 bits times 2^(place - 64)
    if (place < 0) {
        return 0u;
    }
    const uint m     = (bits & 0x007fffffu) | 0x00800000u;
    const uint i     = uint(place) >> 5;
    const uint shift = uint(place) & 31u;
    uint hi = exact_turn_word(i);
    uint lo = exact_turn_word(i + 1u);
    if (shift != 0u) {
        hi = (hi << shift) | (lo >> (32u - shift));
        lo = (lo << shift) | (exact_turn_word(i + 2u) >> (32u - shift));
    }
    const uint turn = m * hi + exact_mul_high(m, lo) + ((m * lo) >> 31);
    return (bits >> 31) != 0u ? 0u - turn : turn;
}

#ifdef __cplusplus
}  // namespace qvac
#endif
