#version 450

// A product in exact arithmetic (qvac_exact_product.glsl) of few tokens, a along k. 32 lanes make ROWS outputs of each token: a lane
// takes a segment of each row, one of the rows' next 32; then one invocation an output adds the 32 sums in their order.

#include "qvac_exact_product.glsl"

layout(constant_id = 5) const uint ROWS   = 4;
layout(constant_id = 6) const uint TOKENS = 1;

const uint LANES   = 32;
const uint GROUPS  = BLOCK_SIZE / LANES;
const uint OUTPUTS = GROUPS * ROWS * TOKENS; // at most BLOCK_SIZE

// Output o has the sum of lane l at l + o, so that those who write and those who read are on different banks.
shared float sums[OUTPUTS * LANES];

uint place(const uint o, const uint lane) {
    return o * LANES + ((lane + o) & (LANES - 1u));
}

void main() {
    const uint tiles_m = (p.M + GROUPS * ROWS - 1u) / (GROUPS * ROWS);
    const uint tile    = gl_WorkGroupID.y * gl_NumWorkGroups.x + gl_WorkGroupID.x;
    const uint i       = tile / tiles_m;
    if (i >= p.batches) {
        return;
    }
    const batch_of batch = batch_at(i);
    const uint     m0    = tile % tiles_m * GROUPS * ROWS;
    const uint     lane  = gl_LocalInvocationID.x % LANES;
    const uint     group = gl_LocalInvocationID.x / LANES;

    const uint o     = gl_LocalInvocationID.x;
    const uint out_m = m0 + o / TOKENS;
    const uint out_t = o % TOKENS;
    float total = 0.0;

    for (uint k0 = 0; k0 < p.K; k0 += LANES * SEGMENT) {
        precise float sum[ROWS * TOKENS];
        [[unroll]] for (uint j = 0; j < ROWS * TOKENS; ++j) {
            sum[j] = 0.0;
        }
        const uint k1 = k0 + lane * SEGMENT;
        if (k1 < p.K) {
            for (uint four = 0; four < SEGMENT / 4; ++four) {
                const uint k = k1 + four * 4u;
                vec4 a[ROWS];
                [[unroll]] for (uint r = 0; r < ROWS; ++r) {
                    a[r] = load_a(batch.a, m0 + group * ROWS + r, k);
                }
                [[unroll]] for (uint t = 0; t < TOKENS; ++t) {
                    const vec4 b = load_b(batch.b, t, k);
                    [[unroll]] for (uint r = 0; r < ROWS; ++r) {
                        [[unroll]] for (uint j = 0; j < 4; ++j) {
                            precise float ab = a[r][j] * b[j];
                            precise float s  = sum[r * TOKENS + t] + ab;
                            sum[r * TOKENS + t] = s;
                        }
                    }
                }
            }
        }
        barrier();
        [[unroll]] for (uint j = 0; j < ROWS * TOKENS; ++j) {
            sums[place(group * ROWS * TOKENS + j, lane)] = sum[j];
        }
        barrier();
        if (o < OUTPUTS) {
            const uint segments = min(LANES, (p.K - k0 + SEGMENT - 1u) / SEGMENT);
            for (uint s = 0; s < segments; ++s) {
                total = next_total(total, sums[place(o, s)]);
            }
        }
    }
    if (o < OUTPUTS) {
        store_result(batch, out_m, out_t, total);
    }
}
