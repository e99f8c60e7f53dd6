// Graph constructors of the training ops (see ggml-train.h).
//
// Each is a GGML_OP_CUSTOM whose function is `mark` and whose userdata is its number. The function is never called where
// a backend knows us; ggml-cpu and ggml-vulkan look at the mark before they look at the op.

#include "ggml-train.h"
#include "ggml-impl.h"

#include <string.h>

// The longest step of a kernel's integer sum: what such a sum's length is a multiple of.
#define TQ_SUM_STEP 128

static void mark(struct ggml_tensor * dst, int ith, int nth, void * userdata) {
    (void) ith;
    (void) nth;
    (void) userdata;
    GGML_ABORT("%s: no kernel for %s", dst->name, ggml_train_op_desc(dst));
}

struct train_op_params {
    struct ggml_custom_op_params custom;
    float                        param;
};

static struct train_op_params params_of(const struct ggml_tensor * tensor) {
    struct train_op_params params;
    memcpy(&params, tensor->op_params, sizeof(params));
    return params;
}

enum ggml_train_op ggml_get_train_op(const struct ggml_tensor * tensor) {
    if (tensor->op != GGML_OP_CUSTOM) {
        return GGML_TRAIN_OP_NONE;
    }
    const struct train_op_params params = params_of(tensor);
    return params.custom.fun == mark ? (enum ggml_train_op) (intptr_t) params.custom.userdata : GGML_TRAIN_OP_NONE;
}

const char * ggml_train_op_desc(const struct ggml_tensor * tensor) {
    static const char * const names[GGML_TRAIN_OP_COUNT] = {
        NULL,
        "TQ_QUANTIZE",
        "TQ_MUL_MAT",
        "TQ_MUL_MAT_BACK",
        "LOW_RANK_PROJECT",
        "LOW_RANK_ADD",
        "LOW_RANK_GRAD",
        "RMS_NORM_MUL_BACK",
        "SWIGLU_BACK",
        "RELU_SQR_GLU_BACK",
        "ATTENTION",
        "ATTENTION_BACK",
    };
    const enum ggml_train_op op = ggml_get_train_op(tensor);
    return op == GGML_TRAIN_OP_NONE ? ggml_op_desc(tensor) : names[op];
}

float ggml_train_op_param(const struct ggml_tensor * tensor) {
    return params_of(tensor).param;
}

static struct ggml_tensor * train_op(
        struct ggml_tensor * result, enum ggml_train_op op, float param, struct ggml_tensor * const * src, int n_src) {
    struct train_op_params params;
    memset(&params, 0, sizeof(params));
    params.custom.fun      = mark;
    params.custom.n_tasks  = GGML_N_TASKS_MAX;
    params.custom.userdata = (void *) (intptr_t) op;
    params.param           = param;
    GGML_ASSERT(sizeof(params) <= GGML_MAX_OP_PARAMS);
    memcpy(result->op_params, &params, sizeof(params));

    result->op = GGML_OP_CUSTOM;
    for (int i = 0; i < n_src; ++i) {
        result->src[i] = src[i];
    }
    return result;
}

#define TRAIN_OP(result, op, param, ...)                                       \
    train_op(result, op, param, (struct ggml_tensor * const[]) { __VA_ARGS__ }, \
             (int) (sizeof((struct ggml_tensor * const[]) { __VA_ARGS__ }) / sizeof(struct ggml_tensor *)))

// F32 with `ne0` values a row, side by side.
static bool is_rows(const struct ggml_tensor * t, int64_t ne0) {
    return t->type == GGML_TYPE_F32 && t->ne[0] == ne0 && (t->nb[0] == sizeof(float) || ne0 == 1);
}

static bool is_same_or_null(const struct ggml_tensor * t, const struct ggml_tensor * as) {
    return !t || (t->type == GGML_TYPE_F32 && ggml_are_same_shape(t, as) && ggml_is_contiguous(t));
}

// Adds a source that is not read, but may not be overwritten before `dst` is computed.
static void keep(struct ggml_tensor * dst, struct ggml_tensor * t) {
    for (int i = 0; t && i < GGML_MAX_SRC; ++i) {
        if (dst->src[i] == t) {
            return;
        }
        if (!dst->src[i]) {
            dst->src[i] = t;
            return;
        }
    }
}

// Keeps what the pass that makes x would read, were it to quantize x too.
static void keep_operands(struct ggml_tensor * dst, const struct ggml_tensor * x) {
    x = x->view_src ? x->view_src : x;
    if (x->op == GGML_OP_MUL && x->src[0]->op == GGML_OP_RMS_NORM) {
        x = x->src[0]->src[0];
        if (x->op == GGML_OP_GLU) {
            keep(dst, x->src[0]);
            keep(dst, x->src[1]);
        } else {
            keep(dst, (struct ggml_tensor *) x);
        }
    } else if (x->op == GGML_OP_ROPE_BACK) {
        keep(dst, x->src[0]);
    } else if (ggml_get_train_op(x) == GGML_TRAIN_OP_RMS_NORM_MUL_BACK) {
        keep(dst, x->src[0]);
        keep(dst, x->src[1]);
        keep(dst, x->src[3]);
    } else if (ggml_get_train_op(x) == GGML_TRAIN_OP_SWIGLU_BACK) {
        const bool normed = ggml_get_train_op(x->src[0]) == GGML_TRAIN_OP_RMS_NORM_MUL_BACK;
        keep(dst, normed ? x->src[0]->src[0] : x->src[0]);
        keep(dst, x->src[1]);
        keep(dst, x->src[2]);
    }
}

