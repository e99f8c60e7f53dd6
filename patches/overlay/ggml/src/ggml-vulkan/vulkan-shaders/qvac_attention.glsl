// What the kernels of causal attention share: parameters, buffers, samples.
//
// A workgroup makes one tile after another of ROWS x COLS scores and never a whole row of them. A tile's operands have
// either ROWS or COLS rows of a tensor. There are two engines with kernels of their own: qvac_attention_plain.glsl (f32,
// any device) and qvac_attention_matrix.glsl (f16 operands and f32 sums on cooperative matrices).
//
// A kernel of the backward defines BACKWARD before it includes this, and STATS where it reads those.

#extension GL_EXT_control_flow_attributes : enable

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
#if defined(STATS)
layout(binding = 4) readonly buffer Stats { vec4 data_stats[]; }; // see qvac_attention_stats.comp
#else
layout(binding = 4) readonly buffer Fwd  { float data_fwd[]; };
layout(binding = 4) readonly buffer Fwd4 { vec4 data_fwd4[]; };
#endif
layout(binding = 5) readonly buffer Dy   { float data_dy[]; };
layout(binding = 5) readonly buffer Dy4  { vec4 data_dy4[]; };
layout(binding = 6) writeonly buffer Dst  { float data_dst[]; };
layout(binding = 6) writeonly buffer Dst4 { vec4 data_dst4[]; };
#else
layout(binding = 4) writeonly buffer Dst  { float data_dst[]; };
layout(binding = 4) writeonly buffer Dst4 { vec4 data_dst4[]; };
#endif

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
