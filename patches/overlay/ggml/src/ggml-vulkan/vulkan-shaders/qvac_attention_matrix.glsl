// Tiles of attention on cooperative matrices of 16x16x16: f16 operands, f32 sums.
//
// ROWS are shared out among groups of SPLIT subgroups of 32 invocations. A group has all scores of its rows, and all of
// their output: its subgroups share the columns of either. Probabilities and gradients of scores go through shared memory
// to become operands, so that with SPLIT == 1 a subgroup waits for others only where columns are staged.
//
// An invocation does not know which elements of a matrix it holds. It finds out by loading a matrix of their numbers.
//
// IMITATION does the same with loops over private arrays, so that the kernels' logic runs (slowly) on devices without
// cooperative matrices: for tests, with QVAC_VK_ATTENTION=imitation.
//
// A kernel defines before it includes this ROW_SLOTS (how many operands of ROWS rows it has).

#extension GL_EXT_shader_explicit_arithmetic_types_float16 : require

#if defined(COOPMAT)
#extension GL_KHR_shader_subgroup_basic : require
#extension GL_KHR_shader_subgroup_ballot : require
#extension GL_KHR_memory_scope_semantics : enable
#extension GL_KHR_cooperative_matrix : require
#endif

#include "qvac_attention.glsl"

#if defined(COOPMAT)
#define UNROLL [[unroll]]
#else
#define UNROLL [[dont_unroll]] // a software device compiles for seconds else
#endif

layout(constant_id = 4) const uint SPLIT = 1;
layout(constant_id = 5) const uint KEEP  = 1; // not 0: operands of ROWS rows stay in registers

const uint D4     = D_PAD / 4;
const uint DB     = D_PAD / 16;
const uint CB     = COLS / 16;
const uint GROUPS = BLOCK / 32 / SPLIT;
const uint RB     = ROWS / 16 / GROUPS;         // blocks of rows of a group
const uint S_COLS = CB / SPLIT;                 // blocks of scores of a subgroup, in a row of blocks
const uint O_COLS = (DB + SPLIT - 1) / SPLIT;   // the same of outputs; the last subgroup may have fewer
const uint NS     = RB * S_COLS;
const uint NO     = RB * O_COLS;

// Shared memory, in words of four halves: strides of 16 bytes more than a row keep rows on different banks. First come the
// operands that are staged: one of ROWS rows on its way to registers, and in its place two of COLS rows each; or those of
// ROWS rows that stay, and the others behind them. Then comes a tile of ROWS x COLS.
//
// Little is declared, and used more than once: how many workgroups a core has under way goes by it. Its elements are
// halves, for where they are not NVIDIA's driver loads matrices in small pieces.
const uint SLOT_STRIDE = D4 + 2;
const uint TILE_STRIDE = COLS / 4 + 2;
const uint COLS_AT     = KEEP != 0 ? 0 : ROW_SLOTS * ROWS;
const uint ROWS_END    = KEEP != 0 ? ROWS : COLS_AT;
const uint COLS_END    = COLS_AT + 2 * COLS;
const uint TILE_AT     = (ROWS_END > COLS_END ? ROWS_END : COLS_END) * SLOT_STRIDE;
const uint TILE_END    = TILE_AT + ROWS * TILE_STRIDE;

// A matrix of floats, 16 bytes more a row, takes the place of others. In the end each subgroup has one.
const uint FLOAT_STRIDE = 10;
const uint FLOATS_SIZE  = 16 * FLOAT_STRIDE;
const uint FLOATS_END   = BLOCK / 32 * FLOATS_SIZE;

shared f16vec4 memory[TILE_END > FLOATS_END ? TILE_END : FLOATS_END];

#define SLOT_ROWS(n) (KEEP != 0 ? 0 : (n) * ROWS)
#define SLOT_COLS(n) (COLS_AT + (n) * COLS)

vec4 floats_at(const uint at) {
    const f16vec4 a = memory[at];
    const f16vec4 b = memory[at + 1];
    return uintBitsToFloat(uvec4(packFloat2x16(a.xy), packFloat2x16(a.zw), packFloat2x16(b.xy), packFloat2x16(b.zw)));
}

