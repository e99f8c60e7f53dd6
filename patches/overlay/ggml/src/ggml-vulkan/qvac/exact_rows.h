#pragma once

// What exact_rows.cpp keeps with a device.

#include "../ggml-vulkan-common.h"

// Rows of up to 2048, 6144 and 14336 values are kept in registers; of longer ones the rest is read again.
constexpr uint32_t VK_QVAC_EXACT_ROW_SHAPE_COUNT = 3;

struct vk_qvac_exact_rows {
    vk_pipeline rms_norm[VK_QVAC_EXACT_ROW_SHAPE_COUNT][2]; // [is aligned]
    vk_pipeline rms_norm_back[VK_QVAC_EXACT_ROW_SHAPE_COUNT][2];
    vk_pipeline sum_rows[2];
    vk_pipeline cross_entropy[2];
    vk_pipeline cross_entropy_back[2];
};
