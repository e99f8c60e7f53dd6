// What the kernels of exact attention share (docs/exactness.md): parameters, operands, and tiles of scores.
//
// A tile has ROWS rows and 32 columns: a chunk of keys, or a segment of queries. An invocation has four rows next to each other,
// TN columns of the scores, and of an output ND fours of its values. Operands come through shared memory, scores' 32 values of a
// head at a time, which is a segment of their sums.
//
// A kernel defines before it includes this: GRADIENTS for the backward; CACHE where keys lie in a cache, and KV_F16 where that is
// of halves; ONE_QUERY where it has no tiles.

#extension GL_EXT_control_flow_attributes : enable

#include "../../qvac/exact-math.h"

layout(constant_id = 0) const uint ROWS = 64; // 16, 32, 64
layout(constant_id = 1) const uint ND   = 2;  // fours of an output's row that an invocation has

const uint BLOCK = 128;
const uint CHUNK = 32;
const uint TM    = 4;
const uint RT    = ROWS / TM;   // invocations along rows
const uint CT    = BLOCK / RT;  // and along columns
const uint TN    = CHUNK / CT;
const uint VSTEP = ROWS == 16 ? 8 : 16; // columns that are staged at a time for an output

layout(local_size_x = 128, local_size_y = 1, local_size_z = 1) in;

// Offsets and strides in elements.
layout(push_constant) uniform parameter {
    uint  D;
    uint  H;
    uint  group;    // query heads that share a key head
    uint  T;
    uint  n_keys;   // of a cache
    float scale;
    uint  aligned;  // not 0: all offsets and strides are multiples of 4
    uint  q_offset, q_token, q_head;
    uint  k_offset, k_token, k_head;
    uint  v_offset, v_token, v_head;
    uint  see_offset; // of the segments, or of the mask
    uint  mask_token, mask_head, mask_heads;
    uint  dy_offset, dst_offset;
} p;

layout(binding = 0) readonly buffer Q  { float data_q[]; };
layout(binding = 0) readonly buffer Q4 { vec4 data_q4[]; };
#if defined(KV_F16)
layout(binding = 1) readonly buffer K  { uint data_k[]; };
layout(binding = 1) readonly buffer K4 { uvec2 data_k4[]; };
layout(binding = 2) readonly buffer V  { uint data_v[]; };
layout(binding = 2) readonly buffer V4 { uvec2 data_v4[]; };
#else
layout(binding = 1) readonly buffer K  { float data_k[]; };
layout(binding = 1) readonly buffer K4 { vec4 data_k4[]; };
layout(binding = 2) readonly buffer V  { float data_v[]; };
layout(binding = 2) readonly buffer V4 { vec4 data_v4[]; };
#endif
#if defined(CACHE)
layout(binding = 3) readonly buffer Mask { uint data_mask[]; };
#else
layout(binding = 3) readonly buffer Segments { int data_segments[]; };
#endif
#if defined(GRADIENTS)
layout(binding = 4) readonly buffer Stats { vec2 data_stats[]; }; // qvac_exact_attention_delta.comp
layout(binding = 5) readonly buffer Dy  { float data_dy[]; };
layout(binding = 5) readonly buffer Dy4 { vec4 data_dy4[]; };
layout(binding = 6) writeonly buffer Dst { float data_dst[]; };
#else
layout(binding = 4) writeonly buffer Dst { float data_dst[]; };
#endif

#define tid gl_LocalInvocationID.x

// This invocation's place in a tile: its first row over 4, and its first column.
#define tr (tid / CT)
#define tc (tid % CT)

#define MINUS_INFINITY uintBitsToFloat(0xff800000u)

bool is_minus_infinity(const float x) {
    return floatBitsToUint(x) == 0xff800000u;
}

#define LOADER(NAME, WIDE, NARROW)                                         \
    vec4 NAME(const uint i) {                                              \
        if (p.aligned != 0) {                                              \
            return WIDE[i / 4];                                            \
        }                                                                  \
        return vec4(NARROW[i], NARROW[i + 1], NARROW[i + 2], NARROW[i + 3]); \
    }

#define HALF(DATA, i) exact_from_f16(((i) & 1u) != 0u ? DATA[(i) / 2] >> 16 : DATA[(i) / 2] & 0xffffu)

