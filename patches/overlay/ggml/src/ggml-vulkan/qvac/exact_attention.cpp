// Attention in exact arithmetic (exact.h): FLASH_ATTN_EXT, ATTENTION and ATTENTION_BACK.
//
// Many queries are cut into tiles, each of which goes over all of its keys. A few queries of a cache would leave most of a device
// without work: there each chunk of keys has a workgroup, and a second dispatch adds up the chunks. The bits are the same.

#include "exact.h"

#include "ops.h"

#include "ggml-train.h"
#include "ggml-vulkan-shaders.hpp"
#include "qvac/exact-attention-op.h"

#include <cstring>

namespace {

struct push_constants {
    uint32_t D, H, group, T, n_keys;
    float    scale;
    uint32_t aligned;
    uint32_t q_offset, q_token, q_head;
    uint32_t k_offset, k_token, k_head;
    uint32_t v_offset, v_token, v_head;
    uint32_t see_offset;
    uint32_t mask_token, mask_head, mask_heads;
    uint32_t dy_offset, dst_offset;
};

struct delta_push_constants {
    uint32_t D, n_rows, fwd_offset, dy_offset;
};

struct join_push_constants {
    uint32_t D, n_chunks, n_rows, dst_offset;
};

static_assert(sizeof(push_constants) <= 128, "Vulkan guarantees no more push constants than 128 bytes");

// The shaders' specialization constants: the wider a head, the fewer rows a tile has, so that it fits into registers.
struct shape {
    uint32_t d_max, rows, fours;
};

constexpr shape SHAPES[VK_QVAC_EXACT_ATTENTION_WIDTHS] = { { 32, 64, 1 }, { 64, 64, 2 }, { 128, 32, 2 }, { 256, 16, 2 } };

constexpr uint32_t CHUNK     = 32;
constexpr uint32_t BLOCK     = 128;
constexpr uint32_t GRID_LINE = 512; // of qvac_exact_attention_join.comp

// As many queries have a workgroup for each chunk of keys, if scratch memory of this size is enough.
constexpr int64_t  FEW         = 8;
constexpr uint64_t FEW_SCRATCH = 64 << 20;

const ggml_tensor * queries_of(const ggml_tensor * op) {
    return op->src[0];
}

bool is_cached(const ggml_tensor * op) {
    return op->op == GGML_OP_FLASH_ATTN_EXT;
}

// The dimensions of tokens and of heads.
int tokens_at(const ggml_tensor * op) {
    return is_cached(op) ? 1 : 2;
}

int heads_at(const ggml_tensor * op) {
    return is_cached(op) ? 2 : 1;
}

uint32_t width_of(const ggml_tensor * op) {
    uint32_t width = 0;
    while (SHAPES[width].d_max < queries_of(op)->ne[0]) {
        ++width;
    }
    return width;
}

uint32_t n_chunks_of(const ggml_tensor * op) {
    return CEIL_DIV((uint32_t) op->src[1]->ne[1], CHUNK);
}

uint64_t few_bytes(const ggml_tensor * op) {
    const ggml_tensor * q = queries_of(op);
    return (uint64_t) n_chunks_of(op) * q->ne[1] * q->ne[2] * (q->ne[0] + 2) * sizeof(float);
}

bool is_few(const vk_device & device, const ggml_tensor * op) {
    const auto & limits = device->properties.limits;
    return is_cached(op) && queries_of(op)->ne[1] <= FEW && n_chunks_of(op) <= limits.maxComputeWorkGroupCount[0] &&
           few_bytes(op) <= std::min<uint64_t>(FEW_SCRATCH, limits.maxStorageBufferRange);
}

uint64_t stats_bytes(const ggml_tensor * op) {
    const ggml_tensor * q = queries_of(op);
    return (uint64_t) q->ne[1] * q->ne[2] * 2 * sizeof(float);
}

// Strides and offsets are counted in elements, four of which are read at a time if they all are multiples of that.
push_constants constants_of(const ggml_backend_vk_context * ctx, const ggml_tensor * op) {
    const ggml_tensor * q     = op->src[0];
    const ggml_tensor * k     = op->src[1];
    const ggml_tensor * v     = op->src[2];
    const ggml_tensor * see   = op->src[3];
    const int           token = tokens_at(op);
    const int           head  = heads_at(op);
    push_constants pc = {};
    pc.D          = (uint32_t) q->ne[0];
    pc.H          = (uint32_t) q->ne[head];
    pc.group      = (uint32_t) (q->ne[head] / k->ne[head]);
    pc.T          = (uint32_t) q->ne[token];
    pc.n_keys     = (uint32_t) k->ne[token];
    pc.q_offset   = ggml_vk_qvac_offset(ctx, q);
    pc.q_token    = ggml_vk_qvac_stride(q, token);
    pc.q_head     = ggml_vk_qvac_stride(q, head);
    pc.k_offset   = ggml_vk_qvac_offset(ctx, k);
    pc.k_token    = ggml_vk_qvac_stride(k, token);
    pc.k_head     = ggml_vk_qvac_stride(k, head);
    pc.v_offset   = ggml_vk_qvac_offset(ctx, v);
    pc.v_token    = ggml_vk_qvac_stride(v, token);
    pc.v_head     = ggml_vk_qvac_stride(v, head);
    pc.see_offset = ggml_vk_qvac_offset(ctx, see);
    pc.dst_offset = ggml_vk_qvac_offset(ctx, op);
    if (is_cached(op)) {
        memcpy(&pc.scale, op->op_params, sizeof(float));
        pc.mask_token = ggml_vk_qvac_stride(see, 1);
        pc.mask_head  = ggml_vk_qvac_stride(see, 2);
        pc.mask_heads = (uint32_t) see->ne[2];
    } else {
        pc.scale = ggml_train_op_param(op);
    }
    pc.dy_offset = op->src[5] ? ggml_vk_qvac_offset(ctx, op->src[5]) : 0;
    pc.aligned   = (pc.q_offset | pc.q_token | pc.q_head | pc.k_offset | pc.k_token | pc.k_head | pc.v_offset | pc.v_token |
                    pc.v_head | pc.dy_offset) % 4 == 0;
    return pc;
}

// Halves are read two at a time, the last one with what lies behind it.
vk_subbuffer buffer_of(const ggml_backend_vk_context * ctx, const ggml_tensor * t) {
    vk_subbuffer b = ggml_vk_tensor_subbuffer(ctx, t, true);
    b.size = std::min<uint64_t>(ggml_vk_align_size(b.size, sizeof(uint32_t)), b.buffer->size - b.offset);
    return b;
}

vk_subbuffer scratch(ggml_backend_vk_context * ctx, vk_context & subctx, uint64_t bytes) {
    ggml_vk_qvac_reserve_scratch(ctx, subctx, bytes);
    if (ctx->prealloc_x_need_sync) {
        ggml_vk_sync_buffers(ctx, subctx);
    }
    ctx->prealloc_x_need_sync = true;
    return { ctx->prealloc_x, 0, bytes };
}

void record_few(ggml_backend_vk_context * ctx, vk_context & subctx, ggml_tensor * dst) {
    vk_qvac_exact_attention & own = ctx->device->qvac->exact_attention;
    const push_constants pc       = constants_of(ctx, dst);
    const uint32_t       n_chunks = n_chunks_of(dst);
    vk_pipeline few = own.few[dst->src[1]->type == GGML_TYPE_F16];
    ggml_pipeline_request_descriptor_sets(ctx, few, 1);
    ggml_pipeline_request_descriptor_sets(ctx, own.join, 1);
    const vk_subbuffer parts = scratch(ctx, subctx, few_bytes(dst));
    ggml_vk_dispatch_pipeline(ctx, subctx, few,
        { buffer_of(ctx, dst->src[0]), buffer_of(ctx, dst->src[1]), buffer_of(ctx, dst->src[2]), buffer_of(ctx, dst->src[3]), parts },
        pc, { n_chunks, pc.H, pc.T });
    ggml_vk_sync_buffers(ctx, subctx);
    const join_push_constants join = { pc.D, n_chunks, pc.H * pc.T, pc.dst_offset };
    ggml_vk_dispatch_pipeline(ctx, subctx, own.join, { parts, buffer_of(ctx, dst) }, join,
        { std::min(join.n_rows, GRID_LINE), CEIL_DIV(join.n_rows, GRID_LINE), 1 });
}

void record_forward(ggml_backend_vk_context * ctx, vk_context & subctx, ggml_tensor * dst) {
    if (is_few(ctx->device, dst)) {
        record_few(ctx, subctx, dst);
        return;
    }
    vk_qvac_exact_attention & own = ctx->device->qvac->exact_attention;
    const push_constants pc    = constants_of(ctx, dst);
    const uint32_t       width = width_of(dst);
    vk_pipeline pipeline = is_cached(dst) ? own.cache[width][dst->src[1]->type == GGML_TYPE_F16] : own.forward[width];
    ggml_pipeline_request_descriptor_sets(ctx, pipeline, 1);
    ggml_vk_dispatch_pipeline(ctx, subctx, pipeline,
        { buffer_of(ctx, dst->src[0]), buffer_of(ctx, dst->src[1]), buffer_of(ctx, dst->src[2]), buffer_of(ctx, dst->src[3]),
          buffer_of(ctx, dst) }, pc, { pc.H, CEIL_DIV(pc.T, SHAPES[width].rows), 1 });
}

// Gradients of keys and of queries are different parts of the result: no barrier between them.
void record_backward(ggml_backend_vk_context * ctx, vk_context & subctx, ggml_tensor * dst) {
    vk_qvac_exact_attention & own = ctx->device->qvac->exact_attention;
    const ggml_tensor *  fwd   = dst->src[4];
    const ggml_tensor *  dy    = dst->src[5];
    const push_constants pc    = constants_of(ctx, dst);
    const uint32_t       width = width_of(dst);
    vk_pipeline back_kv = own.back_kv[width];
    vk_pipeline back_q  = own.back_q[width];
    ggml_pipeline_request_descriptor_sets(ctx, own.delta, 1);
    ggml_pipeline_request_descriptor_sets(ctx, back_kv, 1);
    ggml_pipeline_request_descriptor_sets(ctx, back_q, 1);
    const vk_subbuffer stats = scratch(ctx, subctx, stats_bytes(dst));
    const delta_push_constants delta = { pc.D, pc.H * pc.T, ggml_vk_qvac_offset(ctx, fwd), pc.dy_offset };
    ggml_vk_dispatch_pipeline(ctx, subctx, own.delta, { buffer_of(ctx, fwd), buffer_of(ctx, dy), stats }, delta,
        { CEIL_DIV(delta.n_rows, BLOCK), 1, 1 });
    ggml_vk_sync_buffers(ctx, subctx);
    const uint32_t n_tiles = CEIL_DIV(pc.T, SHAPES[width].rows);
    for (const bool of_keys : { true, false }) {
        ggml_vk_dispatch_pipeline(ctx, subctx, of_keys ? back_kv : back_q,
            { buffer_of(ctx, dst->src[0]), buffer_of(ctx, dst->src[1]), buffer_of(ctx, dst->src[2]), buffer_of(ctx, dst->src[3]),
              stats, buffer_of(ctx, dy), buffer_of(ctx, dst) }, pc, { of_keys ? pc.H / pc.group : pc.H, n_tiles, 1 });
    }
}

// Whether a shader's binding can hold `t`, and its 32 bits count it.
bool fits(const vk_device & device, const ggml_tensor * t) {
    const uint64_t most = device->properties.limits.maxStorageBufferRange;
    const uint64_t slack = device->properties.limits.minStorageBufferOffsetAlignment + sizeof(uint32_t);
    return ggml_nbytes(t) + slack <= std::min<uint64_t>(most, UINT32_MAX);
}

bool supported(const vk_device & device, const ggml_tensor * op) {
    const ggml_tensor * q = queries_of(op);
    for (const ggml_tensor * t : op->src) {
        if (t && !fits(device, t)) {
            return false;
        }
    }
    if (!fits(device, op) || q->ne[0] % 4 != 0 || q->ne[0] > SHAPES[VK_QVAC_EXACT_ATTENTION_WIDTHS - 1].d_max) {
        return false;
    }
    const auto &   limits = device->properties.limits.maxComputeWorkGroupCount;
    const uint64_t tokens = q->ne[tokens_at(op)];
    const uint64_t heads  = q->ne[heads_at(op)];
    return heads <= std::min(limits[0], limits[1]) && tokens < INT32_MAX &&
           CEIL_DIV((uint32_t) tokens, SHAPES[width_of(op)].rows) <= limits[1] &&
           CEIL_DIV(heads * tokens, (uint64_t) BLOCK) <= limits[0];
}

} // namespace

