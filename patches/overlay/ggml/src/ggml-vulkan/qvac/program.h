#pragma once

// Runs of a generating graph's nodes as one dispatch (qvac_tq_program.comp): what fusion.cpp, program.cpp and
// program_nodes.cpp need of each other.

#include "ternary.h"
#include "ternary_vec.h"

// Heads and rows that the shader has room for. A longer context is upstream's, which reads it with all cores.
constexpr int64_t VK_QVAC_PROGRAM_MAX_HEAD   = 128;
constexpr int64_t VK_QVAC_PROGRAM_MAX_HEADS  = 512;
constexpr int64_t VK_QVAC_PROGRAM_MAX_KEYS   = 2048;
constexpr int64_t VK_QVAC_PROGRAM_MAX_ROW    = 14336;
constexpr int64_t VK_QVAC_PROGRAM_MAX_SHARES = 8; // workgroups of a head

// With a device: by type (TQ2_0), and in exact arithmetic.
struct vk_qvac_program_pipelines {
    vk_pipeline by_type[2];
    vk_pipeline exact_by_type[2];
};

// Instructions as the shader has them; addresses are device addresses, and 0 where there is nothing.

enum vk_qvac_program_kind : uint32_t {
    VK_QVAC_PROGRAM_PRODUCT,
    VK_QVAC_PROGRAM_ATTENTION,
};

enum vk_qvac_program_flags : uint32_t {
    VK_QVAC_PROGRAM_NORMED   = 1,
    VK_QVAC_PROGRAM_GLU      = 2,
    VK_QVAC_PROGRAM_RELU_SQR = 4, // with GLU, for its SiLU
};

struct vk_qvac_program_product {
    uint32_t kind, flags, n, row_halves, units, begin[2];
    float    eps;
    float    d[3];
    uint32_t unused;
    uint64_t w[3], y[3], s[3];
    uint64_t x, norm, add;
};

struct vk_qvac_program_attention {
    uint32_t kind, unused, head, heads, key_heads, keys;
    float    scale;
    uint32_t rotated, neox;
    uint32_t theta[2]; // bits of theta_scale and freq_scale; in exact arithmetic theta_scale, a fraction (ggml_exact_rope)
    float    rotation_factor;
    uint64_t q, k, v, y, key_cache, value_cache, mask, position, key_index, value_index, factors;
    uint32_t key_stride, value_stride; // of a token, in words
    uint64_t shares; // what the workgroups of each head make
    uint32_t freq[2]; // in exact arithmetic freq_scale, a fraction
};

union vk_qvac_program_instruction {
    vk_qvac_program_product   product;
    vk_qvac_program_attention attention;
    uint32_t                  words[40];
};

static_assert(sizeof(vk_qvac_program_instruction) == 160, "the shader's CODE_WORDS");

// The nodes of one token's attention in libllama's graph, from rotary positions to the heads' results.
struct vk_qvac_attention_nodes {
    const ggml_tensor * rotation;   // ROPE of q, and of k with the same parameters
    const ggml_tensor * rotation_k;
    const ggml_tensor * set_k;    // SET_ROWS
    const ggml_tensor * set_v;
    const ggml_tensor * dst;      // FLASH_ATTN_EXT
    int                 count;    // nodes, and views between them
};

// With a backend context.
struct vk_qvac_program {
    // The run that was found, to be recorded when its last node's turn has come.
    const ggml_cgraph * cgraph   = nullptr;
    int                 searched = 0; // up to this node
    int                 last     = -1;
    int                 type     = 0;
    bool                is_exact = false;
    std::vector<vk_qvac_program_instruction> code;

    // The graph that `code` is of, for when it comes again as it was.
    vk_qvac_known_graph graph;
    int begin = 0;
    int count = 0;

    std::vector<vk_qvac_program_instruction> uploaded; // what code_buffer has
    vk_buffer code_buffer, control, scratch;
    vk_buffer failure; // of the host's: the shader's cry for help
    bool      failed = false;
    std::vector<vk_buffer> outgrown; // which a device may still be working with
};

// program.cpp

// Whether this device and its user want programs.
bool ggml_vk_qvac_program_wanted(const ggml_backend_vk_context * ctx);
// The address of at least so much scratch memory.
uint64_t ggml_vk_qvac_program_scratch(ggml_backend_vk_context * ctx, size_t bytes);
void ggml_vk_qvac_load_program(vk_device & device, const vk_qvac_create_pipeline & create);
// The device is done: looks whether programs came to their end, and says so if one did not.
void ggml_vk_qvac_program_synchronized(ggml_backend_vk_context * ctx);
// Records the run, if one ends with this node.
bool ggml_vk_qvac_record_program(ggml_backend_vk_context * ctx, vk_context & subctx, const ggml_cgraph * cgraph, int node_idx);

// program_nodes.cpp

// Finds the run of nodes from `begin` on; its number of nodes, or 0.
int ggml_vk_qvac_find_program(ggml_backend_vk_context * ctx, const ggml_cgraph * cgraph, int begin);

// attention_nodes.cpp

bool ggml_vk_qvac_match_attention(const ggml_cgraph * cgraph, int begin, vk_qvac_attention_nodes & found);
