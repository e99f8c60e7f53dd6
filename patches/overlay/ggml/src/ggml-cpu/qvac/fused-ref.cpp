// The fused float ops of ggml-train.h as plain loops in double: for reading, and for `ggml_backend_cpu_set_use_ref`.

#include "fused.h"
#include "ggml-train.h"

#include <algorithm>
#include <cmath>
#include <vector>

namespace qvac {

namespace {

float & at(const ggml_tensor * t, int64_t i0, int64_t i1 = 0, int64_t i2 = 0) {
    return *(float *) ((char *) t->data + i0 * t->nb[0] + i1 * t->nb[1] + i2 * t->nb[2]);
}

void project(ggml_tensor * dst) {
    const ggml_tensor * p = dst->src[0];
    const ggml_tensor * v = dst->src[1];
    for (int64_t t = 0; t < dst->ne[1]; ++t) {
        for (int64_t k = 0; k < dst->ne[0]; ++k) {
            double sum = 0.0;
            for (int64_t n = 0; n < p->ne[0]; ++n) {
                sum += (double) at(p, n, k) * at(v, n, t);
            }
            at(dst, k, t) = (float) (ggml_train_op_param(dst) * sum);
        }
    }
}

void add(ggml_tensor * dst) {
    const ggml_tensor * p   = dst->src[1];
    const ggml_tensor * z   = dst->src[2];
    const ggml_tensor * res = dst->src[3];
    for (int64_t t = 0; t < dst->ne[1]; ++t) {
        for (int64_t n = 0; n < dst->ne[0]; ++n) {
            double sum = 0.0;
            for (int64_t k = 0; k < p->ne[1]; ++k) {
                sum += (double) at(p, n, k) * at(z, k, t);
            }
            at(dst, n, t) = (float) (at(dst, n, t) + ggml_train_op_param(dst) * sum + (res ? at(res, n, t) : 0.0f));
        }
    }
}

void grad(ggml_tensor * dst) {
    const ggml_tensor * v = dst->src[1];
    const ggml_tensor * z = dst->src[2];
    for (int64_t k = 0; k < dst->ne[1]; ++k) {
        for (int64_t n = 0; n < dst->ne[0]; ++n) {
            double sum = 0.0;
            for (int64_t t = 0; t < v->ne[1]; ++t) {
                sum += (double) at(v, n, t) * at(z, k, t);
            }
            at(dst, n, k) = (float) (at(dst, n, k) + ggml_train_op_param(dst) * sum);
        }
    }
}

void rms_norm_mul(ggml_tensor * dst) {
    const ggml_tensor * dy  = dst->src[0];
    const ggml_tensor * x   = dst->src[1];
    const ggml_tensor * w   = dst->src[2];
    const ggml_tensor * res = dst->src[3];
    const int64_t       n   = dst->ne[0];
    for (int64_t t = 0; t < dst->ne[1]; ++t) {
        double xx = 0.0;
        double gx = 0.0;
        for (int64_t i = 0; i < n; ++i) {
            xx += (double) at(x, i, t) * at(x, i, t);
            gx += (double) at(dy, i, t) * at(w, i) * at(x, i, t);
        }
        const double r = 1.0 / std::sqrt(xx / n + ggml_train_op_param(dst));
        for (int64_t i = 0; i < n; ++i) {
            const double g = (double) at(dy, i, t) * at(w, i);
            at(dst, i, t)  = (float) (r * (g - at(x, i, t) * r * r * gx / n) + (res ? at(res, i, t) : 0.0f));
        }
    }
}

void swiglu(ggml_tensor * dst) {
    for (int64_t t = 0; t < dst->ne[1]; ++t) {
        for (int64_t i = 0; i < dst->ne[0]; ++i) {
            const double dy  = at(dst->src[0], i, t);
            const double g   = at(dst->src[1], i, t);
            const double up  = at(dst->src[2], i, t);
            const double s   = 1.0 / (1.0 + std::exp(-g));
            at(dst, i, t, 0) = (float) (dy * up * s * (1.0 + g * (1.0 - s)));
            at(dst, i, t, 1) = (float) (dy * g * s);
        }
    }
}

void relu_sqr_glu(ggml_tensor * dst) {
    for (int64_t t = 0; t < dst->ne[1]; ++t) {
        for (int64_t i = 0; i < dst->ne[0]; ++i) {
            const double dy  = at(dst->src[0], i, t);
            const double r   = std::max(0.0f, at(dst->src[1], i, t));
            const double up  = at(dst->src[2], i, t);
            at(dst, i, t, 0) = (float) (dy * up * 2.0 * r);
            at(dst, i, t, 1) = (float) (dy * r * r);
        }
    }
}

double dot(const ggml_tensor * a, const ggml_tensor * b, int64_t head_a, int64_t t_a, int64_t head_b, int64_t t_b) {
    double sum = 0.0;
    for (int64_t e = 0; e < a->ne[0]; ++e) {
        sum += (double) at(a, e, head_a, t_a) * at(b, e, head_b, t_b);
    }
    return sum;
}

// Calls `visit(head, key head, t, first token that t looks at)` for every query.
template <typename F> void each_query(const ggml_tensor * dst, F visit) {
    const ggml_tensor * q        = dst->src[0];
    const int32_t *     segments = (const int32_t *) dst->src[3]->data;
    const int64_t       group    = q->ne[1] / dst->src[1]->ne[1];
    for (int64_t head = 0; head < q->ne[1]; ++head) {
        for (int64_t t = 0; t < q->ne[2]; ++t) {
            visit(head, head / group, t, (int64_t) segments[2 * t]);
        }
    }
}

void attention_fwd(ggml_tensor * dst) {
    const ggml_tensor * q     = dst->src[0];
    const ggml_tensor * k     = dst->src[1];
    const ggml_tensor * v     = dst->src[2];
    const double        scale = ggml_train_op_param(dst);
    float *             y     = (float *) dst->data;
    float *             lse   = y + ggml_nelements(q);
    each_query(dst, [&](int64_t head, int64_t kv, int64_t t, int64_t first) {
        std::vector<double> p;
        double              max = -INFINITY;
        for (int64_t j = first; j <= t; ++j) {
            p.push_back(scale * dot(q, k, head, t, kv, j));
            max = std::max(max, p.back());
        }
        double sum = 0.0;
        for (double & x : p) {
            x = std::exp(x - max);
            sum += x;
        }
        const int64_t row = t * q->ne[1] + head;
        for (int64_t e = 0; e < q->ne[0]; ++e) {
            double out = 0.0;
            for (int64_t j = first; j <= t; ++j) {
                out += p[j - first] * at(v, e, kv, j);
            }
            y[row * q->ne[0] + e] = (float) (out / sum);
        }
        lse[row] = (float) (max + std::log(sum));
    });
}

void attention_bwd(ggml_tensor * dst) {
    const ggml_tensor * q     = dst->src[0];
    const ggml_tensor * k     = dst->src[1];
    const ggml_tensor * v     = dst->src[2];
    const ggml_tensor * dy    = dst->src[5];
    const double        scale = ggml_train_op_param(dst);
    const int64_t       d     = q->ne[0];
    const int64_t       n_q   = ggml_nelements(q);
    const int64_t       n_k   = ggml_nelements(k);
    const float *       y     = (const float *) dst->src[4]->data;
    const float *       lse   = y + n_q;
    std::vector<double> sums(n_q + 2 * n_k, 0.0);
    each_query(dst, [&](int64_t head, int64_t kv, int64_t t, int64_t first) {
        const int64_t row   = t * q->ne[1] + head;
        double        delta = 0.0;
        for (int64_t e = 0; e < d; ++e) {
            delta += (double) at(dy, e, head, t) * y[row * d + e];
        }
        for (int64_t j = first; j <= t; ++j) {
            const double  p    = std::exp(scale * dot(q, k, head, t, kv, j) - lse[row]);
            const double  ds   = scale * p * (dot(dy, v, head, t, kv, j) - delta);
            const int64_t at_k = n_q + (j * k->ne[1] + kv) * d;
            for (int64_t e = 0; e < d; ++e) {
                sums[row * d + e] += ds * at(k, e, kv, j);
                sums[at_k + e] += ds * at(q, e, head, t);
                sums[at_k + n_k + e] += p * at(dy, e, head, t);
            }
        }
    });
    std::copy(sums.begin(), sums.end(), (float *) dst->data);
}

}  // namespace

void fused_ref(ggml_tensor * dst) {
    switch (ggml_get_train_op(dst)) {
        case GGML_TRAIN_OP_LOW_RANK_PROJECT:
            return project(dst);
        case GGML_TRAIN_OP_LOW_RANK_ADD:
            return add(dst);
        case GGML_TRAIN_OP_LOW_RANK_GRAD:
            return grad(dst);
        case GGML_TRAIN_OP_RMS_NORM_MUL_BACK:
            return rms_norm_mul(dst);
        case GGML_TRAIN_OP_SWIGLU_BACK:
            return swiglu(dst);
        case GGML_TRAIN_OP_RELU_SQR_GLU_BACK:
            return relu_sqr_glu(dst);
        case GGML_TRAIN_OP_ATTENTION:
            return attention_fwd(dst);
        case GGML_TRAIN_OP_ATTENTION_BACK:
            return attention_bwd(dst);
        default:
            GGML_ABORT("%s is not one of these", ggml_train_op_desc(dst));
    }
}

}  // namespace qvac
