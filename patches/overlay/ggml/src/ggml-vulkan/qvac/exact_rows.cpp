// Sums over rows in exact arithmetic (exact.h).

#include "exact.h"

#include "ops.h"

const vk_qvac_exact_kernel * ggml_vk_qvac_exact_rows(const ggml_tensor * op) {
    GGML_UNUSED(op);
    return nullptr;
}

void ggml_vk_qvac_load_exact_rows(vk_device & device, const vk_qvac_create_pipeline & create) {
    GGML_UNUSED(device);
    GGML_UNUSED(create);
}
