// Value by value in exact arithmetic (exact.h): arithmetic, functions and gated units (qvac_exact_values.comp), their gradients, AdamW.

#include "exact.h"

#include "exact_grid.h"
#include "ggml-train.h"
#include "ggml-vulkan-shaders.hpp"
#include "qvac/exact-ops.h"

namespace {

struct value_push_constants {
    uint32_t N;
    uint32_t ne0, ne1, ne2;
    uint32_t b_ne[4];
    uint32_t a_nb[4];
    uint32_t b_nb[4];
    uint32_t y_nb[4];
    uint32_t a_offset, b_offset, y_offset;
    float    factor, offset;
};

struct glu_back_push_constants {
    uint32_t N;
    uint32_t dy_offset, gate_offset, up_offset, d_offset;
};

struct adamw_push_constants {
    uint32_t N;
    uint32_t w_offset, g_offset, m_offset, v_offset, step_offset;
};

constexpr uint64_t BLOCK_SIZE = 256;

// The shader's EACH.
constexpr uint64_t EACH = 2;

vk_subbuffer buffer_of(ggml_backend_vk_context * ctx, const ggml_tensor * t) {
    return ggml_vk_tensor_subbuffer(ctx, t, true);
}

// Contiguous, of whole fours of values, at 16 bytes.
bool in_fours(const ggml_backend_vk_context * ctx, const ggml_tensor * t) {
    return ggml_is_contiguous(t) && ggml_nelements(t) % 4 == 0 && ggml_vk_qvac_is_aligned(ctx, t, ggml_vk_tensor_subbuffer(ctx, t, true));
}

// Whether b is the first dimensions of a, and 1 in all others.
bool is_period(const ggml_tensor * b, const ggml_tensor * a) {
    int dim = 0;
    while (dim < GGML_MAX_DIMS && b->ne[dim] == a->ne[dim]) {
        ++dim;
    }
    while (dim < GGML_MAX_DIMS && b->ne[dim] == 1) {
        ++dim;
    }
    return dim == GGML_MAX_DIMS;
}

vk_qvac_exact_layout layout_of(const ggml_backend_vk_context * ctx, const ggml_tensor * a, const ggml_tensor * b, const ggml_tensor * y) {
    if (!in_fours(ctx, a) || !in_fours(ctx, y) || !ggml_are_same_shape(a, y)) {
        return VK_QVAC_EXACT_ANY;
    }
    if (!b) {
        return VK_QVAC_EXACT_SAME;
    }
    if (ggml_nelements(b) == 1) {
        return VK_QVAC_EXACT_ONE;
    }
    if (!in_fours(ctx, b) || !is_period(b, a)) {
        return VK_QVAC_EXACT_ANY;
    }
    return ggml_are_same_shape(a, b) ? VK_QVAC_EXACT_SAME : VK_QVAC_EXACT_REPEATED;
}

bool values_supported(const vk_device & device, const ggml_tensor * op) {
    const ggml_tensor * a = op->src[0];
    const ggml_tensor * b = op->src[1];
    return ggml_vk_qvac_exact_is_float(op, false) && ggml_vk_qvac_exact_is_float(a, false) && (!b || ggml_vk_qvac_exact_is_float(b, false)) &&
           ggml_vk_qvac_exact_tensors_fit(device, op) &&
           ggml_vk_qvac_exact_grid_fits(device, CEIL_DIV((uint64_t) ggml_nelements(op), BLOCK_SIZE));
}

void values(ggml_backend_vk_context * ctx, vk_context & subctx, ggml_tensor * dst) {
    uint32_t function;
    float    factor, offset;
    GGML_ASSERT(ggml_exact_value_op(dst, &function, &factor, &offset));
    const bool          binary = function < qvac::EXACT_SCALE;
    const bool          halves = dst->op == GGML_OP_GLU && !dst->src[1]; // of each row of a
    const ggml_tensor * a      = dst->src[0];
    const ggml_tensor * b      = !binary ? nullptr : halves ? a : dst->src[1];

    const vk_qvac_exact_layout layout = halves ? VK_QVAC_EXACT_ANY : layout_of(ctx, a, b, dst);
    vk_pipeline                pipeline = ctx->device->qvac->exact_elementwise.values[function][layout];
    ggml_pipeline_request_descriptor_sets(ctx, pipeline, 1);

    value_push_constants pc = {};
    pc.N   = (uint32_t) ggml_nelements(dst);
    pc.ne0 = (uint32_t) dst->ne[0];
    pc.ne1 = (uint32_t) dst->ne[1];
    pc.ne2 = (uint32_t) dst->ne[2];
    for (int dim = 0; dim < GGML_MAX_DIMS; ++dim) {
        pc.b_ne[dim] = !b ? 1 : halves ? (uint32_t) dst->ne[dim] : (uint32_t) b->ne[dim];
        pc.a_nb[dim] = ggml_vk_qvac_stride(a, dim);
        pc.b_nb[dim] = b ? ggml_vk_qvac_stride(b, dim) : 0;
        pc.y_nb[dim] = ggml_vk_qvac_stride(dst, dim);
    }
    pc.a_offset = ggml_vk_qvac_offset(ctx, a);
    pc.b_offset = b ? ggml_vk_qvac_offset(ctx, b) : 0;
    pc.y_offset = ggml_vk_qvac_offset(ctx, dst);
    pc.factor   = factor;
    pc.offset   = offset;
    if (halves) {
        const bool swapped = ggml_get_op_params_i32(dst, 1) != 0;
        (swapped ? pc.a_offset : pc.b_offset) += (uint32_t) dst->ne[0] * ggml_vk_qvac_stride(a, 0);
    } else if (layout == VK_QVAC_EXACT_REPEATED) {
        pc.b_ne[0] = (uint32_t) ggml_nelements(b);
    }
    const vk_subbuffer a_buf  = buffer_of(ctx, a);
    const uint64_t     groups = layout == VK_QVAC_EXACT_ANY ? CEIL_DIV(pc.N, BLOCK_SIZE) : CEIL_DIV(pc.N / 4, EACH * BLOCK_SIZE);
    ggml_vk_dispatch_pipeline(ctx, subctx, pipeline, { a_buf, b ? buffer_of(ctx, b) : a_buf, buffer_of(ctx, dst) }, pc, ggml_vk_qvac_exact_grid(groups));
}

bool glu_back_supported(const vk_device & device, const ggml_tensor * op) {
    return ggml_vk_qvac_exact_tensors_fit(device, op) &&
           ggml_vk_qvac_exact_grid_fits(device, CEIL_DIV((uint64_t) ggml_nelements(op->src[0]), BLOCK_SIZE));
}

void glu_back(ggml_backend_vk_context * ctx, vk_context & subctx, ggml_tensor * dst) {
    const ggml_tensor * dy   = dst->src[0]; // [n, T]
    const ggml_tensor * gate = dst->src[1]; // [n, T]
    const ggml_tensor * up   = dst->src[2]; // [n, T]

    const bool  relu_sqr = ggml_get_train_op(dst) == GGML_TRAIN_OP_RELU_SQR_GLU_BACK;
    const bool  aligned  = in_fours(ctx, dy) && in_fours(ctx, gate) && in_fours(ctx, up) && in_fours(ctx, dst);
    vk_pipeline pipeline = ctx->device->qvac->exact_elementwise.glu_back[relu_sqr][aligned];
    ggml_pipeline_request_descriptor_sets(ctx, pipeline, 1);

    const glu_back_push_constants pc = {
        (uint32_t) ggml_nelements(dy),
        ggml_vk_qvac_offset(ctx, dy), ggml_vk_qvac_offset(ctx, gate), ggml_vk_qvac_offset(ctx, up), ggml_vk_qvac_offset(ctx, dst),
    };
    ggml_vk_dispatch_pipeline(ctx, subctx, pipeline,
        { buffer_of(ctx, dy), buffer_of(ctx, gate), buffer_of(ctx, up), buffer_of(ctx, dst) }, pc,
        ggml_vk_qvac_exact_grid(CEIL_DIV(aligned ? pc.N / 4 : pc.N, BLOCK_SIZE)));
}

bool adamw_supported(const vk_device & device, const ggml_tensor * op) {
    for (int i = 0; i < 5; ++i) {
        if (op->src[i]->type != GGML_TYPE_F32 || !ggml_is_contiguous(op->src[i])) {
            return false;
        }
    }
    return glu_back_supported(device, op);
}

void adamw(ggml_backend_vk_context * ctx, vk_context & subctx, ggml_tensor * dst) {
    const ggml_tensor * w    = dst->src[0];
    const ggml_tensor * g    = dst->src[1];
    const ggml_tensor * m    = dst->src[2];
    const ggml_tensor * v    = dst->src[3];
    const ggml_tensor * step = dst->src[4]; // [7]

    vk_pipeline pipeline = ctx->device->qvac->exact_elementwise.adamw;
    ggml_pipeline_request_descriptor_sets(ctx, pipeline, 1);

    const adamw_push_constants pc = {
        (uint32_t) ggml_nelements(w), ggml_vk_qvac_offset(ctx, w), ggml_vk_qvac_offset(ctx, g), ggml_vk_qvac_offset(ctx, m),
        ggml_vk_qvac_offset(ctx, v), ggml_vk_qvac_offset(ctx, step),
    };
    ggml_vk_dispatch_pipeline(ctx, subctx, pipeline,
        { buffer_of(ctx, w), buffer_of(ctx, g), buffer_of(ctx, m), buffer_of(ctx, v), buffer_of(ctx, step) }, pc,
        ggml_vk_qvac_exact_grid(CEIL_DIV(pc.N, BLOCK_SIZE)));
}

const vk_qvac_exact_kernel VALUES   = { values_supported, values };
const vk_qvac_exact_kernel GLU_BACK = { glu_back_supported, glu_back };
const vk_qvac_exact_kernel ADAMW    = { adamw_supported, adamw };

} // namespace

