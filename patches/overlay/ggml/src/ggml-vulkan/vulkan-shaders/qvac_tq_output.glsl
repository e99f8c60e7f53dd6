// What becomes of a ternary product's sums: limbs are joined, scaled, added to, and written where the output belongs:
//
//     y[m, t] = sum * factor + add[m, t] + scale * sum_k p[m, k] * z[k, t]
//
// with the last term, LoRA's, where LOW_RANK is not 0: the bits are those of LOW_RANK_ADD (qvac_low_rank_add.comp) behind
// the product. p and z come through shared memory, RANKS values of k at a time.
//
// The shader that includes this defines FLOATS, what an invocation has of a token's outputs at a time: float, or vec4 for four
// side by side. It has the push constants `p`, the constants BLOCK_SIZE, BM, BN, LIMBS, MIXED and LOW_RANK, the buffers,
// shared memory `tile` with room for (BM + BN / LIMBS) * 2 words of 16 bytes from OUT_END on, and token_of; for TQ_BACK
// qvac_tq_weights.glsl.

// The correctly rounded x/254, as over_254 of ternary.h.
FLOATS over_254(const FLOATS x) {
    const FLOATS r = FLOATS(uintBitsToFloat(0x3b810204u)); // 1/254
    precise const FLOATS q        = x * r;
    precise const FLOATS residual = (x - FLOATS(256.0) * q) + FLOATS(2.0) * q;
    precise const FLOATS quotient = q + residual * r;
    return quotient;
}

FLOATS both_limbs(const FLOATS s1, const FLOATS s2) {
    precise const FLOATS s = s1 + over_254(s2);
    return s;
}

// Output `m` of the tile. Sixteen of them lie side by side.
uint output_of(const uint m0, const uint m) {
#if defined(TQ_BACK)
    const uint chunk = m0 / CHUNK + m / CHUNK;
    return chunk / 16 * BLOCK + chunk_begin(chunk % 16) + m % CHUNK;
#else
    return m0 + m;
#endif
}

// A tile that was moved to end with the last token leaves those before to the tile before.
bool is_written(const uint m, const uint token) {
    return m < p.M && token < p.N && token >= gl_WorkGroupID.y * (BN / LIMBS);
}

// What a token's sums are multiplied with; not with the weights' scales where those are mixed. Read once, ahead of its use.
shared float factors[BN / LIMBS];

void load_factors(const uint t0) {
    for (uint i = gl_LocalInvocationID.x; i < BN / LIMBS; i += BLOCK_SIZE) {
        const uint  token = min(t0 + i, p.N - 1);
        const float scale = data_s[4 * (p.q_offset + token * p.q_stride + LIMBS * (p.K / 16))];
        precise const float factor = MIXED != 0 ? scale : scale * p.d;
        factors[i] = factor;
    }
}

// y of the tile's token `t`, but for its last term. `sum` holds the weights' scales already where they are mixed.
FLOATS output_value(const uint m, const uint t0, const uint t, const FLOATS sum) {
    precise FLOATS y = sum * FLOATS(factors[t]);
    if (p.add != 0 && is_written(m, t0 + t)) {
        const uint at = p.add_offset + (t0 + t) * p.M + m;
#if OUTPUTS == 4
        if (p.aligned != 0) {
            y = y + data_add4[at / 4];
        } else {
            [[dont_unroll]] for (uint i = 0; i < 4 && m + i < p.M; ++i) {
                const vec4 more = y + FLOATS(data_add[at + i]);
                y = mix(y, more, equal(uvec4(i), uvec4(0, 1, 2, 3)));
            }
        }
#else
        y = y + data_add[at];
#endif
    }
    return y;
}

void write_output(const uint m, const uint token, const FLOATS y) {
    if (!is_written(m, token)) {
        return;
    }
    const uint at = p.d_offset + token * p.M + m;
#if OUTPUTS == 4
    if (p.aligned != 0) {
        data_d4[at / 4] = y;
        return;
    }
    [[dont_unroll]] for (uint i = 0; i < 4 && m + i < p.M; ++i) {
        data_d[at + i] = i == 0 ? y[0] : i == 1 ? y[1] : i == 2 ? y[2] : y[3];
    }
#else
    data_d[at] = y;
#endif
}

const uint RANKS  = 8;
const uint TILE_P = OUT_END; // outputs lie side by side there
const uint TILE_Z = TILE_P + RANKS * BM / 4; // and values of k here

// p and z from k0 on to shared memory, zero where there is none.
void store_low_rank(const uint m0, const uint t0, const uint k0) {
    [[unroll]] for (uint j = 0; j < (RANKS * BM + BLOCK_SIZE - 1) / BLOCK_SIZE; ++j) {
        const uint i = j * BLOCK_SIZE + gl_LocalInvocationID.x;
        const uint k = k0 + i / BM;
        const uint m = output_of(m0, i % BM);
        if (RANKS * BM % BLOCK_SIZE == 0 || i < RANKS * BM) {
            precise const float v = k < p.R && m < p.M ? p.scale * data_p[p.p_offset + m * p.nbp0 + k * p.nbp1] : 0.0;
            tile[TILE_P + i / 4][i % 4] = floatBitsToUint(v);
        }
    }
    const uint COUNT = RANKS * BN / LIMBS;
    [[unroll]] for (uint j = 0; j < (COUNT + BLOCK_SIZE - 1) / BLOCK_SIZE; ++j) {
        const uint i = j * BLOCK_SIZE + gl_LocalInvocationID.x;
        const uint k = k0 + i % RANKS;
        const uint t = t0 + i / RANKS;
        if (COUNT % BLOCK_SIZE == 0 || i < COUNT) {
            const float v = k < p.R && t < p.N ? data_z[p.z_offset + t * p.nbz1 + k] : 0.0;
            tile[TILE_Z + i / 4][i % 4] = floatBitsToUint(v);
        }
    }
}

// p of output `m` of the tile (and the next ones), and z of its token `t`, of the values of k that are in shared memory.
FLOATS low_rank_p(const uint m, const uint k) {
#if OUTPUTS == 4
    return uintBitsToFloat(tile[TILE_P + (k * BM + m) / 4]);
#else
    return uintBitsToFloat(tile[TILE_P + (k * BM + m) / 4][m % 4]);
#endif
}

vec4 low_rank_z(const uint t, const uint k) {
    return uintBitsToFloat(tile[TILE_Z + (t * RANKS + k) / 4]);
}

FLOATS add_product(const FLOATS y, const FLOATS a, const float b) {
    precise const FLOATS sum = fma(a, FLOATS(b), y);
    return sum;
}

#if OUTPUTS == 4

// With values of p for these outputs, and the token's of z.
vec4 add_low_rank(const vec4 sum, const vec4 a[RANKS], const uint t) {
    vec4 y = sum;
    [[unroll]] for (uint k4 = 0; k4 < RANKS / 4; ++k4) {
        const vec4 z = low_rank_z(t, 4 * k4);
        [[unroll]] for (uint k = 0; k < 4; ++k) {
            y = add_product(y, a[4 * k4 + k], z[k]);
        }
    }
    return y;
}

vec4 read_output(const uint m, const uint token) {
    if (!is_written(m, token)) {
        return vec4(0.0);
    }
    const uint at = p.d_offset + token * p.M + m;
    if (p.aligned != 0) {
        return data_d4[at / 4];
    }
    const uint last = p.M - 1 - m;
    return vec4(data_d[at], data_d[at + min(1, last)], data_d[at + min(2, last)], data_d[at + min(3, last)]);
}

#endif
