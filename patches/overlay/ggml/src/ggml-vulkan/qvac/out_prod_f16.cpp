// OUT_PROD for big products: half-precision operands, on cooperative matrices where the device has them.
//
// Two passes: a copy of src1 in halves, each column scaled by a power of two (qvac_out_prod_scale.comp), and the product,
// which takes the scale off again (qvac_out_prod_f16.comp). Where one tile a workgroup would leave the device idle, as for
// the output matrix (K is the vocabulary), workgroups share K, and a third pass adds the shares in order.

#include "ops.h"

#include "ggml-vulkan-shaders.hpp"

#include <algorithm>
#include <cstdlib>
#include <cstring>

namespace {

struct scale_push_constants {
    uint32_t K;
    uint32_t nb10, nb11;
    uint32_t nbh;
    uint32_t b_offset;
};

struct product_push_constants {
    uint32_t M, N, K;
    uint32_t nb00, nb01;
    uint32_t nb11;
    uint32_t nb21;
    uint32_t share_k;
    uint32_t nb2z;
    uint32_t a_offset, d_offset;
};

struct sum_push_constants {
    uint32_t M, N;
    uint32_t shares;
    uint32_t nb21;
    uint32_t d_offset;
};

struct tile_shape {
    uint32_t BM, BN, BK, WM, WN;

