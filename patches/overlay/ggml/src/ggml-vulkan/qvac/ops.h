#pragma once

// What the files of this folder need of each other: each op has a file of its own, and dispatch.cpp knows them all.

#include "graph_nodes.h"
#include "qvac-vulkan.h"
#include "state.h"

// pipeline_cache.cpp; the rest of it is called by upstream (qvac-vulkan.h).
void ggml_vk_qvac_set_pipeline_cache(const char * folder);

// submission.cpp; the rest of it is called by upstream (qvac-vulkan.h).
void ggml_vk_qvac_submission_graph_begin(ggml_backend_vk_context * ctx);

// upstream_limits.cpp
bool ggml_vk_qvac_beyond_upstream(const vk_device & device, const ggml_tensor * op);

// out_prod.cpp
void ggml_vk_qvac_load_out_prod(vk_device & device, const vk_qvac_create_pipeline & create);
bool ggml_vk_qvac_out_prod_supported(const vk_device & device, const ggml_tensor * op);
void ggml_vk_qvac_out_prod(ggml_backend_vk_context * ctx, vk_context & subctx, ggml_tensor * dst);

// out_prod_f16.cpp
void ggml_vk_qvac_load_out_prod_f16(vk_device & device, const vk_qvac_create_pipeline & create);
bool ggml_vk_qvac_out_prod_is_f16(const vk_device & device, const ggml_tensor * dst); // of those that out_prod.cpp supports
void ggml_vk_qvac_out_prod_f16(ggml_backend_vk_context * ctx, vk_context & subctx, ggml_tensor * dst);

// cross_entropy.cpp
void ggml_vk_qvac_load_cross_entropy(vk_device & device, const vk_qvac_create_pipeline & create);
bool ggml_vk_qvac_cross_entropy_is_labels(const ggml_tensor * op);
bool ggml_vk_qvac_cross_entropy_supported(const vk_device & device, const ggml_tensor * op);
void ggml_vk_qvac_cross_entropy_loss(ggml_backend_vk_context * ctx, vk_context & subctx, ggml_tensor * dst);
void ggml_vk_qvac_cross_entropy_loss_back(ggml_backend_vk_context * ctx, vk_context & subctx, ggml_tensor * dst);

// low_rank.cpp
void ggml_vk_qvac_load_low_rank(vk_device & device, const vk_qvac_create_pipeline & create);
bool ggml_vk_qvac_low_rank_supported(const vk_device & device, const ggml_tensor * op);
void ggml_vk_qvac_low_rank_project(ggml_backend_vk_context * ctx, vk_context & subctx, ggml_tensor * dst);
void ggml_vk_qvac_low_rank_add(ggml_backend_vk_context * ctx, vk_context & subctx, ggml_tensor * dst);
void ggml_vk_qvac_low_rank_grad(ggml_backend_vk_context * ctx, vk_context & subctx, ggml_tensor * dst);

// low_rank_long.cpp
void ggml_vk_qvac_load_low_rank_long(vk_device & device, const vk_qvac_create_pipeline & create);

// fusion_low_rank.cpp
bool ggml_vk_qvac_fuse_low_rank(
    ggml_backend_vk_context * ctx, const ggml_cgraph * cgraph, int node_idx, const char ** name, bool * elementwise);
// Records LOW_RANK_PROJECT and what is fused with it.
void ggml_vk_qvac_fused_projections(ggml_backend_vk_context * ctx, vk_context & subctx, const ggml_cgraph * cgraph, int node_idx);

// rms_norm.cpp
void ggml_vk_qvac_load_rms_norm(vk_device & device, const vk_qvac_create_pipeline & create);
bool ggml_vk_qvac_takes_rms_norm(const ggml_backend_vk_context * ctx, const ggml_tensor * op);
bool ggml_vk_qvac_fuses_rms_norm(const ggml_backend_vk_context * ctx, const ggml_cgraph * cgraph, int node_idx);
void ggml_vk_qvac_rms_norm(ggml_backend_vk_context * ctx, vk_context & subctx, ggml_tensor * norm, ggml_tensor * mul);
bool ggml_vk_qvac_rms_norm_mul_back_supported(const vk_device & device, const ggml_tensor * op);
void ggml_vk_qvac_rms_norm_mul_back(ggml_backend_vk_context * ctx, vk_context & subctx, ggml_tensor * dst);

