// The integer register tile of ternary-tile.h.

#include "ternary-tile.h"

#include <utility>

namespace qvac {

namespace {

template <int mr>
void tile(int64_t n4, const uint32_t * a, const int32_t * base, const uint32_t * panel, int32_t * sum) {
    vi acc[mr][tile_nv];
    QVAC_UNROLL
    for (int i = 0; i < mr; ++i) {
        QVAC_UNROLL
        for (int j = 0; j < tile_nv; ++j) {
            acc[i][j] = vi_set1(-base[i]);
        }
    }
    for (int64_t k = 0; k < n4; ++k) {
        vi w[tile_nv];
        QVAC_UNROLL
        for (int j = 0; j < tile_nv; ++j) {
            w[j] = vi_load(panel + k * tile_nr + j * vi_lanes);
        }
        QVAC_UNROLL
        for (int i = 0; i < mr; ++i) {
            const vi four = vi_set1((int32_t) a[k * tile_mr + i]);
            QVAC_UNROLL
            for (int j = 0; j < tile_nv; ++j) {
                acc[i][j] = vi_dot(acc[i][j], w[j], four);
            }
        }
    }
    QVAC_UNROLL
    for (int i = 0; i < mr; ++i) {
        QVAC_UNROLL
        for (int j = 0; j < tile_nv; ++j) {
            vi_store(sum + i * tile_nr + j * vi_lanes, acc[i][j]);
        }
    }
}

using tile_fn = void (*)(int64_t, const uint32_t *, const int32_t *, const uint32_t *, int32_t *);

template <size_t... i> tile_fn pick(int mr, std::index_sequence<i...>) {
    static constexpr tile_fn table[] = { tile<(int) i + 1>... };
    return table[mr - 1];
}

}  // namespace

void tile_int8(int mr, int64_t n4, const uint32_t * a, const int32_t * base, const uint32_t * panel, int32_t * sum) {
    pick(mr, std::make_index_sequence<tile_mr>{})(n4, a, base, panel, sum);
}

}  // namespace qvac
