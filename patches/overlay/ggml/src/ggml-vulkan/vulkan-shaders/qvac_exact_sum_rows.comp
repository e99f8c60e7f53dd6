#version 450

// The sum of each row.

layout(push_constant) uniform parameter {
    uint  N; uint T;
    uint  ne1; uint ne2;
    uint  x_nb1; uint x_nb2; uint x_nb3; uint x_offset; // in elements
    uint  y_offset;
} p;

layout(binding = 0) readonly buffer X { float data_x[]; };
layout(binding = 0) readonly buffer X4 { vec4 data_x4[]; };
layout(binding = 1) writeonly buffer Y { float data_y[]; };

#define ROW_SUM float
#include "qvac_exact_row.glsl"

// Fours that an invocation has on their way at once.
const uint EACH = 4u;

vec4 load_x(const uint row, const uint q) {
    const uvec4 at = row + columns_within(q);
    if (ALIGNED) {
        return within_row(q, data_x4[at.x / 4u], 0.0);
    }
    return within_row(q, vec4(data_x[at.x], data_x[at.y], data_x[at.z], data_x[at.w]), 0.0);
}

float with_four(const float sum, const vec4 v) {
    precise float s = sum + v.x;
    s = s + v.y;
    s = s + v.z;
    s = s + v.w;
    return s;
}

void main() {
    const uint row = row_of_workgroup();
    if (row >= p.T) {
        return;
    }
    const uint x_row = p.x_offset + row % p.ne1 * p.x_nb1 + row / p.ne1 % p.ne2 * p.x_nb2 + row / p.ne1 / p.ne2 * p.x_nb3;

    float first  = 0.0;
    float second = 0.0;
    for (uint q = 0u; is_in_row(q); q += EACH) {
        vec4 x[EACH];
        [[unroll]] for (uint j = 0u; j < EACH; ++j) {
            x[j] = load_x(x_row, q + j);
        }
        [[unroll]] for (uint j = 0u; j < EACH; j += 2u) {
            first  = with_four(first, x[j]);
            second = with_four(second, x[j + 1u]);
        }
    }
    const float sum = sum_of_lanes(first, second);
    if (gl_LocalInvocationID.x == 0u) {
        data_y[p.y_offset + row] = sum;
    }
}
