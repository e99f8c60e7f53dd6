#pragma once

// Products with TQ1_0 and TQ2_0 weights, exact in integers (contract T0; the formulas are in ternary.h of ggml-cpu): what
// the files ternary*.cpp need of each other.

#include "qvac-vulkan.h"

#include "qvac/ternary-scales.h"

#include <optional>
#include <unordered_map>

// How sums are made: all give the same integers.
enum vk_qvac_ternary_kernel {
    VK_QVAC_TERNARY_PLAIN,
    VK_QVAC_TERNARY_DOT,     // four products an instruction
    VK_QVAC_TERNARY_COOPMAT, // int8 cooperative matrices
    VK_QVAC_TERNARY_KERNEL_COUNT,
};

constexpr int VK_QVAC_TERNARY_TILE_COUNT = 6;

// With a device.
struct vk_qvac_ternary_pipelines {
    vk_pipeline quantize;
    // [TQ2_0][backward][kernel][tile][two limbs][mixed scales]
    vk_pipeline mul_mat[2][2][VK_QVAC_TERNARY_KERNEL_COUNT][VK_QVAC_TERNARY_TILE_COUNT][2][2];
};

// With a backend context.
struct vk_qvac_ternary_state {
    // Views whose weight has mixed scales: theirs, as found for this graph.
    std::unordered_map<const ggml_tensor *, qvac::tq_scales> views;

    // Tokens quantized for MUL_MAT lie in two slots that take turns. A product is always recorded before the next tokens
    // are quantized, into the other slot, and is waited for before those are multiplied: so it is over when its own slot
    // is written again.
    vk_buffer           slots;
    size_t              slot_size = 0;
    int                 slot      = 0;
    const ggml_tensor * quantized = nullptr; // of this graph, what the slot holds
};

struct vk_qvac_tq_quantize_push_constants {
    uint32_t n, n_tokens, limbs;
    uint32_t ne1, ne2;
    uint32_t nb1, nb2, nb3;
    uint32_t x_offset, q_offset;
};

struct vk_qvac_tq_mul_mat_push_constants {
    uint32_t M, N, K;
    uint32_t w_offset, w_stride;
    uint32_t q_offset, q_stride;
    uint32_t d_offset, add_offset, add;
    float    d;
};

// What decides on variant and tile shape.
struct vk_qvac_ternary_problem {
    int64_t m;      // outputs a token
    int64_t tokens;
    int64_t limbs;
    bool    mixed;
};

struct vk_qvac_ternary_choice {
    vk_qvac_ternary_kernel kernel;
    int                    tile;
};

// ternary_tiles.cpp

void ggml_vk_qvac_load_ternary(vk_device & device, const vk_qvac_create_pipeline & create);
// Which variant and tile shape serves a problem best; none where QVAC_VK_TERNARY asks for what the device has not.
std::optional<vk_qvac_ternary_choice> ggml_vk_qvac_ternary_choose(const vk_device & device, const vk_qvac_ternary_problem & problem);

// ternary_scales.cpp

// A graph begins: finds out the scales of its weights where they are not known.
void ggml_vk_qvac_ternary_scan(ggml_backend_vk_context * ctx, const ggml_cgraph * cgraph);
// The host wrote into `tensor`.
void ggml_vk_qvac_ternary_written(ggml_tensor * tensor);
// How often that has been, of ternary tensors.
uint64_t ggml_vk_qvac_ternary_writes();
qvac::tq_scales ggml_vk_qvac_ternary_scales(const ggml_backend_vk_context * ctx, const ggml_tensor * w);

// ternary.cpp

// Whether `op` is a MUL_MAT of ours: its weights are what a graph begins with, so that their scales can be known.
bool ggml_vk_qvac_ternary_is_mul_mat(const ggml_tensor * op);
bool ggml_vk_qvac_ternary_uses_scales(const ggml_tensor * node);
bool ggml_vk_qvac_ternary_supported(const vk_device & device, const ggml_tensor * op);
void ggml_vk_qvac_ternary_graph_begin(ggml_backend_vk_context * ctx, const ggml_cgraph * cgraph);
void ggml_vk_qvac_ternary(ggml_backend_vk_context * ctx, vk_context & subctx, ggml_tensor * dst);

// Tokens of a MUL_MAT, quantized with one limb into scratch memory unless the previous product of the graph did so, and
// ready to be read. Row after row as TQ_QUANTIZE makes them (ggml-train.h).
vk_subbuffer ggml_vk_qvac_ternary_tokens(ggml_backend_vk_context * ctx, vk_context & subctx, const ggml_tensor * x);
