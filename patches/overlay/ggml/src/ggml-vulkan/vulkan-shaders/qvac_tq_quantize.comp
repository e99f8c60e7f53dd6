#version 450

// Tokens as 8-bit integers with one scale each (TQ_QUANTIZE of ggml-train.h). The bits are the same on every device
// (qvac_tq_token.glsl).

// Strides and offsets of x are in floats, those of the result in words.
layout(push_constant) uniform parameter {
    uint N; uint T;      // values a token, a multiple of 128
    uint limbs;
    uint ne1; uint ne2;  // how tokens lie in x
    uint nb1; uint nb2; uint nb3;
    uint x_offset; uint q_offset;
} p;

layout(binding = 0) readonly buffer X { float data_x[]; };
layout(binding = 0) readonly buffer X4 { vec4 data_x4[]; };
layout(binding = 1) writeonly buffer Q { uint data_q[]; };

#define TOKENS 1
#include "qvac_row.glsl"
#include "qvac_tq_row.glsl"

vec4 load(const uint base, const uint j) {
    const uint at = base + min(columns(j).x, p.N - 4);
    if ((base & 3) == 0) {
        return data_x4[at / 4];
    }
    return vec4(data_x[at], data_x[at + 1], data_x[at + 2], data_x[at + 3]);
}

void store(const uint row, const uint j, const uvec2 q) {
    const uint words = p.N / 4;
    const uint word  = columns(j).x / 4;
    if (word < words) {
        data_q[row + word] = q.x;
        if (p.limbs == 2) {
            data_q[row + words + word] = q.y;
        }
    }
}

void main() {
    const uint token_wg = row_of_invocation();
    const uint token    = min(token_wg, p.T - 1); // spare invocations read what is there, and do not write
    const uint i1       = token % p.ne1;
    const uint i2       = token / p.ne1 % p.ne2;
    const uint i3       = token / p.ne1 / p.ne2;
    const uint base     = p.x_offset + i1 * p.nb1 + i2 * p.nb2 + i3 * p.nb3;

    vec4 x[KEEP];
    [[unroll]] for (uint j = 0; j < KEEP; ++j) {
        x[j] = load(base, j);
    }
    uint mine[TOKENS] = { 0 };
    [[unroll]] for (uint j = 0; j < KEEP; ++j) {
        mine[0] = larger(mine[0], x[j]);
    }
    for (uint j = KEEP; 4 * j * LANES < p.N; ++j) {
        mine[0] = larger(mine[0], load(base, j));
    }
    const uint top = tops_of_rows(mine)[0];
    if (token_wg >= p.T) {
        return;
    }

    const uint          row = p.q_offset + token * (p.limbs * p.N / 4 + TAIL);
    const token_factors f   = factors_of(top);
    if (lane() < TAIL) {
        data_q[row + p.limbs * p.N / 4 + lane()] = tail_of(top, lane());
    }
    [[unroll]] for (uint j = 0; j < KEEP; ++j) {
        store(row, j, limbs_of(f, x[j]));
    }
    for (uint j = KEEP; 4 * j * LANES < p.N; ++j) {
        store(row, j, limbs_of(f, load(base, j)));
    }
}
