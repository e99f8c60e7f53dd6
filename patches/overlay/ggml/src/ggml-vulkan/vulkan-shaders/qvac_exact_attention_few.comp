#version 450

// Exact attention of a few queries over a cache, first part: a workgroup has one chunk of keys for one query of one head. Its
// maximum, its sum of exponentials and its weighted values go to scratch memory, for qvac_exact_attention_join.comp.

#define CACHE
#define ONE_QUERY
#include "qvac_exact_attention.glsl"

#if defined(KV_F16)
#define VALUE_AT(i) HALF(data_v, i)
#else
#define VALUE_AT(i) data_v[i]
#endif

shared float query[256];
shared float parts[CHUNK * 8]; // of each key's score, the segments
shared float score[CHUNK];
shared float mask[CHUNK];

void main() {
    const uint c    = gl_WorkGroupID.x;
    const uint t    = gl_WorkGroupID.z;
    head            = gl_WorkGroupID.y;
    head_kv         = head / p.group;
    const uint key0 = c * CHUNK;
    const uint at   = (t * p.H + head) * gl_NumWorkGroups.x + c;

    const uint mask_at = p.see_offset + t * p.mask_token + head % p.mask_heads * p.mask_head + key0;
    for (uint i = tid; 4 * i < p.D; i += BLOCK) {
        const vec4 q = fetch_q(t, i, true);
        [[unroll]] for (uint e = 0; e < 4; ++e) {
            query[4 * i + e] = q[e];
        }
    }
    if (tid < CHUNK) {
        mask[tid] = MINUS_INFINITY;
        if (key0 + tid < p.n_keys) {
            mask[tid] = HALF(data_mask, mask_at + tid);
        }
    }
    barrier();

    const uint n_segments = (p.D + 31) / 32;
    for (uint i = tid; i < CHUNK * n_segments; i += BLOCK) {
        const uint j = i / n_segments;
        const uint s = i % n_segments;
        precise float part = 0.0;
        if (!is_minus_infinity(mask[j])) {
            for (uint d4 = 0; d4 < 8; ++d4) {
                const vec4 k = fetch_k(key0 + j, 8 * s + d4, true);
                if (32 * s + 4 * d4 < p.D) {
                    [[unroll]] for (uint e = 0; e < 4; ++e) {
                        part = part + query[32 * s + 4 * d4 + e] * k[e];
                    }
                }
            }
        }
        parts[i] = part;
    }
    barrier();
    if (tid < CHUNK) {
        precise float s = 0.0;
        for (uint i = 0; i < n_segments; ++i) {
            s = s + parts[tid * n_segments + i];
        }
        s = p.scale * s;
        s = s + mask[tid];
        score[tid] = is_minus_infinity(mask[tid]) ? MINUS_INFINITY : s;
    }
    barrier();
    float m = MINUS_INFINITY;
    bool  any = false;
    [[unroll]] for (uint j = 0; j < CHUNK; ++j) {
        const float s = score[j];
        m   = s > m ? s : m;
        any = any || !is_minus_infinity(mask[j]);
    }
    if (tid < CHUNK) {
        precise float x = score[tid] - m;
        parts[tid] = is_minus_infinity(score[tid]) ? 0.0 : exact_exp(x);
    }
    barrier();
    if (tid == 0) {
        precise float sum[CHUNK];
        [[unroll]] for (uint j = 0; j < CHUNK; ++j) {
            sum[j] = parts[j];
        }
        [[unroll]] for (uint h = CHUNK / 2; h > 0; h /= 2) {
            [[unroll]] for (uint j = 0; j < h; ++j) {
                sum[j] = sum[j] + sum[j + h];
            }
        }
        data_dst[2 * at]     = m;
        data_dst[2 * at + 1] = sum[0];
    }
    if (!any) {
        return;
    }
    const uint out_at = 2 * gl_NumWorkGroups.z * p.H * gl_NumWorkGroups.x + at * p.D;
    for (uint d = tid; d < p.D; d += BLOCK) {
        precise float o = 0.0;
        [[unroll]] for (uint j = 0; j < CHUNK; ++j) {
            if (!is_minus_infinity(mask[j])) {
                o = o + parts[j] * VALUE_AT(p.v_offset + (key0 + j) * p.v_token + head_kv * p.v_head + d);
            }
        }
        data_dst[out_at + d] = o;
    }
}
