// The hooks of qvac-vulkan.h: which ops are ours, and which file has them.

#include "ops.h"

namespace {

bool is_ours(const ggml_tensor * op) {
    switch (op->op) {
        case GGML_OP_OUT_PROD:
            return true;
        case GGML_OP_CROSS_ENTROPY_LOSS:
        case GGML_OP_CROSS_ENTROPY_LOSS_BACK:
            return ggml_vk_qvac_cross_entropy_is_labels(op);
        default:
            return false;
    }
}

} // namespace

void ggml_vk_qvac_load_shaders(vk_device & device, const vk_qvac_create_pipeline & create) {
    ggml_vk_qvac_load_out_prod(device, create);
    ggml_vk_qvac_load_cross_entropy(device, create);
}

vk_qvac_answer ggml_vk_qvac_supports_op(const vk_device & device, const ggml_tensor * op) {
    if (!is_ours(op)) {
        return ggml_vk_qvac_beyond_upstream(device, op) ? vk_qvac_answer::no : vk_qvac_answer::upstream;
    }
    const bool supported = op->op == GGML_OP_OUT_PROD ? ggml_vk_qvac_out_prod_supported(device, op)
                                                      : ggml_vk_qvac_cross_entropy_supported(device, op);
    return supported ? vk_qvac_answer::yes : vk_qvac_answer::no;
}

bool ggml_vk_qvac_dispatch(ggml_backend_vk_context * ctx, vk_context & subctx, ggml_tensor * node) {
    if (!is_ours(node)) {
        return false;
    }
    switch (node->op) {
        case GGML_OP_OUT_PROD:
            ggml_vk_qvac_out_prod(ctx, subctx, node);
            break;
        case GGML_OP_CROSS_ENTROPY_LOSS:
            ggml_vk_qvac_cross_entropy_loss(ctx, subctx, node);
            break;
        default:
            ggml_vk_qvac_cross_entropy_loss_back(ctx, subctx, node);
            break;
    }
    return true;
}
