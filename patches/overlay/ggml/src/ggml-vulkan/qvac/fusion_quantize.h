#pragma once

// Nodes of a training graph that are recorded together because they go over the same rows (fusion_quantize.cpp).

#include "rows.h"

// With a backend context: the nodes that are to be recorded together, and what is recorded for them.
struct vk_qvac_quantize_fusion {
    const ggml_cgraph * cgraph = nullptr;
    int                 begin  = 0;
    int                 count  = 0;

    std::vector<vk_qvac_norm_job>        norms;
    std::vector<vk_qvac_norm_back_job>   norm_backs;
    std::vector<vk_qvac_swiglu_back_job> swiglu_backs;
    std::vector<vk_qvac_rope_back_job>   rope_backs;
    std::vector<const ggml_tensor *>     quantizations; // that stand among them
    std::vector<const ggml_tensor *>     results;       // what all of them write
};

// Whether nodes from `node_idx` on are recorded together; sets what ggml_vk_qvac_fuse has to set.
bool ggml_vk_qvac_fuse_quantize(
    ggml_backend_vk_context * ctx, const ggml_cgraph * cgraph, int node_idx, const char ** name, bool * elementwise);
// Records what was found at this node, if anything was.
bool ggml_vk_qvac_fused_quantize(ggml_backend_vk_context * ctx, vk_context & subctx, const ggml_cgraph * cgraph, int node_idx);
