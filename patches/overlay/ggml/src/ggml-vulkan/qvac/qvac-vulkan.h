#pragma once

// What upstream's ggml-vulkan.cpp calls of ours: one hook each where devices and pipelines are listed,
// where an op is asked for, and where a graph node is recorded. Each op of ours has a file of its own in this folder.

#include "../ggml-vulkan-common.h"

#include <functional>

// How ggml_vk_load_shaders makes a pipeline known; it compiles only what is asked for later.
using vk_qvac_create_pipeline = std::function<void(
    vk_pipeline & pipeline, const char * name, size_t spv_size, const void * spv_data, uint32_t n_buffers,
    uint32_t push_constant_size, std::array<uint32_t, 3> wg_denoms, const std::vector<uint32_t> & constants)>;

void ggml_vk_qvac_load_shaders(vk_device & device, const vk_qvac_create_pipeline & create);

enum class vk_qvac_answer {
    upstream, // not an op of ours
    no,
    yes,
};

vk_qvac_answer ggml_vk_qvac_supports_op(const vk_device & device, const ggml_tensor * op);

// Records `node` and says true, or leaves it to upstream and says false.
bool ggml_vk_qvac_dispatch(ggml_backend_vk_context * ctx, vk_context & subctx, ggml_tensor * node);

// device.cpp
void ggml_vk_qvac_list_software_devices(const std::vector<vk::PhysicalDevice> & devices);
void * ggml_vk_qvac_get_proc_address(ggml_backend_reg_t reg, const char * name);

// out_prod.cpp
void ggml_vk_qvac_load_out_prod(vk_device & device, const vk_qvac_create_pipeline & create);
bool ggml_vk_qvac_out_prod_supported(const vk_device & device, const ggml_tensor * op);
void ggml_vk_qvac_out_prod(ggml_backend_vk_context * ctx, vk_context & subctx, ggml_tensor * dst);

// cross_entropy.cpp
void ggml_vk_qvac_load_cross_entropy(vk_device & device, const vk_qvac_create_pipeline & create);
bool ggml_vk_qvac_cross_entropy_is_labels(const ggml_tensor * op);
bool ggml_vk_qvac_cross_entropy_supported(const vk_device & device, const ggml_tensor * op);
void ggml_vk_qvac_cross_entropy_loss(ggml_backend_vk_context * ctx, vk_context & subctx, ggml_tensor * dst);
void ggml_vk_qvac_cross_entropy_loss_back(ggml_backend_vk_context * ctx, vk_context & subctx, ggml_tensor * dst);

// Where `t` begins behind its descriptor, in elements of its type (blocks where it is quantized).
inline uint32_t ggml_vk_qvac_offset(const ggml_backend_vk_context * ctx, const ggml_tensor * t) {
    return get_misalign_bytes(ctx, t) / (uint32_t) ggml_type_size(t->type);
}

// Stride of dimension `dim` in elements of the type of `t` (blocks where it is quantized).
inline uint32_t ggml_vk_qvac_stride(const ggml_tensor * t, int dim) {
    return (uint32_t) (t->nb[dim] / ggml_type_size(t->type));
}
