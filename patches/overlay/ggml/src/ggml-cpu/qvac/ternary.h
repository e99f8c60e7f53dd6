// Integer-exact products with TQ1_0 and TQ2_0 weights (docs/kernels.md).
//
// A weight is t * d with t in {-1, 0, 1}, stored as the code t + 1. Activations are quantized per token, so that a product
// is one int32 sum, which is the same in any order, on any vector width and any number of threads.
//
//   forward   a = max|x|, s = 127/a, q = round_half_even(x*s) clamped to +-127
//             S = sum q*t,  y = float(S) * ((a/127) * d)
//             Where the blocks of a tensor differ in d (zero blocks aside), with S_b the sum over block b of a row:
//             y = (((0 + float(S_0)*d_0) + float(S_1)*d_1) + ...) * (a/127), products and sums each rounded.
//   backward  u = x*s, q1 = round_half_even(u), q2 = round_half_even((u - q1)*254)
//             dx = (float(S1) + float(S2)/254) * ((a/127) * d); only where the whole tensor has one d
//             (the quantizer makes both limbs; no product takes the second yet, OUT_PROD being a float GEMM)
//
// A token whose a is below `amax_min` counts as zero: above it s and a/127 are finite and normal, on devices that flush
// denormals too. A token that holds a NaN or an infinity gives NaN for all of its outputs.
// The files of this folder that hold these formulas must be compiled with -ffp-contract=off: a fused x*s + c rounds once.

#pragma once

#include "ggml.h"

#include <cstddef>
#include <cstdint>

struct ggml_compute_params;

namespace qvac {

static constexpr int64_t tq_block = 256;           // weights per block of TQ1_0 and TQ2_0
static constexpr float   amax_min = 0x1p-119f;     // amax_min/127 is still a normal number

static inline bool is_ternary(ggml_type type) {
    return type == GGML_TYPE_TQ1_0 || type == GGML_TYPE_TQ2_0;
}

// What the blocks of a tensor say about its scale.
enum class tq_scale { none, one, mixed };  // none: all blocks seen are zero

struct tq_scales {
    tq_scale kind;
    uint16_t bits;  // the one scale as f16
};

// Rows [row0, row1) of a TQ tensor.
tq_scales tq_scan(const ggml_tensor * w, int64_t row0, int64_t row1);
tq_scales tq_merge(tq_scales a, tq_scales b);
float     tq_value(tq_scales s);

// The scale of block `b` of the row at `row`.
float tq_block_scale(ggml_type type, const char * row, int64_t b);

// One token as `limbs` rows of int8, q[l * q_stride + i]; sums[l] is the sum of row l. Element i lies at x + i*nb bytes.
// Returns a/127: 0 for a zero token, NaN for a token that is not finite (q is 0 in both).
float tq_quantize(const char * x, size_t nb, int64_t n, int limbs, int8_t * q, size_t q_stride, int32_t * sums);

// Decodes row `row` (n weights) to t in {-1, 0, 1, 2}; plain, for the references. (The code 3 occurs in no valid file; it
// is read as 2, as upstream does.)
void tq_decode_row(ggml_type type, const char * row, int64_t n, int8_t * t);

// Panels of codes for the integer tiles (ternary-tile.h): 4 codes that share a dword are 4 steps of the sum.
//   rows: panel[k/4][r] = codes of row0 + r at k..k+3, rows beyond n_rows zero        (MUL_MAT: the sum runs along a row)
//   cols: panels of tile_nr columns; panel[r/4][c] = codes of column c in rows r..r+3   (OUT_PROD: it runs across rows)
// `cols` decodes block `b` of all rows: 256 columns, 256 / tile_nr panels one after another, rows padded to 4 with zero.
void tq_pack_rows(const ggml_tensor * w, int64_t row0, int64_t n_rows, uint32_t * panel);
void tq_pack_cols(const ggml_tensor * w, int64_t b, uint32_t * panels);

}  // namespace qvac
