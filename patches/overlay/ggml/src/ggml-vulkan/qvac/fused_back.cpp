// RMS_NORM_MUL_BACK and SWIGLU_BACK (see ggml-train.h): backward rules that upstream makes of several ops, as one kernel
// each (qvac_rms_norm_mul_back.comp, qvac_swiglu_back.comp).

#include "ops.h"

#include "ggml-train.h"
#include "ggml-vulkan-shaders.hpp"

namespace {

struct rms_norm_push_constants {
    uint32_t N, T;
    uint32_t dy_offset, x_offset, w_offset, add_offset, dx_offset;
    uint32_t has_add;
    float    eps;
};

struct swiglu_push_constants {
    uint32_t N;
    uint32_t dy_offset, gate_offset, up_offset, d_offset;
};

constexpr uint32_t BLOCK_SIZE = 256;

// The shaders' ROWS_PER_GRID_LINE and BLOCKS_PER_GRID_LINE.
constexpr uint32_t GRID_LINE = 512;

// Values of a row that each invocation keeps in registers: all of them up to rows of 2048, or of 6144.
constexpr uint32_t KEEP_SHORT = 8;
constexpr uint32_t KEEP_LONG  = 24;

std::array<uint32_t, 3> grid_of(uint64_t n) {
    return { (uint32_t) std::min<uint64_t>(n, GRID_LINE), (uint32_t) CEIL_DIV(n, (uint64_t) GRID_LINE), 1 };
}

} // namespace

void ggml_vk_qvac_load_fused_back(vk_device & device, const vk_qvac_create_pipeline & create) {
    for (const bool is_long : { false, true }) {
        create(device->qvac->rms_norm_mul_back[is_long], "qvac_rms_norm_mul_back", qvac_rms_norm_mul_back_len, qvac_rms_norm_mul_back_data, 5,
               sizeof(rms_norm_push_constants), { 1, 1, 1 }, { is_long ? KEEP_LONG : KEEP_SHORT }, 0);
    }
    for (const bool aligned : { false, true }) {
        create(device->qvac->swiglu_back[aligned], "qvac_swiglu_back", qvac_swiglu_back_len, qvac_swiglu_back_data, 4,
               sizeof(swiglu_push_constants), { 1, 1, 1 }, { aligned ? 1u : 0u }, 0);
    }
}

bool ggml_vk_qvac_fused_back_supported(const vk_device & device, const ggml_tensor * op) {
    // The larger of both ops' grids, of elements one at a time.
    const bool     is_swiglu = ggml_get_train_op(op) == GGML_TRAIN_OP_SWIGLU_BACK;
    const uint64_t n         = is_swiglu ? CEIL_DIV((uint64_t) ggml_nelements(op), (uint64_t) BLOCK_SIZE) : (uint64_t) op->ne[1];
    return (uint64_t) ggml_nelements(op) < UINT32_MAX && grid_of(n)[1] <= device->properties.limits.maxComputeWorkGroupCount[1];
}

void ggml_vk_qvac_rms_norm_mul_back(ggml_backend_vk_context * ctx, vk_context & subctx, ggml_tensor * dst) {
    const ggml_tensor * dy  = dst->src[0]; // [n, T]
    const ggml_tensor * x   = dst->src[1]; // [n, T]
    const ggml_tensor * w   = dst->src[2]; // [n]
    const ggml_tensor * add = dst->src[3]; // [n, T] or none

    vk_pipeline pipeline = ctx->device->qvac->rms_norm_mul_back[dy->ne[0] > (int64_t) (KEEP_SHORT * BLOCK_SIZE)];
    ggml_pipeline_request_descriptor_sets(ctx, pipeline, 1);

    const rms_norm_push_constants pc = {
        (uint32_t) dy->ne[0], (uint32_t) dy->ne[1],
        ggml_vk_qvac_offset(ctx, dy), ggml_vk_qvac_offset(ctx, x), ggml_vk_qvac_offset(ctx, w),
        add ? ggml_vk_qvac_offset(ctx, add) : 0, ggml_vk_qvac_offset(ctx, dst),
        add ? 1u : 0u,
        ggml_train_op_param(dst),
    };
    const vk_subbuffer dy_buf = ggml_vk_tensor_subbuffer(ctx, dy, true);
    ggml_vk_dispatch_pipeline(ctx, subctx, pipeline,
        { dy_buf, ggml_vk_tensor_subbuffer(ctx, x, true), ggml_vk_tensor_subbuffer(ctx, w, true),
          add ? ggml_vk_tensor_subbuffer(ctx, add, true) : dy_buf, ggml_vk_tensor_subbuffer(ctx, dst, true) },
        pc, grid_of(pc.T));
}

void ggml_vk_qvac_swiglu_back(ggml_backend_vk_context * ctx, vk_context & subctx, ggml_tensor * dst) {
    const ggml_tensor * dy   = dst->src[0]; // [n, T]
    const ggml_tensor * gate = dst->src[1]; // [n, T]
    const ggml_tensor * up   = dst->src[2]; // [n, T]

    const vk_subbuffer dy_buf   = ggml_vk_tensor_subbuffer(ctx, dy, true);
    const vk_subbuffer gate_buf = ggml_vk_tensor_subbuffer(ctx, gate, true);
    const vk_subbuffer up_buf   = ggml_vk_tensor_subbuffer(ctx, up, true);
    const vk_subbuffer d_buf    = ggml_vk_tensor_subbuffer(ctx, dst, true);

    const uint32_t n       = (uint32_t) ggml_nelements(dy);
    const bool     aligned = n % 4 == 0 && ggml_vk_qvac_is_aligned(ctx, dy, dy_buf) && ggml_vk_qvac_is_aligned(ctx, gate, gate_buf) &&
                             ggml_vk_qvac_is_aligned(ctx, up, up_buf) && ggml_vk_qvac_is_aligned(ctx, dst, d_buf);

    vk_pipeline pipeline = ctx->device->qvac->swiglu_back[aligned];
    ggml_pipeline_request_descriptor_sets(ctx, pipeline, 1);

    const swiglu_push_constants pc = {
        n,
        ggml_vk_qvac_offset(ctx, dy), ggml_vk_qvac_offset(ctx, gate), ggml_vk_qvac_offset(ctx, up), ggml_vk_qvac_offset(ctx, dst),
    };
    ggml_vk_dispatch_pipeline(ctx, subctx, pipeline, { dy_buf, gate_buf, up_buf, d_buf }, pc,
                              grid_of(CEIL_DIV(aligned ? n / 4 : n, BLOCK_SIZE)));
}
