// GGML_OP_OUT_PROD, the backward of mul_mat: dst[m, n] = sum_k src0[m, k] * src1[n, k] (qvac_out_prod.comp).
//
// src0 is a weight in any type listed below or an F32 view; src1 is F32 at any strides, transposed as ggml's rule for
// mul_mat makes it. Big products go to out_prod_f16.cpp where the device has cooperative matrices. Batches broadcast as in upstream's CPU kernel: src0's batch i2 serves dst's i2 * ratio and on.

#include "ops.h"

#include "ggml-vulkan-shaders.hpp"

namespace {

struct out_prod_push_constants {
    uint32_t M, N, K;
    uint32_t ne2;
    uint32_t ratio2, ratio3;
    uint32_t nb00, nb01, nb02, nb03;
    uint32_t nb10, nb11, nb12, nb13;
    uint32_t nb21, nb22, nb23;
    uint32_t a_offset, b_offset, d_offset;
};

static_assert(sizeof(out_prod_push_constants) <= 128, "Vulkan guarantees no more push constants than 128 bytes");

struct tile_shape {
    uint32_t BM, BN, BK, TM, TN;

    std::vector<uint32_t> constants() const { return { (BM / TM) * (BN / TN), BM, BN, BK, TM, TN }; }
};

// Every shape stays within 16 KiB of shared memory, what Vulkan guarantees, and 256 invocations.
const tile_shape TILES[VK_QVAC_OUT_PROD_SHAPE_COUNT] = {
    /* SQUARE   */ { 64, 64, 16, 4, 4 },
    /* LARGE    */ { 128, 64, 16, 8, 4 },
    /* NARROW_N */ { 32,  8, 64, 2, 1 },
    /* NARROW_M */ {  8, 32, 64, 1, 2 }, // no multiple of 32: for unquantized src0 only
};

// Up to this many rows (columns) a narrow tile wastes less than a square one.
constexpr int64_t NARROW_MAX = 16;

struct type_shader {
    ggml_type    type;
    const char * name;
    uint64_t     size;
    const void * data;
};

#define QVAC_OUT_PROD(TYPE, name) { TYPE, "qvac_out_prod_" #name, qvac_out_prod_##name##_len, qvac_out_prod_##name##_data }

const type_shader SHADERS[] = {
    QVAC_OUT_PROD(GGML_TYPE_F32,   f32),
    QVAC_OUT_PROD(GGML_TYPE_F16,   f16),
    QVAC_OUT_PROD(GGML_TYPE_BF16,  bf16),
    QVAC_OUT_PROD(GGML_TYPE_Q4_0,  q4_0),
    QVAC_OUT_PROD(GGML_TYPE_Q4_1,  q4_1),
    QVAC_OUT_PROD(GGML_TYPE_Q5_0,  q5_0),
    QVAC_OUT_PROD(GGML_TYPE_Q8_0,  q8_0),
    QVAC_OUT_PROD(GGML_TYPE_Q4_K,  q4_k),
    QVAC_OUT_PROD(GGML_TYPE_Q6_K,  q6_k),
    QVAC_OUT_PROD(GGML_TYPE_TQ1_0, tq1_0),
    QVAC_OUT_PROD(GGML_TYPE_TQ2_0, tq2_0),
};

bool has_shader(ggml_type type) {
    for (const type_shader & shader : SHADERS) {
        if (shader.type == type) {
            return true;
        }
    }
    return false;
}

// With at least this many large tiles there is work enough for all of a large GPU.
constexpr uint64_t LARGE_MIN_TILES = 256;

vk_qvac_out_prod_shape shape_of(const ggml_tensor * dst) {
    if (dst->ne[1] <= NARROW_MAX) {
        return VK_QVAC_OUT_PROD_NARROW_N;
    }
    if (dst->ne[0] <= NARROW_MAX && !ggml_is_quantized(dst->src[0]->type)) {
        return VK_QVAC_OUT_PROD_NARROW_M;
    }
    const tile_shape & large = TILES[VK_QVAC_OUT_PROD_LARGE];
    const uint64_t     tiles = CEIL_DIV((uint64_t) dst->ne[0], large.BM) * CEIL_DIV((uint64_t) dst->ne[1], large.BN) * dst->ne[2] * dst->ne[3];
    return tiles >= LARGE_MIN_TILES && dst->ne[0] >= large.BM && dst->ne[1] >= large.BN ? VK_QVAC_OUT_PROD_LARGE : VK_QVAC_OUT_PROD_SQUARE;
}

// The shader counts elements in 32 bits; rows of a quantized tensor are contiguous blocks.
bool indexable(const ggml_tensor * t) {
    const size_t type_size = ggml_type_size(t->type);
    for (int dim = 0; dim < GGML_MAX_DIMS; ++dim) {
        if (t->nb[dim] % type_size != 0) {
            return false;
        }
    }
    return ggml_nbytes(t) / type_size < UINT32_MAX && (!ggml_is_quantized(t->type) || t->nb[0] == type_size);
}

} // namespace

