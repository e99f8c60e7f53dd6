#version 450

// ROPE_BACK and TQ_QUANTIZE of its result, all heads of a token side by side (qvac_rope.comp has the first). A workgroup has a
// token; each invocation keeps KEEP times four pairs.

// N = H*D. Offsets of x and y in fours of values, that of q in words.
layout(push_constant) uniform parameter {
    uint  D; uint N; uint T;
    uint  x_offset; uint pos_offset; uint ff_offset; uint y_offset; uint q_offset;
    uint  has_ff;
    uint  limbs;
    float theta_scale; float freq_scale; float ext_factor; float magnitude;
    float corr_low; float corr_high;
} p;

layout(binding = 0) readonly buffer X { vec4 data_x[]; };
layout(binding = 1) readonly buffer Pos { int data_pos[]; };
layout(binding = 2) readonly buffer Ff { float data_ff[]; }; // x again where there are none
layout(binding = 3) writeonly buffer Y { vec4 data_y[]; };
layout(binding = 4) writeonly buffer Q { uint data_q[]; };

#define TOKENS 1
#include "qvac_row.glsl"
#include "qvac_tq_row.glsl"
#include "qvac_rope.glsl"

const uint TABLE = 1024;
shared float cosines[TABLE];
shared float sines[TABLE];

void main() {
    const uint tid   = gl_LocalInvocationID.x;
    const uint t     = row_of_invocation();
    const uint words = p.N / 4;
    const uint items = p.N / 8;
    if (t >= p.T) {
        return;
    }

    vec4 v0[KEEP];
    vec4 v1[KEEP];
    [[unroll]] for (uint j = 0; j < KEEP; ++j) {
        const uvec2 at = places(min(tid + j * BLOCK_SIZE, items - 1)); // what lies behind the end is the last item again
        v0[j] = data_x[p.x_offset + t * words + at.x];
        v1[j] = data_x[p.x_offset + t * words + at.y];
    }
    for (uint i = tid; i < p.D / 2; i += BLOCK_SIZE) {
        const float theta = -angle(t, i);
        cosines[i] = cos(theta) * p.magnitude;
        sines[i]   = sin(theta) * p.magnitude;
    }
    barrier();

    uint mine[TOKENS] = { 0 };
    [[unroll]] for (uint j = 0; j < KEEP; ++j) {
        const uint  i  = min(tid + j * BLOCK_SIZE, items - 1);
        const uint  e  = i % (p.D / 8) * 4;
        const uvec2 at = places(i);
        turn(v0[j], v1[j], vec4(cosines[e], cosines[e + 1], cosines[e + 2], cosines[e + 3]),
             vec4(sines[e], sines[e + 1], sines[e + 2], sines[e + 3]));
        if (tid + j * BLOCK_SIZE < items) {
            data_y[p.y_offset + t * words + at.x] = v0[j];
            data_y[p.y_offset + t * words + at.y] = v1[j];
        }
        mine[0] = larger(larger(mine[0], v0[j]), v1[j]);
    }
    const uint          top = tops_of_rows(mine)[0];
    const uint          q   = p.q_offset + t * (p.limbs * words + TAIL);
    const token_factors f   = factors_of(top);
    if (tid < TAIL) {
        data_q[q + p.limbs * words + tid] = tail_of(top, tid);
    }
    [[unroll]] for (uint j = 0; j < KEEP; ++j) {
        const uvec2 at = places(min(tid + j * BLOCK_SIZE, items - 1));
        const uvec2 q0 = limbs_of(f, v0[j]);
        const uvec2 q1 = limbs_of(f, v1[j]);
        if (tid + j * BLOCK_SIZE < items) {
            data_q[q + at.x] = q0.x;
            data_q[q + at.y] = q1.x;
            if (p.limbs == 2) {
                data_q[q + words + at.x] = q0.y;
                data_q[q + words + at.y] = q1.y;
            }
        }
    }
}
