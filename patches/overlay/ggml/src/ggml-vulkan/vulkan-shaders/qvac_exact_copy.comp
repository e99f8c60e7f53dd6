#version 450

// y = x in another type or another place: value i of the one, in the order of its dimensions, is value i of the other. Or rows of x
// (SET_ROWS) to those of y that the indices name.

#extension GL_EXT_shader_16bit_storage : require

#include "../../qvac/exact-math.h"

layout(constant_id = 0) const bool X_F16    = false;
layout(constant_id = 1) const bool Y_F16    = false;
layout(constant_id = 2) const bool SET_ROWS = false;

const uint BLOCK_SIZE = 256;
layout(local_size_x = 256, local_size_y = 1, local_size_z = 1) in;

// Strides and offsets in elements, those of the indices in words of 32 bits.
layout(push_constant) uniform parameter {
    uint N;
    uint x_ne0; uint x_ne1; uint x_ne2;
    uint x_nb0; uint x_nb1; uint x_nb2; uint x_nb3;
    uint y_ne0; uint y_ne1; uint y_ne2;
    uint y_nb0; uint y_nb1; uint y_nb2; uint y_nb3;
    uint x_offset; uint y_offset;
    uint ids_offset;
    uint ids_ne1; uint ids_ne2;
    uint ids_nb0; uint ids_nb1; uint ids_nb2;
} p;

layout(binding = 0) readonly buffer X { float data_x[]; };
layout(binding = 0) readonly buffer X16 { uint16_t data_x16[]; };
layout(binding = 1) readonly buffer Ids { uint data_ids[]; }; // x again where there are none
layout(binding = 2) writeonly buffer Y { float data_y[]; };
layout(binding = 2) writeonly buffer Y16 { uint16_t data_y16[]; };

// Workgroups are spread over two grid dimensions: one alone may hold 65535 of them at most.
const uint GRID_LINE = 512;

void main() {
    const uint i = (gl_WorkGroupID.y * GRID_LINE + gl_WorkGroupID.x) * BLOCK_SIZE + gl_LocalInvocationID.x;
    if (i >= p.N) {
        return;
    }
    const uint  x_row = i / p.x_ne0;
    const uvec4 from  = uvec4(i % p.x_ne0, x_row % p.x_ne1, x_row / p.x_ne1 % p.x_ne2, x_row / p.x_ne1 / p.x_ne2);
    const uint  x_at  = p.x_offset + from.x * p.x_nb0 + from.y * p.x_nb1 + from.z * p.x_nb2 + from.w * p.x_nb3;
    uvec4 to = from;
    if (SET_ROWS) {
        to.y = data_ids[p.ids_offset + from.y * p.ids_nb0 + from.z % p.ids_ne1 * p.ids_nb1 + from.w % p.ids_ne2 * p.ids_nb2];
    } else {
        const uint y_row = i / p.y_ne0;
        to = uvec4(i % p.y_ne0, y_row % p.y_ne1, y_row / p.y_ne1 % p.y_ne2, y_row / p.y_ne1 / p.y_ne2);
    }
    const uint y_at = p.y_offset + to.x * p.y_nb0 + to.y * p.y_nb1 + to.z * p.y_nb2 + to.w * p.y_nb3;

    float x;
    if (X_F16) {
        x = exact_from_f16(uint(data_x16[x_at]));
    } else {
        x = data_x[x_at];
    }
    if (Y_F16) {
        data_y16[y_at] = uint16_t(exact_to_f16(x));
    } else {
        data_y[y_at] = x;
    }
}