void put_floats(const uint at, const vec4 values) {
    const uvec4 bits = floatBitsToUint(values);
    memory[at]     = f16vec4(unpackFloat2x16(bits.x), unpackFloat2x16(bits.y));
    memory[at + 1] = f16vec4(unpackFloat2x16(bits.z), unpackFloat2x16(bits.w));
}

const float LOG2_E = 1.4426950408889634;
const float LN_2   = 0.6931471805599453;
const float UNSEEN = -3e38; // a score whose weight is 0

#define OF_Q  0
#define OF_K  1
#define OF_V  2
#define OF_DY 3

// Four values of a tensor of those, at a multiple of four or anywhere.
vec4 load_aligned(const uint tensor, const uint i) {
    if (tensor == OF_Q) {
        return data_q4[i / 4];
    }
    if (tensor == OF_K) {
        return data_k4[i / 4];
    }
#if defined(BACKWARD)
    if (tensor == OF_DY) {
        return data_dy4[i / 4];
    }
#endif
    return data_v4[i / 4];
}

vec4 load_any(const uint tensor, const uint i) {
    if (tensor == OF_Q) {
        return vec4(data_q[i], data_q[i + 1], data_q[i + 2], data_q[i + 3]);
    }
    if (tensor == OF_K) {
        return vec4(data_k[i], data_k[i + 1], data_k[i + 2], data_k[i + 3]);
    }
#if defined(BACKWARD)
    if (tensor == OF_DY) {
        return vec4(data_dy[i], data_dy[i + 1], data_dy[i + 2], data_dy[i + 3]);
    }
#endif
    return vec4(data_v[i], data_v[i + 1], data_v[i + 2], data_v[i + 3]);
}

uint offset_of(const uint tensor) {
    if (tensor == OF_Q) {
        return p.q_offset;
    }
    if (tensor == OF_K) {
        return p.k_offset;
    }
    return tensor == OF_DY ? p.dy_offset : p.v_offset;
}

#if defined(BACKWARD)

// f16 holds 6e-8 .. 65504 and gradients are often smaller: dy is multiplied by a power of two, of a row or of all that are
// staged at once.
#if defined(ONE_SCALE)
float dy_scale;
#define DY_SCALE(row) dy_scale
#else
shared float dy_scale[ROWS];
#define DY_SCALE(row) dy_scale[row]
#endif

// Brings `largest` to 8 .. 16. Both it and its inverse are normal numbers.
float scale_of(const float largest) {
    return 8.0 * uintBitsToFloat((254u - clamp((floatBitsToUint(largest) >> 23) & 0xffu, 4u, 253u)) << 23);
}

// What leaves the range of f16 (values of V in the thousands) is cut off, a NaN stays one.
float f16_range(const float x) {
    return abs(x) > 65504.0 ? sign(x) * 65504.0 : x;
}

#endif

// Row i of a tensor's rows from token t0 on, times what it is multiplied by. Rows beyond the last are copies of it.
void put(const uint at, const uint tensor, const uint t0, const uint i, const bool aligned) {
    const uint row    = i / D4;
    const uint d      = 4 * (i % D4);
    const uint t      = min(t0 + row, p.T - 1);
    const uint from   = offset_of(tensor) + (tensor == OF_Q || tensor == OF_DY ? query_row(t) : key_row(t)) + min(d, p.D - 4);
    vec4       values = aligned ? load_aligned(tensor, from) : load_any(tensor, from);
    if (tensor == OF_Q) {
        values *= p.scale * LOG2_E; // what softmax needs is powers of two
    }
#if defined(BACKWARD)
    if (tensor == OF_DY) {
        values *= DY_SCALE(row);
    }
#endif
    memory[(at + row) * SLOT_STRIDE + i % D4] = d < p.D ? f16vec4(values) : f16vec4(0.0hf);
}

void stage(const uint at, const uint rows, const uint tensor, const uint t0) {
    if (p.aligned != 0) {
        UNROLL for (uint i = 0; i < rows * D4; i += BLOCK) {
            if (i + tid < rows * D4) {
                put(at, tensor, t0, i + tid, true);
            }
        }
    } else {
        for (uint i = tid; i < rows * D4; i += BLOCK) {
            put(at, tensor, t0, i, false);
        }
    }
}

