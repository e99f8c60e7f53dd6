#version 450

// Tokens as 8-bit integers with one scale each (TQ_QUANTIZE of ggml-train.h; the formulas are in ternary.h of ggml-cpu).
//
//     a = max|x|, s = 127/a, q1 = round_half_even(x*s), q2 = round_half_even((x*s - q1)*254), both clamped to +-127
//
// One workgroup a token; a row of the result is `limbs` times n bytes, then a/127, then zeros up to 16 bytes. The bits are
// the same on every device: s and a/127 are divided in integers, for a driver's division is not correctly rounded, and the
// rest is additions and multiplications, each rounded by itself.

#extension GL_EXT_control_flow_attributes : enable

layout(constant_id = 0) const uint BLOCK_SIZE = 256;

layout(local_size_x_id = 0, local_size_y = 1, local_size_z = 1) in;

// Strides and offsets of x are in floats, those of the result in words.
layout(push_constant) uniform parameter {
    uint n;              // values a token, a multiple of 128
    uint n_tokens;
    uint limbs;
    uint ne1; uint ne2;  // how tokens lie in x
    uint nb1; uint nb2; uint nb3;
    uint x_offset; uint q_offset;
} p;

layout(binding = 0) readonly buffer X { float data_x[]; };
layout(binding = 0) readonly buffer X4 { vec4 data_x4[]; };
layout(binding = 1) writeonly buffer Q { uint data_q[]; };

shared uint tops[BLOCK_SIZE];

const uint ABS_MASK = 0x7fffffffu;
const uint INF_BITS = 0x7f800000u;
const uint NAN_BITS = 0x7fc00000u;
const uint AMAX_MIN = uint(127 - 119) << 23; // 2^-119: above it s and a/127 are normal numbers
const uint TAIL     = 4;                     // words behind the limbs

vec4 load(const uint base, const uint i) {
    if ((base & 3) == 0) {
        return data_x4[(base + i) / 4];
    }
    return vec4(data_x[base + i], data_x[base + i + 1], data_x[base + i + 2], data_x[base + i + 3]);
}

// The float of value mantissa * 2^exponent, rounded half to even; `rest`: the mantissa was cut off.
// The mantissa has 25 or 26 bits and the value is a normal number.
uint rounded(const uint mantissa, const int exponent, const bool rest) {
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

uint mantissa_of(const uint bits) {
    return (bits & 0x7fffffu) | 0x800000u;
}

int exponent_of(const uint bits) {
    return int(bits >> 23) - 127;
}

// a/127
uint over_127(const uint a) {
    const uint m = mantissa_of(a) << 8;
    return rounded(m / 127, exponent_of(a) - 31, m % 127 != 0);
}

// 127/a, by long division of 127 * 2^42
uint recip_127(const uint a) {
    const uint m = mantissa_of(a);
    uint rest = 127u << 16;
    uint q    = 0;
    for (uint i = 0; i < 26; ++i) {
        rest *= 2;
        q    *= 2;
        if (rest >= m) {
            rest -= m;
            q    += 1;
        }
    }
    return rounded(q, -19 - exponent_of(a), rest != 0);
}

// For |x| < 2^22: adding 1.5 * 2^23 leaves no bit for the fraction.
int round_even(const float x) {
    precise const float y = x + 12582912.0;
    return int(floatBitsToUint(y) - 0x4b400000u);
}

int clamp127(const int q) {
    return clamp(q, -127, 127);
}

// x*s; a denormal x is multiplied as an integer, since devices may take it for zero. s_tiny is s * 2^-149.
float scaled(const float x, const float s, const float s_tiny) {
    const uint bits = floatBitsToUint(x);
    if ((bits & INF_BITS) == 0) {
        precise const float u = float(bits & 0x7fffffu) * s_tiny;
        return (bits >> 31) != 0 ? -u : u;
    }
    precise const float u = x * s;
    return u;
}

uint pack(const ivec4 q) {
    return uint(q.x & 0xff) | (uint(q.y & 0xff) << 8) | (uint(q.z & 0xff) << 16) | (uint(q.w & 0xff) << 24);
}

void main() {
    const uint token = gl_WorkGroupID.y * gl_NumWorkGroups.x + gl_WorkGroupID.x;
    if (token >= p.n_tokens) {
        return;
    }
    const uint tid   = gl_LocalInvocationID.x;
    const uint i1    = token % p.ne1;
    const uint i2    = token / p.ne1 % p.ne2;
    const uint i3    = token / p.ne1 / p.ne2;
    const uint base  = p.x_offset + i1 * p.nb1 + i2 * p.nb2 + i3 * p.nb3;
    const uint words = p.n / 4;
    const uint row   = p.q_offset + token * (p.limbs * words + TAIL);

    // As integers the magnitudes compare as the floats do, and a NaN is above all.
    uint top = 0;
    for (uint w = tid; w < words; w += BLOCK_SIZE) {
        const uvec4 bits = floatBitsToUint(load(base, 4 * w)) & ABS_MASK;
        top = max(top, max(max(bits.x, bits.y), max(bits.z, bits.w)));
    }
    tops[tid] = top;
    barrier();
    [[unroll]] for (uint half_size = BLOCK_SIZE / 2; half_size > 0; half_size /= 2) {
        if (tid < half_size) {
            tops[tid] = max(tops[tid], tops[tid + half_size]);
        }
        barrier();
    }
    top = tops[0];

    const bool finite = top < INF_BITS;
    const bool zero   = !finite || top < AMAX_MIN;
    if (tid < TAIL) {
        data_q[row + p.limbs * words + tid] = tid != 0 ? 0 : !finite ? NAN_BITS : zero ? 0 : over_127(top);
    }
    if (zero) {
        for (uint w = tid; w < p.limbs * words; w += BLOCK_SIZE) {
            data_q[row + w] = 0;
        }
        return;
    }

    const uint  s_bits = recip_127(top);
    const float s      = uintBitsToFloat(s_bits);
    // Where s is below 2^24, no denormal reaches a limb.
    const float s_tiny = uintBitsToFloat(s_bits >= (uint(127 + 24) << 23) ? s_bits - (149u << 23) : 0);
    for (uint w = tid; w < words; w += BLOCK_SIZE) {
        const vec4 x = load(base, 4 * w);
        ivec4 q1;
        ivec4 q2;
        [[unroll]] for (uint i = 0; i < 4; ++i) {
            const float u = scaled(x[i], s, s_tiny);
            q1[i] = clamp127(round_even(u));
            precise const float left     = u - float(q1[i]);
            precise const float enlarged = left * 254.0;
            q2[i] = clamp127(round_even(enlarged));
        }
        data_q[row + w] = pack(q1);
        if (p.limbs == 2) {
            data_q[row + words + w] = pack(q2);
        }
    }
}
