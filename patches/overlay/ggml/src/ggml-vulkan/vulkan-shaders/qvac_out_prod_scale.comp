#version 450

// A half-precision copy of the second operand of qvac_out_prod_f16.comp, one workgroup a column (token): each column times the power of two
// that brings its largest magnitude to 2^10 .. 2^11. A half then holds eleven bits of everything down to 2^-24 of the
// largest, whatever the size of the gradients; the reciprocal is exact.

#extension GL_EXT_control_flow_attributes : enable
#extension GL_EXT_shader_16bit_storage : require
#extension GL_EXT_shader_explicit_arithmetic_types_float16 : require

layout(constant_id = 0) const uint ALIGNED = 0; // columns of b are contiguous, at multiples of 16 bytes, K one of 4

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
layout(binding = 0) readonly buffer B4 { vec4 data_b4[]; };
layout(binding = 1) writeonly buffer Half { f16vec4 data_h[]; };
layout(binding = 2) writeonly buffer Scales { float inv_scale[]; };

shared float largest[BLOCK_SIZE];

// Four values of the column from `k` on, zeros beyond K. They are read from where there is something instead of not at all.
vec4 load(const uint k) {
    const uint at = p.b_offset + gl_WorkGroupID.x * p.nb10;
    if (ALIGNED != 0) {
        const vec4 v = data_b4[(at + min(k, p.K - 4)) / 4];
        return k < p.K ? v : vec4(0.0);
    }
    vec4 v;
    [[unroll]] for (uint i = 0; i < 4; ++i) {
        v[i] = k + i < p.K ? data_b[at + min(k + i, p.K - 1) * p.nb11] : 0.0;
    }
    return v;
}

// So many loads of an invocation are under way at the same time.
const uint RUN  = 8;
const uint STEP = 4 * BLOCK_SIZE;

void main() {
    const uint tid = gl_LocalInvocationID.x;

    vec4 most = vec4(0.0);
    for (uint k = 4 * tid; k < p.K; k += RUN * STEP) {
        vec4 v[RUN];
        [[unroll]] for (uint i = 0; i < RUN; ++i) {
            v[i] = load(k + i * STEP);
        }
        [[unroll]] for (uint i = 0; i < RUN; ++i) {
            most = max(most, abs(v[i]));
        }
    }
    largest[tid] = max(max(most.x, most.y), max(most.z, most.w));
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

    for (uint k = 4 * tid; k < p.nbh; k += RUN * STEP) {
        vec4 v[RUN];
        [[unroll]] for (uint i = 0; i < RUN; ++i) {
            v[i] = load(k + i * STEP);
        }
        [[unroll]] for (uint i = 0; i < RUN; ++i) {
            if (k + i * STEP < p.nbh) {
                data_h[(gl_WorkGroupID.x * p.nbh + k) / 4 + i * BLOCK_SIZE] = f16vec4(v[i] * scale);
            }
        }
    }
    if (tid == 0) {
        inv_scale[gl_WorkGroupID.x] = uintBitsToFloat((254 - field) << 23);
    }
}
