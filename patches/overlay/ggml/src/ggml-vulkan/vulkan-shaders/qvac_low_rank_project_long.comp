#version 450

// qvac_low_rank_project.comp for many tokens: z[k, t] = scale * sum_n p[n, k] * v[n, t], all of RR k in one workgroup.
//
// v comes from memory, so it is read once, four values at a time, and a chunk of n ahead of its use. A group of LANES
// invocations takes TT tokens, each lane four neighbouring n of a chunk; the groups share p, which comes through shared
// memory, two chunks of it there in turn. The lanes' sums meet in shared memory in one fixed order.
//
// RR is 8, 16 or 24, of the preprocessor: arrays that it sizes have to end up in registers.

#extension GL_EXT_control_flow_attributes : enable

#if RR == 8
#define NT 256
#else
#define NT 128 // more sums each, so fewer invocations fit a core
#endif
layout(local_size_x = NT, local_size_y = 1, local_size_z = 1) in;

// Offsets and strides in elements: n and all of these but z_offset are multiples of 4, nbp0 is 1.
layout(push_constant) uniform parameter {
    uint  N; uint R; uint T;
    uint  nbp0; uint nbp1;
    uint  nbv1;
    uint  p_offset; uint v_offset; uint z_offset;
    float scale;
} p;

layout(binding = 0) readonly buffer P4 { vec4 data_p4[]; };
layout(binding = 1) readonly buffer V4 { vec4 data_v4[]; };
layout(binding = 2) writeonly buffer Z { float data_z[]; };

const uint TT     = 4;
const uint GROUPS = 4;
const uint LANES  = NT / GROUPS;
const uint CHUNK  = 4 * LANES; // NT
const uint KQ     = RR / 4;

// RR rows of one vec4 a lane: row k holds p[n .. n + 3, k]. Padding keeps the sums of the end on different banks.
const uint ROW    = LANES + 2;
const uint BUFFER = RR * ROW;

shared vec4 s4[2 * BUFFER];

uint stage_row(const uint tid, const uint j) {
    return 4 * j + tid / LANES;
}

// Zero beyond the last n; what lies beyond the last k is read as the last, and not written.
vec4 load_p(const uint tid, const uint n0, const uint k0, const uint j) {
    const uint n = n0 + 4 * (tid % LANES);
    return n < p.N ? data_p4[(p.p_offset + n + min(k0 + stage_row(tid, j), p.R - 1) * p.nbp1) / 4] : vec4(0.0);
}

// Beyond the last n what stands before it, against which p is zero.
vec4 load_v(const uint n, const uint t) {
    return data_v4[(p.v_offset + min(t, p.T - 1) * p.nbv1 + min(n, p.N - 4)) / 4];
}

// Writes tokens `t_first` and the next one of each group, whose sums are `two`: OUT sums of four k over LANES lanes, first
// to PARTS sums each, then to one.
void finish(const uint tid, const uint k0, const uint t_first, const vec4 two[2 * KQ]) {
    const uint OUT    = 2 * KQ * GROUPS;
    const uint PARTS  = NT / OUT;
    const uint out_of = tid / PARTS;
    const uint part   = tid % PARTS;
    barrier();
    [[unroll]] for (uint i = 0; i < 2 * KQ; ++i) {
        s4[(i * GROUPS + tid / LANES) * ROW + tid % LANES] = two[i];
    }
    barrier();
    vec4 s = vec4(0.0);
    if (out_of < OUT) {
        [[unroll]] for (uint i = 0; i < LANES / PARTS; ++i) {
            s += s4[out_of * ROW + i * PARTS + part];
        }
    }
    barrier();
    if (out_of < OUT) {
        s4[out_of * ROW + part] = s;
    }
    barrier();
    if (tid < OUT) {
        s = vec4(0.0);
        [[unroll]] for (uint i = 0; i < PARTS; ++i) {
            s += s4[tid * ROW + i];
        }
        s *= p.scale;
        const uint k = k0 + 4 * (tid / GROUPS % KQ);
        const uint t = (gl_WorkGroupID.y * GROUPS + tid % GROUPS) * TT + t_first + tid / (GROUPS * KQ);
        if (t < p.T) {
            [[unroll]] for (uint i = 0; i < 4; ++i) {
                if (k + i < p.R) {
                    data_z[p.z_offset + t * p.R + k + i] = s[i];
                }
            }
        }
    }
}

void main() {
    const uint tid   = gl_LocalInvocationID.x;
    const uint lane  = tid % LANES;
    const uint group = tid / LANES;
    const uint k0    = gl_WorkGroupID.x * RR;
    const uint t0    = gl_WorkGroupID.y * (GROUPS * TT) + group * TT;

    vec4 acc[TT * KQ];
    [[unroll]] for (uint i = 0; i < TT * KQ; ++i) {
        acc[i] = vec4(0.0);
    }

    vec4 next_p[KQ];
    vec4 next_v[TT];
    [[unroll]] for (uint j = 0; j < KQ; ++j) {
        next_p[j] = load_p(tid, 0, k0, j);
    }
    [[unroll]] for (uint t = 0; t < TT; ++t) {
        next_v[t] = load_v(4 * lane, t0 + t);
    }

    uint base = 0;
    for (uint n0 = 0; n0 < p.N; n0 += CHUNK) {
        // The other half is what slower invocations still read; nobody is further behind than that, for the barrier.
        vec4 v[TT];
        [[unroll]] for (uint j = 0; j < KQ; ++j) {
            s4[base + stage_row(tid, j) * ROW + lane] = next_p[j];
        }
        [[unroll]] for (uint t = 0; t < TT; ++t) {
            v[t] = next_v[t];
        }
        barrier();
        if (n0 + CHUNK < p.N) {
            [[unroll]] for (uint t = 0; t < TT; ++t) {
                next_v[t] = load_v(n0 + CHUNK + 4 * lane, t0 + t);
            }
            [[unroll]] for (uint j = 0; j < KQ; ++j) {
                next_p[j] = load_p(tid, n0 + CHUNK, k0, j);
            }
        }
        [[unroll]] for (uint j = 0; j < KQ; ++j) {
            const uint at = base + 4 * j * ROW + lane;
            const mat4 w = transpose(mat4(s4[at], s4[at + ROW], s4[at + 2 * ROW], s4[at + 3 * ROW])); // one n each
            [[unroll]] for (uint t = 0; t < TT; ++t) {
                acc[t * KQ + j] += v[t].x * w[0];
                acc[t * KQ + j] += v[t].y * w[1];
                acc[t * KQ + j] += v[t].z * w[2];
                acc[t * KQ + j] += v[t].w * w[3];
            }
        }
        base = BUFFER - base;
    }

    // Not a loop: spirv-opt leaves this one as it is, and `acc` would be indexed by its count.
    vec4 two[2 * KQ];
    [[unroll]] for (uint i = 0; i < 2 * KQ; ++i) {
        two[i] = acc[i];
    }
    finish(tid, k0, 0, two);
    [[unroll]] for (uint i = 0; i < 2 * KQ; ++i) {
        two[i] = acc[2 * KQ + i];
    }
    finish(tid, k0, 2, two);
}
