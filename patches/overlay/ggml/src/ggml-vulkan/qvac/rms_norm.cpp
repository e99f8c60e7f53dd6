// RMS_NORM with or without the MUL behind it, and RMS_NORM_MUL_BACK (see ggml-train.h): contiguous rows, which stay in the
// registers of the invocations that read them (qvac_row.glsl). A forward of few rows, as in generation, is upstream's.

#include "ops.h"

#include "ggml-train.h"
#include "ggml-vulkan-shaders.hpp"

namespace {

struct forward_push_constants {
    uint32_t N, T;
    uint32_t x_offset, w_offset, y_offset;
    float    eps;
};

struct back_push_constants {
    uint32_t N, T;
    uint32_t dy_offset, x_offset, w_offset, add_offset, dx_offset;
    uint32_t has_add;
    float    eps;
};

} // namespace

void ggml_vk_qvac_load_rms_norm(vk_device & device, const vk_qvac_create_pipeline & create) {
    const struct {
        uint32_t     keep;
        const char * name;
        size_t       size;
        const void * data;
        const char * name_back;
        size_t       size_back;
        const void * data_back;
    } variants[] = {
        { 2,  "qvac_rms_norm_2",  qvac_rms_norm_2_len,  qvac_rms_norm_2_data,
              "qvac_rms_norm_mul_back_2",  qvac_rms_norm_mul_back_2_len,  qvac_rms_norm_mul_back_2_data },
        { 3,  "qvac_rms_norm_3",  qvac_rms_norm_3_len,  qvac_rms_norm_3_data,
              "qvac_rms_norm_mul_back_3",  qvac_rms_norm_mul_back_3_len,  qvac_rms_norm_mul_back_3_data },
        { 6,  "qvac_rms_norm_6",  qvac_rms_norm_6_len,  qvac_rms_norm_6_data,
              "qvac_rms_norm_mul_back_6",  qvac_rms_norm_mul_back_6_len,  qvac_rms_norm_mul_back_6_data },
        { 7,  "qvac_rms_norm_7",  qvac_rms_norm_7_len,  qvac_rms_norm_7_data,
              "qvac_rms_norm_mul_back_7",  qvac_rms_norm_mul_back_7_len,  qvac_rms_norm_mul_back_7_data },
        { 14, "qvac_rms_norm_14", qvac_rms_norm_14_len, qvac_rms_norm_14_data,
              "qvac_rms_norm_mul_back_14", qvac_rms_norm_mul_back_14_len, qvac_rms_norm_mul_back_14_data },
    };
    for (uint32_t shape = 0; shape < VK_QVAC_ROW_SHAPE_COUNT; ++shape) {
        for (const auto & v : variants) {
            if (v.keep != VK_QVAC_ROW_SHAPES[shape].keep) {
                continue;
            }
            for (const uint32_t aligned : { 0u, 1u }) {
                for (const uint32_t multiply : { 0u, 1u }) {
                    create(device->qvac->rms_norm[shape][aligned][multiply], v.name, v.size, v.data, 3, sizeof(forward_push_constants),
                           { 1, 1, 1 }, { VK_QVAC_ROW_SHAPES[shape].lanes, aligned, multiply }, 0);
                }
                create(device->qvac->rms_norm_mul_back[shape][aligned], v.name_back, v.size_back, v.data_back, 5, sizeof(back_push_constants),
                       { 1, 1, 1 }, { VK_QVAC_ROW_SHAPES[shape].lanes, aligned }, 0);
            }
        }
    }
}

bool ggml_vk_qvac_takes_rms_norm(const ggml_backend_vk_context * ctx, const ggml_tensor * op) {
    return ggml_vk_qvac_is_plain(op) && ggml_vk_qvac_is_plain(op->src[0]) && ggml_nrows(op) > VK_QVAC_FEW_ROWS &&
           ggml_vk_qvac_rows_fit(ctx->device, op);
}

bool ggml_vk_qvac_fuses_rms_norm(const ggml_backend_vk_context * ctx, const ggml_cgraph * cgraph, int node_idx) {
    if (!ggml_vk_qvac_takes_rms_norm(ctx, cgraph->nodes[node_idx]) ||
        !ggml_vk_can_fuse(ctx, cgraph, node_idx, { GGML_OP_RMS_NORM, GGML_OP_MUL })) {
        return false;
    }
    const ggml_tensor * norm = cgraph->nodes[node_idx];
    const ggml_tensor * mul  = cgraph->nodes[node_idx + 1];
    const ggml_tensor * w    = mul->src[1];
    if (mul->src[0] != norm || ggml_nrows(w) != 1 || w->ne[0] != norm->ne[0] || !ggml_vk_qvac_is_plain(mul) || !ggml_vk_qvac_is_plain(w)) {
        return false;
    }
    // Upstream fuses more than two nodes: an ADD, or a ROPE that writes to the KV cache.
    const auto is = [&](int i, ggml_op op) { return node_idx + i < cgraph->n_nodes && cgraph->nodes[node_idx + i]->op == op; };
    return !(is(2, GGML_OP_ADD) && ggml_vk_can_fuse(ctx, cgraph, node_idx, { GGML_OP_RMS_NORM, GGML_OP_MUL, GGML_OP_ADD })) &&
           !(is(2, GGML_OP_ROPE) && is(3, GGML_OP_VIEW) && is(4, GGML_OP_SET_ROWS));
}

