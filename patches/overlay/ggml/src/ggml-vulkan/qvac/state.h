#pragma once

// What our ops keep with a device and with a backend context. Upstream's structs hold these by pointer only, so that a
// change here compiles no file of upstream's again.

#include "../ggml-vulkan-common.h"
#include "exact_attention.h"
#include "exact_elementwise.h"
#include "exact_products.h"
#include "exact_rows.h"
#include "fusion_quantize.h"
#include "program.h"
#include "rows.h"
#include "ternary.h"
#include "ternary_vec.h"

// Tile shapes of the OUT_PROD shader: square or larger for the gradient of activations, and one narrow along each side for the
// gradients of LoRA's A and B, whose small side is the rank.
enum vk_qvac_out_prod_shape {
    VK_QVAC_OUT_PROD_SQUARE,
    VK_QVAC_OUT_PROD_LARGE,
    VK_QVAC_OUT_PROD_NARROW_N,
    VK_QVAC_OUT_PROD_NARROW_M,
    VK_QVAC_OUT_PROD_SHAPE_COUNT,
};

// Tile shapes of products on half-precision operands; those from DEEP on are taken when asked for.
enum vk_qvac_out_prod_f16_shape {
    VK_QVAC_OUT_PROD_F16_SMALL,
    VK_QVAC_OUT_PROD_F16_LARGE,
    VK_QVAC_OUT_PROD_F16_SHAPE_COUNT,
};

// The kernels of LOW_RANK_* for many tokens make 8, 16 or 24 columns in one workgroup.
constexpr uint32_t VK_QVAC_LOW_RANK_WIDTHS = 3;

// The kernels of attention; each is made for 16, 32 .. 256 values a head, of which a device needs one or two.
enum vk_qvac_attention_kernel {
    VK_QVAC_ATTENTION_FORWARD,
    VK_QVAC_ATTENTION_BACK_Q,
    VK_QVAC_ATTENTION_BACK_KV,
    VK_QVAC_ATTENTION_KERNEL_COUNT,
};

constexpr uint32_t VK_QVAC_ATTENTION_WIDTHS = 16;

// Where compiled pipelines are kept (pipeline_cache.cpp).
struct vk_qvac_pipeline_cache {
    std::once_flag    once;
    vk::PipelineCache handle; // none: nothing is kept
    std::string       file;
    size_t            size = 0; // of the data that the file has
};

// With a device: the pipelines.
struct vk_qvac_device {
    vk_qvac_pipeline_cache pipeline_cache;
    vk_pipeline out_prod[GGML_TYPE_COUNT][VK_QVAC_OUT_PROD_SHAPE_COUNT];
    vk_pipeline cross_entropy[2];      // one value at a time, and four
    vk_pipeline cross_entropy_back[2];
    vk_pipeline out_prod_f16[GGML_TYPE_COUNT][VK_QVAC_OUT_PROD_F16_SHAPE_COUNT][2]; // [weights are aligned]
    vk_pipeline out_prod_scale[2];                                                  // [is aligned]
    vk_pipeline out_prod_sum;
    vk_qvac_ternary_pipelines ternary;
    vk_qvac_vec_pipelines ternary_vec;
    vk_qvac_program_pipelines program;
    vk_pipeline low_rank_project[2];            // aligned
    vk_pipeline low_rank_project_along_k[2][2]; // aligned, many tokens
    vk_pipeline low_rank_add[2];                // p along k
    vk_pipeline low_rank_grad;
    vk_pipeline low_rank_project_long[VK_QVAC_LOW_RANK_WIDTHS];
    vk_pipeline low_rank_add_long[2]; // p along n, and along k
    vk_pipeline low_rank_grad_long[VK_QVAC_LOW_RANK_WIDTHS];
    vk_pipeline low_rank_grad_sum;
    vk_pipeline rms_norm[VK_QVAC_ROW_SHAPE_COUNT][2][2];       // unaligned and aligned; without and with a product behind it
    vk_pipeline rms_norm_mul_back[VK_QVAC_ROW_SHAPE_COUNT][2]; // unaligned and aligned
    vk_qvac_row_pipelines rows;
    vk_pipeline rope[2];              // pairs of neighbours, NEOX
    vk_pipeline binary[3];            // ADD, SWIGLU, a squared ReLU's
    vk_pipeline glu_back[2][2];       // of SWIGLU and of the squared ReLU; one value at a time, and four
    vk_pipeline attention[VK_QVAC_ATTENTION_KERNEL_COUNT][VK_QVAC_ATTENTION_WIDTHS];
    vk_pipeline attention_stats;
    vk_qvac_exact_products exact_products;
    vk_qvac_exact_attention exact_attention;
    vk_qvac_exact_rows exact_rows;
    vk_qvac_exact_elementwise exact_elementwise;
};

// With a backend context: how the graph being recorded goes to the device (submission.cpp).
struct vk_qvac_submission {
    bool generates = false; // a token: its end is submitted with what the host does next
    bool is_whole  = false; // most of it is one dispatch: so is all of it
    bool held      = false; // it is recorded and waits for that
};

// With a backend context: what is known of the graph being recorded, and memory of our own.
struct vk_qvac_context {
    bool fused_rms_norm = false; // the node being recorded is an RMS_NORM that we fused with the MUL behind it
    vk_qvac_ternary_state ternary;
    vk_qvac_vec_wish vec_wish;
    vk_qvac_fusion fusion;
    vk_qvac_quantize_fusion quantize_fusion;
    vk_qvac_program program;
    vk_qvac_submission submission;
};
