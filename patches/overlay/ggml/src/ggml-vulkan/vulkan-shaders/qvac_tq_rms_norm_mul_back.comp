#version 450

// RMS_NORM_MUL_BACK and TQ_QUANTIZE of its result, in one pass over rows that are kept (qvac_rms_norm_mul_back.comp has the
// formulas).

// Offsets in fours of values, that of q in words.
layout(push_constant) uniform parameter {
    uint  N; uint T;
    uint  dy_offset; uint x_offset; uint w_offset; uint add_offset; uint dx_offset; uint q_offset;
    uint  has_add;
    uint  limbs;
    float eps;
} p;

layout(binding = 0) readonly buffer Dy { vec4 data_dy[]; };
layout(binding = 1) readonly buffer X { vec4 data_x[]; };
layout(binding = 2) readonly buffer W { vec4 data_w[]; };
layout(binding = 3) readonly buffer Add { vec4 data_add[]; }; // dy again where there is none
layout(binding = 4) writeonly buffer Dx { vec4 data_dx[]; };
layout(binding = 5) writeonly buffer Q { uint data_q[]; };

#define ROW_SUM vec2
#define TOKENS 1
#include "qvac_row.glsl"
#include "qvac_tq_row.glsl"

void main() {
    const uint words  = p.N / 4;
    const uint row_wg = row_of_invocation();
    const uint row    = min(row_wg, p.T - 1); // spare invocations read what is there, and do not write
    const bool spare  = row_wg >= p.T;

    vec4 x[KEEP];
    vec4 g[KEEP];
    vec4 add[KEEP];
    [[unroll]] for (uint j = 0; j < KEEP; ++j) {
        const uint column = columns_within(j).x / 4;
        const uint at     = row * words + column;
        x[j]   = data_x[p.x_offset + at];
        g[j]   = data_dy[p.dy_offset + at] * data_w[p.w_offset + column];
        add[j] = vec4(0.0);
        if (p.has_add != 0) {
            add[j] = data_add[p.add_offset + at];
        }
    }
    vec2 sums = vec2(0.0); // of x^2, of g * x
    [[unroll]] for (uint j = 0; j < KEEP; ++j) {
        const vec4 v = within_row(j, x[j]);
        sums += vec2(dot(v, v), dot(v, g[j]));
    }
    sums = sum_of_row(sums) / float(p.N);

    const float r = 1.0 / sqrt(sums.x + p.eps);
    const float c = r * r * sums.y;
    uint mine[TOKENS] = { 0 };
    [[unroll]] for (uint j = 0; j < KEEP; ++j) {
        const uint column = columns(j).x / 4;
        x[j] = r * (g[j] - c * x[j]) + add[j];
        if (column < words && !spare) {
            data_dx[p.dx_offset + row * words + column] = x[j];
        }
        mine[0] = larger(mine[0], x[j]); // what lies behind the row's end is its last values again
    }
    const uint top = tops_of_rows(mine)[0];
    if (spare) {
        return;
    }
    const uint          q = p.q_offset + row * (p.limbs * words + TAIL);
    const token_factors f = factors_of(top);
    if (lane() < TAIL) {
        data_q[q + p.limbs * words + lane()] = tail_of(top, lane());
    }
    [[unroll]] for (uint j = 0; j < KEEP; ++j) {
        const uint  column = columns(j).x / 4;
        const uvec2 limbs  = limbs_of(f, x[j]);
        if (column < words) {
            data_q[q + column] = limbs.x;
            if (p.limbs == 2) {
                data_q[q + words + column] = limbs.y;
            }
        }
    }
}
