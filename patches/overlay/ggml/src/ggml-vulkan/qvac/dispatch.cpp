// The hooks of qvac-vulkan.h: which ops are ours, and which file has them.

#include "exact.h"
#include "ops.h"

#include "ggml-train.h"
#include "qvac/exact-ops.h"

namespace {

bool is_ours(const ggml_tensor * op) {
    switch (op->op) {
        case GGML_OP_OUT_PROD:
            return true;
        case GGML_OP_CROSS_ENTROPY_LOSS:
        case GGML_OP_CROSS_ENTROPY_LOSS_BACK:
            return ggml_vk_qvac_cross_entropy_is_labels(op);
        case GGML_OP_MUL_MAT:
            return ggml_vk_qvac_ternary_is_mul_mat(op);
        case GGML_OP_CUSTOM:
            return ggml_get_train_op(op) != GGML_TRAIN_OP_NONE;
        default:
            return false;
    }
}

// Upstream's ops that we record where our kernels take their layout, faster with many rows. Upstream supports all of these
// layouts too, so that supports_op need not know of them.
bool is_taken(const ggml_backend_vk_context * ctx, const ggml_tensor * op) {
    switch (op->op) {
        case GGML_OP_RMS_NORM:
            return ggml_vk_qvac_takes_rms_norm(ctx, op);
        case GGML_OP_ADD:
        case GGML_OP_GLU:
            return ggml_vk_qvac_takes_binary(ctx, op);
        case GGML_OP_ROPE:
        case GGML_OP_ROPE_BACK:
            return ggml_vk_qvac_takes_rope(ctx, op);
        default:
            return false;
    }
}

// The nodes of a fusion of upstream's, or one that is not taken, stay upstream's.
bool dispatch_taken(ggml_backend_vk_context * ctx, vk_context & subctx, ggml_cgraph * cgraph, int node_idx) {
    ggml_tensor * node  = cgraph->nodes[node_idx];
    const bool    fused = ctx->num_additional_fused_ops != 0;
    if ((fused && !ctx->qvac->fused_rms_norm) || !is_taken(ctx, node)) {
        return false;
    }
    switch (node->op) {
        case GGML_OP_RMS_NORM:
            ggml_vk_qvac_rms_norm(ctx, subctx, node, fused ? cgraph->nodes[node_idx + 1] : nullptr);
            break;
        case GGML_OP_ADD:
        case GGML_OP_GLU:
            ggml_vk_qvac_binary(ctx, subctx, node);
            break;
        default:
            ggml_vk_qvac_rope(ctx, subctx, node);
            break;
    }
    return true;
}

// Of a ternary product, with or without a LOW_RANK_ADD behind it.
bool is_result_of_product(const ggml_tensor * t) {
    const ggml_train_op op = ggml_get_train_op(t);
    return op == GGML_TRAIN_OP_TQ_MUL_MAT || op == GGML_TRAIN_OP_TQ_MUL_MAT_BACK ||
           (op == GGML_TRAIN_OP_LOW_RANK_ADD && is_result_of_product(t->src[0]));
}

// Ternary products that begin beside other kernels take some 1.4 times as long on an H100, by the time of whole steps; so they
// wait for those, needing them or not. Products may run side by side.
void clear_the_way(ggml_backend_vk_context * ctx, vk_context & subctx, const ggml_cgraph * cgraph, int node_idx) {
    const auto & written = ctx->unsynced_nodes_written;
    if (!std::all_of(written.begin(), written.end(), is_result_of_product)) {
        ggml_vk_qvac_wait_for_all(ctx, subctx, cgraph, node_idx);
    }
}

} // namespace

void ggml_vk_qvac_load_shaders(vk_device & device, const vk_qvac_create_pipeline & create) {
    if (!device->qvac) {
        device->qvac = std::make_shared<vk_qvac_device>();
    }
    ggml_vk_qvac_load_out_prod(device, create);
    ggml_vk_qvac_load_out_prod_f16(device, create);
    ggml_vk_qvac_load_cross_entropy(device, create);
    ggml_vk_qvac_load_ternary(device, create);
    ggml_vk_qvac_load_ternary_unpack(device, create);
    ggml_vk_qvac_load_ternary_vec(device, create);
    ggml_vk_qvac_load_program(device, create);
    ggml_vk_qvac_load_low_rank(device, create);
    ggml_vk_qvac_load_attention(device, create);
    ggml_vk_qvac_load_rms_norm(device, create);
    ggml_vk_qvac_load_quantized_rows(device, create);
    ggml_vk_qvac_load_elementwise(device, create);
    ggml_vk_qvac_load_rope(device, create);
    ggml_vk_qvac_load_exact(device, create);
}

