// Blocked f32 GEMM with operands read in their stored form.
//
// What it does: C[m][n] = sum_k A[m][k] * B[k][n], C row-major f32. A is strided f32 (tokens, usually), B is a tensor of
// any type whose rows are either the k's (OUT_PROD) or the n's (MUL_MAT); a block of B is dequantized once per K block and
// tile, and not once per token.
// The order of every sum is k = 0, 1, 2, ... in one chain of fused multiply-adds per element (separate ones on targets
// without), whatever the tiles and the number of threads: the result does not depend on either.
// What it does not: integer arithmetic (see ternary.h), atomics on C, or splitting K over threads.

#pragma once

#include "ggml.h"

#include <cstddef>
#include <cstdint>

struct ggml_compute_params;

namespace qvac {

// strided f32: element (m, k) lies at data + m*nb_m + k*nb_k bytes
struct gemm_a {
    const char * data;
    size_t       nb_m;
    size_t       nb_k;
};

enum class gemm_rows { are_k, are_n };

// Rows of `type`, `nb_row` bytes apart; within a row the elements are packed, or for f32 `nb_elem` bytes apart.
struct gemm_b {
    const char * data;
    ggml_type    type;
    gemm_rows    rows;
    size_t       nb_row;
    size_t       nb_elem;
};

// element (m, n) of C lies at c + m*nb_m + n*nb_n bytes; fast where nb_n is one float
struct gemm_batch {
    gemm_a a;
    gemm_b b;
    char * c;
    size_t nb_m;
    size_t nb_n;
};

struct gemm_shape {
    int64_t m, n, k;
    int64_t n_batch;
};

// Where batch i of a product `dst` of src0 and src1 lies; src0 repeats along dims 2 and 3.
struct gemm_slices {
    const char * src0;
    const char * src1;
    char *       dst;
};
gemm_slices slices(const ggml_tensor * dst, int64_t i);

// Work buffer for `nth` threads, in bytes.
size_t gemm_work_size(int nth);

// Runs all batches on the calling thread team; `batch(ctx, i)` describes batch i.
// Every thread of the op must call it, once.
void gemm_run(const ggml_compute_params * params, const gemm_shape & shape, ggml_type b_type,
              gemm_batch (*batch)(const void * ctx, int64_t i), const void * ctx);

// Dequantizes n consecutive elements, n a multiple of the type's block.
void dequantize(ggml_type type, const void * src, float * dst, int64_t n);

}  // namespace qvac
