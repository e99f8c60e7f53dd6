// LOW_RANK_* over so many tokens that [n, T] comes from memory rather than a cache (qvac_low_rank_*_long.comp): it is read
// once whatever the rank, four values at a time, ahead of its use. What is not aligned for that stays with low_rank.cpp.

#include "low_rank.h"

#include "ggml-train.h"
#include "ggml-vulkan-shaders.hpp"

#include <algorithm>

namespace {

struct grad_push_constants {
    uint32_t N, R, T;
    uint32_t share;
    uint32_t nbv1, nbz1;
    uint32_t v_offset, z_offset;
};

struct grad_sum_push_constants {
    uint32_t N, R;
    uint32_t shares;
    uint32_t nbg0, nbg1;
    uint32_t g_offset;
    float    scale;
};

// With fewer tokens the kernels of low_rank.cpp have the workgroups to keep a large device busy, these do not.
constexpr int64_t PROJECT_LONG = 1536;
constexpr int64_t ADD_LONG     = 1536;
constexpr int64_t GRAD_LONG    = 1536;

// The shaders' constants: rows and tokens of a workgroup.
constexpr uint32_t PROJECT_TOKENS = 16;
constexpr uint32_t ADD_ROWS       = 512;
constexpr uint32_t ADD_TOKENS     = 16;
constexpr uint32_t GRAD_ROWS      = 128;
constexpr uint32_t GRAD_CHUNK     = 32; // a multiple of the tokens that any variant takes at a time
constexpr uint32_t SUM_BLOCK_SIZE = 128;

// The most shared memory that one of them wants.
constexpr uint32_t SHARED_BYTES = 2 * 24 * 34 * 16;

// As many workgroups of LOW_RANK_GRAD run on a core side by side, for their registers; a share of fewer tokens than these
// costs more to add up than it saves.
constexpr uint64_t GRAD_PER_CORE  = 3;
constexpr uint64_t GRAD_SHARE_MIN = 64;

struct rank_shader {
    const char * name;
    uint64_t     project_size;
    const void * project_data;
    uint64_t     grad_size;
    const void * grad_data;
};

#define QVAC_LOW_RANK_LONG(rank)                                                                                    \
    { "qvac_low_rank_long_" #rank, qvac_low_rank_project_long_##rank##_len, qvac_low_rank_project_long_##rank##_data, \
      qvac_low_rank_grad_long_##rank##_len, qvac_low_rank_grad_long_##rank##_data }

constexpr uint32_t WIDTH = 8;

const rank_shader SHADERS[VK_QVAC_LOW_RANK_WIDTHS] = {
    QVAC_LOW_RANK_LONG(8),
    QVAC_LOW_RANK_LONG(16),
    QVAC_LOW_RANK_LONG(24),
};

// The shader that makes r columns in as few parts as possible, and none wider than need be.
uint32_t width_index(int64_t r) {
    const int64_t parts = CEIL_DIV(r, (int64_t) (VK_QVAC_LOW_RANK_WIDTHS * WIDTH));
    return (uint32_t) (CEIL_DIV(CEIL_DIV(r, parts), (int64_t) WIDTH) - 1);
}

bool has_shaders(const vk_device & device) {
    return device->properties.limits.maxComputeSharedMemorySize >= SHARED_BYTES;
}

// Rows of whole fours, each at 16 bytes.
bool is_fours(const ggml_backend_vk_context * ctx, const ggml_tensor * t, const vk_subbuffer & buffer) {
    return t->ne[0] % 4 == 0 && t->nb[0] == sizeof(float) && t->nb[1] % 16 == 0 && ggml_vk_qvac_is_aligned(ctx, t, buffer);
}

// The same of its transpose.
bool is_fours_transposed(const ggml_backend_vk_context * ctx, const ggml_tensor * t, const vk_subbuffer & buffer) {
    return t->ne[1] % 4 == 0 && t->nb[1] == sizeof(float) && t->nb[0] % 16 == 0 && ggml_vk_qvac_is_aligned(ctx, t, buffer);
}

// The token shares of LOW_RANK_GRAD, such that all of the device's cores are busy.
uint32_t grad_share(const vk_device & device, int64_t n, int64_t n_tokens) {
    const uint64_t cores  = device->shader_core_count ? device->shader_core_count : 16;
    const uint64_t wanted = GRAD_PER_CORE * cores / CEIL_DIV((uint64_t) n, (uint64_t) GRAD_ROWS);
    const uint64_t shares = std::max<uint64_t>(1, std::min(wanted, (uint64_t) n_tokens / GRAD_SHARE_MIN));
    return (uint32_t) CEIL_DIV(CEIL_DIV((uint64_t) n_tokens, shares), (uint64_t) GRAD_CHUNK) * GRAD_CHUNK;
}

} // namespace

void ggml_vk_qvac_load_low_rank_long(vk_device & device, const vk_qvac_create_pipeline & create) {
    if (!has_shaders(device)) {
        return;
    }
    vk_qvac_device & pipelines = *device->qvac;
    for (uint32_t i = 0; i < VK_QVAC_LOW_RANK_WIDTHS; ++i) {
        const rank_shader & shader = SHADERS[i];
        const uint32_t      width  = (i + 1) * WIDTH;
        create(pipelines.low_rank_project_long[i], shader.name, shader.project_size, shader.project_data, 3,
               sizeof(vk_qvac_project_push_constants), { width, PROJECT_TOKENS, 1 }, {}, 0);
        create(pipelines.low_rank_grad_long[i], shader.name, shader.grad_size, shader.grad_data, 3,
               sizeof(grad_push_constants), { GRAD_ROWS, 1, width }, {}, 0);
    }
    for (uint32_t along_k = 0; along_k < 2; ++along_k) {
        create(pipelines.low_rank_add_long[along_k], "qvac_low_rank_add_long", qvac_low_rank_add_long_len, qvac_low_rank_add_long_data, 4,
               sizeof(vk_qvac_low_rank_add_push_constants), { ADD_ROWS, ADD_TOKENS, 1 }, { along_k }, 0);
    }
    create(pipelines.low_rank_grad_sum, "qvac_low_rank_grad_sum", qvac_low_rank_grad_sum_len, qvac_low_rank_grad_sum_data, 2,
           sizeof(grad_sum_push_constants), { SUM_BLOCK_SIZE, 1, 1 }, {}, 0);
}

bool ggml_vk_qvac_low_rank_project_long(ggml_backend_vk_context * ctx, vk_context & subctx, ggml_tensor * dst) {
    const ggml_tensor * p = dst->src[0]; // [n, r]
    const ggml_tensor * v = dst->src[1]; // [n, T]

    const vk_subbuffer p_buf = ggml_vk_tensor_subbuffer(ctx, p, true);
    const vk_subbuffer v_buf = ggml_vk_tensor_subbuffer(ctx, v, true);

    if (v->ne[1] < PROJECT_LONG || !has_shaders(ctx->device) || !is_fours(ctx, v, v_buf) || !is_fours(ctx, p, p_buf)) {
        return false;
    }
    ggml_vk_qvac_record_project(ctx, subctx, ctx->device->qvac->low_rank_project_long[width_index(p->ne[1])], dst);
    return true;
}

bool ggml_vk_qvac_low_rank_add_long(ggml_backend_vk_context * ctx, vk_context & subctx, ggml_tensor * dst) {
    const ggml_tensor * y   = dst->src[0]; // [n, T]
    const ggml_tensor * p   = dst->src[1]; // [n, r]
    const ggml_tensor * add = dst->src[3]; // [n, T] or none

    const vk_subbuffer y_buf   = ggml_vk_tensor_subbuffer(ctx, dst, true);
    const vk_subbuffer p_buf   = ggml_vk_tensor_subbuffer(ctx, p, true);
    const vk_subbuffer add_buf = add ? ggml_vk_tensor_subbuffer(ctx, add, true) : y_buf;

    const bool along_n = is_fours(ctx, p, p_buf);
    const bool along_k = !along_n && is_fours_transposed(ctx, p, p_buf);
    if (y->ne[1] < ADD_LONG || !has_shaders(ctx->device) || !is_fours(ctx, dst, y_buf) || (add && !is_fours(ctx, add, add_buf)) ||
        !(along_n || along_k)) {
        return false;
    }
    ggml_vk_qvac_record_low_rank_add(ctx, subctx, ctx->device->qvac->low_rank_add_long[along_k], dst);
    return true;
}

bool ggml_vk_qvac_low_rank_grad_long(ggml_backend_vk_context * ctx, vk_context & subctx, ggml_tensor * dst) {
    const ggml_tensor * v = dst->src[1]; // [n, T]
    const ggml_tensor * z = dst->src[2]; // [r, T]

    const vk_subbuffer v_buf = ggml_vk_tensor_subbuffer(ctx, v, true);
    const bool sum_fits = (uint64_t) ggml_nelements(dst) / SUM_BLOCK_SIZE < ctx->device->properties.limits.maxComputeWorkGroupCount[0];
    if (v->ne[1] < GRAD_LONG || !has_shaders(ctx->device) || !is_fours(ctx, v, v_buf) || !sum_fits) {
        return false;
    }
    const uint32_t n      = (uint32_t) dst->ne[0];
    const uint32_t r      = (uint32_t) dst->ne[1];
    const uint32_t t      = (uint32_t) v->ne[1];
    const uint32_t share  = grad_share(ctx->device, n, t);
    const uint32_t shares = CEIL_DIV(t, share);

    const uint64_t bytes = (uint64_t) shares * r * n * sizeof(float);
    ggml_vk_qvac_reserve_scratch(ctx, subctx, bytes);

    vk_pipeline make = ctx->device->qvac->low_rank_grad_long[width_index(r)];
    vk_pipeline sum  = ctx->device->qvac->low_rank_grad_sum;
    ggml_pipeline_request_descriptor_sets(ctx, make, 1);
    ggml_pipeline_request_descriptor_sets(ctx, sum, 1);
    if (ctx->prealloc_x_need_sync) {
        ggml_vk_sync_buffers(ctx, subctx);
    }

    const vk_subbuffer parts = { ctx->prealloc_x, 0, bytes };
    const grad_push_constants pc = {
        n, r, t, share,
        ggml_vk_qvac_stride(v, 1), ggml_vk_qvac_stride(z, 1),
        ggml_vk_qvac_offset(ctx, v), ggml_vk_qvac_offset(ctx, z),
    };
    ggml_vk_dispatch_pipeline(ctx, subctx, make, { parts, v_buf, ggml_vk_tensor_subbuffer(ctx, z, true) }, pc, { n, shares, r });
    ggml_vk_sync_buffers(ctx, subctx);

    const grad_sum_push_constants sum_pc = {
        n, r, shares,
        ggml_vk_qvac_stride(dst, 0), ggml_vk_qvac_stride(dst, 1),
        ggml_vk_qvac_offset(ctx, dst), ggml_train_op_param(dst),
    };
    ggml_vk_dispatch_pipeline(ctx, subctx, sum, { parts, ggml_vk_tensor_subbuffer(ctx, dst, true) }, sum_pc, { n * r, 1, 1 });
    ctx->prealloc_x_need_sync = true;
    return true;
}
