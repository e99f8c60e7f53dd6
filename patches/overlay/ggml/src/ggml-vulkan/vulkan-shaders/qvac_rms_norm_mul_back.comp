#version 450

// add + the gradient of mul(rms_norm(x), w) in x (ggml_rms_norm_mul_back):
//
//     dx = r * (g - x * r^2 * mean(g * x)) + add,    g = dy * w,    r = 1 / sqrt(mean(x^2) + eps)
//
// Both means come of one pass over the row.

layout(push_constant) uniform parameter {
    uint  N; uint T;
    uint  dy_offset; uint x_offset; uint w_offset; uint add_offset; uint dx_offset; // in elements
    uint  has_add;
    float eps;
} p;

layout(binding = 0) readonly buffer Dy { float data_dy[]; };
layout(binding = 0) readonly buffer Dy4 { vec4 data_dy4[]; };
layout(binding = 1) readonly buffer X { float data_x[]; };
layout(binding = 1) readonly buffer X4 { vec4 data_x4[]; };
layout(binding = 2) readonly buffer W { float data_w[]; };
layout(binding = 2) readonly buffer W4 { vec4 data_w4[]; };
layout(binding = 3) readonly buffer Add { float data_add[]; }; // dy again where there is none
layout(binding = 3) readonly buffer Add4 { vec4 data_add4[]; };
layout(binding = 4) writeonly buffer Dx { float data_dx[]; };
layout(binding = 4) writeonly buffer Dx4 { vec4 data_dx4[]; };

#define ROW_SUM vec2
#include "qvac_row.glsl"

// Short rows have registers left: what is added comes along with the rest instead of after the sums.
const bool ADD_EARLY = KEEP <= 2;

vec4 load_x(const uint row, const uint j) {
    const uvec4 at = p.x_offset + row * p.N + columns_within(j);
    if (ALIGNED) {
        return data_x4[at.x / 4];
    }
    return vec4(data_x[at.x], data_x[at.y], data_x[at.z], data_x[at.w]);
}

vec4 load_g(const uint row, const uint j) {
    const uvec4 at = p.dy_offset + row * p.N + columns_within(j);
    const uvec4 w  = p.w_offset + columns_within(j);
    if (ALIGNED) {
        return data_dy4[at.x / 4] * data_w4[w.x / 4];
    }
    return vec4(data_dy[at.x], data_dy[at.y], data_dy[at.z], data_dy[at.w]) *
           vec4(data_w[w.x], data_w[w.y], data_w[w.z], data_w[w.w]);
}

vec4 load_add(const uint row, const uint j) {
    const uvec4 at = p.add_offset + row * p.N + columns_within(j);
    if (p.has_add == 0) {
        return vec4(0.0);
    }
    if (ALIGNED) {
        return data_add4[at.x / 4];
    }
    return vec4(data_add[at.x], data_add[at.y], data_add[at.z], data_add[at.w]);
}

void store_dx(const uint row, const uint j, const vec4 dx) {
    const uvec4 column = columns(j);
    const uint  at     = p.dx_offset + row * p.N;
    if (ALIGNED) {
        if (column.x < p.N) {
            data_dx4[(at + column.x) / 4] = dx;
        }
    } else {
        [[unroll]] for (uint i = 0; i < 4; ++i) {
            if (column[i] < p.N) {
                data_dx[at + column[i]] = dx[i];
            }
        }
    }
}

void main() {
    const uint row_wg = row_of_invocation();
    const uint row    = min(row_wg, p.T - 1); // spare invocations read what is there, and do not write

    vec4 x[KEEP];
    vec4 g[KEEP];
    vec4 add[KEEP];
    [[unroll]] for (uint j = 0; j < KEEP; ++j) {
        x[j] = load_x(row, j);
        g[j] = load_g(row, j);
        if (ADD_EARLY) {
            add[j] = load_add(row, j);
        }
    }
    vec2 sums = vec2(0.0); // of x^2, of g * x
    [[unroll]] for (uint j = 0; j < KEEP; ++j) {
        const vec4 v = within_row(j, x[j]);
        sums += vec2(dot(v, v), dot(v, g[j]));
    }
    for (uint j = KEEP; 4 * j * LANES < p.N; ++j) {
        const vec4 v = within_row(j, load_x(row, j));
        sums += vec2(dot(v, v), dot(v, load_g(row, j)));
    }
    sums = sum_of_row(sums) / float(p.N);
    if (row_wg >= p.T) {
        return;
    }

    const float r = 1.0 / sqrt(sums.x + p.eps);
    const float c = r * r * sums.y;
    [[unroll]] for (uint j = 0; j < KEEP; ++j) {
        store_dx(row, j, r * (g[j] - c * x[j]) + (ADD_EARLY ? add[j] : load_add(row, j)));
    }
    for (uint j = KEEP; 4 * j * LANES < p.N; ++j) {
        store_dx(row, j, r * (load_g(row, j) - c * load_x(row, j)) + load_add(row, j));
    }
}
