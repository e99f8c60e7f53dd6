#version 450

// A product in exact arithmetic (qvac_exact_product.glsl) with few outputs and a long sum, as LoRA's are. A workgroup makes a tile
// of BM x BN and takes several segments at a time, each with invocations of its own, TM x TN outputs each; then one invocation an
// output adds the segments' sums in their order.

#include "qvac_exact_product.glsl"

layout(constant_id = 5) const uint BM = 16;
layout(constant_id = 6) const uint BN = 8;
layout(constant_id = 7) const uint TM = 2; // TM * TN is at most SEGMENTS
layout(constant_id = 8) const uint TN = 2;
layout(constant_id = 9) const uint SEGMENTS = 4;

// Padded so that neighbouring k and neighbouring segments lie on different banks.
const uint ROW_A = BM + 1;
const uint ROW_B = BN + 1;
const uint PART_A = SEGMENT * ROW_A + 8;
const uint PART_B = SEGMENT * ROW_B + 4;

const uint STEP   = SEGMENTS * SEGMENT;
const uint XM     = BM / TM;
const uint XS     = XM * (BN / TN); // invocations a segment
const uint OUTPUTS = BM * BN;

shared float tile_a[SEGMENTS * PART_A];
shared float tile_b[SEGMENTS * PART_B];
shared float sums[SEGMENTS * OUTPUTS];

void load_tiles(const batch_of batch, const uint m0, const uint t0, const uint k0) {
    for (uint i = gl_LocalInvocationID.x; i < BM * STEP / 4; i += BLOCK_SIZE) {
        const uint m  = A_ALONG_K != 0u ? i / (STEP / 4u) : i % (BM / 4u) * 4u;
        const uint k  = A_ALONG_K != 0u ? i % (STEP / 4u) * 4u : i / (BM / 4u);
        const vec4 v  = load_a(batch.a, m0 + m, k0 + k);
        const uint at = k / SEGMENT * PART_A + k % SEGMENT * ROW_A + m;
        const uint to = A_ALONG_K != 0u ? ROW_A : 1u;
        [[unroll]] for (uint j = 0; j < 4; ++j) {
            tile_a[at + j * to] = v[j];
        }
    }
    for (uint i = gl_LocalInvocationID.x; i < BN * STEP / 4; i += BLOCK_SIZE) {
        const uint t  = B_ALONG_K != 0u ? i / (STEP / 4u) : i % (BN / 4u) * 4u;
        const uint k  = B_ALONG_K != 0u ? i % (STEP / 4u) * 4u : i / (BN / 4u);
        const vec4 v  = load_b(batch.b, t0 + t, k0 + k);
        const uint at = k / SEGMENT * PART_B + k % SEGMENT * ROW_B + t;
        const uint to = B_ALONG_K != 0u ? ROW_B : 1u;
        [[unroll]] for (uint j = 0; j < 4; ++j) {
            tile_b[at + j * to] = v[j];
        }
    }
}

void main() {
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

    const uint segment = gl_LocalInvocationID.x / XS;
    const uint x       = gl_LocalInvocationID.x % XS;
    const uint xm      = x % XM * TM;
    const uint xn      = x / XM * TN;

    // As the one who adds up an output.
    const uint o     = gl_LocalInvocationID.x;
    const uint out_m = m0 + o % BM;
    const uint out_t = t0 + o / BM;
    float total = first_total(batch.d + out_m * p.d_m + out_t * p.d_t, o < OUTPUTS && out_m < p.M && out_t < p.T);

    for (uint k0 = 0; k0 < p.K; k0 += STEP) {
        load_tiles(batch, m0, t0, k0);
        barrier();
        precise float sum[TM * TN];
        [[unroll]] for (uint j = 0; j < TM * TN; ++j) {
            sum[j] = 0.0;
        }
        for (uint k = 0; k < SEGMENT; ++k) {
            float a[TM];
            [[unroll]] for (uint j = 0; j < TM; ++j) {
                a[j] = tile_a[segment * PART_A + k * ROW_A + xm + j];
            }
            [[unroll]] for (uint l = 0; l < TN; ++l) {
                const float b = tile_b[segment * PART_B + k * ROW_B + xn + l];
                [[unroll]] for (uint j = 0; j < TM; ++j) {
                    precise float ab = a[j] * b;
                    precise float s  = sum[l * TM + j] + ab;
                    sum[l * TM + j] = s;
                }
            }
        }
        [[unroll]] for (uint l = 0; l < TN; ++l) {
            [[unroll]] for (uint j = 0; j < TM; ++j) {
                sums[segment * OUTPUTS + (xn + l) * BM + xm + j] = sum[l * TM + j];
            }
        }
        barrier();
        if (o < OUTPUTS) {
            [[unroll]] for (uint s = 0; s < SEGMENTS; ++s) {
                if (k0 + s * SEGMENT < p.K) {
                    total = next_total(total, sums[s * OUTPUTS + o]);
                }
            }
        }
    }
    if (o < OUTPUTS) {
        store_result(batch, out_m, out_t, total);
    }
}
