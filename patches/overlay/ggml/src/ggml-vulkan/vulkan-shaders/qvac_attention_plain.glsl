// Tiles of attention in f32 on any device: each invocation has TM x TN scores, and of the output the same rows and every
// COL_THREADS-th column. Operands come through shared memory in pieces along the summed index, so that its need of shared
// memory hardly grows with D. Sums run in the order of the index.
//
// A kernel defines before it includes this: its slots (the operands that a tile is made of; those below ROW_SLOTS have
// ROWS rows, the others COLS) and, for the backward, QUERIES (how many queries a tile has).

#include "qvac_attention.glsl"

layout(constant_id = 4) const uint TM    = 4;
layout(constant_id = 5) const uint TN    = 4;
layout(constant_id = 6) const uint CHUNK = 16; // values of D per step of SCORES; divides 16
layout(constant_id = 7) const uint STEP  = 16; // columns per step of OUTPUTS; a multiple of 4 that divides COLS

const uint ROW_THREADS = ROWS / TM;
const uint COL_THREADS = COLS / TN; // divides 16; ROW_THREADS * COL_THREADS == BLOCK
const uint ND          = D_PAD / COL_THREADS;
const uint D4          = D_PAD / 4;

// One more word of four per row keeps rows on different banks.
const uint CHUNK4       = CHUNK / 4;
const uint CHUNK_STRIDE = CHUNK4 + 1;
const uint TILE_STRIDE  = COLS / 4 + 1;

shared vec4 chunk[(ROWS + COLS) * CHUNK_STRIDE > STEP * D4 ? (ROWS + COLS) * CHUNK_STRIDE : STEP * D4];
shared vec4 tile[ROWS * TILE_STRIDE];

const float NEG_MAX = -3.402823466e38;

#define LOADER(NAME, WIDE, NARROW)                                         \
    vec4 NAME(const uint i) {                                              \
        if (p.aligned != 0) {                                              \
            return WIDE[i / 4];                                            \
        }                                                                  \
        return vec4(NARROW[i], NARROW[i + 1], NARROW[i + 2], NARROW[i + 3]); \
    }

LOADER(load_q, data_q4, data_q)
LOADER(load_k, data_k4, data_k)
LOADER(load_v, data_v4, data_v)
#if defined(BACKWARD)
LOADER(load_fwd, data_fwd4, data_fwd)
LOADER(load_dy, data_dy4, data_dy)
#endif

#if defined(BACKWARD)

// What the backward needs of each query of a tile: the log-sum-exp of its scores, D = sum_d dy * output, which is what
// softmax takes off every gradient of a score, and the first key that it sees (none where there is no such query).
shared float query_lse[QUERIES];
shared float query_delta[QUERIES];
shared uint  query_first[QUERIES];

shared float part_sum[BLOCK];

void load_queries() {
    const uint lanes = BLOCK / QUERIES;
    const uint row   = tid / lanes;
    const uint t     = query0 + row;

    float sum = 0.0;
    if (t < p.T) {
        const uint at = query_row(t);
        for (uint d = 4 * (tid % lanes); d < p.D; d += 4 * lanes) {
            sum += dot(load_dy(p.dy_offset + at + d), load_fwd(p.fwd_offset + at + d));
        }
    }
    part_sum[tid] = sum;
    barrier();

    if (tid < QUERIES) {
        const uint query = query0 + tid;
        float delta = 0.0;
        for (uint i = 0; i < lanes; ++i) {
            delta += part_sum[tid * lanes + i];
        }
        const bool exists = query < p.T;
        query_delta[tid] = delta;
        query_first[tid] = exists ? first_of(query) : 0xffffffffu;
        query_lse[tid]   = exists ? data_fwd[p.fwd_offset + p.T * p.H * p.D + query * p.H + head] : 0.0;
    }
    barrier();
}

#endif

// Four values of a row of a slot, zeros where there is none.
vec4 fetch(const uint slot, const uint row, const uint d4) {
    const bool of_query = slot == SLOT_Q
#if defined(BACKWARD)
        || slot == SLOT_DY
#endif
        ;
    const uint t = (of_query ? query0 : key0) + row;
    if (t >= p.T || 4 * d4 >= p.D) {
        return vec4(0.0);
    }
    const uint at = (of_query ? query_row(t) : key_row(t)) + 4 * d4;
    if (slot == SLOT_Q) {
        return load_q(p.q_offset + at);
    }
    if (slot == SLOT_K) {
        return load_k(p.k_offset + at);
    }
#if defined(BACKWARD)
    if (slot == SLOT_DY) {
        return load_dy(p.dy_offset + at);
    }
#endif
    return load_v(p.v_offset + at);
}

