#version 450

// OUT_PROD for big products, on half-precision operands with sums in float32:
//
//     dst[m, n] = inv_scale[n] * sum_k half(a[m, k]) * b[k, n]
//
// a [M, K] in any weight type; b the copy that qvac_out_prod_scale.comp makes, k contiguous, each column scaled by a power
// of two so that neither small nor large gradients leave the range of a half.
//
// A workgroup makes one BM x BN tile over one share of K, each of its warps WM x WN of that in squares of 16. With COOPMAT
// a square is a cooperative matrix. Without, each of 32 invocations sums eight values of it: that variant is for devices
// and tests that want the same operands, layouts and rounding without the hardware.
//
// The grid's first dimension is n: workgroups that start together share their piece of the weights in the cache.

#extension GL_EXT_control_flow_attributes : enable
#extension GL_EXT_shader_16bit_storage : require
#extension GL_EXT_shader_explicit_arithmetic_types_float16 : require
#ifdef COOPMAT
#extension GL_KHR_cooperative_matrix : require
#extension GL_KHR_memory_scope_semantics : require
#extension GL_KHR_shader_subgroup_basic : require
#endif

#include "types.glsl"

layout(constant_id = 0) const uint BLOCK_SIZE = 128; // 32 * (BM / WM) * (BN / WN)
layout(constant_id = 1) const uint BM = 64;
layout(constant_id = 2) const uint BN = 64;
layout(constant_id = 3) const uint BK = 32;
layout(constant_id = 4) const uint WM = 32;
layout(constant_id = 5) const uint WN = 32;

layout(local_size_x_id = 0, local_size_y = 1, local_size_z = 1) in;

// Strides and offsets in elements, those of a quantized `a` in blocks.
layout(push_constant) uniform parameter {
    uint M; uint N; uint K;
    uint nb00; uint nb01;
    uint nb11;    // from one column of b to the next; a multiple of BK, zeros beyond K
    uint nb21;    // the same of dst
    uint share_k; // how much of K a workgroup takes, a multiple of BK
    uint nb2z;    // from the result of one share to that of the next
    uint a_offset; uint d_offset;
} p;

layout(binding = 1) readonly buffer B { f16vec4 data_b[]; };
layout(binding = 2) readonly buffer Scales { float inv_scale[]; };
layout(binding = 3) writeonly buffer D { float data_d[]; };

// Rows of both tiles begin at multiples of 16 bytes, as cooperative matrices want them, and on different banks.
const uint STRIDE_A = BM + 8;
const uint STRIDE_B = (BK + 8) / 2; // in pairs

#define TILE_A_TYPE float16_t
#ifdef COOPMAT
#define UNROLL_A [[unroll]]
#else
#define UNROLL_A
#endif
#include "qvac_out_prod_weights.glsl"

shared f16vec2 tile_b[BN * STRIDE_B];

const uint SQUARES_M = WM / 16;
const uint SQUARES_N = WN / 16;

// One square for each warp: results pass through here to be scaled and written in the order of memory.
shared float stage[(BLOCK_SIZE / 32) * 256];

void load_b(const uint n0, const uint k0) {
    [[unroll]] for (uint i = 0; i < BN * BK / 4; i += BLOCK_SIZE) {
        const uint t = i + gl_LocalInvocationID.x;
        const uint k = 4 * (t % (BK / 4));
        const uint n = t / (BK / 4);

        const f16vec4 v  = data_b[(min(n0 + n, p.N - 1) * p.nb11 + k0 + k) / 4];
        const uint    at = n * STRIDE_B + k / 2;
        tile_b[at]     = v.xy;
        tile_b[at + 1] = v.zw;
    }
}

#ifdef COOPMAT
#define SQUARE coopmat<float, gl_ScopeSubgroup, 16, 16, gl_MatrixUseAccumulator>
#endif

