#version 450

// Products of ternary weights and quantized tokens, exact in integers (TQ_MUL_MAT and TQ_MUL_MAT_BACK of ggml-train.h, and
// MUL_MAT; the formulas are in ternary.h of ggml-cpu):
//
//     forward   y[m, t] = sum_k w[k, m] * q[k, t]                 the sum runs along a row of W
//     backward  y[m, t] = sum_k w[m, k] * q[k, t] + add[m, t]     it runs across the rows; TQ_BACK is defined
//
// A LOW_RANK_ADD behind either may be part of it (qvac_tq_output.glsl).
//
// A workgroup makes a tile of BM outputs by BN columns. A column is one limb of one token; of two limbs, 16 columns of
// first limbs are followed by the 16 of the same tokens' second ones. Per BK steps of k the weights are unpacked, once a
// tile, to signed bytes in shared memory, beside the tokens' bytes, both with k side by side; the next step's bytes are
// brought to registers meanwhile. What multiplies differs by variant: plain integers, TQ_DOT (four products an
// instruction) or TQ_COOPMAT (int8 cooperative matrices). The integers are the same.
//
// With TQ_UNPACKED, W is such bytes already, for either direction (qvac_tq_unpack.comp), in rows up to whole tiles, and there are
// tokens for a tile at least. Else rows and tokens beyond the end are read as the last one. None are written.

#extension GL_EXT_control_flow_attributes : enable
#extension GL_EXT_shader_16bit_storage : require
#if defined(TQ_DOT)
#extension GL_EXT_integer_dot_product : require
#elif defined(TQ_COOPMAT)
#extension GL_EXT_shader_explicit_arithmetic_types_int8 : require
#extension GL_KHR_shader_subgroup_basic : require
#extension GL_KHR_cooperative_matrix : require
#extension GL_KHR_memory_scope_semantics : enable
#endif

layout(constant_id = 0) const uint BLOCK_SIZE = 256;
layout(constant_id = 1) const uint BM = 128;   // a multiple of 64
layout(constant_id = 2) const uint BN = 128;   // a multiple of 32
layout(constant_id = 3) const uint BK = 64;    // 64 or 128
layout(constant_id = 4) const uint LIMBS = 1;
layout(constant_id = 5) const uint MIXED = 0;  // whether the blocks of W differ in scale; not for TQ_COOPMAT
layout(constant_id = 6) const uint STAGES = 1; // 2: the next step has shared memory of its own, and one barrier does
layout(constant_id = 7) const uint LOW_RANK = 0; // whether there is a product of low rank to add
#if defined(TQ_COOPMAT)
layout(constant_id = 8) const uint WM = 64;    // a subgroup makes WM x WN of the tile
layout(constant_id = 9) const uint WN = 32;
layout(constant_id = 10) const uint TM = 16;   // in matrices of TM x TN, by TK steps of k
layout(constant_id = 11) const uint TN = 16;
layout(constant_id = 12) const uint TK = 32;
#else
layout(constant_id = 8) const uint TM = 8;     // an invocation makes TM x TN of the tile
layout(constant_id = 9) const uint TN = 8;
#endif

layout(local_size_x_id = 0, local_size_y = 1, local_size_z = 1) in;

layout(push_constant) uniform parameter {
    uint M; uint N; uint K; // outputs, tokens, length of the sum
    uint w_offset;          // in blocks
    uint w_stride;          // blocks a row
    uint q_offset;          // in 16 bytes
    uint q_stride;
    uint d_offset;
    uint add_offset;
    uint add;               // whether there is one
    uint aligned;           // whether outputs and add can be had four at a time
    float d;                // the scale of W
    uint R;                 // the length of the low-rank product's sum
    uint nbp0; uint nbp1; uint nbz1;
    uint p_offset; uint z_offset;
    float scale;
} p;

#if defined(TQ_UNPACKED)
layout(binding = 0) readonly buffer W { uvec4 data_w[]; };
#else
layout(binding = 0) readonly buffer W { uint16_t data_w[]; };
#endif
layout(binding = 1) readonly buffer Q { uvec4 data_q[]; };
layout(binding = 1) readonly buffer S { float data_s[]; };
layout(binding = 2) readonly buffer A { float data_add[]; };
layout(binding = 2) readonly buffer A4 { vec4 data_add4[]; };
layout(binding = 3) buffer D { float data_d[]; };
layout(binding = 3) buffer D4 { vec4 data_d4[]; };
layout(binding = 4) readonly buffer P { float data_p[]; };
layout(binding = 5) readonly buffer Z { float data_z[]; };