#define SCORE_TILE(name)  float name[TM][TN]
#define OUTPUT_TILE(name) float name[TM][ND]
#define ZERO_OUTPUTS(o)                         \
    [[unroll]] for (uint i_ = 0; i_ < TM; ++i_) \
        [[unroll]] for (uint j_ = 0; j_ < ND; ++j_) o[i_][j_] = 0.0;

#define EACH_SCORE(f, e) [[unroll]] for (uint f = 0; f < TM; ++f) [[unroll]] for (uint e = 0; e < TN; ++e)
#define SCORE_ROW(f, e)  (tid / COL_THREADS + (f) * ROW_THREADS)
#define SCORE_COL(f, e)  (tid % COL_THREADS + (e) * COL_THREADS)

#define EACH_OUTPUT(f, e) [[unroll]] for (uint f = 0; f < TM; ++f) [[unroll]] for (uint e = 0; e < ND; ++e)
#define OUTPUT_ROW(f, e)  SCORE_ROW(f, e)
#define OUTPUT_COL(f, e)  SCORE_COL(f, e)

void tile_put(const uint row, const uint col, const float value) {
    tile[row * TILE_STRIDE + col / 4][col % 4] = value;
}

// Scores on their way to becoming probabilities lie where those will.
void score_put(const uint row, const uint col, const float value) {
    tile_put(row, col, value);
}

float score_get(const uint row, const uint col) {
    return tile[row * TILE_STRIDE + col / 4][col % 4];
}

// s[row][col] = sum_d a[row][d] * b[col][d]
void scores(out float s[TM][TN], const uint a, const uint b) {
    const uint tr = tid / COL_THREADS;
    const uint tc = tid % COL_THREADS;

    [[unroll]] for (uint i = 0; i < TM; ++i) {
        [[unroll]] for (uint j = 0; j < TN; ++j) {
            s[i][j] = 0.0;
        }
    }
    for (uint d0 = 0; d0 < D4; d0 += CHUNK4) {
        barrier();
        for (uint i = tid; i < ROWS * CHUNK4; i += BLOCK) {
            chunk[i / CHUNK4 * CHUNK_STRIDE + i % CHUNK4] = fetch(a, i / CHUNK4, d0 + i % CHUNK4);
        }
        for (uint i = tid; i < COLS * CHUNK4; i += BLOCK) {
            chunk[(ROWS + i / CHUNK4) * CHUNK_STRIDE + i % CHUNK4] = fetch(b, i / CHUNK4, d0 + i % CHUNK4);
        }
        barrier();

        [[unroll]] for (uint d = 0; d < CHUNK4; ++d) {
            vec4 av[TM];
            [[unroll]] for (uint i = 0; i < TM; ++i) {
                av[i] = chunk[(tr + i * ROW_THREADS) * CHUNK_STRIDE + d];
            }
            [[unroll]] for (uint j = 0; j < TN; ++j) {
                const vec4 bv = chunk[(ROWS + tc + j * COL_THREADS) * CHUNK_STRIDE + d];
                [[unroll]] for (uint i = 0; i < TM; ++i) {
                    s[i][j] += av[i].x * bv.x;
                    s[i][j] += av[i].y * bv.y;
                    s[i][j] += av[i].z * bv.z;
                    s[i][j] += av[i].w * bv.w;
                }
            }
        }
    }
}

// o[row][d] += sum_col tile[row][col] * b[col][d]
void outputs(inout float o[TM][ND], const uint b) {
    const uint tr = tid / COL_THREADS;
    const uint tc = tid % COL_THREADS;

    for (uint c0 = 0; c0 < COLS; c0 += STEP) {
        barrier();
        for (uint i = tid; i < STEP * D4; i += BLOCK) {
            chunk[i] = fetch(b, c0 + i / D4, i % D4);
        }
        barrier();

        for (uint c = 0; c < STEP; c += 4) {
            vec4 av[TM];
            [[unroll]] for (uint i = 0; i < TM; ++i) {
                av[i] = tile[(tr + i * ROW_THREADS) * TILE_STRIDE + (c0 + c) / 4];
            }
            [[unroll]] for (uint k = 0; k < 4; ++k) {
                [[unroll]] for (uint j = 0; j < ND; ++j) {
                    const uint  d  = tc + j * COL_THREADS;
                    const float bv = chunk[(c + k) * D4 + d / 4][d % 4];
                    [[unroll]] for (uint i = 0; i < TM; ++i) {
                        o[i][j] += av[i][k] * bv;
                    }
                }
            }
        }
    }
}
