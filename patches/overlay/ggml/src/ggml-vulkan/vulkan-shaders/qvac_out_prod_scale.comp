#version 450

// A half-precision copy of OUT_PROD's second operand, one workgroup a column (token): each column times the power of two
// that brings its largest magnitude to 2^10 .. 2^11. A half then holds eleven bits of everything down to 2^-24 of the
// largest, whatever the size of the gradients; the reciprocal is exact.

#extension GL_EXT_control_flow_attributes : enable
#extension GL_EXT_shader_16bit_storage : require
#extension GL_EXT_shader_explicit_arithmetic_types_float16 : require

const uint BLOCK_SIZE = 256;
layout(local_size_x = 256, local_size_y = 1, local_size_z = 1) in;

// Strides and offsets in elements.
layout(push_constant) uniform parameter {
    uint K;
    uint nb10; uint nb11; // of b: from one column to the next, along k
    uint nbh;             // from one column of the copy to the next; a multiple of 4, zeros beyond K
    uint b_offset;
} p;

layout(binding = 0) readonly buffer B { float data_b[]; };
layout(binding = 1) writeonly buffer Half { f16vec4 data_h[]; };
layout(binding = 2) writeonly buffer Scales { float inv_scale[]; };

shared float largest[BLOCK_SIZE];

vec4 load(const uint k) {
    const uint at = p.b_offset + gl_WorkGroupID.x * p.nb10 + k * p.nb11;
    vec4 v = vec4(0.0);
    [[unroll]] for (uint i = 0; i < 4; ++i) {
        if (k + i < p.K) {
            v[i] = data_b[at + i * p.nb11];
        }
    }
    return v;
}

void main() {
    const uint tid = gl_LocalInvocationID.x;

    float most = 0.0;
    for (uint k = 4 * tid; k < p.K; k += 4 * BLOCK_SIZE) {
        const vec4 v = abs(load(k));
        most = max(most, max(max(v.x, v.y), max(v.z, v.w)));
    }
    largest[tid] = most;
    barrier();
    [[unroll]] for (uint s = BLOCK_SIZE / 2; s > 0; s >>= 1) {
        if (tid < s) {
            largest[tid] = max(largest[tid], largest[tid + s]);
        }
        barrier();
    }

    // Exponent fields of the scale and its reciprocal; 253 keeps the latter from being denormal.
    const uint field = min(264 - (floatBitsToUint(largest[0]) >> 23), 253);
    const float scale = uintBitsToFloat(field << 23);

    for (uint k = 4 * tid; k < p.nbh; k += 4 * BLOCK_SIZE) {
        data_h[(gl_WorkGroupID.x * p.nbh + k) / 4] = f16vec4(load(k) * scale);
    }
    if (tid == 0) {
        inv_scale[gl_WorkGroupID.x] = uintBitsToFloat((254 - field) << 23);
    }
}
