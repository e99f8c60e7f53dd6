// Values of every weight type as exact arithmetic unpacks them (docs/exactness.md), for exact-products.cpp.

#pragma once

#include "ggml.h"

#include <cstdint>

namespace qvac {

bool exact_has_type(ggml_type type);

// The values i to i + n - 1 of a row, n <= 32; of a quantized type, i a multiple of 32.
void exact_unpack(ggml_type type, const void * row, int64_t i, int64_t n, float * dst);

}  // namespace qvac
