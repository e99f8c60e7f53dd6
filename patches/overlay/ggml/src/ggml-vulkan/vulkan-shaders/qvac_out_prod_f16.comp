#version 450

// OUT_PROD for big products, on half-precision operands with sums in float32:
//
//     dst[m, n] = inv_scale[n] * sum_k half(a[m, k]) * b[k, n]
//
// a in any weight type; b the copy that qvac_out_prod_scale.comp makes, k contiguous, each column scaled by a power of two so
// that neither small nor large values leave the range of a half.
//
// A workgroup makes one BM x BN tile over one share of K, each of its warps WM x WN of that in squares of 16. With COOPMAT
// a square is a cooperative matrix, and the bytes of the next step are brought to registers while this one is multiplied:
// with one or two workgroups a core, nothing else hides the time they take. Without, each of 32 invocations sums eight
// values of a square: that variant is for devices and tests that want the same operands, layouts and rounding without the
// hardware.
//
// The grid's first dimension is n: workgroups that start together share their piece of the weights in the cache. What lies
// beyond M or N is read as something that is there, and not written; beyond K, b is zero.
//
// Loops over arrays count in ones: NVIDIA's driver does not unroll steps of a specialization constant, and then an array is
// memory and one load waits for the other.

#extension GL_EXT_control_flow_attributes : enable
#extension GL_EXT_shader_16bit_storage : require
#extension GL_EXT_shader_explicit_arithmetic_types_float16 : require
#ifdef COOPMAT
#extension GL_KHR_cooperative_matrix : require
#extension GL_KHR_memory_scope_semantics : require
#extension GL_KHR_shader_subgroup_basic : require
#endif

layout(constant_id = 0) const uint BLOCK_SIZE = 128; // 32 * (BM / WM) * (BN / WN)
layout(constant_id = 1) const uint BM = 64;
layout(constant_id = 2) const uint BN = 64;
layout(constant_id = 3) const uint BK = 32;
layout(constant_id = 4) const uint WM = 32;
layout(constant_id = 5) const uint WN = 32;
layout(constant_id = 6) const uint STAGES = 1;  // 2: the next step has shared memory of its own, and one barrier does
layout(constant_id = 7) const uint ALIGNED = 1; // see qvac_f16_weights.glsl

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

layout(binding = 1) readonly buffer B { uvec4 data_b[]; }; // eight halves each
layout(binding = 2) readonly buffer Scales { float inv_scale[]; };
layout(binding = 3) writeonly buffer D { float data_d[]; };

#include "qvac_f16_weights.glsl"

// The piece of `a` lies in shared memory as in its rows, and that of b column by column, eight halves an element. Rows have
// one element more, so that those of neighbouring rows lie on different banks.
const uint COLUMNS_A = BM;
const uint ROWS_A    = BK;
const uint RUNS_A   = COLUMNS_A / 8;
const uint RUNS_B   = BK / 8;
const uint STRIDE_A = RUNS_A + 1;
const uint STRIDE_B = RUNS_B + 1;
const uint TILE_B   = ROWS_A * STRIDE_A;
const uint STAGE    = TILE_B + BN * STRIDE_B;

// When all is multiplied, one square of floats for each warp: results are written in the order of memory.
const uint SQUARES = BLOCK_SIZE / 32 * 64;
const uint TILE    = STAGES * STAGE > SQUARES ? STAGES * STAGE : SQUARES;
shared uvec4 tile[TILE];

const uint SQUARES_M = WM / 16;
const uint SQUARES_N = WN / 16;

// Runs of eight, and how many an invocation has to bring.
const uint A_UNITS = ROWS_A * RUNS_A;
const uint B_UNITS = BN * RUNS_B;
const uint A_ITEMS = (A_UNITS + BLOCK_SIZE - 1) / BLOCK_SIZE;
const uint B_ITEMS = (B_UNITS + BLOCK_SIZE - 1) / BLOCK_SIZE;

// Which column of `a` a unit begins with.
uint column_a(const uint i, const uint m0, const uint k0) {
    return ALIGNED != 0 ? min(m0 + i % RUNS_A * 8, p.M - 8) : m0 + i % RUNS_A * 8;
}

raw_weights load_a(const uint i, const uint m0, const uint k0) {
    const uint row = min(k0 + i / RUNS_A, p.K - 1);
    return load_weights(p.a_offset + row * p.nb01, column_a(i, m0, k0), p.nb00, p.M - 1);
}

