// Causal attention within samples and its gradients (see ggml-train.h; qvac_attention*.comp).
//
// The engine that multiplies tiles is chosen with the device: cooperative matrices where it has them in 16x16x16 with f32
// sums and enough shared memory, else plain f32. QVAC_VK_ATTENTION=plain|small|coopmat|imitation chooses another, for
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

#if defined(GGML_VULKAN_COOPMAT_GLSLC_SUPPORT)
#define QVAC_ATTENTION_COOPMAT(NAME) { #NAME "_cm1", NAME##_cm1_len, NAME##_cm1_data }
#else
#define QVAC_ATTENTION_COOPMAT(NAME) { nullptr, 0, nullptr }
#endif

#define QVAC_ATTENTION(NAME)                                                      \
    {                                                                             \
        { #NAME, NAME##_len, NAME##_data },                                       \
        QVAC_ATTENTION_COOPMAT(NAME),                                             \
        { #NAME "_imitation", NAME##_imitation_len, NAME##_imitation_data },      \
    }

const shader SHADERS[VK_QVAC_ATTENTION_KERNEL_COUNT][ENGINE_COUNT] = {
    /* FORWARD */ QVAC_ATTENTION(qvac_attention),
    /* BACK_Q  */ QVAC_ATTENTION(qvac_attention_back_q),
    /* BACK_KV */ QVAC_ATTENTION(qvac_attention_back_kv),
};

uint32_t buffers_of(vk_qvac_attention_kernel kernel) {
    return kernel == VK_QVAC_ATTENTION_FORWARD ? 5 : 7;
}

// The shaders' specialization constants; those from TM on are the plain engine's.
struct tile_shape {
    uint32_t block, rows, cols, TM, TN, chunk, step;
};

constexpr tile_shape PLAIN_TILE    = { 256, 64, 64, 4, 4, 16, 16 };
constexpr tile_shape SMALL_TILE    = { 256, 32, 32, 2, 2, 16,  8 }; // within 16 KiB; for wide heads, where PLAIN has too few registers
constexpr tile_shape SOFTWARE_TILE = { 256, 16, 16, 1, 1, 16, 16 }; // little code: lavapipe compiles slowly
constexpr tile_shape MATRIX_TILES[] = { // the first that fits
    { 256, 64, 32 },
    { 128, 32, 32 },
};

// Above this a head is wide.
constexpr uint32_t D_WIDE = 128;

constexpr uint32_t SMALL_SHARED_MEMORY = 16384;

// What the shaders declare.
uint32_t shared_memory(engine engine, vk_qvac_attention_kernel kernel, const tile_shape & t, uint32_t d_pad) {
    const bool     forward = kernel == VK_QVAC_ATTENTION_FORWARD;
    const uint32_t queries = kernel == VK_QVAC_ATTENTION_BACK_KV ? t.cols : t.rows;
    if (engine == PLAIN) {
        const uint32_t chunk = std::max((t.rows + t.cols) * (t.chunk / 4 + 1), t.step * d_pad / 4) * 16;
        const uint32_t tile  = t.rows * (t.cols / 4 + 1) * 16;
        return chunk + tile + (t.block + (forward ? 1 : 3) * queries) * 4;
    }
    const uint32_t slots = ((forward ? 1 : 2) * t.rows + 2 * t.cols) * (d_pad / 4 + 2) * 8;
    const uint32_t tile  = t.rows * (t.cols + 8) * 2;
    const uint32_t rows  = forward ? (t.rows * (t.cols + 4) + t.block + t.rows) * 4 : (2 * t.block + 4 * queries) * 4;
    return slots + tile + rows + 256 * 4;
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
           device->subgroup_require_full_support && device->subgroup_min_size <= 32 && device->subgroup_max_size >= 32;
}

struct choice {
    enum engine engine;
    tile_shape  tile;
};

std::optional<choice> choose_matrix(const vk_device & device, engine engine, vk_qvac_attention_kernel kernel, uint32_t d_pad) {
    for (const tile_shape & tile : MATRIX_TILES) {
        if (shared_memory(engine, kernel, tile, d_pad) <= device->properties.limits.maxComputeSharedMemorySize) {
            return choice { engine, tile };
        }
    }
    return std::nullopt;
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
        return choice { PLAIN, SOFTWARE_TILE };
    }
    if (!small && d_pad <= D_WIDE && shared_memory(PLAIN, kernel, PLAIN_TILE, d_pad) <= shared) {
        return choice { PLAIN, PLAIN_TILE };
    }
    GGML_ASSERT(shared_memory(PLAIN, kernel, SMALL_TILE, d_pad) <= SMALL_SHARED_MEMORY);
    return choice { PLAIN, SMALL_TILE };
}

uint32_t width_of(const ggml_tensor * q) {
    return CEIL_DIV((uint32_t) q->ne[0], D_STEP);
}

uint32_t tiles_of(const ggml_tensor * q, const choice & choice) {
    return CEIL_DIV((uint32_t) q->ne[2], choice.tile.rows);
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
    pc.aligned         = (pc.q_offset | pc.k_offset | pc.v_offset | pc.fwd_offset | pc.dy_offset) % 4 == 0;

    vk_pipeline pipeline = ctx->device->qvac->attention[kernel][width - 1];
    ggml_pipeline_request_descriptor_sets(ctx, pipeline, 1);

    const auto buffer = [&](const ggml_tensor * t) { return ggml_vk_tensor_subbuffer(ctx, t, true); };
    const std::array<uint32_t, 3> grid = { kernel == VK_QVAC_ATTENTION_BACK_KV ? pc.H_kv : pc.H, tiles_of(q, *choice), 1 };
    if (forward) {
        ggml_vk_dispatch_pipeline(ctx, subctx, pipeline,
            { buffer(q), buffer(k), buffer(v), buffer(segments), buffer(dst) }, pc, grid);
    } else {
        ggml_vk_dispatch_pipeline(ctx, subctx, pipeline,
            { buffer(q), buffer(k), buffer(v), buffer(segments), buffer(fwd), buffer(dy), buffer(dst) }, pc, grid);
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
            const shader &        shader    = SHADERS[kernel][choice->engine];
            const tile_shape &    t         = choice->tile;
            std::vector<uint32_t> constants = { t.block, t.rows, t.cols, d_pad };
            if (choice->engine == PLAIN) {
                constants.insert(constants.end(), { t.TM, t.TN, t.chunk, t.step });
            }
            create(device->qvac->attention[kernel][width - 1], shader.name, shader.size, shader.data,
                   buffers_of((vk_qvac_attention_kernel) kernel), sizeof(attention_push_constants), { 1, 1, 1 }, constants,
                   choice->engine == COOPMAT ? 32 : 0);
        }
    }
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
    dispatch(ctx, subctx, dst, VK_QVAC_ATTENTION_BACK_KV);
    dispatch(ctx, subctx, dst, VK_QVAC_ATTENTION_BACK_Q);
}