void main() {
    const uint n0 = gl_WorkGroupID.x * BN;
    const uint m0 = gl_WorkGroupID.y * BM;
#ifdef COOPMAT
    const uint warp = gl_SubgroupID;
    const uint lane = gl_SubgroupInvocationID;

    SQUARE acc[SQUARES_M * SQUARES_N];
    [[unroll]] for (uint i = 0; i < SQUARES_M * SQUARES_N; ++i) {
        acc[i] = SQUARE(0.0);
    }
#else
    const uint warp = gl_LocalInvocationID.x / 32;
    const uint lane = gl_LocalInvocationID.x % 32;

    float acc[SQUARES_M * SQUARES_N * 8]; // a lane has one m and every other n of a square
    [[unroll]] for (uint i = 0; i < SQUARES_M * SQUARES_N * 8; ++i) {
        acc[i] = 0.0;
    }
#endif
    // Where the warp's part of the tile begins.
    const uint m_warp = (warp % (BM / WM)) * WM;
    const uint n_warp = (warp / (BM / WM)) * WN;

    const uint k_begin = gl_WorkGroupID.z * p.share_k;
    const uint k_end   = min(k_begin + p.share_k, p.K);
    for (uint k0 = k_begin; k0 < k_end; k0 += BK) {
        load_a(p.a_offset, m0, k0);
        load_b(n0, k0);
        barrier();
#ifdef COOPMAT
        [[unroll]] for (uint k = 0; k < BK; k += 16) {
            coopmat<float16_t, gl_ScopeSubgroup, 16, 16, gl_MatrixUseA> a[SQUARES_M];
            coopmat<float16_t, gl_ScopeSubgroup, 16, 16, gl_MatrixUseB> b;
            [[unroll]] for (uint i = 0; i < SQUARES_M; ++i) {
                coopMatLoad(a[i], tile_a, k * STRIDE_A + m_warp + 16 * i, STRIDE_A, gl_CooperativeMatrixLayoutColumnMajor);
            }
            [[unroll]] for (uint j = 0; j < SQUARES_N; ++j) {
                coopMatLoad(b, tile_b, (n_warp + 16 * j) * STRIDE_B + k / 2, STRIDE_B, gl_CooperativeMatrixLayoutColumnMajor);
                [[unroll]] for (uint i = 0; i < SQUARES_M; ++i) {
                    acc[j * SQUARES_M + i] = coopMatMulAdd(a[i], b, acc[j * SQUARES_M + i]);
                }
            }
        }
#else
        for (uint k = 0; k < BK; ++k) {
            float a[SQUARES_M];
            [[unroll]] for (uint i = 0; i < SQUARES_M; ++i) {
                a[i] = float(tile_a[k * STRIDE_A + m_warp + 16 * i + lane % 16]);
            }
            [[unroll]] for (uint j = 0; j < SQUARES_N * 8; ++j) {
                const vec2  pair = vec2(tile_b[(n_warp + 2 * j + lane / 16) * STRIDE_B + k / 2]);
                const float b    = k % 2 == 0 ? pair.x : pair.y;
                [[unroll]] for (uint i = 0; i < SQUARES_M; ++i) {
                    acc[((j / 8) * SQUARES_M + i) * 8 + j % 8] += a[i] * b;
                }
            }
        }
#endif
        barrier();
    }

    const uint base = p.d_offset + gl_WorkGroupID.z * p.nb2z;
    [[unroll]] for (uint j = 0; j < SQUARES_N; ++j) {
        [[unroll]] for (uint i = 0; i < SQUARES_M; ++i) {
#ifdef COOPMAT
            coopMatStore(acc[j * SQUARES_M + i], stage, warp * 256, 16, gl_CooperativeMatrixLayoutColumnMajor);
#else
            [[unroll]] for (uint x = 0; x < 8; ++x) {
                stage[warp * 256 + x * 32 + lane] = acc[(j * SQUARES_M + i) * 8 + x];
            }
#endif
            barrier();
            [[unroll]] for (uint x = 0; x < 8; ++x) {
                const uint m = m0 + m_warp + 16 * i + lane % 16;
                const uint n = n0 + n_warp + 16 * j + 2 * x + lane / 16;
                if (m < p.M && n < p.N) {
                    data_d[base + n * p.nb21 + m] = inv_scale[n] * stage[warp * 256 + x * 32 + lane];
                }
            }
            barrier();
        }
    }
}
