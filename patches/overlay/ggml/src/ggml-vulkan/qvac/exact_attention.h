#pragma once

// What exact_attention.cpp keeps with a device.

#include "../ggml-vulkan-common.h"

constexpr uint32_t VK_QVAC_EXACT_ATTENTION_WIDTHS = 4; // heads of up to 32, 64, 128 and 256 values

struct vk_qvac_exact_attention {
    vk_pipeline forward[VK_QVAC_EXACT_ATTENTION_WIDTHS];
    vk_pipeline cache[VK_QVAC_EXACT_ATTENTION_WIDTHS][2]; // of floats, of halves
    vk_pipeline back_q[VK_QVAC_EXACT_ATTENTION_WIDTHS];
    vk_pipeline back_kv[VK_QVAC_EXACT_ATTENTION_WIDTHS];
    vk_pipeline delta;
    vk_pipeline few[2]; // of floats, of halves
    vk_pipeline join;
};
