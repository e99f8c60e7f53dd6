// What exact sums over rows share (docs/exactness.md): 512 lanes of a row, two to each invocation, and the tree that adds them.
//
// Lane l adds up the fours of values l, l + 512, ... So invocation i has the fours i, i + 256, i + 512, ..., the even ones of
// its first lane and the odd ones of its second. ROW_SUM is float, or vec2 for two sums at once.

#extension GL_EXT_control_flow_attributes : enable

#include "../../qvac/exact-math.h"

layout(constant_id = 0) const bool ALIGNED = true; // rows are whole fours of values, and each begins at 16 bytes

const uint BLOCK_SIZE = 256;
layout(local_size_x = 256, local_size_y = 1, local_size_z = 1) in;

// Workgroups are spread over two grid dimensions: one alone may hold 65535 of them at most.
const uint GRID_LINE = 512;

uint row_of_workgroup() {
    return gl_WorkGroupID.y * GRID_LINE + gl_WorkGroupID.x;
}

// The first column of four `q` of this invocation.
uint column(const uint q) {
    return 4u * (q * BLOCK_SIZE + gl_LocalInvocationID.x);
}

// Whether any invocation has a four `q`.
bool is_in_row(const uint q) {
    return 4u * q * BLOCK_SIZE < p.N;
}

// Columns from which to read a four that may go beyond the row's end: those beyond it become the last one.
uvec4 columns_within(const uint q) {
    return min(column(q) + uvec4(0, 1, 2, 3), uvec4(p.N - 1u));
}

// `v` with `fill` for what lies behind the row's end.
vec4 within_row(const uint q, const vec4 v, const float fill) {
    return mix(vec4(fill), v, lessThan(column(q) + uvec4(0, 1, 2, 3), uvec4(p.N)));
}

shared ROW_SUM lanes[BLOCK_SIZE];
shared ROW_SUM heads[32];

// The sum over the row of its lanes, `first` and `second` of each invocation. Every invocation of the workgroup must call it.
ROW_SUM sum_of_lanes(const ROW_SUM first, const ROW_SUM second) {
    const uint tid = gl_LocalInvocationID.x;

    precise ROW_SUM lane = first + second; // h = 256
    lanes[tid] = lane;
    barrier();
    if (tid < 32u) {
        precise ROW_SUM a0 = lanes[tid] + lanes[tid + 128u]; // h = 128
        precise ROW_SUM a1 = lanes[tid + 32u] + lanes[tid + 160u];
        precise ROW_SUM a2 = lanes[tid + 64u] + lanes[tid + 192u];
        precise ROW_SUM a3 = lanes[tid + 96u] + lanes[tid + 224u];
        precise ROW_SUM b0 = a0 + a2; // h = 64
        precise ROW_SUM b1 = a1 + a3;
        precise ROW_SUM c  = b0 + b1; // h = 32
        heads[tid] = c;
    }
    barrier();
    precise ROW_SUM v[16];
    [[unroll]] for (uint l = 0u; l < 16u; ++l) {
        v[l] = heads[l] + heads[l + 16u];
    }
    [[unroll]] for (uint l = 0u; l < 8u; ++l) {
        v[l] = v[l] + v[l + 8u];
    }
    [[unroll]] for (uint l = 0u; l < 4u; ++l) {
        v[l] = v[l] + v[l + 4u];
    }
    precise ROW_SUM s0 = v[0] + v[2];
    precise ROW_SUM s1 = v[1] + v[3];
    precise ROW_SUM s  = s0 + s1;
    return s;
}
