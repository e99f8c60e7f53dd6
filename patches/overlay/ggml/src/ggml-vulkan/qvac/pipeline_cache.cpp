// Compiled pipelines on disk: one file for each device and driver, in the folder that the program names
// (ggml_backend_set_pipeline_cache). Drivers of desktops keep a cache of their own; those of phones, and some containers, do not,
// and there every run would compile for seconds again.
//
// A file holds what vkGetPipelineCacheData gives and a checksum behind it: drivers check what their data is for, but not that
// it is whole. It is read when the first pipeline is made and written, by way of a temporary name, when a backend is freed and
// has made new ones. Whatever goes wrong with it, there is merely no cache.

#include "ops.h"

#include <filesystem>
#include <fstream>
#include <random>

namespace {

std::mutex            folder_mutex;
std::filesystem::path folder_of_caches; // empty: none

uint64_t checksum(const std::vector<uint8_t> & data) {
    uint64_t hash = 0xcbf29ce484222325u; // FNV-1a
    for (const uint8_t byte : data) {
        hash = (hash ^ byte) * 0x100000001b3u;
    }
    return hash;
}

std::filesystem::path file_for(const vk_device & device) {
    const std::lock_guard<std::mutex> lock(folder_mutex);
    if (folder_of_caches.empty()) {
        return {};
    }
    const auto & properties = device->properties;
    std::stringstream name;
    name << std::hex << std::setfill('0') << std::setw(4) << properties.vendorID << '-' << std::setw(4) << properties.deviceID << '-';
    for (const uint8_t byte : properties.pipelineCacheUUID) {
        name << std::setw(2) << (uint32_t) byte;
    }
    return folder_of_caches / (name.str() + ".bin");
}

// The data without its checksum; nothing where there is no whole file.
std::vector<uint8_t> read(const std::filesystem::path & file) {
    std::ifstream        in(file, std::ios::binary);
    std::vector<uint8_t> data((std::istreambuf_iterator<char>(in)), std::istreambuf_iterator<char>());
    uint64_t             stored = 0;
    if (data.size() < sizeof(stored)) {
        return {};
    }
    memcpy(&stored, data.data() + data.size() - sizeof(stored), sizeof(stored));
    data.resize(data.size() - sizeof(stored));
    return checksum(data) == stored ? data : std::vector<uint8_t>();
}

void write(const std::filesystem::path & file, const std::vector<uint8_t> & data) {
    std::error_code             error;
    const uint64_t              sum = checksum(data);
    const std::filesystem::path temporary =
        file.parent_path() / (file.stem().string() + "." + std::to_string(std::random_device{}()) + ".tmp");
    std::filesystem::create_directories(file.parent_path(), error);
    {
        std::ofstream out(temporary, std::ios::binary);
        out.write((const char *) data.data(), (std::streamsize) data.size());
        out.write((const char *) &sum, sizeof(sum));
        if (!out) {
            error = std::make_error_code(std::errc::io_error);
        }
    }
    if (!error) {
        std::filesystem::rename(temporary, file, error);
    }
    if (error) {
        std::filesystem::remove(temporary, error);
    }
}

} // namespace

void ggml_vk_qvac_set_pipeline_cache(const char * folder) {
    const std::lock_guard<std::mutex> lock(folder_mutex);
    folder_of_caches = std::filesystem::u8path(folder);
}

vk::PipelineCache ggml_vk_qvac_pipeline_cache(const vk_device & device) {
    vk_qvac_pipeline_cache & cache = device->qvac->pipeline_cache;
    // Pipelines are made by several threads.
    std::call_once(cache.once, [&] {
        cache.file = file_for(device).string();
        if (cache.file.empty()) {
            return;
        }
        const std::vector<uint8_t> data = read(cache.file);
        vk::PipelineCacheCreateInfo info;
        info.initialDataSize = data.size();
        info.pInitialData    = data.data();
        cache.handle = device->device.createPipelineCache(info);
        cache.size   = data.size();
    });
    return cache.handle;
}

void ggml_vk_qvac_save_pipelines(const vk_device & device) {
    vk_qvac_pipeline_cache & cache = device->qvac->pipeline_cache;
    if (!cache.handle) {
        return;
    }
    const std::vector<uint8_t> data = device->device.getPipelineCacheData(cache.handle);
    if (data.size() > cache.size) {
        write(cache.file, data);
        cache.size = data.size();
    }
}

void ggml_vk_qvac_destroy(vk_device_struct & device) {
    if (device.qvac) {
        device.device.destroyPipelineCache(device.qvac->pipeline_cache.handle);
    }
}
