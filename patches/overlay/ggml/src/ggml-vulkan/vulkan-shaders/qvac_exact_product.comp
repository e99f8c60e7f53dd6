#version 450

// A product in exact arithmetic (qvac_exact_product.glsl) with many outputs. A workgroup makes a tile of BM x BN, an invocation
// TM x TN of it: fours along m that lie BM / TM * 4 apart, and so along t. Both operands come to shared memory as floats, half a
// segment at a time.

#include "qvac_exact_product.glsl"

layout(constant_id = 5) const uint BM = 64;
layout(constant_id = 6) const uint BN = 64;
layout(constant_id = 7) const uint TM = 4; // multiples of four
layout(constant_id = 8) const uint TN = 4;

const uint BK    = SEGMENT / 2;
const uint ROW_A = BM / 4 + 1; // in fours
const uint ROW_B = BN / 4 + 1;
const uint XM    = BM / TM;    // invocations along m
const uint XN    = BN / TN;

shared vec4 tile_a[BK * ROW_A];
shared vec4 tile_b[BK * ROW_B];

// An invocation reads four fours side by side, and turns them where they lie along k.
void load_tiles(const batch_of batch, const uint m0, const uint t0, const uint k0) {
    for (uint i = gl_LocalInvocationID.x; i < (BM + BN) / 4u * (BK / 4u); i += BLOCK_SIZE) {
        if (i < BM / 4u * (BK / 4u)) {
            const bool along_k = A_ALONG_K != 0u;
            const uint m = along_k ? i / (BK / 4u) : i % (BM / 4u);
            const uint k = along_k ? i % (BK / 4u) : i / (BM / 4u);
            mat4 v;
            [[unroll]] for (uint j = 0; j < 4; ++j) {
                v[j] = along_k ? load_a(batch.a, m0 + m * 4u + j, k0 + k * 4u) : load_a(batch.a, m0 + m * 4u, k0 + k * 4u + j);
            }
            if (along_k) {
                v = transpose(v);
            }
            [[unroll]] for (uint j = 0; j < 4; ++j) {
                tile_a[(k * 4u + j) * ROW_A + m] = v[j];
            }
        } else {
            const uint ib = i - BM / 4u * (BK / 4u);
            const bool along_k = B_ALONG_K != 0u;
            const uint t = along_k ? ib / (BK / 4u) : ib % (BN / 4u);
            const uint k = along_k ? ib % (BK / 4u) : ib / (BN / 4u);
            mat4 v;
            [[unroll]] for (uint j = 0; j < 4; ++j) {
                v[j] = along_k ? load_b(batch.b, t0 + t * 4u + j, k0 + k * 4u) : load_b(batch.b, t0 + t * 4u, k0 + k * 4u + j);
            }
            if (along_k) {
                v = transpose(v);
            }
            [[unroll]] for (uint j = 0; j < 4; ++j) {
                tile_b[(k * 4u + j) * ROW_B + t] = v[j];
            }
        }
    }
}

void main() {
    // Tiles along t are neighbours, so that those at work at the same time share their weights.
    const uint tiles_t = (p.T + BN - 1u) / BN;
    const uint tiles_m = (p.M + BM - 1u) / BM;
    const uint tile    = gl_WorkGroupID.y * gl_NumWorkGroups.x + gl_WorkGroupID.x;
    const uint i       = tile / tiles_t / tiles_m;
    if (i >= p.batches) {
        return;
    }
    const uint     t0    = tile % tiles_t * BN;
    const uint     m0    = tile / tiles_t % tiles_m * BM;
    const batch_of batch = batch_at(i);

    const uint xm = gl_LocalInvocationID.x % XM;
    const uint xn = gl_LocalInvocationID.x / XM;

    precise float total[TM * TN];
    precise float sum[TM * TN];
    [[unroll]] for (uint j = 0; j < TN; ++j) {
        [[unroll]] for (uint i = 0; i < TM; ++i) {
            const uint m = m0 + (xm + i / 4u * XM) * 4u + i % 4u;
            const uint t = t0 + (xn + j / 4u * XN) * 4u + j % 4u;
            total[j * TM + i] = first_total(batch.d + m * p.d_m + t * p.d_t, m < p.M && t < p.T);
        }
    }

    for (uint k0 = 0; k0 < p.K; k0 += SEGMENT) {
        [[unroll]] for (uint i = 0; i < TM * TN; ++i) {
            sum[i] = 0.0;
        }
        for (uint half_of = 0; half_of < SEGMENT && k0 + half_of < p.K; half_of += BK) {
            barrier();
            load_tiles(batch, m0, t0, k0 + half_of);
            barrier();
            for (uint k = 0; k < BK; ++k) {
                vec4 a[TM / 4];
                vec4 b[TN / 4];
                [[unroll]] for (uint i = 0; i < TM / 4; ++i) {
                    a[i] = tile_a[k * ROW_A + xm + i * XM];
                }
                [[unroll]] for (uint j = 0; j < TN / 4; ++j) {
                    b[j] = tile_b[k * ROW_B + xn + j * XN];
                }
                [[unroll]] for (uint j = 0; j < TN; ++j) {
                    [[unroll]] for (uint i = 0; i < TM; ++i) {
                        precise float ab = a[i / 4][i % 4] * b[j / 4][j % 4];
                        precise float s  = sum[j * TM + i] + ab;
                        sum[j * TM + i] = s;
                    }
                }
            }
        }
        [[unroll]] for (uint i = 0; i < TM * TN; ++i) {
            total[i] = next_total(total[i], sum[i]);
        }
    }

    [[unroll]] for (uint j = 0; j < TN; ++j) {
        const uint t = t0 + (xn + j / 4u * XN) * 4u + j % 4u;
        [[unroll]] for (uint i = 0; i < TM; i += 4) {
            const uint m = m0 + (xm + i / 4u * XM) * 4u;
            if (FOURS != 0u) {
                if (m >= p.M || t >= p.T) {
                    continue;
                }
                const uint at  = (batch.d + m + t * p.d_t) >> 2;
                const vec4 old = MODE >= UPDATE ? data_d4[at] : vec4(0.0);
                const vec4 add = MODE == UPDATE_ADD ? data_add4[(p.add_offset + m + t * p.d_t) >> 2] : vec4(0.0);
                data_d4[at] = vec4(result_of(total[j * TM + i], old.x, add.x), result_of(total[j * TM + i + 1], old.y, add.y),
                                   result_of(total[j * TM + i + 2], old.z, add.z), result_of(total[j * TM + i + 3], old.w, add.w));
            } else {
                [[unroll]] for (uint l = 0; l < 4; ++l) {
                    store_result(batch, m + l, t, total[j * TM + i + l]);
                }
            }
        }
    }
}
