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

    uint32_t block_size() const { return 32 * (BM / WM) * (BN / WN); }

    // Rows of the tiles have eight halves more.
    uint32_t stage_bytes() const { return 2 * BK * (BM + 8) + 2 * BN * (BK + 8); }
    uint32_t shared_bytes(uint32_t stages) const { return std::max(stages * stage_bytes(), block_size() / 32 * 1024); }

    // Shared memory for two steps where the device has it.
    uint32_t stages(const vk_device & device) const {
        return shared_bytes(2) <= device->properties.limits.maxComputeSharedMemorySize ? 2 : 1;
    }
    uint64_t tiles(int64_t m, int64_t n) const { return CEIL_DIV((uint64_t) m, BM) * CEIL_DIV((uint64_t) n, BN); }
};

// What a copy's columns are padded to: a multiple of every BK.
constexpr uint32_t K_PAD = 64;

const tile_shape TILES[VK_QVAC_OUT_PROD_F16_SHAPE_COUNT] = {
    /* SMALL */ {  64,  64, 32, 32, 32 },
    /* LARGE */ { 128, 128, 32, 64, 32 },
};

// Products smaller than this gain nothing.
constexpr int64_t M_MIN = 64;
constexpr int64_t N_MIN = 32;
constexpr int64_t K_MIN = 32;

// Of all columns as many are made at a time as fit here in halves.
constexpr uint64_t COPY_BYTES  = 32u << 20;
constexpr uint64_t COLUMNS_MIN = 128;
constexpr uint64_t COLUMNS_MAX = 32768;

// A share of K is worth a workgroup of its own from this length on; a sum of more shares costs what they save.
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
#define QVAC_SHADER(TYPE, name) { TYPE, #name, name##_len, name##_data, name##_cm1_len, name##_cm1_data }
#else
#define QVAC_SHADER(TYPE, name) { TYPE, #name, name##_len, name##_data, 0, nullptr }
#endif

// Not F32: such a base model was asked for its precision.
const type_shader SHADERS[] = {
    QVAC_SHADER(GGML_TYPE_F16,    qvac_out_prod_f16_f16),
    QVAC_SHADER(GGML_TYPE_BF16,   qvac_out_prod_f16_bf16),
    QVAC_SHADER(GGML_TYPE_Q4_0,   qvac_out_prod_f16_q4_0),
    QVAC_SHADER(GGML_TYPE_Q4_1,   qvac_out_prod_f16_q4_1),
    QVAC_SHADER(GGML_TYPE_Q5_0,   qvac_out_prod_f16_q5_0),
    QVAC_SHADER(GGML_TYPE_Q8_0,   qvac_out_prod_f16_q8_0),
    QVAC_SHADER(GGML_TYPE_Q4_K,   qvac_out_prod_f16_q4_k),
    QVAC_SHADER(GGML_TYPE_Q6_K,   qvac_out_prod_f16_q6_k),
    QVAC_SHADER(GGML_TYPE_TQ1_0,  qvac_out_prod_f16_tq1_0),
    QVAC_SHADER(GGML_TYPE_TQ2_0,  qvac_out_prod_f16_tq2_0),
};

const type_shader * shader_of(ggml_type type) {
    const auto found = std::find_if(std::begin(SHADERS), std::end(SHADERS), [&](const type_shader & s) { return s.type == type; });
    return found == std::end(SHADERS) ? nullptr : found;
}

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
    const char * const chosen = getenv("QVAC_VK_OUT_PROD");
    return chosen && strcmp(chosen, mode) == 0;
}

// Workgroups that the device runs side by side; a guess where it does not say.
uint64_t core_count(const vk_device & device) {
    return device->shader_core_count ? device->shader_core_count : 16;
}

struct work_plan {
    uint32_t shape;
    uint32_t shares;
    uint32_t share_k;
};

bool fits(const vk_device & device, const tile_shape & tile) {
    const auto & limits = device->properties.limits;
    return tile.shared_bytes(1) <= limits.maxComputeSharedMemorySize && tile.block_size() <= limits.maxComputeWorkGroupInvocations &&
           tile.block_size() <= limits.maxComputeWorkGroupSize[0];
}

