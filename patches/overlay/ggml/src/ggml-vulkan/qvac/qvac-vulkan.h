#pragma once

// What upstream's ggml-vulkan.cpp calls of ours: one hook each where devices and pipelines are listed,
// where an op is asked for, and where a graph node is recorded. Upstream's file takes minutes to compile, so what only we
// need stands in ops.h.

#include "../ggml-vulkan-common.h"

#include <functional>

// How ggml_vk_load_shaders makes a pipeline known; it compiles only what is asked for later.
using vk_qvac_create_pipeline = std::function<void(
    vk_pipeline & pipeline, const char * name, size_t spv_size, const void * spv_data, uint32_t n_buffers,
    uint32_t push_constant_size, std::array<uint32_t, 3> wg_denoms, const std::vector<uint32_t> & constants,
    uint32_t subgroup_size)>; // 0: as the driver likes; else full subgroups of this size

void ggml_vk_qvac_load_shaders(vk_device & device, const vk_qvac_create_pipeline & create);

enum class vk_qvac_answer {
    upstream, // not an op of ours, and nothing known against upstream's answer
    no,
    yes,
};

vk_qvac_answer ggml_vk_qvac_supports_op(const vk_device & device, const ggml_tensor * op);

// A graph begins: nothing of an earlier one holds any more. Says false where that one failed.
bool ggml_vk_qvac_graph_begin(ggml_backend_vk_context * ctx, const ggml_cgraph * cgraph);

// The last node of a run that we record as one when its turn comes, if one begins with `node_idx`; else `node_idx`.
int ggml_vk_qvac_last_of_run(ggml_backend_vk_context * ctx, const ggml_cgraph * cgraph, int node_idx);

// Whether we decide how many nodes from `node_idx` on are recorded as one; then ctx->num_additional_fused_ops,
// `name` and the first `elementwise` are set as upstream's own fusions set them.
bool ggml_vk_qvac_fuse(ggml_backend_vk_context * ctx, const ggml_cgraph * cgraph, int node_idx, const char ** name, bool * elementwise);

// Whether we made sure that no result of these nodes overwrites what they still read. Upstream's own check takes all sources
// of all nodes for read.
bool ggml_vk_qvac_fusion_is_checked(const ggml_backend_vk_context * ctx);

// Records the node (and those fused with it) and says true, or leaves it to upstream and says false.
bool ggml_vk_qvac_dispatch(ggml_backend_vk_context * ctx, vk_context & subctx, ggml_cgraph * cgraph, int node_idx);

// Whether the node being recorded stays in its command buffer, to be submitted with what follows it: all of a graph, or its end.
bool ggml_vk_qvac_holds_back(const ggml_backend_vk_context * ctx, bool last);

// Whether its end is polled for from the beginning, so that no part of it needs a fence of its own.
bool ggml_vk_qvac_polls(const ggml_backend_vk_context * ctx);

// A graph is recorded.
void ggml_vk_qvac_graph_end(ggml_backend_vk_context * ctx);

// The fence is about to be waited for.
void ggml_vk_qvac_poll(ggml_backend_vk_context * ctx);

// What was recorded is done.
void ggml_vk_qvac_synchronized(ggml_backend_vk_context * ctx);

// The order of a graph's nodes is settled, their memory not yet: says what has to be kept for nodes that are fused.
void ggml_vk_qvac_graph_optimized(const ggml_cgraph * cgraph, ggml_backend_graph_optimize_params * params);

// Memory behind a tensor's own that kernels may read.
size_t ggml_vk_qvac_alloc_padding(const ggml_tensor * tensor);

// The host wrote into `tensor`.
void ggml_vk_qvac_written(ggml_tensor * tensor);

// Has the code of a kernel of exact arithmetic ask for denormals; `spirv` keeps what `info` then points to.
void ggml_vk_qvac_float_controls(
    const vk_device & device, const std::string & pipeline, std::vector<uint32_t> & spirv, vk::ShaderModuleCreateInfo & info);

// What compiled pipelines are looked up in, or nothing; to be written to disk when a backend is freed.
vk::PipelineCache ggml_vk_qvac_pipeline_cache(const vk_device & device);
void ggml_vk_qvac_save_pipelines(const vk_device & device);

// Before the logical device is destroyed.
void ggml_vk_qvac_destroy(vk_device_struct & device);

void ggml_vk_qvac_list_software_devices(const std::vector<vk::PhysicalDevice> & devices);
void * ggml_vk_qvac_get_proc_address(ggml_backend_reg_t reg, const char * name);
