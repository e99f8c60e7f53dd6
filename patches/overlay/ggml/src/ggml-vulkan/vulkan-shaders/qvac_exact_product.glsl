// What the kernels of products in exact arithmetic share:
//
//     y[m, t] = sum_k a[m, k] * b[k, t]        in segments of 32 k (docs/exactness.md)
//
// a of any weight type, b and d F32. Operands are read four values at a time, along k or along the other dimension, and are
// 0 behind their end: a sum that begins with 0 is the same with further zeros.

#extension GL_EXT_control_flow_attributes : enable

layout(constant_id = 0) const uint BLOCK_SIZE = 256;
layout(constant_id = 1) const uint A_ALONG_K  = 1;
layout(constant_id = 2) const uint B_ALONG_K  = 1;
layout(constant_id = 3) const uint FOURS      = 0; // whether whole fours of everything can be read and written at once
layout(constant_id = 4) const uint MODE       = 0; // what becomes of a sum y, below

layout(local_size_x_id = 0, local_size_y = 1, local_size_z = 1) in;

// Strides and offsets are in elements, those of a quantized `a` in blocks.
layout(push_constant) uniform parameter {
    uint M; uint T; uint K;
    uint ne2; uint batches;   // of d and b
    uint ratio2; uint ratio3; // how many batches of b share one of a
    uint a_m; uint a_k; uint a_2; uint a_3;
    uint b_t; uint b_k; uint b_2; uint b_3;
    uint d_m; uint d_t; uint d_2; uint d_3;
    uint a_offset; uint b_offset; uint d_offset; uint add_offset;
    float scale;
} p;

const uint STORE      = 0; // d = scale * y
const uint GRAD       = 1; // d = (d + scale * p_0) + scale * p_1 .., p_s the segments' sums
const uint UPDATE     = 2; // d = d + scale * y
const uint UPDATE_ADD = 3; // d = (d + scale * y) + add

#include "qvac_exact_weights.glsl"

layout(binding = 1) readonly buffer B  { float data_b[]; };
layout(binding = 1) readonly buffer B4 { vec4 data_b4[]; };
layout(binding = 2) buffer D  { float data_d[]; };
layout(binding = 2) buffer D4 { vec4 data_d4[]; };
layout(binding = 3) readonly buffer E  { float data_add[]; };
layout(binding = 3) readonly buffer E4 { vec4 data_add4[]; };

const uint SEGMENT = 32;

// Where a batch of each begins.
struct batch_of { uint a; uint b; uint d; };

batch_of batch_at(const uint i) {
    const uint i2 = i % p.ne2;
    const uint i3 = i / p.ne2;
    return batch_of(p.a_offset + (i2 / p.ratio2) * p.a_2 + (i3 / p.ratio3) * p.a_3, p.b_offset + i2 * p.b_2 + i3 * p.b_3,
                    p.d_offset + i2 * p.d_2 + i3 * p.d_3);
}

// Four values from (m, k) on, along k or along m.
vec4 load_a(const uint base, const uint m, const uint k) {
    if (m >= p.M || k >= p.K) {
        return vec4(0.0);
    }
#if defined(A_QUANTIZED)
    if (A_ALONG_K != 0u) {
        return a_four(base + m * p.a_m + k / A_BLOCK, k % A_BLOCK);
    }
    return a_four(base + k * p.a_k + m / A_BLOCK, m % A_BLOCK);
#else
    const uint at = base + m * p.a_m + k * p.a_k;
    if (FOURS != 0u) {
        return a_four(at);
    }
    const uint left   = A_ALONG_K != 0u ? p.K - k : p.M - m;
    const uint stride = A_ALONG_K != 0u ? p.a_k : p.a_m;
    vec4 v = vec4(a_value(at), 0.0, 0.0, 0.0);
    if (left > 1u) { v.y = a_value(at + stride); }
    if (left > 2u) { v.z = a_value(at + 2u * stride); }
    if (left > 3u) { v.w = a_value(at + 3u * stride); }
    return v;
#endif
}

vec4 load_b(const uint base, const uint t, const uint k) {
    if (t >= p.T || k >= p.K) {
        return vec4(0.0);
    }
    const uint at = base + t * p.b_t + k * p.b_k;
    if (FOURS != 0u) {
        return data_b4[at >> 2];
    }
    const uint left   = B_ALONG_K != 0u ? p.K - k : p.T - t;
    const uint stride = B_ALONG_K != 0u ? p.b_k : p.b_t;
    vec4 v = vec4(data_b[at], 0.0, 0.0, 0.0);
    if (left > 1u) { v.y = data_b[at + stride]; }
    if (left > 2u) { v.z = data_b[at + 2u * stride]; }
    if (left > 3u) { v.w = data_b[at + 3u * stride]; }
    return v;
}

// What a sum of segments begins with, and what the next segment's sum makes of it.
float first_total(const uint at, const bool inside) {
    return MODE == GRAD && inside ? data_d[at] : 0.0;
}

float next_total(const float total, const float sum) {
    precise float part = MODE == GRAD ? p.scale * sum : sum;
    precise float y    = total + part;
    return y;
}

// The value of d, which was `old`, with `add` to come.
float result_of(const float total, const float old, const float add) {
    precise float y = MODE == GRAD ? total : p.scale * total;
    if (MODE >= UPDATE) {
        y = old + y;
    }
    if (MODE == UPDATE_ADD) {
        y = y + add;
    }
    return y;
}

void store_result(const batch_of batch, const uint m, const uint t, const float total) {
    if (m < p.M && t < p.T) {
        const uint at = batch.d + m * p.d_m + t * p.d_t;
        data_d[at] = result_of(total, MODE >= UPDATE ? data_d[at] : 0.0, MODE == UPDATE_ADD ? data_add[at - batch.d + p.add_offset] : 0.0);
    }
}
