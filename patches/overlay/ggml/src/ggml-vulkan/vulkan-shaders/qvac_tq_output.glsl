// What becomes of a ternary product's sums: limbs are joined, scaled, and written where the output belongs. The shader that
// includes this has the push constants `p`, the constants LIMBS and MIXED, the buffers data_s, data_add and data_d, and
// qvac_tq_weights.glsl.

// The correctly rounded x/254, as over_254 of ternary.h.
float over_254(const float x) {
    const float r = uintBitsToFloat(0x3b810204u); // 1/254
    precise const float q        = x * r;
    precise const float residual = (x - 256.0 * q) + 2.0 * q;
    precise const float quotient = q + residual * r;
    return quotient;
}

float both_limbs(const float s1, const float s2) {
    precise const float s = s1 + over_254(s2);
    return s;
}

// Output `m` of the tile.
uint output_of(const uint m0, const uint m) {
#if defined(TQ_BACK)
    const uint chunk = m0 / CHUNK + m / CHUNK;
    return chunk / 16 * BLOCK + chunk_begin(chunk % 16) + m % CHUNK;
#else
    return m0 + m;
#endif
}

// `sum` holds the weights' scales already where they are mixed.
void put(const uint m, const uint token, const float sum) {
    if (m >= p.M || token >= p.N) {
        return;
    }
    const float scale = data_s[4 * (p.q_offset + token * p.q_stride + LIMBS * (p.K / 16))];
    precise const float factor = MIXED != 0 ? scale : scale * p.d;
    precise float y = sum * factor;
    if (p.add != 0) {
        y = y + data_add[p.add_offset + token * p.M + m];
    }
    data_d[p.d_offset + token * p.M + m] = y;
}
