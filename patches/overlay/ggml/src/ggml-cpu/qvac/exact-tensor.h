// What kernels of exact arithmetic on the CPU share: a thread's part of the work, rows of tensors, and the sum over a row.

#pragma once

#include "ggml-cpu-impl.h"
#include "ggml-impl.h"
#include "ggml-train.h"

#include <algorithm>
#include <cstdint>

namespace qvac {

struct exact_range {
    int64_t begin, end;
};

// Of `n` units, in one piece.
inline exact_range exact_part(const ggml_compute_params * params, const int64_t n) {
    return { n * params->ith / params->nth, n * (params->ith + 1) / params->nth };
}

// Row `row` of all of `t`.
inline char * exact_row(const ggml_tensor * t, const int64_t row) {
    const int64_t i1 = row % t->ne[1], i2 = row / t->ne[1] % t->ne[2], i3 = row / t->ne[1] / t->ne[2];
    return (char *) t->data + i1 * t->nb[1] + i2 * t->nb[2] + i3 * t->nb[3];
}

inline bool exact_is_float_rows(const ggml_tensor * t) {
    return t->type == GGML_TYPE_F32 && (t->nb[0] == sizeof(float) || t->ne[0] == 1);
}

constexpr int64_t EXACT_LANES = 512;

// The sum of value(i) for i < n, in the order of docs/exactness.md.
template <typename F> float exact_row_sum(const int64_t n, const F & value) {
    float lane[EXACT_LANES] = {};
    for (int64_t first = 0; first < n; first += 4 * EXACT_LANES) {
        const int64_t fours = std::min(EXACT_LANES, (n - first) / 4);
        for (int64_t l = 0; l < fours; ++l) {
            for (int64_t i = 0; i < 4; ++i) {
                lane[l] = lane[l] + value(first + 4 * l + i);
            }
        }
        for (int64_t i = first + 4 * fours; i < std::min(n, first + 4 * EXACT_LANES); ++i) {
            lane[fours] = lane[fours] + value(i);
        }
    }
    for (int64_t h = EXACT_LANES / 2; h >= 1; h /= 2) {
        for (int64_t l = 0; l < h; ++l) {
            lane[l] = lane[l] + lane[l + h];
        }
    }
    return lane[0];
}

}  // namespace qvac
