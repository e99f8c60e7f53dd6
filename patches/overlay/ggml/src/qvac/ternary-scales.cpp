// The scan of ternary-scales.h.

#include "ternary-scales.h"

#define GGML_COMMON_DECL_CPP
#include "ggml-common.h"

#include <cstring>

namespace qvac {

namespace {

template <typename B> uint16_t scale_bits(const char * row, int64_t b) {
    uint16_t d;
    memcpy(&d, row + b * sizeof(B) + offsetof(B, d), sizeof(d));
    return d;
}

bool all_zero_weights(const block_tq2_0 & block) {
    for (uint8_t byte : block.qs) {
        if (byte != 0x55) {  // four codes of 1
            return false;
        }
    }
    return true;
}

// A digit is the upper part of three times the byte, and the next digit follows in what three times the byte leaves.
bool all_zero_digits(const uint8_t * bytes, int n_bytes, int n_digits) {
    for (int i = 0; i < n_bytes; ++i) {
        uint8_t rest = bytes[i];
        for (int n = 0; n < n_digits; ++n) {
            if ((rest * 3) >> 8 != 1) {
                return false;
            }
            rest = (uint8_t) (rest * 3);
        }
    }
    return true;
}

bool all_zero_weights(const block_tq1_0 & block) {
    return all_zero_digits(block.qs, sizeof(block.qs), 5) && all_zero_digits(block.qh, sizeof(block.qh), 4);
}

template <typename B> tq_scales scan(const char * rows, size_t row_size, int64_t n_blocks, int64_t n_rows) {
    tq_scales s = { tq_scale::none, 0 };
    for (int64_t r = 0; r < n_rows; ++r) {
        const char * row = rows + r * row_size;
        for (int64_t b = 0; b < n_blocks; ++b) {
            const uint16_t d = scale_bits<B>(row, b);
            if (d == s.bits && s.kind == tq_scale::one) {
                continue;
            }
            if ((d & 0x7fff) == 0) {
                // A scale of zero with codes other than zero's must not meet another block's scale.
                B block;
                memcpy(&block, row + b * sizeof(B), sizeof(B));
                if (all_zero_weights(block)) {
                    continue;
                }
            }
            s = tq_merge(s, { tq_scale::one, d });
            if (s.kind == tq_scale::mixed) {
                return s;
            }
        }
    }
    return s;
}

}  // namespace

tq_scales tq_scan_rows(ggml_type type, const void * rows, size_t row_size, int64_t n_blocks, int64_t n_rows) {
    return type == GGML_TYPE_TQ1_0 ? scan<block_tq1_0>((const char *) rows, row_size, n_blocks, n_rows)
                                   : scan<block_tq2_0>((const char *) rows, row_size, n_blocks, n_rows);
}

tq_scales tq_merge(tq_scales a, tq_scales b) {
    if (a.kind == tq_scale::none) {
        return b;
    }
    if (b.kind == tq_scale::none || (b.kind == tq_scale::one && a.kind == tq_scale::one && a.bits == b.bits)) {
        return a;
    }
    return { tq_scale::mixed, 0 };
}

float tq_value(tq_scales s) {
    return ggml_fp16_to_fp32(s.bits);
}

float tq_block_scale(ggml_type type, const char * row, int64_t b) {
    return ggml_fp16_to_fp32(type == GGML_TYPE_TQ1_0 ? scale_bits<block_tq1_0>(row, b) : scale_bits<block_tq2_0>(row, b));
}

}  // namespace qvac
