#version 450

// Adds what the workgroups of qvac_out_prod_f16.comp made of their shares of K, in the order of the shares.

const uint BLOCK_SIZE = 256;
layout(local_size_x = 256, local_size_y = 1, local_size_z = 1) in;

// Strides and offsets in elements.
layout(push_constant) uniform parameter {
    uint M; uint N;
    uint shares;
    uint nb21; // of dst; the shares are contiguous
    uint d_offset;
} p;

layout(binding = 0) readonly buffer Shares { float data_s[]; };
layout(binding = 1) writeonly buffer D { float data_d[]; };

void main() {
    const uint m = gl_WorkGroupID.x * BLOCK_SIZE + gl_LocalInvocationID.x;
    const uint n = gl_WorkGroupID.y;
    if (m >= p.M) {
        return;
    }
    float sum = 0.0;
    for (uint s = 0; s < p.shares; ++s) {
        sum += data_s[(s * p.N + n) * p.M + m];
    }
    data_d[p.d_offset + n * p.nb21 + m] = sum;
}
