// TQ_QUANTIZE (ggml-train.h; qvac_tq_quantize.comp), and the ops that quantize what they make while they still have it: norms,
// the activation's gradients (qvac_tq_*.comp). Which nodes those are, fusion_quantize.cpp says.

#include "ops.h"

#include "ggml-train.h"
#include "ggml-vulkan-shaders.hpp"

namespace {

struct quantize_push_constants {
    uint32_t N, T, limbs;
    uint32_t ne1, ne2;
    uint32_t nb1, nb2, nb3;
    uint32_t x_offset, q_offset;
};

struct norm_push_constants {
    uint32_t N, T;
    uint32_t x_offset, up_offset, w_offset, act_offset, y_offset, q_offset;
    uint32_t has_act, has_y, limbs;
    float    eps;
};

struct norm_back_push_constants {
    uint32_t N, T;
    uint32_t dy_offset, x_offset, w_offset, add_offset, dx_offset, q_offset;
    uint32_t has_add, limbs;
    float    eps;
};

struct swiglu_back_push_constants {
    uint32_t N, T;
    uint32_t dy_offset, gate_offset, up_offset, w_offset, d_offset, q_gate_offset, q_up_offset;
    uint32_t limbs;
    float    eps;
};

vk_subbuffer buffer_of(ggml_backend_vk_context * ctx, const ggml_tensor * t) {
    return ggml_vk_tensor_subbuffer(ctx, t, true);
}

// In fours of values.
uint32_t offset_of(const ggml_backend_vk_context * ctx, const ggml_tensor * t) {
    return ggml_vk_qvac_offset(ctx, t) / 4;
}

} // namespace

