// Which op goes to which kernel of this folder.

#include "qvac-cpu.h"

#include "fused.h"
#include "ggml-cpu-impl.h"
#include "ggml-train.h"
#include "kernels.h"

bool qvac_cpu_compute_forward(const ggml_compute_params * params, ggml_tensor * dst) {
    switch (dst->op) {
        case GGML_OP_OUT_PROD:
            return qvac::out_prod(params, dst);
        case GGML_OP_MUL_MAT:
            return qvac::ternary_mul_mat(params, dst) || qvac::mul_mat(params, dst);
        case GGML_OP_CUSTOM:
            switch (ggml_get_train_op(dst)) {
                default:
                    return qvac::fused(params, dst);
            }
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
            switch (ggml_get_train_op(dst)) {
                default:
                    return qvac::fused_work_size(n_tasks, dst);
            }
        default:
            return 0;
    }
}