// Elements of a matrix that an invocation has.
#define ELEMENTS 8

// Where they lie.
uint element_row[ELEMENTS];
uint element_col[ELEMENTS];

#if defined(COOPMAT)

#define SUBGROUP gl_SubgroupID

#define SUBGROUP_BARRIER()          \
    subgroupMemoryBarrierShared();  \
    subgroupBarrier()

#define SUBGROUP_ANY(x) (subgroupBallot(x) != uvec4(0))
#define SUBGROUP_IF(x)  if (x)

#define MATRIX_SUM           coopmat<float, gl_ScopeSubgroup, 16, 16, gl_MatrixUseAccumulator>
#define MATRICES_A(name, n)  coopmat<float16_t, gl_ScopeSubgroup, 16, 16, gl_MatrixUseA> name[n]
#define MATRIX_B(name)       coopmat<float16_t, gl_ScopeSubgroup, 16, 16, gl_MatrixUseB> name
#define MATRIX_SUMS(name, n) MATRIX_SUM name[n]

void find_elements() {
    for (uint i = tid; i < 64; i += BLOCK) {
        put_floats(i / 4 * FLOAT_STRIDE + i % 4 * 2, 4.0 * float(i) + vec4(0, 1, 2, 3));
    }
    barrier();
    MATRIX_SUM where;
    coopMatLoad(where, memory, 0, FLOAT_STRIDE, gl_CooperativeMatrixLayoutRowMajor);
    UNROLL for (uint e = 0; e < ELEMENTS; ++e) {
        element_row[e] = uint(where[e]) / 16;
        element_col[e] = uint(where[e]) % 16;
    }
    barrier();
}

#define LOAD_STAGED(m, at)            coopMatLoad(m, memory, at, SLOT_STRIDE, gl_CooperativeMatrixLayoutRowMajor)
#define LOAD_STAGED_TRANSPOSED(m, at) coopMatLoad(m, memory, at, SLOT_STRIDE, gl_CooperativeMatrixLayoutColumnMajor)
#define LOAD_TILE(m, at)              coopMatLoad(m, memory, TILE_AT + (at), TILE_STRIDE, gl_CooperativeMatrixLayoutRowMajor)
#define STORE_TILE(sum, at)                                                                                     \
    coopMatStore(coopmat<float16_t, gl_ScopeSubgroup, 16, 16, gl_MatrixUseAccumulator>(sum), memory, TILE_AT + (at), \
                 TILE_STRIDE, gl_CooperativeMatrixLayoutRowMajor)
#define STORE_FLOATS(sum, at) coopMatStore(sum, memory, at, FLOAT_STRIDE, gl_CooperativeMatrixLayoutRowMajor)

#define SET_ZERO(sum)      sum = MATRIX_SUM(0.0)
#define MUL_ADD(sum, a, b) sum = coopMatMulAdd(a, b, sum)

#else

// The whole workgroup takes every turn that one of its subgroups takes: barriers are its.
#define SUBGROUP           (tid / 32)
#define SUBGROUP_BARRIER() barrier()
#define SUBGROUP_ANY(x)    any_of_workgroup(x)
#define SUBGROUP_IF(x)     if (true)

shared uint votes;

bool any_of_workgroup(const bool x) {
    barrier();
    votes = 0;
    barrier();
    if (x) {
        votes = 1;
    }
    barrier();
    return votes != 0;
}

#define MATRICES_A(name, n)  float name[n][256]
#define MATRIX_B(name)       float name[256]
#define MATRIX_SUMS(name, n) float name[n][ELEMENTS]

void find_elements() {
    for (uint e = 0; e < ELEMENTS; ++e) {
        element_row[e] = tid % 32 / 16 + 2 * e;
        element_col[e] = tid % 16;
    }
}

#define LOAD_STAGED(m, at) \
    for (uint i_ = 0; i_ < 256; ++i_) m[i_] = float(memory[(at) + i_ / 16 * SLOT_STRIDE + i_ % 16 / 4][i_ % 4])
#define LOAD_STAGED_TRANSPOSED(m, at) \
    for (uint i_ = 0; i_ < 256; ++i_) m[i_] = float(memory[(at) + i_ % 16 * SLOT_STRIDE + i_ / 64][i_ / 16 % 4])
