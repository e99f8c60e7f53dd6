#version 450

// qvac_low_rank_project.comp where p is contiguous along k, as a transposed B: z[k, t] = scale * sum_n p[n, k] * v[n, t], for
// up to three such products of as many tokens, whose results are rows of one matrix.
//
// A workgroup makes up to KK products of TT tokens of one of them. An invocation has four neighbouring k and every LANES'th
// n, so that neighbours read neighbouring words of p; UNROLL of them are asked for at once. The sums meet in shared memory
// in one fixed order.

#extension GL_EXT_control_flow_attributes : enable

layout(constant_id = 0) const uint BLOCK_SIZE = 256;
layout(constant_id = 1) const bool ALIGNED = true; // R is a multiple of 4, rows of p begin at 16 bytes

layout(local_size_x_id = 0, local_size_y = 1, local_size_z = 1) in;

// Offsets and strides in elements.
struct product {
    uint  N; uint R;
    uint  nbp0; uint nbv1;
    uint  p_offset; uint v_offset; uint z_offset;
    float scale;
};
layout(push_constant) uniform parameter {
    uint T;
    uint nbz1;
    product products[3];
} p;

layout(binding = 0) readonly buffer P { float data_p[]; };
layout(binding = 0) readonly buffer P4 { vec4 data_p4[]; };
layout(binding = 1) readonly buffer V { float data_v[]; };
layout(binding = 2) writeonly buffer Z { float data_z[]; };

const uint KK     = 32;
const uint TT     = 4;
const uint UNROLL = 8;

shared vec4 part[TT * BLOCK_SIZE];

// Zero beyond the last n and k.
vec4 load_p(const product a, const uint n, const uint k) {
    const uint at = a.p_offset + n * a.nbp0 + k;
    vec4 r = vec4(0.0);
    if (n >= a.N) {
        return r;
    }
    if (ALIGNED) {
        return data_p4[at / 4];
    }
    [[unroll]] for (uint i = 0; i < 4; ++i) {
        if (k + i < a.R) {
            r[i] = data_p[at + i];
        }
    }
    return r;
}

void main() {
    const product a = p.products[gl_WorkGroupID.z];
    const uint tid  = gl_LocalInvocationID.x;
    const uint t0   = gl_WorkGroupID.x * TT;
    const uint k0   = gl_WorkGroupID.y * KK;
    if (k0 >= a.R) {
        return;
    }
    const uint fours = (min(KK, a.R - k0) + 3) / 4;
    const uint lanes = BLOCK_SIZE / fours;

    vec4 acc[TT];
    uint v_at[TT]; // tokens beyond the last are read as the last, and not written
    [[unroll]] for (uint t = 0; t < TT; ++t) {
        acc[t]  = vec4(0.0);
        v_at[t] = a.v_offset + min(t0 + t, p.T - 1) * a.nbv1;
    }
    if (tid < lanes * fours) {
        const uint k = k0 + 4 * (tid % fours);
        for (uint n = tid / fours; n < a.N; n += UNROLL * lanes) {
            vec4  w[UNROLL];
            float v[UNROLL * TT];
            [[unroll]] for (uint u = 0; u < UNROLL; ++u) {
                w[u] = load_p(a, n + u * lanes, k);
                [[unroll]] for (uint t = 0; t < TT; ++t) {
                    v[u * TT + t] = data_v[v_at[t] + min(n + u * lanes, a.N - 1)];
                }
            }
            [[unroll]] for (uint u = 0; u < UNROLL; ++u) {
                [[unroll]] for (uint t = 0; t < TT; ++t) {
                    acc[t] += v[u * TT + t] * w[u];
                }
            }
        }
    }

    // Of each token and four k there are `lanes` sums: first to `splits`, then to one.
    const uint splits = BLOCK_SIZE / (TT * fours);
    [[unroll]] for (uint t = 0; t < TT; ++t) {
        part[t * BLOCK_SIZE + tid] = acc[t];
    }
    barrier();
    const uint at = tid / (fours * splits) * BLOCK_SIZE + tid % fours;
    vec4 sums = vec4(0.0);
    if (tid < TT * fours * splits) {
        for (uint lane = tid / fours % splits; lane < lanes; lane += splits) {
            sums += part[at + lane * fours];
        }
    }
    barrier();
    part[tid] = sums;
    barrier();
    if (tid < TT * 4 * fours) {
        const uint k = tid % (4 * fours);
        const uint t = tid / (4 * fours);
        float sum = 0.0;
        for (uint i = 0; i < splits; ++i) {
            sum += part[(t * splits + i) * fours + k / 4][k % 4];
        }
        if (k0 + k < a.R && t0 + t < p.T) {
            data_z[a.z_offset + (t0 + t) * p.nbz1 + k0 + k] = a.scale * sum;
        }
    }
}
