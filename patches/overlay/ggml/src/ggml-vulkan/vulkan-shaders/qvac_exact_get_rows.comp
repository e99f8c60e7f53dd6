#version 450

// Rows of any weight type as floats, as exact arithmetic unpacks them. An invocation makes four values of a row.

#extension GL_EXT_control_flow_attributes : enable

layout(local_size_x = 256, local_size_y = 1, local_size_z = 1) in;

// Strides and offsets are in elements, those of a quantized `a` in blocks.
layout(push_constant) uniform parameter {
    uint N; uint rows;           // values a row, rows of a
    uint n1; uint n2; uint n3;   // ids, and their batches
    uint a_1; uint a_2; uint a_3;
    uint i_0; uint i_1; uint i_2;
    uint d_1; uint d_2; uint d_3;
    uint a_offset; uint i_offset; uint d_offset;
} p;

#include "qvac_exact_weights.glsl"

layout(binding = 1) readonly buffer I { int data_i[]; };
layout(binding = 2) writeonly buffer D { float data_d[]; };

void main() {
    const uint at    = (gl_WorkGroupID.y * gl_NumWorkGroups.x + gl_WorkGroupID.x) * 256u + gl_LocalInvocationID.x;
    const uint fours = (p.N + 3u) / 4u;
    const uint i0 = at % fours * 4u;
    const uint i1 = at / fours % p.n1;
    const uint i2 = at / fours / p.n1 % p.n2;
    const uint i3 = at / fours / p.n1 / p.n2;
    if (i3 >= p.n3) {
        return;
    }
    const uint row = uint(data_i[p.i_offset + i1 * p.i_0 + i2 * p.i_1 + i3 * p.i_2]);
    const uint a   = p.a_offset + row * p.a_1 + i2 * p.a_2 + i3 * p.a_3;
    const uint d   = p.d_offset + i1 * p.d_1 + i2 * p.d_2 + i3 * p.d_3 + i0;
    if (row >= p.rows) {
        for (uint j = 0; j < 4u && i0 + j < p.N; ++j) {
            data_d[d + j] = uintBitsToFloat(0x7fc00000u);
        }
        return;
    }
#if defined(A_QUANTIZED)
    const vec4 v = a_four(a + i0 / A_BLOCK, i0 % A_BLOCK);
    [[unroll]] for (uint j = 0; j < 4; ++j) {
        data_d[d + j] = v[j];
    }
#else
    for (uint j = 0; j < 4u && i0 + j < p.N; ++j) {
        data_d[d + j] = a_value(a + i0 + j);
    }
#endif
}
