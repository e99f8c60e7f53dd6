// Which nodes of LoRA are recorded as one dispatch:
//
//     TQ_MUL_MAT | TQ_MUL_MAT_BACK, LOW_RANK_ADD over its result
//     LOW_RANK_PROJECT with p along k, two or three, and their CONCATs to one matrix
//
// so that a product is written once, not written, read and written again, and small projections run side by side. Nodes that
// make nothing (views) may stand among these.

#include "low_rank.h"

#include "ggml-train.h"

#include <vector>

namespace {

// The next node from k on that makes something, or -1.
int next_real(const ggml_cgraph * cgraph, int k) {
    const int next = ggml_vk_qvac_skip_views(cgraph, k);
    return ggml_vk_qvac_computed_node(cgraph, next) ? next : -1;
}

// Projections from node `begin` on, and CONCATs that put them below each other, in this order: CONCAT(CONCAT(a, b), c).
// Returns the last node, or -1.
int match_projections(const ggml_cgraph * cgraph, int begin, vk_qvac_projections & f) {
    std::vector<int> at;
    int              k = begin;
    while (k >= 0 && at.size() < VK_QVAC_PROJECTIONS && ggml_get_train_op(cgraph->nodes[k]) == GGML_TRAIN_OP_LOW_RANK_PROJECT) {
        at.push_back(k);
        k = next_real(cgraph, k + 1);
    }
    f.count = (int) at.size();
    if (f.count < 2) {
        return -1;
    }
    int last = at[0];
    for (int i = 1; i < f.count; ++i) {
        if (k < 0 || !ggml_vk_qvac_is_inner(cgraph, last) || !ggml_vk_qvac_is_inner(cgraph, at[i])) {
            return -1;
        }
        const ggml_tensor * concat = cgraph->nodes[k];
        if (concat->op != GGML_OP_CONCAT || ggml_get_op_params_i32(concat, 0) != 0 || concat->src[0] != cgraph->nodes[last] ||
            concat->src[1] != cgraph->nodes[at[i]]) {
            return -1;
        }
        last = k;
        k    = next_real(cgraph, k + 1);
    }
    for (int i = 0; i < f.count; ++i) {
        f.ops[i] = cgraph->nodes[at[i]];
    }
    f.result = cgraph->nodes[last];
    return last - begin < VK_QVAC_FUSED_NODES_MAX ? last : -1;
}

bool fuse_projections(ggml_backend_vk_context * ctx, const ggml_cgraph * cgraph, int node_idx, bool * elementwise) {
    vk_qvac_projections f;
    const int           last = match_projections(cgraph, node_idx, f);
    if (last < 0 || !ggml_vk_qvac_plan_along_k(ctx, f)) {
        return false;
    }
    // The result is written while the operands are still read.
    for (int i = 0; i < f.count; ++i) {
        if (ggml_vk_tensors_overlap(f.ops[i]->src[0], f.result, false) || ggml_vk_tensors_overlap(f.ops[i]->src[1], f.result, false)) {
            return false;
        }
    }
    ctx->num_additional_fused_ops = last - node_idx;
    std::fill_n(elementwise, last - node_idx + 1, false);
    return true;
}

bool fuse_update(ggml_backend_vk_context * ctx, const ggml_cgraph * cgraph, int node_idx, bool * elementwise) {
    const ggml_tensor * product = cgraph->nodes[node_idx];
    const int           k       = next_real(cgraph, node_idx + 1);
    if (k < 0 || k - node_idx >= VK_QVAC_FUSED_NODES_MAX) {
        return false;
    }
    const ggml_tensor * update = cgraph->nodes[k];
    if (ggml_get_train_op(update) != GGML_TRAIN_OP_LOW_RANK_ADD || update->src[0] != product ||
        !ggml_vk_qvac_ternary_can_update(product, update)) {
        return false;
    }
    ctx->num_additional_fused_ops = k - node_idx;
    std::fill_n(elementwise, k - node_idx + 1, false);
    return true;
}

} // namespace

bool ggml_vk_qvac_fuse_low_rank(
        ggml_backend_vk_context * ctx, const ggml_cgraph * cgraph, int node_idx, const char ** name, bool * elementwise) {
    if (!ggml_vk_qvac_computed_node(cgraph, node_idx)) {
        return false;
    }
    switch (ggml_get_train_op(cgraph->nodes[node_idx])) {
        case GGML_TRAIN_OP_TQ_MUL_MAT:
            *name = "TQ_MUL_MAT_LOW_RANK_ADD";
            return fuse_update(ctx, cgraph, node_idx, elementwise);
        case GGML_TRAIN_OP_TQ_MUL_MAT_BACK:
            *name = "TQ_MUL_MAT_BACK_LOW_RANK_ADD";
            return fuse_update(ctx, cgraph, node_idx, elementwise);
        case GGML_TRAIN_OP_LOW_RANK_PROJECT:
            *name = "LOW_RANK_PROJECT_CONCAT";
            return fuse_projections(ctx, cgraph, node_idx, elementwise);
        default:
            return false;
    }
}

void ggml_vk_qvac_fused_projections(ggml_backend_vk_context * ctx, vk_context & subctx, const ggml_cgraph * cgraph, int node_idx) {
    vk_qvac_projections f;
    const bool          planned = match_projections(cgraph, node_idx, f) >= 0 && ggml_vk_qvac_plan_along_k(ctx, f);
    GGML_ASSERT(planned && "fused nodes changed");
    ggml_vk_qvac_project_along_k(ctx, subctx, f);
}
