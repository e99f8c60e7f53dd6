// Which op goes to which kernel of this folder.

#include "qvac-cpu.h"

#include "exact.h"
#include "fused.h"
#include "ggml-backend.h"
#include "ggml-cpu-impl.h"
#include "ggml-train.h"
#include "kernels.h"
#include "qvac/exact-ops.h"

static bool compute_train_op(const ggml_compute_params * params, ggml_tensor * dst) {
    switch (ggml_get_train_op(dst)) {
        case GGML_TRAIN_OP_TQ_QUANTIZE:
            return qvac::tq_quantize_tokens(params, dst);
        case GGML_TRAIN_OP_TQ_MUL_MAT:
            return qvac::ternary_mul_mat(params, dst);
        case GGML_TRAIN_OP_TQ_MUL_MAT_BACK:
            return qvac::ternary_mul_mat_back(params, dst);
        default:
            return qvac::fused(params, dst);
    }
}

static size_t train_op_work_size(int n_tasks, const ggml_tensor * dst) {
    switch (ggml_get_train_op(dst)) {
        case GGML_TRAIN_OP_TQ_MUL_MAT:
            return qvac::ternary_mul_mat_work_size(n_tasks, dst);
        case GGML_TRAIN_OP_TQ_MUL_MAT_BACK:
            return qvac::ternary_mul_mat_back_work_size(n_tasks, dst);
        default:
            return qvac::fused_work_size(n_tasks, dst);
    }
}

bool qvac_cpu_is_exact(void) {
    return ggml_is_exact();
}

bool qvac_cpu_exact_supported(const ggml_tensor * op) {
    // Upstream's kernels for weights that it repacked are asked before ours.
    const ggml_tensor * w = op->src[0];
    if (ggml_is_exact() && w && w->buffer && !ggml_backend_buffer_is_host(w->buffer)) {
        return false;
    }
    return !ggml_is_exact() || ggml_exact_is_any(op) || qvac::exact_kernel_of(op) != nullptr;
}

bool qvac_cpu_compute_forward(const ggml_compute_params * params, ggml_tensor * dst) {
    if (const qvac::exact_kernel * kernel = ggml_is_exact() ? qvac::exact_kernel_of(dst) : nullptr) {
        kernel->compute(params, dst);
        return true;
    }
    switch (dst->op) {
        case GGML_OP_OUT_PROD:
            return qvac::out_prod(params, dst);
        case GGML_OP_MUL_MAT:
            return qvac::ternary_mul_mat(params, dst) || qvac::mul_mat(params, dst);
        case GGML_OP_CUSTOM:
            return compute_train_op(params, dst);
        default:
            return false;
    }
}

size_t qvac_cpu_work_size(int n_tasks, const ggml_tensor * dst) {
    if (const qvac::exact_kernel * kernel = ggml_is_exact() ? qvac::exact_kernel_of(dst) : nullptr) {
        return kernel->work_size ? kernel->work_size(n_tasks, dst) : 0;
    }
    switch (dst->op) {
        case GGML_OP_OUT_PROD:
            return qvac::out_prod_work_size(n_tasks, dst);
        case GGML_OP_MUL_MAT:
            return qvac::ternary_mul_mat_work_size(n_tasks, dst) + qvac::mul_mat_work_size(n_tasks, dst);
        case GGML_OP_CUSTOM:
            return train_op_work_size(n_tasks, dst);
        default:
            return 0;
    }
}
