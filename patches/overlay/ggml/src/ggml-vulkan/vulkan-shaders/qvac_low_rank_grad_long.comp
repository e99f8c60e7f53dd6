#version 450

// qvac_low_rank_grad.comp for many tokens: each workgroup sums v[n, t] * z[k, t] over a share of the tokens, for 128 n and
// RR k, and qvac_low_rank_grad_sum.comp adds the shares up in their order.
//
// v comes from memory, so it is read once, four values at a time, and EACH tokens ahead of their use. An invocation makes
// four neighbouring n of all RR k from one token of four; the four sums meet in shared memory.
//
// RR is 8, 16 or 24, of the preprocessor: arrays that it sizes have to end up in registers.

#extension GL_EXT_control_flow_attributes : enable

const uint BLOCK_SIZE = 128;
layout(local_size_x = 128, local_size_y = 1, local_size_z = 1) in;

// Offsets and strides in elements: N, nbv1 and v_offset are multiples of 4, share of CHUNK.
layout(push_constant) uniform parameter {
    uint N; uint R; uint T;
    uint share;
    uint nbv1; uint nbz1;
    uint v_offset; uint z_offset;
} p;

layout(binding = 0) writeonly buffer Parts4 { vec4 data_parts4[]; }; // [n, r, shares]
layout(binding = 1) readonly buffer V4 { vec4 data_v4[]; };
layout(binding = 2) readonly buffer Z { float data_z[]; };

const uint LANES  = 32;
const uint GROUPS = BLOCK_SIZE / LANES;
const uint KQ     = RR / 4;
#if RR == 24
const uint EACH = 4; // with so many sums there is no room for more
#else
const uint EACH = 8;
#endif
const uint CHUNK = GROUPS * EACH; // tokens: at most one load of z for each invocation

const uint KH = 8; // values of k whose sums meet at a time
shared vec4 s4[GROUPS * KH * LANES]; // holds two chunks of z as well, 2 * CHUNK * KQ

// Zero beyond the last token: what is read of v there then counts for nothing.
vec4 load_z(const uint tid, const uint k0, const uint t0) {
    const uint k = k0 + 4 * (tid % KQ);
    const uint t = t0 + tid / KQ;
    vec4 r = vec4(0.0);
    if (tid < CHUNK * KQ && t < p.T) {
        [[unroll]] for (uint i = 0; i < 4; ++i) {
            if (k + i < p.R) {
                r[i] = data_z[p.z_offset + t * p.nbz1 + k + i];
            }
        }
    }
    return r;
}

vec4 load_v(const uint n, const uint t) {
    return data_v4[(p.v_offset + min(t, p.T - 1) * p.nbv1 + n) / 4];
}

void main() {
    const uint tid   = gl_LocalInvocationID.x;
    const uint lane  = tid % LANES;
    const uint group = tid / LANES;
    const uint n0    = gl_WorkGroupID.x * (4 * LANES);
    const uint n     = min(n0 + 4 * lane, p.N - 4); // spare invocations read what is there, and do not write
    const uint k0    = gl_WorkGroupID.z * RR;
    const uint first = gl_WorkGroupID.y * p.share;
    const uint last  = min(first + p.share, p.T);

    vec4 acc[RR];
    [[unroll]] for (uint k = 0; k < RR; ++k) {
        acc[k] = vec4(0.0);
    }
    vec4 next_z = load_z(tid, k0, first);
    vec4 next_v[EACH];
    [[unroll]] for (uint i = 0; i < EACH; ++i) {
        next_v[i] = load_v(n, first + i * GROUPS + group);
    }

    uint base = 0;
    for (uint t0 = first; t0 < last; t0 += CHUNK) {
        // The other half is what slower invocations still read; nobody is further behind than that, for the barrier.
        if (tid < CHUNK * KQ) {
            s4[base + tid] = next_z;
        }
        vec4 v[EACH];
        [[unroll]] for (uint i = 0; i < EACH; ++i) {
            v[i] = next_v[i];
        }
        barrier();
        if (t0 + CHUNK < last) {
            next_z = load_z(tid, k0, t0 + CHUNK);
            [[unroll]] for (uint i = 0; i < EACH; ++i) {
                next_v[i] = load_v(n, t0 + CHUNK + i * GROUPS + group);
            }
        }
        [[unroll]] for (uint i = 0; i < EACH; ++i) {
            [[unroll]] for (uint j = 0; j < KQ; ++j) {
                const vec4 z = s4[base + (i * GROUPS + group) * KQ + j];
                acc[4 * j + 0] += v[i] * z.x;
                acc[4 * j + 1] += v[i] * z.y;
                acc[4 * j + 2] += v[i] * z.z;
                acc[4 * j + 3] += v[i] * z.w;
            }
        }
        base = CHUNK * KQ - base;
    }

    [[unroll]] for (uint h = 0; h < RR / KH; ++h) {
        barrier();
        [[unroll]] for (uint k = 0; k < KH; ++k) {
            s4[(group * KH + k) * LANES + lane] = acc[KH * h + k];
        }
        barrier();
        [[unroll]] for (uint i = 0; i < KH / GROUPS; ++i) {
            const uint k = i * GROUPS + group;
            vec4 sum = vec4(0.0);
            [[unroll]] for (uint g = 0; g < GROUPS; ++g) {
                sum += s4[(g * KH + k) * LANES + lane];
            }
            if (n0 + 4 * lane < p.N && k0 + KH * h + k < p.R) {
                data_parts4[((gl_WorkGroupID.y * p.R + k0 + KH * h + k) * p.N + n) / 4] = sum;
            }
        }
    }
}
