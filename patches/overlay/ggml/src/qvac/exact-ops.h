// What the backends share of exact arithmetic.

#pragma once

#include "ggml.h"

#ifdef __cplusplus
extern "C" {
#endif

// Whether the kernels that compute `op` otherwise have exact arithmetic too: it moves values, or is a ternary product.
GGML_API bool ggml_exact_is_any(const struct ggml_tensor * op);

// Which function of exact-values.h computes `op` value by value (EXACT_ADD ..), and with what numbers; false where none does, or
// not with these types.
GGML_API bool ggml_exact_value_op(const struct ggml_tensor * op, uint32_t * function, float * factor, float * offset);

// What ROPE and ROPE_BACK turn by, for exact_rope_turn of exact-angle.h: fractions as two words, the high one first.
struct ggml_exact_rope {
    uint32_t theta_scale[2];
    uint32_t freq_scale[2];
    uint32_t ext_factor[2];
    int32_t  low;
    int32_t  high;
    float    magnitude; // of the turned vectors
};

// False where the op has parameters that have no such fractions, or another order of pairs than NORMAL and NEOX.
GGML_API bool ggml_exact_rope_of(const struct ggml_tensor * op, struct ggml_exact_rope * rope);

#ifdef __cplusplus
}
#endif