const vk_qvac_exact_kernel * ggml_vk_qvac_exact_elementwise(const ggml_tensor * op) {
    switch (op->op) {
        case GGML_OP_DUP:
        case GGML_OP_CPY:
        case GGML_OP_CONT:
        case GGML_OP_SET_ROWS:
            return ggml_vk_qvac_exact_copy(op);
        case GGML_OP_ROPE:
        case GGML_OP_ROPE_BACK:
            return ggml_vk_qvac_exact_rope(op);
        case GGML_OP_OPT_STEP_ADAMW:
            return &ADAMW;
        case GGML_OP_CUSTOM:
            switch (ggml_get_train_op(op)) {
                case GGML_TRAIN_OP_SWIGLU_BACK:
                case GGML_TRAIN_OP_RELU_SQR_GLU_BACK:
                    return &GLU_BACK;
                default:
                    return nullptr;
            }
        default: {
            uint32_t function;
            float    factor, offset;
            return ggml_exact_value_op(op, &function, &factor, &offset) ? &VALUES : nullptr;
        }
    }
}

void ggml_vk_qvac_load_exact_elementwise(vk_device & device, const vk_qvac_create_pipeline & create) {
    vk_qvac_exact_elementwise & e = device->qvac->exact_elementwise;
    for (uint32_t function = 0; function < qvac::EXACT_COUNT; ++function) {
        const uint32_t layouts = function < qvac::EXACT_SCALE ? VK_QVAC_EXACT_LAYOUT_COUNT : VK_QVAC_EXACT_SAME + 1;
        for (uint32_t layout = 0; layout < layouts; ++layout) {
            create(e.values[function][layout], "qvac_exact_values", qvac_exact_values_len, qvac_exact_values_data, 3,
                   sizeof(value_push_constants), { 1, 1, 1 }, { function, layout }, 0);
        }
    }
    for (const uint32_t relu_sqr : { 0u, 1u }) {
        for (const uint32_t aligned : { 0u, 1u }) {
            create(e.glu_back[relu_sqr][aligned], "qvac_exact_glu_back", qvac_exact_glu_back_len, qvac_exact_glu_back_data, 4,
                   sizeof(glu_back_push_constants), { 1, 1, 1 }, { aligned, relu_sqr }, 0);
        }
    }
    create(e.adamw, "qvac_exact_adamw", qvac_exact_adamw_len, qvac_exact_adamw_data, 5, sizeof(adamw_push_constants), { 1, 1, 1 }, {}, 0);
    ggml_vk_qvac_load_exact_copy(device, create);
    ggml_vk_qvac_load_exact_rope(device, create);
}
