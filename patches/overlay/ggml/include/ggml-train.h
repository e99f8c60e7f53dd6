#pragma once

// What training needs beyond ggml.h: graph constructors, and one question about devices.
//
// The constructors add no GGML_OP: GGML_OP_CROSS_ENTROPY_LOSS and its backward take this path when their labels are of type I32,
// and upstream's when they are F32, so that schedulers, allocators and graph dumps need not know of us.

#include "ggml.h"
#include "ggml-backend.h"

#ifdef __cplusplus
extern "C" {
#endif

// Cross entropy of class ids, one value a row:
//
//     loss[r] = scale * (log(sum_v exp(logits[v, r])) - logits[labels[r], r])
//
// A negative label says that the row is not trained on: its loss is 0, whatever the logits hold. A label >= n_vocab
// makes the loss NaN and reads nothing out of bounds.
// The rows are not summed here: the caller does that in an order of its own and can name the row that went wrong.
//
// logits [n_vocab, n_rows] F32, rows contiguous in themselves
// labels [n_rows]          I32
// result [n_rows]          F32
GGML_API struct ggml_tensor * ggml_cross_entropy_loss_labels(
        struct ggml_context * ctx,
        struct ggml_tensor  * logits,
        struct ggml_tensor  * labels,
        float                 scale);

// Gradient of the above with respect to the logits:
//
//     dlogits[v, r] = grad[r] * scale * (softmax(logits[:, r])[v] - (v == labels[r]))
//
// Rows with a negative label are exactly zero; rows with a label >= n_vocab are NaN throughout.
// The normaliser of a step is `grad`, a tensor, since the number of trained tokens is known only when the step runs.
//
// grad   [1] or [n_rows]   F32
// result [n_vocab, n_rows] F32
GGML_API struct ggml_tensor * ggml_cross_entropy_loss_labels_back(
        struct ggml_context * ctx,
        struct ggml_tensor  * grad,
        struct ggml_tensor  * logits,
        struct ggml_tensor  * labels,
        float                 scale);

// Whether `dev` is a GPU interface that the CPU imitates, such as Vulkan's lavapipe. Its ggml_backend_dev_type says GPU
// (anything else would take it for the host's own CPU device or for an accelerator of it), yet it is slower than the CPU
// backend: good for tests and to be chosen by name, never by default.
GGML_API bool ggml_backend_dev_is_software(ggml_backend_dev_t dev);

// Under this name a backend's registry gives its answer to the above; one without it has no such device.
#define GGML_BACKEND_DEV_IS_SOFTWARE_PROC "ggml_backend_dev_is_software"
typedef bool (*ggml_backend_dev_is_software_t)(ggml_backend_dev_t dev);

#ifdef __cplusplus
}
#endif
