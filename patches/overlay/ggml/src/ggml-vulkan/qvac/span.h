#pragma once

#include "qvac-vulkan.h"
#include "../ggml-vulkan-common.h"

// Several tensors of one buffer as one descriptor.
struct vk_qvac_span {
    vk_buffer buffer;
    size_t    begin = SIZE_MAX;
    size_t    end   = 0;
    bool      ok    = true;

    void add(const ggml_backend_vk_context * ctx, const ggml_tensor * t) {
        const vk_subbuffer b      = ggml_vk_tensor_subbuffer(ctx, t, true);
        const size_t       offset = b.offset + get_misalign_bytes(ctx, t);
        ok     = ok && (!buffer || buffer == b.buffer) && offset % sizeof(uint32_t) == 0;
        buffer = b.buffer;
        begin  = std::min(begin, offset);
        end    = std::max(end, offset + ggml_nbytes(t));
    }

    // To be called when all are in. Shaders read whole words: the last half of a tensor with the one behind it.
    void close(const ggml_backend_vk_context * ctx) {
        const auto & limits = ctx->device->properties.limits;
        if (!buffer) {
            return;
        }
        const size_t alignment = std::max<size_t>(limits.minStorageBufferOffsetAlignment, 16); // as vec4 are read
        begin = begin / alignment * alignment;
        end   = ggml_vk_align_size(end, sizeof(uint32_t));
        ok    = ok && end <= buffer->size && end - begin <= limits.maxStorageBufferRange;
    }

    vk_subbuffer sub() const { return { buffer, begin, end - begin }; }

    // Where `t` begins, in words of four bytes.
    uint32_t offset(const ggml_backend_vk_context * ctx, const ggml_tensor * t) const {
        const vk_subbuffer b = ggml_vk_tensor_subbuffer(ctx, t, true);
        return (uint32_t) ((b.offset + get_misalign_bytes(ctx, t) - begin) / sizeof(uint32_t));
    }
};
