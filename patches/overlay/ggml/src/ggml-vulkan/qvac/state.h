#pragma once

// What our ops keep with a device and with a backend context. Upstream's structs hold these by pointer only, so that a
// change here compiles no file of upstream's again.

#include "../ggml-vulkan-common.h"
#include "ternary.h"

// Tile shapes of the OUT_PROD shader: square for the gradient of activations, and one narrow along each side for the
// gradients of LoRA's A and B, whose small side is the rank.
enum vk_qvac_out_prod_shape {
    VK_QVAC_OUT_PROD_SQUARE,
    VK_QVAC_OUT_PROD_NARROW_N,
    VK_QVAC_OUT_PROD_NARROW_M,
    VK_QVAC_OUT_PROD_SHAPE_COUNT,
};

// With a device: the pipelines.
struct vk_qvac_device {
    vk_pipeline out_prod[GGML_TYPE_COUNT][VK_QVAC_OUT_PROD_SHAPE_COUNT];
    vk_pipeline cross_entropy;
    vk_pipeline cross_entropy_back;
    vk_qvac_ternary_pipelines ternary;
};

// With a backend context: scratch memory and what is known of the graph being recorded.
struct vk_qvac_context {
    vk_buffer scratch;
    vk_qvac_ternary_state ternary;
};
