// CPU kernels of cross entropy over class ids.
//
// Each row is worked by one thread in one fixed order, so the result does not depend on the number of threads.

#include "cross_entropy.h"

#include "ggml-impl.h"
#include "ggml-cpu-impl.h"
#include "vec.h"

#include <algorithm>
#include <cmath>
#include <cstring>

namespace {

// Exponentials of the forward pass go through a buffer of this many floats: it stays in the first-level cache, and
// a row of 262k logits needs no scratch memory of its own.
constexpr int64_t CHUNK = 2048;

struct row_range {
    int64_t begin;
    int64_t end;
};

row_range rows_of_thread(const ggml_compute_params * params, int64_t n_rows) {
    const int64_t per_thread = (n_rows + params->nth - 1) / params->nth;
    const int64_t begin      = std::min(per_thread * params->ith, n_rows);
    return { begin, std::min(begin + per_thread, n_rows) };
}

const float * row_of(const ggml_tensor * t, int64_t row) {
    return (const float *) ((const char *) t->data + row * t->nb[1]);
}

int32_t label_of(const ggml_tensor * labels, int64_t row) {
    return *(const int32_t *) ((const char *) labels->data + row * labels->nb[0]);
}

float max_of(const float * x, int64_t n) {
    float max = -INFINITY;
    ggml_vec_max_f32((int) n, &max, x);
    return max;
}

} // namespace

bool ggml_qvac_cross_entropy_is_labels(const ggml_tensor * op) {
    const ggml_tensor * labels = op->op == GGML_OP_CROSS_ENTROPY_LOSS ? op->src[1] : op->src[2];
    return labels->type == GGML_TYPE_I32;
}

bool ggml_qvac_cross_entropy_supported(const ggml_tensor * op) {
    if (!ggml_qvac_cross_entropy_is_labels(op)) {
        return true; // upstream's own answer
    }
    const bool          forward = op->op == GGML_OP_CROSS_ENTROPY_LOSS;
    const ggml_tensor * logits  = op->src[forward ? 0 : 1];
    return logits->type == GGML_TYPE_F32 && logits->nb[0] == sizeof(float) &&
           op->type == GGML_TYPE_F32 && op->nb[0] == sizeof(float) &&
           (forward || op->src[0]->type == GGML_TYPE_F32);
}

void ggml_qvac_cross_entropy_loss(const ggml_compute_params * params, ggml_tensor * dst) {
    const ggml_tensor * logits = dst->src[0]; // [n_vocab, n_rows]
    const ggml_tensor * labels = dst->src[1]; // [n_rows]

    const int64_t   n_vocab = logits->ne[0];
    const float     scale   = ggml_get_op_params_f32(dst, 0);
    const row_range rows    = rows_of_thread(params, logits->ne[1]);

    for (int64_t r = rows.begin; r < rows.end; ++r) {
        float *       loss  = (float *) dst->data + r;
        const int32_t label = label_of(labels, r);
        if (label < 0) {
            *loss = 0.0f;
            continue;
        }
        if (label >= n_vocab) {
            *loss = NAN;
            continue;
        }

        const float * x   = row_of(logits, r);
        const float   max = max_of(x, n_vocab);

        float  exps[CHUNK];
        double sum = 0.0;
        for (int64_t i = 0; i < n_vocab; i += CHUNK) {
            const int64_t n = std::min(CHUNK, n_vocab - i);
            sum += ggml_vec_soft_max_f32((int) n, exps, x + i, max);
        }
        *loss = scale * (float) (std::log(sum) - ((double) x[label] - (double) max));
    }
}

void ggml_qvac_cross_entropy_loss_back(const ggml_compute_params * params, ggml_tensor * dst) {
    const ggml_tensor * grad   = dst->src[0]; // [1] or [n_rows]
    const ggml_tensor * logits = dst->src[1]; // [n_vocab, n_rows]
    const ggml_tensor * labels = dst->src[2]; // [n_rows]

    const int64_t   n_vocab = logits->ne[0];
    const float     scale   = ggml_get_op_params_f32(dst, 0);
    const row_range rows    = rows_of_thread(params, logits->ne[1]);
    const size_t    nb_grad = grad->ne[0] == 1 ? 0 : grad->nb[0];

    for (int64_t r = rows.begin; r < rows.end; ++r) {
        float *       d     = (float *) ((char *) dst->data + r * dst->nb[1]);
        const int32_t label = label_of(labels, r);
        if (label < 0) {
            memset(d, 0, n_vocab * sizeof(float));
            continue;
        }
        if (label >= n_vocab) {
            std::fill(d, d + n_vocab, NAN);
            continue;
        }

        const float * x   = row_of(logits, r);
        const float   g   = scale * *(const float *) ((const char *) grad->data + r * nb_grad);
        const double  sum = ggml_vec_soft_max_f32((int) n_vocab, d, x, max_of(x, n_vocab));

        // (p - 1) * g rather than p*g - g: for a confident row p is near 1, and the difference must be taken first
        const float p_label = (float) (d[label] / sum);
        ggml_vec_scale_f32((int) n_vocab, d, (float) (g / sum));
        d[label] = (p_label - 1.0f) * g;
    }
}
