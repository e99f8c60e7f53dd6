// How rows are dealt out to workgroups by the kernels that keep them (qvac_row.glsl).

#include "rows.h"

namespace {

// The shaders' GRID_LINE.
constexpr uint32_t GRID_LINE = 512;

// In the table below: those of 512 invocations, and the same of 256.
constexpr uint32_t FIRST_WIDE = 2, FIRST_NARROW = 4;

int64_t kept_by(uint32_t shape) {
    return 4 * (int64_t) VK_QVAC_ROW_SHAPES[shape].lanes * VK_QVAC_ROW_SHAPES[shape].keep;
}

} // namespace

// More invocations rather than more values each: code that quantizes a value is long, and there is a copy for each.
const vk_qvac_row_shape VK_QVAC_ROW_SHAPES[VK_QVAC_ROW_SHAPE_COUNT] = {
    { 32, 256, 2 }, { 256, 256, 2 }, { 512, 512, 3 }, { 512, 512, 7 }, { 256, 256, 6 }, { 256, 256, 14 },
};

uint32_t ggml_vk_qvac_row_shape_of(const vk_device & device, int64_t n) {
    const auto & limits = device->properties.limits;
    const bool   wide   = limits.maxComputeWorkGroupInvocations >= 512 && limits.maxComputeWorkGroupSize[0] >= 512;
    if (n <= kept_by(FIRST_WIDE - 1)) {
        return n <= kept_by(0) ? 0 : 1;
    }
    const uint32_t shape = wide ? FIRST_WIDE : FIRST_NARROW;
    return n <= kept_by(shape) ? shape : shape + 1;
}

bool ggml_vk_qvac_rows_are_kept(int64_t n) {
    return n <= kept_by(VK_QVAC_ROW_SHAPE_COUNT - 1);
}

std::array<uint32_t, 3> ggml_vk_qvac_grid_of_rows(const vk_device & device, int64_t n, int64_t n_rows) {
    const vk_qvac_row_shape & shape  = VK_QVAC_ROW_SHAPES[ggml_vk_qvac_row_shape_of(device, n)];
    const uint32_t            groups = (uint32_t) CEIL_DIV(n_rows, (int64_t) (shape.block / shape.lanes));
    return { std::min(groups, GRID_LINE), CEIL_DIV(groups, GRID_LINE), 1 };
}

bool ggml_vk_qvac_rows_fit(const vk_device & device, const ggml_tensor * t) {
    return (uint64_t) ggml_nelements(t) < UINT32_MAX &&
           ggml_vk_qvac_grid_of_rows(device, t->ne[0], ggml_nrows(t))[1] <= device->properties.limits.maxComputeWorkGroupCount[1];
}
