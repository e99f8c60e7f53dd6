#version 450

// Rotary positions of all values of a head, for contiguous [D, H, T]: pair i of each head of token t is turned by
// pos[t] * theta_scale^i / ff[i] (YaRN: mixed with the interpolated angle), backward the other way. y may be x.
//
// A workgroup has whole tokens. It makes their sines and cosines once, for all heads, while its first values of x are on
// their way; then each invocation turns four pairs at a time.

const uint BLOCK_SIZE = 256;
layout(local_size_x = 256, local_size_y = 1, local_size_z = 1) in;

layout(push_constant) uniform parameter {
    uint  D; uint H; uint T; // D a multiple of 8
    uint  tokens;            // of a workgroup, TABLE / (D/2) at most
    uint  x_offset; uint pos_offset; uint ff_offset; uint y_offset; // in elements; x and y at 16 bytes
    uint  has_ff;
    float sign; // -1 backward
    float theta_scale; float freq_scale; float ext_factor; float magnitude;
    float corr_low; float corr_high;
} p;

layout(binding = 0) readonly buffer X { vec4 data_x[]; };
layout(binding = 1) readonly buffer Pos { int data_pos[]; };
layout(binding = 2) readonly buffer Ff { float data_ff[]; }; // x again where there are none
layout(binding = 3) writeonly buffer Y { vec4 data_y[]; };

#include "qvac_rope.glsl"

// Workgroups are spread over two grid dimensions: one alone may hold 65535 of them at most.
const uint GRID_LINE = 512;

const uint TABLE = 1024;
shared float cosines[TABLE];
shared float sines[TABLE];

void main() {
    const uint tid = gl_LocalInvocationID.x;
    const uint t0  = (gl_WorkGroupID.y * GRID_LINE + gl_WorkGroupID.x) * p.tokens;
    if (t0 >= p.T) {
        return;
    }
    const uint half_d  = p.D / 2;
    const uint tokens  = min(p.tokens, p.T - t0);
    const uint a_token = p.H * p.D / 8; // items
    const uint items   = tokens * a_token;
    const uint x       = (p.x_offset + t0 * p.H * p.D) / 4;
    const uint y       = (p.y_offset + t0 * p.H * p.D) / 4;

    uvec2 at = places(min(tid, items - 1));
    vec4  v0 = data_x[x + at.x];
    vec4  v1 = data_x[x + at.y];

    for (uint i = tid; i < tokens * half_d; i += BLOCK_SIZE) {
        const float theta = p.sign * angle(t0 + i / half_d, i % half_d);
        cosines[i] = cos(theta) * p.magnitude;
        sines[i]   = sin(theta) * p.magnitude;
    }
    barrier();

    for (uint i = tid; i < items; ) {
        const uint e = i / a_token * half_d + i % (p.D / 8) * 4;
        const vec4 c = vec4(cosines[e], cosines[e + 1], cosines[e + 2], cosines[e + 3]);
        const vec4 s = vec4(sines[e], sines[e + 1], sines[e + 2], sines[e + 3]);
        turn(v0, v1, c, s);
        data_y[y + at.x] = v0;
        data_y[y + at.y] = v1;

        i += BLOCK_SIZE;
        if (i < items) {
            at = places(i);
            v0 = data_x[x + at.x];
            v1 = data_x[x + at.y];
        }
    }
}
