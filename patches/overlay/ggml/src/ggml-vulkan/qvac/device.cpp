// What ggml-vulkan does not tell of a device: whether it is software, and its driver.
//
// Software devices (lavapipe): upstream hides them unless an environment variable names one. Here they are listed behind
// all others, so that a user can choose one by name and no existing device changes its number.

#include "ops.h"

#include "ggml-backend-impl.h"
#include "ggml-train.h"

#include <map>
#include <mutex>
#include <string>

void ggml_vk_qvac_list_software_devices(const std::vector<vk::PhysicalDevice> & devices) {
    for (size_t i = 0; i < devices.size() && vk_instance.device_indices.size() < GGML_VK_MAX_DEVICES; ++i) {
        if (devices[i].getProperties().deviceType == vk::PhysicalDeviceType::eCpu && ggml_vk_device_is_supported(devices[i])) {
            vk_instance.device_indices.push_back(i);
        }
    }
}

static vk::PhysicalDevice physical_device(ggml_backend_dev_t dev) {
    const auto * ctx = (const ggml_backend_vk_device_context *) dev->context;
    return vk_instance.instance.enumeratePhysicalDevices()[vk_instance.device_indices[ctx->device]];
}

static bool is_software(ggml_backend_dev_t dev) {
    return physical_device(dev).getProperties().deviceType == vk::PhysicalDeviceType::eCpu;
}

static const char * driver(ggml_backend_dev_t dev) {
    static std::mutex mutex;
    static std::map<ggml_backend_dev_t, std::string> known; // a map's values stay where they are
    const std::lock_guard<std::mutex> lock(mutex);
    const auto [it, is_new] = known.try_emplace(dev);
    if (is_new) {
        vk::PhysicalDeviceDriverProperties properties;
        vk::PhysicalDeviceProperties2      all;
        all.pNext = &properties;
        physical_device(dev).getProperties2(&all);
        it->second = std::string(properties.driverName.data()) + " " + properties.driverInfo.data();
    }
    return it->second.c_str();
}

void * ggml_vk_qvac_get_proc_address(ggml_backend_reg_t reg, const char * name) {
    GGML_UNUSED(reg);
    if (strcmp(name, GGML_BACKEND_DEV_IS_SOFTWARE_PROC) == 0) {
        return (void *) is_software;
    }
    if (strcmp(name, GGML_BACKEND_SET_PIPELINE_CACHE_PROC) == 0) {
        return (void *) ggml_vk_qvac_set_pipeline_cache;
    }
    return strcmp(name, GGML_BACKEND_DEV_DRIVER_PROC) == 0 ? (void *) driver : nullptr;
}
