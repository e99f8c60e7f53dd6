// What the backends share of exact arithmetic.

#pragma once

#include "ggml.h"

#ifdef __cplusplus
extern "C" {
#endif

// Whether the kernels that compute `op` otherwise have exact arithmetic too: it moves values, or is a ternary product.
GGML_API bool ggml_exact_is_any(const struct ggml_tensor * op);

#ifdef __cplusplus
}
#endif