struct ggml_tensor * ggml_tq_quantize(struct ggml_context * ctx, struct ggml_tensor * x, int limbs) {
    GGML_ASSERT(limbs == 1 || limbs == 2);
    GGML_ASSERT(ggml_is_matrix(x) && is_rows(x, x->ne[0]) && x->ne[0] % TQ_SUM_STEP == 0);

    struct ggml_tensor * result = ggml_new_tensor_2d(ctx, GGML_TYPE_I8, limbs * x->ne[0] + GGML_TQ_TOKEN_TAIL, x->ne[1]);
    TRAIN_OP(result, GGML_TRAIN_OP_TQ_QUANTIZE, 0.0f, x);
    keep_operands(result, x);
    return result;
}

static bool is_quantized_tokens(const struct ggml_tensor * q, int64_t n, int limbs) {
    return q->type == GGML_TYPE_I8 && ggml_is_matrix(q) && ggml_is_contiguous(q) && q->ne[0] == limbs * n + GGML_TQ_TOKEN_TAIL;
}

static bool is_ternary_matrix(const struct ggml_tensor * w) {
    return (w->type == GGML_TYPE_TQ1_0 || w->type == GGML_TYPE_TQ2_0) && ggml_is_matrix(w) && ggml_is_contiguous(w);
}

struct ggml_tensor * ggml_tq_mul_mat(struct ggml_context * ctx, struct ggml_tensor * w, struct ggml_tensor * xq) {
    GGML_ASSERT(is_ternary_matrix(w));
    GGML_ASSERT(is_quantized_tokens(xq, w->ne[0], 1));

    struct ggml_tensor * result = ggml_new_tensor_2d(ctx, GGML_TYPE_F32, w->ne[1], xq->ne[1]);
    return TRAIN_OP(result, GGML_TRAIN_OP_TQ_MUL_MAT, 0.0f, w, xq);
}

struct ggml_tensor * ggml_tq_mul_mat_back(
        struct ggml_context * ctx, struct ggml_tensor * w, struct ggml_tensor * yq, struct ggml_tensor * add) {
    GGML_ASSERT(is_ternary_matrix(w) && w->ne[1] % TQ_SUM_STEP == 0);
    GGML_ASSERT(is_quantized_tokens(yq, w->ne[1], 1) || is_quantized_tokens(yq, w->ne[1], 2));

    struct ggml_tensor * result = ggml_new_tensor_2d(ctx, GGML_TYPE_F32, w->ne[0], yq->ne[1]);
    GGML_ASSERT(is_same_or_null(add, result));
    return TRAIN_OP(result, GGML_TRAIN_OP_TQ_MUL_MAT_BACK, 0.0f, w, yq, add);
}

struct ggml_tensor * ggml_low_rank_project(
        struct ggml_context * ctx, struct ggml_tensor * p, struct ggml_tensor * v, float scale) {
    GGML_ASSERT(p->type == GGML_TYPE_F32 && ggml_is_matrix(p));
    GGML_ASSERT(ggml_is_matrix(v) && is_rows(v, p->ne[0]));

    struct ggml_tensor * result = ggml_new_tensor_2d(ctx, GGML_TYPE_F32, p->ne[1], v->ne[1]);
    return TRAIN_OP(result, GGML_TRAIN_OP_LOW_RANK_PROJECT, scale, p, v);
}

struct ggml_tensor * ggml_low_rank_add(
        struct ggml_context * ctx, struct ggml_tensor * y, struct ggml_tensor * p, struct ggml_tensor * z,
        struct ggml_tensor * add, float scale) {
    GGML_ASSERT(y->type == GGML_TYPE_F32 && ggml_is_matrix(y) && ggml_is_contiguous(y));
    GGML_ASSERT(p->type == GGML_TYPE_F32 && ggml_is_matrix(p) && p->ne[0] == y->ne[0]);
    GGML_ASSERT(ggml_is_matrix(z) && is_rows(z, p->ne[1]) && z->ne[1] == y->ne[1]);
    GGML_ASSERT(is_same_or_null(add, y));

    return TRAIN_OP(ggml_view_tensor(ctx, y), GGML_TRAIN_OP_LOW_RANK_ADD, scale, y, p, z, add);
}

