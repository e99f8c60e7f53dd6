#pragma once

// What exact_elementwise.cpp, exact_copy.cpp and exact_rope.cpp keep with a device.

#include "../ggml-vulkan-common.h"
#include "qvac/exact-values.h"

// The shader's LAYOUT.
enum vk_qvac_exact_layout {
    VK_QVAC_EXACT_ANY,
    VK_QVAC_EXACT_SAME,
    VK_QVAC_EXACT_REPEATED,
    VK_QVAC_EXACT_ONE,
    VK_QVAC_EXACT_LAYOUT_COUNT,
};

struct vk_qvac_exact_elementwise {
    vk_pipeline values[qvac::EXACT_COUNT][VK_QVAC_EXACT_LAYOUT_COUNT];
    vk_pipeline glu_back[2][2]; // [of the squared ReLU][is aligned]
    vk_pipeline adamw;
    vk_pipeline copy[2][2];     // [from f16][to f16]
    vk_pipeline set_rows[2];    // [to f16]
    vk_pipeline rope[2];        // pairs of neighbours, NEOX
};