// `mul` is the product that follows, or none.
void ggml_vk_qvac_rms_norm(ggml_backend_vk_context * ctx, vk_context & subctx, ggml_tensor * norm, ggml_tensor * mul) {
    const ggml_tensor * x   = norm->src[0];               // [n, ...]
    const ggml_tensor * w   = mul ? mul->src[1] : nullptr; // [n]
    const ggml_tensor * dst = mul ? mul : norm;           // [n, ...]

    const vk_subbuffer x_buf = ggml_vk_tensor_subbuffer(ctx, x, true);
    const vk_subbuffer w_buf = w ? ggml_vk_tensor_subbuffer(ctx, w, true) : x_buf;
    const vk_subbuffer d_buf = ggml_vk_tensor_subbuffer(ctx, dst, true);

    const bool aligned = x->ne[0] % 4 == 0 && ggml_vk_qvac_is_aligned(ctx, x, x_buf) && ggml_vk_qvac_is_aligned(ctx, dst, d_buf) &&
                         (!w || ggml_vk_qvac_is_aligned(ctx, w, w_buf));

    vk_pipeline pipeline = ctx->device->qvac->rms_norm[ggml_vk_qvac_row_shape_of(ctx->device, x->ne[0])][aligned][mul != nullptr];
    ggml_pipeline_request_descriptor_sets(ctx, pipeline, 1);

    const forward_push_constants pc = {
        (uint32_t) x->ne[0], (uint32_t) ggml_nrows(x),
        ggml_vk_qvac_offset(ctx, x), w ? ggml_vk_qvac_offset(ctx, w) : 0, ggml_vk_qvac_offset(ctx, dst),
        ggml_get_op_params_f32(norm, 0),
    };
    ggml_vk_dispatch_pipeline(ctx, subctx, pipeline, { x_buf, w_buf, d_buf }, pc, ggml_vk_qvac_grid_of_rows(ctx->device, pc.N, pc.T));
}

bool ggml_vk_qvac_rms_norm_mul_back_supported(const vk_device & device, const ggml_tensor * op) {
    return ggml_vk_qvac_rows_fit(device, op);
}

void ggml_vk_qvac_rms_norm_mul_back(ggml_backend_vk_context * ctx, vk_context & subctx, ggml_tensor * dst) {
    const ggml_tensor * dy  = dst->src[0]; // [n, T]
    const ggml_tensor * x   = dst->src[1]; // [n, T]
    const ggml_tensor * w   = dst->src[2]; // [n]
    const ggml_tensor * add = dst->src[3]; // [n, T] or none

    const vk_subbuffer dy_buf  = ggml_vk_tensor_subbuffer(ctx, dy, true);
    const vk_subbuffer x_buf   = ggml_vk_tensor_subbuffer(ctx, x, true);
    const vk_subbuffer w_buf   = ggml_vk_tensor_subbuffer(ctx, w, true);
    const vk_subbuffer add_buf = add ? ggml_vk_tensor_subbuffer(ctx, add, true) : dy_buf;
    const vk_subbuffer dx_buf  = ggml_vk_tensor_subbuffer(ctx, dst, true);

    const bool aligned = dy->ne[0] % 4 == 0 && ggml_vk_qvac_is_aligned(ctx, dy, dy_buf) && ggml_vk_qvac_is_aligned(ctx, x, x_buf) &&
                         ggml_vk_qvac_is_aligned(ctx, w, w_buf) && (!add || ggml_vk_qvac_is_aligned(ctx, add, add_buf)) &&
                         ggml_vk_qvac_is_aligned(ctx, dst, dx_buf);

    vk_pipeline pipeline = ctx->device->qvac->rms_norm_mul_back[ggml_vk_qvac_row_shape_of(ctx->device, dy->ne[0])][aligned];
    ggml_pipeline_request_descriptor_sets(ctx, pipeline, 1);

    const back_push_constants pc = {
        (uint32_t) dy->ne[0], (uint32_t) ggml_nrows(dy),
        ggml_vk_qvac_offset(ctx, dy), ggml_vk_qvac_offset(ctx, x), ggml_vk_qvac_offset(ctx, w),
        add ? ggml_vk_qvac_offset(ctx, add) : 0, ggml_vk_qvac_offset(ctx, dst),
        add ? 1u : 0u,
        ggml_train_op_param(dst),
    };
    ggml_vk_dispatch_pipeline(ctx, subctx, pipeline, { dy_buf, x_buf, w_buf, add_buf, dx_buf }, pc, ggml_vk_qvac_grid_of_rows(ctx->device, pc.N, pc.T));
}
