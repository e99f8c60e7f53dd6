// MUL_MAT on the CPU through the blocked f32 GEMM, for the types and sizes where upstream's row-by-row products are slower:
// f32 (attention, LoRA), f16, bf16 and the 32-wide quantizations, from `min_tokens` on.
//
// src0 [K, n], src1 [K, m] f32, dst [n, m] f32; src0 repeats along dims 2 and 3. Activations stay f32, where upstream
// rounds them to 8 bits for quantized src0. Not here: K-quants (upstream's tiled kernels are fast) and ternary weights.

#include "ggml-cpu-impl.h"
#include "gemm.h"
#include "kernels.h"

namespace qvac {

namespace {

constexpr int64_t min_tokens = 16;  // fewer do not pay for dequantizing into a tile
constexpr int64_t min_rows   = 32;  // nor do fewer rows than a tile is wide (LoRA A: upstream's f32 dot products)

bool gemm_type(ggml_type type) {
    switch (type) {
        case GGML_TYPE_F32:
        case GGML_TYPE_F16:
        case GGML_TYPE_BF16:
        case GGML_TYPE_Q8_0:
        case GGML_TYPE_Q4_0:
        case GGML_TYPE_Q4_1:
        case GGML_TYPE_Q5_0:
            return true;
        default:
            return false;
    }
}

bool supported(const ggml_tensor * dst) {
    const ggml_tensor * src0 = dst->src[0];
    const ggml_tensor * src1 = dst->src[1];
    return gemm_type(src0->type) && src1->type == GGML_TYPE_F32 && dst->type == GGML_TYPE_F32 && dst->ne[1] >= min_tokens &&
           dst->ne[0] >= min_rows &&
           ggml_get_op_params_i32(dst, 1) == 0 &&  // no hint that src0 is a matrix of a special form
           src0->extra == nullptr && src0->nb[0] == ggml_type_size(src0->type) && dst->nb[0] == sizeof(float);
}

gemm_batch batch(const void * ctx, int64_t i) {
    const ggml_tensor * dst  = (const ggml_tensor *) ctx;
    const ggml_tensor * src0 = dst->src[0];
    const ggml_tensor * src1 = dst->src[1];
    const gemm_slices   at   = slices(dst, i);
    return { { at.src1, src1->nb[1], src1->nb[0] },
             { at.src0, src0->type, gemm_rows::are_n, src0->nb[1], src0->nb[0] },
             at.dst, dst->nb[1], dst->nb[0] };
}

}  // namespace

size_t mul_mat_work_size(int n_tasks, const ggml_tensor * dst) {
    return supported(dst) ? gemm_work_size(n_tasks) : 0;
}

bool mul_mat(const ggml_compute_params * params, ggml_tensor * dst) {
    if (params->use_ref || !supported(dst)) {
        return false;
    }
    const gemm_shape shape = { dst->ne[1], dst->ne[0], dst->src[0]->ne[0], dst->ne[2] * dst->ne[3] };
    gemm_run(params, shape, dst->src[0]->type, batch, dst);
    return true;
}

}  // namespace qvac