#define HALVES_LOADER(NAME, WIDE, NARROW)                                                            \
    vec4 NAME(const uint i) {                                                                        \
        if (p.aligned != 0) {                                                                        \
            const uvec2 w = WIDE[i / 4];                                                             \
            return vec4(exact_from_f16(w.x & 0xffffu), exact_from_f16(w.x >> 16),                    \
                        exact_from_f16(w.y & 0xffffu), exact_from_f16(w.y >> 16));                   \
        }                                                                                            \
        return vec4(HALF(NARROW, i), HALF(NARROW, i + 1), HALF(NARROW, i + 2), HALF(NARROW, i + 3)); \
    }

LOADER(read_q, data_q4, data_q)
#if defined(KV_F16)
HALVES_LOADER(read_k, data_k4, data_k)
HALVES_LOADER(read_v, data_v4, data_v)
#else
LOADER(read_k, data_k4, data_k)
LOADER(read_v, data_v4, data_v)
#endif

uint head;    // of queries
uint head_kv;

// Four values of a token's row, from value 4 * d4 on; zeros behind its end and where `exists` is false.
#define FETCHER(NAME, READ, START)                      \
    vec4 NAME(const uint token, const uint d4, const bool exists) { \
        return exists && 4 * d4 < p.D ? READ((START) + 4 * d4) : vec4(0.0); \
    }

FETCHER(fetch_q, read_q, p.q_offset + token * p.q_token + head * p.q_head)
FETCHER(fetch_k, read_k, p.k_offset + token * p.k_token + head_kv * p.k_head)
FETCHER(fetch_v, read_v, p.v_offset + token * p.v_token + head_kv * p.v_head)
#if defined(GRADIENTS)
LOADER(read_dy, data_dy4, data_dy)
FETCHER(fetch_dy, read_dy, p.dy_offset + (token * p.H + head) * p.D)
#endif

#if !defined(CACHE)
// The first token that t sees, and the last one that sees t; clamped, so that segments which make no sense read nothing out of
// bounds and end.
uint first_of(const uint t) {
    return uint(clamp(data_segments[p.see_offset + 2 * t], 0, int(t)));
}

uint last_of(const uint t) {
    return uint(clamp(data_segments[p.see_offset + 2 * t + 1], int(t), int(p.T) - 1));
}
#endif

#if !defined(ONE_QUERY)

// 32 values of each row and column, with a four more per row, so that rows lie on different banks; or weights of scores as
// [column][row], and with them VSTEP columns of the operand that they meet.
const uint PIECE        = 8 + 1;
const uint WEIGHT       = RT + 1;
const uint STAGED       = CHUNK * WEIGHT;
shared vec4 stage[864];

// s[n][i] = the product of row 4 * tr + i with column tc + n * CT. FETCH_ROW(r, d4) and FETCH_COL(c, d4) give the operands.
#define SCORES(s, FETCH_ROW, FETCH_COL)                                                             \
    {                                                                                               \
        [[unroll]] for (uint n_ = 0; n_ < TN; ++n_) s[n_] = vec4(0.0);                              \
        for (uint d0_ = 0; d0_ < p.D; d0_ += 32) {                                                  \
            barrier();                                                                              \
            [[dont_unroll]] for (uint i_ = tid; i_ < ROWS * 8; i_ += BLOCK) {                       \
                stage[i_ / 8 * PIECE + i_ % 8] = FETCH_ROW(i_ / 8, d0_ / 4 + i_ % 8);               \
            }                                                                                       \
            [[dont_unroll]] for (uint i_ = tid; i_ < CHUNK * 8; i_ += BLOCK) {                      \
                stage[(ROWS + i_ / 8) * PIECE + i_ % 8] = FETCH_COL(i_ / 8, d0_ / 4 + i_ % 8);      \
            }                                                                                       \
            barrier();                                                                              \
            precise vec4 part_[TN];                                                                 \
            [[unroll]] for (uint n_ = 0; n_ < TN; ++n_) part_[n_] = vec4(0.0);                      \
            const uint n_fours_ = min(8, (p.D - d0_) / 4);                                          \
            for (uint d_ = 0; d_ < n_fours_; ++d_) {                                                \
                vec4 a_[TM];                                                                        \
                [[unroll]] for (uint i_ = 0; i_ < TM; ++i_) a_[i_] = stage[(tr * TM + i_) * PIECE + d_]; \
                [[unroll]] for (uint n_ = 0; n_ < TN; ++n_) {                                       \
                    const vec4 b_ = stage[(ROWS + tc + n_ * CT) * PIECE + d_];                      \
                    [[unroll]] for (uint e_ = 0; e_ < 4; ++e_) {                                    \
                        part_[n_] = part_[n_] + vec4(a_[0][e_], a_[1][e_], a_[2][e_], a_[3][e_]) * vec4(b_[e_]); \
                    }                                                                               \
                }                                                                                   \
            }                                                                                       \
            [[unroll]] for (uint n_ = 0; n_ < TN; ++n_) s[n_] = s[n_] + part_[n_];                  \
        }                                                                                           \
    }

