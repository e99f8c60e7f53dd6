// What kernels of whole rows share: how a row is dealt out to the invocations that keep it, and its sums.
//
// A row belongs to LANES invocations, each with KEEP values of four columns; what a longer row has beyond that is read
// again when it is needed. KEEP is a macro and no specialization constant: an array stays in registers only if it is
// indexed with literals, and drivers don't unroll long loops (NVIDIA: a row of 24 values each went to memory, five times
// slower). So the loops are unrolled before a driver sees them.

#extension GL_EXT_control_flow_attributes : enable

layout(constant_id = 0) const uint LANES   = 256;  // of a row: 32 or all of the workgroup
layout(constant_id = 1) const bool ALIGNED = true; // N is a multiple of 4, and each tensor begins at 16 bytes

#ifndef BLOCK
#define BLOCK 256
#endif
const uint BLOCK_SIZE = BLOCK;
layout(local_size_x = BLOCK, local_size_y = 1, local_size_z = 1) in;

// Workgroups are spread over two grid dimensions: one alone may hold 65535 of them at most.
const uint GRID_LINE = 512;

uint row_of_invocation() {
    return (gl_WorkGroupID.y * GRID_LINE + gl_WorkGroupID.x) * (BLOCK_SIZE / LANES) + gl_LocalInvocationID.x / LANES;
}

uint lane() {
    return gl_LocalInvocationID.x % LANES;
}

// The columns of an invocation's value `j`: side by side where they are read at once, else each beside its neighbours'.
uvec4 columns(const uint j) {
    if (ALIGNED) {
        return 4 * (j * LANES + lane()) + uvec4(0, 1, 2, 3);
    }
    return (4 * j + uvec4(0, 1, 2, 3)) * LANES + lane();
}

// Columns to read: those behind the row's end become its last ones, so that reading needs no branch.
uvec4 columns_within(const uint j) {
    return min(columns(j), uvec4(p.N - 1));
}

// `v` without what lies behind the row's end.
vec4 within_row(const uint j, const vec4 v) {
    return mix(vec4(0.0), v, lessThan(columns(j), uvec4(p.N)));
}

const uint PARTS     = 16;
const uint MAX_STEPS = BLOCK_SIZE / PARTS;

#ifdef ROW_SUM
shared ROW_SUM part[BLOCK_SIZE];
shared ROW_SUM part2[BLOCK_SIZE / 32 * PARTS];

// The sum over the row's invocations, the same to the bit in each of them. Every invocation of the workgroup must call it.
ROW_SUM sum_of_row(const ROW_SUM mine) {
    const uint tid   = gl_LocalInvocationID.x;
    const uint group = tid / LANES;

    part[tid] = mine;
    barrier();
    if (lane() < PARTS) {
        ROW_SUM sum = mine;
        [[unroll]] for (uint i = 1; i < MAX_STEPS; ++i) {
            if (i * PARTS < LANES) {
                sum += part[tid + i * PARTS];
            }
        }
        part2[group * PARTS + lane()] = sum;
    }
    barrier();
    ROW_SUM sum = part2[group * PARTS];
    [[unroll]] for (uint i = 1; i < PARTS; ++i) {
        sum += part2[group * PARTS + i];
    }
    return sum;
}
#endif