vk_qvac_answer ggml_vk_qvac_supports_op(const vk_device & device, const ggml_tensor * op) {
    if (ggml_is_exact() && !ggml_exact_is_any(op)) {
        const vk_qvac_exact_kernel * kernel = ggml_vk_qvac_exact_kernel_of(op);
        return kernel && kernel->supported(device, op) ? vk_qvac_answer::yes : vk_qvac_answer::no;
    }
    if (!is_ours(op)) {
        return ggml_vk_qvac_beyond_upstream(device, op) ? vk_qvac_answer::no : vk_qvac_answer::upstream;
    }
    bool supported = false;
    switch (op->op) {
        case GGML_OP_OUT_PROD:
            supported = ggml_vk_qvac_out_prod_supported(device, op);
            break;
        case GGML_OP_MUL_MAT:
            supported = ggml_vk_qvac_ternary_supported(device, op);
            break;
        case GGML_OP_CUSTOM:
            switch (ggml_get_train_op(op)) {
                case GGML_TRAIN_OP_TQ_QUANTIZE:
                case GGML_TRAIN_OP_TQ_MUL_MAT:
                case GGML_TRAIN_OP_TQ_MUL_MAT_BACK:
                    supported = ggml_vk_qvac_ternary_supported(device, op);
                    break;
                case GGML_TRAIN_OP_LOW_RANK_PROJECT:
                case GGML_TRAIN_OP_LOW_RANK_ADD:
                case GGML_TRAIN_OP_LOW_RANK_GRAD:
                    supported = ggml_vk_qvac_low_rank_supported(device, op);
                    break;
                case GGML_TRAIN_OP_RMS_NORM_MUL_BACK:
                    supported = ggml_vk_qvac_rms_norm_mul_back_supported(device, op);
                    break;
                case GGML_TRAIN_OP_SWIGLU_BACK:
                case GGML_TRAIN_OP_RELU_SQR_GLU_BACK:
                    supported = ggml_vk_qvac_glu_back_supported(device, op);
                    break;
                case GGML_TRAIN_OP_ATTENTION:
                case GGML_TRAIN_OP_ATTENTION_BACK:
                    supported = ggml_vk_qvac_attention_supported(device, op);
                    break;
                default:
                    break;
            }
            break;
        default:
            supported = ggml_vk_qvac_cross_entropy_supported(device, op);
            break;
    }
    return supported ? vk_qvac_answer::yes : vk_qvac_answer::no;
}

bool ggml_vk_qvac_graph_begin(ggml_backend_vk_context * ctx, const ggml_cgraph * cgraph) {
    if (!ctx->qvac) {
        ctx->qvac = std::make_shared<vk_qvac_context>();
    }
    ggml_vk_qvac_submission_graph_begin(ctx);
    ggml_vk_qvac_ternary_graph_begin(ctx, cgraph);
    ggml_vk_qvac_vec_graph_begin(ctx);
    ctx->qvac->program.cgraph = nullptr;
    return !ctx->qvac->program.failed;
}

void ggml_vk_qvac_synchronized(ggml_backend_vk_context * ctx) {
    if (ctx->qvac) {
        ggml_vk_qvac_program_synchronized(ctx);
    }
}

int ggml_vk_qvac_last_of_run(ggml_backend_vk_context * ctx, const ggml_cgraph * cgraph, int node_idx) {
    const int count = ctx->device->disable_fusion ? 0 : ggml_vk_qvac_find_program(ctx, cgraph, node_idx);
    if (count > cgraph->n_nodes / 2) {
        ctx->qvac->submission.is_whole = true;
    }
    return count > 0 ? node_idx + count - 1 : node_idx;
}

// One node by itself, under its own name in GGML_VK_PERF_LOGGER's table.
static bool fuse_nothing(ggml_backend_vk_context * ctx, const ggml_tensor * node, const char ** name) {
    ctx->num_additional_fused_ops = 0;
    if (node->op == GGML_OP_CUSTOM) {
        *name = ggml_train_op_desc(node);
    }
    return true;
}

bool ggml_vk_qvac_fuse(ggml_backend_vk_context * ctx, const ggml_cgraph * cgraph, int node_idx, const char ** name, bool * elementwise) {
    if (ctx->qvac->program.cgraph == cgraph && ctx->qvac->program.last == node_idx) {
        ctx->num_additional_fused_ops = 0;
        *name = "TQ_PROGRAM";
        return true;
    }
    if (ggml_is_exact()) {
        return fuse_nothing(ctx, cgraph->nodes[node_idx], name);
    }
    if (ggml_vk_qvac_fuse_generation(ctx, cgraph, node_idx, name, elementwise)) {
        ctx->qvac->submission.generates = true;
        return true;
    }
    if (ggml_vk_qvac_fuse_quantize(ctx, cgraph, node_idx, name, elementwise)) {
        return true;
    }
    const ggml_tensor * node = cgraph->nodes[node_idx];
    if (ggml_vk_qvac_fuses_relu_sqr(ctx, cgraph, node_idx)) {
        ctx->num_additional_fused_ops = 2;
        *name = "RELU_SQR_GLU";
        std::fill_n(elementwise, 3, true);
        return true;
    }
    ctx->qvac->fused_rms_norm = node->op == GGML_OP_RMS_NORM && ggml_vk_qvac_fuses_rms_norm(ctx, cgraph, node_idx);
    if (ctx->qvac->fused_rms_norm) {
        // A row is read before it is written, by the same workgroup: upstream may place the result over the input.
        ctx->num_additional_fused_ops = 1;
        *name          = "RMS_NORM_MUL";
        elementwise[0] = true;
        elementwise[1] = false;
        return true;
    }
    if (ggml_vk_qvac_fuse_low_rank(ctx, cgraph, node_idx, name, elementwise)) {
        return true;
    }
    if (!is_ours(node)) {
        return false;
    }
    return fuse_nothing(ctx, node, name);
}

