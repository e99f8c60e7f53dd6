// The sums of qvac_tq_mul_mat.comp without cooperative matrices: each invocation has TM x TN of the tile's, BM/TM (BN/TN)
// apart, so that neighbours read neighbouring rows and write neighbouring outputs. BN/TN divides LIMB_RUN.

int acc[TM * TN];
float sums[TM * TN]; // where W's blocks differ in scale

const uint LANES_M = BM / TM;
const uint LANES_N = BN / TN;

#if defined(TQ_BACK)
// The scales of the step's rows, where they differ.
shared float row_scales[MIXED != 0 ? BK : 1];
#endif

uint lane_m() {
    return gl_LocalInvocationID.x % LANES_M;
}

uint lane_n() {
    return gl_LocalInvocationID.x / LANES_M;
}

void clear_sums() {
    [[unroll]] for (uint i = 0; i < TM * TN; ++i) {
        acc[i]  = 0;
        sums[i] = 0.0;
    }
}

uvec4 row_a(const uint step, const uint i, const uint k16) {
    return tile[tile_of(step) + (lane_m() + i * LANES_M) * ROW + k16];
}

uvec4 row_b(const uint step, const uint j, const uint k16) {
    return tile[tile_of(step) + TILE_B + (lane_n() + j * LANES_N) * ROW + k16];
}

ivec4 bytes_of(const uint v) {
    const int i = int(v);
    return ivec4(bitfieldExtract(i, 0, 8), bitfieldExtract(i, 8, 8), bitfieldExtract(i, 16, 8), i >> 24);
}

void multiply_integers(const uint step) {
    for (uint k = 0; k < BK / 16; ++k) {
        uvec4 a[TM];
        [[unroll]] for (uint i = 0; i < TM; ++i) {
            a[i] = row_a(step, i, k);
        }
#if defined(TQ_DOT)
        [[unroll]] for (uint j = 0; j < TN; ++j) {
            const uvec4 b = row_b(step, j, k);
            [[unroll]] for (uint c = 0; c < 4; ++c) {
                [[unroll]] for (uint i = 0; i < TM; ++i) {
                    acc[j * TM + i] += dotPacked4x8EXT(int(a[i][c]), int(b[c]));
                }
            }
        }
#else
        uvec4 b[TN];
        [[unroll]] for (uint j = 0; j < TN; ++j) {
            b[j] = row_b(step, j, k);
        }
        [[unroll]] for (uint c = 0; c < 4; ++c) {
            ivec4 t[TM];
            [[unroll]] for (uint i = 0; i < TM; ++i) {
                t[i] = bytes_of(a[i][c]);
            }
            [[unroll]] for (uint j = 0; j < TN; ++j) {
                const ivec4 q = bytes_of(b[j][c]);
                [[unroll]] for (uint i = 0; i < TM; ++i) {
                    acc[j * TM + i] += t[i].x * q.x + t[i].y * q.y + t[i].z * q.z + t[i].w * q.w;
                }
            }
        }
#endif
    }
}

#if defined(TQ_UNPACKED)

void multiply(const uint m0, const uint step) {
    multiply_integers(step);
}

#elif defined(TQ_BACK)

// Where scales differ down a column, a sum of integers has no meaning: floats, in the order of k.
void multiply_mixed(const uint m0, const uint step) {
    barrier(); // with two stages the step before may not be over
    for (uint k = gl_LocalInvocationID.x; k < BK; k += BLOCK_SIZE) {
        row_scales[k] = scale_of(p.w_offset + (step * BK + k) * p.w_stride + m0 / BLOCK);
    }
    barrier();
    for (uint k = 0; k < BK / 16; ++k) {
        for (uint c = 0; c < 4; ++c) {
            const uint k4 = 16 * k + 4 * c;
            const vec4 d  = vec4(row_scales[k4], row_scales[k4 + 1], row_scales[k4 + 2], row_scales[k4 + 3]);
            vec4 w[TM];
            [[unroll]] for (uint i = 0; i < TM; ++i) {
                w[i] = vec4(bytes_of(row_a(step, i, k)[c])) * d;
            }
            [[unroll]] for (uint j = 0; j < TN; ++j) {
                const vec4 q = vec4(bytes_of(row_b(step, j, k)[c]));
                [[unroll]] for (uint i = 0; i < TM; ++i) {
                    sums[j * TM + i] += dot(w[i], q);
                }
            }
        }
    }
}