struct ggml_tensor * ggml_low_rank_grad(
        struct ggml_context * ctx, struct ggml_tensor * grad, struct ggml_tensor * v, struct ggml_tensor * z, float scale) {
    GGML_ASSERT(grad->type == GGML_TYPE_F32 && ggml_is_matrix(grad));
    GGML_ASSERT(ggml_is_matrix(v) && is_rows(v, grad->ne[0]));
    GGML_ASSERT(ggml_is_matrix(z) && is_rows(z, grad->ne[1]) && z->ne[1] == v->ne[1]);

    return TRAIN_OP(ggml_view_tensor(ctx, grad), GGML_TRAIN_OP_LOW_RANK_GRAD, scale, grad, v, z);
}

struct ggml_tensor * ggml_rms_norm_mul_back(
        struct ggml_context * ctx, struct ggml_tensor * dy, struct ggml_tensor * x, struct ggml_tensor * w,
        struct ggml_tensor * add, float eps) {
    GGML_ASSERT(dy->type == GGML_TYPE_F32 && ggml_is_matrix(dy) && ggml_is_contiguous(dy));
    GGML_ASSERT(is_same_or_null(x, dy) && is_same_or_null(add, dy));
    GGML_ASSERT(ggml_is_vector(w) && is_rows(w, dy->ne[0]));

    struct ggml_tensor * result = ggml_new_tensor_2d(ctx, GGML_TYPE_F32, dy->ne[0], dy->ne[1]);
    return TRAIN_OP(result, GGML_TRAIN_OP_RMS_NORM_MUL_BACK, eps, dy, x, w, add);
}

static struct ggml_tensor * glu_back(
        struct ggml_context * ctx, enum ggml_train_op op, struct ggml_tensor * dy, struct ggml_tensor * gate,
        struct ggml_tensor * up) {
    GGML_ASSERT(dy->type == GGML_TYPE_F32 && ggml_is_matrix(dy) && ggml_is_contiguous(dy));
    GGML_ASSERT(is_same_or_null(gate, dy) && is_same_or_null(up, dy));

    struct ggml_tensor * result = ggml_new_tensor_3d(ctx, GGML_TYPE_F32, dy->ne[0], dy->ne[1], 2);
    return TRAIN_OP(result, op, 0.0f, dy, gate, up);
}

struct ggml_tensor * ggml_swiglu_back(
        struct ggml_context * ctx, struct ggml_tensor * dy, struct ggml_tensor * gate, struct ggml_tensor * up) {
    return glu_back(ctx, GGML_TRAIN_OP_SWIGLU_BACK, dy, gate, up);
}

struct ggml_tensor * ggml_relu_sqr_glu_back(
        struct ggml_context * ctx, struct ggml_tensor * dy, struct ggml_tensor * gate, struct ggml_tensor * up) {
    return glu_back(ctx, GGML_TRAIN_OP_RELU_SQR_GLU_BACK, dy, gate, up);
}

static void assert_attention(
        const struct ggml_tensor * q, const struct ggml_tensor * k, const struct ggml_tensor * v,
        const struct ggml_tensor * segments) {
    GGML_ASSERT(q->type == GGML_TYPE_F32 && ggml_is_3d(q) && ggml_is_contiguous(q));
    GGML_ASSERT(k->type == GGML_TYPE_F32 && ggml_is_3d(k) && ggml_is_contiguous(k) && is_same_or_null(v, k));
    GGML_ASSERT(k->ne[0] == q->ne[0] && q->ne[1] % k->ne[1] == 0 && k->ne[2] == q->ne[2]);
    GGML_ASSERT(segments->type == GGML_TYPE_I32 && ggml_is_matrix(segments) && ggml_is_contiguous(segments));
    GGML_ASSERT(segments->ne[0] == 2 && segments->ne[1] == q->ne[2]);
}

struct ggml_tensor * ggml_attention(
        struct ggml_context * ctx, struct ggml_tensor * q, struct ggml_tensor * k, struct ggml_tensor * v,
        struct ggml_tensor * segments, float scale) {
    assert_attention(q, k, v, segments);

    struct ggml_tensor * result = ggml_new_tensor_1d(ctx, GGML_TYPE_F32, (q->ne[0] + 1) * q->ne[1] * q->ne[2]);
    return TRAIN_OP(result, GGML_TRAIN_OP_ATTENTION, scale, q, k, v, segments);
}

struct ggml_tensor * ggml_attention_back(
        struct ggml_context * ctx, struct ggml_tensor * q, struct ggml_tensor * k, struct ggml_tensor * v,
        struct ggml_tensor * segments, struct ggml_tensor * fwd, struct ggml_tensor * dy, float scale) {
    assert_attention(q, k, v, segments);
    GGML_ASSERT(fwd->type == GGML_TYPE_F32 && ggml_nelements(fwd) == (q->ne[0] + 1) * q->ne[1] * q->ne[2]);
    GGML_ASSERT(ggml_is_contiguous(fwd) && is_same_or_null(dy, q));

    struct ggml_tensor * result = ggml_new_tensor_1d(ctx, GGML_TYPE_F32, q->ne[0] * q->ne[2] * (q->ne[1] + 2 * k->ne[1]));
    return TRAIN_OP(result, GGML_TRAIN_OP_ATTENTION_BACK, scale, q, k, v, segments, fwd, dy);
}
