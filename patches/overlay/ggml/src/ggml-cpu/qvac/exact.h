// Kernels of exact arithmetic on the CPU (docs/exactness.md), for qvac-cpu.cpp.
//
// They are the definition as code: plain loops whose sums have the order that every device keeps. Loops over independent
// results stand innermost, so that compilers make vectors of them, which changes no bit.

#pragma once

#include "ggml.h"

struct ggml_compute_params;

namespace qvac {

struct exact_kernel {
    void (*compute)(const ggml_compute_params * params, ggml_tensor * dst);
    size_t (*work_size)(int n_tasks, const ggml_tensor * dst); // of the plan's work buffer; none: 0
};

// The kernel of an op, or none; a file for each.
const exact_kernel * exact_products(const ggml_tensor * op);    // MUL_MAT, OUT_PROD, LOW_RANK_*, GET_ROWS
const exact_kernel * exact_attention(const ggml_tensor * op);   // ATTENTION, ATTENTION_BACK, FLASH_ATTN_EXT
const exact_kernel * exact_rows(const ggml_tensor * op);        // norms and their backward, cross entropy, sums
const exact_kernel * exact_elementwise(const ggml_tensor * op); // RoPE, gated units, AdamW, arithmetic, conversions

// Of any of them.
const exact_kernel * exact_kernel_of(const ggml_tensor * op);

}  // namespace qvac
