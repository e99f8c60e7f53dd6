// The table of fused.h: which kernel computes which op, and its work buffer.

#include "fused.h"

#include "ggml-cpu-impl.h"
#include "ggml-train.h"

namespace qvac {

bool fused(const ggml_compute_params * params, ggml_tensor * dst) {
    void (*kernel)(const ggml_compute_params *, ggml_tensor *) = nullptr;
    switch (ggml_get_train_op(dst)) {
        case GGML_TRAIN_OP_LOW_RANK_PROJECT:
            kernel = low_rank_project;
            break;
        case GGML_TRAIN_OP_LOW_RANK_ADD:
            kernel = low_rank_add;
            break;
        case GGML_TRAIN_OP_LOW_RANK_GRAD:
            kernel = low_rank_grad;
            break;
        case GGML_TRAIN_OP_RMS_NORM_MUL_BACK:
            kernel = rms_norm_mul_back;
            break;
        case GGML_TRAIN_OP_SWIGLU_BACK:
            kernel = swiglu_back;
            break;
        case GGML_TRAIN_OP_RELU_SQR_GLU_BACK:
            kernel = relu_sqr_glu_back;
            break;
        case GGML_TRAIN_OP_ATTENTION:
            kernel = attention;
            break;
        case GGML_TRAIN_OP_ATTENTION_BACK:
            kernel = attention_back;
            break;
        default:
            return false;
    }
    if (!params->use_ref) {
        kernel(params, dst);
    } else if (params->ith == 0) {
        fused_ref(dst);
    }
    return true;
}

size_t fused_work_size(int n_tasks, const ggml_tensor * dst) {
    switch (ggml_get_train_op(dst)) {
        case GGML_TRAIN_OP_LOW_RANK_PROJECT:
        case GGML_TRAIN_OP_LOW_RANK_ADD:
        case GGML_TRAIN_OP_LOW_RANK_GRAD:
            return low_rank_work_size(n_tasks, dst);
        case GGML_TRAIN_OP_ATTENTION:
            return attention_work_size(n_tasks, dst);
        case GGML_TRAIN_OP_ATTENTION_BACK:
            return attention_back_work_size(n_tasks, dst);
        default:
            return 0;
    }
}

}  // namespace qvac
