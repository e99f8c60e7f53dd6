// The kernels of this folder, for qvac-cpu.cpp.

#pragma once

#include "ggml.h"

struct ggml_compute_params;

namespace qvac {

bool   out_prod(const ggml_compute_params * params, ggml_tensor * dst);
size_t out_prod_work_size(int n_tasks, const ggml_tensor * dst);

bool   mul_mat(const ggml_compute_params * params, ggml_tensor * dst);
size_t mul_mat_work_size(int n_tasks, const ggml_tensor * dst);

// MUL_MAT of a ternary weight, and TQ_MUL_MAT
bool   ternary_mul_mat(const ggml_compute_params * params, ggml_tensor * dst);
size_t ternary_mul_mat_work_size(int n_tasks, const ggml_tensor * dst);
void   ternary_mul_mat_ref(ggml_tensor * dst);

bool   ternary_mul_mat_back(const ggml_compute_params * params, ggml_tensor * dst);
size_t ternary_mul_mat_back_work_size(int n_tasks, const ggml_tensor * dst);
void   ternary_mul_mat_back_ref(ggml_tensor * dst);

bool   tq_quantize_tokens(const ggml_compute_params * params, ggml_tensor * dst);

}  // namespace qvac
