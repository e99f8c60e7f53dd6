// Small products of packed f32 matrices, as the attention kernels make them tile by tile.
//
// What it does: `panel` adds A B to C for `gemm_mr` rows of A and any whole number of vectors of columns. How A lies is
// part of the type, so that its elements are reached by constant displacements: `am` floats from row to row, `ak` along k.
// Each element is one chain of multiply-adds in the order of k.
// What it does not: edges. Operands lie in buffers padded to whole panels and vectors.

#pragma once

#include "simd.h"

#include <cstddef>

namespace qvac {

// C[gemm_mr][nv * lanes] = (first ? 0 : C) + A[gemm_mr][kc] * B[kc][nv * lanes]
template <int am, int ak, int nv>
static inline void panel_tile(bool first, int64_t kc, const float * a, const float * b, int64_t ldb, float * c, int64_t ldc) {
    vf acc[gemm_mr][nv];
    QVAC_UNROLL
    for (int i = 0; i < gemm_mr; ++i) {
        QVAC_UNROLL
        for (int j = 0; j < nv; ++j) {
            acc[i][j] = first ? vf_zero() : vf_load(c + i * ldc + j * vf_lanes);
        }
    }
    for (int64_t k = 0; k < kc; ++k) {
        vf bv[nv];
        QVAC_UNROLL
        for (int j = 0; j < nv; ++j) {
            bv[j] = vf_load(b + j * vf_lanes);
        }
        QVAC_UNROLL
        for (int i = 0; i < gemm_mr; ++i) {
            const vf av = vf_set1(a[i * am]);
            QVAC_UNROLL
            for (int j = 0; j < nv; ++j) {
                acc[i][j] = vf_fma(av, bv[j], acc[i][j]);
            }
        }
        a += ak;
        b += ldb;
    }
    QVAC_UNROLL
    for (int i = 0; i < gemm_mr; ++i) {
        QVAC_UNROLL
        for (int j = 0; j < nv; ++j) {
            vf_store(c + i * ldc + j * vf_lanes, acc[i][j]);
        }
    }
}

// The last `nv` or fewer vectors of columns.
template <int am, int ak, int nv>
static inline void panel_edge(int vectors, bool first, int64_t kc, const float * a, const float * b, int64_t ldb, float * c,
                              int64_t ldc) {
    if constexpr (nv > 0) {
        if (vectors == nv) {
            panel_tile<am, ak, nv>(first, kc, a, b, ldb, c, ldc);
        } else {
            panel_edge<am, ak, nv - 1>(vectors, first, kc, a, b, ldb, c, ldc);
        }
    }
}

// C[gemm_mr][n] = (first ? 0 : C) + A[gemm_mr][kc] * B[kc][n], n a multiple of the vector
template <int am, int ak>
static inline void panel(bool first, int64_t n, int64_t kc, const float * a, const float * b, int64_t ldb, float * c,
                         int64_t ldc) {
    int64_t j = 0;
    for (; j + gemm_nr <= n; j += gemm_nr) {
        panel_tile<am, ak, gemm_nv>(first, kc, a, b + j, ldb, c + j, ldc);
    }
    if (j < n) {
        panel_edge<am, ak, gemm_nv - 1>((int) ((n - j) / vf_lanes), first, kc, a, b + j, ldb, c + j, ldc);
    }
}

}  // namespace qvac
