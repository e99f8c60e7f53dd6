// OUT_PROD on the CPU: dst[i0, i1] = sum_k src0[i0, k] * src1[i1, k], as a blocked GEMM.
//
// src0 [n, K] of any type that can be dequantized, src1 [m, K] f32 with any strides (ggml's backward of MUL_MAT passes a
// transposed view), dst [n, m] f32. Batches as upstream's f32 path: src0 may repeat along dims 2 and 3 (GQA).

#include "ggml-cpu-impl.h"
#include "gemm.h"
#include "kernels.h"
#include "qvac-cpu.h"

#include <utility>

namespace {

// A narrow dst of f32 operands that both lie along their first dimension (the gradient of a LoRA B: [rank, n_out]) is
// computed as its transpose, so that the vectors run along the long side.
bool transposed(const ggml_tensor * dst) {
    const ggml_tensor * src0 = dst->src[0];
    const ggml_tensor * src1 = dst->src[1];
    return src0->type == GGML_TYPE_F32 && src1->nb[0] == sizeof(float) && dst->ne[0] <= 16 && dst->ne[1] > dst->ne[0];
}

qvac::gemm_batch batch(const void * ctx, int64_t i) {
    const ggml_tensor * dst  = (const ggml_tensor *) ctx;
    const ggml_tensor * src0 = dst->src[0];
    const ggml_tensor * src1 = dst->src[1];
    const auto [s0, s1, d]   = qvac::slices(dst, i);
    if (transposed(dst)) {
        return { { s0, src0->nb[0], src0->nb[1] },
                 { s1, GGML_TYPE_F32, qvac::gemm_rows::are_k, src1->nb[1], src1->nb[0] },
                 d, dst->nb[0], dst->nb[1] };
    }
    return { { s1, src1->nb[0], src1->nb[1] },
             { s0, src0->type, qvac::gemm_rows::are_k, src0->nb[1], src0->nb[0] },
             d, dst->nb[1], dst->nb[0] };
}

}  // namespace

bool qvac_cpu_out_prod_supported(const ggml_tensor * dst) {
    const ggml_tensor * src0 = dst->src[0];
    const ggml_tensor * src1 = dst->src[1];
    const bool packed = src0->type == GGML_TYPE_F32 || src0->nb[0] == ggml_type_size(src0->type);
    const bool read   = src0->type == GGML_TYPE_F32 || ggml_get_type_traits(src0->type)->to_float != nullptr;
    return packed && read && src1->type == GGML_TYPE_F32 && dst->type == GGML_TYPE_F32 && dst->nb[0] == sizeof(float) &&
           dst->nb[1] % sizeof(float) == 0 && dst->ne[2] % src0->ne[2] == 0 && dst->ne[3] % src0->ne[3] == 0;
}

namespace qvac {

size_t out_prod_work_size(int n_tasks, const ggml_tensor * dst) {
    return qvac_cpu_out_prod_supported(dst) ? gemm_work_size(n_tasks) : 0;
}

bool out_prod(const ggml_compute_params * params, ggml_tensor * dst) {
    if (params->use_ref || !qvac_cpu_out_prod_supported(dst)) {
        return false;
    }
    gemm_shape shape = { dst->ne[1], dst->ne[0], dst->src[0]->ne[1], dst->ne[2] * dst->ne[3] };
    if (transposed(dst)) {
        std::swap(shape.m, shape.n);
    }
    gemm_run(params, shape, dst->src[0]->type, batch, dst);
    return true;
}

}  // namespace qvac
