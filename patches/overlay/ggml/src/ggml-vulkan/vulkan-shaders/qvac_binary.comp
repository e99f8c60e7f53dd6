#version 450

// d = a + b, silu(a) * b or relu(a)^2 * b, of contiguous values. d may be a or b.

#extension GL_EXT_control_flow_attributes : enable

const uint ADD = 0;
const uint SWIGLU = 1;
const uint RELU_SQR = 2;
layout(constant_id = 0) const uint OP = ADD;

const uint BLOCK_SIZE = 256;
layout(local_size_x = 256, local_size_y = 1, local_size_z = 1) in;

// In fours of values: their number is whole, and each tensor begins at 16 bytes.
layout(push_constant) uniform parameter {
    uint N;
    uint a_offset; uint b_offset; uint d_offset;
} p;

layout(binding = 0) readonly buffer A { vec4 data_a[]; };
layout(binding = 1) readonly buffer B { vec4 data_b[]; };
layout(binding = 2) writeonly buffer D { vec4 data_d[]; };

// Blocks are spread over two grid dimensions: one alone may hold 65535 workgroups at most.
const uint BLOCKS_PER_GRID_LINE = 512;

// Fours of an invocation: all are read before the first one is written, so that their reading overlaps.
const uint EACH = 2;

vec4 result(const vec4 a, const vec4 b) {
    if (OP == SWIGLU) {
        return a / (1.0 + exp(-a)) * b;
    }
    if (OP == RELU_SQR) {
        const vec4 r = max(a, vec4(0.0));
        return r * r * b;
    }
    return a + b;
}

void main() {
    const uint first = (gl_WorkGroupID.y * BLOCKS_PER_GRID_LINE + gl_WorkGroupID.x) * EACH * BLOCK_SIZE + gl_LocalInvocationID.x;

    vec4 a[EACH];
    vec4 b[EACH];
    [[unroll]] for (uint j = 0; j < EACH; ++j) {
        const uint i = min(first + j * BLOCK_SIZE, p.N - 1); // what is read in vain is not written
        a[j] = data_a[p.a_offset + i];
        b[j] = data_b[p.b_offset + i];
    }
    [[unroll]] for (uint j = 0; j < EACH; ++j) {
        const uint i = first + j * BLOCK_SIZE;
        if (i < p.N) {
            data_d[p.d_offset + i] = result(a[j], b[j]);
        }
    }
}
