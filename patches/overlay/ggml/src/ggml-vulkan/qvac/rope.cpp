// ROPE and ROPE_BACK of contiguous heads that are rotated as a whole, in the plain and the NEOX order of pairs
// (qvac_rope.comp), and ROPE_BACK with the TQ_QUANTIZE behind it (qvac_tq_rope_back.comp). Everything else is upstream's, whose shader makes a sine for each head anew.

#include "ops.h"

#include "ggml-vulkan-shaders.hpp"

namespace {

// How far pairs are turned.
struct rope_angles {
    float theta_scale, freq_scale, ext_factor, magnitude;
    float corr_low, corr_high;
};

struct rope_push_constants {
    uint32_t    D, H, T;
    uint32_t    tokens;
    uint32_t    x_offset, pos_offset, ff_offset, y_offset;
    uint32_t    has_ff;
    float       sign;
    rope_angles angles;
};

struct rope_quantize_push_constants {
    uint32_t    D, N, T;
    uint32_t    x_offset, pos_offset, ff_offset, y_offset, q_offset;
    uint32_t    has_ff;
    uint32_t    limbs;
    rope_angles angles;
};

constexpr uint32_t BLOCK_SIZE = 256;

// The shader's GRID_LINE and TABLE.
constexpr uint32_t GRID_LINE = 512;
constexpr uint32_t TABLE     = 1024;

// Where the op keeps its parameters (ggml_rope_impl).
enum { N_DIMS = 1, MODE = 2, N_CTX_ORIG = 4, FREQ_BASE = 5, FREQ_SCALE = 6, EXT_FACTOR = 7, ATTN_FACTOR = 8, BETA_FAST = 9, BETA_SLOW = 10, N_OFFS = 15 };

// Tokens of a workgroup: so many that each invocation has four pairs to turn, and that their sines have room.
uint32_t tokens_of_workgroup(const ggml_tensor * op) {
    const int64_t d = op->ne[0], items = op->ne[1] * d / 8;
    return (uint32_t) std::max<int64_t>(1, std::min<int64_t>(CEIL_DIV((int64_t) BLOCK_SIZE, items), TABLE / (d / 2)));
}

std::array<uint32_t, 3> grid_of(const ggml_tensor * op) {
    const uint32_t groups = (uint32_t) CEIL_DIV(op->ne[2], (int64_t) tokens_of_workgroup(op));
    return { std::min(groups, GRID_LINE), CEIL_DIV(groups, GRID_LINE), 1 };
}

rope_angles angles_of(const ggml_tensor * op) {
    const int32_t n_dims     = ggml_get_op_params_i32(op, N_DIMS);
    const float   freq_base  = ggml_get_op_params_f32(op, FREQ_BASE);
    const float   freq_scale = ggml_get_op_params_f32(op, FREQ_SCALE);
    const float   ext_factor = ggml_get_op_params_f32(op, EXT_FACTOR);

    float corr_dims[2];
    ggml_rope_yarn_corr_dims(n_dims, ggml_get_op_params_i32(op, N_CTX_ORIG), freq_base,
                             ggml_get_op_params_f32(op, BETA_FAST), ggml_get_op_params_f32(op, BETA_SLOW), corr_dims);

    // YaRN makes vectors longer, to undo what interpolated angles do to the softmax.
    const float longer = ext_factor != 0.0f ? 1.0f + 0.1f * logf(1.0f / freq_scale) : 1.0f;
    return { powf(freq_base, -2.0f / (float) n_dims), freq_scale, ext_factor, ggml_get_op_params_f32(op, ATTN_FACTOR) * longer,
             corr_dims[0], corr_dims[1] };
}

bool is_neox(const ggml_tensor * op) {
    return ggml_get_op_params_i32(op, MODE) == GGML_ROPE_TYPE_NEOX;
}

bool is_aligned(const ggml_backend_vk_context * ctx, const ggml_tensor * t) {
    return ggml_vk_qvac_is_aligned(ctx, t, ggml_vk_tensor_subbuffer(ctx, t, true));
}

} // namespace

void ggml_vk_qvac_load_rope(vk_device & device, const vk_qvac_create_pipeline & create) {
    for (const bool neox : { false, true }) {
        create(device->qvac->rope[neox], "qvac_rope", qvac_rope_len, qvac_rope_data, 4, sizeof(rope_push_constants),
               { 1, 1, 1 }, { BLOCK_SIZE, 1, neox ? 1u : 0u }, 0);
        vk_pipeline * quantize = device->qvac->rows.rope_back[neox];
        create(quantize[0], "qvac_tq_rope_back_1", qvac_tq_rope_back_1_len, qvac_tq_rope_back_1_data, 5,
               sizeof(rope_quantize_push_constants), { 1, 1, 1 }, { BLOCK_SIZE, 1, neox ? 1u : 0u }, 0);
        create(quantize[1], "qvac_tq_rope_back_3", qvac_tq_rope_back_3_len, qvac_tq_rope_back_3_data, 5,
               sizeof(rope_quantize_push_constants), { 1, 1, 1 }, { BLOCK_SIZE, 1, neox ? 1u : 0u }, 0);
    }
}