    uint32_t              block_size() const { return 32 * (BM / WM) * (BN / WN); }
    std::vector<uint32_t> constants() const { return { block_size(), BM, BN, BK, WM, WN }; }
    uint32_t              shared_bytes() const { return 2 * BK * (BM + 8) + 2 * BN * (BK + 8) + block_size() / 32 * 1024; }
    uint64_t              tiles(int64_t m, int64_t n) const { return CEIL_DIV((uint64_t) m, BM) * CEIL_DIV((uint64_t) n, BN); }
};

constexpr uint32_t BK = 32;

const tile_shape TILES[VK_QVAC_OUT_PROD_F16_SHAPE_COUNT] = {
    /* SMALL */ {  64,  64, BK, 32, 32 },
    /* LARGE */ { 128, 128, BK, 64, 32 },
};

// Products smaller than this gain nothing.
constexpr int64_t M_MIN = 64;
constexpr int64_t N_MIN = 32;
constexpr int64_t K_MIN = 32;

// Of all columns as many are made at a time as fit here in halves.
constexpr uint64_t COPY_BYTES  = 32u << 20;
constexpr uint64_t COLUMNS_MIN = 128;
constexpr uint64_t COLUMNS_MAX = 32768;

// A share of K is worth a workgroup of its own from this many steps on; a sum of more shares costs what they save.
constexpr uint64_t SHARE_K_MIN = 512;
constexpr uint64_t SHARES_MAX  = 8;

constexpr uint32_t SUM_BLOCK_SIZE = 256;

struct type_shader {
    ggml_type    type;
    const char * name;
    uint64_t     size;
    const void * data;
    uint64_t     coopmat_size;
    const void * coopmat_data;
};

#if defined(GGML_VULKAN_COOPMAT_GLSLC_SUPPORT)
#define QVAC_COOPMAT(name) qvac_out_prod_f16_##name##_cm1_len, qvac_out_prod_f16_##name##_cm1_data
#else
#define QVAC_COOPMAT(name) 0, nullptr
#endif
#define QVAC_OUT_PROD_F16(TYPE, name) \
    { TYPE, "qvac_out_prod_f16_" #name, qvac_out_prod_f16_##name##_len, qvac_out_prod_f16_##name##_data, QVAC_COOPMAT(name) }

// Not F32: such a base model was asked for its precision.
const type_shader SHADERS[] = {
    QVAC_OUT_PROD_F16(GGML_TYPE_F16,   f16),
    QVAC_OUT_PROD_F16(GGML_TYPE_BF16,  bf16),
    QVAC_OUT_PROD_F16(GGML_TYPE_Q4_0,  q4_0),
    QVAC_OUT_PROD_F16(GGML_TYPE_Q4_1,  q4_1),
    QVAC_OUT_PROD_F16(GGML_TYPE_Q5_0,  q5_0),
    QVAC_OUT_PROD_F16(GGML_TYPE_Q8_0,  q8_0),
    QVAC_OUT_PROD_F16(GGML_TYPE_Q4_K,  q4_k),
    QVAC_OUT_PROD_F16(GGML_TYPE_Q6_K,  q6_k),
    QVAC_OUT_PROD_F16(GGML_TYPE_TQ1_0, tq1_0),
    QVAC_OUT_PROD_F16(GGML_TYPE_TQ2_0, tq2_0),
};

bool has_coopmat(const vk_device & device) {
#if defined(GGML_VULKAN_COOPMAT_GLSLC_SUPPORT)
    return device->coopmat_support && device->coopmat_support_16x16x16_f32acc && device->subgroup_size_control &&
           device->subgroup_require_full_support && device->subgroup_min_size <= 32 && device->subgroup_max_size >= 32;
#else
    GGML_UNUSED(device);
    return false;
#endif
}

// QVAC_VK_OUT_PROD: "plain" keeps to float32; "coopmat" takes half precision for all sizes, on any device (tests).
bool is_chosen(const char * mode) {
    static const char * const chosen = getenv("QVAC_VK_OUT_PROD");
    return chosen && strcmp(chosen, mode) == 0;
}

// Workgroups that the device runs side by side; a guess where it does not say.
uint64_t core_count(const vk_device & device) {
    return device->shader_core_count ? device->shader_core_count : 16;
}

struct work_plan {
    vk_qvac_out_prod_f16_shape shape;
    uint32_t                   shares;
    uint32_t                   share_k;
};

work_plan plan_of(const vk_device & device, int64_t m, int64_t n, int64_t k) {
    const uint64_t cores = core_count(device);
    const auto &   large = TILES[VK_QVAC_OUT_PROD_F16_LARGE];
    if (large.tiles(m, n) >= 2 * cores && large.shared_bytes() <= device->properties.limits.maxComputeSharedMemorySize) {
        return { VK_QVAC_OUT_PROD_F16_LARGE, 1, (uint32_t) CEIL_DIV(k, (int64_t) BK) * BK };
    }
    // Four small workgroups a core hide each other's loads.
    const uint64_t wanted  = 4 * cores / TILES[VK_QVAC_OUT_PROD_F16_SMALL].tiles(m, n);
    const uint64_t shares  = std::max<uint64_t>(1, std::min({ wanted, (uint64_t) k / SHARE_K_MIN, SHARES_MAX }));
    const uint32_t share_k = (uint32_t) CEIL_DIV(CEIL_DIV((uint64_t) k, shares), (uint64_t) BK) * BK;
    return { VK_QVAC_OUT_PROD_F16_SMALL, (uint32_t) CEIL_DIV((uint64_t) k, (uint64_t) share_k), share_k };
}

uint64_t aligned(uint64_t bytes) {
    return CEIL_DIV(bytes, (uint64_t) 256) * 256; // no device wants more for a descriptor's offset
}

// Upstream's scratch buffer for operands; it is grown, and waited for, as upstream does.
void reserve_scratch(ggml_backend_vk_context * ctx, vk_context & subctx, uint64_t bytes) {
    if (ctx->prealloc_size_x < bytes) {
        ctx->prealloc_size_x = bytes;
        ggml_vk_preallocate_buffers(ctx, subctx);
    }
}

} // namespace

void ggml_vk_qvac_load_out_prod_f16(vk_device & device, const vk_qvac_create_pipeline & create) {
    const bool coopmat = has_coopmat(device);
    for (const type_shader & shader : SHADERS) {
        for (int shape = 0; shape < VK_QVAC_OUT_PROD_F16_SHAPE_COUNT; ++shape) {
            const tile_shape & tile = TILES[shape];
            create(device->qvac->out_prod_f16[shader.type][shape], shader.name,
                   coopmat ? shader.coopmat_size : shader.size, coopmat ? shader.coopmat_data : shader.data, 4,
                   sizeof(product_push_constants), { tile.BN, tile.BM, 1 }, tile.constants(), coopmat ? 32 : 0);
        }
    }
    create(device->qvac->out_prod_scale, "qvac_out_prod_scale", qvac_out_prod_scale_len, qvac_out_prod_scale_data, 3,
           sizeof(scale_push_constants), { 1, 1, 1 }, {}, 0);
    create(device->qvac->out_prod_sum, "qvac_out_prod_sum", qvac_out_prod_sum_len, qvac_out_prod_sum_data, 2,
           sizeof(sum_push_constants), { SUM_BLOCK_SIZE, 1, 1 }, {}, 0);
}

bool ggml_vk_qvac_out_prod_is_f16(const vk_device & device, const ggml_tensor * dst) {
    const bool has_shader = std::any_of(std::begin(SHADERS), std::end(SHADERS),
                                        [&](const type_shader & shader) { return shader.type == dst->src[0]->type; });
    if (!has_shader || dst->ne[2] * dst->ne[3] != 1 || !device->fp16 || is_chosen("plain")) {
        return false;
    }
    const bool is_big = dst->ne[0] >= M_MIN && dst->ne[1] >= N_MIN && dst->src[0]->ne[1] >= K_MIN;
    return is_chosen("coopmat") || (is_big && has_coopmat(device));
}

void ggml_vk_qvac_out_prod_f16(ggml_backend_vk_context * ctx, vk_context & subctx, ggml_tensor * dst) {
    const ggml_tensor * src0 = dst->src[0]; // [M, K]
    const ggml_tensor * src1 = dst->src[1]; // [N, K]

    const auto     stride = ggml_vk_qvac_stride;
    const uint32_t m      = (uint32_t) dst->ne[0];
    const uint32_t k      = (uint32_t) src0->ne[1];
    const uint32_t nbh    = CEIL_DIV(k, BK) * BK;

    const uint64_t at_once = std::clamp(COPY_BYTES / (nbh * sizeof(ggml_fp16_t)) / COLUMNS_MIN * COLUMNS_MIN, COLUMNS_MIN, COLUMNS_MAX);
    const uint32_t columns = (uint32_t) std::min<uint64_t>(at_once, dst->ne[1]);
    const work_plan plan   = plan_of(ctx->device, m, columns, k);

    const uint64_t copy_bytes  = aligned((uint64_t) columns * nbh * sizeof(ggml_fp16_t));
    const uint64_t scale_bytes = aligned((uint64_t) columns * sizeof(float));
    const uint64_t share_bytes = plan.shares > 1 ? aligned((uint64_t) plan.shares * columns * m * sizeof(float)) : 0;

    reserve_scratch(ctx, subctx, copy_bytes + scale_bytes + share_bytes);

    vk_qvac_device & pipelines = *ctx->device->qvac;
    vk_pipeline      product   = pipelines.out_prod_f16[src0->type][plan.shape];
    const uint32_t   passes    = CEIL_DIV((uint32_t) dst->ne[1], columns);
    ggml_pipeline_request_descriptor_sets(ctx, pipelines.out_prod_scale, passes);
    ggml_pipeline_request_descriptor_sets(ctx, product, passes);
    if (plan.shares > 1) {
        ggml_pipeline_request_descriptor_sets(ctx, pipelines.out_prod_sum, passes);
    }

    const vk_subbuffer a_buf = ggml_vk_tensor_subbuffer(ctx, src0, true);
    const vk_subbuffer b_buf = ggml_vk_tensor_subbuffer(ctx, src1, true);
    const vk_subbuffer d_buf = ggml_vk_tensor_subbuffer(ctx, dst, true);
    const vk_subbuffer copy  = { ctx->prealloc_x, 0, copy_bytes };
    const vk_subbuffer scale = { ctx->prealloc_x, copy_bytes, scale_bytes };
    const vk_subbuffer parts = { ctx->prealloc_x, copy_bytes + scale_bytes, share_bytes };

    for (uint32_t n0 = 0; n0 < (uint32_t) dst->ne[1]; n0 += columns) {
        const uint32_t n        = std::min(columns, (uint32_t) dst->ne[1] - n0);
        const uint32_t d_offset = ggml_vk_qvac_offset(ctx, dst) + n0 * stride(dst, 1);

        if (ctx->prealloc_x_need_sync) {
            ggml_vk_sync_buffers(ctx, subctx);
        }
        const scale_push_constants to_half = {
            k, stride(src1, 0), stride(src1, 1), nbh, ggml_vk_qvac_offset(ctx, src1) + n0 * stride(src1, 0),
        };
        ggml_vk_dispatch_pipeline(ctx, subctx, pipelines.out_prod_scale, { b_buf, copy, scale }, to_half, { n, 1, 1 });
        ggml_vk_sync_buffers(ctx, subctx);

        product_push_constants pc = {
            m, n, k, stride(src0, 0), stride(src0, 1), nbh, stride(dst, 1), plan.share_k, 0,
            ggml_vk_qvac_offset(ctx, src0), d_offset,
        };
        if (plan.shares == 1) {
            ggml_vk_dispatch_pipeline(ctx, subctx, product, { a_buf, copy, scale, d_buf }, pc, { n, m, 1 });
        } else {
            pc.nb21     = m;
            pc.nb2z     = n * m;
            pc.d_offset = 0;
            ggml_vk_dispatch_pipeline(ctx, subctx, product, { a_buf, copy, scale, parts }, pc, { n, m, plan.shares });
            ggml_vk_sync_buffers(ctx, subctx);
            const sum_push_constants sum = { m, n, plan.shares, stride(dst, 1), d_offset };
            ggml_vk_dispatch_pipeline(ctx, subctx, pipelines.out_prod_sum, { parts, d_buf }, sum, { m, n, 1 });
        }
        ctx->prealloc_x_need_sync = true;
    }
}
