#version 450

// The gradients of silu(gate) * up and of relu(gate)^2 * up, of gate first, of up behind all of them. All contiguous.

#extension GL_EXT_control_flow_attributes : enable

#include "../../qvac/exact-math.h"
#include "../../qvac/exact-angle.h"
#include "../../qvac/exact-values.h"

layout(constant_id = 0) const bool ALIGNED  = true; // N is a multiple of 4, and each tensor begins at 16 bytes
layout(constant_id = 1) const bool RELU_SQR = false;

const uint BLOCK_SIZE = 256;
layout(local_size_x = 256, local_size_y = 1, local_size_z = 1) in;

// Offsets in elements.
layout(push_constant) uniform parameter {
    uint N; // elements of dy
    uint dy_offset; uint gate_offset; uint up_offset; uint d_offset;
} p;

layout(binding = 0) readonly buffer Dy { float data_dy[]; };
layout(binding = 0) readonly buffer Dy4 { vec4 data_dy4[]; };
layout(binding = 1) readonly buffer Gate { float data_gate[]; };
layout(binding = 1) readonly buffer Gate4 { vec4 data_gate4[]; };
layout(binding = 2) readonly buffer Up { float data_up[]; };
layout(binding = 2) readonly buffer Up4 { vec4 data_up4[]; };
layout(binding = 3) writeonly buffer D { float data_d[]; };
layout(binding = 3) writeonly buffer D4 { vec4 data_d4[]; };

// Workgroups are spread over two grid dimensions: one alone may hold 65535 of them at most.
const uint GRID_LINE = 512;

float of_gate(const float dy, const float gate, const float up) {
    return RELU_SQR ? exact_relu_sqr_back_gate(dy, gate, up) : exact_swiglu_back_gate(dy, gate, up);
}

float of_up(const float dy, const float gate) {
    return RELU_SQR ? exact_relu_sqr_back_up(dy, gate) : exact_swiglu_back_up(dy, gate);
}

void main() {
    const uint i = (gl_WorkGroupID.y * GRID_LINE + gl_WorkGroupID.x) * BLOCK_SIZE + gl_LocalInvocationID.x;
    if (ALIGNED) {
        if (i >= p.N / 4u) {
            return;
        }
        const vec4 dy   = data_dy4[p.dy_offset / 4u + i];
        const vec4 gate = data_gate4[p.gate_offset / 4u + i];
        const vec4 up   = data_up4[p.up_offset / 4u + i];
        vec4 dgate;
        vec4 dup;
        [[unroll]] for (uint j = 0u; j < 4u; ++j) {
            dgate[j] = of_gate(dy[j], gate[j], up[j]);
            dup[j]   = of_up(dy[j], gate[j]);
        }
        data_d4[p.d_offset / 4u + i]            = dgate;
        data_d4[(p.d_offset + p.N) / 4u + i] = dup;
    } else if (i < p.N) {
        const float dy   = data_dy[p.dy_offset + i];
        const float gate = data_gate[p.gate_offset + i];
        const float up   = data_up[p.up_offset + i];
        data_d[p.d_offset + i]       = of_gate(dy, gate, up);
        data_d[p.d_offset + p.N + i] = of_up(dy, gate);
    }
}
