#version 450

// The gradients of silu(gate) * up (ggml_swiglu_back) and of relu(gate)^2 * up (ggml_relu_sqr_glu_back), element by
// element; of gate first, of up behind all of them:
//
//     dgate = dy * up * s * (1 + gate * (1 - s)),    dup = dy * gate * s,    s = 1 / (1 + exp(-gate))
//     dgate = dy * up * 2 * r,                       dup = dy * r * r,       r = max(gate, 0)

#extension GL_EXT_control_flow_attributes : enable

layout(constant_id = 0) const bool ALIGNED = true; // N is a multiple of 4, each tensor of 16 bytes
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

// Blocks are spread over two grid dimensions: one alone may hold 65535 workgroups at most.
const uint BLOCKS_PER_GRID_LINE = 512;

void gradients(const vec4 dy, const vec4 gate, const vec4 up, out vec4 of_gate, out vec4 of_up) {
    if (RELU_SQR) {
        const vec4 dr = dy * max(gate, vec4(0.0));
        of_gate = (dr + dr) * up;
        of_up   = dr * max(gate, vec4(0.0));
    } else {
        const vec4 s = 1.0 / (1.0 + exp(-gate));
        of_gate = dy * up * s * (1.0 + gate * (1.0 - s));
        of_up   = dy * gate * s;
    }
}

// Fours of an invocation: all are read before the first one is written, so that their reading overlaps.
const uint EACH = 2;

void four_at_a_time(const uint block) {
    const uint first = block * EACH * BLOCK_SIZE + gl_LocalInvocationID.x;
    const uint n     = p.N / 4;

    vec4 dy[EACH];
    vec4 gate[EACH];
    vec4 up[EACH];
    [[unroll]] for (uint j = 0; j < EACH; ++j) {
        const uint i = min(first + j * BLOCK_SIZE, n - 1); // what is read in vain is not written
        dy[j]   = data_dy4[p.dy_offset / 4 + i];
        gate[j] = data_gate4[p.gate_offset / 4 + i];
        up[j]   = data_up4[p.up_offset / 4 + i];
    }
    [[unroll]] for (uint j = 0; j < EACH; ++j) {
        const uint i = first + j * BLOCK_SIZE;
        vec4 of_gate;
        vec4 of_up;
        gradients(dy[j], gate[j], up[j], of_gate, of_up);
        if (i < n) {
            data_d4[p.d_offset / 4 + i]     = of_gate;
            data_d4[p.d_offset / 4 + n + i] = of_up;
        }
    }
}

void main() {
    const uint block = gl_WorkGroupID.y * BLOCKS_PER_GRID_LINE + gl_WorkGroupID.x;

    if (ALIGNED) {
        four_at_a_time(block);
        return;
    }
    const uint i = block * BLOCK_SIZE + gl_LocalInvocationID.x;
    if (i < p.N) {
        const vec4 dy   = vec4(data_dy[p.dy_offset + i]);
        const vec4 gate = vec4(data_gate[p.gate_offset + i]);
        const vec4 up   = vec4(data_up[p.up_offset + i]);
        vec4 of_gate;
        vec4 of_up;
        gradients(dy, gate, up, of_gate, of_up);
        data_d[p.d_offset + i]       = of_gate.x;
        data_d[p.d_offset + p.N + i] = of_up.x;
    }
}