void ggml_vk_qvac_load_quantized_rows(vk_device & device, const vk_qvac_create_pipeline & create) {
    struct variant {
        const char * name;
        size_t       size;
        const void * data;
    };
    const struct {
        uint32_t keep;
        variant  quantize, norm, norm_back, swiglu_back;
    } variants[] = {
#define VARIANT(name) { #name, name##_len, name##_data }
#define VARIANTS(keep) \
    { keep, VARIANT(qvac_tq_quantize_##keep), VARIANT(qvac_tq_rms_norm_##keep), VARIANT(qvac_tq_rms_norm_mul_back_##keep), VARIANT(qvac_tq_swiglu_back_##keep) }
        VARIANTS(2), VARIANTS(3), VARIANTS(6), VARIANTS(7), VARIANTS(14),
#undef VARIANTS
#undef VARIANT
    };
    vk_qvac_row_pipelines & rows = device->qvac->rows;
    for (uint32_t shape = 0; shape < VK_QVAC_ROW_SHAPE_COUNT; ++shape) {
        const uint32_t lanes = VK_QVAC_ROW_SHAPES[shape].lanes;
        for (const auto & v : variants) {
            if (v.keep != VK_QVAC_ROW_SHAPES[shape].keep) {
                continue;
            }
            const auto make = [&](vk_pipeline & pipeline, const variant & of, uint32_t n_buffers, size_t pc_size, std::vector<uint32_t> constants) {
                create(pipeline, of.name, of.size, of.data, n_buffers, (uint32_t) pc_size, { 1, 1, 1 }, constants, 0);
            };
            make(rows.quantize[shape], v.quantize, 2, sizeof(quantize_push_constants), { lanes, 1 });
            make(rows.norm[shape][0], v.norm, 6, sizeof(norm_push_constants), { lanes, 1, 0 });
            make(rows.norm[shape][1], v.norm, 6, sizeof(norm_push_constants), { lanes, 1, 1 });
            make(rows.norm_back[shape], v.norm_back, 6, sizeof(norm_back_push_constants), { lanes, 1 });
            make(rows.swiglu_back[shape], v.swiglu_back, 7, sizeof(swiglu_back_push_constants), { lanes, 1 });
        }
    }
}

int64_t ggml_vk_qvac_limbs_of(const ggml_tensor * q) {
    return (q->ne[0] - GGML_TQ_TOKEN_TAIL) / q->src[0]->ne[0];
}

uint32_t ggml_vk_qvac_quantized_offset(const ggml_backend_vk_context * ctx, const ggml_tensor * q) {
    return (uint32_t) (get_misalign_bytes(ctx, q) / sizeof(uint32_t));
}

bool ggml_vk_qvac_quantize_supported(const vk_device & device, const ggml_tensor * x, int64_t limbs) {
    const uint64_t most = device->properties.limits.maxStorageBufferRange;
    return ggml_vk_qvac_is_float_rows(x) && ggml_nbytes(x) <= most && ggml_nrows(x) * (limbs * x->ne[0] + GGML_TQ_TOKEN_TAIL) <= most &&
           ggml_vk_qvac_rows_fit(device, x);
}

void ggml_vk_qvac_quantize(
        ggml_backend_vk_context * ctx, vk_context & subctx, const ggml_tensor * x, int64_t limbs, const vk_subbuffer & q, size_t q_offset) {
    vk_pipeline pipeline = ctx->device->qvac->rows.quantize[ggml_vk_qvac_row_shape_of(ctx->device, x->ne[0])];
    ggml_pipeline_request_descriptor_sets(ctx, pipeline, 1);

    const quantize_push_constants pc = {
        (uint32_t) x->ne[0], (uint32_t) ggml_nrows(x), (uint32_t) limbs,
        (uint32_t) x->ne[1], (uint32_t) x->ne[2],
        ggml_vk_qvac_stride(x, 1), ggml_vk_qvac_stride(x, 2), ggml_vk_qvac_stride(x, 3),
        ggml_vk_qvac_offset(ctx, x), (uint32_t) (q_offset / sizeof(uint32_t)),
    };
    ggml_vk_dispatch_pipeline(ctx, subctx, pipeline, { buffer_of(ctx, x), q }, pc, ggml_vk_qvac_grid_of_rows(ctx->device, pc.N, pc.T));
}

void ggml_vk_qvac_norm_quantize(ggml_backend_vk_context * ctx, vk_context & subctx, const vk_qvac_norm_job & job) {
    vk_pipeline pipeline = ctx->device->qvac->rows.norm[ggml_vk_qvac_row_shape_of(ctx->device, job.x->ne[0])][job.up != nullptr];
    ggml_pipeline_request_descriptor_sets(ctx, pipeline, 1);

    // A descriptor has to be there.
    const ggml_tensor * up  = job.up ? job.up : job.x;
    const ggml_tensor * act = job.act ? job.act : job.y ? job.y : job.q;
    const ggml_tensor * y   = job.y ? job.y : act;
    const ggml_tensor * q   = job.q ? job.q : y;
    const norm_push_constants pc = {
        (uint32_t) job.x->ne[0], (uint32_t) ggml_nrows(job.x),
        offset_of(ctx, job.x), offset_of(ctx, up), offset_of(ctx, job.w),
        job.act ? offset_of(ctx, act) : 0, job.y ? offset_of(ctx, y) : 0, job.q ? ggml_vk_qvac_quantized_offset(ctx, q) : 0,
        job.act != nullptr, job.y != nullptr, job.q ? (uint32_t) ggml_vk_qvac_limbs_of(q) : 0,
        job.eps,
    };
    ggml_vk_dispatch_pipeline(ctx, subctx, pipeline,
        { buffer_of(ctx, job.x), buffer_of(ctx, up), buffer_of(ctx, job.w), buffer_of(ctx, act), buffer_of(ctx, y), buffer_of(ctx, q) },
        pc, ggml_vk_qvac_grid_of_rows(ctx->device, pc.N, pc.T));
}

void ggml_vk_qvac_norm_back_quantize(ggml_backend_vk_context * ctx, vk_context & subctx, const vk_qvac_norm_back_job & job) {
    const ggml_tensor * dy  = job.dx->src[0]; // [n, T]
    const ggml_tensor * x   = job.dx->src[1]; // [n, T]
    const ggml_tensor * w   = job.dx->src[2]; // [n]
    const ggml_tensor * add = job.dx->src[3]; // [n, T] or none

    vk_pipeline pipeline = ctx->device->qvac->rows.norm_back[ggml_vk_qvac_row_shape_of(ctx->device, dy->ne[0])];
    ggml_pipeline_request_descriptor_sets(ctx, pipeline, 1);

    const norm_back_push_constants pc = {
        (uint32_t) dy->ne[0], (uint32_t) dy->ne[1],
        offset_of(ctx, dy), offset_of(ctx, x), offset_of(ctx, w), add ? offset_of(ctx, add) : 0, offset_of(ctx, job.dx),
        ggml_vk_qvac_quantized_offset(ctx, job.q),
        add != nullptr, (uint32_t) ggml_vk_qvac_limbs_of(job.q),
        ggml_train_op_param(job.dx),
    };
    ggml_vk_dispatch_pipeline(ctx, subctx, pipeline,
        { buffer_of(ctx, dy), buffer_of(ctx, x), buffer_of(ctx, w), buffer_of(ctx, add ? add : dy), buffer_of(ctx, job.dx), buffer_of(ctx, job.q) },
        pc, ggml_vk_qvac_grid_of_rows(ctx->device, pc.N, pc.T));
}

void ggml_vk_qvac_swiglu_back_quantize(ggml_backend_vk_context * ctx, vk_context & subctx, const vk_qvac_swiglu_back_job & job) {
    const ggml_tensor * dy   = job.dx->src[0]; // [n, T]
    const ggml_tensor * w    = job.dx->src[2]; // [n]
    const ggml_tensor * gate = job.d->src[1];  // [n, T]
    const ggml_tensor * up   = job.d->src[2];  // [n, T]

    vk_pipeline pipeline = ctx->device->qvac->rows.swiglu_back[ggml_vk_qvac_row_shape_of(ctx->device, dy->ne[0])];
    ggml_pipeline_request_descriptor_sets(ctx, pipeline, 1);

    const swiglu_back_push_constants pc = {
        (uint32_t) dy->ne[0], (uint32_t) dy->ne[1],
        offset_of(ctx, dy), offset_of(ctx, gate), offset_of(ctx, up), offset_of(ctx, w), offset_of(ctx, job.d),
        ggml_vk_qvac_quantized_offset(ctx, job.q_gate), ggml_vk_qvac_quantized_offset(ctx, job.q_up),
        (uint32_t) ggml_vk_qvac_limbs_of(job.q_gate),
        ggml_train_op_param(job.dx),
    };
    ggml_vk_dispatch_pipeline(ctx, subctx, pipeline,
        { buffer_of(ctx, dy), buffer_of(ctx, gate), buffer_of(ctx, up), buffer_of(ctx, w), buffer_of(ctx, job.d),
          buffer_of(ctx, job.q_gate), buffer_of(ctx, job.q_up) },
        pc, ggml_vk_qvac_grid_of_rows(ctx->device, pc.N, pc.T));
}
