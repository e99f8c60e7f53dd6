// Decoding of TQ1_0 and TQ2_0: plain rows, and the panels of the integer tiles.
//
// Both formats are a few raw dwords per block, of which every byte holds one digit of each of several weights; the n-th
// digits of one dword are four consecutive weights. So a panel is made by moving raw dwords, and digits are taken
// from whole vectors of them afterwards.

#include "ternary-tile.h"
#include "ternary.h"

#define GGML_COMMON_DECL_CPP
#include "ggml-common.h"

#include <algorithm>
#include <cstring>

namespace qvac {

namespace {

struct tq2 {
    using block                    = block_tq2_0;
    static constexpr int n_dwords = 16;

    static constexpr int digits(int) { return 4; }

    // index / 4 within the block of the four weights in digit n of dword d
    static constexpr int k4(int d, int n) { return d / 8 * 32 + n * 8 + d % 8; }

    // takes the next digit of every byte
    static void digit(uint8_t * raw, uint8_t * code, int n_bytes) {
        for (int i = 0; i < n_bytes; ++i) {
            code[i] = raw[i] & 3;
            raw[i]  = raw[i] >> 2;
        }
    }
};

struct tq1 {
    using block                    = block_tq1_0;  // qs[48], then qh[4]: 13 dwords in a row
    static constexpr int n_dwords = 13;

    static constexpr int digits(int d) { return d < 12 ? 5 : 4; }

    static constexpr int k4(int d, int n) { return d < 8 ? n * 8 + d : d < 12 ? 40 + n * 4 + d - 8 : 60 + n; }

    // A byte is ceil(v * 256/243): three times it carries the next base-3 digit into the ninth and tenth bit.
    static void digit(uint8_t * raw, uint8_t * code, int n_bytes) {
        for (int i = 0; i < n_bytes; ++i) {
            code[i] = (uint8_t) ((raw[i] >= 86) + (raw[i] >= 171));
            raw[i]  = (uint8_t) (raw[i] * 3);
        }
    }
};

static_assert(offsetof(block_tq1_0, qs) == 0 && offsetof(block_tq1_0, qh) == 48, "13 dwords in a row");
static_assert(offsetof(block_tq2_0, qs) == 0, "16 dwords in a row");

template <typename F> void decode_row(const char * row, int64_t n, int8_t * t) {
    for (int64_t b = 0; b < n / tq_block; ++b) {
        for (int d = 0; d < F::n_dwords; ++d) {
            uint8_t raw[4];
            uint8_t code[4];
            memcpy(raw, row + b * sizeof(typename F::block) + 4 * d, 4);
            for (int i = 0; i < F::digits(d); ++i) {
                F::digit(raw, code, 4);
                for (int j = 0; j < 4; ++j) {
                    t[b * tq_block + F::k4(d, i) * 4 + j] = (int8_t) (code[j] - 1);
                }
            }
        }
    }
}

template <typename F> void pack_rows(const ggml_tensor * w, int64_t row0, int64_t n_rows, uint32_t * panel) {
    const int64_t n_blocks = w->ne[0] / tq_block;
    const char *  base     = (const char *) w->data + row0 * w->nb[1];
    uint32_t      raw[F::n_dwords][tile_nr];
    memset(raw, 0, sizeof(raw));
    for (int64_t b = 0; b < n_blocks; ++b) {
        for (int64_t r = 0; r < n_rows; ++r) {
            uint32_t dw[F::n_dwords];
            memcpy(dw, base + r * w->nb[1] + b * sizeof(typename F::block), sizeof(dw));
            for (int d = 0; d < F::n_dwords; ++d) {
                raw[d][r] = dw[d];
            }
        }
        uint32_t * out = panel + b * (tq_block / 4) * tile_nr;
        for (int d = 0; d < F::n_dwords; ++d) {
            for (int i = 0; i < F::digits(d); ++i) {
                F::digit((uint8_t *) raw[d], (uint8_t *) (out + F::k4(d, i) * tile_nr), 4 * tile_nr);
            }
        }
    }
}

template <typename F> void pack_cols(const ggml_tensor * w, int64_t b, int64_t row0, int64_t row1, uint32_t * panels) {
    constexpr int n_bytes = 4 * F::n_dwords;
    const int64_t n4      = w->ne[1] / 4;
    const char *  base    = (const char *) w->data + b * sizeof(typename F::block);
    for (int64_t r4 = row0 / 4; r4 < row1 / 4; ++r4) {
        uint8_t src[4][n_bytes];
        for (int64_t j = 0; j < 4; ++j) {
            memcpy(src[j], base + (4 * r4 + j) * w->nb[1], n_bytes);
        }
        // the four rows' bytes side by side: one dword per byte of the block
        uint8_t raw[4 * n_bytes];
        for (int m = 0; m < n_bytes; ++m) {
            for (int j = 0; j < 4; ++j) {
                raw[4 * m + j] = src[j][m];
            }
        }
        for (int i = 0; i < F::digits(0); ++i) {
            uint32_t code[n_bytes];
            F::digit(raw, (uint8_t *) code, 4 * n_bytes);
            for (int d = 0; d < F::n_dwords; ++d) {
                if (i >= F::digits(d)) {
                    continue;
                }
                const int64_t c   = F::k4(d, i) * 4;
                uint32_t *    out = panels + (c / tile_nr * n4 + r4) * tile_nr + c % tile_nr;
                memcpy(out, code + 4 * d, 4 * sizeof(uint32_t));
            }
        }
    }
}

}  // namespace

void tq_decode_row(ggml_type type, const char * row, int64_t n, int8_t * t) {
    type == GGML_TYPE_TQ1_0 ? decode_row<tq1>(row, n, t) : decode_row<tq2>(row, n, t);
}

void tq_pack_rows(const ggml_tensor * w, int64_t row0, int64_t n_rows, uint32_t * panel) {
    w->type == GGML_TYPE_TQ1_0 ? pack_rows<tq1>(w, row0, n_rows, panel) : pack_rows<tq2>(w, row0, n_rows, panel);
}

void tq_pack_cols(const ggml_tensor * w, int64_t b, int64_t row0, int64_t row1, uint32_t * panels) {
    w->type == GGML_TYPE_TQ1_0 ? pack_cols<tq1>(w, b, row0, row1, panels) : pack_cols<tq2>(w, b, row0, row1, panels);
}

}  // namespace qvac
