// The fused float ops of the training graph (ggml-train.h), for qvac-cpu.cpp.

#pragma once

#include "ggml.h"

struct ggml_compute_params;

namespace qvac {

// Computes `dst` and returns true, or false where it is none of these.
bool   fused(const ggml_compute_params * params, ggml_tensor * dst);
size_t fused_work_size(int n_tasks, const ggml_tensor * dst);

void low_rank_project(const ggml_compute_params * params, ggml_tensor * dst);
void low_rank_add(const ggml_compute_params * params, ggml_tensor * dst);
void low_rank_grad(const ggml_compute_params * params, ggml_tensor * dst);
void rms_norm_mul_back(const ggml_compute_params * params, ggml_tensor * dst);
void swiglu_back(const ggml_compute_params * params, ggml_tensor * dst);
void relu_sqr_glu_back(const ggml_compute_params * params, ggml_tensor * dst);
void attention(const ggml_compute_params * params, ggml_tensor * dst);
void attention_back(const ggml_compute_params * params, ggml_tensor * dst);

size_t low_rank_work_size(int n_tasks, const ggml_tensor * dst);
size_t attention_work_size(int n_tasks, const ggml_tensor * dst);
size_t attention_back_work_size(int n_tasks, const ggml_tensor * dst);

// Any of them as plain loops in double, by one thread: for reading, and for `ggml_backend_cpu_set_use_ref`.
void fused_ref(ggml_tensor * dst);

}  // namespace qvac
