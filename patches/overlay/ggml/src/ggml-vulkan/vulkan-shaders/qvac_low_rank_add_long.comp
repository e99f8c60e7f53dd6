#version 450

// qvac_low_rank_add.comp for many tokens: y[n, t] += scale * sum_k p[n, k] * z[k, t] + add[n, t].
//
// y and add come from memory, so an invocation takes four neighbouring n of TT tokens and asks for all of them at once,
// after p and z, for which nobody then waits a second time. z comes through shared memory, p straight from its cache, four k
// ahead of their use. TT is plain, not a specialization constant: what it sizes has to end up in registers.

#extension GL_EXT_control_flow_attributes : enable

layout(constant_id = 0) const bool P_ALONG_K = false; // p is contiguous along k, as a transposed B; otherwise along n

const uint BLOCK_SIZE = 128;
layout(local_size_x = 128, local_size_y = 1, local_size_z = 1) in;

// Offsets and strides in elements: N and all of these but nbz1 and z_offset are multiples of 4 (along k: nbp0 and R, not
// nbp1).
layout(push_constant) uniform parameter {
    uint  N; uint R; uint T;
    uint  nbp0; uint nbp1;
    uint  nbz1;
    uint  y_offset; uint p_offset; uint z_offset; uint add_offset;
    uint  has_add;
    float scale;
} p;

layout(binding = 0) buffer Y4 { vec4 data_y4[]; };
layout(binding = 1) readonly buffer P4 { vec4 data_p4[]; };
layout(binding = 2) readonly buffer Z { float data_z[]; };
layout(binding = 3) readonly buffer Add4 { vec4 data_add4[]; }; // y again where there is none

const uint TT  = 16;
const uint RC4 = BLOCK_SIZE / TT; // values of k at a time, in fours: one load of z for each invocation
shared vec4 z4[BLOCK_SIZE];

// p[n .. n + 3, k + i]; beyond the last k whatever is in reach: z is zero there.
void load_p(const uint n, const uint k, out vec4 row[4]) {
    if (P_ALONG_K) {
        vec4 of_n[4];
        [[unroll]] for (uint i = 0; i < 4; ++i) {
            of_n[i] = data_p4[(p.p_offset + (n + i) * p.nbp0 + min(k, p.R - 4)) / 4];
        }
        [[unroll]] for (uint i = 0; i < 4; ++i) {
            row[i] = vec4(of_n[0][i], of_n[1][i], of_n[2][i], of_n[3][i]);
        }
    } else {
        [[unroll]] for (uint i = 0; i < 4; ++i) {
            row[i] = data_p4[(p.p_offset + n + min(k + i, p.R - 1) * p.nbp1) / 4];
        }
    }
}

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
    const uint tid  = gl_LocalInvocationID.x;
    const uint n_wg = 4 * (gl_WorkGroupID.x * BLOCK_SIZE + tid);
    const uint n    = min(n_wg, p.N - 4); // spare invocations read what is there, and do not write
    const uint t0   = gl_WorkGroupID.y * TT;

    vec4 z = load_z(4 * (tid % RC4), t0 + tid / RC4);
    vec4 next[4];
    load_p(n, 0, next);

    vec4 acc[TT];
    [[unroll]] for (uint t = 0; t < TT; ++t) {
        acc[t] = data_y4[(p.y_offset + min(t0 + t, p.T - 1) * p.N + n) / 4];
    }
    if (p.has_add != 0) {
        [[unroll]] for (uint t = 0; t < TT; ++t) {
            acc[t] += data_add4[(p.add_offset + min(t0 + t, p.T - 1) * p.N + n) / 4];
        }
    }

    for (uint k0 = 0; k0 < p.R; k0 += 4 * RC4) {
        if (k0 > 0) {
            z = load_z(k0 + 4 * (tid % RC4), t0 + tid / RC4);
            barrier();
        }
        z4[tid] = z;
        barrier();
        const uint count = min(RC4, (p.R - k0 + 3) / 4);
        for (uint i = 0; i < count; ++i) {
            vec4 row[4];
            [[unroll]] for (uint j = 0; j < 4; ++j) {
                row[j] = p.scale * next[j];
            }
            if (k0 + 4 * i + 4 < p.R) {
                load_p(n, k0 + 4 * i + 4, next);
            }
            [[unroll]] for (uint t = 0; t < TT; ++t) {
                const vec4 w = z4[t * RC4 + i];
                [[unroll]] for (uint j = 0; j < 4; ++j) {
                    acc[t] = fma(row[j], vec4(w[j]), acc[t]);
                }
            }
        }
    }

    if (n_wg < p.N) {
        [[unroll]] for (uint t = 0; t < TT; ++t) {
            if (t0 + t < p.T) {
                data_y4[(p.y_offset + (t0 + t) * p.N + n) / 4] = acc[t];
            }
        }
    }
}
