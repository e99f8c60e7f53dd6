#pragma once

// What exact_attention.cpp keeps with a device.

#include "../ggml-vulkan-common.h"

struct vk_qvac_exact_attention {
};
