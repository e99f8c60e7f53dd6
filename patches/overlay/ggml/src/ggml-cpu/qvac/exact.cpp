// The list of exact.h.

#include "exact.h"

#include <initializer_list>

namespace qvac {

const exact_kernel * exact_kernel_of(const ggml_tensor * op) {
    for (const auto find : { exact_products, exact_attention, exact_rows, exact_elementwise }) {
        if (const exact_kernel * kernel = find(op)) {
            return kernel;
        }
    }
    return nullptr;
}

}  // namespace qvac