void ggml_vk_qvac_load_out_prod(vk_device & device, const vk_qvac_create_pipeline & create) {
    for (const type_shader & shader : SHADERS) {
        for (int shape = 0; shape < VK_QVAC_OUT_PROD_SHAPE_COUNT; ++shape) {
            if (shape == VK_QVAC_OUT_PROD_NARROW_M && ggml_is_quantized(shader.type)) {
                continue;
            }
            const tile_shape & tile = TILES[shape];
            create(device->qvac->out_prod[shader.type][shape], shader.name, shader.size, shader.data, 3,
                   sizeof(out_prod_push_constants), { tile.BM, tile.BN, 1 }, tile.constants(), 0);
        }
    }
}

bool ggml_vk_qvac_out_prod_supported(const vk_device & device, const ggml_tensor * op) {
    const ggml_tensor * src0 = op->src[0];
    const ggml_tensor * src1 = op->src[1];
    if (!has_shader(src0->type) || src1->type != GGML_TYPE_F32 || op->type != GGML_TYPE_F32) {
        return false;
    }
    if (!indexable(src0) || !indexable(src1) || !indexable(op) || op->nb[0] != sizeof(float)) {
        return false;
    }
    const tile_shape & tile   = TILES[shape_of(op)];
    const auto &       limits = device->properties.limits.maxComputeWorkGroupCount;
    return CEIL_DIV(op->ne[0], (int64_t) tile.BM) <= limits[0] &&
           CEIL_DIV(op->ne[1], (int64_t) tile.BN) <= limits[1] &&
           op->ne[2] * op->ne[3] <= limits[2];
}

void ggml_vk_qvac_out_prod(ggml_backend_vk_context * ctx, vk_context & subctx, ggml_tensor * dst) {
    const ggml_tensor * src0 = dst->src[0]; // [M, K, ne2/ratio2, ne3/ratio3]
    const ggml_tensor * src1 = dst->src[1]; // [N, K, ne2, ne3]

    vk_pipeline pipeline = ctx->device->qvac->out_prod[src0->type][shape_of(dst)];
    ggml_pipeline_request_descriptor_sets(ctx, pipeline, 1);

    const auto stride = ggml_vk_qvac_stride;
    const out_prod_push_constants pc = {
        (uint32_t) dst->ne[0], (uint32_t) dst->ne[1], (uint32_t) src0->ne[1],
        (uint32_t) dst->ne[2],
        (uint32_t) (dst->ne[2] / src0->ne[2]), (uint32_t) (dst->ne[3] / src0->ne[3]),
        stride(src0, 0), stride(src0, 1), stride(src0, 2), stride(src0, 3),
        stride(src1, 0), stride(src1, 1), stride(src1, 2), stride(src1, 3),
        stride(dst, 1), stride(dst, 2), stride(dst, 3),
        ggml_vk_qvac_offset(ctx, src0), ggml_vk_qvac_offset(ctx, src1), ggml_vk_qvac_offset(ctx, dst),
    };
    ggml_vk_dispatch_pipeline(ctx, subctx, pipeline,
        { ggml_vk_tensor_subbuffer(ctx, src0, true), ggml_vk_tensor_subbuffer(ctx, src1, true), ggml_vk_tensor_subbuffer(ctx, dst, true) },
        pc, { pc.M, pc.N, (uint32_t) (dst->ne[2] * dst->ne[3]) });
}
