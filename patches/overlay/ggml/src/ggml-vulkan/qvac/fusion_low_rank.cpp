// Which nodes of LoRA are recorded as one dispatch:
//
//     TQ_MUL_MAT | TQ_MUL_MAT_BACK, LOW_RANK_ADD over its result
//
// so that the result is written once, not written, read and written again. Nodes that make nothing (views) may stand
// between the two.

#include "ops.h"

#include "ggml-train.h"

namespace {

// The array that ggml_vk_qvac_fuse sets the first values of.
constexpr int MAX_NODES = 13;

bool is_computed(const ggml_tensor * node) {
    return node->buffer && !ggml_is_empty(node) && (node->flags & GGML_TENSOR_FLAG_COMPUTE);
}

// The next node from k on that makes something, or -1.
int next_real(const ggml_cgraph * cgraph, int k) {
    while (k < cgraph->n_nodes && ggml_op_is_empty(cgraph->nodes[k]->op)) {
        ++k;
    }
    return k < cgraph->n_nodes && is_computed(cgraph->nodes[k]) ? k : -1;
}

} // namespace

bool ggml_vk_qvac_fuse_low_rank_add(
        ggml_backend_vk_context * ctx, const ggml_cgraph * cgraph, int node_idx, const char ** name, bool * elementwise) {
    const ggml_tensor * product = cgraph->nodes[node_idx];
    const ggml_train_op op      = ggml_get_train_op(product);
    if ((op != GGML_TRAIN_OP_TQ_MUL_MAT && op != GGML_TRAIN_OP_TQ_MUL_MAT_BACK) || !is_computed(product)) {
        return false;
    }
    const int k = next_real(cgraph, node_idx + 1);
    if (k < 0 || k - node_idx >= MAX_NODES) {
        return false;
    }
    const ggml_tensor * update = cgraph->nodes[k];
    if (ggml_get_train_op(update) != GGML_TRAIN_OP_LOW_RANK_ADD || update->src[0] != product ||
        !ggml_vk_qvac_ternary_can_update(product, update)) {
        return false;
    }
    ctx->num_additional_fused_ops = k - node_idx;
    std::fill_n(elementwise, k - node_idx + 1, false);
    *name = op == GGML_TRAIN_OP_TQ_MUL_MAT ? "TQ_MUL_MAT_LOW_RANK_ADD" : "TQ_MUL_MAT_BACK_LOW_RANK_ADD";
    return true;
}
