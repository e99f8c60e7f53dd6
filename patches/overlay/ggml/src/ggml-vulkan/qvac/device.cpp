// Software devices (lavapipe): upstream hides them unless an environment variable names one. Here they are listed behind
// all others, so that a user can choose one by name and no existing device changes its number.

#include "qvac-vulkan.h"

#include "ggml-backend-impl.h"
#include "ggml-train.h"

void ggml_vk_qvac_list_software_devices(const std::vector<vk::PhysicalDevice> & devices) {
    for (size_t i = 0; i < devices.size() && vk_instance.device_indices.size() < GGML_VK_MAX_DEVICES; ++i) {
        if (devices[i].getProperties().deviceType == vk::PhysicalDeviceType::eCpu && ggml_vk_device_is_supported(devices[i])) {
            vk_instance.device_indices.push_back(i);
        }
    }
}

static bool is_software(ggml_backend_dev_t dev) {
    const auto * ctx      = (const ggml_backend_vk_device_context *) dev->context;
    const auto   physical = vk_instance.instance.enumeratePhysicalDevices()[vk_instance.device_indices[ctx->device]];
    return physical.getProperties().deviceType == vk::PhysicalDeviceType::eCpu;
}

void * ggml_vk_qvac_get_proc_address(ggml_backend_reg_t reg, const char * name) {
    GGML_UNUSED(reg);
    return strcmp(name, GGML_BACKEND_DEV_IS_SOFTWARE_PROC) == 0 ? (void *) is_software : nullptr;
}