#if !defined(TQ_UNPACKED)
#include "qvac_tq_weights.glsl"
#endif

// A row of the tile is BK bytes and 16 more, so that 16 bytes of neighbouring rows lie on different banks.
const uint ROW    = BK / 16 + 1;
const uint TILE_B = BM * ROW;
const uint STAGE  = (BM + BN) * ROW;
#if defined(TQ_COOPMAT)
// In the end a subgroup puts columns of sums there, four in 16 bytes; neighbours lie on different banks here too. Behind them
// all lies what a low-rank product reads.
const uint LANES    = BLOCK_SIZE / ((BM / WM) * (BN / WN));
const uint OUT_VECS = WM / 4;
const uint OUT_ROW  = OUT_VECS + 1;
const uint OUT_END  = BLOCK_SIZE / LANES * LIMBS * TN * OUT_ROW;
const uint OUT_ALL  = OUT_END + (LOW_RANK != 0 ? 2 * (BM + BN / LIMBS) : 0);
shared uvec4 tile[STAGES * STAGE > OUT_ALL ? STAGES * STAGE : OUT_ALL];
#else
const uint OUT_END = 0;
shared uvec4 tile[STAGES * STAGE];
#endif

// Where the tile of a step begins.
uint tile_of(const uint step) {
    return STAGES == 1 ? 0 : step % STAGES * STAGE;
}

const uint LIMB_RUN = 16; // columns of one limb side by side

#if !defined(TQ_UNPACKED)

uint word(const uint block, const uint w) {
    return uint(data_w[block * BLOCK_WORDS + w]);
}

float scale_of(const uint block) {
    return scale_value(word(block, SCALE_WORD));
}

void put_word(const uint step, const uint row, const uint k4, const uint v) {
    tile[tile_of(step) + row * ROW + k4 / 4][k4 % 4] = v;
}

#endif

// --- what an invocation brings to shared memory: units number item(0), item(1) ... ---

uint item(const uint j) {
    return gl_LocalInvocationID.x + j * BLOCK_SIZE;
}

const uint STEP_VECS = BK / 16;                // 16 bytes each, in a row of the tile
const uint ITEM_ROWS = BLOCK_SIZE / STEP_VECS; // rows that one item of all invocations makes, of such units

// --- weights: from memory to registers, and decoded from there to shared memory ---

#if defined(TQ_UNPACKED)

// Rows are there up to whole tiles, and so what an invocation reads lies at constant distances.
const uint A_UNITS = BM * STEP_VECS;

uvec4 load_a(const uint j, const uint m0, const uint step) {
    const uint begin = p.w_offset + (m0 + item(0) / STEP_VECS) * p.w_stride + item(0) % STEP_VECS;
    return data_w[begin + j * ITEM_ROWS * p.w_stride + step * STEP_VECS];
}

void store_a(const uint j, const uvec4 raw, const uint m0, const uint step) {
    tile[tile_of(step) + (item(0) / STEP_VECS + j * ITEM_ROWS) * ROW + item(0) % STEP_VECS] = raw;
}

#elif !defined(TQ_BACK)

const uint STEP_QUADS = BK / QUAD;

// A unit is four bytes of a column, hence four weights in each chunk of a quad. Neighbours read neighbouring bytes.
const uint A_UNITS = BM * STEP_QUADS * 4;

struct unit { uint part; uint quad; uint row; };

unit unit_of(const uint i) {
    return unit(i % 4, i / 4 % STEP_QUADS, i / 4 / STEP_QUADS);
}

uvec4 load_a(const uint j, const uint m0, const uint step) {
    const unit u     = unit_of(item(j));
    const uint quad  = step * STEP_QUADS + u.quad;
    const uint block = p.w_offset + min(m0 + u.row, p.M - 1) * p.w_stride + quad / QUADS;
    uvec4 raw;
    [[unroll]] for (uint c = 0; c < COLUMNS; ++c) {
        const uint column = quad_column(quad % QUADS, c);
        raw[c] = word(block, column_word(column, 2 * u.part)) | (word(block, column_word(column, 2 * u.part + 1)) << 16);
    }
    return raw;
}