#define LOAD_TILE(m, at) \
    for (uint i_ = 0; i_ < 256; ++i_) m[i_] = float(memory[TILE_AT + (at) + i_ / 16 * TILE_STRIDE + i_ % 16 / 4][i_ % 4])
#define STORE_TILE(sum, at)                    \
    for (uint i_ = 0; i_ < ELEMENTS; ++i_)     \
        memory[TILE_AT + (at) + element_row[i_] * TILE_STRIDE + element_col[i_] / 4][element_col[i_] % 4] = float16_t(sum[i_])
#define STORE_FLOATS(sum, at)                  \
    for (uint i_ = 0; i_ < ELEMENTS; ++i_)     \
        store_float((at) + element_row[i_] * FLOAT_STRIDE + element_col[i_] / 2, element_col[i_] % 2, sum[i_])

void store_float(const uint at, const uint n, const float value) {
    const f16vec2 halves = unpackFloat2x16(floatBitsToUint(value));
    memory[at][2 * n]     = halves.x;
    memory[at][2 * n + 1] = halves.y;
}

#define SET_ZERO(sum) \
    for (uint i_ = 0; i_ < ELEMENTS; ++i_) sum[i_] = 0.0
#define MUL_ADD(sum, a, b)                     \
    for (uint i_ = 0; i_ < ELEMENTS; ++i_)     \
        for (uint j_ = 0; j_ < 16; ++j_) sum[i_] += a[16 * element_row[i_] + j_] * b[16 * j_ + element_col[i_]]

#endif

// The first row of a group, and the first blocks of a subgroup in a row of scores and of outputs.
#define ROW_0   (SUBGROUP / SPLIT * RB * 16)
#define S_COL_0 (SUBGROUP % SPLIT * S_COLS)
#define O_COL_0 (SUBGROUP % SPLIT * O_COLS)

// Waits for the subgroups that share rows.
#define GROUP_BARRIER()      \
    if (SPLIT == 1) {        \
        SUBGROUP_BARRIER();  \
    } else {                 \
        barrier();           \
    }

// Goes through blocks and elements: of a tile of scores, s[EACH], or of outputs.
#define EACH_ROW(rb, e)  UNROLL for (uint rb = 0; rb < RB; ++rb) UNROLL for (uint e = 0; e < ELEMENTS; ++e)
#define EACH_SCORE(cb)   UNROLL for (uint cb = 0; cb < S_COLS; ++cb)
#define EACH_OUTPUT(db)  UNROLL for (uint db = 0; db < O_COLS; ++db) if (DB % SPLIT == 0 || O_COL_0 + db < DB)
#define ROW_OF(rb, e)    (ROW_0 + 16 * (rb) + element_row[e])
#define SCORE_COL(cb, e) (16 * (S_COL_0 + (cb)) + element_col[e])

#define ZERO(sums, n) \
    UNROLL for (uint f_ = 0; f_ < (n); ++f_) SET_ZERO(sums[f_])

// The operand of a slot of ROWS rows, where it stays in registers. Others may be staged after a barrier.
#define ROW_OPERAND(name) MATRICES_A(name, KEEP != 0 ? RB * DB : 1)
#define KEEP_ROWS(name, a)                                                                \
    if (KEEP != 0) {                                                                    \
        UNROLL for (uint rb_ = 0; rb_ < RB; ++rb_) UNROLL for (uint k_ = 0; k_ < DB; ++k_) \
            LOAD_STAGED(name[rb_ * DB + k_], ((a) + ROW_0 + 16 * rb_) * SLOT_STRIDE + 4 * k_); \
    }