void store_a(const uint i, const uint at, const raw_weights raw, const uint m0, const uint k0) {
    tile[at + i / RUNS_A * STRIDE_A + i % RUNS_A] = weights(raw, column_a(i, m0, k0));
}

uvec4 load_b(const uint i, const uint n0, const uint k0) {
    return data_b[(min(n0 + i / RUNS_B, p.N - 1) * p.nb11 + k0) / 8 + i % RUNS_B];
}

void store_b(const uint i, const uint at, const uvec4 v) {
    tile[at + TILE_B + i / RUNS_B * STRIDE_B + i % RUNS_B] = v;
}

#ifdef COOPMAT

#define SQUARE coopmat<float, gl_ScopeSubgroup, 16, 16, gl_MatrixUseAccumulator>

#define EACH_UNIT(ITEMS, UNITS)                              \
    [[unroll]] for (uint j = 0; j < ITEMS; ++j)              \
        if (UNITS % BLOCK_SIZE == 0 || tid + j * BLOCK_SIZE < UNITS)

#define LOAD_STEP(k0)                                                                              \
    EACH_UNIT(A_ITEMS, A_UNITS) {                                                                  \
        const raw_weights raw = load_a(tid + j * BLOCK_SIZE, m0, k0);                              \
        next_a[j] = raw.v;                                                                         \
        next_s[j] = raw.s;                                                                         \
    }                                                                                              \
    EACH_UNIT(B_ITEMS, B_UNITS) {                                                                  \
        next_b[j] = load_b(tid + j * BLOCK_SIZE, n0, k0);                                          \
    }

#define STORE_STEP(at, k0)                                                                         \
    EACH_UNIT(A_ITEMS, A_UNITS) {                                                                  \
        store_a(tid + j * BLOCK_SIZE, at, raw_weights(next_a[j], next_s[j]), m0, k0);              \
    }                                                                                              \
    EACH_UNIT(B_ITEMS, B_UNITS) {                                                                  \
        store_b(tid + j * BLOCK_SIZE, at, next_b[j]);                                              \
    }

#else

float half_of(const uint at, const uint i) {
    return float(unpackFloat2x16(tile[at + i / 8][i % 8 / 2])[i % 2]);
}

float tile_a(const uint k, const uint m) {
    return half_of(k * STRIDE_A, m);
}

float tile_b(const uint k, const uint n) {
    return half_of(TILE_B + n * STRIDE_B, k);
}

// (Rolled: a driver that compiles for a CPU takes most of a minute for some types else.)
void fill_tile(const uint tid, const uint m0, const uint n0, const uint k0) {
    for (uint i = tid; i < A_UNITS; i += BLOCK_SIZE) {
        store_a(i, 0, load_a(i, m0, k0), m0, k0);
    }
    for (uint i = tid; i < B_UNITS; i += BLOCK_SIZE) {
        store_b(i, 0, load_b(i, n0, k0));
    }
}

#endif