void store_a(const uint j, const uvec4 raw, const uint m0, const uint step) {
    const unit u    = unit_of(item(j));
    const uint quad = (step * STEP_QUADS + u.quad) % QUADS;
    [[unroll]] for (uint c = 0; c < 4; ++c) {
        const uint from = c < second_column_from(quad) ? raw[0] : raw[COLUMNS - 1];
        put_word(step, u.row, (4 * u.quad + c) * 4 + u.part, digits(from, 4 * quad + c, u.part));
    }
}

#else

// A unit is two bytes of a column in four neighbouring rows: turned, they are four steps of k for two outputs in each chunk
// of a quad. Neighbours read neighbouring bytes.
const uint A_UNITS = (BM / QUAD) * (BK / 4) * 8;

struct unit { uint pair; uint quad; uint k4; };

unit unit_of(const uint i) {
    return unit(i % 8, i / 8 % (BM / QUAD), i / 8 / (BM / QUAD));
}

uvec4 load_a(const uint j, const uint m0, const uint step) {
    const unit u     = unit_of(item(j));
    const uint quad  = m0 / QUAD + u.quad;
    const uint block = p.w_offset + (step * BK + 4 * u.k4) * p.w_stride + quad / QUADS;
    uvec4 raw;
    [[unroll]] for (uint c = 0; c < COLUMNS; ++c) {
        const uint w = column_word(quad_column(quad % QUADS, c), u.pair);
        raw[2 * c]     = word(block, w) | (word(block + p.w_stride, w) << 16);
        raw[2 * c + 1] = word(block + 2 * p.w_stride, w) | (word(block + 3 * p.w_stride, w) << 16);
    }
    return raw;
}

void store_a(const uint j, const uvec4 raw, const uint m0, const uint step) {
    const unit u    = unit_of(item(j));
    const uint quad = (m0 / QUAD + u.quad) % QUADS;
    [[unroll]] for (uint c = 0; c < 4; ++c) {
        const bool first = c < second_column_from(quad);
        const uint low   = first ? raw[0] : raw[2 * COLUMNS - 2]; // two bytes of rows 0 and 1
        const uint high  = first ? raw[1] : raw[2 * COLUMNS - 1]; // and of rows 2 and 3
        const uint left  = (low & 0xffu) | ((low >> 8) & 0xff00u) | ((high & 0xffu) << 16) | ((high << 8) & 0xff000000u);
        const uint right = ((low >> 8) & 0xffu) | ((low >> 16) & 0xff00u) | ((high << 8) & 0xff0000u) | (high & 0xff000000u);
        const uint row   = (4 * u.quad + c) * CHUNK + 2 * u.pair;
        put_word(step, row,     u.k4, digits(left,  4 * quad + c, u.pair / 2));
        put_word(step, row + 1, u.k4, digits(right, 4 * quad + c, u.pair / 2));
    }
}

#endif

// --- tokens: 16 bytes at a time ---

const uint B_UNITS = BN * STEP_VECS;

// Which token of the tile a column belongs to, and which limb it is.
uint token_of(const uint column) {
    return LIMBS == 1 ? column : column / (2 * LIMB_RUN) * LIMB_RUN + column % LIMB_RUN;
}

uint limb_of(const uint column) {
    return LIMBS == 1 ? 0 : column / LIMB_RUN % 2;
}

#if defined(TQ_UNPACKED)

uvec4 load_b(const uint j, const uint t0, const uint step) {
    const uint column = item(0) / STEP_VECS;
    const uint begin  = p.q_offset + (t0 + token_of(column)) * p.q_stride + limb_of(column) * (p.K / 16) + item(0) % STEP_VECS;
    const uint next   = j * ITEM_ROWS;
    return data_q[begin + token_of(next) * p.q_stride + limb_of(next) * (p.K / 16) + step * STEP_VECS];
}

#else

