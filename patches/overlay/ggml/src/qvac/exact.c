// The switch of exact arithmetic (see ggml-train.h), and what needs none.

#include "exact-ops.h"

#include "ggml-train.h"

static bool is_on = false;

void ggml_set_exact(bool exact) {
    is_on = exact;
}

bool ggml_is_exact(void) {
    return is_on;
}

bool ggml_exact_is_any(const struct ggml_tensor * op) {
    switch (op->op) {
        case GGML_OP_NONE:
        case GGML_OP_RESHAPE:
        case GGML_OP_VIEW:
        case GGML_OP_PERMUTE:
        case GGML_OP_TRANSPOSE:
            return true;
        case GGML_OP_CONCAT:
        case GGML_OP_REPEAT:
            return true;
        case GGML_OP_DUP:
        case GGML_OP_CPY:
        case GGML_OP_CONT:
            return op->type == op->src[0]->type;
        case GGML_OP_MUL_MAT:
            return op->src[0]->type == GGML_TYPE_TQ1_0 || op->src[0]->type == GGML_TYPE_TQ2_0;
        case GGML_OP_CUSTOM:
            switch (ggml_get_train_op(op)) {
                case GGML_TRAIN_OP_TQ_QUANTIZE:
                case GGML_TRAIN_OP_TQ_MUL_MAT:
                case GGML_TRAIN_OP_TQ_MUL_MAT_BACK:
                    return true;
                default:
                    return false;
            }
        default:
            return false;
    }
}
