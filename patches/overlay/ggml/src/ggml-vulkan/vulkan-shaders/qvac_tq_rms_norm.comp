#version 450

// RMS_NORM, MUL by its weight and TQ_QUANTIZE of the product, in one pass over rows that are kept (qvac_rms_norm.comp has the
// first two). With GATED a SWIGLU stands before them: x = silu(gate) * up.

// Offsets in fours of values, that of q in words.
layout(push_constant) uniform parameter {
    uint  N; uint T;
    uint  x_offset; uint up_offset; uint w_offset; uint act_offset; uint y_offset; uint q_offset;
    uint  has_act; // x is written too
    uint  has_y;
    uint  limbs;   // of q; 0 where there is none
    float eps;
} p;

layout(binding = 0) readonly buffer X { vec4 data_x[]; }; // or gate
layout(binding = 1) readonly buffer Up { vec4 data_up[]; };
layout(binding = 2) readonly buffer W { vec4 data_w[]; };
layout(binding = 3) writeonly buffer Act { vec4 data_act[]; };
layout(binding = 4) writeonly buffer Y { vec4 data_y[]; };
layout(binding = 5) writeonly buffer Q { uint data_q[]; };

#define ROW_SUM float
#define TOKENS 1
#include "qvac_row.glsl"
#include "qvac_tq_row.glsl"

layout(constant_id = 2) const bool GATED = false;

void main() {
    const uint words  = p.N / 4;
    const uint row_wg = row_of_invocation();
    const uint row    = min(row_wg, p.T - 1); // spare invocations read what is there, and do not write
    const bool spare  = row_wg >= p.T;

    vec4 x[KEEP];
    vec4 up[KEEP];
    [[unroll]] for (uint j = 0; j < KEEP; ++j) {
        const uint at = row * words + columns_within(j).x / 4;
        x[j] = data_x[p.x_offset + at];
        if (GATED) {
            up[j] = data_up[p.up_offset + at];
        }
    }
    if (GATED) {
        [[unroll]] for (uint j = 0; j < KEEP; ++j) {
            const uint column = columns(j).x / 4;
            x[j] = x[j] / (1.0 + exp(-x[j])) * up[j];
            if (p.has_act != 0 && column < words && !spare) {
                data_act[p.act_offset + row * words + column] = x[j];
            }
        }
    }
    float sum = 0.0;
    [[unroll]] for (uint j = 0; j < KEEP; ++j) {
        const vec4 v = within_row(j, x[j]);
        sum += dot(v, v);
    }
    const float r = 1.0 / sqrt(sum_of_row(sum) / float(p.N) + p.eps);

    uint mine[TOKENS] = { 0 };
    [[unroll]] for (uint j = 0; j < KEEP; ++j) {
        const uint column = columns(j).x / 4;
        x[j] = r * x[j] * data_w[p.w_offset + columns_within(j).x / 4];
        if (p.has_y != 0 && column < words && !spare) {
            data_y[p.y_offset + row * words + column] = x[j];
        }
        mine[0] = larger(mine[0], x[j]); // what lies behind the row's end is its last values again
    }
    if (p.limbs == 0) {
        return;
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
