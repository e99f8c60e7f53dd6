#pragma once

// What exact_elementwise.cpp keeps with a device.

#include "../ggml-vulkan-common.h"

struct vk_qvac_exact_elementwise {
};
