// LOW_RANK_PROJECT with a p that is contiguous along k (qvac_low_rank_project_along_k.comp): LoRA's B^T dy. Up to three of
// them, whose results stand below each other in one matrix, are one dispatch.

#include "low_rank.h"

#include "ggml-train.h"
#include "ggml-vulkan-shaders.hpp"

namespace {

struct product {
    uint32_t N, R;
    uint32_t nbp0, nbv1;
    uint32_t p_offset, v_offset, z_offset;
    float    scale;
};

struct push_constants {
    uint32_t T;
    uint32_t nbz1;
    product  products[VK_QVAC_PROJECTIONS];
};

static_assert(sizeof(push_constants) <= 128, "Vulkan guarantees no more push constants than 128 bytes");

// The shader's constants: columns and tokens of a workgroup.
constexpr uint32_t COLUMNS = 32;
constexpr uint32_t TOKENS  = 4;

// Invocations of a workgroup: the more tokens there are, the more workgroups keep the device busy.
constexpr uint32_t BLOCK_SIZE[2] = { 256, 128 };
constexpr int64_t  MANY_TOKENS   = 1536;

// Rows of whole fours.
bool is_aligned(const ggml_tensor * p, uint32_t offset) {
    return p->ne[1] % 4 == 0 && p->nb[0] % 16 == 0 && offset % 4 == 0;
}

} // namespace

void ggml_vk_qvac_load_low_rank_along_k(vk_device & device, const vk_qvac_create_pipeline & create) {
    for (uint32_t aligned = 0; aligned < 2; ++aligned) {
        for (uint32_t many = 0; many < 2; ++many) {
            create(device->qvac->low_rank_project_along_k[aligned][many], "qvac_low_rank_project_along_k",
                   qvac_low_rank_project_along_k_len, qvac_low_rank_project_along_k_data, 3, sizeof(push_constants),
                   { TOKENS, COLUMNS, 1 }, { BLOCK_SIZE[many], aligned }, 0);
        }
    }
}

bool ggml_vk_qvac_plan_along_k(const ggml_backend_vk_context * ctx, vk_qvac_projections & f) {
    f.p = {};
    f.v = {};
    for (int i = 0; i < f.count; ++i) {
        const ggml_tensor * p = f.ops[i]->src[0]; // [n, r]
        const ggml_tensor * v = f.ops[i]->src[1]; // [n, T]
        if (p->nb[1] != sizeof(float) || p->nb[0] < p->nb[1] * p->ne[1] || v->ne[1] != f.result->ne[1]) {
            return false;
        }
        f.p.add(ctx, p);
        f.v.add(ctx, v);
    }
    f.p.close(ctx);
    f.v.close(ctx);
    const int64_t groups = CEIL_DIV(f.result->ne[1], (int64_t) TOKENS);
    return f.p.ok && f.v.ok && groups <= ctx->device->properties.limits.maxComputeWorkGroupCount[0];
}

void ggml_vk_qvac_project_along_k(ggml_backend_vk_context * ctx, vk_context & subctx, const vk_qvac_projections & f) {
    push_constants pc = {};
    pc.T    = (uint32_t) f.result->ne[1];
    pc.nbz1 = ggml_vk_qvac_stride(f.result, 1);

    uint32_t z_offset = ggml_vk_qvac_offset(ctx, f.result);
    uint32_t most     = 0;
    bool     aligned  = true;
    for (int i = 0; i < f.count; ++i) {
        const ggml_tensor * p = f.ops[i]->src[0];
        const ggml_tensor * v = f.ops[i]->src[1];
        const uint32_t      r = (uint32_t) p->ne[1];
        pc.products[i] = {
            (uint32_t) p->ne[0], r,
            ggml_vk_qvac_stride(p, 0), ggml_vk_qvac_stride(v, 1),
            f.p.offset(ctx, p), f.v.offset(ctx, v), z_offset,
            ggml_train_op_param(f.ops[i]),
        };
        aligned  = aligned && is_aligned(p, pc.products[i].p_offset);
        most     = std::max(most, r);
        z_offset += r;
    }
    vk_pipeline pipeline = ctx->device->qvac->low_rank_project_along_k[aligned][f.result->ne[1] >= MANY_TOKENS];
    ggml_pipeline_request_descriptor_sets(ctx, pipeline, 1);
    ggml_vk_dispatch_pipeline(ctx, subctx, pipeline, { f.p.sub(), f.v.sub(), ggml_vk_tensor_subbuffer(ctx, f.result, true) }, pc,
        { pc.T, most, (uint32_t) f.count });
}
