#pragma once

// What the files low_rank*.cpp share: shaders for LOW_RANK_PROJECT and LOW_RANK_ADD take the same operands.

#include "ops.h"
#include "span.h"

struct vk_qvac_project_push_constants {
    uint32_t N, R, T;
    uint32_t nbp0, nbp1;
    uint32_t nbv1;
    uint32_t p_offset, v_offset, z_offset;
    float    scale;
};

struct vk_qvac_low_rank_add_push_constants {
    uint32_t N, R, T;
    uint32_t nbp0, nbp1;
    uint32_t nbz1;
    uint32_t y_offset, p_offset, z_offset, add_offset;
    uint32_t has_add;
    float    scale;
};

// Records the op with one of its pipelines.
void ggml_vk_qvac_record_project(ggml_backend_vk_context * ctx, vk_context & subctx, vk_pipeline & pipeline, ggml_tensor * dst);
void ggml_vk_qvac_record_low_rank_add(ggml_backend_vk_context * ctx, vk_context & subctx, vk_pipeline & pipeline, ggml_tensor * dst);

// Products B^T dy of several layers, and the matrix that their results are rows of.
constexpr int VK_QVAC_PROJECTIONS = 3;
struct vk_qvac_projections {
    const ggml_tensor * ops[VK_QVAC_PROJECTIONS];
    int                 count;
    const ggml_tensor * result;
    vk_qvac_span        p, v; // set by ggml_vk_qvac_plan_along_k
};

// low_rank_along_k.cpp
// Whether they can be recorded as one dispatch.
bool ggml_vk_qvac_plan_along_k(const ggml_backend_vk_context * ctx, vk_qvac_projections & projections);
void ggml_vk_qvac_project_along_k(ggml_backend_vk_context * ctx, vk_context & subctx, const vk_qvac_projections & projections);
void ggml_vk_qvac_load_low_rank_along_k(vk_device & device, const vk_qvac_create_pipeline & create);

// The same for many tokens (low_rank_long.cpp); false where an op is left to the kernels of low_rank.cpp.
bool ggml_vk_qvac_low_rank_project_long(ggml_backend_vk_context * ctx, vk_context & subctx, ggml_tensor * dst);
bool ggml_vk_qvac_low_rank_add_long(ggml_backend_vk_context * ctx, vk_context & subctx, ggml_tensor * dst);
bool ggml_vk_qvac_low_rank_grad_long(ggml_backend_vk_context * ctx, vk_context & subctx, ggml_tensor * dst);
