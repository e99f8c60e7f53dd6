// The integer register tile of ternary-tile.h.

#include "ternary-tile.h"

#include <algorithm>
#include <utility>

#if QVAC_AMX
#include <sys/syscall.h>
#include <unistd.h>
#endif

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
            const vi four = vi_set1((int32_t) a[tile_at(i, k)]);
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

// As many rows as the accumulators of a tile fit the vector registers.
constexpr int vector_mr = std::min(tile_mr, 12);

template <size_t... i> tile_fn pick(int mr, std::index_sequence<i...>) {
    static constexpr tile_fn table[] = { tile<(int) i + 1>... };
    return table[mr - 1];
}

void vector_tiles(int mr, int64_t n4, const uint32_t * a, const int32_t * base, const uint32_t * panel, int32_t * sum) {
    for (int i = 0; i < mr; i += vector_mr) {
        const int rows = std::min(vector_mr, mr - i);
        pick(rows, std::make_index_sequence<vector_mr>{})(n4, a + tile_at(i, 0), base + i, panel, sum + i * tile_nr);
    }
}

#if QVAC_AMX
constexpr int side = 16;  // rows of a tile register, and dwords of its rows
static_assert(tile_mr == 2 * side && tile_nr == 2 * side && tile_run == side, "two by two tile registers");

bool have_tiles() {
    constexpr long request_permission = 0x1023;  // ARCH_REQ_XCOMP_PERM
    constexpr long tile_data          = 18;
    static const bool granted         = syscall(SYS_arch_prctl, request_permission, tile_data) == 0;
    return granted;
}

// All eight tile registers whole. A constant: the compiler does not know how much of it the instruction reads.
struct tile_config {
    uint8_t  palette, start_row, reserved[14];
    uint16_t row_bytes[16];
    uint8_t  rows[16];
};
static_assert(sizeof(tile_config) == 64, "as the instruction reads it");

alignas(64) const tile_config config = {
    1, 0, {}, { 64, 64, 64, 64, 64, 64, 64, 64 }, { side, side, side, side, side, side, side, side }
};

// Tile registers 0..3 are sums, 4 and 5 rows of A (signed), 6 and 7 columns of the panel (codes, unsigned).
template <bool two> void amx_tile(int64_t n4, const uint32_t * a, const uint32_t * panel, int32_t * sum) {
    constexpr int a_stride     = side * sizeof(uint32_t);
    constexpr int panel_stride = tile_nr * sizeof(uint32_t);
    _tile_zero(0);
    _tile_zero(1);
    if (two) {
        _tile_zero(2);
        _tile_zero(3);
    }
    for (int64_t k = 0; k < n4; k += side) {
        _tile_loadd(6, panel + k * tile_nr, panel_stride);
        _tile_loadd(4, a + k * tile_mr, a_stride);
        _tile_dpbsud(0, 4, 6);
        _tile_loadd(7, panel + k * tile_nr + side, panel_stride);
        _tile_dpbsud(1, 4, 7);
        if (two) {
            _tile_loadd(5, a + k * tile_mr + side * side, a_stride);
            _tile_dpbsud(2, 5, 6);
            _tile_dpbsud(3, 5, 7);
        }
    }
    _tile_stored(0, sum, panel_stride);
    _tile_stored(1, sum + side, panel_stride);
    if (two) {
        _tile_stored(2, sum + side * tile_nr, panel_stride);
        _tile_stored(3, sum + side * tile_nr + side, panel_stride);
    }
}
#endif

}  // namespace

#if QVAC_AMX

tile_scope::tile_scope() {
    if (!have_tiles()) {
        return;
    }
    _tile_storeconfig(before);
    _tile_loadconfig(&config);
}

tile_scope::~tile_scope() {
    if (have_tiles()) {
        _tile_loadconfig(before);
    }
}

void tile_int8(int mr, int64_t n4, const uint32_t * a, const int32_t * base, const uint32_t * panel, int32_t * sum) {
    if (!have_tiles()) {
        return vector_tiles(mr, n4, a, base, panel, sum);
    }
    mr > side ? amx_tile<true>(n4, a, panel, sum) : amx_tile<false>(n4, a, panel, sum);
    for (int i = 0; i < mr; ++i) {
        for (int c = 0; c < tile_nr; ++c) {
            sum[i * tile_nr + c] -= base[i];
        }
    }
}

#else

tile_scope::tile_scope() {}

tile_scope::~tile_scope() {}

void tile_int8(int mr, int64_t n4, const uint32_t * a, const int32_t * base, const uint32_t * panel, int32_t * sum) {
    vector_tiles(mr, n4, a, base, panel, sum);
}

#endif

}  // namespace qvac
