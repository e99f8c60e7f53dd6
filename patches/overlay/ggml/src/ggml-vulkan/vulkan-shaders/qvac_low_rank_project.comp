#version 450

// A few scalar products per token (ggml_low_rank_project): z[k, t] = scale * sum_n p[n, k] * v[n, t].
//
// A workgroup makes KK products of TT tokens and spreads n over its invocations, four neighbours each, so that each value
// of p serves TT tokens and each value of v serves KK products. The sums meet in shared memory in one fixed order.
//
// Each invocation reads KK rows of p, along memory if p lies along n. Where it lies along k, as a transposed B does,
// qvac_low_rank_project_along_k.comp is better.

#extension GL_EXT_control_flow_attributes : enable

layout(constant_id = 0) const uint TT = 4;       // tokens of a workgroup: 4 or 8
layout(constant_id = 1) const bool ALIGNED = true; // n is a multiple of 4, p lies along it, rows of p and v at 16 bytes

const uint BLOCK_SIZE = 256;
layout(local_size_x = 256, local_size_y = 1, local_size_z = 1) in;

// Offsets and strides in elements.
layout(push_constant) uniform parameter {
    uint  N; uint R; uint T;
    uint  nbp0; uint nbp1;
    uint  nbv1;
    uint  p_offset; uint v_offset; uint z_offset;
    float scale;
} p;

layout(binding = 0) readonly buffer P { float data_p[]; };
layout(binding = 0) readonly buffer P4 { vec4 data_p4[]; };
layout(binding = 1) readonly buffer V { float data_v[]; };
layout(binding = 1) readonly buffer V4 { vec4 data_v4[]; };
layout(binding = 2) writeonly buffer Z { float data_z[]; };

const uint KK     = 8;
const uint STEP   = 4 * BLOCK_SIZE; // values of n that the workgroup takes at a time

// Each product is left with PARTS sums by the loop over n; a word of padding keeps them on different banks.
const uint PARTS  = 32;
const uint STRIDE = PARTS + 1;
shared float part[8 * KK * STRIDE]; // at least KK * BLOCK_SIZE

float acc[TT * KK];

vec4 load_p(const uint n, const uint k) {
    const uint at = p.p_offset + n * p.nbp0 + k * p.nbp1;
    if (ALIGNED) {
        return data_p4[at / 4];
    }
    vec4 r = vec4(0.0);
    [[unroll]] for (uint i = 0; i < 4; ++i) {
        if (n + i < p.N) {
            r[i] = data_p[at + i * p.nbp0];
        }
    }
    return r;
}

vec4 load_v(const uint n, const uint t) {
    const uint at = p.v_offset + t * p.nbv1 + n;
    if (ALIGNED) {
        return data_v4[at / 4];
    }
    vec4 r = vec4(0.0);
    [[unroll]] for (uint i = 0; i < 4; ++i) {
        if (n + i < p.N) {
            r[i] = data_v[at + i];
        }
    }
    return r;
}

// What lies beyond the last k or token is read as the last: it is summed, but not written.
void add_products(const uint n, const uint k0, const uint t0) {
    vec4 row[KK];
    [[unroll]] for (uint a = 0; a < KK; ++a) {
        row[a] = load_p(n, min(k0 + a, p.R - 1));
    }
    [[unroll]] for (uint t = 0; t < TT; ++t) {
        const vec4 v = load_v(n, min(t0 + t, p.T - 1));
        [[unroll]] for (uint a = 0; a < KK; ++a) {
            acc[t * KK + a] += dot(v, row[a]);
        }
    }
}

void main() {
    const uint tid  = gl_LocalInvocationID.x;
    const uint k_wg = gl_WorkGroupID.x * KK;
    const uint t0   = gl_WorkGroupID.y * TT;

    [[unroll]] for (uint i = 0; i < TT * KK; ++i) {
        acc[i] = 0.0;
    }
    for (uint n = 4 * tid; n < p.N; n += STEP) {
        add_products(n, k_wg, t0);
    }

    // To PARTS sums per product: product `k`, part `i` of each token.
    const uint k      = tid / PARTS;
    const uint i_part = tid % PARTS;
    float sum[TT];
    [[unroll]] for (uint t = 0; t < TT; ++t) {
        [[unroll]] for (uint a = 0; a < KK; ++a) {
            part[a * BLOCK_SIZE + tid] = acc[t * KK + a];
        }
        barrier();
        sum[t] = 0.0;
        [[unroll]] for (uint i = 0; i < BLOCK_SIZE; i += PARTS) {
            sum[t] += part[k * BLOCK_SIZE + i + i_part];
        }
        barrier();
    }

    // To SPLIT sums per value, then to one.
    const uint VALUES = TT * KK;
    const uint SPLIT  = BLOCK_SIZE / VALUES;
    const uint value  = tid % VALUES;
    [[unroll]] for (uint t = 0; t < TT; ++t) {
        part[(t * KK + k) * STRIDE + i_part] = sum[t];
    }
    barrier();

    float s = 0.0;
    [[unroll]] for (uint i = 0; i < PARTS / SPLIT; ++i) {
        s += part[value * STRIDE + (tid / VALUES) * (PARTS / SPLIT) + i];
    }
    barrier();
    part[value * STRIDE + tid / VALUES] = s;
    barrier();

    const uint k_out = k_wg + value % KK;
    const uint t_out = t0 + value / KK;
    if (tid < VALUES && k_out < p.R && t_out < p.T) {
        s = 0.0;
        [[unroll]] for (uint i = 0; i < SPLIT; ++i) {
            s += part[value * STRIDE + i];
        }
        data_z[p.z_offset + t_out * p.R + k_out] = p.scale * s;
    }
}
