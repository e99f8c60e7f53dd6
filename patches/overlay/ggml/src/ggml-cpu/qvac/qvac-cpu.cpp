// Which op goes to which kernel of this folder.

#include "qvac-cpu.h"

#include "fused.h"
#include "ggml-cpu-impl.h"
#include "ggml-train.h"
#include "kernels.h"

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

bool qvac_cpu_compute_forward(const ggml_compute_params * params, ggml_tensor * dst) {
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