void ggml_vk_qvac_written(ggml_tensor * tensor) {
    ggml_vk_qvac_ternary_written(tensor);
}

bool ggml_vk_qvac_dispatch(ggml_backend_vk_context * ctx, vk_context & subctx, ggml_cgraph * cgraph, int node_idx) {
    if (ggml_vk_qvac_record_program(ctx, subctx, cgraph, node_idx)) {
        return true;
    }
    if (const vk_qvac_exact_kernel * kernel = ggml_is_exact() ? ggml_vk_qvac_exact_kernel_of(cgraph->nodes[node_idx]) : nullptr) {
        kernel->record(ctx, subctx, cgraph->nodes[node_idx]);
        return true;
    }
    if (ggml_vk_qvac_fused(ctx, subctx, cgraph, node_idx) || ggml_vk_qvac_fused_quantize(ctx, subctx, cgraph, node_idx)) {
        return true;
    }
    ggml_tensor * node = cgraph->nodes[node_idx];
    if (ggml_vk_qvac_fused_relu_sqr(ctx, subctx, cgraph, node_idx)) {
        return true;
    }
    if (!is_ours(node)) {
        return dispatch_taken(ctx, subctx, cgraph, node_idx);
    }
    switch (node->op) {
        case GGML_OP_OUT_PROD:
            if (ggml_vk_qvac_out_prod_is_f16(ctx->device, node)) {
                ggml_vk_qvac_out_prod_f16(ctx, subctx, node);
            } else {
                ggml_vk_qvac_out_prod(ctx, subctx, node);
            }
            break;
        case GGML_OP_MUL_MAT:
            ggml_vk_qvac_ternary(ctx, subctx, node, nullptr);
            break;
        case GGML_OP_CROSS_ENTROPY_LOSS:
            ggml_vk_qvac_cross_entropy_loss(ctx, subctx, node);
            break;
        case GGML_OP_CROSS_ENTROPY_LOSS_BACK:
            ggml_vk_qvac_cross_entropy_loss_back(ctx, subctx, node);
            break;
        default:
            switch (ggml_get_train_op(node)) {
                case GGML_TRAIN_OP_TQ_MUL_MAT:
                case GGML_TRAIN_OP_TQ_MUL_MAT_BACK: {
                    clear_the_way(ctx, subctx, cgraph, node_idx);
                    const int more = ctx->num_additional_fused_ops; // the last of them is a LOW_RANK_ADD
                    ggml_vk_qvac_ternary(ctx, subctx, node, more > 0 ? cgraph->nodes[node_idx + more] : nullptr);
                    break;
                }
                case GGML_TRAIN_OP_TQ_QUANTIZE:
                    ggml_vk_qvac_ternary(ctx, subctx, node, nullptr);
                    break;
                case GGML_TRAIN_OP_LOW_RANK_PROJECT:
                    if (ctx->num_additional_fused_ops > 0) {
                        ggml_vk_qvac_fused_projections(ctx, subctx, cgraph, node_idx);
                    } else {
                        ggml_vk_qvac_low_rank_project(ctx, subctx, node);
                    }
                    break;
                case GGML_TRAIN_OP_LOW_RANK_ADD:
                    ggml_vk_qvac_low_rank_add(ctx, subctx, node);
                    break;
                case GGML_TRAIN_OP_LOW_RANK_GRAD:
                    ggml_vk_qvac_low_rank_grad(ctx, subctx, node);
                    break;
                case GGML_TRAIN_OP_RMS_NORM_MUL_BACK:
                    ggml_vk_qvac_rms_norm_mul_back(ctx, subctx, node);
                    break;
                case GGML_TRAIN_OP_SWIGLU_BACK:
                case GGML_TRAIN_OP_RELU_SQR_GLU_BACK:
                    ggml_vk_qvac_glu_back(ctx, subctx, node);
                    break;
                case GGML_TRAIN_OP_ATTENTION:
                    ggml_vk_qvac_attention(ctx, subctx, node);
                    break;
                case GGML_TRAIN_OP_ATTENTION_BACK:
                    ggml_vk_qvac_attention_back(ctx, subctx, node);
                    break;
                default:
                    GGML_ABORT("%s: not supported", ggml_train_op_desc(node));
            }
            break;
    }
    return true;
}
