#pragma once

// What exact_rows.cpp keeps with a device.

#include "../ggml-vulkan-common.h"

struct vk_qvac_exact_rows {
};
