// LoRA's products with few columns (LOW_RANK_* of ggml-train.h; qvac_low_rank_*.comp). All are bound by the memory traffic
// of the token tensor: the shaders read it once per 8 columns (LOW_RANK_ADD: once). Where that comes from memory rather
// than a cache, low_rank_long.cpp takes over, if everything is aligned. B^T dy is low_rank_along_k.cpp's.

#include "low_rank.h"

#include "ggml-train.h"
#include "ggml-vulkan-shaders.hpp"

namespace {

struct grad_push_constants {
    uint32_t N, R, T;
    uint32_t nbg0, nbg1;
    uint32_t nbv1, nbz1;
    uint32_t g_offset, v_offset, z_offset;
    float    scale;
};

// The shaders' constants: columns (KK) and rows (NN) of a workgroup, and its invocations.
constexpr uint32_t COLUMNS    = 8;
constexpr uint32_t GRAD_ROWS  = 16;
constexpr uint32_t BLOCK_SIZE = 256;

// Tokens of a workgroup.
constexpr uint32_t PROJECT_TOKENS = 4;
constexpr uint32_t ADD_TOKENS     = 8;

bool is_indexable(const ggml_tensor * t) {
    return t->type == GGML_TYPE_F32 && t->nb[0] % sizeof(float) == 0 && t->nb[1] % sizeof(float) == 0 &&
           ggml_nbytes(t) / sizeof(float) < UINT32_MAX;
}

bool rows_are_aligned(const ggml_tensor * t, int dim) {
    return t->nb[dim] % 16 == 0;
}

} // namespace

void ggml_vk_qvac_load_low_rank(vk_device & device, const vk_qvac_create_pipeline & create) {
    for (uint32_t aligned = 0; aligned < 2; ++aligned) {
        create(device->qvac->low_rank_project[aligned], "qvac_low_rank_project", qvac_low_rank_project_len, qvac_low_rank_project_data, 3,
               sizeof(vk_qvac_project_push_constants), { COLUMNS, PROJECT_TOKENS, 1 }, { PROJECT_TOKENS, aligned }, 0);
    }
    for (uint32_t along_k = 0; along_k < 2; ++along_k) {
        create(device->qvac->low_rank_add[along_k], "qvac_low_rank_add", qvac_low_rank_add_len, qvac_low_rank_add_data, 4,
               sizeof(vk_qvac_low_rank_add_push_constants), { BLOCK_SIZE, ADD_TOKENS, 1 }, { ADD_TOKENS, along_k }, 0);
    }
    create(device->qvac->low_rank_grad, "qvac_low_rank_grad", qvac_low_rank_grad_len, qvac_low_rank_grad_data, 3,
           sizeof(grad_push_constants), { COLUMNS, GRAD_ROWS, 1 }, {}, 0);
    ggml_vk_qvac_load_low_rank_along_k(device, create);
    ggml_vk_qvac_load_low_rank_long(device, create);
}

bool ggml_vk_qvac_low_rank_supported(const vk_device & device, const ggml_tensor * op) {
    for (int i = 0; i < GGML_MAX_SRC && op->src[i]; ++i) {
        if (!is_indexable(op->src[i])) {
            return false;
        }
    }
    const auto & limits = device->properties.limits.maxComputeWorkGroupCount;
    switch (ggml_get_train_op(op)) {
        case GGML_TRAIN_OP_LOW_RANK_PROJECT:
            return CEIL_DIV(op->ne[0], (int64_t) COLUMNS) <= limits[0] &&
                   CEIL_DIV(op->ne[1], (int64_t) PROJECT_TOKENS) <= limits[1];
        case GGML_TRAIN_OP_LOW_RANK_ADD:
            return CEIL_DIV(op->ne[0], (int64_t) BLOCK_SIZE) <= limits[0] &&
                   CEIL_DIV(op->ne[1], (int64_t) ADD_TOKENS) <= limits[1];
        default:
            return CEIL_DIV(op->ne[1], (int64_t) COLUMNS) <= limits[0] &&
                   CEIL_DIV(op->ne[0], (int64_t) GRAD_ROWS) <= limits[1];
    }
}

void ggml_vk_qvac_record_project(ggml_backend_vk_context * ctx, vk_context & subctx, vk_pipeline & pipeline, ggml_tensor * dst) {
    const ggml_tensor * p = dst->src[0]; // [n, r]
    const ggml_tensor * v = dst->src[1]; // [n, T]

    const vk_qvac_project_push_constants pc = {
        (uint32_t) p->ne[0], (uint32_t) p->ne[1], (uint32_t) v->ne[1],
        ggml_vk_qvac_stride(p, 0), ggml_vk_qvac_stride(p, 1),
        ggml_vk_qvac_stride(v, 1),
        ggml_vk_qvac_offset(ctx, p), ggml_vk_qvac_offset(ctx, v), ggml_vk_qvac_offset(ctx, dst),
        ggml_train_op_param(dst),
    };
    ggml_pipeline_request_descriptor_sets(ctx, pipeline, 1);
    ggml_vk_dispatch_pipeline(ctx, subctx, pipeline,
        { ggml_vk_tensor_subbuffer(ctx, p, true), ggml_vk_tensor_subbuffer(ctx, v, true), ggml_vk_tensor_subbuffer(ctx, dst, true) },
        pc, { pc.R, pc.T, 1 });
}

