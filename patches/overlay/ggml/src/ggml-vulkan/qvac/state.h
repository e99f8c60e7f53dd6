#pragma once

// What our ops keep with a device and with a backend context. Upstream's structs hold these by pointer only, so that a
// change here compiles no file of upstream's again.

#include "../ggml-vulkan-common.h"

// Tile shapes of the OUT_PROD shader: square for the gradient of activations, and one narrow along each side for the
// gradients of LoRA's A and B, whose small side is the rank.
enum vk_qvac_out_prod_shape {
    VK_QVAC_OUT_PROD_SQUARE,
    VK_QVAC_OUT_PROD_NARROW_N,
    VK_QVAC_OUT_PROD_NARROW_M,
    VK_QVAC_OUT_PROD_SHAPE_COUNT,
};

// The kernels of attention; each is made for 16, 32 .. 256 values a head, of which a device needs one or two.
enum vk_qvac_attention_kernel {
    VK_QVAC_ATTENTION_FORWARD,
    VK_QVAC_ATTENTION_BACK_Q,
    VK_QVAC_ATTENTION_BACK_KV,
    VK_QVAC_ATTENTION_KERNEL_COUNT,
};

constexpr uint32_t VK_QVAC_ATTENTION_WIDTHS = 16;

// With a device: the pipelines.
struct vk_qvac_device {
    vk_pipeline out_prod[GGML_TYPE_COUNT][VK_QVAC_OUT_PROD_SHAPE_COUNT];
    vk_pipeline cross_entropy;
    vk_pipeline cross_entropy_back;
    vk_pipeline attention[VK_QVAC_ATTENTION_KERNEL_COUNT][VK_QVAC_ATTENTION_WIDTHS];
};

// With a backend context: scratch memory and what is known of the graph being recorded.
struct vk_qvac_context {
    vk_buffer scratch;
};
