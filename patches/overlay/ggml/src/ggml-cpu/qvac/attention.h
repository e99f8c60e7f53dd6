// What both directions of attention share: the operands, the samples, packing, and how work is handed out.
//
// A sample is a causal problem of its own and is cut into tiles from its own first token on, so that its result does not
// depend on what lies beside it, and neither on the number of threads.

#pragma once

#include "ggml.h"
#include "simd.h"

#include <cstddef>
#include <cstdint>

struct ggml_compute_params;

namespace qvac {

constexpr int64_t attn_queries = 48;                // of a tile
constexpr int64_t attn_keys    = 96;                // of a tile
constexpr int64_t attn_ld      = attn_keys + 16;    // from row to row of a tile of scores; not a power of two
static_assert(attn_queries % gemm_mr == 0 && attn_keys % gemm_mr == 0 && attn_keys % gemm_nr == 0 &&
              attn_keys % attn_queries == 0, "whole panels, and diagonals that start with one");

struct attn_shape {
    explicit attn_shape(const ggml_tensor * dst);

    const float *   q;         // [d, n_head, n_tokens]
    const float *   k;         // [d, n_head_kv, n_tokens]
    const float *   v;         // as k
    const int32_t * segments;  // [2, n_tokens]
    float           scale;
    int64_t         d, n_head, n_head_kv, n_tokens;
    int64_t         dp;        // d, rounded up to whole vectors

    int64_t q_stride() const { return d * n_head; }
    int64_t kv_stride() const { return d * n_head_kv; }
    int64_t group() const { return n_head / n_head_kv; }
};

struct attn_sample {
    int64_t first;
    int64_t n;
};

// The sample that starts at token t. Segments that do not fit together still give tokens within the tensor.
attn_sample attn_sample_at(const attn_shape & s, int64_t t);

// Floats that `n` tokens of `d` values take as columns, as panels.
int64_t attn_columns_size(int64_t n, int64_t d);
int64_t attn_panels_size(int64_t n, int64_t d);

// Rows [begin, end) of `src` as [d][attn_keys] for each tile of keys, zeros up to a whole vector; `begin` starts a tile.
void attn_pack_columns(const float * src, int64_t stride, int64_t begin, int64_t end, int64_t d, float * dst);

// Rows [begin, end) of `src`, times `scale`, as rows of dp floats from dst + begin*dp on, zeros behind d.
void attn_pack_rows(const float * src, int64_t stride, int64_t begin, int64_t end, int64_t d, int64_t dp, float scale,
                    float * dst);

// n packed rows as [d][gemm_mr] for each panel of gemm_mr rows, zeros for rows that are missing.
void attn_pack_panels(const float * rows, int64_t n, int64_t d, int64_t dp, float * dst);

// Hands out parts of a thread's work buffer; with a null base it only counts.
class attn_arena {
  public:
    explicit attn_arena(char * base) : base_(base) {}

    float * take(int64_t n_floats) {
        float * at = base_ ? (float *) (base_ + used_) : nullptr;
        used_ += (n_floats * sizeof(float) + 63) & ~(size_t) 63;
        return at;
    }
    size_t used() const { return used_; }

  private:
    char * base_;
    size_t used_ = 0;
};

// This thread's part of the work buffer, `bytes` long; `attn_work_size` of them all.
char * attn_work(const ggml_compute_params * params, size_t bytes);
size_t attn_work_size(int nth, size_t bytes);

// Every thread of the op calls `attn_units_start` once; then a thread's units are params->ith and what this gives.
void    attn_units_start(const ggml_compute_params * params);
int64_t attn_units_next(const ggml_compute_params * params);

}  // namespace qvac
