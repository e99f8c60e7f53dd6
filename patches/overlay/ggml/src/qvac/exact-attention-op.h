// Which FLASH_ATTN_EXT has kernels of exact arithmetic, on any device.

#pragma once

#include "ggml.h"

#include <cstring>

namespace qvac {

// What libllama makes of a causal model: a mask, and no ALiBi, no cap on scores, no sinks, one stream.
inline bool exact_takes_flash_attn(const ggml_tensor * op) {
    const ggml_tensor * q    = op->src[0]; // [D, T, H]
    const ggml_tensor * k    = op->src[1]; // [D, n_keys, H_kv]
    const ggml_tensor * v    = op->src[2]; // as k
    const ggml_tensor * mask = op->src[3]; // [n_keys, T or more, H or a divisor of it]
    float max_bias;
    float softcap;
    memcpy(&max_bias, (const float *) op->op_params + 1, sizeof(float));
    memcpy(&softcap, (const float *) op->op_params + 2, sizeof(float));
    const bool typed = q->type == GGML_TYPE_F32 && (k->type == GGML_TYPE_F16 || k->type == GGML_TYPE_F32) && v->type == k->type;
    const bool rows  = q->nb[0] == sizeof(float) && k->nb[0] == ggml_type_size(k->type) && v->nb[0] == k->nb[0];
    return mask && !op->src[4] && max_bias == 0.0f && softcap == 0.0f && typed && rows && q->ne[3] == 1 && k->ne[0] == q->ne[0] &&
           v->ne[0] == k->ne[0] && v->ne[1] == k->ne[1] && v->ne[2] == k->ne[2] && q->ne[2] % k->ne[2] == 0 &&
           mask->type == GGML_TYPE_F16 && mask->ne[0] == k->ne[1] && mask->ne[1] >= q->ne[1] && mask->ne[3] == 1;
}

}  // namespace qvac
