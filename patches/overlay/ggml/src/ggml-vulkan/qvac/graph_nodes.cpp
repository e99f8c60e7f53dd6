// Questions about a graph's nodes, and upstream's lists of what is under way.

#include "graph_nodes.h"

const ggml_tensor * ggml_vk_qvac_computed_node(const ggml_cgraph * cgraph, int k) {
    if (k >= cgraph->n_nodes) {
        return nullptr;
    }
    const ggml_tensor * node = cgraph->nodes[k];
    return node->buffer && !ggml_is_empty(node) && (node->flags & GGML_TENSOR_FLAG_COMPUTE) ? node : nullptr;
}

int ggml_vk_qvac_skip_views(const ggml_cgraph * cgraph, int k) {
    while (k < cgraph->n_nodes &&
           (ggml_op_is_empty(cgraph->nodes[k]->op) || (cgraph->nodes[k]->flags & GGML_TENSOR_FLAG_COMPUTE) == 0)) {
        ++k;
    }
    return k;
}

int ggml_vk_qvac_uses(const ggml_cgraph * cgraph, const ggml_tensor * t) {
    const size_t at = ggml_hash_find(&cgraph->visited_hash_set, t);
    return ggml_bitset_get(cgraph->visited_hash_set.used, at) ? cgraph->use_counts[at] : 0;
}

bool ggml_vk_qvac_is_inner(const ggml_cgraph * cgraph, int k, int uses) {
    return ggml_node_get_use_count(cgraph, k) == uses && (cgraph->nodes[k]->flags & GGML_TENSOR_FLAG_OUTPUT) == 0;
}

bool ggml_vk_qvac_overlaps_one_of(const ggml_tensor * t, const std::vector<const ggml_tensor *> & others) {
    return std::any_of(others.begin(), others.end(), [&](const ggml_tensor * other) {
        return other->buffer && ggml_vk_tensors_overlap(t, other, false);
    });
}

void ggml_vk_qvac_wait_for_all(ggml_backend_vk_context * ctx, vk_context & subctx, const ggml_cgraph * cgraph, int node_idx) {
    ggml_vk_sync_buffers(ctx, subctx);
    ctx->unsynced_nodes_written.clear();
    ctx->unsynced_nodes_read.clear();
    for (int i = 0; i <= ctx->num_additional_fused_ops; ++i) {
        const ggml_tensor * node = cgraph->nodes[node_idx + i];
        if (ctx->fused_ops_write_mask & (1 << i)) {
            ctx->unsynced_nodes_written.push_back(node);
        }
        for (const ggml_tensor * src : node->src) {
            if (src) {
                ctx->unsynced_nodes_read.push_back(src);
            }
        }
    }
}
