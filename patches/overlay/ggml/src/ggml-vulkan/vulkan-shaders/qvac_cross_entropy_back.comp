#version 450

// dlogits[v, r] = grad[r] * scale * (softmax(logits[:, r])[v] - (v == labels[r])); all 0 where the label is negative,
// all NaN where it is no class at all. One workgroup a row.

layout(binding = 0) readonly buffer Grad { float data_grad[]; };
layout(binding = 1) readonly buffer Logits { float data_logits[]; };
layout(binding = 2) readonly buffer Labels { int data_labels[]; };
layout(binding = 3) writeonly buffer Dst { float data_dst[]; };

#include "qvac_cross_entropy.glsl"

void main() {
    const uint row = row_of_workgroup();
    if (row >= p.n_rows) {
        return;
    }

    const uint tid   = gl_LocalInvocationID.x;
    const uint base  = p.logits_offset + row * p.nb_logits;
    const uint dst   = p.dst_offset + row * p.nb_dst;
    const int  label = data_labels[p.labels_offset + row];

    if (label < 0 || uint(label) >= p.n_vocab) {
        const float fill = label < 0 ? 0.0 : uintBitsToFloat(NAN_BITS);
        for (uint i = tid; i < p.n_vocab; i += BLOCK_SIZE) {
            data_dst[dst + i] = fill;
        }
        return;
    }

    const float g = p.scale * data_grad[p.grad_offset + row * p.nb_grad];
    const vec2  r = max_and_sum(base);
    for (uint i = tid; i < p.n_vocab; i += BLOCK_SIZE) {
        const float prob = exp(data_logits[base + i] - r.x) / r.y;
        data_dst[dst + i] = g * (prob - (i == uint(label) ? 1.0 : 0.0));
    }
}
