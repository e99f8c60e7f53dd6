#version 450

// y = f(a) or f(a, b), value by value, by a function of exact-values.h. y may be a or b, where they have its shape.

#extension GL_EXT_control_flow_attributes : enable

#include "../../qvac/exact-math.h"
#include "../../qvac/exact-angle.h"
#include "../../qvac/exact-values.h"

layout(constant_id = 0) const uint OP = 0;

// How b lies to a: with any strides and repeated in any dimension; or everything contiguous, of whole fours of values at 16 bytes
// each, with b of a's shape (or absent), a whole part of it that repeats, or one value.
const uint ANY      = 0u;
const uint SAME     = 1u;
const uint REPEATED = 2u;
const uint ONE      = 3u;
layout(constant_id = 1) const uint LAYOUT = ANY;

const uint BLOCK_SIZE = 256;
layout(local_size_x = 256, local_size_y = 1, local_size_z = 1) in;

// Strides and offsets in elements.
layout(push_constant) uniform parameter {
    uint  N;                        // values
    uint  ne0; uint ne1; uint ne2;  // of y, and of a
    uint  b_ne0; uint b_ne1; uint b_ne2; uint b_ne3;
    uint  a_nb0; uint a_nb1; uint a_nb2; uint a_nb3;
    uint  b_nb0; uint b_nb1; uint b_nb2; uint b_nb3;
    uint  y_nb0; uint y_nb1; uint y_nb2; uint y_nb3;
    uint  a_offset; uint b_offset; uint y_offset;
    float factor; float offset;
} p;

layout(binding = 0) readonly buffer A { float data_a[]; };
layout(binding = 0) readonly buffer A4 { vec4 data_a4[]; };
layout(binding = 1) readonly buffer B { float data_b[]; }; // a again where there is none
layout(binding = 1) readonly buffer B4 { vec4 data_b4[]; };
layout(binding = 2) writeonly buffer Y { float data_y[]; };
layout(binding = 2) writeonly buffer Y4 { vec4 data_y4[]; };

// Workgroups are spread over two grid dimensions: one alone may hold 65535 of them at most.
const uint GRID_LINE = 512;

// Fours of an invocation: all are read before the first one is written, so that their reading overlaps.
const uint EACH = 2u;

float value(const float a, const float b) {
    return exact_value(OP, a, b, p.factor, p.offset);
}

vec4 load_b(const uint i) {
    if (LAYOUT == ONE) {
        return vec4(data_b[p.b_offset]);
    }
    return data_b4[p.b_offset / 4u + (LAYOUT == REPEATED ? i % (p.b_ne0 / 4u) : i)];
}

void fours(const uint block) {
    const uint first = block * EACH * BLOCK_SIZE + gl_LocalInvocationID.x;
    const uint n     = p.N / 4u;

    vec4 a[EACH];
    vec4 b[EACH];
    [[unroll]] for (uint j = 0u; j < EACH; ++j) {
        const uint i = min(first + j * BLOCK_SIZE, n - 1u); // what is read in vain is not written
        a[j] = data_a4[p.a_offset / 4u + i];
        b[j] = OP < EXACT_SCALE ? load_b(i) : a[j];
    }
    [[unroll]] for (uint j = 0u; j < EACH; ++j) {
        const uint i = first + j * BLOCK_SIZE;
        if (i < n) {
            data_y4[p.y_offset / 4u + i] =
                vec4(value(a[j].x, b[j].x), value(a[j].y, b[j].y), value(a[j].z, b[j].z), value(a[j].w, b[j].w));
        }
    }
}

void main() {
    const uint block = gl_WorkGroupID.y * GRID_LINE + gl_WorkGroupID.x;
    if (LAYOUT != ANY) {
        fours(block);
        return;
    }
    const uint i = block * BLOCK_SIZE + gl_LocalInvocationID.x;
    if (i >= p.N) {
        return;
    }
    const uint  row = i / p.ne0;
    const uvec4 at  = uvec4(i % p.ne0, row % p.ne1, row / p.ne1 % p.ne2, row / p.ne1 / p.ne2);
    const uint  a_at = p.a_offset + at.x * p.a_nb0 + at.y * p.a_nb1 + at.z * p.a_nb2 + at.w * p.a_nb3;
    const uvec4 b_in = at % uvec4(p.b_ne0, p.b_ne1, p.b_ne2, p.b_ne3);
    const uint  b_at = p.b_offset + b_in.x * p.b_nb0 + b_in.y * p.b_nb1 + b_in.z * p.b_nb2 + b_in.w * p.b_nb3;

    const float a = data_a[a_at];
    const float b = OP < EXACT_SCALE ? data_b[b_at] : a;
    data_y[p.y_offset + at.x * p.y_nb0 + at.y * p.y_nb1 + at.z * p.y_nb2 + at.w * p.y_nb3] = value(a, b);
}
