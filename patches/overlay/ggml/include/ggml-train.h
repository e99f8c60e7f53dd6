#pragma once

// What training needs beyond ggml.h: graph constructors, and one question about devices.
//
// The constructors add no GGML_OP, so that schedulers, allocators and graph dumps need not know of us. Cross entropy is
// GGML_OP_CROSS_ENTROPY_LOSS and its backward, ours when their labels are of type I32 and upstream's when they are F32.
// All others are GGML_OP_CUSTOM with a mark of ours (ggml_get_train_op): a backend that does not know them refuses them.

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

// --- ops of the training graph (GGML_OP_CUSTOM) ---
//
// Everything is F32 unless said otherwise; T is the number of tokens. docs/kernels.md has the reasons.

enum ggml_train_op {
    GGML_TRAIN_OP_NONE, // not ours
    GGML_TRAIN_OP_TQ_QUANTIZE,
    GGML_TRAIN_OP_TQ_MUL_MAT,
    GGML_TRAIN_OP_TQ_MUL_MAT_BACK,
    GGML_TRAIN_OP_LOW_RANK_PROJECT,
    GGML_TRAIN_OP_LOW_RANK_ADD,
    GGML_TRAIN_OP_LOW_RANK_GRAD,
    GGML_TRAIN_OP_RMS_NORM_MUL_BACK,
    GGML_TRAIN_OP_SWIGLU_BACK,
    GGML_TRAIN_OP_RELU_SQR_GLU_BACK,
    GGML_TRAIN_OP_ATTENTION,
    GGML_TRAIN_OP_ATTENTION_BACK,
    GGML_TRAIN_OP_COUNT,
};

GGML_API enum ggml_train_op ggml_get_train_op(const struct ggml_tensor * tensor);
// "TQ_MUL_MAT"; for a tensor that is not ours what ggml_op_desc says.
GGML_API const char *       ggml_train_op_desc(const struct ggml_tensor * tensor);
// The one number that an op was made with: `scale`, or `eps`.
GGML_API float              ggml_train_op_param(const struct ggml_tensor * tensor);

// Bytes behind the limbs of a quantized token: its scale a/127 (F32), and padding.
#define GGML_TQ_TOKEN_TAIL 16

// Tokens as 8-bit integers with one scale each (contract T0; the formulas are in ternary.h of ggml-cpu/qvac).
// A row of the result is `limbs` times n signed bytes, then a/127 as F32, then zeros up to GGML_TQ_TOKEN_TAIL.
// Only src[0] is read. Further sources are what x was made of: they keep their memory, so that a backend may make x and the
// result in one pass.
//
// x      [n, T], n a multiple of 128, rows contiguous in themselves
// limbs  1 or 2
// result [limbs*n + GGML_TQ_TOKEN_TAIL, T] I8
GGML_API struct ggml_tensor * ggml_tq_quantize(struct ggml_context * ctx, struct ggml_tensor * x, int limbs);

// W x, exact in integers.
//
// w      [n, m] TQ1_0 or TQ2_0
// xq     tq_quantize of [n, T] with one limb
// result [m, T]
GGML_API struct ggml_tensor * ggml_tq_mul_mat(struct ggml_context * ctx, struct ggml_tensor * w, struct ggml_tensor * xq);

// add + W^T y, the product exact in integers where all blocks of w have one scale.
//
// w      [n, m] TQ1_0 or TQ2_0, m a multiple of 128
// yq     tq_quantize of [m, T] with one or two limbs
// add    [n, T] contiguous, or NULL
// result [n, T]
GGML_API struct ggml_tensor * ggml_tq_mul_mat_back(
        struct ggml_context * ctx, struct ggml_tensor * w, struct ggml_tensor * yq, struct ggml_tensor * add);

// z[k, t] = scale * sum_n p[n, k] * v[n, t]: LoRA's A x, and B^T dy with p = transpose(B).
//
// p      [n, r], any strides
// v      [n, T], rows contiguous in themselves
// result [r, T]
GGML_API struct ggml_tensor * ggml_low_rank_project(
        struct ggml_context * ctx, struct ggml_tensor * p, struct ggml_tensor * v, float scale);

// y[n, t] = y[n, t] + scale * sum_k p[n, k] * z[k, t] + add[n, t], written over y: LoRA's B (A x) with p = transpose(B),
// and A^T (B^T dy) with p = A; `add` is a residual.
//
// y      [n, T] contiguous
// p      [n, r], any strides
// z      [r, T], rows contiguous in themselves
// add    [n, T] contiguous, or NULL
// result a view of y
GGML_API struct ggml_tensor * ggml_low_rank_add(
        struct ggml_context * ctx, struct ggml_tensor * y, struct ggml_tensor * p, struct ggml_tensor * z,
        struct ggml_tensor * add, float scale);

