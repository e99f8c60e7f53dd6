// What the three kernels of causal attention share: parameters, buffers, and the reading of rows.
//
// A workgroup makes one tile after another of ROWS x COLS scores and never a whole row of them. How a tile is multiplied
// is the business of an engine, qvac_attention_plain.glsl (f32, any device) or qvac_attention_matrix.glsl (f16 operands
// and f32 sums on cooperative matrices); masks, softmax and gradients are the kernels' own and the same for both.
//
// A kernel defines before it includes this: its slots (the operands that a tile is made of; those below ROW_SLOTS have
// ROWS rows, the COL_SLOTS others COLS), QUERIES (how many queries a tile has) and, for the backward, BACKWARD.

#extension GL_EXT_control_flow_attributes : enable

#if defined(COOPMAT) || defined(IMITATION)
#define MATRIX
#endif

layout(constant_id = 0) const uint BLOCK  = 256;
layout(constant_id = 1) const uint ROWS   = 64;
layout(constant_id = 2) const uint COLS   = 64;
layout(constant_id = 3) const uint D_PAD  = 64; // D, rounded up to a multiple of 16

layout(local_size_x_id = 0, local_size_y = 1, local_size_z = 1) in;

// Offsets in elements.
layout(push_constant) uniform parameter {
    uint  D;
    uint  H;
    uint  H_kv;
    uint  T;
    float scale;
    uint  aligned; // not 0: all offsets are multiples of 4
    uint  q_offset;
    uint  k_offset;
    uint  v_offset;
    uint  segments_offset;
    uint  fwd_offset;
    uint  dy_offset;
    uint  dst_offset;
} p;

layout(binding = 0) readonly buffer Q  { float data_q[]; };
layout(binding = 0) readonly buffer Q4 { vec4 data_q4[]; };
layout(binding = 1) readonly buffer K  { float data_k[]; };
layout(binding = 1) readonly buffer K4 { vec4 data_k4[]; };
layout(binding = 2) readonly buffer V  { float data_v[]; };
layout(binding = 2) readonly buffer V4 { vec4 data_v4[]; };
layout(binding = 3) readonly buffer Segments { int data_segments[]; };
#if defined(BACKWARD)
layout(binding = 4) readonly buffer Fwd  { float data_fwd[]; };
layout(binding = 4) readonly buffer Fwd4 { vec4 data_fwd4[]; };
layout(binding = 5) readonly buffer Dy   { float data_dy[]; };
layout(binding = 5) readonly buffer Dy4  { vec4 data_dy4[]; };
layout(binding = 6) writeonly buffer Dst { float data_dst[]; };
#else
layout(binding = 4) writeonly buffer Dst { float data_dst[]; };
#endif

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

const float NEG_MAX = -3.402823466e38;

#define tid gl_LocalInvocationID.x

// Where the tile at hand begins, and its heads.
uint query0;
uint key0;
uint head;
uint head_kv;

// The first token that t sees. Clamped, like last_of, so that segments which make no sense read nothing out of bounds.
uint first_of(const uint t) {
    return uint(clamp(data_segments[p.segments_offset + 2 * t], 0, int(p.T) - 1));
}

// The last token that sees t.
uint last_of(const uint t) {
    return uint(clamp(data_segments[p.segments_offset + 2 * t + 1], 0, int(p.T) - 1));
}

// Where the row of a query (of a key) begins among the heads of its tensor.
uint query_row(const uint t) {
    return (t * p.H + head) * p.D;
}

uint key_row(const uint t) {
    return (t * p.H_kv + head_kv) * p.D;
}

#if defined(BACKWARD)

// What the backward needs of each query of a tile: the log-sum-exp of its scores, D = sum_d dy * output, which is what
// softmax takes off every gradient of a score, and the first key that it sees (none where there is no such query).
shared float query_lse[QUERIES];
shared float query_delta[QUERIES];
shared uint  query_first[QUERIES];

shared float part_sum[BLOCK];

#if defined(MATRIX)

// f16 holds 6e-8 .. 65504 and gradients are often smaller: dy is multiplied by a power of two that brings the largest of
// a row (of a tile, where rows are added to each other) to 1 .. 2.
shared float query_scale[QUERIES];
shared float part_max[BLOCK];

// The exponent of `largest`, kept where the power and its inverse are normal numbers.
uint exponent_of(const float largest) {
    return clamp((floatBitsToUint(largest) >> 23) & 0xffu, 1u, 253u);
}

float scale_of(const uint exponent) {
    return uintBitsToFloat((254u - exponent) << 23);
}

#endif

void load_queries() {
    const uint lanes = BLOCK / QUERIES;
    const uint row   = tid / lanes;
    const uint t     = query0 + row;

    float sum     = 0.0;
    float largest = 0.0;
    if (t < p.T) {
        const uint at = query_row(t);
        for (uint d = 4 * (tid % lanes); d < p.D; d += 4 * lanes) {
            const vec4 dy  = load_dy(p.dy_offset + at + d);
            const vec4 a   = abs(dy);
            sum    += dot(dy, load_fwd(p.fwd_offset + at + d));
            largest = max(largest, max(max(a.x, a.y), max(a.z, a.w)));
        }
    }
    part_sum[tid] = sum;
#if defined(MATRIX)
    part_max[tid] = largest;
#endif
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
#if defined(MATRIX)
        float most = 0.0;
        for (uint i = 0; i < lanes; ++i) {
            most = max(most, part_max[tid * lanes + i]);
        }
#if defined(ONE_SCALE)
        query_scale[tid] = most;
#else
        query_scale[tid] = scale_of(exponent_of(most));
        query_delta[tid] = delta * query_scale[tid];
#endif
#endif
    }
    barrier();

#if defined(MATRIX) && defined(ONE_SCALE)
    float most = 0.0;
    for (uint i = 0; i < QUERIES; ++i) {
        most = max(most, query_scale[i]);
    }
    barrier();
    if (tid < QUERIES) {
        query_scale[tid] = scale_of(exponent_of(most));
        query_delta[tid] = query_delta[tid] * query_scale[tid];
    }
    barrier();
#endif
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
#if defined(MATRIX)
        return load_dy(p.dy_offset + at) * query_scale[row];
#else
        return load_dy(p.dy_offset + at);
#endif
    }
#endif
    return load_v(p.v_offset + at);
}

#if defined(MATRIX)
#include "qvac_attention_matrix.glsl"
#else
#include "qvac_attention_plain.glsl"
#endif