void ggml_vk_qvac_record_low_rank_add(ggml_backend_vk_context * ctx, vk_context & subctx, vk_pipeline & pipeline, ggml_tensor * dst) {
    const ggml_tensor * y   = dst->src[0]; // [n, T]
    const ggml_tensor * p   = dst->src[1]; // [n, r]
    const ggml_tensor * z   = dst->src[2]; // [r, T]
    const ggml_tensor * add = dst->src[3]; // [n, T] or none

    const vk_qvac_low_rank_add_push_constants pc = {
        (uint32_t) y->ne[0], (uint32_t) p->ne[1], (uint32_t) y->ne[1],
        ggml_vk_qvac_stride(p, 0), ggml_vk_qvac_stride(p, 1),
        ggml_vk_qvac_stride(z, 1),
        ggml_vk_qvac_offset(ctx, dst), ggml_vk_qvac_offset(ctx, p), ggml_vk_qvac_offset(ctx, z), add ? ggml_vk_qvac_offset(ctx, add) : 0,
        add ? 1u : 0u,
        ggml_train_op_param(dst),
    };
    const vk_subbuffer y_buf = ggml_vk_tensor_subbuffer(ctx, dst, true);
    ggml_pipeline_request_descriptor_sets(ctx, pipeline, 1);
    ggml_vk_dispatch_pipeline(ctx, subctx, pipeline,
        { y_buf, ggml_vk_tensor_subbuffer(ctx, p, true), ggml_vk_tensor_subbuffer(ctx, z, true),
          add ? ggml_vk_tensor_subbuffer(ctx, add, true) : y_buf },
        pc, { pc.N, pc.T, 1 });
}

void ggml_vk_qvac_low_rank_project(ggml_backend_vk_context * ctx, vk_context & subctx, ggml_tensor * dst) {
    vk_qvac_projections along_k = { { dst }, 1, dst };
    if (ggml_vk_qvac_plan_along_k(ctx, along_k)) {
        ggml_vk_qvac_project_along_k(ctx, subctx, along_k);
        return;
    }
    if (ggml_vk_qvac_low_rank_project_long(ctx, subctx, dst)) {
        return;
    }
    const ggml_tensor * p = dst->src[0]; // [n, r]
    const ggml_tensor * v = dst->src[1]; // [n, T]

    const vk_subbuffer p_buf = ggml_vk_tensor_subbuffer(ctx, p, true);
    const vk_subbuffer v_buf = ggml_vk_tensor_subbuffer(ctx, v, true);

    const bool v_aligned = rows_are_aligned(v, 1) && ggml_vk_qvac_is_aligned(ctx, v, v_buf);
    const bool p_aligned = p->nb[0] == sizeof(float) && rows_are_aligned(p, 1) && ggml_vk_qvac_is_aligned(ctx, p, p_buf);
    const bool aligned   = p->ne[0] % 4 == 0 && v_aligned && p_aligned;

    ggml_vk_qvac_record_project(ctx, subctx, ctx->device->qvac->low_rank_project[aligned], dst);
}

void ggml_vk_qvac_low_rank_add(ggml_backend_vk_context * ctx, vk_context & subctx, ggml_tensor * dst) {
    if (ggml_vk_qvac_low_rank_add_long(ctx, subctx, dst)) {
        return;
    }
    const ggml_tensor * p = dst->src[1]; // [n, r]

    const vk_subbuffer p_buf = ggml_vk_tensor_subbuffer(ctx, p, true);

    // Four k at a time, if rows of p consist of whole fours.
    const bool along_k = p->nb[1] == sizeof(float) && p->ne[1] % 4 == 0 && rows_are_aligned(p, 0) && ggml_vk_qvac_is_aligned(ctx, p, p_buf);

    ggml_vk_qvac_record_low_rank_add(ctx, subctx, ctx->device->qvac->low_rank_add[along_k], dst);
}

void ggml_vk_qvac_low_rank_grad(ggml_backend_vk_context * ctx, vk_context & subctx, ggml_tensor * dst) {
    if (ggml_vk_qvac_low_rank_grad_long(ctx, subctx, dst)) {
        return;
    }
    const ggml_tensor * v = dst->src[1]; // [n, T]
    const ggml_tensor * z = dst->src[2]; // [r, T]

    vk_pipeline pipeline = ctx->device->qvac->low_rank_grad;
    ggml_pipeline_request_descriptor_sets(ctx, pipeline, 1);

    const grad_push_constants pc = {
        (uint32_t) dst->ne[0], (uint32_t) dst->ne[1], (uint32_t) v->ne[1],
        ggml_vk_qvac_stride(dst, 0), ggml_vk_qvac_stride(dst, 1),
        ggml_vk_qvac_stride(v, 1), ggml_vk_qvac_stride(z, 1),
        ggml_vk_qvac_offset(ctx, dst), ggml_vk_qvac_offset(ctx, v), ggml_vk_qvac_offset(ctx, z),
        ggml_train_op_param(dst),
    };
    ggml_vk_dispatch_pipeline(ctx, subctx, pipeline,
        { ggml_vk_tensor_subbuffer(ctx, dst, true), ggml_vk_tensor_subbuffer(ctx, v, true), ggml_vk_tensor_subbuffer(ctx, z, true) },
        pc, { pc.R, pc.N, 1 });
}