uvec4 load_b(const uint j, const uint t0, const uint step) {
    const uint column = item(j) / STEP_VECS;
    const uint chunk  = step * STEP_VECS + item(j) % STEP_VECS;
#if defined(TQ_BACK)
    const uint k16 = chunk;
#else
    const uint k16 = chunk / 16 * 16 + chunk_begin(chunk % 16) / 16; // in the order of the weights' chunks
#endif
    const uint token = min(t0 + token_of(column), p.N - 1);
    return data_q[p.q_offset + token * p.q_stride + limb_of(column) * (p.K / 16) + k16];
}

#endif

void store_b(const uint j, const uvec4 v, const uint step) {
    tile[tile_of(step) + TILE_B + (item(0) / STEP_VECS + j * ITEM_ROWS) * ROW + item(0) % STEP_VECS] = v;
}

// --- a step: between registers and shared memory ---

#define LOAD_STEP(step)                                           \
    [[unroll]] for (uint j = 0; j < A_ITEMS; ++j) {               \
        if (A_UNITS % BLOCK_SIZE == 0 || item(j) < A_UNITS) {     \
            next_a[j] = load_a(j, m0, step);                      \
        }                                                         \
    }                                                             \
    [[unroll]] for (uint j = 0; j < B_ITEMS; ++j) {               \
        if (B_UNITS % BLOCK_SIZE == 0 || item(j) < B_UNITS) {     \
            next_b[j] = load_b(j, t0, step);                      \
        }                                                         \
    }

#define STORE_STEP(step)                                          \
    [[unroll]] for (uint j = 0; j < A_ITEMS; ++j) {               \
        if (A_UNITS % BLOCK_SIZE == 0 || item(j) < A_UNITS) {     \
            store_a(j, next_a[j], m0, step);                      \
        }                                                         \
    }                                                             \
    [[unroll]] for (uint j = 0; j < B_ITEMS; ++j) {               \
        if (B_UNITS % BLOCK_SIZE == 0 || item(j) < B_UNITS) {     \
            store_b(j, next_b[j], step);                          \
        }                                                         \
    }

#if defined(TQ_COOPMAT)
#define OUTPUTS 4
#define FLOATS vec4
#else
#define OUTPUTS 1
#define FLOATS float
#endif
#include "qvac_tq_output.glsl"

#if !defined(TQ_COOPMAT)
#include "qvac_tq_dot.glsl"
#endif

