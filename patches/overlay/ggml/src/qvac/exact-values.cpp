// Which ops are computed value by value (exact-ops.h).

#include "exact-values.h"

#include "exact-ops.h"
#include "ggml-impl.h"

namespace {

bool is_float(const ggml_tensor * t) {
    return !t || t->type == GGML_TYPE_F32;
}

bool of_unary(const ggml_tensor * op, uint32_t * function) {
    switch (ggml_get_unary_op(op)) {
        case GGML_UNARY_OP_SILU:
            *function = qvac::EXACT_SILU;
            return true;
        case GGML_UNARY_OP_RELU:
            *function = qvac::EXACT_RELU;
            return true;
        case GGML_UNARY_OP_SIGMOID:
            *function = qvac::EXACT_SIGMOID;
            return true;
        case GGML_UNARY_OP_NEG:
            *function = qvac::EXACT_NEG;
            return true;
        case GGML_UNARY_OP_EXP:
            *function = qvac::EXACT_EXP;
            return true;
        default:
            return false;
    }
}

bool of_glu(const ggml_tensor * op, uint32_t * function) {
    switch (ggml_get_glu_op(op)) {
        case GGML_GLU_OP_SWIGLU:
            *function = qvac::EXACT_SWIGLU;
            return true;
        case GGML_GLU_OP_REGLU:
            *function = qvac::EXACT_REGLU;
            return true;
        default:
            return false;
    }
}

} // namespace

bool ggml_exact_value_op(const ggml_tensor * op, uint32_t * function, float * factor, float * offset) {
    *factor = 0.0f;
    *offset = 0.0f;
    if (!is_float(op) || !is_float(op->src[0]) || !is_float(op->src[1])) {
        return false;
    }
    switch (op->op) {
        case GGML_OP_ADD:
            *function = qvac::EXACT_ADD;
            return true;
        case GGML_OP_SUB:
            *function = qvac::EXACT_SUB;
            return true;
        case GGML_OP_MUL:
            *function = qvac::EXACT_MUL;
            return true;
        case GGML_OP_DIV:
            *function = qvac::EXACT_DIV;
            return true;
        case GGML_OP_SCALE:
            *function = qvac::EXACT_SCALE;
            *factor   = ggml_get_op_params_f32(op, 0);
            *offset   = ggml_get_op_params_f32(op, 1);
            return true;
        case GGML_OP_SQR:
            *function = qvac::EXACT_SQR;
            return true;
        case GGML_OP_SQRT:
            *function = qvac::EXACT_SQRT;
            return true;
        case GGML_OP_LOG:
            *function = qvac::EXACT_LOG;
            return true;
        case GGML_OP_SIN:
            *function = qvac::EXACT_SIN;
            return true;
        case GGML_OP_COS:
            *function = qvac::EXACT_COS;
            return true;
        case GGML_OP_UNARY:
            return of_unary(op, function);
        case GGML_OP_GLU:
            return of_glu(op, function);
        default:
            return false;
    }
}
