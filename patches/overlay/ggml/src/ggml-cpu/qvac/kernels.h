// The kernels of this folder, for qvac-cpu.cpp.

#pragma once

#include "ggml.h"

struct ggml_compute_params;

namespace qvac {

bool   out_prod(const ggml_compute_params * params, ggml_tensor * dst);
size_t out_prod_work_size(int n_tasks, const ggml_tensor * dst);

bool   mul_mat(const ggml_compute_params * params, ggml_tensor * dst);
size_t mul_mat_work_size(int n_tasks, const ggml_tensor * dst);

bool   ternary_mul_mat(const ggml_compute_params * params, ggml_tensor * dst);
size_t ternary_mul_mat_work_size(int n_tasks, const ggml_tensor * dst);
void   ternary_mul_mat_ref(ggml_tensor * dst);

}  // namespace qvac
