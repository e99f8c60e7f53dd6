#version 450

// loss[r] = scale * (log(sum_v exp(logits[v, r])) - logits[labels[r], r]); 0 where the label is negative, NaN where it
// is no class at all. One workgroup a row.

layout(binding = 0) readonly buffer Logits { float data_logits[]; };
layout(binding = 0) readonly buffer Logits4 { vec4 data_logits4[]; };
layout(binding = 1) readonly buffer Labels { int data_labels[]; };
layout(binding = 2) writeonly buffer Loss { float data_loss[]; };

#include "qvac_cross_entropy.glsl"

void main() {
    const uint row = row_of_workgroup();
    if (row >= p.n_rows) {
        return;
    }

    const int label = data_labels[p.labels_offset + row];
    if (label < 0 || uint(label) >= p.n_vocab) {
        if (gl_LocalInvocationID.x == 0) {
            data_loss[p.dst_offset + row] = label < 0 ? 0.0 : uintBitsToFloat(NAN_BITS);
        }
        return;
    }

    const uint base = p.logits_offset + row * p.nb_logits;
    const vec2 r    = max_and_sum(base);
    if (gl_LocalInvocationID.x == 0) {
        data_loss[p.dst_offset + row] = p.scale * (log(r.y) - (data_logits[base + uint(label)] - r.x));
    }
}
