// Tiles of attention on cooperative matrices of 16x16x16: f16 operands, f32 sums. A tile of scores, like the tile of the
// output, is a grid of blocks that is shared out evenly among the subgroups, which have 32 invocations each.
//
// An invocation does not know which elements of a block it holds. It finds out by loading a block of their numbers, and
// masks, softmax and the epilogue then go through its elements one by one, as in the plain engine.
//
// IMITATION does the same with loops over private arrays, so that the kernels' logic runs (slowly) on devices without
// cooperative matrices: for tests, with QVAC_VK_ATTENTION=imitation.

#extension GL_EXT_shader_explicit_arithmetic_types_float16 : require

#if defined(COOPMAT)
#extension GL_KHR_shader_subgroup_basic : require
#extension GL_KHR_memory_scope_semantics : enable
#extension GL_KHR_cooperative_matrix : require
#define UNROLL [[unroll]]
#else
#define UNROLL [[dont_unroll]] // a software device compiles for seconds else
#endif

const uint D4         = D_PAD / 4;
const uint SUBGROUPS  = BLOCK / 32;
const uint SCORE_COLS = COLS / 16;
const uint NS         = ROWS / 16 * SCORE_COLS / SUBGROUPS; // divides without rest
const uint D_BLOCKS   = D_PAD / 16;
const uint OUTPUTS_ALL = ROWS / 16 * D_BLOCKS;
const uint NO         = (OUTPUTS_ALL + SUBGROUPS - 1) / SUBGROUPS;

// 0: the blocks of the output that one subgroup has lie in one row of the grid, and share an operand.
const uint ROWS_DIFFER = D_BLOCKS % NO + OUTPUTS_ALL % SUBGROUPS;

// Strides of 16 bytes more than a row keep rows on different banks.
const uint SLOT_STRIDE = D4 + 2;    // of four values
const uint TILE_STRIDE = COLS + 8;  // of values

shared f16vec4   staged[(ROW_SLOTS * ROWS + COL_SLOTS * COLS) * SLOT_STRIDE];
shared float16_t tile[ROWS * TILE_STRIDE];

uint slot_row(const uint slot) {
    return slot < ROW_SLOTS ? slot * ROWS : ROW_SLOTS * ROWS + (slot - ROW_SLOTS) * COLS;
}

void stage(const uint slot) {
    const uint rows = slot < ROW_SLOTS ? ROWS : COLS;
    UNROLL for (uint i0 = 0; i0 < rows * D4; i0 += BLOCK) {
        const uint i = i0 + tid;
        if (i < rows * D4) {
            staged[(slot_row(slot) + i / D4) * SLOT_STRIDE + i % D4] = f16vec4(fetch(slot, i / D4, i % D4));
        }
    }
}

void tile_put(const uint row, const uint col, const float value) {
    tile[row * TILE_STRIDE + col] = float16_t(value);
}

#if !defined(BACKWARD)

// Scores stay f32 until they are probabilities.
const uint SCORE_STRIDE = COLS + 4;

shared float score_rows[ROWS * SCORE_STRIDE];

void score_put(const uint row, const uint col, const float value) {
    score_rows[row * SCORE_STRIDE + col] = value;
}

float score_get(const uint row, const uint col) {
    return score_rows[row * SCORE_STRIDE + col];
}

#else

// Gradients of scores are as small as probabilities are: this keeps them off the lower end of f16. What would still
// leave it above (values of V in the thousands) is cut off, a NaN stays one.
const float GRADIENT_SCALE = 8.0;
const float F16_MAX        = 65504.0;

float gradient_in_f16(const float x) {
    const float scaled = x * GRADIENT_SCALE;
    return abs(scaled) > F16_MAX ? sign(scaled) * F16_MAX : scaled;
}

#define SCORE_GRADIENT(x)         gradient_in_f16(x)
#define INVERSE_SCALE(r)          (1.0 / query_scale[r])
#define INVERSE_GRADIENT_SCALE(r) (1.0 / query_scale[r] / GRADIENT_SCALE)

