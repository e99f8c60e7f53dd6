// Rotary positions in exact arithmetic (exact.h): angles are fractions of a turn (exact-angle.h).

#include "exact-elementwise.h"
#include "exact-tensor.h"
#include "qvac/exact-angle.h"
#include "qvac/exact-ops.h"

#include <vector>

namespace qvac {

namespace {

exact_fraction fraction_of(const uint32_t words[2]) {
    return exact_fraction_of(words[0], words[1]);
}

void rope(const ggml_compute_params * params, ggml_tensor * dst) {
    const ggml_tensor * src     = dst->src[0]; // [D, H, T, ..]
    const ggml_tensor * factors = dst->src[2]; // [n_dims/2] or none
    const int32_t *     pos     = (const int32_t *) dst->src[1]->data;

    ggml_exact_rope given;
    GGML_ASSERT(ggml_exact_rope_of(dst, &given));
    const exact_rope turns = { fraction_of(given.theta_scale), fraction_of(given.freq_scale), fraction_of(given.ext_factor), given.low, given.high };
    const int64_t    first = ggml_get_op_params_i32(dst, 15); // values before those that turn
    const int64_t    pairs = ggml_get_op_params_i32(dst, 1) / 2;
    const bool       neox  = ggml_get_op_params_i32(dst, 2) == GGML_ROPE_TYPE_NEOX;
    const float      sign  = dst->op == GGML_OP_ROPE_BACK ? -1.0f : 1.0f;

    std::vector<exact_fraction> turn(pairs);
    for (int64_t i = 0; i < pairs; ++i) {
        turn[i] = exact_rope_turn(turns, (uint) i, factors != nullptr, factors ? ((const float *) factors->data)[i] : 1.0f);
    }
    std::vector<float> cosines(pairs), sines(pairs);
    const exact_range tokens = exact_part(params, src->ne[2] * src->ne[3]);
    for (int64_t t = tokens.begin; t < tokens.end; ++t) {
        for (int64_t i = 0; i < pairs; ++i) {
            const uint at = exact_turn_at(turn[i], pos[t % src->ne[2]]);
            cosines[i] = exact_cos_turn(at) * given.magnitude;
            sines[i]   = exact_sin_turn(at) * given.magnitude * sign;
        }
        for (int64_t head = 0; head < src->ne[1]; ++head) {
            const float * x = (const float *) exact_row(src, t * src->ne[1] + head);
            float *       y = (float *) exact_row(dst, t * src->ne[1] + head);
            for (int64_t i = 0; i < src->ne[0]; ++i) {
                if (i < first || i >= first + 2 * pairs) {
                    y[i] = x[i];
                }
            }
            for (int64_t i = 0; i < pairs; ++i) {
                const int64_t i0 = first + (neox ? i : 2 * i), i1 = i0 + (neox ? pairs : 1);
                const float   a = x[i0], b = x[i1];
                y[i0] = a * cosines[i] - b * sines[i];
                y[i1] = a * sines[i] + b * cosines[i];
            }
        }
    }
}

const exact_kernel ROPE = { rope, nullptr };

}  // namespace

const exact_kernel * exact_rotary(const ggml_tensor * op) {
    ggml_exact_rope rope;
    return exact_is_float_rows(op) && exact_is_float_rows(op->src[0]) && ggml_exact_rope_of(op, &rope) ? &ROPE : nullptr;
}

}  // namespace qvac
