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
// The tile shapes from here on take weights that were unpacked before (ternary_unpack.cpp).
constexpr int VK_QVAC_TERNARY_FIRST_UNPACKED = 3;

// With a device.
struct vk_qvac_ternary_pipelines {
    // [TQ2_0][backward][kernel][tile][two limbs][mixed scales][with a LOW_RANK_ADD behind]
    vk_pipeline mul_mat[2][2][VK_QVAC_TERNARY_KERNEL_COUNT][VK_QVAC_TERNARY_FIRST_UNPACKED][2][2][2];
    // [TQ2_0][backward]
    vk_pipeline unpack[2][2];
    // [kernel][tile][two limbs][with a LOW_RANK_ADD behind]
    vk_pipeline mul_mat_unpacked[VK_QVAC_TERNARY_KERNEL_COUNT][VK_QVAC_TERNARY_TILE_COUNT - VK_QVAC_TERNARY_FIRST_UNPACKED][2][2];
};

// Weights as bytes, for a product in one direction.
struct vk_qvac_unpacking {
    const ggml_tensor * w;
    bool                backward;

    int64_t m() const { return w->ne[backward ? 0 : 1]; }
    int64_t k() const { return w->ne[backward ? 1 : 0]; }
    bool    operator==(const vk_qvac_unpacking & other) const { return w == other.w && backward == other.backward; }
};

// With a backend context: weights unpacked for one product after another lie in two slots that take turns.
struct vk_qvac_unpack_state {
    vk_buffer slots;
    size_t    slot_size = 0;
    int       slot      = 0;                   // of the product recorded last
    std::vector<vk_qvac_unpacking> unpackings; // of this graph, in the order of its products
    size_t    next      = 0;
    bool      ahead     = false;               // the next one is recorded, into the other slot
};

// A graph, and how often ternary weights had been written when it was met.
struct vk_qvac_known_graph {
    uint64_t uid    = 0; // 0: the scheduler does not tell graphs apart
    uint64_t writes = 0;

    vk_qvac_known_graph() = default;
    explicit vk_qvac_known_graph(const ggml_cgraph * cgraph);

    // Whether what was found in the one holds for the other.
    bool is_same_as(const vk_qvac_known_graph & other) const { return uid != 0 && uid == other.uid && writes == other.writes; }
};

// With a backend context.
struct vk_qvac_ternary_state {
    // Views whose weight has mixed scales: theirs, as found for this graph.
    std::unordered_map<const ggml_tensor *, qvac::tq_scales> views;

    vk_qvac_known_graph scanned; // last

    // Tokens quantized for MUL_MAT lie in two slots that take turns. A product is always recorded before the next tokens
    // are quantized, into the other slot, and is waited for before those are multiplied: so it is over when its own slot
    // is written again.
    vk_buffer           slots;
    size_t              slot_size = 0;
    int                 slot      = 0;
    const ggml_tensor * quantized = nullptr; // of this graph, what the slot holds

    vk_qvac_unpack_state unpack;
};

struct vk_qvac_tq_mul_mat_push_constants {
    uint32_t M, N, K;
    uint32_t w_offset, w_stride;
    uint32_t q_offset, q_stride;
    uint32_t d_offset, add_offset, add, aligned;
    float    d;
    uint32_t R;
    uint32_t nbp0, nbp1, nbz1;
    uint32_t p_offset, z_offset;
    float    scale;
};

struct vk_qvac_tq_unpack_push_constants {
    uint32_t columns, rows;
    uint32_t w_offset;
};

// What decides on variant and tile shape.
struct vk_qvac_ternary_problem {
    int64_t m, k;   // outputs a token, length of the sum
    int64_t tokens;
    int64_t limbs;
    bool    mixed;
};

struct vk_qvac_ternary_choice {
    vk_qvac_ternary_kernel kernel;
    int                    tile;

    bool is_unpacked() const { return tile >= VK_QVAC_TERNARY_FIRST_UNPACKED; }
};

// ternary_tiles.cpp

void ggml_vk_qvac_load_ternary(vk_device & device, const vk_qvac_create_pipeline & create);
// Which variant and tile shape serves a problem best; none where QVAC_VK_TERNARY asks for what the device has not.
std::optional<vk_qvac_ternary_choice> ggml_vk_qvac_ternary_choose(const vk_device & device, const vk_qvac_ternary_problem & problem);

// ternary_unpack.cpp

void ggml_vk_qvac_load_ternary_unpack(vk_device & device, const vk_qvac_create_pipeline & create);
bool ggml_vk_qvac_can_unpack(const vk_device & device, int64_t m, int64_t k);
// A graph begins; what its products will ask for, in their order.
void ggml_vk_qvac_unpack_graph_begin(ggml_backend_vk_context * ctx, std::vector<vk_qvac_unpacking> unpackings);
// Before a product is recorded: its weights, ready to be read.
vk_subbuffer ggml_vk_qvac_unpacked(ggml_backend_vk_context * ctx, vk_context & subctx, const vk_qvac_unpacking & u);
// Behind it: the weights of the graph's next product are unpacked beside it.
void ggml_vk_qvac_unpack_ahead(ggml_backend_vk_context * ctx, vk_context & subctx);

// ternary_scales.cpp

// A graph begins: finds out the scales of its weights where they are not known.
void ggml_vk_qvac_ternary_scan(ggml_backend_vk_context * ctx, const ggml_cgraph * cgraph);
// The host wrote into `tensor`.
void ggml_vk_qvac_ternary_written(ggml_tensor * tensor);
qvac::tq_scales ggml_vk_qvac_ternary_scales(const ggml_backend_vk_context * ctx, const ggml_tensor * w);

// ternary.cpp

// Whether `op` is a MUL_MAT of ours: its weights are what a graph begins with, so that their scales can be known.
bool ggml_vk_qvac_ternary_is_mul_mat(const ggml_tensor * op);
bool ggml_vk_qvac_ternary_uses_scales(const ggml_tensor * node);
bool ggml_vk_qvac_ternary_supported(const vk_device & device, const ggml_tensor * op);
void ggml_vk_qvac_ternary_graph_begin(ggml_backend_vk_context * ctx, const ggml_cgraph * cgraph);
// `update` is a LOW_RANK_ADD over the product that is part of it, or null.
void ggml_vk_qvac_ternary(ggml_backend_vk_context * ctx, vk_context & subctx, ggml_tensor * dst, const ggml_tensor * update);
// Whether it may be: its result is that of the two ops one after another.
bool ggml_vk_qvac_ternary_can_update(const ggml_tensor * product, const ggml_tensor * update);

// Tokens of a MUL_MAT, quantized with one limb into scratch memory unless the previous product of the graph did so, and
// ready to be read. Row after row as TQ_QUANTIZE makes them (ggml-train.h).
vk_subbuffer ggml_vk_qvac_ternary_tokens(ggml_backend_vk_context * ctx, vk_context & subctx, const ggml_tensor * x);
