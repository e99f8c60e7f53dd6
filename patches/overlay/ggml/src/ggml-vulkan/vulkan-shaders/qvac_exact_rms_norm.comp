#version 450

// y = x r, r = 1 / sqrt(mean(x^2) + eps). y may be x. Rows of up to KEEP * 1024 values are read once.

layout(push_constant) uniform parameter {
    uint  N; uint T;
    uint  ne1; uint ne2;
    uint  x_nb1; uint x_nb2; uint x_nb3; uint x_offset; // in elements
    uint  y_nb1; uint y_nb2; uint y_nb3; uint y_offset;
    float eps;
} p;

layout(binding = 0) readonly buffer X { float data_x[]; };
layout(binding = 0) readonly buffer X4 { vec4 data_x4[]; };
layout(binding = 1) writeonly buffer Y { float data_y[]; };
layout(binding = 1) writeonly buffer Y4 { vec4 data_y4[]; };

#define ROW_SUM float
#include "qvac_exact_row.glsl"

vec4 load_x(const uint row, const uint q) {
    const uvec4 at = row + columns_within(q);
    if (ALIGNED) {
        return within_row(q, data_x4[at.x / 4u], 0.0);
    }
    return within_row(q, vec4(data_x[at.x], data_x[at.y], data_x[at.z], data_x[at.w]), 0.0);
}

void store_y(const uint row, const uint q, const vec4 y) {
    const uint at = column(q);
    if (ALIGNED) {
        if (at < p.N) {
            data_y4[(row + at) / 4u] = y;
        }
    } else {
        [[unroll]] for (uint i = 0u; i < 4u; ++i) {
            if (at + i < p.N) {
                data_y[row + at + i] = y[i];
            }
        }
    }
}

float with_squares(const float sum, const vec4 v) {
    precise float s = sum + v.x * v.x;
    s = s + v.y * v.y;
    s = s + v.z * v.z;
    s = s + v.w * v.w;
    return s;
}

void main() {
    const uint row = row_of_workgroup();
    if (row >= p.T) {
        return;
    }
    const uvec3 i = uvec3(row % p.ne1, row / p.ne1 % p.ne2, row / p.ne1 / p.ne2);
    const uint  x_row = p.x_offset + i.x * p.x_nb1 + i.y * p.x_nb2 + i.z * p.x_nb3;
    const uint  y_row = p.y_offset + i.x * p.y_nb1 + i.y * p.y_nb2 + i.z * p.y_nb3;

    vec4 x[KEEP];
    [[unroll]] for (uint q = 0u; q < KEEP; ++q) {
        x[q] = load_x(x_row, q);
    }
    float first  = 0.0;
    float second = 0.0;
    [[unroll]] for (uint q = 0u; q < KEEP; q += 2u) {
        first  = with_squares(first, x[q]);
        second = with_squares(second, x[q + 1u]);
    }
    for (uint q = KEEP; is_in_row(q); q += 2u) {
        first  = with_squares(first, load_x(x_row, q));
        second = with_squares(second, load_x(x_row, q + 1u));
    }
    const float sum = sum_of_lanes(first, second);
    const float n   = float(int(p.N));
    precise float shifted = exact_div(sum, n) + p.eps;
    const float r = exact_rsqrt(shifted);
    [[unroll]] for (uint q = 0u; q < KEEP; ++q) {
        precise vec4 y = x[q] * r;
        store_y(y_row, q, y);
    }
    for (uint q = KEEP; is_in_row(q); ++q) {
        precise vec4 y = load_x(x_row, q) * r;
        store_y(y_row, q, y);
    }
}
