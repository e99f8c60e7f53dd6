#pragma once

// Products of few tokens with TQ1_0 and TQ2_0 weights, and what is recorded with them when one token is generated
// (qvac_tq_mul_mat_vec.comp): what ternary.cpp, ternary_vec.cpp and fusion.cpp need of each other.

#include "qvac-vulkan.h"

constexpr int64_t VK_QVAC_VEC_MAX_TOKENS   = 8;
constexpr int     VK_QVAC_VEC_MAX_MATRICES = 3;

// What the shader makes of its input.
enum vk_qvac_vec_source {
    VK_QVAC_VEC_QUANTIZED, // rows of TQ_QUANTIZE's result
    VK_QVAC_VEC_FLOATS,    // one token, which it quantizes
    VK_QVAC_VEC_NORMED,    // one token, of which it takes rms_norm(x) * norm first
    VK_QVAC_VEC_SOURCE_COUNT,
};

// What becomes of gate and up.
enum vk_qvac_vec_glu {
    VK_QVAC_VEC_NO_GLU,
    VK_QVAC_VEC_SWIGLU,
    VK_QVAC_VEC_RELU_SQR, // relu(gate)^2 * up
    VK_QVAC_VEC_GLU_COUNT,
};

constexpr int VK_QVAC_VEC_ROWS_COUNT = 3; // 1, 2 or 4 rows at a time
constexpr int VK_QVAC_VEC_COLS_COUNT = 4; // 1, 2, 4 or 8 tokens

// With a device: by type (TQ2_0) and by whether four products are one instruction.
struct vk_qvac_vec_pipelines {
    vk_pipeline one_token[2][2][VK_QVAC_VEC_ROWS_COUNT][VK_QVAC_VEC_SOURCE_COUNT][VK_QVAC_VEC_GLU_COUNT];
    vk_pipeline tokens[2][2][VK_QVAC_VEC_COLS_COUNT];
    vk_pipeline mixed[2][2];
};

// One of several products with the same input.
struct vk_qvac_vec_matrix {
    const ggml_tensor * w;
    const ggml_tensor * scale; // one float to multiply with, or null
    const ggml_tensor * dst;
};

struct vk_qvac_vec_job {
    vk_qvac_vec_matrix  matrices[VK_QVAC_VEC_MAX_MATRICES];
    int                 n_matrices;
    vk_qvac_vec_glu     glu; // matrix 0 is the gate, whose dst is the result, and 1 is up
    vk_qvac_vec_source  source;
    const ggml_tensor * x;    // floats
    const ggml_tensor * norm;
    float               eps;
    vk_subbuffer        q; // quantized tokens
    size_t              q_offset;
    const ggml_tensor * add; // to matrix 0, or null
    int64_t             tokens;
};

// The nodes of a job, from one on.
struct vk_qvac_vec_nodes {
    vk_qvac_vec_job job;
    int             count;
    int             results[VK_QVAC_VEC_MAX_MATRICES]; // those that write, behind the first node
    int             add = -1;                          // the ADD, likewise

    int n_results() const { return job.glu ? 1 : job.n_matrices; }
};

// As the shader has it.
struct vk_qvac_vec_push_constants {
    uint32_t n, row_halves, units, tokens;
    uint32_t begin[2];
    uint32_t w_offset[3];
    uint32_t d_offset[3], d_stride[3];
    uint32_t s_offset[3];
    float    d[3];
    uint32_t x_offset, x_stride;
    uint32_t norm_offset;
    uint32_t add_offset, add_stride;
    float    eps;
};

// All that there is to record.
struct vk_qvac_vec_plan {
    vk_pipeline                pipeline;
    vk_subbuffer               w, x, norm, scale, add, d;
    vk_qvac_vec_push_constants pc;
    uint32_t                   wgs, grid_tokens;
};

// With a backend context: what QVAC_VK_TERNARY leaves to this shader.
struct vk_qvac_vec_wish {
    bool plain = false;
    bool dot   = false;
    bool tile  = false; // one is asked for, so nothing is
};

// With a backend context: the nodes that are to be recorded as one.
struct vk_qvac_fusion {
    const ggml_cgraph * cgraph = nullptr;
    int                 begin  = 0;
    int                 count  = 0;
    const ggml_tensor * normed = nullptr; // what the RMS_NORM among them reads
    vk_qvac_vec_plan    plan   = {};
    // Results that fused_ops_write_mask has no room for.
    std::vector<const ggml_tensor *> further_results;
};

// ternary_vec.cpp

void ggml_vk_qvac_load_ternary_vec(vk_device & device, const vk_qvac_create_pipeline & create);
// A graph begins: reads QVAC_VK_TERNARY.
void ggml_vk_qvac_vec_graph_begin(ggml_backend_vk_context * ctx);
// Whether rows of both can be made by one dispatch.
bool ggml_vk_qvac_vec_can_stack(const ggml_tensor * w0, const ggml_tensor * w1);
// Says false where the job is none for this shader but for the tiles of ternary.cpp.
bool ggml_vk_qvac_plan_vec(const ggml_backend_vk_context * ctx, const vk_qvac_vec_job & job, vk_qvac_vec_plan & plan);
void ggml_vk_qvac_vec(ggml_backend_vk_context * ctx, vk_context & subctx, vk_qvac_vec_plan & plan);

// token_nodes.cpp

// Whether the node picks one row of one: a copy.
bool ggml_vk_qvac_is_the_row(const ggml_tensor * node);
// Whether the nodes from `begin` on are a product with what stands around it.
bool ggml_vk_qvac_match_vec(const ggml_cgraph * cgraph, int begin, vk_qvac_vec_nodes & found);

// fusion.cpp

// Whether the nodes from `node_idx` on are one dispatch; sets what ggml_vk_qvac_fuse has to set.
bool ggml_vk_qvac_fuse_generation(
    ggml_backend_vk_context * ctx, const ggml_cgraph * cgraph, int node_idx, const char ** name, bool * elementwise);
// Records what was found to be one dispatch, if it was found at this node.
bool ggml_vk_qvac_fused(ggml_backend_vk_context * ctx, vk_context & subctx, const ggml_cgraph * cgraph, int node_idx);
