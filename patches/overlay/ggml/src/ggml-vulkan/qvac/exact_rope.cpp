// Rotary positions in exact arithmetic (exact.h; qvac_exact_rope.comp).

#include "exact.h"

#include "exact_grid.h"
#include "ggml-vulkan-shaders.hpp"
#include "qvac/exact-ops.h"

namespace {

struct rope_push_constants {
    uint32_t D, H, T;
    uint32_t ne2;
    uint32_t first, pairs;
    uint32_t tokens;
    uint32_t x_nb1, x_nb2, x_nb3, x_offset;
    uint32_t y_nb1, y_nb2, y_nb3, y_offset;
    uint32_t pos_offset, ff_offset;
    uint32_t has_ff;
    float    magnitude, sign;
    uint32_t theta_scale[2], freq_scale[2], ext_factor[2];
    int32_t  low, high;
};

// The shader's MOST_PAIRS and TABLE.
constexpr int64_t MOST_PAIRS = 512;
constexpr int64_t TABLE      = 1024;

// Where the op keeps its parameters (ggml_rope_impl).
enum { N_DIMS = 1, MODE = 2, N_OFFS = 15 };

int64_t pairs_of(const ggml_tensor * op) {
    return ggml_get_op_params_i32(op, N_DIMS) / 2;
}

int64_t tokens_of(const ggml_tensor * op) {
    return op->ne[2] * op->ne[3];
}

// So many that fractions of a turn are shared and a device still has enough workgroups.
int64_t tokens_of_workgroup(const ggml_tensor * op) {
    return std::max<int64_t>(1, std::min({ tokens_of(op) / 1024, TABLE / pairs_of(op), (int64_t) 8 }));
}

bool supported(const vk_device & device, const ggml_tensor * op) {
    ggml_exact_rope rope;
    return ggml_exact_rope_of(op, &rope) && pairs_of(op) <= MOST_PAIRS && ggml_vk_qvac_exact_is_float(op, true) &&
           ggml_vk_qvac_exact_is_float(op->src[0], true) && (!op->src[2] || ggml_is_contiguous(op->src[2])) &&
           ggml_is_contiguous(op->src[1]) && ggml_vk_qvac_exact_tensors_fit(device, op) &&
           ggml_vk_qvac_exact_grid_fits(device, (uint64_t) tokens_of(op));
}

void record(ggml_backend_vk_context * ctx, vk_context & subctx, ggml_tensor * dst) {
    const ggml_tensor * x   = dst->src[0]; // [D, H, T, ..]
    const ggml_tensor * pos = dst->src[1]; // [T]
    const ggml_tensor * ff  = dst->src[2]; // [pairs] or none

    ggml_exact_rope rope;
    GGML_ASSERT(ggml_exact_rope_of(dst, &rope));
    vk_pipeline pipeline = ctx->device->qvac->exact_elementwise.rope[ggml_get_op_params_i32(dst, MODE) == GGML_ROPE_TYPE_NEOX];
    ggml_pipeline_request_descriptor_sets(ctx, pipeline, 1);

    const uint64_t tokens = (uint64_t) tokens_of_workgroup(dst);
    const rope_push_constants pc = {
        (uint32_t) x->ne[0], (uint32_t) x->ne[1], (uint32_t) tokens_of(dst), (uint32_t) x->ne[2],
        (uint32_t) ggml_get_op_params_i32(dst, N_OFFS), (uint32_t) pairs_of(dst), (uint32_t) tokens,
        ggml_vk_qvac_stride(x, 1), ggml_vk_qvac_stride(x, 2), ggml_vk_qvac_stride(x, 3), ggml_vk_qvac_offset(ctx, x),
        ggml_vk_qvac_stride(dst, 1), ggml_vk_qvac_stride(dst, 2), ggml_vk_qvac_stride(dst, 3), ggml_vk_qvac_offset(ctx, dst),
        ggml_vk_qvac_offset(ctx, pos), ff ? ggml_vk_qvac_offset(ctx, ff) : 0, ff ? 1u : 0u,
        rope.magnitude, dst->op == GGML_OP_ROPE_BACK ? -1.0f : 1.0f,
        { rope.theta_scale[0], rope.theta_scale[1] }, { rope.freq_scale[0], rope.freq_scale[1] }, { rope.ext_factor[0], rope.ext_factor[1] },
        rope.low, rope.high,
    };
    const vk_subbuffer x_buf = ggml_vk_tensor_subbuffer(ctx, x, true);
    ggml_vk_dispatch_pipeline(ctx, subctx, pipeline,
        { x_buf, ggml_vk_tensor_subbuffer(ctx, pos, true), ff ? ggml_vk_tensor_subbuffer(ctx, ff, true) : x_buf,
          ggml_vk_tensor_subbuffer(ctx, dst, true) },
        pc, ggml_vk_qvac_exact_grid(CEIL_DIV((uint64_t) pc.T, tokens)));
}

const vk_qvac_exact_kernel ROPE = { supported, record };

} // namespace

const vk_qvac_exact_kernel * ggml_vk_qvac_exact_rope(const ggml_tensor * op) {
    GGML_UNUSED(op);
    return &ROPE;
}

void ggml_vk_qvac_load_exact_rope(vk_device & device, const vk_qvac_create_pipeline & create) {
    for (const uint32_t neox : { 0u, 1u }) {
        create(device->qvac->exact_elementwise.rope[neox], "qvac_exact_rope", qvac_exact_rope_len, qvac_exact_rope_data, 4,
               sizeof(rope_push_constants), { 1, 1, 1 }, { neox }, 0);
    }
}
