#version 450

// dlogits[v, r] = grad[r] * scale * (softmax(logits[:, r])[v] - (v == labels[r])); all 0 where the label is negative,
// all NaN where it is no class at all. One workgroup a row.

layout(binding = 0) readonly buffer Grad { float data_grad[]; };
layout(binding = 1) readonly buffer Logits { float data_logits[]; };
layout(binding = 1) readonly buffer Logits4 { vec4 data_logits4[]; };
layout(binding = 2) readonly buffer Labels { int data_labels[]; };
layout(binding = 3) writeonly buffer Dst { float data_dst[]; };
layout(binding = 3) writeonly buffer Dst4 { vec4 data_dst4[]; };

#include "qvac_cross_entropy.glsl"

void store(const uint base, const uint k, const vec4 d) {
    const uvec4 column = columns(k);
    if (ALIGNED) {
        if (column.x < p.n_vocab) {
            data_dst4[(base + column.x) / 4] = d;
        }
    } else {
        [[unroll]] for (uint i = 0; i < 4; ++i) {
            if (column[i] < p.n_vocab) {
                data_dst[base + column[i]] = d[i];
            }
        }
    }
}

void main() {
    const uint row = row_of_workgroup();
    if (row >= p.n_rows) {
        return;
    }

    const uint base  = p.logits_offset + row * p.nb_logits;
    const uint dst   = p.dst_offset + row * p.nb_dst;
    const int  label = data_labels[p.labels_offset + row];

    if (label < 0 || uint(label) >= p.n_vocab) {
        const float fill = label < 0 ? 0.0 : uintBitsToFloat(NAN_BITS);
        for (uint k = 0; is_in_row(k); ++k) {
            store(dst, k, vec4(fill));
        }
        return;
    }

    const float g = p.scale * data_grad[p.grad_offset + row * p.nb_grad];
    const vec2  r = max_and_sum(base);
    const float by = 1.0 / r.y;
    for (uint k = 0; is_in_row(k); k += EACH) {
        vec4 x[EACH];
        [[unroll]] for (uint j = 0; j < EACH; ++j) {
            x[j] = load_logits(base, k + j);
        }
        [[unroll]] for (uint j = 0; j < EACH; ++j) {
            const vec4 hit = mix(vec4(0.0), vec4(1.0), equal(columns(k + j), uvec4(label)));
            store(dst, k + j, g * (exp(x[j] - r.x) * by - hit));
        }
    }
}