#endif

#define STAGE(slot)      stage(slot)
#define ENGINE_BARRIER() barrier()

#if defined(COOPMAT)

shared float positions[256];

#define SUBGROUP gl_SubgroupID

#define MATRIX_A(name)    coopmat<float16_t, gl_ScopeSubgroup, 16, 16, gl_MatrixUseA> name
#define MATRIX_B(name)    coopmat<float16_t, gl_ScopeSubgroup, 16, 16, gl_MatrixUseB> name
#define MATRIX_SUM        coopmat<float, gl_ScopeSubgroup, 16, 16, gl_MatrixUseAccumulator>
#define MATRIX_SUMS(name, n) MATRIX_SUM name[n]

#define ENGINE_INIT()                                 \
    for (uint i_ = tid; i_ < 256; i_ += BLOCK) {      \
        positions[i_] = float(i_);                    \
    }                                                 \
    barrier();                                        \
    MATRIX_SUM where_;                                \
    coopMatLoad(where_, positions, 0, 16, gl_CooperativeMatrixLayoutRowMajor);

#define ELEMENTS    uint(where_.length())
#define POSITION(e) uint(where_[e])

#define LOAD_STAGED(m, at)            coopMatLoad(m, staged, at, SLOT_STRIDE, gl_CooperativeMatrixLayoutRowMajor)
#define LOAD_STAGED_TRANSPOSED(m, at) coopMatLoad(m, staged, at, SLOT_STRIDE, gl_CooperativeMatrixLayoutColumnMajor)
#define LOAD_TILE(m, at)              coopMatLoad(m, tile, at, TILE_STRIDE, gl_CooperativeMatrixLayoutRowMajor)

#define SET_ZERO(sum)                sum = MATRIX_SUM(0.0)
#define MUL_ADD(sum, a, b)           sum = coopMatMulAdd(a, b, sum)
#define ADD_SCALED(sum, add, factor) sum = sum + add * (factor)

#else

#define SUBGROUP (tid / 32)

#define MATRIX_A(name)       float name[256]
#define MATRIX_B(name)       float name[256]
#define MATRIX_SUMS(name, n) float name[n][8]

#define ENGINE_INIT()

#define ELEMENTS    8
#define POSITION(e) (tid % 32 + 32 * (e))

#define LOAD_STAGED(m, at) \
    for (uint i_ = 0; i_ < 256; ++i_) m[i_] = float(staged[(at) + i_ / 16 * SLOT_STRIDE + i_ % 16 / 4][i_ % 4])
#define LOAD_STAGED_TRANSPOSED(m, at) \
    for (uint i_ = 0; i_ < 256; ++i_) m[i_] = float(staged[(at) + i_ % 16 * SLOT_STRIDE + i_ / 64][i_ / 16 % 4])
#define LOAD_TILE(m, at) \
    for (uint i_ = 0; i_ < 256; ++i_) m[i_] = float(tile[(at) + i_ / 16 * TILE_STRIDE + i_ % 16])

#define SET_ZERO(sum) \
    for (uint i_ = 0; i_ < 8; ++i_) sum[i_] = 0.0
#define MUL_ADD(sum, a, b)             \
    for (uint i_ = 0; i_ < 8; ++i_)    \
        for (uint j_ = 0; j_ < 16; ++j_) sum[i_] += a[POSITION(i_) / 16 * 16 + j_] * b[16 * j_ + POSITION(i_) % 16]
#define ADD_SCALED(sum, add, factor) \
    for (uint i_ = 0; i_ < 8; ++i_) sum[i_] += add[i_] * (factor)

#endif

#define SCORE_TILE(name)  MATRIX_SUMS(name, NS)
#define OUTPUT_TILE(name) MATRIX_SUMS(name, NO)
#define ZERO_OUTPUTS(o) \
    UNROLL for (uint f_ = 0; f_ < NO; ++f_) SET_ZERO(o[f_])