void multiply(const uint m0, const uint step) {
    if (MIXED != 0) {
        multiply_mixed(m0, step);
    } else {
        multiply_integers(step);
    }
}

#else

// At the end of a block its integers become floats.
void multiply(const uint m0, const uint step) {
    multiply_integers(step);
    if (MIXED == 0 || (step + 1) * BK % BLOCK != 0) {
        return;
    }
    [[unroll]] for (uint i = 0; i < TM; ++i) {
        const uint  row = min(m0 + lane_m() + i * LANES_M, p.M - 1);
        const float d   = scale_of(p.w_offset + row * p.w_stride + step * BK / BLOCK);
        [[unroll]] for (uint j = 0; j < TN; ++j) {
            precise const float product = float(acc[j * TM + i]) * d;
            precise const float sum     = sums[j * TM + i] + product;
            sums[j * TM + i] = sum;
            acc[j * TM + i]  = 0;
        }
    }
}

#endif

float sum_of(const uint at) {
    return MIXED != 0 ? sums[at] : float(acc[at]);
}

const uint OUT_N = TN / LIMBS;          // an invocation's tokens
const uint RUN   = LIMB_RUN / LANES_N;  // its columns of one limb, before those of the other

// The first limb's column of token `j`.
uint column_of(const uint j) {
    return LIMBS == 1 ? j : j / RUN * 2 * RUN + j % RUN;
}

// Every loop counts in ones and skips nothing: only then does every driver unroll it, and sums stay in registers.
void put_sums(const uint m0, const uint t0) {
    float y[TM * OUT_N];
    [[unroll]] for (uint j = 0; j < OUT_N; ++j) {
        const uint column = column_of(j);
        const uint t      = token_of(lane_n() + column * LANES_N);
        [[unroll]] for (uint i = 0; i < TM; ++i) {
            float s = sum_of(column * TM + i);
            if (LIMBS == 2) {
                s = both_limbs(s, sum_of((column + RUN) * TM + i));
            }
            y[j * TM + i] = output_value(output_of(m0, lane_m() + i * LANES_M), t0, t, s);
        }
    }
    if (LOW_RANK != 0) {
        for (uint k0 = 0; k0 < p.R; k0 += RANKS) {
            barrier();
            store_low_rank(m0, t0, k0);
            barrier();
            [[unroll]] for (uint k4 = 0; k4 < RANKS / 4; ++k4) {
                vec4 z[OUT_N];
                [[unroll]] for (uint j = 0; j < OUT_N; ++j) {
                    z[j] = low_rank_z(token_of(lane_n() + column_of(j) * LANES_N), 4 * k4);
                }
                [[unroll]] for (uint k = 0; k < 4; ++k) {
                    [[unroll]] for (uint i = 0; i < TM; ++i) {
                        const float a = low_rank_p(lane_m() + i * LANES_M, 4 * k4 + k);
                        [[unroll]] for (uint j = 0; j < OUT_N; ++j) {
                            y[j * TM + i] = add_product(y[j * TM + i], a, z[j][k]);
                        }
                    }
                }
            }
        }
    }
    [[unroll]] for (uint j = 0; j < OUT_N; ++j) {
        const uint token = t0 + token_of(lane_n() + column_of(j) * LANES_N);
        [[unroll]] for (uint i = 0; i < TM; ++i) {
            write_output(output_of(m0, lane_m() + i * LANES_M), token, y[j * TM + i]);
        }
    }
}
