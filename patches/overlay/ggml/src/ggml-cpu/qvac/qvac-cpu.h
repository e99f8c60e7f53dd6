// Entry points of the CPU kernels in this folder, as ggml-cpu's dispatch sees them.
//
// `qvac_cpu_compute_forward` computes the whole op and returns true, or touches nothing and returns false where the
// upstream path shall do it. The decision depends on the tensors only, never on the thread, so all threads take the same
// turn. `qvac_cpu_work_size` is what the op needs of the plan's work buffer; 0 where the op is upstream's.
// A new kernel is one more file here and one line in each of the two lists of qvac-cpu.cpp.

#pragma once

#include "ggml.h"

#ifdef __cplusplus
extern "C" {
#endif

struct ggml_compute_params;

bool   qvac_cpu_compute_forward(const struct ggml_compute_params * params, struct ggml_tensor * dst);
size_t qvac_cpu_work_size(int n_tasks, const struct ggml_tensor * dst);

// Whether OUT_PROD of these tensors is ours; the backend's `supports_op` asks.
bool qvac_cpu_out_prod_supported(const struct ggml_tensor * dst);

// Whether arithmetic is exact: an operation is then computed by itself, never with its neighbour by a kernel of upstream's.
bool qvac_cpu_is_exact(void);

// Whether exact arithmetic, if it is on, has a kernel for this.
bool qvac_cpu_exact_supported(const struct ggml_tensor * op);

#ifdef __cplusplus
}
#endif
