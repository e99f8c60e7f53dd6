// Rows that invocations keep (qvac_row.glsl) as tokens of 8-bit integers: what TQ_QUANTIZE makes of them, without a pass of
// its own. A quantized row is `limbs` times N bytes, then a/127, then zeros up to 16 bytes.

#include "qvac_tq_token.glsl"

const uint TAIL = 4; // words behind the limbs

// TOKENS rows at once: one each.
shared uint tops[TOKENS][BLOCK_SIZE];
shared uint tops2[TOKENS][BLOCK_SIZE / 32 * PARTS];

// As integers the magnitudes compare as the floats do, and a NaN is above all.
uint larger(const uint top, const vec4 v) {
    const uvec4 bits = floatBitsToUint(v) & ABS_MASK;
    return max(top, max(max(bits.x, bits.y), max(bits.z, bits.w)));
}

// The largest magnitudes of the rows, from those of each invocation. Every invocation of the workgroup must call it.
uint[TOKENS] tops_of_rows(const uint mine[TOKENS]) {
    const uint tid   = gl_LocalInvocationID.x;
    const uint group = tid / LANES;

    [[unroll]] for (uint k = 0; k < TOKENS; ++k) {
        tops[k][tid] = mine[k];
    }
    barrier();
    if (lane() < PARTS) {
        [[unroll]] for (uint k = 0; k < TOKENS; ++k) {
            uint top = mine[k];
            [[unroll]] for (uint i = 1; i < MAX_STEPS; ++i) {
                if (i * PARTS < LANES) {
                    top = max(top, tops[k][tid + i * PARTS]);
                }
            }
            tops2[k][group * PARTS + lane()] = top;
        }
    }
    barrier();
    uint all[TOKENS];
    [[unroll]] for (uint k = 0; k < TOKENS; ++k) {
        all[k] = 0;
        [[unroll]] for (uint i = 0; i < PARTS; ++i) {
            all[k] = max(all[k], tops2[k][group * PARTS + i]);
        }
    }
    return all;
}

// What the values of a token are multiplied by.
struct token_factors {
    bool  zero; // too small to count, or not finite
    float s;
    float s_tiny;
};

// Below 2^116, s brings no denormal to half of the second limb's unit, 1/508, so that s_tiny is 0 but for tiny tokens.
const uint S_OF_TINY = uint(127 + 116) << 23;

token_factors factors_of(const uint top) {
    if (top >= INF_BITS || top < AMAX_MIN) {
        return token_factors(true, 0.0, 0.0);
    }
    const uint s = token_inverse(top);
    return token_factors(false, uintBitsToFloat(s), s >= S_OF_TINY ? token_tiny(s) : 0.0);
}

uint low_bytes(const uvec4 w) {
    return (w.x & 0xffu) | (w.y & 0xffu) << 8 | (w.z & 0xffu) << 16 | w.w << 24;
}

// Adding it to less than 2^22 leaves no bit for the fraction, and the integer's byte lowest.
const float TO_INTEGER = 12582912.0; // 1.5 * 2^23

// Both limbs of four values: q1 = round_half_even(u) of u = x*s, and q2 = round_half_even((u - q1)*254). Neither can be beyond
// 127: s is at most a rounding above 127/a, and what q1 leaves is at most a half.
uvec2 limbs_of(const token_factors f, const vec4 x) {
    precise vec4 u = x * f.s;
    if (f.s_tiny != 0.0) {
        [[unroll]] for (uint i = 0; i < 4; ++i) {
            const uint bits = floatBitsToUint(x[i]);
            if ((bits & INF_BITS) == 0) {
                precise const float tiny = float(bits & 0x7fffffu) * f.s_tiny;
                u[i] = (bits >> 31) != 0 ? -tiny : tiny;
            }
        }
    }
    precise const vec4 y1       = u + TO_INTEGER;
    precise const vec4 q1       = y1 - TO_INTEGER;
    precise const vec4 left     = u - q1;
    precise const vec4 enlarged = left * 254.0;
    precise const vec4 y2       = enlarged + TO_INTEGER;
    return f.zero ? uvec2(0) : uvec2(low_bytes(floatBitsToUint(y1)), low_bytes(floatBitsToUint(y2)));
}

// The words behind the limbs.
uint tail_of(const uint top, const uint word) {
    return word != 0 ? 0 : top >= INF_BITS ? NAN_BITS : top < AMAX_MIN ? 0 : token_scale(top);
}
