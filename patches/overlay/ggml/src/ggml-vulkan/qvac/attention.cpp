// Causal attention within samples and its gradients (see ggml-train.h; qvac_attention*.comp).
//
// The kernels are chosen with the device: those of cooperative matrices where it has these in 16x16x16 with f32 sums and
// enough shared memory, else plain f32. QVAC_VK_ATTENTION=plain|small|coopmat|imitation chooses another, for
// tests: `small` is plain with the tiles of a device that has only 16 KiB of shared memory, and `imitation` runs the logic
// of the cooperative matrices without them. Where the one asked for cannot be had, the ops are not supported.

#include "ops.h"

#include "ggml-train.h"
#include "ggml-vulkan-shaders.hpp"

#include <cstdlib>
#include <cstring>
#include <optional>

namespace {

struct attention_push_constants {
    uint32_t D, H, H_kv, T;
    float    scale;
    uint32_t aligned;
    uint32_t q_offset, k_offset, v_offset, segments_offset, fwd_offset, dy_offset, dst_offset;
};

struct stats_push_constants {
    uint32_t D, H, T, fwd_offset, dy_offset, aligned;
};

// Queries of a workgroup of qvac_attention_stats.comp.
constexpr uint32_t STATS_ROWS = 64;

static_assert(sizeof(attention_push_constants) <= 128, "Vulkan guarantees no more push constants than 128 bytes");

// Heads of more than this are not ours: the pipelines are made for each multiple of D_STEP up to it.
constexpr uint32_t D_STEP = 16;
constexpr uint32_t D_MAX  = D_STEP * VK_QVAC_ATTENTION_WIDTHS;

enum engine {
    PLAIN,
    COOPMAT,
    IMITATION,
    ENGINE_COUNT,
};

struct shader {
    const char * name;
    uint64_t     size;
    const void * data;
};

#define QVAC_SHADER(NAME) { #NAME, NAME##_len, NAME##_data }

#if defined(GGML_VULKAN_COOPMAT_GLSLC_SUPPORT)
#define QVAC_COOPMAT_SHADER(NAME) QVAC_SHADER(NAME##_cm1)
#else
#define QVAC_COOPMAT_SHADER(NAME) { nullptr, 0, nullptr }
#endif

#define QVAC_ATTENTION(PLAIN, MATRIX) \
    { QVAC_SHADER(PLAIN), QVAC_COOPMAT_SHADER(MATRIX), QVAC_SHADER(MATRIX##_imitation) }

const shader SHADERS[VK_QVAC_ATTENTION_KERNEL_COUNT][ENGINE_COUNT] = {
    /* FORWARD */ QVAC_ATTENTION(qvac_attention, qvac_attention_matrix),
    /* BACK_Q  */ QVAC_ATTENTION(qvac_attention_back_q, qvac_attention_matrix_back_q),
    /* BACK_KV */ QVAC_ATTENTION(qvac_attention_back_kv, qvac_attention_matrix_back_kv),
};

uint32_t buffers_of(vk_qvac_attention_kernel kernel) {
    return kernel == VK_QVAC_ATTENTION_FORWARD ? 5 : 7;
}

// The shaders' specialization constants, with D_PAD after the third.
struct plain_shape {
    uint32_t block, rows, cols, TM, TN, chunk, step;
};

struct matrix_shape {
    uint32_t block, rows, cols, split, keep;
};

constexpr plain_shape PLAIN_TILE    = { 256, 64, 64, 4, 4, 16, 16 };
constexpr plain_shape SMALL_TILE    = { 256, 32, 32, 2, 2, 16,  8 }; // within 16 KiB; for wide heads, where PLAIN has too few registers
constexpr plain_shape SOFTWARE_TILE = { 256, 16, 16, 1, 1, 16, 16 }; // little code: lavapipe compiles slowly

// The tile of the heads that are not wider. What a core has under way counts for more than large tiles: columns are few,
// and the wider the heads are, the more subgroups share the sums.
struct matrix_tile {
    uint32_t     d_max;
    matrix_shape shape;
};

constexpr matrix_tile MATRIX_TILES[VK_QVAC_ATTENTION_KERNEL_COUNT][3] = {
    /* FORWARD */ { { 64, { 128, 64, 32, 1, 1 } }, { 128, { 128, 64, 32, 1, 1 } }, { D_MAX, {  64, 32, 32, 1, 0 } } },
    /* BACK_Q  */ { { 64, { 128, 64, 32, 1, 1 } }, { 128, { 128, 64, 32, 1, 1 } }, { D_MAX, { 128, 32, 32, 2, 0 } } },
    /* BACK_KV */ { { 64, { 128, 64, 32, 1, 1 } }, { 128, { 128, 32, 32, 2, 1 } }, { D_MAX, { 128, 32, 32, 2, 0 } } },
};

// Wider operands would be private arrays of a size that NVIDIA's driver does not compile.
constexpr uint32_t IMITATION_D_KEPT = 32;

// Above this a head is wide.
constexpr uint32_t D_WIDE = 128;

constexpr uint32_t SMALL_SHARED_MEMORY = 16384;

// What the shaders declare.
uint32_t shared_memory(vk_qvac_attention_kernel kernel, const plain_shape & t, uint32_t d_pad) {
    const bool     forward = kernel == VK_QVAC_ATTENTION_FORWARD;
    const uint32_t queries = kernel == VK_QVAC_ATTENTION_BACK_KV ? t.cols : t.rows;
    const uint32_t chunk   = std::max((t.rows + t.cols) * (t.chunk / 4 + 1), t.step * d_pad / 4) * 16;
    const uint32_t tile    = t.rows * (t.cols / 4 + 1) * 16;
    return chunk + tile + (t.block + (forward ? 1 : 3) * queries) * 4;
}

uint32_t shared_memory(vk_qvac_attention_kernel kernel, const matrix_shape & t, uint32_t d_pad) {
    const bool     forward = kernel == VK_QVAC_ATTENTION_FORWARD;
    const bool     back_kv = kernel == VK_QVAC_ATTENTION_BACK_KV;
    const uint32_t rows    = (forward ? 1 : 2) * t.rows;
    const uint32_t staged  = t.keep ? std::max(t.rows, 2 * t.cols) : rows + 2 * t.cols;
    const uint32_t tile    = t.rows * (t.cols / 4 + 2);
    const uint32_t memory  = std::max(staged * (d_pad / 4 + 2) + tile, t.block / 32 * 160) * 8;
    return memory + (forward ? 12 : back_kv ? 4 : 16) * t.rows + (back_kv ? 8 * t.cols : 0);
}

const char * asked_for() {
    static const char * const name = getenv("QVAC_VK_ATTENTION");
    return name ? name : "";
}

bool asked_for(const char * name) {
    return strcmp(asked_for(), name) == 0;
}

bool has_matrices(const vk_device & device) {
    return SHADERS[0][COOPMAT].data && device->fp16 && device->coopmat_support && device->coopmat_acc_f32_support &&
           device->coopmat_m == 16 && device->coopmat_n == 16 && device->coopmat_k == 16 &&
           device->subgroup_ballot && device->subgroup_require_full_support && device->subgroup_min_size <= 32 &&
           device->subgroup_max_size >= 32;
}

struct choice {
    enum engine           engine;
    std::vector<uint32_t> constants;
    uint32_t              rows;

    choice(const plain_shape & t, uint32_t d_pad)
        : engine(PLAIN), constants({ t.block, t.rows, t.cols, d_pad, t.TM, t.TN, t.chunk, t.step }), rows(t.rows) {}
    choice(enum engine engine, const matrix_shape & t, uint32_t d_pad)
        : engine(engine), constants({ t.block, t.rows, t.cols, d_pad, t.split, t.keep }), rows(t.rows) {}
};

std::optional<choice> choose_matrix(const vk_device & device, engine engine, vk_qvac_attention_kernel kernel, uint32_t d_pad) {
    const matrix_tile * tile = MATRIX_TILES[kernel];
    while (d_pad > tile->d_max || (engine == IMITATION && d_pad > IMITATION_D_KEPT && tile->shape.keep)) {
        ++tile;
    }
    if (shared_memory(kernel, tile->shape, d_pad) > device->properties.limits.maxComputeSharedMemorySize) {
        return std::nullopt;
    }
    return choice(engine, tile->shape, d_pad);
}

// How the device runs a kernel for heads of `d_pad` values, if it can.
std::optional<choice> choose(const vk_device & device, vk_qvac_attention_kernel kernel, uint32_t d_pad) {
    const uint32_t shared = device->properties.limits.maxComputeSharedMemorySize;

    if (asked_for("imitation")) {
        return device->fp16 ? choose_matrix(device, IMITATION, kernel, d_pad) : std::nullopt;
    }
    if (asked_for("coopmat")) {
        return has_matrices(device) ? choose_matrix(device, COOPMAT, kernel, d_pad) : std::nullopt;
    }
    const bool plain = asked_for("plain");
    const bool small = asked_for("small");
    if (!plain && !small) {
        if (asked_for()[0] != '\0') {
            return std::nullopt;
        }
        if (has_matrices(device)) {
            if (const auto matrix = choose_matrix(device, COOPMAT, kernel, d_pad)) {
                return matrix;
            }
        }
    }
    if (!plain && !small && device->properties.deviceType == vk::PhysicalDeviceType::eCpu) {
        return choice(SOFTWARE_TILE, d_pad);
    }
    if (!small && d_pad <= D_WIDE && shared_memory(kernel, PLAIN_TILE, d_pad) <= shared) {
        return choice(PLAIN_TILE, d_pad);
    }
    GGML_ASSERT(shared_memory(kernel, SMALL_TILE, d_pad) <= SMALL_SHARED_MEMORY);
    return choice(SMALL_TILE, d_pad);
}

uint32_t width_of(const ggml_tensor * q) {
    return CEIL_DIV((uint32_t) q->ne[0], D_STEP);
}

uint32_t tiles_of(const ggml_tensor * q, const choice & choice) {
    return CEIL_DIV((uint32_t) q->ne[2], choice.rows);
}

enum engine engine_of(const ggml_backend_vk_context * ctx, vk_qvac_attention_kernel kernel, const ggml_tensor * q) {
    const auto choice = choose(ctx->device, kernel, width_of(q) * D_STEP);
    GGML_ASSERT(choice);
    return choice->engine;
}

// What the backward's kernels on matrices read instead of `fwd` (qvac_attention_stats.comp).
uint64_t stats_bytes(const ggml_tensor * q) {
    return (uint64_t) q->ne[1] * q->ne[2] * 4 * sizeof(float);
}

void dispatch_stats(ggml_backend_vk_context * ctx, vk_context & subctx, ggml_tensor * dst) {
    const ggml_tensor * q   = dst->src[0]; // [D, H, T]
    const ggml_tensor * fwd = dst->src[4];
    const ggml_tensor * dy  = dst->src[5]; // [D, H, T]

    stats_push_constants pc = {};
    pc.D          = (uint32_t) q->ne[0];
    pc.H          = (uint32_t) q->ne[1];
    pc.T          = (uint32_t) q->ne[2];
    pc.fwd_offset = ggml_vk_qvac_offset(ctx, fwd);
    pc.dy_offset  = ggml_vk_qvac_offset(ctx, dy);
    pc.aligned    = (pc.fwd_offset | pc.dy_offset) % 4 == 0;

    vk_pipeline pipeline = ctx->device->qvac->attention_stats;
    ggml_pipeline_request_descriptor_sets(ctx, pipeline, 1);
    ggml_vk_qvac_reserve_scratch(ctx, subctx, stats_bytes(q));
    if (ctx->prealloc_x_need_sync) {
        ggml_vk_sync_buffers(ctx, subctx);
    }
    const vk_subbuffer stats = { ctx->prealloc_x, 0, stats_bytes(q) };
    ggml_vk_dispatch_pipeline(ctx, subctx, pipeline,
        { ggml_vk_tensor_subbuffer(ctx, fwd, true), ggml_vk_tensor_subbuffer(ctx, dy, true), stats }, pc,
        { pc.H, CEIL_DIV(pc.T, STATS_ROWS), 1 });
    ggml_vk_sync_buffers(ctx, subctx);
    ctx->prealloc_x_need_sync = true;
}

void dispatch(
        ggml_backend_vk_context * ctx, vk_context & subctx, ggml_tensor * dst, vk_qvac_attention_kernel kernel) {
    const bool          forward  = kernel == VK_QVAC_ATTENTION_FORWARD;
    const ggml_tensor * q        = dst->src[0]; // [D, H, T]
    const ggml_tensor * k        = dst->src[1]; // [D, H_kv, T]
    const ggml_tensor * v        = dst->src[2]; // [D, H_kv, T]
    const ggml_tensor * segments = dst->src[3]; // [2, T]
    const ggml_tensor * fwd      = forward ? nullptr : dst->src[4];
    const ggml_tensor * dy       = forward ? nullptr : dst->src[5]; // [D, H, T]

    const uint32_t width  = width_of(q);
    const auto     choice = choose(ctx->device, kernel, width * D_STEP);
    GGML_ASSERT(choice);

    attention_push_constants pc = {};
    pc.D               = (uint32_t) q->ne[0];
    pc.H               = (uint32_t) q->ne[1];
    pc.H_kv            = (uint32_t) k->ne[1];
    pc.T               = (uint32_t) q->ne[2];
    pc.scale           = ggml_train_op_param(dst);
    pc.q_offset        = ggml_vk_qvac_offset(ctx, q);
    pc.k_offset        = ggml_vk_qvac_offset(ctx, k);
    pc.v_offset        = ggml_vk_qvac_offset(ctx, v);
    pc.segments_offset = ggml_vk_qvac_offset(ctx, segments);
    pc.fwd_offset      = forward ? 0 : ggml_vk_qvac_offset(ctx, fwd);
    pc.dy_offset       = forward ? 0 : ggml_vk_qvac_offset(ctx, dy);
    pc.dst_offset      = ggml_vk_qvac_offset(ctx, dst);
    pc.aligned         = (pc.q_offset | pc.k_offset | pc.v_offset | pc.fwd_offset | pc.dy_offset | pc.dst_offset) % 4 == 0;

    vk_pipeline pipeline = ctx->device->qvac->attention[kernel][width - 1];
    ggml_pipeline_request_descriptor_sets(ctx, pipeline, 1);

    const auto buffer = [&](const ggml_tensor * t) { return ggml_vk_tensor_subbuffer(ctx, t, true); };
    const std::array<uint32_t, 3> grid = { kernel == VK_QVAC_ATTENTION_BACK_KV ? pc.H_kv : pc.H, tiles_of(q, *choice), 1 };
    if (forward) {
        ggml_vk_dispatch_pipeline(ctx, subctx, pipeline,
            { buffer(q), buffer(k), buffer(v), buffer(segments), buffer(dst) }, pc, grid);
    } else {
        const vk_subbuffer stats = { ctx->prealloc_x, 0, stats_bytes(q) };
        ggml_vk_dispatch_pipeline(ctx, subctx, pipeline,
            { buffer(q), buffer(k), buffer(v), buffer(segments), choice->engine == PLAIN ? buffer(fwd) : stats, buffer(dy),
              buffer(dst) }, pc, grid);
    }
}

} // namespace

void ggml_vk_qvac_load_attention(vk_device & device, const vk_qvac_create_pipeline & create) {
    for (int kernel = 0; kernel < VK_QVAC_ATTENTION_KERNEL_COUNT; ++kernel) {
        for (uint32_t width = 1; width <= VK_QVAC_ATTENTION_WIDTHS; ++width) {
            const uint32_t d_pad  = width * D_STEP;
            const auto     choice = choose(device, (vk_qvac_attention_kernel) kernel, d_pad);
            if (!choice) {
                continue;
            }
            const shader & shader = SHADERS[kernel][choice->engine];
            create(device->qvac->attention[kernel][width - 1], shader.name, shader.size, shader.data,
                   buffers_of((vk_qvac_attention_kernel) kernel), sizeof(attention_push_constants), { 1, 1, 1 },
                   choice->constants, choice->engine == COOPMAT ? 32 : 0);
        }
    }
    create(device->qvac->attention_stats, "qvac_attention_stats", qvac_attention_stats_len, qvac_attention_stats_data, 3,
           sizeof(stats_push_constants), { 1, 1, 1 }, {}, 0);
}

bool ggml_vk_qvac_attention_supported(const vk_device & device, const ggml_tensor * op) {
    const ggml_tensor * q = op->src[0];
    if (q->ne[0] % 4 != 0 || q->ne[0] > D_MAX || (uint64_t) ggml_nelements(op) >= UINT32_MAX || q->ne[2] >= INT32_MAX) {
        return false;
    }
    const bool forward = ggml_get_train_op(op) == GGML_TRAIN_OP_ATTENTION;
    const auto runs    = [&](vk_qvac_attention_kernel kernel) {
        const auto   choice = choose(device, kernel, width_of(q) * D_STEP);
        const auto & limits = device->properties.limits.maxComputeWorkGroupCount;
        return choice && q->ne[1] <= limits[0] && tiles_of(q, *choice) <= limits[1];
    };
    return forward ? runs(VK_QVAC_ATTENTION_FORWARD) : runs(VK_QVAC_ATTENTION_BACK_Q) && runs(VK_QVAC_ATTENTION_BACK_KV);
}

void ggml_vk_qvac_attention(ggml_backend_vk_context * ctx, vk_context & subctx, ggml_tensor * dst) {
    dispatch(ctx, subctx, dst, VK_QVAC_ATTENTION_FORWARD);
}

// The two write different parts of the result and read none of it: no barrier between them. The one with the longer
// workgroups comes first.
void ggml_vk_qvac_attention_back(ggml_backend_vk_context * ctx, vk_context & subctx, ggml_tensor * dst) {
    const ggml_tensor * q = dst->src[0];
    if (engine_of(ctx, VK_QVAC_ATTENTION_BACK_KV, q) != PLAIN || engine_of(ctx, VK_QVAC_ATTENTION_BACK_Q, q) != PLAIN) {
        dispatch_stats(ctx, subctx, dst);
    }
    dispatch(ctx, subctx, dst, VK_QVAC_ATTENTION_BACK_KV);
    dispatch(ctx, subctx, dst, VK_QVAC_ATTENTION_BACK_Q);
}