// rope.cpp: ROPE, ROPE_BACK
void ggml_vk_qvac_load_rope(vk_device & device, const vk_qvac_create_pipeline & create);
bool ggml_vk_qvac_takes_rope(const ggml_backend_vk_context * ctx, const ggml_tensor * op);
void ggml_vk_qvac_rope(ggml_backend_vk_context * ctx, vk_context & subctx, ggml_tensor * dst);

// elementwise.cpp
void ggml_vk_qvac_load_elementwise(vk_device & device, const vk_qvac_create_pipeline & create);
bool ggml_vk_qvac_takes_binary(const ggml_backend_vk_context * ctx, const ggml_tensor * op); // ADD, GLU
void ggml_vk_qvac_binary(ggml_backend_vk_context * ctx, vk_context & subctx, ggml_tensor * dst);
// RELU, SQR and MUL from a node on: whether they are one dispatch, and that dispatch.
bool ggml_vk_qvac_fuses_relu_sqr(const ggml_backend_vk_context * ctx, const ggml_cgraph * cgraph, int node_idx);
bool ggml_vk_qvac_fused_relu_sqr(ggml_backend_vk_context * ctx, vk_context & subctx, const ggml_cgraph * cgraph, int node_idx);
bool ggml_vk_qvac_glu_back_supported(const vk_device & device, const ggml_tensor * op);
void ggml_vk_qvac_glu_back(ggml_backend_vk_context * ctx, vk_context & subctx, ggml_tensor * dst);

// attention.cpp
void ggml_vk_qvac_load_attention(vk_device & device, const vk_qvac_create_pipeline & create);
bool ggml_vk_qvac_attention_supported(const vk_device & device, const ggml_tensor * op);
void ggml_vk_qvac_attention(ggml_backend_vk_context * ctx, vk_context & subctx, ggml_tensor * dst);
void ggml_vk_qvac_attention_back(ggml_backend_vk_context * ctx, vk_context & subctx, ggml_tensor * dst);

// Of upstream's ops we take those with more rows than this; fewer are generation's, where upstream is as fast.
constexpr int64_t VK_QVAC_FEW_ROWS = 8;

// Float values in the order of memory, in a buffer: what our kernels for upstream's ops read.
inline bool ggml_vk_qvac_is_plain(const ggml_tensor * t) {
    return t->type == GGML_TYPE_F32 && ggml_is_contiguous(t) && t->buffer;
}

// Rows of floats, with offsets and strides in floats.
inline bool ggml_vk_qvac_is_float_rows(const ggml_tensor * t) {
    return t->type == GGML_TYPE_F32 && t->nb[0] == sizeof(float) && t->nb[1] % sizeof(float) == 0 &&
           t->nb[2] % sizeof(float) == 0 && t->nb[3] % sizeof(float) == 0;
}

// Where `t` begins behind its descriptor, in elements of its type (blocks where it is quantized).
inline uint32_t ggml_vk_qvac_offset(const ggml_backend_vk_context * ctx, const ggml_tensor * t) {
    return get_misalign_bytes(ctx, t) / (uint32_t) ggml_type_size(t->type);
}

// Whether `t`, bound as `buffer`, begins at a multiple of 16 bytes, so that four values are read at once.
inline bool ggml_vk_qvac_is_aligned(const ggml_backend_vk_context * ctx, const ggml_tensor * t, const vk_subbuffer & buffer) {
    return (buffer.offset + get_misalign_bytes(ctx, t)) % 16 == 0 && buffer.offset % 16 == 0;
}

// Stride of dimension `dim` in elements of the type of `t` (blocks where it is quantized).
inline uint32_t ggml_vk_qvac_stride(const ggml_tensor * t, int dim) {
    return (uint32_t) (t->nb[dim] / ggml_type_size(t->type));
}

// Upstream's scratch buffer for operands (ctx->prealloc_x), at least so large; it is grown, and waited for, as upstream does.
inline void ggml_vk_qvac_reserve_scratch(ggml_backend_vk_context * ctx, vk_context & subctx, uint64_t bytes) {
    if (ctx->prealloc_size_x < bytes) {
        ctx->prealloc_size_x = bytes;
        ggml_vk_preallocate_buffers(ctx, subctx);
    }
}