void main() {
    const uint m0 = gl_WorkGroupID.x * BM;
#if defined(TQ_UNPACKED)
    const uint t0 = min(gl_WorkGroupID.y * (BN / LIMBS), p.N - BN / LIMBS); // the last tile goes over tokens once more
#else
    const uint t0 = gl_WorkGroupID.y * (BN / LIMBS);
#endif

#if defined(TQ_COOPMAT)
    const uint sub_m = gl_SubgroupID % (BM / WM) * WM;
    const uint sub_n = gl_SubgroupID / (BM / WM) * WN;
    const uint MS = WM / TM;
    const uint NS = WN / TN;
    coopmat<int, gl_ScopeSubgroup, TM, TN, gl_MatrixUseAccumulator> sums[MS * NS];
    [[unroll]] for (uint i = 0; i < MS * NS; ++i) {
        sums[i] = coopmat<int, gl_ScopeSubgroup, TM, TN, gl_MatrixUseAccumulator>(0);
    }
#else
    clear_sums();
#endif

    const uint A_ITEMS = (A_UNITS + BLOCK_SIZE - 1) / BLOCK_SIZE;
    const uint B_ITEMS = (B_UNITS + BLOCK_SIZE - 1) / BLOCK_SIZE;
    uvec4 next_a[A_ITEMS];
    uvec4 next_b[B_ITEMS];

    const uint steps = p.K / BK;
    load_factors(t0);
    LOAD_STEP(0)
    STORE_STEP(0)
    barrier();
    for (uint step = 0; step < steps; ++step) {
        if (step + 1 < steps) {
            LOAD_STEP(step + 1)
        }
#if defined(TQ_COOPMAT)
        [[unroll]] for (uint part = 0; part < BK / TK; ++part) {
            const uint k      = part * (TK / 16);
            const uint tile_a = tile_of(step) + sub_m * ROW + k;
            const uint tile_b = tile_of(step) + TILE_B + sub_n * ROW + k;
            coopmat<int8_t, gl_ScopeSubgroup, TM, TK, gl_MatrixUseA> a[MS];
            [[unroll]] for (uint i = 0; i < MS; ++i) {
                coopMatLoad(a[i], tile, tile_a + i * TM * ROW, ROW, gl_CooperativeMatrixLayoutRowMajor);
            }
            [[unroll]] for (uint j = 0; j < NS; ++j) {
                coopmat<int8_t, gl_ScopeSubgroup, TK, TN, gl_MatrixUseB> b;
                coopMatLoad(b, tile, tile_b + j * TN * ROW, ROW, gl_CooperativeMatrixLayoutColumnMajor);
                [[unroll]] for (uint i = 0; i < MS; ++i) {
                    sums[j * MS + i] = coopMatMulAdd(a[i], b, sums[j * MS + i]);
                }
            }
        }
#else
        multiply(m0, step);
#endif
        if (STAGES == 1) {
            barrier();
        }
        if (step + 1 < steps) {
            STORE_STEP(step + 1)
        }
        barrier();
    }

#if defined(TQ_COOPMAT)
    // A subgroup's part of the tile, which is no longer read, takes its sums 16 columns at a time (of each limb): outputs side
    // by side, token after token. An invocation takes four outputs, the same of every token. What handles them is a loop that
    // is not unrolled: its code would be so much that fetching it takes as long as the tile.
    // (Loops over `sums` count in ones: in steps of a specialization constant not every driver unrolls, and then they live in
    // memory.)
    const uint vec    = gl_SubgroupInvocationID % OUT_VECS;
    const uint first  = gl_SubgroupInvocationID / OUT_VECS;
    const uint area   = gl_SubgroupID * LIMBS * TN * OUT_ROW + vec;
    const uint m      = output_of(m0, sub_m + vec * 4);
    vec4 a[RANKS];
    if (LOW_RANK != 0) {
        store_low_rank(m0, t0, 0);
        barrier();
        [[unroll]] for (uint k = 0; k < RANKS; ++k) {
            a[k] = low_rank_p(sub_m + vec * 4, k);
        }
    }
    [[unroll]] for (uint pair = 0; pair < NS / LIMBS; ++pair) {
        [[unroll]] for (uint l = 0; l < LIMBS; ++l) {
            [[unroll]] for (uint i = 0; i < MS; ++i) {
                coopMatStore(sums[(pair * LIMBS + l) * MS + i], tile, area - vec + l * TN * OUT_ROW + i * TM / 4, OUT_ROW,
                             gl_CooperativeMatrixLayoutColumnMajor);
            }
        }
        controlBarrier(gl_ScopeSubgroup, gl_ScopeSubgroup, gl_StorageSemanticsShared, gl_SemanticsAcquireRelease);
        const uint t = token_of(sub_n + pair * LIMBS * TN);
        [[dont_unroll]] for (uint i = first; i < TN; i += LANES / OUT_VECS) {
            vec4 y = vec4(ivec4(tile[area + i * OUT_ROW]));
            if (LIMBS == 2) {
                y = both_limbs(y, vec4(ivec4(tile[area + (TN + i) * OUT_ROW])));
            }
            y = output_value(m, t0, t + i, y);
            if (LOW_RANK != 0) {
                y = add_low_rank(y, a, t + i);
            }
            write_output(m, t0 + t + i, y);
        }
        controlBarrier(gl_ScopeSubgroup, gl_ScopeSubgroup, gl_StorageSemanticsShared, gl_SemanticsAcquireRelease);
    }
    // Further values of k come onto what each invocation has written.
    if (LOW_RANK != 0) {
        for (uint k0 = RANKS; k0 < p.R; k0 += RANKS) {
            barrier();
            store_low_rank(m0, t0, k0);
            barrier();
            [[unroll]] for (uint k = 0; k < RANKS; ++k) {
                a[k] = low_rank_p(sub_m + vec * 4, k);
            }
            [[dont_unroll]] for (uint i = first; i < WN / LIMBS; i += LANES / OUT_VECS) {
                const uint t = token_of(sub_n) + i;
                write_output(m, t0 + t, add_low_rank(read_output(m, t0 + t), a, t));
            }
        }
    }
#else
    put_sums(m0, t0);
#endif
}