bool ggml_vk_qvac_takes_rope(const ggml_backend_vk_context * ctx, const ggml_tensor * op) {
    const ggml_tensor * x   = op->src[0]; // [D, H, T]
    const ggml_tensor * pos = op->src[1]; // [T]
    const ggml_tensor * ff  = op->src[2]; // [D/2] or none
    const int32_t       mode = ggml_get_op_params_i32(op, MODE);

    return (mode == GGML_ROPE_TYPE_NORMAL || mode == GGML_ROPE_TYPE_NEOX) &&
           ggml_get_op_params_i32(op, N_DIMS) == op->ne[0] && ggml_get_op_params_i32(op, N_OFFS) == 0 &&
           op->ne[0] % 8 == 0 && op->ne[0] <= 2 * (int64_t) TABLE && op->ne[2] > VK_QVAC_FEW_ROWS && op->ne[3] == 1 &&
           ggml_vk_qvac_is_plain(x) && ggml_vk_qvac_is_plain(op) && (!ff || ggml_vk_qvac_is_plain(ff)) &&
           pos->type == GGML_TYPE_I32 && ggml_is_contiguous(pos) && pos->buffer &&
           is_aligned(ctx, x) && is_aligned(ctx, op) && (uint64_t) ggml_nelements(op) < UINT32_MAX &&
           grid_of(op)[1] <= ctx->device->properties.limits.maxComputeWorkGroupCount[1];
}

void ggml_vk_qvac_rope(ggml_backend_vk_context * ctx, vk_context & subctx, ggml_tensor * dst) {
    const ggml_tensor * x   = dst->src[0];
    const ggml_tensor * pos = dst->src[1];
    const ggml_tensor * ff  = dst->src[2];

    vk_pipeline pipeline = ctx->device->qvac->rope[is_neox(dst)];
    ggml_pipeline_request_descriptor_sets(ctx, pipeline, 1);

    const rope_push_constants pc = {
        (uint32_t) dst->ne[0], (uint32_t) dst->ne[1], (uint32_t) dst->ne[2],
        tokens_of_workgroup(dst),
        ggml_vk_qvac_offset(ctx, x), ggml_vk_qvac_offset(ctx, pos), ff ? ggml_vk_qvac_offset(ctx, ff) : 0, ggml_vk_qvac_offset(ctx, dst),
        ff ? 1u : 0u,
        dst->op == GGML_OP_ROPE_BACK ? -1.0f : 1.0f,
        angles_of(dst),
    };
    const vk_subbuffer x_buf = ggml_vk_tensor_subbuffer(ctx, x, true);
    ggml_vk_dispatch_pipeline(ctx, subctx, pipeline,
        { x_buf, ggml_vk_tensor_subbuffer(ctx, pos, true), ff ? ggml_vk_tensor_subbuffer(ctx, ff, true) : x_buf,
          ggml_vk_tensor_subbuffer(ctx, dst, true) },
        pc, grid_of(dst));
}

bool ggml_vk_qvac_rope_back_is_kept(const ggml_tensor * op) {
    return op->ne[0] * op->ne[1] <= 8 * 3 * (int64_t) BLOCK_SIZE;
}

void ggml_vk_qvac_rope_back_quantize(ggml_backend_vk_context * ctx, vk_context & subctx, const vk_qvac_rope_back_job & job) {
    const ggml_tensor * x   = job.y->src[0]; // [D, H, T]
    const ggml_tensor * pos = job.y->src[1]; // [T]
    const ggml_tensor * ff  = job.y->src[2]; // [D/2] or none
    const int64_t       n   = x->ne[0] * x->ne[1];

    vk_pipeline pipeline = ctx->device->qvac->rows.rope_back[is_neox(job.y)][n > 8 * (int64_t) BLOCK_SIZE];
    ggml_pipeline_request_descriptor_sets(ctx, pipeline, 1);

    const rope_quantize_push_constants pc = {
        (uint32_t) x->ne[0], (uint32_t) n, (uint32_t) x->ne[2],
        ggml_vk_qvac_offset(ctx, x) / 4, ggml_vk_qvac_offset(ctx, pos), ff ? ggml_vk_qvac_offset(ctx, ff) : 0,
        ggml_vk_qvac_offset(ctx, job.y) / 4, ggml_vk_qvac_quantized_offset(ctx, job.q),
        ff ? 1u : 0u, (uint32_t) ggml_vk_qvac_limbs_of(job.q), angles_of(job.y),
    };
    const vk_subbuffer x_buf = ggml_vk_tensor_subbuffer(ctx, x, true);
    ggml_vk_dispatch_pipeline(ctx, subctx, pipeline,
        { x_buf, ggml_vk_tensor_subbuffer(ctx, pos, true), ff ? ggml_vk_tensor_subbuffer(ctx, ff, true) : x_buf,
          ggml_vk_tensor_subbuffer(ctx, job.y, true), ggml_vk_tensor_subbuffer(ctx, job.q, true) },
        pc, { std::min(pc.T, GRID_LINE), CEIL_DIV(pc.T, GRID_LINE), 1 });
}
