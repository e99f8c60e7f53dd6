// Value by value in exact arithmetic (exact.h): arithmetic, functions, gated units and their gradients, AdamW. Which others there
// are of this kind: exact-copy.cpp, exact-rope.cpp.

#include "exact-elementwise.h"

#include "exact-tensor.h"
#include "qvac/exact-ops.h"
#include "qvac/exact-values.h"

#include <array>
#include <utility>

namespace qvac {

namespace {

// Values that are read, computed and written at once: a result may lie over an operand.
constexpr int64_t CHUNK = 256;

struct operands {
    const ggml_tensor * a;
    const ggml_tensor * b; // null: one operand
    int64_t a_first = 0;   // where the rows' values begin: gated units may have both halves in one row
    int64_t b_first = 0;
    float factor = 0.0f;
    float offset = 0.0f;
};

void load(const char * row, const size_t stride, const int64_t n_row, const int64_t first, const int64_t n, float * out) {
    if (n_row == 1) {
        std::fill(out, out + n, *(const float *) row);
    } else if (stride == sizeof(float) && first % n_row + n <= n_row) {
        std::copy_n((const float *) row + first % n_row, n, out);
    } else {
        for (int64_t i = 0; i < n; ++i) {
            out[i] = *(const float *) (row + (first + i) % n_row * stride);
        }
    }
}

template <uint OP> void compute_chunk(const operands & o, const int64_t n, const float * a, const float * b, float * y) {
    for (int64_t i = 0; i < n; ++i) {
        y[i] = exact_value(OP, a[i], b[i], o.factor, o.offset);
    }
}

using chunk_function = void (*)(const operands & o, int64_t n, const float * a, const float * b, float * y);

template <uint... OPS> constexpr std::array<chunk_function, sizeof...(OPS)> functions(std::integer_sequence<uint, OPS...>) {
    return { compute_chunk<OPS>... };
}

constexpr std::array<chunk_function, EXACT_COUNT> FUNCTIONS = functions(std::make_integer_sequence<uint, EXACT_COUNT>());

const char * repeated_row(const ggml_tensor * t, const int64_t i1, const int64_t i2, const int64_t i3) {
    return (const char *) t->data + i1 % t->ne[1] * t->nb[1] + i2 % t->ne[2] * t->nb[2] + i3 % t->ne[3] * t->nb[3];
}

void compute(const ggml_compute_params * params, ggml_tensor * dst) {
    uint     op;
    operands o;
    ggml_exact_value_op(dst, &op, &o.factor, &o.offset);
    o.a = dst->src[0];
    o.b = op < EXACT_SCALE ? dst->src[1] : nullptr;
    if (dst->op == GGML_OP_GLU && !o.b) {
        const bool swapped = ggml_get_op_params_i32(dst, 1) != 0;
        o.b       = o.a;
        o.a_first = swapped ? dst->ne[0] : 0;
        o.b_first = swapped ? 0 : dst->ne[0];
    }
    const chunk_function function = FUNCTIONS[op];

    const int64_t     chunks = (dst->ne[0] + CHUNK - 1) / CHUNK; // of a row
    const exact_range part   = exact_part(params, chunks * ggml_nrows(dst));
    for (int64_t unit = part.begin; unit < part.end; ++unit) {
        const int64_t row = unit / chunks, first = unit % chunks * CHUNK;
        const int64_t n  = std::min(CHUNK, dst->ne[0] - first);
        const int64_t i1 = row % dst->ne[1], i2 = row / dst->ne[1] % dst->ne[2], i3 = row / dst->ne[1] / dst->ne[2];

        float a[CHUNK], b[CHUNK], y[CHUNK];
        load(repeated_row(o.a, i1, i2, i3) + o.a_first * o.a->nb[0], o.a->nb[0], dst->ne[0], first, n, a);
        if (o.b) {
            const int64_t n_row = dst->op == GGML_OP_GLU ? dst->ne[0] : o.b->ne[0];
            load(repeated_row(o.b, i1, i2, i3) + o.b_first * o.b->nb[0], o.b->nb[0], n_row, first, n, b);
        } else {
            std::copy_n(a, n, b);
        }
        function(o, n, a, b, y);
        char * out = exact_row(dst, row) + first * dst->nb[0];
        for (int64_t i = 0; i < n; ++i) {
            *(float *) (out + i * dst->nb[0]) = y[i];
        }
    }
}

// Of contiguous tensors: `each` makes its results from the values at its place.
template <typename F> void each_value(const ggml_compute_params * params, const ggml_tensor * shape, const F & each) {
    const exact_range part = exact_part(params, ggml_nelements(shape));
    for (int64_t i = part.begin; i < part.end; ++i) {
        each(i);
    }
}

void glu_back(const ggml_compute_params * params, ggml_tensor * dst) {
    const float * dy    = (const float *) dst->src[0]->data;
    const float * gate  = (const float *) dst->src[1]->data;
    const float * up    = (const float *) dst->src[2]->data;
    float *       dgate = (float *) dst->data;
    float *       dup   = dgate + ggml_nelements(dst->src[0]);
    if (ggml_get_train_op(dst) == GGML_TRAIN_OP_SWIGLU_BACK) {
        each_value(params, dst->src[0], [=](int64_t i) {
            const float d = dy[i], g = gate[i], u = up[i];
            dgate[i] = exact_swiglu_back_gate(d, g, u);
            dup[i]   = exact_swiglu_back_up(d, g);
        });
    } else {
        each_value(params, dst->src[0], [=](int64_t i) {
            const float d = dy[i], g = gate[i], u = up[i];
            dgate[i] = exact_relu_sqr_back_gate(d, g, u);
            dup[i]   = exact_relu_sqr_back_up(d, g);
        });
    }
}

void adamw(const ggml_compute_params * params, ggml_tensor * dst) {
    float *       w = (float *) dst->src[0]->data;
    const float * g = (const float *) dst->src[1]->data;
    float *       m = (float *) dst->src[2]->data;
    float *       v = (float *) dst->src[3]->data;
    const float * p = (const float *) dst->src[4]->data;

    const float lr = p[0], beta1 = p[1], beta2 = p[2], eps = p[3], decay = p[4], correction1 = p[5], correction2 = p[6];
    each_value(params, dst->src[0], [=](int64_t i) {
        m[i] = exact_adamw_m(m[i], g[i], beta1);
        v[i] = exact_adamw_v(v[i], g[i], beta2);
        w[i] = exact_adamw_w(w[i], m[i], v[i], lr, eps, decay, correction1, correction2);
    });
}

bool is_plain(const ggml_tensor * t) {
    return t->type == GGML_TYPE_F32 && ggml_is_contiguous(t);
}

const exact_kernel VALUES   = { compute, nullptr };
const exact_kernel GLU_BACK = { glu_back, nullptr };
const exact_kernel ADAMW    = { adamw, nullptr };

}  // namespace

const exact_kernel * exact_elementwise(const ggml_tensor * op) {
    switch (op->op) {
        case GGML_OP_DUP:
        case GGML_OP_CPY:
        case GGML_OP_CONT:
        case GGML_OP_SET_ROWS:
            return exact_copy(op);
        case GGML_OP_ROPE:
        case GGML_OP_ROPE_BACK:
            return exact_rotary(op);
        case GGML_OP_OPT_STEP_ADAMW:
            return is_plain(op->src[0]) && is_plain(op->src[1]) && is_plain(op->src[2]) && is_plain(op->src[3]) ? &ADAMW : nullptr;
        case GGML_OP_CUSTOM:
            switch (ggml_get_train_op(op)) {
                case GGML_TRAIN_OP_SWIGLU_BACK:
                case GGML_TRAIN_OP_RELU_SQR_GLU_BACK:
                    return &GLU_BACK;
                default:
                    return nullptr;
            }
        default: {
            uint  kind;
            float factor, offset;
            return ggml_exact_value_op(op, &kind, &factor, &offset) ? &VALUES : nullptr;
        }
    }
}

}  // namespace qvac
