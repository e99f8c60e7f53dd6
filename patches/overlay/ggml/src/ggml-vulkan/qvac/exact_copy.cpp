// Conversions in exact arithmetic (exact.h): CPY, DUP and CONT between f16 and f32, and SET_ROWS of f32 to either (qvac_exact_copy.comp).

#include "exact.h"

#include "exact_grid.h"
#include "ggml-vulkan-shaders.hpp"

namespace {

struct copy_push_constants {
    uint32_t N;
    uint32_t x_ne[3];
    uint32_t x_nb[4];
    uint32_t y_ne[3];
    uint32_t y_nb[4];
    uint32_t x_offset, y_offset;
    uint32_t ids_offset;
    uint32_t ids_ne1, ids_ne2;
    uint32_t ids_nb[3];
};

constexpr uint64_t BLOCK_SIZE = 256;

bool is_float(const ggml_tensor * t) {
    return t->type == GGML_TYPE_F32 || t->type == GGML_TYPE_F16;
}

bool has_whole_strides(const ggml_tensor * t) {
    const size_t size = ggml_type_size(t->type);
    return t->nb[0] % size == 0 && t->nb[1] % size == 0 && t->nb[2] % size == 0 && t->nb[3] % size == 0;
}

bool supported(const vk_device & device, const ggml_tensor * op) {
    return has_whole_strides(op) && has_whole_strides(op->src[0]) && ggml_vk_qvac_exact_tensors_fit(device, op) &&
           ggml_vk_qvac_exact_grid_fits(device, CEIL_DIV((uint64_t) ggml_nelements(op->src[0]), BLOCK_SIZE));
}

void record(ggml_backend_vk_context * ctx, vk_context & subctx, ggml_tensor * dst) {
    const ggml_tensor * x   = dst->src[0];
    const ggml_tensor * ids = dst->op == GGML_OP_SET_ROWS ? dst->src[1] : nullptr;

    const vk_qvac_exact_elementwise & e = ctx->device->qvac->exact_elementwise;
    const bool  to_f16   = dst->type == GGML_TYPE_F16;
    vk_pipeline pipeline = ids ? e.set_rows[to_f16] : e.copy[x->type == GGML_TYPE_F16][to_f16];
    ggml_pipeline_request_descriptor_sets(ctx, pipeline, 1);

    copy_push_constants pc = {};
    pc.N = (uint32_t) ggml_nelements(x);
    for (int dim = 0; dim < GGML_MAX_DIMS; ++dim) {
        pc.x_nb[dim] = ggml_vk_qvac_stride(x, dim);
        pc.y_nb[dim] = ggml_vk_qvac_stride(dst, dim);
        if (dim < 3) {
            pc.x_ne[dim] = (uint32_t) x->ne[dim];
            pc.y_ne[dim] = (uint32_t) dst->ne[dim];
        }
    }
    pc.x_offset = ggml_vk_qvac_offset(ctx, x);
    pc.y_offset = ggml_vk_qvac_offset(ctx, dst);
    if (ids) {
        // Of a 64-bit index its low word: there are fewer rows than that.
        pc.ids_offset = get_misalign_bytes(ctx, ids) / (uint32_t) sizeof(uint32_t);
        pc.ids_ne1    = (uint32_t) ids->ne[1];
        pc.ids_ne2    = (uint32_t) ids->ne[2];
        for (int dim = 0; dim < 3; ++dim) {
            pc.ids_nb[dim] = (uint32_t) (ids->nb[dim] / sizeof(uint32_t));
        }
    }
    const vk_subbuffer x_buf = ggml_vk_tensor_subbuffer(ctx, x, true);
    ggml_vk_dispatch_pipeline(ctx, subctx, pipeline,
        { x_buf, ids ? ggml_vk_tensor_subbuffer(ctx, ids, true) : x_buf, ggml_vk_tensor_subbuffer(ctx, dst, true) }, pc,
        ggml_vk_qvac_exact_grid(CEIL_DIV(pc.N, BLOCK_SIZE)));
}

const vk_qvac_exact_kernel COPY = { supported, record };

} // namespace

const vk_qvac_exact_kernel * ggml_vk_qvac_exact_copy(const ggml_tensor * op) {
    if (!is_float(op) || !is_float(op->src[0])) {
        return nullptr;
    }
    if (op->op == GGML_OP_SET_ROWS) {
        return op->src[0]->type == GGML_TYPE_F32 ? &COPY : nullptr;
    }
    return op->type != op->src[0]->type ? &COPY : nullptr;
}

void ggml_vk_qvac_load_exact_copy(vk_device & device, const vk_qvac_create_pipeline & create) {
    vk_qvac_exact_elementwise & e = device->qvac->exact_elementwise;
    for (const uint32_t to_f16 : { 0u, 1u }) {
        const auto make = [&](vk_pipeline & pipeline, uint32_t from_f16, uint32_t set_rows) {
            create(pipeline, "qvac_exact_copy", qvac_exact_copy_len, qvac_exact_copy_data, 3, sizeof(copy_push_constants), { 1, 1, 1 },
                   { from_f16, to_f16, set_rows }, 0);
        };
        make(e.copy[1 - to_f16][to_f16], 1 - to_f16, 0);
        make(e.set_rows[to_f16], 0, 1);
    }
}
