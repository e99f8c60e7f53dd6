// Sums over rows in exact arithmetic (exact.h).

#include "exact.h"

#include "exact-tensor.h"
#include "qvac/exact-values.h"

#include <cfloat>

namespace qvac {

namespace {

// y = x / sqrt(mean(x^2) + eps)
void rms_norm(const ggml_compute_params * params, ggml_tensor * dst) {
    const ggml_tensor * src = dst->src[0];
    const int64_t       n   = src->ne[0];
    const float         eps = ggml_get_op_params_f32(dst, 0);
    const exact_range   rows = exact_part(params, ggml_nrows(src));
    for (int64_t row = rows.begin; row < rows.end; ++row) {
        const float * x = (const float *) exact_row(src, row);
        float *       y = (float *) exact_row(dst, row);
        const float sum = exact_row_sum(n, [&](int64_t i) { return x[i] * x[i]; });
        const float r   = exact_rsqrt(exact_div(sum, (float) n) + eps);
        for (int64_t i = 0; i < n; ++i) {
            y[i] = x[i] * r;
        }
    }
}

// RMS_NORM_MUL_BACK, and RMS_NORM_BACK, which has neither weights nor `add`:
// with g = dy w and r = 1 / sqrt(mean(x^2) + eps), dx = r (g - x ((r r) mean(g x))) + add.
void rms_norm_back(const ggml_compute_params * params, ggml_tensor * dst) {
    const bool          fused = dst->op == GGML_OP_CUSTOM;
    const int64_t       n     = dst->ne[0];
    const float         eps   = fused ? ggml_train_op_param(dst) : ggml_get_op_params_f32(dst, 0);
    const float *       w     = fused ? (const float *) dst->src[2]->data : nullptr;
    const ggml_tensor * other = fused ? dst->src[3] : nullptr;
    const exact_range   rows  = exact_part(params, ggml_nrows(dst));
    for (int64_t row = rows.begin; row < rows.end; ++row) {
        const float * dy  = (const float *) exact_row(dst->src[0], row);
        const float * x   = (const float *) exact_row(dst->src[1], row);
        const float * add = other ? (const float *) exact_row(other, row) : nullptr;
        float *       dx  = (float *) exact_row(dst, row);

        const auto  g   = [&](int64_t i) { return w ? dy[i] * w[i] : dy[i]; };
        const float sum = exact_row_sum(n, [&](int64_t i) { return x[i] * x[i]; });
        const float gx  = exact_row_sum(n, [&](int64_t i) { return g(i) * x[i]; });
        const float r   = exact_rsqrt(exact_div(sum, (float) n) + eps);
        const float q   = (r * r) * exact_div(gx, (float) n);
        for (int64_t i = 0; i < n; ++i) {
            const float d = r * (g(i) - x[i] * q);
            dx[i] = add ? d + add[i] : d;
        }
    }
}

// The largest logit, from the lowest finite number on: the exponential of a masked one is then 0 and not that of inf - inf.
float max_of(const float * x, const int64_t n) {
    float max = -FLT_MAX;
    for (int64_t i = 0; i < n; ++i) {
        max = x[i] > max ? x[i] : max;
    }
    return max;
}

float sum_of_exp(const float * x, const int64_t n, const float max) {
    return exact_row_sum(n, [&](int64_t i) { return exact_exp(x[i] - max); });
}

int32_t label_of(const ggml_tensor * labels, const int64_t row) {
    return *(const int32_t *) ((const char *) labels->data + row * labels->nb[0]);
}

// loss = scale (log(sum exp(x - M)) - (x[label] - M))
void cross_entropy(const ggml_compute_params * params, ggml_tensor * dst) {
    const ggml_tensor * logits = dst->src[0]; // [n_vocab, n_rows]
    const ggml_tensor * labels = dst->src[1]; // [n_rows]
    const int64_t       n      = logits->ne[0];
    const float         scale  = ggml_get_op_params_f32(dst, 0);
    const exact_range   rows   = exact_part(params, logits->ne[1]);
    for (int64_t row = rows.begin; row < rows.end; ++row) {
        const float * x     = (const float *) exact_row(logits, row);
        float *       loss  = (float *) ((char *) dst->data + row * dst->nb[0]);
        const int32_t label = label_of(labels, row);
        if (label < 0 || label >= n) {
            *loss = label < 0 ? 0.0f : exact_nan();
            continue;
        }
        const float max = max_of(x, n);
        *loss = scale * (exact_log(sum_of_exp(x, n, max)) - (x[label] - max));
    }
}

// dlogits = (scale grad) (exp(x - M) recip(sum) - (i == label))
void cross_entropy_back(const ggml_compute_params * params, ggml_tensor * dst) {
    const ggml_tensor * grad   = dst->src[0]; // [1] or [n_rows]
    const ggml_tensor * logits = dst->src[1]; // [n_vocab, n_rows]
    const ggml_tensor * labels = dst->src[2]; // [n_rows]
    const int64_t       n      = logits->ne[0];
    const float         scale  = ggml_get_op_params_f32(dst, 0);
    const size_t        stride = grad->ne[0] == 1 ? 0 : grad->nb[0];
    const exact_range   rows   = exact_part(params, logits->ne[1]);
    for (int64_t row = rows.begin; row < rows.end; ++row) {
        const float * x     = (const float *) exact_row(logits, row);
        float *       d     = (float *) exact_row(dst, row);
        const int32_t label = label_of(labels, row);
        if (label < 0 || label >= n) {
            std::fill(d, d + n, label < 0 ? 0.0f : exact_nan());
            continue;
        }
        const float g   = scale * *(const float *) ((const char *) grad->data + row * stride);
        const float max = max_of(x, n);
        const float by  = exact_recip(sum_of_exp(x, n, max));
        for (int64_t i = 0; i < n; ++i) {
            d[i] = g * (exact_exp(x[i] - max) * by - (i == label ? 1.0f : 0.0f));
        }
    }
}

void sum_rows(const ggml_compute_params * params, ggml_tensor * dst) {
    const ggml_tensor * src  = dst->src[0];
    const exact_range   rows = exact_part(params, ggml_nrows(src));
    for (int64_t row = rows.begin; row < rows.end; ++row) {
        const float * x = (const float *) exact_row(src, row);
        *(float *) exact_row(dst, row) = exact_row_sum(src->ne[0], [&](int64_t i) { return x[i]; });
    }
}

// Of all values, as of one row.
void sum(const ggml_compute_params * params, ggml_tensor * dst) {
    const float * x = (const float *) dst->src[0]->data;
    if (params->ith == 0) {
        *(float *) dst->data = exact_row_sum(ggml_nelements(dst->src[0]), [&](int64_t i) { return x[i]; });
    }
}

const exact_kernel RMS_NORM           = { rms_norm, nullptr };
const exact_kernel RMS_NORM_BACK      = { rms_norm_back, nullptr };
const exact_kernel CROSS_ENTROPY      = { cross_entropy, nullptr };
const exact_kernel CROSS_ENTROPY_BACK = { cross_entropy_back, nullptr };
const exact_kernel SUM_ROWS           = { sum_rows, nullptr };
const exact_kernel SUM                = { sum, nullptr };

}  // namespace

const exact_kernel * exact_rows(const ggml_tensor * op) {
    const ggml_tensor * src = op->src[0];
    switch (op->op) {
        case GGML_OP_RMS_NORM:
            return exact_is_float_rows(src) && exact_is_float_rows(op) ? &RMS_NORM : nullptr;
        case GGML_OP_RMS_NORM_BACK:
            return exact_is_float_rows(src) && exact_is_float_rows(op->src[1]) && exact_is_float_rows(op) ? &RMS_NORM_BACK : nullptr;
        case GGML_OP_CUSTOM:
            return ggml_get_train_op(op) == GGML_TRAIN_OP_RMS_NORM_MUL_BACK ? &RMS_NORM_BACK : nullptr;
        case GGML_OP_CROSS_ENTROPY_LOSS:
            return op->src[1]->type == GGML_TYPE_I32 && exact_is_float_rows(src) ? &CROSS_ENTROPY : nullptr;
        case GGML_OP_CROSS_ENTROPY_LOSS_BACK:
            return op->src[2]->type == GGML_TYPE_I32 && exact_is_float_rows(op->src[1]) && exact_is_float_rows(op) ? &CROSS_ENTROPY_BACK
                                                                                                                  : nullptr;
        case GGML_OP_SUM_ROWS:
            return exact_is_float_rows(src) ? &SUM_ROWS : nullptr;
        case GGML_OP_SUM:
            return exact_is_float_rows(src) && ggml_is_contiguous(src) ? &SUM : nullptr;
        default:
            return nullptr;
    }
}

}  // namespace qvac
