#pragma once

// What exact_products.cpp keeps with a device.

#include "../ggml-vulkan-common.h"

// Tiles of outputs, and two shapes for few outputs, by the side that is narrow.
enum vk_qvac_exact_tile {
    VK_QVAC_EXACT_SLIM,
    VK_QVAC_EXACT_SQUARE,
    VK_QVAC_EXACT_LARGE,
    VK_QVAC_EXACT_NARROW_M,
    VK_QVAC_EXACT_NARROW_T,
    VK_QVAC_EXACT_TILE_COUNT,
};

// Numbers of tokens, 1, 2, 4 and 8, that have a kernel of their own.
constexpr uint32_t VK_QVAC_EXACT_VECS = 4;

// What becomes of a sum: the shader's MODE.
enum vk_qvac_exact_mode {
    VK_QVAC_EXACT_STORE,
    VK_QVAC_EXACT_GRAD,
    VK_QVAC_EXACT_UPDATE,
    VK_QVAC_EXACT_UPDATE_ADD,
    VK_QVAC_EXACT_MODE_COUNT,
};

struct vk_qvac_exact_products {
    // a along k, b along k, in fours
    vk_pipeline tile[GGML_TYPE_COUNT][VK_QVAC_EXACT_TILE_COUNT][2][2][2];
    vk_pipeline low_rank[VK_QVAC_EXACT_MODE_COUNT][VK_QVAC_EXACT_TILE_COUNT][2][2][2]; // but for STORE
    vk_pipeline vec[GGML_TYPE_COUNT][VK_QVAC_EXACT_VECS][2]; // in fours
    vk_pipeline get_rows[GGML_TYPE_COUNT];
};