// grad[n, k] = grad[n, k] + scale * sum_t v[n, t] * z[k, t], written over grad: the gradients of A, and of B with
// grad = transpose(dB).
//
// grad   [n, r], any strides
// v      [n, T], z [r, T]: rows contiguous in themselves
// result a view of grad
GGML_API struct ggml_tensor * ggml_low_rank_grad(
        struct ggml_context * ctx, struct ggml_tensor * grad, struct ggml_tensor * v, struct ggml_tensor * z, float scale);

// add + the gradient of mul(rms_norm(x, eps), w) in x.
//
// dy, x  [n, T] contiguous
// w      [n]
// add    [n, T] contiguous, or NULL
// result [n, T]
GGML_API struct ggml_tensor * ggml_rms_norm_mul_back(
        struct ggml_context * ctx, struct ggml_tensor * dy, struct ggml_tensor * x, struct ggml_tensor * w,
        struct ggml_tensor * add, float eps);

// The gradients of silu(gate) * up.
//
// dy, gate, up [n, T] contiguous
// result       [n, T, 2]: of gate, then of up
GGML_API struct ggml_tensor * ggml_swiglu_back(
        struct ggml_context * ctx, struct ggml_tensor * dy, struct ggml_tensor * gate, struct ggml_tensor * up);

// The gradients of relu(gate)^2 * up; operands and result as above.
GGML_API struct ggml_tensor * ggml_relu_sqr_glu_back(
        struct ggml_context * ctx, struct ggml_tensor * dy, struct ggml_tensor * gate, struct ggml_tensor * up);

// Causal attention within samples: token t of head h looks at the tokens first(t) .. t. Query head h uses key head
// h / (H / H_kv). No [T, T] matrix is made.
//
// q        [D, H, T], k and v [D, H_kv, T], contiguous
// segments [2, T] I32: the first and the last token of the sample that t belongs to; samples lie one after another
// result   [D*H*T + H*T]: the output [D, H, T], then log(sum_j exp(scale * q.k_j)) [H, T]
GGML_API struct ggml_tensor * ggml_attention(
        struct ggml_context * ctx, struct ggml_tensor * q, struct ggml_tensor * k, struct ggml_tensor * v,
        struct ggml_tensor * segments, float scale);

// The gradients of the above in q, k and v.
//
// fwd    what ggml_attention gave
// dy     [D, H, T], the gradient of its output
// result [D*H*T + 2*D*H_kv*T]: dq [D, H, T], dk [D, H_kv, T], dv [D, H_kv, T]
GGML_API struct ggml_tensor * ggml_attention_back(
        struct ggml_context * ctx, struct ggml_tensor * q, struct ggml_tensor * k, struct ggml_tensor * v,
        struct ggml_tensor * segments, struct ggml_tensor * fwd, struct ggml_tensor * dy, float scale);

// Exact arithmetic (docs/exactness.md) for all graphs of this process from here on: the same bits on every device, by kernels of
// their own. A device then supports no op that it has no such kernel for. Off at first; not to be changed while a graph is
// computed, nor between a graph's making and its computation.
GGML_API void ggml_set_exact(bool exact);
GGML_API bool ggml_is_exact(void);

// Whether `dev` is a GPU interface that the CPU imitates, such as Vulkan's lavapipe. Its ggml_backend_dev_type says GPU
// (anything else would take it for the host's own CPU device or for an accelerator of it), yet it is slower than the CPU
// backend: good for tests and to be chosen by name, never by default.
GGML_API bool ggml_backend_dev_is_software(ggml_backend_dev_t dev);

// Under this name a backend's registry gives its answer to the above; one without it has no such device.
#define GGML_BACKEND_DEV_IS_SOFTWARE_PROC "ggml_backend_dev_is_software"
typedef bool (*ggml_backend_dev_is_software_t)(ggml_backend_dev_t dev);

// Name and version of the driver behind `dev`, as in "NVIDIA 580.159.03", or NULL where the backend does not say. The text
// lives as long as the process.
GGML_API const char * ggml_backend_dev_driver(ggml_backend_dev_t dev);

#define GGML_BACKEND_DEV_DRIVER_PROC "ggml_backend_dev_driver"
typedef const char * (*ggml_backend_dev_driver_t)(ggml_backend_dev_t dev);

// Has backends keep compiled pipelines in files in `folder` (UTF-8), which is made when there are some. To be called before
// a device is used; without it, only the driver's own cache, if any, outlasts the process.
GGML_API void ggml_backend_set_pipeline_cache(const char * folder);

#define GGML_BACKEND_SET_PIPELINE_CACHE_PROC "ggml_backend_set_pipeline_cache"
typedef void (*ggml_backend_set_pipeline_cache_t)(const char * folder);

#ifdef __cplusplus
}
#endif
