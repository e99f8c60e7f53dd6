#version 450

// The backward of BitNet's activation and the norm behind it, and the quantized gradients, in one pass over rows that are kept:
// RMS_NORM_MUL_BACK, SWIGLU_BACK and TQ_QUANTIZE of dgate and dup (qvac_rms_norm_mul_back.comp and qvac_glu_back.comp have
// the formulas). What the norm read, silu(gate) * up, is made again.

// Offsets in fours of values, those of q in words.
layout(push_constant) uniform parameter {
    uint  N; uint T;
    uint  dy_offset; uint gate_offset; uint up_offset; uint w_offset; uint d_offset; uint qgate_offset; uint qup_offset;
    uint  limbs;
    float eps;
} p;

layout(binding = 0) readonly buffer Dy { vec4 data_dy[]; };
layout(binding = 1) readonly buffer Gate { vec4 data_gate[]; };
layout(binding = 2) readonly buffer Up { vec4 data_up[]; };
layout(binding = 3) readonly buffer W { vec4 data_w[]; };
layout(binding = 4) writeonly buffer D { vec4 data_d[]; }; // of gate, then of up behind all of them
layout(binding = 5) writeonly buffer QGate { uint data_qgate[]; };
layout(binding = 6) writeonly buffer QUp { uint data_qup[]; };

#define ROW_SUM vec2
#define TOKENS 2
#include "qvac_row.glsl"
#include "qvac_tq_row.glsl"

void main() {
    const uint words  = p.N / 4;
    const uint row_wg = row_of_invocation();
    const uint row    = min(row_wg, p.T - 1); // spare invocations read what is there, and do not write
    const bool spare  = row_wg >= p.T;

    vec4 g[KEEP];
    vec4 gate[KEEP];
    vec4 up[KEEP];
    [[unroll]] for (uint j = 0; j < KEEP; ++j) {
        const uint column = columns_within(j).x / 4;
        const uint at     = row * words + column;
        gate[j] = data_gate[p.gate_offset + at];
        up[j]   = data_up[p.up_offset + at];
        g[j]    = data_dy[p.dy_offset + at] * data_w[p.w_offset + column];
    }
    vec2 sums = vec2(0.0); // of act^2, of g * act
    [[unroll]] for (uint j = 0; j < KEEP; ++j) {
        const vec4 act = gate[j] / (1.0 + exp(-gate[j])) * up[j];
        const vec4 v   = within_row(j, act);
        sums += vec2(dot(v, v), dot(v, g[j]));
    }
    sums = sum_of_row(sums) / float(p.N);

    const float r = 1.0 / sqrt(sums.x + p.eps);
    const float c = r * r * sums.y;
    const uint  d = p.d_offset + row * words;
    uint mine[TOKENS] = { 0, 0 };
    [[unroll]] for (uint j = 0; j < KEEP; ++j) {
        const uint column = columns(j).x / 4;
        const vec4 act    = gate[j] / (1.0 + exp(-gate[j])) * up[j];
        const vec4 dy     = r * (g[j] - c * act);
        const vec4 s      = 1.0 / (1.0 + exp(-gate[j]));
        const vec4 dgate  = dy * up[j] * s * (1.0 + gate[j] * (1.0 - s));
        const vec4 dup    = dy * gate[j] * s;
        if (column < words && !spare) {
            data_d[d + column]               = dgate;
            data_d[d + p.T * words + column] = dup;
        }
        gate[j] = dgate;
        up[j]   = dup;
        mine[0] = larger(mine[0], dgate); // what lies behind the row's end is its last values again
        mine[1] = larger(mine[1], dup);
    }
    const uint top[TOKENS] = tops_of_rows(mine);
    if (spare) {
        return;
    }
    const uint          q     = row * (p.limbs * words + TAIL);
    const token_factors fgate = factors_of(top[0]);
    const token_factors fup   = factors_of(top[1]);
    if (lane() < TAIL) {
        data_qgate[p.qgate_offset + q + p.limbs * words + lane()] = tail_of(top[0], lane());
        data_qup[p.qup_offset + q + p.limbs * words + lane()]     = tail_of(top[1], lane());
    }
    [[unroll]] for (uint j = 0; j < KEEP; ++j) {
        const uint  column = columns(j).x / 4;
        const uvec2 lgate  = limbs_of(fgate, gate[j]);
        const uvec2 lup    = limbs_of(fup, up[j]);
        if (column < words) {
            data_qgate[p.qgate_offset + q + column] = lgate.x;
            data_qup[p.qup_offset + q + column]     = lup.x;
            if (p.limbs == 2) {
                data_qgate[p.qgate_offset + q + words + column] = lgate.y;
                data_qup[p.qup_offset + q + words + column]     = lup.y;
            }
        }
    }
}
