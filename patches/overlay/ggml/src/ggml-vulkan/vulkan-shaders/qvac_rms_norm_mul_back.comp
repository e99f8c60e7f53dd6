#version 450

// add + the gradient of mul(rms_norm(x), w) in x (ggml_rms_norm_mul_back), one workgroup a row:
//
//     dx = r * (g - x * r^2 * mean(g * x)) + add,    g = dy * w,    r = 1 / sqrt(mean(x^2) + eps)
//
// Both means come of one pass over the row. What an invocation read of its first KEEP values stays in its registers;
// a longer row's rest is read again, from the cache.

#extension GL_EXT_control_flow_attributes : enable

layout(constant_id = 0) const uint KEEP = 8;

const uint BLOCK_SIZE = 256;
layout(local_size_x = 256, local_size_y = 1, local_size_z = 1) in;

// Offsets in elements.
layout(push_constant) uniform parameter {
    uint  N; uint T;
    uint  dy_offset; uint x_offset; uint w_offset; uint add_offset; uint dx_offset;
    uint  has_add;
    float eps;
} p;

layout(binding = 0) readonly buffer Dy { float data_dy[]; };
layout(binding = 1) readonly buffer X { float data_x[]; };
layout(binding = 2) readonly buffer W { float data_w[]; };
layout(binding = 3) readonly buffer Add { float data_add[]; }; // dy again where there is none
layout(binding = 4) writeonly buffer Dx { float data_dx[]; };

// Rows are spread over two grid dimensions: one alone may hold 65535 workgroups at most.
const uint ROWS_PER_GRID_LINE = 512;

const uint PARTS = 16;
shared vec2 part[BLOCK_SIZE];
shared vec2 part2[PARTS];

// The sum over the workgroup, the same to the bit in every invocation.
vec2 sum_of_workgroup(const vec2 mine) {
    const uint tid = gl_LocalInvocationID.x;

    part[tid] = mine;
    barrier();
    vec2 sum = vec2(0.0);
    if (tid < PARTS) {
        [[unroll]] for (uint i = 0; i < BLOCK_SIZE; i += PARTS) {
            sum += part[i + tid];
        }
        part2[tid] = sum;
    }
    barrier();
    sum = vec2(0.0);
    [[unroll]] for (uint i = 0; i < PARTS; ++i) {
        sum += part2[i];
    }
    return sum;
}

void main() {
    const uint tid = gl_LocalInvocationID.x;
    const uint row = gl_WorkGroupID.y * ROWS_PER_GRID_LINE + gl_WorkGroupID.x;
    if (row >= p.T) {
        return;
    }
    const uint dy  = p.dy_offset  + row * p.N;
    const uint x   = p.x_offset   + row * p.N;
    const uint add = p.add_offset + row * p.N;
    const uint dx  = p.dx_offset  + row * p.N;

    vec2 kept[KEEP]; // g, x
    vec2 sums = vec2(0.0); // of x^2, of g * x
    [[unroll]] for (uint j = 0; j < KEEP; ++j) {
        const uint i = j * BLOCK_SIZE + tid;
        kept[j] = vec2(0.0);
        if (i < p.N) {
            kept[j] = vec2(data_dy[dy + i] * data_w[p.w_offset + i], data_x[x + i]);
        }
        sums += kept[j].yx * kept[j].yy;
    }
    for (uint i = KEEP * BLOCK_SIZE + tid; i < p.N; i += BLOCK_SIZE) {
        const vec2 gx = vec2(data_dy[dy + i] * data_w[p.w_offset + i], data_x[x + i]);
        sums += gx.yx * gx.yy;
    }
    sums = sum_of_workgroup(sums) / float(p.N);

    const float r = 1.0 / sqrt(sums.x + p.eps);
    const float c = r * r * sums.y;
    [[unroll]] for (uint j = 0; j < KEEP; ++j) {
        const uint i = j * BLOCK_SIZE + tid;
        if (i < p.N) {
            const float more = p.has_add != 0 ? data_add[add + i] : 0.0;
            data_dx[dx + i] = r * (kept[j].x - kept[j].y * c) + more;
        }
    }
    for (uint i = KEEP * BLOCK_SIZE + tid; i < p.N; i += BLOCK_SIZE) {
        const float more = p.has_add != 0 ? data_add[add + i] : 0.0;
        data_dx[dx + i] = r * (data_dy[dy + i] * data_w[p.w_offset + i] - data_x[x + i] * c) + more;
    }
}
