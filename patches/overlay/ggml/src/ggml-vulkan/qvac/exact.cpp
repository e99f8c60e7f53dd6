// The lists of exact.h.

#include "exact.h"

#include <initializer_list>

const vk_qvac_exact_kernel * ggml_vk_qvac_exact_kernel_of(const ggml_tensor * op) {
    for (const auto find : { ggml_vk_qvac_exact_products, ggml_vk_qvac_exact_attention, ggml_vk_qvac_exact_rows,
                             ggml_vk_qvac_exact_elementwise }) {
        if (const vk_qvac_exact_kernel * kernel = find(op)) {
            return kernel;
        }
    }
    return nullptr;
}

void ggml_vk_qvac_load_exact(vk_device & device, const vk_qvac_create_pipeline & create) {
    ggml_vk_qvac_load_exact_products(device, create);
    ggml_vk_qvac_load_exact_attention(device, create);
    ggml_vk_qvac_load_exact_rows(device, create);
    ggml_vk_qvac_load_exact_elementwise(device, create);
}
