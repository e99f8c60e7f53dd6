#version 450

// The gradient of a narrow matrix, added in place (ggml_low_rank_grad): grad[n, k] += scale * sum_t v[n, t] * z[k, t].
//
// A workgroup makes NN x KK values and shares the tokens out among GROUPS groups of NN invocations, so that a matrix of
// 2048 x 8 keeps more than a hundred workgroups busy without a second pass. Tokens come TC at a time, z through shared
// memory; the groups' sums meet there in their order.

#extension GL_EXT_control_flow_attributes : enable

const uint BLOCK_SIZE = 256;
layout(local_size_x = 256, local_size_y = 1, local_size_z = 1) in;

// Offsets and strides in elements.
layout(push_constant) uniform parameter {
    uint  N; uint R; uint T;
    uint  nbg0; uint nbg1;
    uint  nbv1; uint nbz1;
    uint  g_offset; uint v_offset; uint z_offset;
    float scale;
} p;

layout(binding = 0) buffer Grad { float data_g[]; };
layout(binding = 1) readonly buffer V { float data_v[]; };
layout(binding = 2) readonly buffer Z { float data_z[]; };

const uint NN     = 16;
const uint KK     = 8;
const uint GROUPS = BLOCK_SIZE / NN;
const uint TC     = 256;
const uint EACH   = TC / GROUPS;

// The sums of KK/2 values of k at a time, to stay within 16 KiB; one word of padding keeps the rows on different banks.
const uint KH     = KK / 2;
const uint STRIDE = BLOCK_SIZE + 1;

shared vec4  z4[TC * KK / 4];
shared float part[KH * STRIDE];

// Zero beyond the last token: what is read of v there then counts for nothing.
vec4 load_z(const uint k, const uint t) {
    vec4 r = vec4(0.0);
    if (t < p.T) {
        [[unroll]] for (uint i = 0; i < 4; ++i) {
            if (k + i < p.R) {
                r[i] = data_z[p.z_offset + t * p.nbz1 + k + i];
            }
        }
    }
    return r;
}

void main() {
    const uint tid   = gl_LocalInvocationID.x;
    const uint k0    = gl_WorkGroupID.x * KK;
    const uint n0    = gl_WorkGroupID.y * NN;
    const uint n     = min(n0 + tid % NN, p.N - 1);
    const uint group = tid / NN;

    float acc[KK];
    [[unroll]] for (uint k = 0; k < KK; ++k) {
        acc[k] = 0.0;
    }
    for (uint t0 = 0; t0 < p.T; t0 += TC) {
        float v[EACH];
        [[unroll]] for (uint i = 0; i < EACH; ++i) {
            v[i] = data_v[p.v_offset + min(t0 + i * GROUPS + group, p.T - 1) * p.nbv1 + n];
        }
        barrier();
        [[unroll]] for (uint i = tid; i < TC * KK / 4; i += BLOCK_SIZE) {
            z4[i] = load_z(k0 + 4 * (i % (KK / 4)), t0 + i / (KK / 4));
        }
        barrier();
        [[unroll]] for (uint i = 0; i < EACH; ++i) {
            const uint at = (i * GROUPS + group) * (KK / 4);
            [[unroll]] for (uint j = 0; j < KK / 4; ++j) {
                const vec4 z = z4[at + j];
                acc[4 * j + 0] += v[i] * z.x;
                acc[4 * j + 1] += v[i] * z.y;
                acc[4 * j + 2] += v[i] * z.z;
                acc[4 * j + 3] += v[i] * z.w;
            }
        }
    }

    // Neighbouring invocations write neighbouring words whichever way grad lies.
    const bool along_k = p.nbg1 < p.nbg0;
    const uint n_out   = along_k ? tid / KH : tid % NN;
    const uint k_out   = along_k ? tid % KH : tid / NN;
    [[unroll]] for (uint k = 0; k < KK; k += KH) {
        barrier();
        [[unroll]] for (uint i = 0; i < KH; ++i) {
            part[i * STRIDE + tid] = acc[k + i];
        }
        barrier();
        if (tid < NN * KH && n0 + n_out < p.N && k0 + k + k_out < p.R) {
            float sum = 0.0;
            [[unroll]] for (uint g = 0; g < GROUPS; ++g) {
                sum += part[k_out * STRIDE + g * NN + n_out];
            }
            data_g[p.g_offset + (n0 + n_out) * p.nbg0 + (k0 + k + k_out) * p.nbg1] += p.scale * sum;
        }
    }
}