// s[row][col] = sum_d a[row][d] * b[col][d], where `kept` or the rows from `a` on hold the former.
#define SCORES(s, kept, a, b)                                                                               \
    ZERO(s, NS);                                                                                            \
    UNROLL for (uint k_ = 0; k_ < DB; ++k_) {                                                               \
        MATRICES_A(a_, RB);                                                                                 \
        if (KEEP == 0) {                                                                                    \
            UNROLL for (uint rb_ = 0; rb_ < RB; ++rb_)                                                      \
                LOAD_STAGED(a_[rb_], ((a) + ROW_0 + 16 * rb_) * SLOT_STRIDE + 4 * k_);                      \
        }                                                                                                   \
        UNROLL for (uint cb_ = 0; cb_ < S_COLS; ++cb_) {                                                    \
            MATRIX_B(b_);                                                                                   \
            LOAD_STAGED_TRANSPOSED(b_, ((b) + 16 * (S_COL_0 + cb_)) * SLOT_STRIDE + 4 * k_);                \
            UNROLL for (uint rb_ = 0; rb_ < RB; ++rb_) {                                                    \
                if (KEEP != 0) {                                                                            \
                    MUL_ADD(s[rb_ * S_COLS + cb_], kept[rb_ * DB + k_], b_);                                \
                } else {                                                                                    \
                    MUL_ADD(s[rb_ * S_COLS + cb_], a_[rb_], b_);                                            \
                }                                                                                           \
            }                                                                                               \
        }                                                                                                   \
    }

#define STORE_SCORES(s)                                                                                     \
    UNROLL for (uint rb_ = 0; rb_ < RB; ++rb_) UNROLL for (uint cb_ = 0; cb_ < S_COLS; ++cb_)               \
        STORE_TILE(s[rb_ * S_COLS + cb_], (ROW_0 + 16 * rb_) * TILE_STRIDE + 4 * (S_COL_0 + cb_))

// o[row][d] += sum_col tile[row][col] * b[col][d]
#define OUTPUTS(o, b)                                                                                       \
    UNROLL for (uint k_ = 0; k_ < CB; ++k_) {                                                               \
        MATRICES_A(a_, RB);                                                                                 \
        UNROLL for (uint rb_ = 0; rb_ < RB; ++rb_)                                                          \
            LOAD_TILE(a_[rb_], (ROW_0 + 16 * rb_) * TILE_STRIDE + 4 * k_);                        \
        EACH_OUTPUT(db_) {                                                                                  \
            MATRIX_B(b_);                                                                                   \
            LOAD_STAGED(b_, ((b) + 16 * k_) * SLOT_STRIDE + 4 * (O_COL_0 + db_));                           \
            UNROLL for (uint rb_ = 0; rb_ < RB; ++rb_)                                                      \
                MUL_ADD(o[rb_ * O_COLS + db_], a_[rb_], b_);                                                \
        }                                                                                                   \
    }

void write(const uint at, const vec4 values) {
    if (p.aligned != 0) {
        data_dst4[at / 4] = values;
    } else {
        for (uint i = 0; i < 4; ++i) {
            data_dst[at + i] = values[i];
        }
    }
}

// Writes outputs times a factor: row r_ of the workgroup's goes to row_fn(t0 + r_) from `at` on. It passes through shared
// memory that was for something else, so that invocations write neighbouring values.
#define WRITE_OUTPUTS(o, at, row_fn, t0, factor)                                                            \
    barrier();                                                                                              \
    UNROLL for (uint rb_ = 0; rb_ < RB; ++rb_) {                                                            \
        UNROLL for (uint db_ = 0; db_ < O_COLS; ++db_) {                                                    \
            STORE_FLOATS(o[rb_ * O_COLS + db_], SUBGROUP * FLOATS_SIZE);                                    \
            SUBGROUP_BARRIER();                                                                             \
            UNROLL for (uint i_ = 0; i_ < 64; i_ += 32) {                                                   \
                const uint j_ = (i_ + tid % 32) / 4;                                                        \
                const uint d_ = 4 * (tid % 4);                                                              \
                const uint r_ = ROW_0 + 16 * rb_ + j_;                                                      \
                if ((t0) + r_ < p.T && 16 * (O_COL_0 + db_) + d_ < p.D) {                                   \
                    write((at) + row_fn((t0) + r_) + 16 * (O_COL_0 + db_) + d_,                             \
                          floats_at(SUBGROUP * FLOATS_SIZE + j_ * FLOAT_STRIDE + d_ / 2) * (factor));       \
                }                                                                                           \
            }                                                                                               \
            SUBGROUP_BARRIER();                                                                             \
        }                                                                                                   \
    }