// Weights of this invocation's scores to where OUTPUTS reads them. SCORES may still be reading there.
#define PUT_WEIGHTS(w)                                                                              \
    {                                                                                               \
        barrier();                                                                                  \
        [[unroll]] for (uint n_ = 0; n_ < TN; ++n_) stage[(tc + n_ * CT) * WEIGHT + tr] = w[n_];    \
    }

// o[i][n] = the sum over columns, in order, of weight * FETCH(c, d4), for row 4 * tr + i and the four tc + n * CT. With `guarded`
// only those where SEEN(row, c, weight) holds.
#define OUTPUTS(o, FETCH, guarded, SEEN)                                                            \
    {                                                                                               \
        [[unroll]] for (uint i_ = 0; i_ < TM; ++i_)                                                 \
            [[unroll]] for (uint n_ = 0; n_ < ND; ++n_) o[i_][n_] = vec4(0.0);                      \
        for (uint c0_ = 0; c0_ < CHUNK; c0_ += VSTEP) {                                             \
            if (c0_ != 0) {                                                                         \
                barrier();                                                                          \
            }                                                                                       \
            [[dont_unroll]] for (uint i_ = tid; i_ < VSTEP * CT * ND; i_ += BLOCK) {                \
                stage[STAGED + i_] = FETCH(c0_ + i_ / (CT * ND), i_ % (CT * ND));                   \
            }                                                                                       \
            barrier();                                                                              \
            if (!(guarded)) {                                                                       \
                [[dont_unroll]] for (uint c_ = 0; c_ < VSTEP; ++c_) {                               \
                    const vec4 w_ = stage[(c0_ + c_) * WEIGHT + tr];                                \
                    [[unroll]] for (uint n_ = 0; n_ < ND; ++n_) {                                   \
                        const vec4 b_ = stage[STAGED + c_ * CT * ND + tc + n_ * CT];                \
                        [[unroll]] for (uint i_ = 0; i_ < TM; ++i_) o[i_][n_] = o[i_][n_] + vec4(w_[i_]) * b_; \
                    }                                                                               \
                }                                                                                   \
            } else {                                                                                \
                [[dont_unroll]] for (uint c_ = 0; c_ < VSTEP; ++c_) {                               \
                    const vec4 w_ = stage[(c0_ + c_) * WEIGHT + tr];                                \
                    [[unroll]] for (uint n_ = 0; n_ < ND; ++n_) {                                   \
                        const vec4 b_ = stage[STAGED + c_ * CT * ND + tc + n_ * CT];                \
                        [[unroll]] for (uint i_ = 0; i_ < TM; ++i_) {                               \
                            precise vec4 t_ = o[i_][n_] + vec4(w_[i_]) * b_;                        \
                            o[i_][n_] = SEEN(tr * TM + i_, c0_ + c_, w_[i_]) ? t_ : o[i_][n_];      \
                        }                                                                           \
                    }                                                                               \
                }                                                                                   \
            }                                                                                       \
        }                                                                                           \
    }

// The values of row 4 * tr + i to `dst`, from `at` on.
#define STORE(o, i, at)                                                                             \
    [[unroll]] for (uint n_ = 0; n_ < ND; ++n_) {                                                   \
        const uint d_ = 4 * (tc + n_ * CT);                                                         \
        if (d_ < p.D) {                                                                             \
            [[unroll]] for (uint e_ = 0; e_ < 4; ++e_) data_dst[(at) + d_ + e_] = o[i][n_][e_];     \
        }                                                                                           \
    }

#endif
