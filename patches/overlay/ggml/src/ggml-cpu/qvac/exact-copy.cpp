// Conversions in exact arithmetic (exact.h): CPY, DUP and CONT between f16 and f32, and SET_ROWS of f32 to either.

#include "exact-elementwise.h"
#include "exact-tensor.h"
#include "qvac/exact-math.h"

namespace qvac {

namespace {

bool is_float(const ggml_tensor * t) {
    return t->type == GGML_TYPE_F32 || t->type == GGML_TYPE_F16;
}

float load(const ggml_tensor * t, const char * at) {
    return t->type == GGML_TYPE_F32 ? *(const float *) at : exact_from_f16(*(const uint16_t *) at);
}

void store(const ggml_tensor * t, char * at, const float x) {
    if (t->type == GGML_TYPE_F32) {
        *(float *) at = x;
    } else {
        *(uint16_t *) at = (uint16_t) exact_to_f16(x);
    }
}

// Value i of `t` in the order of its dimensions.
char * value_at(const ggml_tensor * t, const int64_t i) {
    return exact_row(t, i / t->ne[0]) + i % t->ne[0] * t->nb[0];
}

void copy(const ggml_compute_params * params, ggml_tensor * dst) {
    const ggml_tensor * src  = dst->src[0];
    const exact_range   part = exact_part(params, ggml_nelements(src));
    for (int64_t i = part.begin; i < part.end; ++i) {
        store(dst, value_at(dst, i), load(src, value_at(src, i)));
    }
}

// Row i of src goes to the row of dst that index i names.
void set_rows(const ggml_compute_params * params, ggml_tensor * dst) {
    const ggml_tensor * src = dst->src[0]; // [n, m, ne2, ne3]
    const ggml_tensor * ids = dst->src[1]; // [m, ..], which repeats
    const exact_range   rows = exact_part(params, ggml_nrows(src));
    for (int64_t row = rows.begin; row < rows.end; ++row) {
        const int64_t i1 = row % src->ne[1], i2 = row / src->ne[1] % src->ne[2], i3 = row / src->ne[1] / src->ne[2];
        const char *  at = (const char *) ids->data + i1 * ids->nb[0] + i2 % ids->ne[1] * ids->nb[1] + i3 % ids->ne[2] * ids->nb[2];
        const int64_t to = ids->type == GGML_TYPE_I64 ? *(const int64_t *) at : *(const int32_t *) at;
        GGML_ASSERT(to >= 0 && to < dst->ne[1]);
        const char * x = exact_row(src, row);
        char *       y = (char *) dst->data + to * dst->nb[1] + i2 * dst->nb[2] + i3 * dst->nb[3];
        for (int64_t i = 0; i < src->ne[0]; ++i) {
            store(dst, y + i * dst->nb[0], load(src, x + i * src->nb[0]));
        }
    }
}

const exact_kernel COPY     = { copy, nullptr };
const exact_kernel SET_ROWS = { set_rows, nullptr };

}  // namespace

const exact_kernel * exact_copy(const ggml_tensor * op) {
    if (!is_float(op) || !is_float(op->src[0])) {
        return nullptr;
    }
    if (op->op == GGML_OP_SET_ROWS) {
        return op->src[0]->type == GGML_TYPE_F32 ? &SET_ROWS : nullptr;
    }
    return op->type != op->src[0]->type ? &COPY : nullptr;
}

}  // namespace qvac
