// Sums over rows in exact arithmetic (exact.h): one workgroup a row (qvac_exact_row.glsl).

#include "exact.h"

#include "exact_grid.h"
#include "ggml-train.h"
#include "ggml-vulkan-shaders.hpp"

namespace {

struct rms_norm_push_constants {
    uint32_t N, T;
    uint32_t ne1, ne2;
    uint32_t x_nb1, x_nb2, x_nb3, x_offset;
    uint32_t y_nb1, y_nb2, y_nb3, y_offset;
    float    eps;
};

struct rms_norm_back_push_constants {
    uint32_t N, T;
    uint32_t dy_offset, x_offset, w_offset, add_offset, dx_offset;
    uint32_t has_w, has_add;
    float    eps;
};

struct sum_rows_push_constants {
    uint32_t N, T;
    uint32_t ne1, ne2;
    uint32_t x_nb1, x_nb2, x_nb3, x_offset;
    uint32_t y_offset;
};

struct cross_entropy_push_constants {
    uint32_t N, T;
    uint32_t x_nb1, d_nb1;
    uint32_t grad_nb0;
    float    scale;
    uint32_t x_offset, label_offset, grad_offset, d_offset;
};

// Values that a shader's variant keeps.
constexpr int64_t KEPT[VK_QVAC_EXACT_ROW_SHAPE_COUNT] = { 2 * 1024, 6 * 1024, 14 * 1024 };

uint32_t shape_of(int64_t n) {
    uint32_t shape = 0;
    while (shape + 1 < VK_QVAC_EXACT_ROW_SHAPE_COUNT && n > KEPT[shape]) {
        ++shape;
    }
    return shape;
}

bool all_in_fours(const ggml_backend_vk_context * ctx, std::initializer_list<const ggml_tensor *> tensors) {
    return std::all_of(tensors.begin(), tensors.end(), [&](const ggml_tensor * t) { return !t || ggml_vk_qvac_exact_in_fours(ctx, t); });
}

vk_subbuffer buffer_of(ggml_backend_vk_context * ctx, const ggml_tensor * t) {
    return ggml_vk_tensor_subbuffer(ctx, t, true);
}

bool fits(const vk_device & device, const ggml_tensor * op, int64_t n_rows) {
    return ggml_vk_qvac_exact_tensors_fit(device, op) && ggml_vk_qvac_exact_grid_fits(device, (uint64_t) n_rows);
}

bool rms_norm_supported(const vk_device & device, const ggml_tensor * op) {
    return ggml_vk_qvac_exact_is_float(op->src[0], true) && ggml_vk_qvac_exact_is_float(op, true) && fits(device, op, ggml_nrows(op));
}

void rms_norm(ggml_backend_vk_context * ctx, vk_context & subctx, ggml_tensor * dst) {
    const ggml_tensor * x = dst->src[0];

    vk_pipeline pipeline = ctx->device->qvac->exact_rows.rms_norm[shape_of(x->ne[0])][all_in_fours(ctx, { x, dst })];
    ggml_pipeline_request_descriptor_sets(ctx, pipeline, 1);

    const rms_norm_push_constants pc = {
        (uint32_t) x->ne[0], (uint32_t) ggml_nrows(x), (uint32_t) x->ne[1], (uint32_t) x->ne[2],
        ggml_vk_qvac_stride(x, 1), ggml_vk_qvac_stride(x, 2), ggml_vk_qvac_stride(x, 3), ggml_vk_qvac_offset(ctx, x),
        ggml_vk_qvac_stride(dst, 1), ggml_vk_qvac_stride(dst, 2), ggml_vk_qvac_stride(dst, 3), ggml_vk_qvac_offset(ctx, dst),
        ggml_get_op_params_f32(dst, 0),
    };
    ggml_vk_dispatch_pipeline(ctx, subctx, pipeline, { buffer_of(ctx, x), buffer_of(ctx, dst) }, pc, ggml_vk_qvac_exact_grid(pc.T));
}

// RMS_NORM_MUL_BACK, and RMS_NORM_BACK, which has neither weights nor `add`.
bool rms_norm_back_supported(const vk_device & device, const ggml_tensor * op) {
    return op->src[0]->type == GGML_TYPE_F32 && op->src[1]->type == GGML_TYPE_F32 && ggml_is_contiguous(op->src[0]) &&
           ggml_is_contiguous(op->src[1]) && ggml_is_contiguous(op) && fits(device, op, ggml_nrows(op));
}

void rms_norm_back(ggml_backend_vk_context * ctx, vk_context & subctx, ggml_tensor * dst) {
    const bool          fused = dst->op == GGML_OP_CUSTOM;
    const ggml_tensor * dy    = dst->src[0];                   // [n, T]
    const ggml_tensor * x     = dst->src[1];                   // [n, T]
    const ggml_tensor * w     = fused ? dst->src[2] : nullptr; // [n]
    const ggml_tensor * add   = fused ? dst->src[3] : nullptr; // [n, T] or none

    const vk_subbuffer dy_buf = buffer_of(ctx, dy);

    vk_pipeline pipeline = ctx->device->qvac->exact_rows.rms_norm_back[shape_of(x->ne[0])][all_in_fours(ctx, { dy, x, w, add, dst })];
    ggml_pipeline_request_descriptor_sets(ctx, pipeline, 1);

    const rms_norm_back_push_constants pc = {
        (uint32_t) x->ne[0], (uint32_t) ggml_nrows(x),
        ggml_vk_qvac_offset(ctx, dy), ggml_vk_qvac_offset(ctx, x), w ? ggml_vk_qvac_offset(ctx, w) : 0,
        add ? ggml_vk_qvac_offset(ctx, add) : 0, ggml_vk_qvac_offset(ctx, dst),
        w ? 1u : 0u, add ? 1u : 0u,
        fused ? ggml_train_op_param(dst) : ggml_get_op_params_f32(dst, 0),
    };
    ggml_vk_dispatch_pipeline(ctx, subctx, pipeline,
        { dy_buf, buffer_of(ctx, x), w ? buffer_of(ctx, w) : dy_buf, add ? buffer_of(ctx, add) : dy_buf, buffer_of(ctx, dst) },
        pc, ggml_vk_qvac_exact_grid(pc.T));
}

bool sum_rows_supported(const vk_device & device, const ggml_tensor * op) {
    return ggml_vk_qvac_exact_is_float(op->src[0], true) && ggml_is_contiguous(op) && fits(device, op, ggml_nrows(op));
}

void sum_rows(ggml_backend_vk_context * ctx, vk_context & subctx, ggml_tensor * dst) {
    const ggml_tensor * x = dst->src[0];

    vk_pipeline pipeline = ctx->device->qvac->exact_rows.sum_rows[all_in_fours(ctx, { x })];
    ggml_pipeline_request_descriptor_sets(ctx, pipeline, 1);

    const sum_rows_push_constants pc = {
        (uint32_t) x->ne[0], (uint32_t) ggml_nrows(x), (uint32_t) x->ne[1], (uint32_t) x->ne[2],
        ggml_vk_qvac_stride(x, 1), ggml_vk_qvac_stride(x, 2), ggml_vk_qvac_stride(x, 3), ggml_vk_qvac_offset(ctx, x),
        ggml_vk_qvac_offset(ctx, dst),
    };
    ggml_vk_dispatch_pipeline(ctx, subctx, pipeline, { buffer_of(ctx, x), buffer_of(ctx, dst) }, pc, ggml_vk_qvac_exact_grid(pc.T));
}

bool sum_supported(const vk_device & device, const ggml_tensor * op) {
    return op->src[0]->type == GGML_TYPE_F32 && ggml_is_contiguous(op->src[0]) && fits(device, op, 1);
}

// Of all values, as of one row.
void sum(ggml_backend_vk_context * ctx, vk_context & subctx, ggml_tensor * dst) {
    const ggml_tensor * x = dst->src[0];
    const uint32_t      n = (uint32_t) ggml_nelements(x);

    const bool  aligned  = n % 4 == 0 && ggml_vk_qvac_is_aligned(ctx, x, buffer_of(ctx, x));
    vk_pipeline pipeline = ctx->device->qvac->exact_rows.sum_rows[aligned];
    ggml_pipeline_request_descriptor_sets(ctx, pipeline, 1);

    const sum_rows_push_constants pc = { n, 1, 1, 1, 0, 0, 0, ggml_vk_qvac_offset(ctx, x), ggml_vk_qvac_offset(ctx, dst) };
    ggml_vk_dispatch_pipeline(ctx, subctx, pipeline, { buffer_of(ctx, x), buffer_of(ctx, dst) }, pc, { 1, 1, 1 });
}

bool cross_entropy_supported(const vk_device & device, const ggml_tensor * op) {
    const bool          back   = op->op == GGML_OP_CROSS_ENTROPY_LOSS_BACK;
    const ggml_tensor * logits = op->src[back ? 1 : 0];
    const ggml_tensor * labels = op->src[back ? 2 : 1];
    return labels->type == GGML_TYPE_I32 && labels->nb[0] == sizeof(int32_t) && ggml_vk_qvac_exact_is_float(logits, true) &&
           ggml_vk_qvac_exact_is_float(op, true) && (!back || ggml_vk_qvac_exact_is_float(op->src[0], true)) &&
           fits(device, op, logits->ne[1]);
}

void cross_entropy(ggml_backend_vk_context * ctx, vk_context & subctx, ggml_tensor * dst) {
    const bool          back   = dst->op == GGML_OP_CROSS_ENTROPY_LOSS_BACK;
    const ggml_tensor * grad   = back ? dst->src[0] : nullptr; // [1] or [n_rows]
    const ggml_tensor * logits = dst->src[back ? 1 : 0];       // [n_vocab, n_rows]
    const ggml_tensor * labels = dst->src[back ? 2 : 1];       // [n_rows]

    const vk_qvac_exact_rows & rows    = ctx->device->qvac->exact_rows;
    const bool                 aligned = all_in_fours(ctx, { logits, back ? dst : nullptr });
    vk_pipeline                pipeline = (back ? rows.cross_entropy_back : rows.cross_entropy)[aligned];
    ggml_pipeline_request_descriptor_sets(ctx, pipeline, 1);

    const cross_entropy_push_constants pc = {
        (uint32_t) logits->ne[0], (uint32_t) logits->ne[1],
        ggml_vk_qvac_stride(logits, 1), back ? ggml_vk_qvac_stride(dst, 1) : 1,
        grad && grad->ne[0] != 1 ? 1u : 0u,
        ggml_get_op_params_f32(dst, 0),
        ggml_vk_qvac_offset(ctx, logits), ggml_vk_qvac_offset(ctx, labels), grad ? ggml_vk_qvac_offset(ctx, grad) : 0, ggml_vk_qvac_offset(ctx, dst),
    };
    const vk_subbuffer logits_buf = buffer_of(ctx, logits);
    ggml_vk_dispatch_pipeline(ctx, subctx, pipeline,
        { logits_buf, buffer_of(ctx, labels), grad ? buffer_of(ctx, grad) : logits_buf, buffer_of(ctx, dst) }, pc, ggml_vk_qvac_exact_grid(pc.T));
}

const vk_qvac_exact_kernel RMS_NORM      = { rms_norm_supported, rms_norm };
const vk_qvac_exact_kernel RMS_NORM_BACK = { rms_norm_back_supported, rms_norm_back };
const vk_qvac_exact_kernel SUM_ROWS      = { sum_rows_supported, sum_rows };
const vk_qvac_exact_kernel SUM           = { sum_supported, sum };
const vk_qvac_exact_kernel CROSS_ENTROPY = { cross_entropy_supported, cross_entropy };

} // namespace

