// Integer-exact products with TQ1_0 and TQ2_0 weights (docs/kernels.md).
//
// A weight is t * d with t in {-1, 0, 1}, stored as the code t + 1. Activations are quantized per token, so that a product
// is one int32 sum, which is the same in any order, on any vector width and any number of threads.
//
//   forward   a = max|x|, s = 127/a, q = round_half_even(x*s) clamped to +-127
//             S = sum q*t,  y = float(S) * ((a/127) * d)
//             Where the blocks of a tensor differ in d (zero blocks aside), with S_b the sum over block b of a row:
//             y = (((0 + float(S_0)*d_0) + float(S_1)*d_1) + ...) * (a/127), products and sums each rounded.
//   backward  u = x*s, q1 as above, q2 = round_half_even((u - q1)*254) clamped to +-127
//             S1 = sum q1*t, S2 = sum q2*t over the rows of W,
//             dx = (float(S1) + float(S2)/254) * ((a/127) * d) + add
//             The quotient is the correctly rounded one (`over_254`), every operation is rounded by itself, in the order
//             written. With one limb S2 is 0; without `add` nothing is added.
//             Where the blocks of a tensor differ in d, the product is a float one and not the same on every device:
//             y = (float(q1) + float(q2)/254) * (a/127), dx = sum over the rows, in their order, of y * (d*t), + add.
//
// A token whose a is below `amax_min` counts as zero: above it s and a/127 are finite and normal, on devices that flush
// denormals too. A token that holds a NaN or an infinity gives NaN for all of its outputs.
// The files of this folder that hold these formulas must be compiled with -ffp-contract=off: a fused x*s + c rounds once.

#pragma once

#include "ggml-train.h"
#include "qvac/ternary-scales.h"

#include <cstddef>
#include <cstdint>

struct ggml_compute_params;

namespace qvac {

static constexpr float amax_min = 0x1p-119f;  // amax_min/127 is still a normal number

// The correctly rounded x/254 in additions and multiplications alone, for devices whose division is not: the residual of
// the first quotient is exact, since 256 - 2 = 254 needs no rounding. Compared with the division for all 24-bit x.
static inline float over_254(float x) {
    constexpr float r        = 1.0f / 254.0f;
    const float     q        = x * r;
    const float     residual = (x - 256.0f * q) + 2.0f * q;
    return q + residual * r;
}

// Rows [row0, row1) of a TQ tensor.
static inline tq_scales tq_scan(const ggml_tensor * w, int64_t row0, int64_t row1) {
    return tq_scan_rows(w->type, (const char *) w->data + row0 * w->nb[1], w->nb[1], w->ne[0] / tq_block, row1 - row0);
}

// One token as `limbs` rows of int8, q[l * q_stride + i]; sums[l] is the sum of row l. Element i lies at x + i*nb bytes.
// Returns a/127: 0 for a zero token, NaN for a token that is not finite (q is 0 in both).
float tq_quantize(const char * x, size_t nb, int64_t n, int limbs, int8_t * q, size_t q_stride, int32_t * sums);

static inline int32_t tq_sum(const int8_t * q, int64_t n) {
    int32_t s = 0;
    for (int64_t i = 0; i < n; ++i) {
        s += q[i];
    }
    return s;
}

// A row of TQ_QUANTIZE's result (ggml-train.h): `limbs` times n bytes, then a/127.
static inline int tq_limbs(const ggml_tensor * q, int64_t n) {
    return (int) ((q->ne[0] - GGML_TQ_TOKEN_TAIL) / n);
}
float tq_token_scale(const ggml_tensor * q, int64_t token);

// Decodes row `row` (n weights) to t in {-1, 0, 1, 2}; plain, for the references. (The code 3 occurs in no valid file; it
// is read as 2, as upstream does.)
void tq_decode_row(ggml_type type, const char * row, int64_t n, int8_t * t);

// Panels of codes for the integer tiles (ternary-tile.h): 4 codes that share a dword are 4 steps of the sum.
//   rows: panel[k/4][r] = codes of row0 + r at k..k+3, rows beyond n_rows zero        (MUL_MAT: the sum runs along a row)
//   cols: panels of tile_nr columns; panel[r/4][c] = codes of column c in rows r..r+3   (backward: it runs across rows)
// `cols` decodes block `b` of rows [row0, row1), multiples of 4, into the panels of the whole tensor: 256 / tile_nr of them,
// one after another, each w->ne[1] / 4 dwords long for a column.
void tq_pack_rows(const ggml_tensor * w, int64_t row0, int64_t n_rows, uint32_t * panel);
void tq_pack_cols(const ggml_tensor * w, int64_t b, int64_t row0, int64_t row1, uint32_t * panels);

}  // namespace qvac
