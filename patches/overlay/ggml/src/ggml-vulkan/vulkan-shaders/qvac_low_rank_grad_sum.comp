#version 450

// The shares of qvac_low_rank_grad_long.comp, added up in their order: grad[n, k] += scale * sum_s parts[n, k, s].

#extension GL_EXT_control_flow_attributes : enable

layout(local_size_x = 128, local_size_y = 1, local_size_z = 1) in;

// Offset and strides in elements.
layout(push_constant) uniform parameter {
    uint  N; uint R;
    uint  shares;
    uint  nbg0; uint nbg1;
    uint  g_offset;
    float scale;
} p;

layout(binding = 0) readonly buffer Parts { float data_parts[]; };
layout(binding = 1) buffer Grad { float data_g[]; };

const uint UNROLL = 8; // loads under way

void main() {
    const uint i = gl_GlobalInvocationID.x;
    if (i >= p.N * p.R) {
        return;
    }
    const uint at  = p.g_offset + i % p.N * p.nbg0 + i / p.N * p.nbg1;
    const float g  = data_g[at];
    float      sum = 0.0;
    for (uint s = 0; s < p.shares; s += UNROLL) {
        float part[UNROLL];
        [[unroll]] for (uint u = 0; u < UNROLL; ++u) {
            part[u] = data_parts[min(s + u, p.shares - 1) * (p.N * p.R) + i];
        }
        [[unroll]] for (uint u = 0; u < UNROLL; ++u) {
            sum += s + u < p.shares ? part[u] : 0.0;
        }
    }
    data_g[at] = g + p.scale * sum;
}
