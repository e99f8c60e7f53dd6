#version 450

// Outer product summed over the rows of two matrices, as a tiled matrix product:
//
//     dst[m, n] = sum_k a[m, k] * b[n, k]
//
// a [M, K] in any weight type, rows along m; b [N, K] F32 at any strides; dst [M, N] F32.
// This is the backward of mul_mat: dx = out_prod(W, transpose(dy)) reads W as it is stored, dW = out_prod(x, dy).
//
// A workgroup makes one BM x BN tile. Per BK steps of k it brings both operands to shared memory as floats, so that a
// quantized value is unpacked once a tile and not once an output; each invocation then sums TM x TN outputs.
// The outputs of one invocation lie BM/TM (BN/TN) apart: neighbours read and write neighbouring words.

#extension GL_EXT_control_flow_attributes : enable
#extension GL_EXT_shader_16bit_storage : require

#include "types.glsl"

layout(constant_id = 0) const uint BLOCK_SIZE = 256; // (BM / TM) * (BN / TN)
layout(constant_id = 1) const uint BM = 64;          // a multiple of 32 where a is quantized
layout(constant_id = 2) const uint BN = 64;
layout(constant_id = 3) const uint BK = 16;
layout(constant_id = 4) const uint TM = 4;
layout(constant_id = 5) const uint TN = 4;

layout(local_size_x_id = 0, local_size_y = 1, local_size_z = 1) in;

// Strides and offsets are in elements, those of a quantized `a` in blocks.
layout(push_constant) uniform parameter {
    uint M; uint N; uint K;
    uint ne2;                 // of dst and b
    uint ratio2; uint ratio3; // how many batches of b share one of a
    uint nb00; uint nb01; uint nb02; uint nb03;
    uint nb10; uint nb11; uint nb12; uint nb13;
    uint nb21; uint nb22; uint nb23;
    uint a_offset; uint b_offset; uint d_offset;
} p;

layout(binding = 1) readonly buffer B { float data_b[]; };
layout(binding = 2) writeonly buffer D { float data_d[]; };

// One word of padding keeps writes down a column on different banks.
const uint STRIDE_A = BM + 1;
const uint STRIDE_B = BN + 1;

#define TILE_A_TYPE float
#define UNROLL_A
#include "qvac_out_prod_weights.glsl"

shared float tile_b[BK * STRIDE_B];

void load_b(const uint base, const uint n0, const uint k0) {
    // A transposed b is contiguous along k, a plain one along n: neighbouring invocations follow memory.
    const bool along_k = p.nb11 < p.nb10;

    for (uint t = gl_LocalInvocationID.x; t < BK * BN; t += BLOCK_SIZE) {
        const uint n = along_k ? t / BK : t % BN;
        const uint k = along_k ? t % BK : t / BN;

        float v = 0.0;
        if (n0 + n < p.N && k0 + k < p.K) {
            v = data_b[base + (k0 + k) * p.nb11 + (n0 + n) * p.nb10];
        }
        tile_b[k * STRIDE_B + n] = v;
    }
}

void main() {
    const uint m0 = gl_WorkGroupID.x * BM;
    const uint n0 = gl_WorkGroupID.y * BN;
    const uint i2 = gl_WorkGroupID.z % p.ne2;
    const uint i3 = gl_WorkGroupID.z / p.ne2;

    const uint base_a = p.a_offset + (i2 / p.ratio2) * p.nb02 + (i3 / p.ratio3) * p.nb03;
    const uint base_b = p.b_offset + i2 * p.nb12 + i3 * p.nb13;
    const uint base_d = p.d_offset + i2 * p.nb22 + i3 * p.nb23;

    const uint tm = gl_LocalInvocationID.x % (BM / TM);
    const uint tn = gl_LocalInvocationID.x / (BM / TM);

    float acc[TM * TN];
    [[unroll]] for (uint i = 0; i < TM * TN; ++i) {
        acc[i] = 0.0;
    }

    for (uint k0 = 0; k0 < p.K; k0 += BK) {
        load_a(base_a, m0, k0);
        load_b(base_b, n0, k0);
        barrier();

        [[unroll]] for (uint k = 0; k < BK; ++k) {
            float a[TM];
            [[unroll]] for (uint i = 0; i < TM; ++i) {
                a[i] = tile_a[k * STRIDE_A + tm + i * (BM / TM)];
            }
            [[unroll]] for (uint j = 0; j < TN; ++j) {
                const float b = tile_b[k * STRIDE_B + tn + j * (BN / TN)];
                [[unroll]] for (uint i = 0; i < TM; ++i) {
                    acc[j * TM + i] += a[i] * b;
                }
            }
        }
        barrier();
    }

    [[unroll]] for (uint j = 0; j < TN; ++j) {
        const uint n = n0 + tn + j * (BN / TN);
        [[unroll]] for (uint i = 0; i < TM; ++i) {
            const uint m = m0 + tm + i * (BM / TM);
            if (m < p.M && n < p.N) {
                data_d[base_d + n * p.nb21 + m] = acc[j * TM + i];
            }
        }
    }
}
