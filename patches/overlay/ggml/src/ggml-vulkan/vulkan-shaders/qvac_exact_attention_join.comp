#version 450

// Exact attention of a few queries over a cache, second part: the chunks of a query and a head are added up, in order. A workgroup
// has one query of one head.

#extension GL_EXT_control_flow_attributes : enable

#include "../../qvac/exact-math.h"

const uint BLOCK = 128;
const uint AHEAD = 16; // chunks that are asked for at a time

layout(local_size_x = 128, local_size_y = 1, local_size_z = 1) in;

layout(push_constant) uniform parameter {
    uint D;
    uint n_chunks;
    uint n_rows;
    uint dst_offset;
} p;

layout(binding = 0) readonly buffer Parts { float data_parts[]; }; // [2, n_chunks, n_rows], then [D, n_chunks, n_rows]
layout(binding = 1) writeonly buffer Dst { float data_dst[]; };

#define tid gl_LocalInvocationID.x

shared float largest[BLOCK];
shared float factor[BLOCK];
shared float share[BLOCK]; // a chunk's sum of exponentials; 0: it has no key

void main() {
    const uint row   = gl_WorkGroupID.y * 512 + gl_WorkGroupID.x;
    if (row >= p.n_rows) {
        return;
    }
    const uint at    = row * p.n_chunks;
    const uint parts = 2 * p.n_rows * p.n_chunks + at * p.D;

    float m = uintBitsToFloat(0xff800000u);
    for (uint c = tid; c < p.n_chunks; c += BLOCK) {
        const float x = data_parts[2 * (at + c)];
        m = x > m ? x : m;
    }
    largest[tid] = m;
    barrier();
    for (uint h = BLOCK / 2; h > 0; h /= 2) {
        if (tid < h) {
            const float x = largest[tid + h];
            largest[tid] = x > largest[tid] ? x : largest[tid];
        }
        barrier();
    }
    m = largest[0];

    // Heads are up to 256 values long: two an invocation.
    precise float l = 0.0;
    precise float o[2];
    o[0] = 0.0;
    o[1] = 0.0;
    for (uint c0 = 0; c0 < p.n_chunks; c0 += BLOCK) {
        barrier();
        share[tid] = 0.0;
        if (c0 + tid < p.n_chunks) {
            precise float x = data_parts[2 * (at + c0 + tid)] - m;
            share[tid]  = data_parts[2 * (at + c0 + tid) + 1];
            factor[tid] = exact_exp(x);
        }
        barrier();
        const uint n = min(BLOCK, p.n_chunks - c0);
        for (uint c = 0; c < n; c += AHEAD) {
            float part[2][AHEAD];
            [[unroll]] for (uint i = 0; i < AHEAD; ++i) {
                [[unroll]] for (uint j = 0; j < 2; ++j) {
                    part[j][i] = 0.0;
                    if (share[c + i] != 0.0 && tid + j * BLOCK < p.D) {
                        part[j][i] = data_parts[parts + (c0 + c + i) * p.D + tid + j * BLOCK];
                    }
                }
            }
            [[unroll]] for (uint i = 0; i < AHEAD; ++i) {
                if (share[c + i] != 0.0) {
                    l = l + share[c + i] * factor[c + i];
                    [[unroll]] for (uint j = 0; j < 2; ++j) {
                        o[j] = o[j] + part[j][i] * factor[c + i];
                    }
                }
            }
        }
    }
    const float r = l == 0.0 ? 0.0 : exact_recip(l);
    [[unroll]] for (uint j = 0; j < 2; ++j) {
        if (tid + j * BLOCK < p.D) {
            precise float y = o[j] * r;
            data_dst[p.dst_offset + row * p.D + tid + j * BLOCK] = y;
        }
    }
}
