// The integer register tile of ternary-tile.h.

#include "ternary-tile.h"

#include <utility>

namespace qvac {

namespace {

template <int mr>
void tile(int64_t n4, const int8_t * q, size_t q_stride, const int32_t * base, const uint32_t * panel, int32_t * sum) {
    vi acc[mr][tile_nv];
    for (int i = 0; i < mr; ++i) {
        for (int j = 0; j < tile_nv; ++j) {
            acc[i][j] = vi_set1(-base[i]);
        }
    }
    const int8_t * row[mr];
    for (int i = 0; i < mr; ++i) {
        row[i] = q + i * q_stride;
    }
    for (int64_t k = 0; k < n4; ++k) {
        vi w[tile_nv];
        for (int j = 0; j < tile_nv; ++j) {
            w[j] = vi_load(panel + k * tile_nr + j * vi_lanes);
        }
        for (int i = 0; i < mr; ++i) {
            int32_t four;
            memcpy(&four, row[i] + 4 * k, sizeof(four));
            const vi a = vi_set1(four);
            for (int j = 0; j < tile_nv; ++j) {
                acc[i][j] = vi_dot(acc[i][j], w[j], a);
            }
        }
    }
    for (int i = 0; i < mr; ++i) {
        for (int j = 0; j < tile_nv; ++j) {
            vi_store(sum + i * tile_nr + j * vi_lanes, acc[i][j]);
        }
    }
}

using tile_fn = void (*)(int64_t, const int8_t *, size_t, const int32_t *, const uint32_t *, int32_t *);

template <size_t... i> tile_fn pick(int mr, std::index_sequence<i...>) {
    static constexpr tile_fn table[] = { tile<(int) i + 1>... };
    return table[mr - 1];
}

}  // namespace

void tile_int8(int mr, int64_t n4, const int8_t * q, size_t q_stride, const int32_t * base, const uint32_t * panel,
               int32_t * sum) {
    pick(mr, std::make_index_sequence<tile_mr>{})(n4, q, q_stride, base, panel, sum);
}

}  // namespace qvac