const vk_qvac_exact_kernel * ggml_vk_qvac_exact_rows(const ggml_tensor * op) {
    switch (op->op) {
        case GGML_OP_RMS_NORM:
            return &RMS_NORM;
        case GGML_OP_RMS_NORM_BACK:
            return &RMS_NORM_BACK;
        case GGML_OP_SUM_ROWS:
            return &SUM_ROWS;
        case GGML_OP_SUM:
            return &SUM;
        case GGML_OP_CROSS_ENTROPY_LOSS:
        case GGML_OP_CROSS_ENTROPY_LOSS_BACK:
            return &CROSS_ENTROPY;
        case GGML_OP_CUSTOM:
            return ggml_get_train_op(op) == GGML_TRAIN_OP_RMS_NORM_MUL_BACK ? &RMS_NORM_BACK : nullptr;
        default:
            return nullptr;
    }
}

void ggml_vk_qvac_load_exact_rows(vk_device & device, const vk_qvac_create_pipeline & create) {
    const struct {
        const char * name;
        size_t       size;
        const void * data;
        const char * name_back;
        size_t       size_back;
        const void * data_back;
    } variants[VK_QVAC_EXACT_ROW_SHAPE_COUNT] = {
        { "qvac_exact_rms_norm_2", qvac_exact_rms_norm_2_len, qvac_exact_rms_norm_2_data,
          "qvac_exact_rms_norm_back_2", qvac_exact_rms_norm_back_2_len, qvac_exact_rms_norm_back_2_data },
        { "qvac_exact_rms_norm_6", qvac_exact_rms_norm_6_len, qvac_exact_rms_norm_6_data,
          "qvac_exact_rms_norm_back_6", qvac_exact_rms_norm_back_6_len, qvac_exact_rms_norm_back_6_data },
        { "qvac_exact_rms_norm_14", qvac_exact_rms_norm_14_len, qvac_exact_rms_norm_14_data,
          "qvac_exact_rms_norm_back_14", qvac_exact_rms_norm_back_14_len, qvac_exact_rms_norm_back_14_data },
    };
    vk_qvac_exact_rows & rows = device->qvac->exact_rows;
    for (const uint32_t aligned : { 0u, 1u }) {
        for (uint32_t shape = 0; shape < VK_QVAC_EXACT_ROW_SHAPE_COUNT; ++shape) {
            const auto & v = variants[shape];
            create(rows.rms_norm[shape][aligned], v.name, v.size, v.data, 2, sizeof(rms_norm_push_constants), { 1, 1, 1 }, { aligned }, 0);
            create(rows.rms_norm_back[shape][aligned], v.name_back, v.size_back, v.data_back, 5, sizeof(rms_norm_back_push_constants),
                   { 1, 1, 1 }, { aligned }, 0);
        }
        create(rows.sum_rows[aligned], "qvac_exact_sum_rows", qvac_exact_sum_rows_len, qvac_exact_sum_rows_data, 2,
               sizeof(sum_rows_push_constants), { 1, 1, 1 }, { aligned }, 0);
        create(rows.cross_entropy[aligned], "qvac_exact_cross_entropy", qvac_exact_cross_entropy_len, qvac_exact_cross_entropy_data, 4,
               sizeof(cross_entropy_push_constants), { 1, 1, 1 }, { aligned, 0 }, 0);
        create(rows.cross_entropy_back[aligned], "qvac_exact_cross_entropy_back", qvac_exact_cross_entropy_len, qvac_exact_cross_entropy_data, 4,
               sizeof(cross_entropy_push_constants), { 1, 1, 1 }, { aligned, 1 }, 0);
    }
}
