#version 450

// One step of AdamW over w, m and v (exact-values.h), from the gradient g.

#include "../../qvac/exact-math.h"
#include "../../qvac/exact-angle.h"
#include "../../qvac/exact-values.h"

const uint BLOCK_SIZE = 256;
layout(local_size_x = 256, local_size_y = 1, local_size_z = 1) in;

// Offsets in elements.
layout(push_constant) uniform parameter {
    uint N;
    uint w_offset; uint g_offset; uint m_offset; uint v_offset; uint step_offset;
} p;

layout(binding = 0) buffer W { float data_w[]; };
layout(binding = 1) readonly buffer G { float data_g[]; };
layout(binding = 2) buffer M { float data_m[]; };
layout(binding = 3) buffer V { float data_v[]; };
layout(binding = 4) readonly buffer Step { float data_step[]; }; // learning rate, betas, eps, decay, corrections

// Workgroups are spread over two grid dimensions: one alone may hold 65535 of them at most.
const uint GRID_LINE = 512;

float parameter_of(const uint i) {
    return data_step[p.step_offset + i];
}

void main() {
    const uint i = (gl_WorkGroupID.y * GRID_LINE + gl_WorkGroupID.x) * BLOCK_SIZE + gl_LocalInvocationID.x;
    if (i >= p.N) {
        return;
    }
    const float g = data_g[p.g_offset + i];
    const float w = data_w[p.w_offset + i];
    const float m = exact_adamw_m(data_m[p.m_offset + i], g, parameter_of(1u));
    const float v = exact_adamw_v(data_v[p.v_offset + i], g, parameter_of(2u));
    data_m[p.m_offset + i] = m;
    data_v[p.v_offset + i] = v;
    data_w[p.w_offset + i] =
        exact_adamw_w(w, m, v, parameter_of(0u), parameter_of(3u), parameter_of(4u), parameter_of(5u), parameter_of(6u));
}
