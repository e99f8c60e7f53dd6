// Ternary weights as plain bytes in scratch memory (qvac_tq_unpack.comp), for products of many tokens: tiles that read bytes
// multiply half as fast again as tiles that unpack for themselves, whatever the weights' type and the direction.
//
// One matrix at a time, and the next one's behind a product with no barrier between, so that they may run side by side.
// Two slots take turns. What is unpacked goes into the slot of the product before the last one recorded, and the barrier
// that the last one waited at lies between.

#include "ops.h"

#include "ggml-vulkan-shaders.hpp"

namespace {

constexpr uint32_t BLOCK_SIZE = 256;

// What tiles are multiples of, in outputs.
constexpr int64_t MAX_TILE = 128;

// Weights an invocation unpacks, forward and backward.
constexpr int64_t WEIGHTS[2] = { 64, 128 };

void record(ggml_backend_vk_context * ctx, vk_context & subctx, const vk_qvac_unpacking & u) {
    vk_qvac_unpack_state & state    = ctx->qvac->ternary.unpack;
    vk_pipeline            pipeline = ctx->device->qvac->ternary.unpack[u.w->type == GGML_TYPE_TQ2_0][u.backward];
    ggml_pipeline_request_descriptor_sets(ctx, pipeline, 1);

    const vk_qvac_tq_unpack_push_constants pc = { (uint32_t) u.w->ne[0], (uint32_t) u.w->ne[1], ggml_vk_qvac_offset(ctx, u.w) };
    const vk_subbuffer out = { state.slots, (1 - state.slot) * state.slot_size, state.slot_size };
    ggml_vk_dispatch_pipeline(ctx, subctx, pipeline, { ggml_vk_tensor_subbuffer(ctx, u.w, true), out }, pc,
        { (uint32_t) (u.m() * u.k() / WEIGHTS[u.backward]), 1, 1 });
}

// Bytes of a slot for them: the outputs go on to whole tiles.
size_t size_of(int64_t m, int64_t k) {
    return GGML_PAD(m, MAX_TILE) * k;
}

} // namespace

void ggml_vk_qvac_load_ternary_unpack(vk_device & device, const vk_qvac_create_pipeline & create) {
    auto & unpack = device->qvac->ternary.unpack;
#define QVAC_TQ_UNPACK(pipeline, name) \
    create(pipeline, #name, name##_len, name##_data, 2, sizeof(vk_qvac_tq_unpack_push_constants), { BLOCK_SIZE, 1, 1 }, { BLOCK_SIZE }, 0)
    QVAC_TQ_UNPACK(unpack[0][0], qvac_tq_unpack_tq1_0);
    QVAC_TQ_UNPACK(unpack[0][1], qvac_tq_unpack_back_tq1_0);
    QVAC_TQ_UNPACK(unpack[1][0], qvac_tq_unpack_tq2_0);
    QVAC_TQ_UNPACK(unpack[1][1], qvac_tq_unpack_back_tq2_0);
}

bool ggml_vk_qvac_can_unpack(const vk_device & device, int64_t m, int64_t k) {
    const auto & limits = device->properties.limits;
    return size_of(m, k) <= limits.maxStorageBufferRange && m * k / WEIGHTS[0] / BLOCK_SIZE < limits.maxComputeWorkGroupCount[0];
}

void ggml_vk_qvac_unpack_graph_begin(ggml_backend_vk_context * ctx, std::vector<vk_qvac_unpacking> unpackings) {
    vk_qvac_unpack_state & state = ctx->qvac->ternary.unpack;
    state.unpackings = std::move(unpackings);
    state.next       = 0;
    state.ahead      = false;

    size_t needed = 0;
    for (const vk_qvac_unpacking & u : state.unpackings) {
        needed = std::max(needed, size_of(u.m(), u.k()));
    }
    if (needed > state.slot_size) {
        ggml_vk_synchronize(ctx); // an earlier graph may still read the slots
        state.slot_size = ggml_vk_align_size(needed, std::max<size_t>(256, ctx->device->properties.limits.minStorageBufferOffsetAlignment));
        ggml_vk_destroy_buffer(state.slots);
        state.slots = ggml_vk_create_buffer_device(ctx->device, 2 * state.slot_size);
    }
}

vk_subbuffer ggml_vk_qvac_unpacked(ggml_backend_vk_context * ctx, vk_context & subctx, const vk_qvac_unpacking & u) {
    vk_qvac_unpack_state & state = ctx->qvac->ternary.unpack;
    const auto   begin = state.unpackings.begin();
    const size_t at    = std::find(begin + state.next, state.unpackings.end(), u) - begin;
    GGML_ASSERT(at < state.unpackings.size());
    if (!state.ahead || at != state.next) {
        if (state.ahead) { // a product was left out
            ggml_vk_sync_buffers(ctx, subctx);
        }
        record(ctx, subctx, u);
    }
    ggml_vk_sync_buffers(ctx, subctx);
    state.slot  = 1 - state.slot;
    state.ahead = false;
    state.next  = at + 1;
    return { state.slots, state.slot * state.slot_size, state.slot_size };
}

void ggml_vk_qvac_unpack_ahead(ggml_backend_vk_context * ctx, vk_context & subctx) {
    vk_qvac_unpack_state & state = ctx->qvac->ternary.unpack;
    if (state.next < state.unpackings.size()) {
        record(ctx, subctx, state.unpackings[state.next]);
        state.ahead = true;
    }
}
