#version 450

// With g = dy w and r = 1 / sqrt(mean(x^2) + eps): dx = r (g - x ((r r) mean(g x))) + add. dx may be any of the others. Rows of up to
// KEEP * 1024 values are read once.

layout(push_constant) uniform parameter {
    uint  N; uint T;
    uint  dy_offset; uint x_offset; uint w_offset; uint add_offset; uint dx_offset; // in elements
    uint  has_w; uint has_add;
    float eps;
} p;

layout(binding = 0) readonly buffer Dy { float data_dy[]; };
layout(binding = 0) readonly buffer Dy4 { vec4 data_dy4[]; };
layout(binding = 1) readonly buffer X { float data_x[]; };
layout(binding = 1) readonly buffer X4 { vec4 data_x4[]; };
layout(binding = 2) readonly buffer W { float data_w[]; }; // dy again where there is none
layout(binding = 2) readonly buffer W4 { vec4 data_w4[]; };
layout(binding = 3) readonly buffer Add { float data_add[]; }; // likewise
layout(binding = 3) readonly buffer Add4 { vec4 data_add4[]; };
layout(binding = 4) writeonly buffer Dx { float data_dx[]; };
layout(binding = 4) writeonly buffer Dx4 { vec4 data_dx4[]; };

#define ROW_SUM vec2
#include "qvac_exact_row.glsl"

vec4 load_x(const uint row, const uint q) {
    const uvec4 at = row + columns_within(q);
    if (ALIGNED) {
        return within_row(q, data_x4[at.x / 4u], 0.0);
    }
    return within_row(q, vec4(data_x[at.x], data_x[at.y], data_x[at.z], data_x[at.w]), 0.0);
}

vec4 load_g(const uint row, const uint q) {
    const uvec4 column = columns_within(q);
    const uvec4 at     = row + column;
    const uvec4 w_at   = p.w_offset + column;
    vec4 dy;
    vec4 w = vec4(1.0);
    if (ALIGNED) {
        dy = data_dy4[at.x / 4u];
        if (p.has_w != 0u) {
            w = data_w4[w_at.x / 4u];
        }
    } else {
        dy = vec4(data_dy[at.x], data_dy[at.y], data_dy[at.z], data_dy[at.w]);
        if (p.has_w != 0u) {
            w = vec4(data_w[w_at.x], data_w[w_at.y], data_w[w_at.z], data_w[w_at.w]);
        }
    }
    precise vec4 g = dy * w;
    return within_row(q, g, 0.0);
}

vec4 with_add(const uint row, const uint q, const vec4 d) {
    if (p.has_add == 0u) {
        return d;
    }
    const uvec4 at = row + columns_within(q);
    vec4 add;
    if (ALIGNED) {
        add = data_add4[at.x / 4u];
    } else {
        add = vec4(data_add[at.x], data_add[at.y], data_add[at.z], data_add[at.w]);
    }
    precise vec4 y = d + add;
    return y;
}

void store_dx(const uint row, const uint q, const vec4 d) {
    const uint at = column(q);
    if (ALIGNED) {
        if (at < p.N) {
            data_dx4[(row + at) / 4u] = d;
        }
    } else {
        [[unroll]] for (uint i = 0u; i < 4u; ++i) {
            if (at + i < p.N) {
                data_dx[row + at + i] = d[i];
            }
        }
    }
}

// The sums of x^2 and of g x, with four more values.
vec2 with_products(const vec2 sums, const vec4 x, const vec4 g) {
    precise vec2 s = sums + vec2(x.x, g.x) * x.x;
    s = s + vec2(x.y, g.y) * x.y;
    s = s + vec2(x.z, g.z) * x.z;
    s = s + vec2(x.w, g.w) * x.w;
    return s;
}

vec4 gradient(const vec4 x, const vec4 g, const float r, const float q) {
    precise vec4 d = r * (g - x * q);
    return d;
}

void main() {
    const uint row = row_of_workgroup();
    if (row >= p.T) {
        return;
    }
    const uint dy_row  = p.dy_offset + row * p.N;
    const uint x_row   = p.x_offset + row * p.N;
    const uint add_row = p.add_offset + row * p.N;
    const uint dx_row  = p.dx_offset + row * p.N;

    vec4 x[KEEP];
    vec4 g[KEEP];
    [[unroll]] for (uint q = 0u; q < KEEP; ++q) {
        x[q] = load_x(x_row, q);
        g[q] = load_g(dy_row, q);
    }
    vec2 first  = vec2(0.0);
    vec2 second = vec2(0.0);
    [[unroll]] for (uint q = 0u; q < KEEP; q += 2u) {
        first  = with_products(first, x[q], g[q]);
        second = with_products(second, x[q + 1u], g[q + 1u]);
    }
    for (uint q = KEEP; is_in_row(q); q += 2u) {
        first  = with_products(first, load_x(x_row, q), load_g(dy_row, q));
        second = with_products(second, load_x(x_row, q + 1u), load_g(dy_row, q + 1u));
    }
    const vec2  sums = sum_of_lanes(first, second);
    const float n    = float(int(p.N));
    precise float shifted = exact_div(sums.x, n) + p.eps;
    const float r = exact_rsqrt(shifted);
    precise float slope = (r * r) * exact_div(sums.y, n);
    [[unroll]] for (uint q = 0u; q < KEEP; ++q) {
        store_dx(dx_row, q, with_add(add_row, q, gradient(x[q], g[q], r, slope)));
    }
    for (uint q = KEEP; is_in_row(q); ++q) {
        const vec4 d = gradient(load_x(x_row, q), load_g(dy_row, q), r, slope);
        store_dx(dx_row, q, with_add(add_row, q, d));
    }
}
