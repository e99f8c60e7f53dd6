// The files of exact_elementwise (exact.h).

#pragma once

#include "exact.h"

namespace qvac {

const exact_kernel * exact_copy(const ggml_tensor * op);   // exact-copy.cpp: CPY, DUP, CONT between f16 and f32; SET_ROWS
const exact_kernel * exact_rotary(const ggml_tensor * op); // exact-rope.cpp: ROPE, ROPE_BACK

}  // namespace qvac
