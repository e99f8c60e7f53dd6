// How a token becomes 8-bit integers (the formulas are in ternary.h of ggml-cpu; qvac_tq_row.glsl has the second limb):
//
//     a = max|x|, s = 127/a, q = round_half_even(x*s) clamped to +-127
//
// The bits are the same on every device: a driver's division is an estimate here that integers correct, and the rest is
// multiplications and additions, each rounded by itself.

const uint ABS_MASK = 0x7fffffffu;
const uint INF_BITS = 0x7f800000u;
const uint NAN_BITS = 0x7fc00000u;
const uint AMAX_MIN = uint(127 - 119) << 23; // 2^-119: above it s and a/127 are normal numbers

// The float of value mantissa * 2^exponent, rounded half to even; `rest`: the mantissa was cut off.
// The mantissa has 25 or 26 bits and the value is a normal number.
uint token_rounded(const uint mantissa, const int exponent, const bool rest) {
    const uint shift = mantissa >= (1u << 25) ? 2 : 1;
    const uint cut   = mantissa & ((1u << shift) - 1);
    const uint whole = 1u << (shift - 1);
    uint m = mantissa >> shift;
    if (cut > whole || (cut == whole && (rest || (m & 1) != 0))) {
        m += 1;
    }
    // A mantissa that was rounded up to 2^24 carries into the exponent.
    return (uint(127 + 23 + exponent + int(shift)) << 23) + (m - (1u << 23));
}

// a/127, for the bits of a
uint token_scale(const uint a) {
    const uint m = ((a & 0x7fffffu) | 0x800000u) << 8;
    return token_rounded(m / 127, int(a >> 23) - 127 - 31, m % 127 != 0);
}

// 127/a: the whole quotient q of 127 * 2^42 by the mantissa m, and whether there is a rest. The estimate of q is off by a few
// units of its 26 bits, so that the low word of the rest is all of it.
uint token_inverse(const uint a) {
    const uint  m        = (a & 0x7fffffu) | 0x800000u;
    const float estimate = 1.0 / float(m);
    uint q    = uint(estimate * (127.0 * 4398046511104.0));
    int  rest = -int(q * m);
    const int off = int(floor(float(rest) * estimate));
    q    += uint(off);
    rest -= off * int(m);
    if (rest < 0) {
        q    -= 1;
        rest += int(m);
    } else if (rest >= int(m)) {
        q    += 1;
        rest -= int(m);
    }
    return token_rounded(q, -19 - (int(a >> 23) - 127), rest != 0);
}

// x*s to a byte. A denormal x is multiplied as an integer, since devices may take it for zero; s_tiny is s * 2^-149, and
// where s is below 2^24 no denormal reaches an integer. For |y| < 2^22, adding 1.5 * 2^23 leaves no bit for the fraction.
int token_byte(const float x, const float s, const float s_tiny) {
    const uint bits = floatBitsToUint(x);
    precise float u = x * s;
    if ((bits & INF_BITS) == 0) {
        precise const float tiny = float(bits & 0x7fffffu) * s_tiny;
        u = (bits >> 31) != 0 ? -tiny : tiny;
    }
    precise const float y = u + 12582912.0;
    return clamp(int(floatBitsToUint(y) - 0x4b400000u), -127, 127);
}

float token_tiny(const uint s_bits) {
    return uintBitsToFloat(s_bits >= (uint(127 + 24) << 23) ? s_bits - (149u << 23) : 0);
}

// What a token of the largest magnitude `top` is multiplied with: 0 for no numbers and for zeros.
struct token_scaling {
    float value;
    float tiny;
    float factor; // what its integers are multiplied with in the end
};

token_scaling scaling_of(const uint top) {
    const bool finite = top < INF_BITS;
    const bool zero   = !finite || top < AMAX_MIN;
    const uint s_bits = zero ? 0 : token_inverse(top);
    token_scaling s;
    s.value  = uintBitsToFloat(s_bits);
    s.tiny   = zero ? 0.0 : token_tiny(s_bits);
    s.factor = uintBitsToFloat(!finite ? NAN_BITS : zero ? 0 : token_scale(top));
    return s;
}

// Four values as bytes of a word. Where no denormal reaches an integer, none need be told apart, and nothing is clamped: the
// largest value times s rounds to 127.
uint token_bytes(const vec4 x, const token_scaling s) {
    precise vec4 u = x * s.value;
    if (s.tiny != 0.0) {
        const uvec4 bits = floatBitsToUint(x);
        precise const vec4 tiny = vec4(bits & 0x7fffffu) * s.tiny;
        u = mix(u, uintBitsToFloat(floatBitsToUint(tiny) | (bits & 0x80000000u)), equal(bits & INF_BITS, uvec4(0)));
    }
    precise const vec4 y = u + 12582912.0;
    const uvec4 b = floatBitsToUint(y) & 0xffu;
    return b.x | (b.y << 8) | (b.z << 16) | (b.w << 24);
}

#if !defined(EXACT)
// The gate of a gated unit, as upstream's shaders have it.
float activated(const float x, const bool relu_sqr) {
    const float r = max(x, 0.0);
    return relu_sqr ? r * r : x / (1.0 + exp(-x));
}
#endif