#define EACH_SCORE(f, e) UNROLL for (uint f = 0; f < NS; ++f) UNROLL for (uint e = 0; e < ELEMENTS; ++e)
#define SCORE_ROW(f, e)  ((SUBGROUP * NS + (f)) / SCORE_COLS * 16 + POSITION(e) / 16)
#define SCORE_COL(f, e)  ((SUBGROUP * NS + (f)) % SCORE_COLS * 16 + POSITION(e) % 16)

// The last subgroup may have fewer blocks of the output than the others.
#define EACH_OUTPUT(f, e) UNROLL for (uint f = 0; f < NO; ++f) UNROLL for (uint e = 0; e < ELEMENTS; ++e)
#define OUTPUT_LIVE(f)    (SUBGROUP * NO + (f) < OUTPUTS_ALL)
#define OUTPUT_ROW(f, e)  ((SUBGROUP * NO + (f)) / D_BLOCKS * 16 + POSITION(e) / 16)
#define OUTPUT_COL(f, e)  ((SUBGROUP * NO + (f)) % D_BLOCKS * 16 + POSITION(e) % 16)

// s[row][col] = sum_d a[row][d] * b[col][d]
#define SCORES(s, a, b)                                                                                     \
    UNROLL for (uint f_ = 0; f_ < NS; ++f_) {                                                           \
        const uint block_ = SUBGROUP * NS + f_;                                                             \
        const uint at_a_  = (slot_row(a) + block_ / SCORE_COLS * 16) * SLOT_STRIDE;                         \
        const uint at_b_  = (slot_row(b) + block_ % SCORE_COLS * 16) * SLOT_STRIDE;                         \
        SET_ZERO(s[f_]);                                                                                    \
        UNROLL for (uint k_ = 0; k_ < D_BLOCKS; ++k_) {                                                 \
            MATRIX_A(a_);                                                                                   \
            MATRIX_B(b_);                                                                                   \
            LOAD_STAGED(a_, at_a_ + 4 * k_);                                                                \
            LOAD_STAGED_TRANSPOSED(b_, at_b_ + 4 * k_);                                                     \
            MUL_ADD(s[f_], a_, b_);                                                                         \
        }                                                                                                   \
    }

// o[row][d] += sum_col tile[row][col] * b[col][d]
#define OUTPUTS(o, slot)                                                                                    \
    UNROLL for (uint k_ = 0; k_ < SCORE_COLS; ++k_) {                                                   \
        MATRIX_A(a_);                                                                                       \
        if (ROWS_DIFFER == 0) {                                                                                 \
            LOAD_TILE(a_, SUBGROUP * NO / D_BLOCKS * 16 * TILE_STRIDE + 16 * k_);                           \
        }                                                                                                   \
        UNROLL for (uint f_ = 0; f_ < NO; ++f_) {                                                       \
            const uint block_ = SUBGROUP * NO + f_;                                                         \
            if (block_ < OUTPUTS_ALL) {                                                                     \
                MATRIX_B(b_);                                                                               \
                if (ROWS_DIFFER != 0) {                                                                         \
                    LOAD_TILE(a_, block_ / D_BLOCKS * 16 * TILE_STRIDE + 16 * k_);                          \
                }                                                                                           \
                LOAD_STAGED(b_, (slot_row(slot) + 16 * k_) * SLOT_STRIDE + block_ % D_BLOCKS * 4);          \
                MUL_ADD(o[f_], a_, b_);                                                                     \
            }                                                                                               \
        }                                                                                                   \
    }

// The same times a number: tiles whose operands were scaled differently add up.
#define OUTPUTS_SCALED(o, slot, factor)             \
    {                                               \
        OUTPUT_TILE(part_);                         \
        ZERO_OUTPUTS(part_);                        \
        OUTPUTS(part_, slot)                        \
        UNROLL for (uint f_ = 0; f_ < NO; ++f_) { \
            ADD_SCALED(o[f_], part_[f_], factor);   \
        }                                           \
    }
