#pragma once

// Kernels of exact arithmetic on Vulkan (docs/exactness.md). Their sums have the order of ggml-cpu's `exact-*.cpp`, and what
// they compute value by value comes from the same `exact-math.h`. Shaders are called `qvac_exact_*`: those are compiled without
// spirv-opt, and run with denormals where a device leaves the choice.

#include "qvac-vulkan.h"

struct vk_qvac_exact_kernel {
    bool (*supported)(const vk_device & device, const ggml_tensor * op);
    void (*record)(ggml_backend_vk_context * ctx, vk_context & subctx, ggml_tensor * dst);
};

// The kernel of an op, or none; a file for each, which also loads its pipelines.
const vk_qvac_exact_kernel * ggml_vk_qvac_exact_products(const ggml_tensor * op);    // MUL_MAT, OUT_PROD, LOW_RANK_*, GET_ROWS
const vk_qvac_exact_kernel * ggml_vk_qvac_exact_attention(const ggml_tensor * op);   // ATTENTION, ATTENTION_BACK, FLASH_ATTN_EXT
const vk_qvac_exact_kernel * ggml_vk_qvac_exact_rows(const ggml_tensor * op);        // norms and their backward, cross entropy, sums
const vk_qvac_exact_kernel * ggml_vk_qvac_exact_elementwise(const ggml_tensor * op); // RoPE, gated units, AdamW, arithmetic, conversions

void ggml_vk_qvac_load_exact_products(vk_device & device, const vk_qvac_create_pipeline & create);
void ggml_vk_qvac_load_exact_attention(vk_device & device, const vk_qvac_create_pipeline & create);
void ggml_vk_qvac_load_exact_rows(vk_device & device, const vk_qvac_create_pipeline & create);
void ggml_vk_qvac_load_exact_elementwise(vk_device & device, const vk_qvac_create_pipeline & create);

// Of all of them.
const vk_qvac_exact_kernel * ggml_vk_qvac_exact_kernel_of(const ggml_tensor * op);
void ggml_vk_qvac_load_exact(vk_device & device, const vk_qvac_create_pipeline & create);
