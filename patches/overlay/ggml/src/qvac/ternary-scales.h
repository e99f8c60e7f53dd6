// The scales of TQ1_0 and TQ2_0 tensors, for every backend: contract T0 has one formula for a tensor whose blocks share
// one scale and one for a tensor whose blocks differ, so all must agree on which it is.

#pragma once

#include "ggml.h"

#include <cstddef>
#include <cstdint>

namespace qvac {

static constexpr int64_t tq_block = 256;  // weights per block of TQ1_0 and TQ2_0

static inline bool is_ternary(ggml_type type) {
    return type == GGML_TYPE_TQ1_0 || type == GGML_TYPE_TQ2_0;
}

// What the blocks of a tensor say about its scale. Blocks of nothing but zero weights have no say.
enum class tq_scale { none, one, mixed };  // none: all blocks seen are zero

struct tq_scales {
    tq_scale kind;
    uint16_t bits;  // the one scale as f16
};

// `n_rows` rows of `n_blocks` blocks, the next row `row_size` bytes further.
GGML_API tq_scales tq_scan_rows(ggml_type type, const void * rows, size_t row_size, int64_t n_blocks, int64_t n_rows);
GGML_API tq_scales tq_merge(tq_scales a, tq_scales b);
GGML_API float     tq_value(tq_scales s);

// The scale of block `b` of the row at `row`.
GGML_API float tq_block_scale(ggml_type type, const char * row, int64_t b);

}  // namespace qvac
