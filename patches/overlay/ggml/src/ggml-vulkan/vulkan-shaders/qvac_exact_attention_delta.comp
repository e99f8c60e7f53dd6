#version 450

// What the exact backward of attention needs of each query: the logarithm of the sum of its exponentials, and
// delta = sum_d dy * y in segments of 32.

#extension GL_EXT_control_flow_attributes : enable

layout(local_size_x = 128, local_size_y = 1, local_size_z = 1) in;

layout(push_constant) uniform parameter {
    uint D;
    uint n_rows;
    uint fwd_offset;
    uint dy_offset;
} p;

layout(binding = 0) readonly buffer Fwd { float data_fwd[]; };
layout(binding = 1) readonly buffer Dy  { float data_dy[]; };
layout(binding = 2) writeonly buffer Stats { vec2 data_stats[]; };

void main() {
    const uint row = gl_GlobalInvocationID.x;
    if (row >= p.n_rows) {
        return;
    }
    precise float delta = 0.0;
    for (uint d0 = 0; d0 < p.D; d0 += 32) {
        precise float part = 0.0;
        const uint end = min(d0 + 32, p.D);
        for (uint d = d0; d < end; ++d) {
            part = part + data_dy[p.dy_offset + row * p.D + d] * data_fwd[p.fwd_offset + row * p.D + d];
        }
        delta = delta + part;
    }
    data_stats[row] = vec2(data_fwd[p.fwd_offset + p.n_rows * p.D + row], delta);
}
