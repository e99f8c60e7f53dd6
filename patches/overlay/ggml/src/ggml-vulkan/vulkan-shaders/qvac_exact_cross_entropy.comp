#version 450

// Cross entropy of class ids, one workgroup a row: with M the largest logit and L the sum of exp(x - M),
//
//     loss = scale (log(L) - (x[label] - M))                                      0 where the label is negative,
//     dlogits = (scale grad) (exp(x - M) recip(L) - (i == label))  (with BACK)    NaN where it is no class at all.
//
// dlogits may be the logits.

layout(push_constant) uniform parameter {
    uint  N; uint T;
    uint  x_nb1; uint d_nb1; // from row to row, in elements
    uint  grad_nb0;          // 0 where one gradient serves all rows
    float scale;
    uint  x_offset; uint label_offset; uint grad_offset; uint d_offset;
} p;

layout(binding = 0) readonly buffer Logits { float data_x[]; };
layout(binding = 0) readonly buffer Logits4 { vec4 data_x4[]; };
layout(binding = 1) readonly buffer Labels { int data_labels[]; };
layout(binding = 2) readonly buffer Grad { float data_grad[]; }; // the logits again forward
layout(binding = 3) writeonly buffer D { float data_d[]; };      // loss or dlogits
layout(binding = 3) writeonly buffer D4 { vec4 data_d4[]; };

#define ROW_SUM float
#include "qvac_exact_row.glsl"

layout(constant_id = 1) const bool BACK = false;

// Fours that an invocation has on their way at once.
const uint EACH = 4u;

const float LOWEST         = -3.402823466e38;
const uint  MINUS_INFINITY = 0xff800000u;

shared float largest[BLOCK_SIZE];

// Behind the row's end is minus infinity, whose exponential is 0.
vec4 load_x(const uint row, const uint q) {
    const uvec4 at = row + columns_within(q);
    if (ALIGNED) {
        return within_row(q, data_x4[at.x / 4u], uintBitsToFloat(MINUS_INFINITY));
    }
    return within_row(q, vec4(data_x[at.x], data_x[at.y], data_x[at.z], data_x[at.w]), uintBitsToFloat(MINUS_INFINITY));
}

void store_d(const uint row, const uint q, const vec4 d) {
    const uint at = column(q);
    if (ALIGNED) {
        if (at < p.N) {
            data_d4[(row + at) / 4u] = d;
        }
    } else {
        [[unroll]] for (uint i = 0u; i < 4u; ++i) {
            if (at + i < p.N) {
                data_d[row + at + i] = d[i];
            }
        }
    }
}

float larger(const float a, const float b) {
    return b > a ? b : a;
}

float max_of_row(const uint row) {
    const uint tid = gl_LocalInvocationID.x;
    float m = LOWEST;
    for (uint q = 0u; is_in_row(q); q += EACH) {
        vec4 x[EACH];
        [[unroll]] for (uint j = 0u; j < EACH; ++j) {
            x[j] = load_x(row, q + j);
        }
        [[unroll]] for (uint j = 0u; j < EACH; ++j) {
            m = larger(larger(larger(larger(m, x[j].x), x[j].y), x[j].z), x[j].w);
        }
    }
    largest[tid] = m;
    barrier();
    [[unroll]] for (uint h = BLOCK_SIZE / 2u; h > 0u; h >>= 1) {
        if (tid < h) {
            largest[tid] = larger(largest[tid], largest[tid + h]);
        }
        barrier();
    }
    return largest[0];
}

vec4 exp_of(const vec4 x, const float m) {
    precise vec4 z = x - m;
    return vec4(exact_exp(z.x), exact_exp(z.y), exact_exp(z.z), exact_exp(z.w));
}

float sum_of_row(const uint row, const float m) {
    float first  = 0.0;
    float second = 0.0;
    for (uint q = 0u; is_in_row(q); q += EACH) {
        vec4 x[EACH];
        [[unroll]] for (uint j = 0u; j < EACH; ++j) {
            x[j] = load_x(row, q + j);
        }
        [[unroll]] for (uint j = 0u; j < EACH; ++j) {
            const vec4 e = exp_of(x[j], m);
            precise float s = ((j & 1u) != 0u ? second : first) + e.x;
            s = s + e.y;
            s = s + e.z;
            s = s + e.w;
            if ((j & 1u) != 0u) {
                second = s;
            } else {
                first = s;
            }
        }
    }
    return sum_of_lanes(first, second);
}

void main() {
    const uint row = row_of_workgroup();
    if (row >= p.T) {
        return;
    }
    const uint tid   = gl_LocalInvocationID.x;
    const uint x_row = p.x_offset + row * p.x_nb1;
    const uint d_row = p.d_offset + row * p.d_nb1;
    const int  label = data_labels[p.label_offset + row];

    if (label < 0 || uint(label) >= p.N) {
        const float fill = label < 0 ? 0.0 : uintBitsToFloat(0x7fc00000u);
        if (!BACK) {
            if (tid == 0u) {
                data_d[d_row] = fill;
            }
            return;
        }
        for (uint q = 0u; is_in_row(q); ++q) {
            store_d(d_row, q, vec4(fill));
        }
        return;
    }
    const float m   = max_of_row(x_row);
    const float sum = sum_of_row(x_row, m);
    if (!BACK) {
        if (tid == 0u) {
            precise float loss = p.scale * (exact_log(sum) - (data_x[x_row + uint(label)] - m));
            data_d[d_row] = loss;
        }
        return;
    }
    precise float g = p.scale * data_grad[p.grad_offset + row * p.grad_nb0];
    const float by  = exact_recip(sum);
    for (uint q = 0u; is_in_row(q); q += EACH) {
        vec4 x[EACH];
        [[unroll]] for (uint j = 0u; j < EACH; ++j) {
            x[j] = load_x(x_row, q + j);
        }
        [[unroll]] for (uint j = 0u; j < EACH; ++j) {
            const vec4 hit = mix(vec4(0.0), vec4(1.0), equal(column(q + j) + uvec4(0, 1, 2, 3), uvec4(uint(label))));
            precise vec4 d = g * (exp_of(x[j], m) * by - hit);
            store_d(d_row, q + j, d);
        }
    }
}
