// One to `vec_tokens` tokens against rows of a TQ tensor: the decode step, which is bound by reading the weights.

#pragma once

#include "ternary.h"

namespace qvac {

static constexpr int vec_tokens = 8;  // beyond, unpacking into panels pays

// Bytes of the digit-major activations of one token: position 64*digit + byte of the block holds the q which that digit of
// that byte of the block is multiplied with, so that a digit of a whole block is one run of bytes.
size_t tq_vec_size(ggml_type type, int64_t n);
void   tq_vec_arrange(ggml_type type, const int8_t * q, int64_t n, int8_t * out);

// sum[t] for one row and n_tokens arranged tokens `stride` bytes apart, less base[t]; n weights from block b0 on.
// `end` is the end of the tensor's data: nothing beyond is read.
// Returns the bits in which a block's scale differs from `d`: the scales lie beside the weights and cost nothing here.
uint16_t tq_vec_dot(ggml_type type, const char * row, int64_t b0, int64_t n, uint16_t d, const char * end, int n_tokens,
                    const int8_t * arranged, size_t stride, const int32_t * base, int32_t * sum);

}  // namespace qvac
