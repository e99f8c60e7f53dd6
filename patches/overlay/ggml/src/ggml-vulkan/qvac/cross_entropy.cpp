// Cross entropy over class ids (see ggml-train.h), one workgroup a row (qvac_cross_entropy*.comp).

#include "ops.h"

#include "ggml-vulkan-shaders.hpp"

namespace {

struct cross_entropy_push_constants {
    uint32_t n_vocab;
    uint32_t n_rows;
    uint32_t nb_logits;
    uint32_t nb_dst;
    uint32_t nb_grad;
    float    scale;
    uint32_t logits_offset;
    uint32_t labels_offset;
    uint32_t grad_offset;
    uint32_t dst_offset;
};

constexpr uint32_t BLOCK_SIZE = 256;

// The shader's ROWS_PER_GRID_LINE.
constexpr uint32_t ROWS_PER_GRID_LINE = 512;

std::array<uint32_t, 3> grid_of(int64_t n_rows) {
    const uint32_t n = (uint32_t) n_rows;
    return { std::min(n, ROWS_PER_GRID_LINE), CEIL_DIV(n, ROWS_PER_GRID_LINE), 1 };
}

cross_entropy_push_constants push_constants(
        const ggml_backend_vk_context * ctx, const ggml_tensor * dst,
        const ggml_tensor * logits, const ggml_tensor * labels, const ggml_tensor * grad) {
    cross_entropy_push_constants pc = {};
    pc.n_vocab       = (uint32_t) logits->ne[0];
    pc.n_rows        = (uint32_t) logits->ne[1];
    pc.nb_logits     = ggml_vk_qvac_stride(logits, 1);
    pc.nb_dst        = grad ? ggml_vk_qvac_stride(dst, 1) : 0;
    pc.nb_grad       = grad && grad->ne[0] != 1 ? 1 : 0;
    pc.scale         = ggml_get_op_params_f32(dst, 0);
    pc.logits_offset = ggml_vk_qvac_offset(ctx, logits);
    pc.labels_offset = ggml_vk_qvac_offset(ctx, labels);
    pc.grad_offset   = grad ? ggml_vk_qvac_offset(ctx, grad) : 0;
    pc.dst_offset    = ggml_vk_qvac_offset(ctx, dst);
    return pc;
}

// Whether rows of `t`, [n_vocab, n_rows], can be read four values at a time.
bool is_in_fours(const ggml_backend_vk_context * ctx, const ggml_tensor * t, const vk_subbuffer & buffer) {
    return t->ne[0] % 4 == 0 && t->nb[1] % 16 == 0 && ggml_vk_qvac_is_aligned(ctx, t, buffer);
}

} // namespace

void ggml_vk_qvac_load_cross_entropy(vk_device & device, const vk_qvac_create_pipeline & create) {
    for (const uint32_t aligned : { 0u, 1u }) {
        create(device->qvac->cross_entropy[aligned], "qvac_cross_entropy", qvac_cross_entropy_len, qvac_cross_entropy_data, 3,
               sizeof(cross_entropy_push_constants), { 1, 1, 1 }, { BLOCK_SIZE, aligned }, 0);
        create(device->qvac->cross_entropy_back[aligned], "qvac_cross_entropy_back", qvac_cross_entropy_back_len, qvac_cross_entropy_back_data, 4,
               sizeof(cross_entropy_push_constants), { 1, 1, 1 }, { BLOCK_SIZE, aligned }, 0);
    }
}

bool ggml_vk_qvac_cross_entropy_is_labels(const ggml_tensor * op) {
    return op->src[op->op == GGML_OP_CROSS_ENTROPY_LOSS ? 1 : 2]->type == GGML_TYPE_I32;
}

bool ggml_vk_qvac_cross_entropy_supported(const vk_device & device, const ggml_tensor * op) {
    const bool          forward = op->op == GGML_OP_CROSS_ENTROPY_LOSS;
    const ggml_tensor * logits  = op->src[forward ? 0 : 1];
    const ggml_tensor * labels  = op->src[forward ? 1 : 2];
    const ggml_tensor * grad    = forward ? nullptr : op->src[0];

    return logits->type == GGML_TYPE_F32 && logits->nb[0] == sizeof(float) &&
           labels->nb[0] == sizeof(int32_t) &&
           op->type == GGML_TYPE_F32 && op->nb[0] == sizeof(float) &&
           (!grad || (grad->type == GGML_TYPE_F32 && grad->nb[0] == sizeof(float))) &&
           ggml_nbytes(logits) / sizeof(float) < UINT32_MAX &&
           grid_of(logits->ne[1])[1] <= device->properties.limits.maxComputeWorkGroupCount[1];
}

void ggml_vk_qvac_cross_entropy_loss(ggml_backend_vk_context * ctx, vk_context & subctx, ggml_tensor * dst) {
    const ggml_tensor * logits = dst->src[0]; // [n_vocab, n_rows]
    const ggml_tensor * labels = dst->src[1]; // [n_rows]

    const vk_subbuffer logits_buf = ggml_vk_tensor_subbuffer(ctx, logits, true);

    vk_pipeline pipeline = ctx->device->qvac->cross_entropy[is_in_fours(ctx, logits, logits_buf)];
    ggml_pipeline_request_descriptor_sets(ctx, pipeline, 1);
    ggml_vk_dispatch_pipeline(ctx, subctx, pipeline,
        { logits_buf, ggml_vk_tensor_subbuffer(ctx, labels, true), ggml_vk_tensor_subbuffer(ctx, dst, true) },
        push_constants(ctx, dst, logits, labels, nullptr), grid_of(logits->ne[1]));
}

void ggml_vk_qvac_cross_entropy_loss_back(ggml_backend_vk_context * ctx, vk_context & subctx, ggml_tensor * dst) {
    const ggml_tensor * grad   = dst->src[0]; // [1] or [n_rows]
    const ggml_tensor * logits = dst->src[1]; // [n_vocab, n_rows]
    const ggml_tensor * labels = dst->src[2]; // [n_rows]

    const vk_subbuffer logits_buf = ggml_vk_tensor_subbuffer(ctx, logits, true);
    const vk_subbuffer dst_buf    = ggml_vk_tensor_subbuffer(ctx, dst, true);

    vk_pipeline pipeline = ctx->device->qvac->cross_entropy_back[is_in_fours(ctx, logits, logits_buf) && is_in_fours(ctx, dst, dst_buf)];
    ggml_pipeline_request_descriptor_sets(ctx, pipeline, 1);
    ggml_vk_dispatch_pipeline(ctx, subctx, pipeline,
        { ggml_vk_tensor_subbuffer(ctx, grad, true), logits_buf, ggml_vk_tensor_subbuffer(ctx, labels, true), dst_buf },
        push_constants(ctx, dst, logits, labels, grad), grid_of(logits->ne[1]));
}
