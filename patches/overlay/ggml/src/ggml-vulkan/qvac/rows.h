#pragma once

// Kernels that keep whole rows in registers (qvac_row.glsl), and those of them that quantize what they make.

#include "qvac-vulkan.h"

// Rows of up to 256, 2048 and 6144 values, and longer ones, of which up to 14336 values are kept; the latter two by 512
// invocations, or by 256 where the device has no more.
constexpr uint32_t VK_QVAC_ROW_SHAPE_COUNT = 6;

// With a device.
struct vk_qvac_row_pipelines {
    vk_pipeline quantize[VK_QVAC_ROW_SHAPE_COUNT];
    vk_pipeline norm[VK_QVAC_ROW_SHAPE_COUNT][2]; // [with SWIGLU before it]
    vk_pipeline norm_back[VK_QVAC_ROW_SHAPE_COUNT];
    vk_pipeline swiglu_back[VK_QVAC_ROW_SHAPE_COUNT];
    vk_pipeline rope_back[2][2]; // [NEOX][more than 2048 values a token]
};

// rows.cpp

// How many invocations share a row, of how many in a workgroup (the BLOCK of the shader's variant), and how many values of four
// columns each keeps (its KEEP).
struct vk_qvac_row_shape {
    uint32_t lanes, block, keep;
};

extern const vk_qvac_row_shape VK_QVAC_ROW_SHAPES[VK_QVAC_ROW_SHAPE_COUNT];

// The smallest shape that keeps rows of n values; the largest one reads what is longer again.
uint32_t ggml_vk_qvac_row_shape_of(const vk_device & device, int64_t n);
bool ggml_vk_qvac_rows_are_kept(int64_t n);
std::array<uint32_t, 3> ggml_vk_qvac_grid_of_rows(const vk_device & device, int64_t n, int64_t n_rows);
// Whether the kernels can count the values and the rows of `t`.
bool ggml_vk_qvac_rows_fit(const vk_device & device, const ggml_tensor * t);

// quantized_rows.cpp

void ggml_vk_qvac_load_quantized_rows(vk_device & device, const vk_qvac_create_pipeline & create);
// Of TQ_QUANTIZE's result: its limbs, and where it begins behind its descriptor, in words.
int64_t ggml_vk_qvac_limbs_of(const ggml_tensor * q);
uint32_t ggml_vk_qvac_quantized_offset(const ggml_backend_vk_context * ctx, const ggml_tensor * q);
bool ggml_vk_qvac_quantize_supported(const vk_device & device, const ggml_tensor * x, int64_t limbs);
// TQ_QUANTIZE of x.
void ggml_vk_qvac_quantize(
    ggml_backend_vk_context * ctx, vk_context & subctx, const ggml_tensor * x, int64_t limbs, const vk_subbuffer & q, size_t q_offset);

// What one dispatch makes of rows, instead of a node each. A tensor that is not needed is null.

// [act = silu(x) * up]  y = rms_norm(act or x) * w  q = tq_quantize(y)
struct vk_qvac_norm_job {
    const ggml_tensor * x;
    const ggml_tensor * up;
    const ggml_tensor * w;
    const ggml_tensor * act;
    const ggml_tensor * y;
    const ggml_tensor * q;
    float               eps;
};

// dx of RMS_NORM_MUL_BACK, and q = tq_quantize(dx)
struct vk_qvac_norm_back_job {
    const ggml_tensor * dx;
    const ggml_tensor * q;
};

// dx of RMS_NORM_MUL_BACK, d = swiglu_back(dx, gate, up), and both halves of d quantized; dx is not written, and what the norm
// read is silu(gate) * up.
struct vk_qvac_swiglu_back_job {
    const ggml_tensor * dx;
    const ggml_tensor * d;
    const ggml_tensor * q_gate;
    const ggml_tensor * q_up;
};

// y of ROPE_BACK, and q = tq_quantize of y as [D*H, T]
struct vk_qvac_rope_back_job {
    const ggml_tensor * y;
    const ggml_tensor * q;
};

void ggml_vk_qvac_norm_quantize(ggml_backend_vk_context * ctx, vk_context & subctx, const vk_qvac_norm_job & job);
void ggml_vk_qvac_norm_back_quantize(ggml_backend_vk_context * ctx, vk_context & subctx, const vk_qvac_norm_back_job & job);
void ggml_vk_qvac_swiglu_back_quantize(ggml_backend_vk_context * ctx, vk_context & subctx, const vk_qvac_swiglu_back_job & job);
// rope.cpp
bool ggml_vk_qvac_rope_back_is_kept(const ggml_tensor * op);
void ggml_vk_qvac_rope_back_quantize(ggml_backend_vk_context * ctx, vk_context & subctx, const vk_qvac_rope_back_job & job);