const vk_qvac_exact_kernel * ggml_vk_qvac_exact_attention(const ggml_tensor * op) {
    static const vk_qvac_exact_kernel forward  = { supported, record_forward };
    static const vk_qvac_exact_kernel backward = { supported, record_backward };
    if (op->op == GGML_OP_FLASH_ATTN_EXT) {
        return qvac::exact_takes_flash_attn(op) ? &forward : nullptr;
    }
    switch (ggml_get_train_op(op)) {
        case GGML_TRAIN_OP_ATTENTION:
            return &forward;
        case GGML_TRAIN_OP_ATTENTION_BACK:
            return &backward;
        default:
            return nullptr;
    }
}

void ggml_vk_qvac_load_exact_attention(vk_device & device, const vk_qvac_create_pipeline & create) {
    vk_qvac_exact_attention & own = device->qvac->exact_attention;
#define QVAC_CREATE(PIPELINE, NAME, BUFFERS, CONSTANTS, ...) \
    create(PIPELINE, #NAME, NAME##_len, NAME##_data, BUFFERS, sizeof(CONSTANTS), { 1, 1, 1 }, __VA_ARGS__, 0)
    for (uint32_t i = 0; i < VK_QVAC_EXACT_ATTENTION_WIDTHS; ++i) {
        const std::vector<uint32_t> constants = { SHAPES[i].rows, SHAPES[i].fours };
        QVAC_CREATE(own.forward[i], qvac_exact_attention, 5, push_constants, constants);
        QVAC_CREATE(own.cache[i][0], qvac_exact_attention_cache_f32, 5, push_constants, constants);
        QVAC_CREATE(own.cache[i][1], qvac_exact_attention_cache_f16, 5, push_constants, constants);
        QVAC_CREATE(own.back_q[i], qvac_exact_attention_back_q, 7, push_constants, constants);
        QVAC_CREATE(own.back_kv[i], qvac_exact_attention_back_kv, 7, push_constants, constants);
    }
    QVAC_CREATE(own.delta, qvac_exact_attention_delta, 3, delta_push_constants, std::vector<uint32_t>());
    QVAC_CREATE(own.few[0], qvac_exact_attention_few_f32, 5, push_constants, std::vector<uint32_t>());
    QVAC_CREATE(own.few[1], qvac_exact_attention_few_f16, 5, push_constants, std::vector<uint32_t>());
    QVAC_CREATE(own.join, qvac_exact_attention_join, 2, join_push_constants, std::vector<uint32_t>());
#undef QVAC_CREATE
}
