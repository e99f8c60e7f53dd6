// Products of floats in exact arithmetic (exact.h; qvac_exact_product*.comp), and rows of weights as floats
// (qvac_exact_get_rows.comp): MUL_MAT, OUT_PROD, LOW_RANK_PROJECT, _ADD and _GRAD, GET_ROWS.
//
// Every op is y[m, t] = sum_k a[m, k] * b[k, t] with strides of its own. Which kernel makes it decides its speed only.

#include "exact.h"

#include "ops.h"

#include "ggml-train.h"
#include "ggml-vulkan-shaders.hpp"

namespace {

struct product_push_constants {
    uint32_t M, T, K;
    uint32_t ne2, batches;
    uint32_t ratio2, ratio3;
    uint32_t a_m, a_k, a_2, a_3;
    uint32_t b_t, b_k, b_2, b_3;
    uint32_t d_m, d_t, d_2, d_3;
    uint32_t a_offset, b_offset, d_offset, add_offset;
    float    scale;
};

static_assert(sizeof(product_push_constants) <= 128, "Vulkan guarantees no more push constants than 128 bytes");

struct rows_push_constants {
    uint32_t N, rows;
    uint32_t n1, n2, n3;
    uint32_t a_1, a_2, a_3;
    uint32_t i_0, i_1, i_2;
    uint32_t d_1, d_2, d_3;
    uint32_t a_offset, i_offset, d_offset;
};

struct type_shaders {
    ggml_type    type;
    const char * names[4]; // of a tile, a narrow one, few tokens, rows
    uint64_t     sizes[4];
    const void * data[4];
};

#define QVAC_EXACT(TYPE, type)                                                                                                  \
    { TYPE,                                                                                                                     \
      { "qvac_exact_product_" #type, "qvac_exact_product_narrow_" #type, "qvac_exact_product_vec_" #type,                       \
        "qvac_exact_get_rows_" #type },                                                                                         \
      { qvac_exact_product_##type##_len, qvac_exact_product_narrow_##type##_len, qvac_exact_product_vec_##type##_len,           \
        qvac_exact_get_rows_##type##_len },                                                                                     \
      { qvac_exact_product_##type##_data, qvac_exact_product_narrow_##type##_data, qvac_exact_product_vec_##type##_data,        \
        qvac_exact_get_rows_##type##_data } }

const type_shaders SHADERS[] = {
    QVAC_EXACT(GGML_TYPE_F32,   f32),
    QVAC_EXACT(GGML_TYPE_F16,   f16),
    QVAC_EXACT(GGML_TYPE_BF16,  bf16),
    QVAC_EXACT(GGML_TYPE_Q4_0,  q4_0),
    QVAC_EXACT(GGML_TYPE_Q4_1,  q4_1),
    QVAC_EXACT(GGML_TYPE_Q5_0,  q5_0),
    QVAC_EXACT(GGML_TYPE_Q8_0,  q8_0),
    QVAC_EXACT(GGML_TYPE_Q4_K,  q4_k),
    QVAC_EXACT(GGML_TYPE_Q6_K,  q6_k),
    QVAC_EXACT(GGML_TYPE_TQ1_0, tq1_0),
    QVAC_EXACT(GGML_TYPE_TQ2_0, tq2_0),
};

bool has_shaders(ggml_type type) {
    for (const type_shaders & shaders : SHADERS) {
        if (shaders.type == type) {
            return true;
        }
    }
    return false;
}

struct tile_shape {
    uint32_t BM, BN, TM, TN;
    uint32_t segments; // at a time; 0: half a one

    uint32_t invocations() const { return BM / TM * (BN / TN) * std::max(segments, 1u); }
};

// Every shape stays within 16 KiB of shared memory and 256 invocations.
const tile_shape TILES[VK_QVAC_EXACT_TILE_COUNT] = {
    /* SLIM     */ { 32, 64, 4, 4, 0 },
    /* SQUARE   */ { 64, 64, 4, 4, 0 },
    /* LARGE    */ { 128, 64, 8, 8, 0 },
    /* NARROW_M */ { 8, 4, 2, 1, 8 },
    /* NARROW_T */ { 16, 8, 2, 2, 4 },
};

// Up to so many outputs along a side a narrow tile wastes less than a square one, if there is a sum to share.
constexpr int64_t NARROW_MAX   = 24;
constexpr int64_t NARROW_MIN_K = 64;

constexpr uint32_t VEC_GROUPS     = 8;
constexpr int64_t  VEC_TOKENS_MAX = 8;

// Outputs that 32 lanes make of each token, for 2^i tokens. A lane reads its segment piece by piece from a cache that those of all
// rows have to fit in: on an H100 the 32000 x 2048 F16 weights of a head took 255 us with four rows, 99 with two.
uint32_t vec_rows(ggml_type type, uint32_t i) {
    return !ggml_is_quantized(type) ? (type == GGML_TYPE_F32 ? 1 : 2) : i < 2 ? 4 : 2;
}

constexpr uint32_t BLOCK_SIZE = 256;

// An op as a product; strides in bytes.
struct product {
    const ggml_tensor * a;
    const ggml_tensor * b;
    const ggml_tensor * add;
    bool    k_first; // k is the first dimension of a
    int64_t M, T, K;
    size_t  a_m, a_k, b_t, b_k, d_m, d_t;
    vk_qvac_exact_mode mode;
    float    scale;
};

product product_of(const ggml_tensor * dst) {
    const ggml_tensor * s0 = dst->src[0];
    const ggml_tensor * s1 = dst->src[1];
    const ggml_tensor * s2 = dst->src[2];
    switch (dst->op) {
        case GGML_OP_MUL_MAT: // [K, M], [K, T]
            return { s0, s1, nullptr, true, s0->ne[1], s1->ne[1], s0->ne[0], s0->nb[1], s0->nb[0], s1->nb[1], s1->nb[0],
                     dst->nb[0], dst->nb[1], VK_QVAC_EXACT_STORE, 1.0f };
        case GGML_OP_OUT_PROD: // [M, K], [T, K]
            return { s0, s1, nullptr, false, s0->ne[0], s1->ne[0], s0->ne[1], s0->nb[0], s0->nb[1], s1->nb[0], s1->nb[1],
                     dst->nb[0], dst->nb[1], VK_QVAC_EXACT_STORE, 1.0f };
        default:
            break;
    }
    const float scale = ggml_train_op_param(dst);
    switch (ggml_get_train_op(dst)) {
        case GGML_TRAIN_OP_LOW_RANK_PROJECT: // p [n, r], v [n, T]
            return { s0, s1, nullptr, true, s0->ne[1], s1->ne[1], s0->ne[0], s0->nb[1], s0->nb[0], s1->nb[1], s1->nb[0],
                     dst->nb[0], dst->nb[1], VK_QVAC_EXACT_STORE, scale };
        case GGML_TRAIN_OP_LOW_RANK_ADD: // y [n, T], p [n, r], z [r, T]
            return { s1, s2, dst->src[3], false, s1->ne[0], s2->ne[1], s1->ne[1], s1->nb[0], s1->nb[1], s2->nb[1], s2->nb[0],
                     dst->nb[0], dst->nb[1], dst->src[3] ? VK_QVAC_EXACT_UPDATE_ADD : VK_QVAC_EXACT_UPDATE, scale };
        default: // grad [n, r], v [n, T], z [r, T]
            return { s1, s2, nullptr, false, s1->ne[0], s2->ne[0], s1->ne[1], s1->nb[0], s1->nb[1], s2->nb[0], s2->nb[1],
                     dst->nb[0], dst->nb[1], VK_QVAC_EXACT_GRAD, scale };
    }
}

bool a_is_along_k(const product & p) {
    return ggml_is_quantized(p.a->type) ? p.k_first : p.a_k < p.a_m;
}

bool b_is_along_k(const product & p) {
    return p.b_k < p.b_t;
}

bool is_vec(const product & p) {
    return p.T <= VEC_TOKENS_MAX && p.mode == VK_QVAC_EXACT_STORE && a_is_along_k(p);
}

vk_qvac_exact_tile tile_of(const vk_device & device, const product & p, int64_t batches) {
    const bool long_sum = p.K >= NARROW_MIN_K;
    if (long_sum && p.M <= NARROW_MAX) {
        return VK_QVAC_EXACT_NARROW_M;
    }
    if (long_sum && p.T <= NARROW_MAX) {
        return VK_QVAC_EXACT_NARROW_T;
    }
    const auto tiles = [&](vk_qvac_exact_tile tile) {
        return CEIL_DIV(p.M, (int64_t) TILES[tile].BM) * CEIL_DIV(p.T, (int64_t) TILES[tile].BN) * batches;
    };
    const int64_t cores = device->shader_core_count ? device->shader_core_count : 16;
    if (tiles(VK_QVAC_EXACT_LARGE) >= 2 * cores) {
        return VK_QVAC_EXACT_LARGE;
    }
    if (!long_sum || tiles(VK_QVAC_EXACT_SQUARE) >= 2 * cores) {
        return VK_QVAC_EXACT_SQUARE;
    }
    // A core that has two workgroups multiplies for one while it reads for the other.
    return tiles(VK_QVAC_EXACT_SQUARE) < cores / 4 ? VK_QVAC_EXACT_NARROW_T : VK_QVAC_EXACT_SLIM;
}

// The shaders count elements (of quantized types, blocks and their halves of words) in 32 bits, within one descriptor.
bool is_indexable(const vk_device & device, const ggml_tensor * t) {
    const size_t type_size = ggml_type_size(t->type);
    for (int dim = 0; dim < GGML_MAX_DIMS; ++dim) {
        if (t->nb[dim] % type_size != 0) {
            return false;
        }
    }
    return ggml_nbytes(t) <= std::min<uint64_t>(device->properties.limits.maxStorageBufferRange, UINT32_MAX) &&
           (!ggml_is_quantized(t->type) || t->nb[0] == type_size);
}

// A tensor as whole words: the last half of one with what lies behind it.
vk_subbuffer words_of(const ggml_backend_vk_context * ctx, const ggml_tensor * t) {
    vk_subbuffer b = ggml_vk_tensor_subbuffer(ctx, t, true);
    b.size = std::min<uint64_t>(ggml_vk_align_size(b.size, sizeof(uint32_t)), b.buffer->size - b.offset);
    return b;
}

// Whether fours of values along one dimension, `n` of them, lie side by side at multiples of 16 bytes (8 for halves); `across` are
// the strides of the other dimensions.
bool has_fours(const ggml_backend_vk_context * ctx, const ggml_tensor * t, const vk_subbuffer & buffer, int64_t n, size_t along,
               std::initializer_list<size_t> across) {
    const size_t size = ggml_type_size(t->type);
    for (const size_t stride : across) {
        if (stride % (4 * size) != 0) {
            return false;
        }
    }
    return n % 4 == 0 && along == size && ggml_vk_qvac_is_aligned(ctx, t, buffer);
}

// So many workgroups, in a grid that any device takes.
std::array<uint32_t, 3> grid_of(const vk_device & device, uint64_t workgroups) {
    const uint64_t width = std::min<uint64_t>(workgroups, device->properties.limits.maxComputeWorkGroupCount[0]);
    return { (uint32_t) width, (uint32_t) CEIL_DIV(workgroups, width), 1 };
}

bool fits_grid(const vk_device & device, uint64_t workgroups) {
    const auto grid = grid_of(device, workgroups);
    return grid[1] <= device->properties.limits.maxComputeWorkGroupCount[1] && (uint64_t) grid[0] * grid[1] <= UINT32_MAX;
}

uint64_t product_workgroups(const vk_device & device, const product & p, int64_t batches) {
    if (is_vec(p)) {
        return (uint64_t) batches * CEIL_DIV(p.M, (int64_t) VEC_GROUPS);
    }
    const tile_shape & tile = TILES[tile_of(device, p, batches)];
    return (uint64_t) batches * CEIL_DIV(p.M, (int64_t) tile.BM) * CEIL_DIV(p.T, (int64_t) tile.BN);
}

uint64_t rows_workgroups(const ggml_tensor * op) {
    return CEIL_DIV((uint64_t) CEIL_DIV(op->ne[0], (int64_t) 4) * ggml_nrows(op), (uint64_t) BLOCK_SIZE);
}

bool product_supported(const vk_device & device, const ggml_tensor * op) {
    const product p = product_of(op);
    if (!has_shaders(p.a->type) || p.b->type != GGML_TYPE_F32 || op->type != GGML_TYPE_F32 ||
        (p.add && p.add->type != GGML_TYPE_F32) || (p.mode != VK_QVAC_EXACT_STORE && p.a->type != GGML_TYPE_F32)) {
        return false;
    }
    return is_indexable(device, p.a) && is_indexable(device, p.b) && is_indexable(device, op) &&
           (!p.add || is_indexable(device, p.add)) && fits_grid(device, product_workgroups(device, p, op->ne[2] * op->ne[3]));
}

void record_product(ggml_backend_vk_context * ctx, vk_context & subctx, ggml_tensor * dst) {
    const product p = product_of(dst);

    const vk_subbuffer a   = words_of(ctx, p.a);
    const vk_subbuffer b   = ggml_vk_tensor_subbuffer(ctx, p.b, true);
    const vk_subbuffer d   = ggml_vk_tensor_subbuffer(ctx, dst, true);
    const vk_subbuffer add = p.add ? ggml_vk_tensor_subbuffer(ctx, p.add, true) : d;

    const bool vec       = is_vec(p);
    const bool a_along_k = a_is_along_k(p);
    const bool b_along_k = vec || b_is_along_k(p); // lanes of few tokens go along k, whether b does or not
    const auto tile      = tile_of(ctx->device, p, dst->ne[2] * dst->ne[3]);

    const bool a_fours = ggml_is_quantized(p.a->type) ||
        has_fours(ctx, p.a, a, a_along_k ? p.K : p.M, a_along_k ? p.a_k : p.a_m, { a_along_k ? p.a_m : p.a_k, p.a->nb[2], p.a->nb[3] });
    const bool b_fours = has_fours(ctx, p.b, b, b_along_k ? p.K : p.T, b_along_k ? p.b_k : p.b_t,
                                   { b_along_k ? p.b_t : p.b_k, p.b->nb[2], p.b->nb[3] });
    // Kernels for few outputs write them one by one.
    const bool d_fours = vec || TILES[tile].segments != 0 ||
        (has_fours(ctx, dst, d, p.M, p.d_m, { p.d_t, dst->nb[2], dst->nb[3] }) &&
         (!p.add || has_fours(ctx, p.add, add, p.M, p.add->nb[0], { p.add->nb[1] })));
    const bool fours = a_fours && b_fours && d_fours;

    const auto a_units = [&](size_t bytes) { return (uint32_t) (bytes / ggml_type_size(p.a->type)); };
    const auto floats  = [](size_t bytes) { return (uint32_t) (bytes / sizeof(float)); };
    const int64_t batches = dst->ne[2] * dst->ne[3];
    const product_push_constants pc = {
        (uint32_t) p.M, (uint32_t) p.T, (uint32_t) p.K,
        (uint32_t) dst->ne[2], (uint32_t) batches,
        (uint32_t) (dst->ne[2] / p.a->ne[2]), (uint32_t) (dst->ne[3] / p.a->ne[3]),
        a_units(p.a_m), a_units(p.a_k), a_units(p.a->nb[2]), a_units(p.a->nb[3]),
        floats(p.b_t), floats(p.b_k), floats(p.b->nb[2]), floats(p.b->nb[3]),
        floats(p.d_m), floats(p.d_t), floats(dst->nb[2]), floats(dst->nb[3]),
        ggml_vk_qvac_offset(ctx, p.a), ggml_vk_qvac_offset(ctx, p.b), ggml_vk_qvac_offset(ctx, dst),
        p.add ? ggml_vk_qvac_offset(ctx, p.add) : 0,
        p.scale,
    };

    vk_qvac_exact_products & pipelines = ctx->device->qvac->exact_products;
    vk_pipeline pipeline;
    uint64_t    workgroups = product_workgroups(ctx->device, p, batches);
    if (vec) {
        const uint32_t i = p.T == 1 ? 0 : p.T == 2 ? 1 : p.T <= 4 ? 2 : 3;
        pipeline   = pipelines.vec[p.a->type][i][fours];
        workgroups = (uint64_t) batches * CEIL_DIV(p.M, (int64_t) (VEC_GROUPS * vec_rows(p.a->type, i)));
    } else if (p.mode == VK_QVAC_EXACT_STORE) {
        pipeline = pipelines.tile[p.a->type][tile][a_along_k][b_along_k][fours];
    } else {
        pipeline = pipelines.low_rank[p.mode][tile][a_along_k][b_along_k][fours];
    }
    ggml_pipeline_request_descriptor_sets(ctx, pipeline, 1);
    ggml_vk_dispatch_pipeline(ctx, subctx, pipeline, { a, b, d, add }, pc, grid_of(ctx->device, workgroups));
}

bool rows_supported(const vk_device & device, const ggml_tensor * op) {
    const ggml_tensor * a   = op->src[0]; // [n, rows, n2, n3]
    const ggml_tensor * ids = op->src[1]; // [n1, n2, n3]
    return has_shaders(a->type) && a->nb[0] == ggml_type_size(a->type) && ids->type == GGML_TYPE_I32 && op->type == GGML_TYPE_F32 &&
           op->nb[0] == sizeof(float) && is_indexable(device, a) && is_indexable(device, ids) && is_indexable(device, op) &&
           fits_grid(device, rows_workgroups(op));
}

void record_rows(ggml_backend_vk_context * ctx, vk_context & subctx, ggml_tensor * dst) {
    const ggml_tensor * a   = dst->src[0];
    const ggml_tensor * ids = dst->src[1];

    const auto stride = ggml_vk_qvac_stride;
    const rows_push_constants pc = {
        (uint32_t) dst->ne[0], (uint32_t) a->ne[1],
        (uint32_t) dst->ne[1], (uint32_t) dst->ne[2], (uint32_t) dst->ne[3],
        stride(a, 1), stride(a, 2), stride(a, 3),
        stride(ids, 0), stride(ids, 1), stride(ids, 2),
        stride(dst, 1), stride(dst, 2), stride(dst, 3),
        ggml_vk_qvac_offset(ctx, a), ggml_vk_qvac_offset(ctx, ids), ggml_vk_qvac_offset(ctx, dst),
    };
    vk_pipeline pipeline = ctx->device->qvac->exact_products.get_rows[a->type];
    ggml_pipeline_request_descriptor_sets(ctx, pipeline, 1);
    ggml_vk_dispatch_pipeline(ctx, subctx, pipeline,
        { words_of(ctx, a), ggml_vk_tensor_subbuffer(ctx, ids, true), ggml_vk_tensor_subbuffer(ctx, dst, true) },
        pc, grid_of(ctx->device, rows_workgroups(dst)));
}

const vk_qvac_exact_kernel PRODUCT = { product_supported, record_product };
const vk_qvac_exact_kernel ROWS    = { rows_supported, record_rows };

} // namespace

const vk_qvac_exact_kernel * ggml_vk_qvac_exact_products(const ggml_tensor * op) {
    switch (op->op) {
        case GGML_OP_MUL_MAT: // ternary ones are exact in integers
            return op->src[0]->type == GGML_TYPE_TQ1_0 || op->src[0]->type == GGML_TYPE_TQ2_0 ? nullptr : &PRODUCT;
        case GGML_OP_OUT_PROD:
            return &PRODUCT;
        case GGML_OP_GET_ROWS:
            return &ROWS;
        case GGML_OP_CUSTOM:
            switch (ggml_get_train_op(op)) {
                case GGML_TRAIN_OP_LOW_RANK_PROJECT:
                case GGML_TRAIN_OP_LOW_RANK_ADD:
                case GGML_TRAIN_OP_LOW_RANK_GRAD:
                    return &PRODUCT;
                default:
                    return nullptr;
            }
        default:
            return nullptr;
    }
}

// One of the 8 pipelines of a tile shape.
static void load_tile(const vk_qvac_create_pipeline & create, vk_pipeline & pipeline, const type_shaders & s, const tile_shape & tile,
                      uint32_t a_along_k, uint32_t b_along_k, uint32_t fours, uint32_t mode) {
    const int shader = tile.segments ? 1 : 0;
    std::vector<uint32_t> constants = { tile.invocations(), a_along_k, b_along_k, fours, mode, tile.BM, tile.BN, tile.TM, tile.TN };
    if (tile.segments) {
        constants.push_back(tile.segments);
    }
    create(pipeline, s.names[shader], s.sizes[shader], s.data[shader], 4, sizeof(product_push_constants), { 1, 1, 1 }, constants, 0);
}

void ggml_vk_qvac_load_exact_products(vk_device & device, const vk_qvac_create_pipeline & create) {
    vk_qvac_exact_products & pipelines = device->qvac->exact_products;
    for (const type_shaders & s : SHADERS) {
        for (uint32_t variant = 0; variant < 8; ++variant) {
            const uint32_t a = variant & 1, b = variant >> 1 & 1, fours = variant >> 2;
            for (int i = 0; i < VK_QVAC_EXACT_TILE_COUNT; ++i) {
                load_tile(create, pipelines.tile[s.type][i][a][b][fours], s, TILES[i], a, b, fours, VK_QVAC_EXACT_STORE);
                for (int mode = VK_QVAC_EXACT_STORE + 1; mode < VK_QVAC_EXACT_MODE_COUNT && s.type == GGML_TYPE_F32; ++mode) {
                    load_tile(create, pipelines.low_rank[mode][i][a][b][fours], s, TILES[i], a, b, fours, mode);
                }
            }
            for (uint32_t i = 0; i < VK_QVAC_EXACT_VECS && a && b; ++i) {
                create(pipelines.vec[s.type][i][fours], s.names[2], s.sizes[2], s.data[2], 4, sizeof(product_push_constants),
                       { 1, 1, 1 }, { BLOCK_SIZE, 1, 1, fours, VK_QVAC_EXACT_STORE, vec_rows(s.type, i), 1u << i }, 0);
            }
        }
        create(pipelines.get_rows[s.type], s.names[3], s.sizes[3], s.data[3], 3, sizeof(rows_push_constants), { 1, 1, 1 }, {}, 0);
    }
}
