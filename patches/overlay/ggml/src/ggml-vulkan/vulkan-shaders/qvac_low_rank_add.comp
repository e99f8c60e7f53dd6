#version 450

// A product with few columns, added in place (ggml_low_rank_add): y[n, t] += scale * sum_k p[n, k] * z[k, t] + add[n, t].
//
// An invocation makes one n of TT tokens: it reads its row of p once for all of them, and z comes from shared memory.
// Neighbouring invocations take neighbouring n, so y, add and a plain p are read along memory; a p that lies along k is
// read four k at a time.
//
// The order of additions is also that of qvac_low_rank_add_long.comp and qvac_tq_output.glsl: y, add, one k after another.

#extension GL_EXT_control_flow_attributes : enable

layout(constant_id = 0) const uint TT = 8;           // tokens of a workgroup
layout(constant_id = 1) const bool P_ALONG_K = false; // p is contiguous along k, each row of it a multiple of 16 bytes

const uint BLOCK_SIZE = 256;
layout(local_size_x = 256, local_size_y = 1, local_size_z = 1) in;

// Offsets and strides in elements.
layout(push_constant) uniform parameter {
    uint  N; uint R; uint T;
    uint  nbp0; uint nbp1;
    uint  nbz1;
    uint  y_offset; uint p_offset; uint z_offset; uint add_offset;
    uint  has_add;
    float scale;
} p;

layout(binding = 0) buffer Y { float data_y[]; };
layout(binding = 1) readonly buffer P { float data_p[]; };
layout(binding = 1) readonly buffer P4 { vec4 data_p4[]; };
layout(binding = 2) readonly buffer Z { float data_z[]; };
layout(binding = 3) readonly buffer Add { float data_add[]; }; // y again where there is none

const uint RC  = 64; // values of k at a time
const uint RC4 = RC / 4;
shared vec4 z4[TT * RC4];

vec4 load_p(const uint n, const uint k) {
    const uint at = p.p_offset + n * p.nbp0 + k * p.nbp1;
    if (P_ALONG_K) {
        return data_p4[at / 4];
    }
    if (k + 3 < p.R) {
        return vec4(data_p[at], data_p[at + p.nbp1], data_p[at + 2 * p.nbp1], data_p[at + 3 * p.nbp1]);
    }
    vec4 r = vec4(0.0);
    [[unroll]] for (uint i = 0; i < 3; ++i) {
        if (k + i < p.R) {
            r[i] = data_p[at + i * p.nbp1];
        }
    }
    return r;
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
    const uint n_wg = gl_WorkGroupID.x * BLOCK_SIZE + tid;
    const uint n    = min(n_wg, p.N - 1); // spare invocations read what is there, and do not write
    const uint t0   = gl_WorkGroupID.y * TT;

    float y[TT];
    [[unroll]] for (uint t = 0; t < TT; ++t) {
        y[t] = data_y[p.y_offset + min(t0 + t, p.T - 1) * p.N + n];
    }
    if (p.has_add != 0) {
        [[unroll]] for (uint t = 0; t < TT; ++t) {
            y[t] += data_add[p.add_offset + min(t0 + t, p.T - 1) * p.N + n];
        }
    }

    for (uint k0 = 0; k0 < p.R; k0 += RC) {
        const uint count = (min(RC, p.R - k0) + 3) / 4;
        barrier();
        for (uint i = tid; i < TT * count; i += BLOCK_SIZE) {
            z4[(i / count) * RC4 + i % count] = load_z(k0 + 4 * (i % count), t0 + i / count);
        }
        barrier();
        for (uint i = 0; i < count; ++i) {
            const vec4 row = p.scale * load_p(n, k0 + 4 * i);
            [[unroll]] for (uint t = 0; t < TT; ++t) {
                const vec4 z = z4[t * RC4 + i];
                [[unroll]] for (uint k = 0; k < 4; ++k) {
                    y[t] = fma(row[k], z[k], y[t]);
                }
            }
        }
    }

    if (n_wg < p.N) {
        [[unroll]] for (uint t = 0; t < TT; ++t) {
            if (t0 + t < p.T) {
                data_y[p.y_offset + (t0 + t) * p.N + n] = y[t];
            }
        }
    }
}