work_plan plan_of(const vk_device & device, int64_t m, int64_t n, int64_t k) {
    // So many workgroups a core hide each other's loads and barriers.
    const auto shares_of = [&](uint32_t shape, uint64_t a_core) {
        const uint64_t wanted = a_core * core_count(device) / TILES[shape].tiles(m, n);
        return std::max<uint64_t>(1, std::min({ wanted, (uint64_t) k / SHARE_K_MIN, SHARES_MAX }));
    };
    uint32_t shape  = VK_QVAC_OUT_PROD_F16_LARGE;
    uint64_t shares = shares_of(shape, 2);
    if (!fits(device, TILES[shape]) || 4 * shares * TILES[shape].tiles(m, n) < 3 * core_count(device)) {
        shape  = VK_QVAC_OUT_PROD_F16_SMALL;
        shares = shares_of(shape, 4);
    }
    const uint32_t share_k = (uint32_t) CEIL_DIV(CEIL_DIV((uint64_t) k, shares), (uint64_t) K_PAD) * K_PAD;
    return { shape, (uint32_t) CEIL_DIV((uint64_t) k, (uint64_t) share_k), share_k };
}

uint64_t aligned(uint64_t bytes) {
    return CEIL_DIV(bytes, (uint64_t) 256) * 256; // no device wants more for a descriptor's offset
}

// dst[m, n] = sum_k a[m, k] * b[n, k].
struct product {
    const ggml_tensor * a;
    const ggml_tensor * b;
    ggml_tensor *       dst;

    explicit product(ggml_tensor * dst) : a(dst->src[0]), b(dst->src[1]), dst(dst) {}

    uint32_t m() const { return (uint32_t) dst->ne[0]; }
    uint32_t n() const { return (uint32_t) dst->ne[1]; }
    uint32_t k() const { return (uint32_t) a->ne[1]; }
    uint32_t b_stride_n() const { return ggml_vk_qvac_stride(b, 0); }
    uint32_t b_stride_k() const { return ggml_vk_qvac_stride(b, 1); }

    // Whether runs of eight weights can be read at once.
    bool a_is_aligned(const ggml_backend_vk_context * ctx, const vk_subbuffer & buffer) const {
        return ggml_is_quantized(a->type) || (a->nb[0] == sizeof(ggml_fp16_t) && a->nb[1] % 16 == 0 && a->ne[0] % 8 == 0 &&
                                              ggml_vk_qvac_is_aligned(ctx, a, buffer));
    }
    // The same of four values of b along k.
    bool b_is_aligned(const ggml_backend_vk_context * ctx, const vk_subbuffer & buffer) const {
        return b_stride_k() == 1 && b_stride_n() % 4 == 0 && k() % 4 == 0 && ggml_vk_qvac_is_aligned(ctx, b, buffer);
    }
};

} // namespace

void ggml_vk_qvac_load_out_prod_f16(vk_device & device, const vk_qvac_create_pipeline & create) {
    const bool coopmat = has_coopmat(device);
    for (const type_shader & shader : SHADERS) {
        for (int shape = 0; shape < VK_QVAC_OUT_PROD_F16_SHAPE_COUNT; ++shape) {
            const tile_shape & tile = TILES[shape];
            for (const uint32_t aligned : { 0, 1 }) {
                if (!fits(device, tile) || (!aligned && ggml_is_quantized(shader.type))) {
                    continue;
                }
                const std::vector<uint32_t> constants = {
                    tile.block_size(), tile.BM, tile.BN, tile.BK, tile.WM, tile.WN, coopmat ? tile.stages(device) : 1, aligned,
                };
                create(device->qvac->out_prod_f16[shader.type][shape][aligned], shader.name,
                       coopmat ? shader.coopmat_size : shader.size, coopmat ? shader.coopmat_data : shader.data, 4,
                       sizeof(product_push_constants), { tile.BN, tile.BM, 1 }, constants, coopmat ? 32 : 0);
            }
        }
    }
    for (const uint32_t aligned : { 0, 1 }) {
        create(device->qvac->out_prod_scale[aligned], "qvac_out_prod_scale", qvac_out_prod_scale_len, qvac_out_prod_scale_data, 3,
               sizeof(scale_push_constants), { 1, 1, 1 }, { aligned }, 0);
    }
    create(device->qvac->out_prod_sum, "qvac_out_prod_sum", qvac_out_prod_sum_len, qvac_out_prod_sum_data, 2,
           sizeof(sum_push_constants), { SUM_BLOCK_SIZE, 1, 1 }, {}, 0);
}

bool ggml_vk_qvac_out_prod_is_f16(const vk_device & device, const ggml_tensor * dst) {
    if (!shader_of(dst->src[0]->type) || dst->ne[2] * dst->ne[3] != 1 || !device->fp16 || is_chosen("plain")) {
        return false;
    }
    const bool is_big = dst->ne[0] >= M_MIN && dst->ne[1] >= N_MIN && dst->src[0]->ne[1] >= K_MIN;
    return is_chosen("coopmat") || (is_big && has_coopmat(device));
}

