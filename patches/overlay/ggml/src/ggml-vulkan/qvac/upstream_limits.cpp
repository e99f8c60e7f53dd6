// What upstream's shaders for training ops cannot do although its supports_op says they can. Each would end the process
// on an assertion or compute something else; refused here, they become an error with the tensor's name.
//
// tests/ops holds what is allowed to its references. Drop a line when upstream's own answer becomes right.

#include "ops.h"

namespace {

// Whether a descriptor can begin where the tensor does: some shaders know no offset within it.
bool aligned(const vk_device & device, const ggml_tensor * t) {
    return t->view_offs % device->properties.limits.minStorageBufferOffsetAlignment == 0;
}

// Upstream's simplest shaders know neither strides nor such offsets.
bool flat(const vk_device & device, const ggml_tensor * t) {
    return ggml_is_contiguous(t) && aligned(device, t);
}

bool all_flat(const vk_device & device, const ggml_tensor * op) {
    for (const ggml_tensor * src : op->src) {
        if (src && !flat(device, src)) {
            return false;
        }
    }
    return flat(device, op);
}

} // namespace

bool ggml_vk_qvac_beyond_upstream(const vk_device & device, const ggml_tensor * op) {
    switch (op->op) {
        case GGML_OP_SILU_BACK:
        case GGML_OP_RMS_NORM_BACK:
        case GGML_OP_SOFT_MAX_BACK:
        case GGML_OP_OPT_STEP_ADAMW:
        case GGML_OP_OPT_STEP_SGD:
            return !all_flat(device, op);
        case GGML_OP_SUM:
            // summed as one row
            return !ggml_is_contiguous(op->src[0]);
        case GGML_OP_REPEAT_BACK:
            return !aligned(device, op->src[0]);
        case GGML_OP_RMS_NORM:
        case GGML_OP_ROPE_BACK:
        case GGML_OP_GET_ROWS:
            // rows are read element by element, without a stride
            return op->src[0]->nb[0] != ggml_type_size(op->src[0]->type);
        default:
            return false;
    }
}
