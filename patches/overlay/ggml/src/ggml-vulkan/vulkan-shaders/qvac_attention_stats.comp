#version 450

// What the backward of attention on cooperative matrices needs of a query, made once: the log-sum-exp of its scores in
// powers of two; delta = sum_d dy * output, which is what softmax takes off every gradient of a score; and the largest
// absolute value of dy, in its row and among ROWS tokens of its head. One workgroup makes those ROWS.

#extension GL_EXT_control_flow_attributes : enable

layout(local_size_x = 256, local_size_y = 1, local_size_z = 1) in;

// Offsets in elements.
layout(push_constant) uniform parameter {
    uint D;
    uint H;
    uint T;
    uint fwd_offset;
    uint dy_offset;
    uint aligned; // not 0: both offsets are multiples of 4
} p;

layout(binding = 0) readonly buffer Fwd  { float data_fwd[]; };
layout(binding = 0) readonly buffer Fwd4 { vec4 data_fwd4[]; };
layout(binding = 1) readonly buffer Dy   { float data_dy[]; };
layout(binding = 1) readonly buffer Dy4  { vec4 data_dy4[]; };
layout(binding = 2) writeonly buffer Stats { vec4 data_stats[]; }; // [H][T]

#define tid gl_LocalInvocationID.x

const uint ROWS  = 64; // a multiple of the queries that a tile has
const uint LANES = 16; // of a row
const uint EACH  = ROWS * LANES / 256;

const float LOG2_E = 1.4426950408889634;

shared float sums[ROWS][LANES + 1];
shared float most[ROWS][LANES + 1];
shared float row_most[ROWS];

vec4 load_fwd(const uint i) {
    return p.aligned != 0 ? data_fwd4[i / 4] : vec4(data_fwd[i], data_fwd[i + 1], data_fwd[i + 2], data_fwd[i + 3]);
}

vec4 load_dy(const uint i) {
    return p.aligned != 0 ? data_dy4[i / 4] : vec4(data_dy[i], data_dy[i + 1], data_dy[i + 2], data_dy[i + 3]);
}

void main() {
    const uint head = gl_WorkGroupID.x;
    const uint t0   = gl_WorkGroupID.y * ROWS;
    const uint lane = tid % LANES;
    const uint row0 = tid / LANES;

    float sum[EACH];
    float largest[EACH];
    [[unroll]] for (uint i = 0; i < EACH; ++i) {
        sum[i]     = 0.0;
        largest[i] = 0.0;
    }
    for (uint d = 4 * lane; d < p.D; d += 4 * LANES) {
        [[unroll]] for (uint i = 0; i < EACH; ++i) {
            const uint t  = min(t0 + row0 + i * (256 / LANES), p.T - 1); // the last one again does no harm
            const uint at = (t * p.H + head) * p.D + d;
            const vec4 dy = load_dy(p.dy_offset + at);
            const vec4 a  = abs(dy);
            sum[i]    += dot(dy, load_fwd(p.fwd_offset + at));
            largest[i] = max(largest[i], max(max(a.x, a.y), max(a.z, a.w)));
        }
    }
    [[unroll]] for (uint i = 0; i < EACH; ++i) {
        sums[row0 + i * (256 / LANES)][lane] = sum[i];
        most[row0 + i * (256 / LANES)][lane] = largest[i];
    }
    barrier();

    float delta = 0.0;
    if (tid < ROWS) {
        float m = 0.0;
        [[unroll]] for (uint i = 0; i < LANES; ++i) {
            delta += sums[tid][i];
            m      = max(m, most[tid][i]);
        }
        row_most[tid] = m;
    }
    barrier();

    const uint t = t0 + tid;
    if (tid < ROWS && t < p.T) {
        float m = 0.0;
        for (uint i = 0; i < ROWS; ++i) {
            m = max(m, row_most[i]);
        }
        const float lse = data_fwd[p.fwd_offset + p.T * p.H * p.D + t * p.H + head];
        data_stats[head * p.T + t] = vec4(lse * LOG2_E, delta, row_most[tid], m);
    }
}