void ggml_vk_qvac_out_prod_f16(ggml_backend_vk_context * ctx, vk_context & subctx, ggml_tensor * dst) {
    const product  problem(dst);
    const uint32_t m   = problem.m();
    const uint32_t k   = problem.k();
    const uint32_t nbh = CEIL_DIV(k, K_PAD) * K_PAD;

    const uint64_t at_once = std::clamp(COPY_BYTES / (nbh * sizeof(ggml_fp16_t)) / COLUMNS_MIN * COLUMNS_MIN, COLUMNS_MIN, COLUMNS_MAX);
    const uint32_t columns = (uint32_t) std::min<uint64_t>(at_once, problem.n());
    const work_plan plan   = plan_of(ctx->device, m, columns, k);

    const uint64_t copy_bytes  = aligned((uint64_t) columns * nbh * sizeof(ggml_fp16_t));
    const uint64_t scale_bytes = aligned((uint64_t) columns * sizeof(float));
    const uint64_t share_bytes = plan.shares > 1 ? aligned((uint64_t) plan.shares * columns * m * sizeof(float)) : 0;

    ggml_vk_qvac_reserve_scratch(ctx, subctx, copy_bytes + scale_bytes + share_bytes);

    const vk_subbuffer a_buf = ggml_vk_tensor_subbuffer(ctx, problem.a, true);
    const vk_subbuffer b_buf = ggml_vk_tensor_subbuffer(ctx, problem.b, true);
    const vk_subbuffer d_buf = ggml_vk_tensor_subbuffer(ctx, dst, true);
    const vk_subbuffer copy  = { ctx->prealloc_x, 0, copy_bytes };
    const vk_subbuffer scale = { ctx->prealloc_x, copy_bytes, scale_bytes };
    const vk_subbuffer parts = { ctx->prealloc_x, copy_bytes + scale_bytes, share_bytes };

    vk_qvac_device & pipelines = *ctx->device->qvac;
    vk_pipeline      to_halves = pipelines.out_prod_scale[problem.b_is_aligned(ctx, b_buf)];
    vk_pipeline      multiply  = pipelines.out_prod_f16[problem.a->type][plan.shape][problem.a_is_aligned(ctx, a_buf)];
    const uint32_t   passes    = CEIL_DIV(problem.n(), columns);
    ggml_pipeline_request_descriptor_sets(ctx, to_halves, passes);
    ggml_pipeline_request_descriptor_sets(ctx, multiply, passes);
    if (plan.shares > 1) {
        ggml_pipeline_request_descriptor_sets(ctx, pipelines.out_prod_sum, passes);
    }

    for (uint32_t n0 = 0; n0 < problem.n(); n0 += columns) {
        const uint32_t n        = std::min(columns, problem.n() - n0);
        const uint32_t d_stride = ggml_vk_qvac_stride(dst, 1);
        const uint32_t d_offset = ggml_vk_qvac_offset(ctx, dst) + n0 * d_stride;

        if (ctx->prealloc_x_need_sync) {
            ggml_vk_sync_buffers(ctx, subctx);
        }
        const scale_push_constants scale_pc = {
            k, problem.b_stride_n(), problem.b_stride_k(), nbh, ggml_vk_qvac_offset(ctx, problem.b) + n0 * problem.b_stride_n(),
        };
        ggml_vk_dispatch_pipeline(ctx, subctx, to_halves, { b_buf, copy, scale }, scale_pc, { n, 1, 1 });
        ggml_vk_sync_buffers(ctx, subctx);

        product_push_constants pc = {
            m, n, k, ggml_vk_qvac_stride(problem.a, 0), ggml_vk_qvac_stride(problem.a, 1), nbh, d_stride, plan.share_k, 0,
            ggml_vk_qvac_offset(ctx, problem.a), d_offset,
        };
        if (plan.shares == 1) {
            ggml_vk_dispatch_pipeline(ctx, subctx, multiply, { a_buf, copy, scale, d_buf }, pc, { n, m, 1 });
        } else {
            pc.nb21     = m;
            pc.nb2z     = n * m;
            pc.d_offset = 0;
            ggml_vk_dispatch_pipeline(ctx, subctx, multiply, { a_buf, copy, scale, parts }, pc, { n, m, plan.shares });
            ggml_vk_sync_buffers(ctx, subctx);
            const sum_push_constants sum = { m, n, plan.shares, d_stride, d_offset };
            ggml_vk_dispatch_pipeline(ctx, subctx, pipelines.out_prod_sum, { parts, d_buf }, sum, { m, n, 1 });
        }
        ctx->prealloc_x_need_sync = true;
    }
}
