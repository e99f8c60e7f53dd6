#pragma once

// What kernels of exact arithmetic share on Vulkan: grids, and whether they can address a tensor.

#include "exact.h"
#include "ops.h"

// The shaders' GRID_LINE.
constexpr uint32_t VK_QVAC_EXACT_GRID_LINE = 512;

inline std::array<uint32_t, 3> ggml_vk_qvac_exact_grid(uint64_t groups) {
    return { (uint32_t) std::min<uint64_t>(groups, VK_QVAC_EXACT_GRID_LINE), (uint32_t) CEIL_DIV(groups, (uint64_t) VK_QVAC_EXACT_GRID_LINE), 1 };
}

inline bool ggml_vk_qvac_exact_grid_fits(const vk_device & device, uint64_t groups) {
    return CEIL_DIV(groups, (uint64_t) VK_QVAC_EXACT_GRID_LINE) <= device->properties.limits.maxComputeWorkGroupCount[1];
}

// Whether each tensor of `op` fits one descriptor, and its values can be counted.
inline bool ggml_vk_qvac_exact_tensors_fit(const vk_device & device, const ggml_tensor * op) {
    const auto fits = [&](const ggml_tensor * t) {
        const uint64_t most = device->properties.limits.maxStorageBufferRange;
        return !t || (ggml_nbytes(t) + device->properties.limits.minStorageBufferOffsetAlignment <= most && (uint64_t) ggml_nelements(t) < UINT32_MAX);
    };
    return fits(op) && std::all_of(std::begin(op->src), std::end(op->src), fits);
}

// Whether rows of `t` can be read four values at a time.
inline bool ggml_vk_qvac_exact_in_fours(const ggml_backend_vk_context * ctx, const ggml_tensor * t) {
    return t->ne[0] % 4 == 0 && t->nb[1] % 16 == 0 && t->nb[2] % 16 == 0 && t->nb[3] % 16 == 0 &&
           ggml_vk_qvac_is_aligned(ctx, t, ggml_vk_tensor_subbuffer(ctx, t, true));
}

// Floats with whole strides; those of a row side by side where `rows` says so.
inline bool ggml_vk_qvac_exact_is_float(const ggml_tensor * t, bool rows) {
    const auto whole = [&](int dim) { return t->nb[dim] % sizeof(float) == 0; };
    return t->type == GGML_TYPE_F32 && whole(0) && whole(1) && whole(2) && whole(3) && (!rows || t->nb[0] == sizeof(float) || t->ne[0] == 1);
}

// The kernels of exact_elementwise (exact.h) that have files of their own.

// exact_copy.cpp: CPY, DUP, CONT between f16 and f32; SET_ROWS
const vk_qvac_exact_kernel * ggml_vk_qvac_exact_copy(const ggml_tensor * op);
void ggml_vk_qvac_load_exact_copy(vk_device & device, const vk_qvac_create_pipeline & create);

// exact_rope.cpp: ROPE, ROPE_BACK
const vk_qvac_exact_kernel * ggml_vk_qvac_exact_rope(const ggml_tensor * op);
void ggml_vk_qvac_load_exact_rope(vk_device & device, const vk_qvac_create_pipeline & create);