void main() {
    const uint tid = gl_LocalInvocationID.x;
    const uint n0  = gl_WorkGroupID.x * BN;
    const uint m0  = gl_WorkGroupID.y * BM;
#ifdef COOPMAT
    const uint warp = gl_SubgroupID;
    const uint lane = gl_SubgroupInvocationID;

    SQUARE acc[SQUARES_M * SQUARES_N];
    [[unroll]] for (uint i = 0; i < SQUARES_M * SQUARES_N; ++i) {
        acc[i] = SQUARE(0.0);
    }
    uvec4 next_a[A_ITEMS];
    uvec2 next_s[A_ITEMS];
    uvec4 next_b[B_ITEMS];
#else
    const uint warp = tid / 32;
    const uint lane = tid % 32;

    float acc[SQUARES_M * SQUARES_N * 8]; // a lane has one m and every other n of a square
    [[unroll]] for (uint i = 0; i < SQUARES_M * SQUARES_N * 8; ++i) {
        acc[i] = 0.0;
    }
#endif
    // Where the warp's part of the tile begins.
    const uint m_warp = (warp % (BM / WM)) * WM;
    const uint n_warp = (warp / (BM / WM)) * WN;

    const uint k_begin = gl_WorkGroupID.z * p.share_k;
    const uint steps   = (min(p.share_k, p.K - k_begin) + BK - 1) / BK;
#ifdef COOPMAT
    LOAD_STEP(k_begin)
    STORE_STEP(0, k_begin)
    barrier();
    for (uint step = 0; step < steps; ++step) {
        // After the last step comes the last one again, which nothing reads: cheaper than a branch around the loads.
        const uint k_next  = k_begin + min(step + 1, steps - 1) * BK;
        const uint at      = STAGES == 1 ? 0 : step % 2 * STAGE;
        const uint at_next = STAGES == 1 ? 0 : (step + 1) % 2 * STAGE;
        LOAD_STEP(k_next)
        [[unroll]] for (uint k = 0; k < BK / 16; ++k) {
            coopmat<float16_t, gl_ScopeSubgroup, 16, 16, gl_MatrixUseA> a[SQUARES_M];
            [[unroll]] for (uint i = 0; i < SQUARES_M; ++i) {
                coopMatLoad(a[i], tile, at + 16 * k * STRIDE_A + m_warp / 8 + 2 * i, STRIDE_A, gl_CooperativeMatrixLayoutColumnMajor);
            }
            [[unroll]] for (uint j = 0; j < SQUARES_N; ++j) {
                coopmat<float16_t, gl_ScopeSubgroup, 16, 16, gl_MatrixUseB> b;
                coopMatLoad(b, tile, at + TILE_B + (n_warp + 16 * j) * STRIDE_B + 2 * k, STRIDE_B, gl_CooperativeMatrixLayoutColumnMajor);
                [[unroll]] for (uint i = 0; i < SQUARES_M; ++i) {
                    acc[j * SQUARES_M + i] = coopMatMulAdd(a[i], b, acc[j * SQUARES_M + i]);
                }
            }
        }
        if (STAGES == 1) {
            barrier();
        }
        STORE_STEP(at_next, k_next)
        barrier();
    }
#else
    for (uint step = 0; step < steps; ++step) {
        fill_tile(tid, m0, n0, k_begin + step * BK);
        barrier();
        for (uint k = 0; k < BK; ++k) {
            float a[SQUARES_M];
            [[unroll]] for (uint i = 0; i < SQUARES_M; ++i) {
                a[i] = tile_a(k, m_warp + 16 * i + lane % 16);
            }
            [[unroll]] for (uint j = 0; j < SQUARES_N * 8; ++j) {
                const float b = tile_b(k, n_warp + 2 * j + lane / 16);
                [[unroll]] for (uint i = 0; i < SQUARES_M; ++i) {
                    acc[((j / 8) * SQUARES_M + i) * 8 + j % 8] += a[i] * b;
                }
            }
        }
        barrier();
    }
#endif

    const uint base = p.d_offset + gl_WorkGroupID.z * p.nb2z;
    [[unroll]] for (uint j = 0; j < SQUARES_N; ++j) {
        [[unroll]] for (uint i = 0; i < SQUARES_M; ++i) {
#ifdef COOPMAT
            coopMatStore(acc[j * SQUARES_M + i], tile, warp * 64, 4, gl_CooperativeMatrixLayoutColumnMajor);
            controlBarrier(gl_ScopeSubgroup, gl_ScopeSubgroup, gl_StorageSemanticsShared, gl_SemanticsAcquireRelease);
#else
            [[unroll]] for (uint x = 0; x < 8; ++x) {
                const uint e = x * 32 + lane;
                tile[warp * 64 + e / 4][e % 4] = floatBitsToUint(acc[(j * SQUARES_M + i) * 8 + x]);
            }
            barrier();
#endif
            [[unroll]] for (uint x = 0; x < 8; ++x) {
                const uint e = x * 32 + lane;
                const uint m = m0 + m_warp + 16 * i + e % 16;
                const uint n = n0 + n_warp + 16 * j + e / 16;
                if (m < p.M && n < p.N) {
                    data_d[base + n * p.nb21 + m] = inv_scale[n] * uintBitsToFloat(tile[warp * 64 + e / 4][e % 4]);
                }
            }
#ifdef COOPMAT
            controlBarrier(gl_ScopeSubgroup, gl_ScopeSubgroup, gl_StorageSemanticsShared, gl_SemanticsAcquireRelease);
#else
            barrier();
#endif
        }
    }
}
