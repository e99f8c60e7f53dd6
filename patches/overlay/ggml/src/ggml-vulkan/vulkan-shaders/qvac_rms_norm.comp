#version 450

// y = x / sqrt(mean(x^2) + eps), times w where MULTIPLY says so. y may be x.

layout(push_constant) uniform parameter {
    uint  N; uint T;
    uint  x_offset; uint w_offset; uint y_offset; // in elements
    float eps;
} p;

layout(binding = 0) readonly buffer X { float data_x[]; };
layout(binding = 0) readonly buffer X4 { vec4 data_x4[]; };
layout(binding = 1) readonly buffer W { float data_w[]; }; // x again where there is none
layout(binding = 1) readonly buffer W4 { vec4 data_w4[]; };
layout(binding = 2) writeonly buffer Y { float data_y[]; };
layout(binding = 2) writeonly buffer Y4 { vec4 data_y4[]; };

#define ROW_SUM float
#include "qvac_row.glsl"

layout(constant_id = 2) const bool MULTIPLY = true;

vec4 load_x(const uint row, const uint j) {
    const uvec4 at = p.x_offset + row * p.N + columns_within(j);
    if (ALIGNED) {
        return data_x4[at.x / 4];
    }
    return vec4(data_x[at.x], data_x[at.y], data_x[at.z], data_x[at.w]);
}

vec4 load_w(const uint j) {
    const uvec4 at = p.w_offset + columns_within(j);
    if (!MULTIPLY) {
        return vec4(1.0);
    }
    if (ALIGNED) {
        return data_w4[at.x / 4];
    }
    return vec4(data_w[at.x], data_w[at.y], data_w[at.z], data_w[at.w]);
}

void store_y(const uint row, const uint j, const vec4 y) {
    const uvec4 column = columns(j);
    const uint  at     = p.y_offset + row * p.N;
    if (ALIGNED) {
        if (column.x < p.N) {
            data_y4[(at + column.x) / 4] = y;
        }
    } else {
        [[unroll]] for (uint i = 0; i < 4; ++i) {
            if (column[i] < p.N) {
                data_y[at + column[i]] = y[i];
            }
        }
    }
}

void main() {
    const uint row_wg = row_of_invocation();
    const uint row    = min(row_wg, p.T - 1); // spare invocations read what is there, and do not write

    vec4 x[KEEP];
    [[unroll]] for (uint j = 0; j < KEEP; ++j) {
        x[j] = load_x(row, j);
    }
    float sum = 0.0;
    [[unroll]] for (uint j = 0; j < KEEP; ++j) {
        const vec4 v = within_row(j, x[j]);
        sum += dot(v, v);
    }
    for (uint j = KEEP; 4 * j * LANES < p.N; ++j) {
        const vec4 v = within_row(j, load_x(row, j));
        sum += dot(v, v);
    }
    const float r = 1.0 / sqrt(sum_of_row(sum) / float(p.N) + p.eps);
    if (row_wg >= p.T) {
        return;
    }
    [[unroll]] for (uint j = 0; j < KEEP; ++j) {
        store_y(row, j, r * x[j] * load_w(j));
    }
    for (uint j = KEEP; 4 * j * LANES < p.N; ++j) {
        store_y(row, j, r * load_x(row, j) * load_w(j));
    }
}
