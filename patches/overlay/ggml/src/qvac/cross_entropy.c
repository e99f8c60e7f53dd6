// Graph constructors for cross entropy over class ids (see ggml-train.h).

#include "ggml-train.h"
#include "ggml-impl.h"

static void assert_labels_match(const struct ggml_tensor * logits, const struct ggml_tensor * labels) {
    GGML_ASSERT(logits->type == GGML_TYPE_F32);
    GGML_ASSERT(labels->type == GGML_TYPE_I32);
    GGML_ASSERT(ggml_is_matrix(logits));
    GGML_ASSERT(ggml_is_vector(labels));
    GGML_ASSERT(labels->ne[0] == logits->ne[1]);
}

struct ggml_tensor * ggml_cross_entropy_loss_labels(
        struct ggml_context * ctx,
        struct ggml_tensor  * logits,
        struct ggml_tensor  * labels,
        float                 scale) {
    assert_labels_match(logits, labels);

    struct ggml_tensor * result = ggml_new_tensor_1d(ctx, GGML_TYPE_F32, labels->ne[0]); // [n_rows]

    ggml_set_op_params_f32(result, 0, scale);

    result->op     = GGML_OP_CROSS_ENTROPY_LOSS;
    result->src[0] = logits;
    result->src[1] = labels;

    return result;
}

struct ggml_tensor * ggml_cross_entropy_loss_labels_back(
        struct ggml_context * ctx,
        struct ggml_tensor  * grad,
        struct ggml_tensor  * logits,
        struct ggml_tensor  * labels,
        float                 scale) {
    assert_labels_match(logits, labels);
    GGML_ASSERT(grad->type == GGML_TYPE_F32);
    GGML_ASSERT(ggml_is_vector(grad));
    GGML_ASSERT(grad->ne[0] == 1 || grad->ne[0] == labels->ne[0]);

    struct ggml_tensor * result = ggml_new_tensor_2d(ctx, GGML_TYPE_F32, logits->ne[0], logits->ne[1]); // [n_vocab, n_rows]

    ggml_set_op_params_f32(result, 0, scale);

    result->op     = GGML_OP_CROSS_ENTROPY_LOSS_BACK;
    result->src[0] = grad;
    result->src[1] = logits;
    result->src[2] = labels;

    return result;
}
