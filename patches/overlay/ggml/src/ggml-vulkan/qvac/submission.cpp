// When a generating graph goes to the device, and how its end is awaited.
//
// Upstream submits a graph in several parts, so that the device begins while the host records, then the copy of the logits,
// then the fence by itself, and sleeps until most of it is done. For a token of a millisecond or two that is the wrong way
// round: between submissions the device waits, and to wake up takes the host longer than the rest of the graph.

#include "ops.h"

namespace {

// Between two looks at the fence; upstream's pauses are of some 40 us.
constexpr int PAUSES = 16;

void submit(ggml_backend_vk_context * ctx, vk_context & held) {
    ggml_vk_ctx_end(held);
    ggml_vk_submit(held, {});
    ctx->submit_pending = true;
    ctx->compute_ctx.reset();
}

} // namespace

void ggml_vk_qvac_submission_graph_begin(ggml_backend_vk_context * ctx) {
    vk_qvac_submission & submission = ctx->qvac->submission;
    if (submission.held) {
        // Nobody asked for its results yet.
        if (vk_context held = ctx->compute_ctx.lock()) {
            submit(ctx, held);
        }
    }
    submission = {};
}

bool ggml_vk_qvac_holds_back(const ggml_backend_vk_context * ctx, bool last) {
    if (ctx->device->serialize_submissions) {
        return false;
    }
    const vk_qvac_submission & submission = ctx->qvac->submission;
    return submission.is_whole || (submission.generates && last);
}

bool ggml_vk_qvac_polls(const ggml_backend_vk_context * ctx) {
    // Where host and device share cores, power or memory, a host at rest is worth more.
    return ggml_vk_qvac_holds_back(ctx, true) && ctx->device->properties.deviceType == vk::PhysicalDeviceType::eDiscreteGpu;
}

void ggml_vk_qvac_graph_end(ggml_backend_vk_context * ctx) {
    vk_qvac_submission & submission = ctx->qvac->submission;
    vk_context           held       = ctx->compute_ctx.lock();
    if (!held || !ggml_vk_qvac_holds_back(ctx, true)) {
        return;
    }
    submission.held = true;
    // What upstream does before it submits.
    for (const auto & copy : held->in_memcpys) {
        memcpy(copy.dst, copy.src, copy.n);
    }
    for (const auto & fill : held->memsets) {
        memset(fill.dst, fill.val, fill.n);
    }
    held->in_memcpys.clear();
    held->memsets.clear();
}

void ggml_vk_qvac_poll(ggml_backend_vk_context * ctx) {
    if (!ctx->qvac || !ctx->qvac->submission.held) {
        return;
    }
    ctx->qvac->submission.held = false;
    const DispatchLoaderDynamic & driver = VULKAN_HPP_DEFAULT_DISPATCHER;
    // Errors are for upstream's own wait behind this one to tell of.
    while (driver.vkGetFenceStatus((VkDevice) ctx->device->device, (VkFence) ctx->fence) == VK_NOT_READY) {
        for (int i = 0; i < PAUSES; ++i) {
            YIELD();
        }
    }
}
