#pragma once

// Pipelines of our own shaders, a member of vk_device_struct. Included by ggml-vulkan-types.h, behind `vk_pipeline`.

// Tile shapes of the OUT_PROD shader: square for the gradient of activations, and one narrow along each side for the
// gradients of LoRA's A and B, whose small side is the rank.
enum vk_qvac_out_prod_shape {
    VK_QVAC_OUT_PROD_SQUARE,
    VK_QVAC_OUT_PROD_NARROW_N,
    VK_QVAC_OUT_PROD_NARROW_M,
    VK_QVAC_OUT_PROD_SHAPE_COUNT,
};

struct vk_qvac_pipelines {
    vk_pipeline out_prod[GGML_TYPE_COUNT][VK_QVAC_OUT_PROD_SHAPE_COUNT];
    vk_pipeline cross_entropy;
    vk_pipeline cross_entropy_back;
};
