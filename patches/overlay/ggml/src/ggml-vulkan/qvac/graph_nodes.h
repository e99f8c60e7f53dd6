#pragma once

// What all who look for nodes that are recorded together ask of a graph.

#include "qvac-vulkan.h"

// The array that ggml_vk_qvac_fuse sets the first values of.
constexpr int VK_QVAC_FUSED_NODES_MAX = 13;

// The node, if it is to be computed; or null.
const ggml_tensor * ggml_vk_qvac_computed_node(const ggml_cgraph * cgraph, int k);
// The next node from k on that makes something: no view, and nothing the scheduler put among them to be left out.
int ggml_vk_qvac_skip_views(const ggml_cgraph * cgraph, int k);
// How many nodes read the tensor.
int ggml_vk_qvac_uses(const ggml_cgraph * cgraph, const ggml_tensor * t);
// Whether nobody but `uses` nodes wants the result of node k.
bool ggml_vk_qvac_is_inner(const ggml_cgraph * cgraph, int k, int uses = 1);
bool ggml_vk_qvac_overlaps_one_of(const ggml_tensor * t, const std::vector<const ggml_tensor *> & others);
// Waits for all that is under way. What upstream keeps of it is then what the nodes being recorded read and write.
void ggml_vk_qvac_wait_for_all(ggml_backend_vk_context * ctx, vk_context & subctx, const ggml_cgraph * cgraph, int node_idx);
