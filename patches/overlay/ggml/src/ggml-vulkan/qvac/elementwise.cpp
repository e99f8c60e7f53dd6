// Element by element on contiguous values, four at a time: ADD of equal shapes and SWIGLU of two tensors (qvac_binary.comp),
// where upstream's shaders divide each index by the shape; SWIGLU_BACK and RELU_SQR_GLU_BACK (see ggml-train.h;
// qvac_glu_back.comp).

#include "ops.h"

#include "ggml-train.h"
#include "ggml-vulkan-shaders.hpp"

namespace {

struct binary_push_constants {
    uint32_t N;
    uint32_t a_offset, b_offset, d_offset;
};

struct glu_push_constants {
    uint32_t N;
    uint32_t dy_offset, gate_offset, up_offset, d_offset;
};

constexpr uint32_t BLOCK_SIZE = 256;

// The shaders' EACH: fours of values of an invocation.
constexpr uint32_t EACH = 2;

// The shaders' BLOCKS_PER_GRID_LINE.
constexpr uint32_t GRID_LINE = 512;

std::array<uint32_t, 3> grid_of(uint64_t n) {
    return { (uint32_t) std::min<uint64_t>(n, GRID_LINE), (uint32_t) CEIL_DIV(n, (uint64_t) GRID_LINE), 1 };
}

// Whether four values of it can be read at once.
bool is_aligned(const ggml_backend_vk_context * ctx, const ggml_tensor * t) {
    return ggml_vk_qvac_is_aligned(ctx, t, ggml_vk_tensor_subbuffer(ctx, t, true));
}

bool fits_grid(const vk_device & device, const ggml_tensor * t) {
    const uint64_t n = (uint64_t) ggml_nelements(t); // one at a time
    return n < UINT32_MAX && grid_of(CEIL_DIV(n, (uint64_t) BLOCK_SIZE))[1] <= device->properties.limits.maxComputeWorkGroupCount[1];
}

} // namespace

void ggml_vk_qvac_load_elementwise(vk_device & device, const vk_qvac_create_pipeline & create) {
    for (const bool swiglu : { false, true }) {
        create(device->qvac->binary[swiglu], swiglu ? "qvac_swiglu" : "qvac_add", qvac_binary_len, qvac_binary_data, 3,
               sizeof(binary_push_constants), { 1, 1, 1 }, { swiglu ? 1u : 0u }, 0);
    }
    for (const bool relu_sqr : { false, true }) {
        for (const bool aligned : { false, true }) {
            create(device->qvac->glu_back[relu_sqr][aligned], "qvac_glu_back", qvac_glu_back_len, qvac_glu_back_data, 4,
                   sizeof(glu_push_constants), { 1, 1, 1 }, { aligned ? 1u : 0u, relu_sqr ? 1u : 0u }, 0);
        }
    }
}

bool ggml_vk_qvac_takes_binary(const ggml_backend_vk_context * ctx, const ggml_tensor * op) {
    const ggml_tensor * a = op->src[0];
    const ggml_tensor * b = op->src[1];
    if (op->op == GGML_OP_GLU && ggml_get_glu_op(op) != GGML_GLU_OP_SWIGLU) {
        return false;
    }
    return b && ggml_nrows(op) > VK_QVAC_FEW_ROWS && ggml_nelements(op) % 4 == 0 &&
           ggml_are_same_shape(a, op) && ggml_are_same_shape(b, op) &&
           ggml_vk_qvac_is_plain(a) && ggml_vk_qvac_is_plain(b) && ggml_vk_qvac_is_plain(op) &&
           is_aligned(ctx, a) && is_aligned(ctx, b) && is_aligned(ctx, op) && fits_grid(ctx->device, op);
}

void ggml_vk_qvac_binary(ggml_backend_vk_context * ctx, vk_context & subctx, ggml_tensor * dst) {
    const ggml_tensor * a = dst->src[0];
    const ggml_tensor * b = dst->src[1];

    vk_pipeline pipeline = ctx->device->qvac->binary[dst->op == GGML_OP_GLU];
    ggml_pipeline_request_descriptor_sets(ctx, pipeline, 1);

    const binary_push_constants pc = {
        (uint32_t) (ggml_nelements(dst) / 4),
        ggml_vk_qvac_offset(ctx, a) / 4, ggml_vk_qvac_offset(ctx, b) / 4, ggml_vk_qvac_offset(ctx, dst) / 4,
    };
    ggml_vk_dispatch_pipeline(ctx, subctx, pipeline,
        { ggml_vk_tensor_subbuffer(ctx, a, true), ggml_vk_tensor_subbuffer(ctx, b, true), ggml_vk_tensor_subbuffer(ctx, dst, true) },
        pc, grid_of(CEIL_DIV(pc.N, EACH * BLOCK_SIZE)));
}

bool ggml_vk_qvac_glu_back_supported(const vk_device & device, const ggml_tensor * op) {
    return fits_grid(device, op);
}

void ggml_vk_qvac_glu_back(ggml_backend_vk_context * ctx, vk_context & subctx, ggml_tensor * dst) {
    const ggml_tensor * dy   = dst->src[0]; // [n, T]
    const ggml_tensor * gate = dst->src[1]; // [n, T]
    const ggml_tensor * up   = dst->src[2]; // [n, T]

    const vk_subbuffer dy_buf   = ggml_vk_tensor_subbuffer(ctx, dy, true);
    const vk_subbuffer gate_buf = ggml_vk_tensor_subbuffer(ctx, gate, true);
    const vk_subbuffer up_buf   = ggml_vk_tensor_subbuffer(ctx, up, true);
    const vk_subbuffer d_buf    = ggml_vk_tensor_subbuffer(ctx, dst, true);

    const uint32_t n       = (uint32_t) ggml_nelements(dy);
    const bool     aligned = n % 4 == 0 && ggml_vk_qvac_is_aligned(ctx, dy, dy_buf) && ggml_vk_qvac_is_aligned(ctx, gate, gate_buf) &&
                             ggml_vk_qvac_is_aligned(ctx, up, up_buf) && ggml_vk_qvac_is_aligned(ctx, dst, d_buf);

    const bool  relu_sqr = ggml_get_train_op(dst) == GGML_TRAIN_OP_RELU_SQR_GLU_BACK;
    vk_pipeline pipeline = ctx->device->qvac->glu_back[relu_sqr][aligned];
    ggml_pipeline_request_descriptor_sets(ctx, pipeline, 1);

    const glu_push_constants pc = {
        n,
        ggml_vk_qvac_offset(ctx, dy), ggml_vk_qvac_offset(ctx, gate), ggml_vk_qvac_offset(ctx, up), ggml_vk_qvac_offset(ctx, dst),
    };
    ggml_vk_dispatch_pipeline(ctx, subctx, pipeline, { dy_buf, gate_buf, up_buf, d_buf }, pc,
                              grid_of(aligned ? CEIL_DIV(n / 4, EACH * BLOCK_SIZE) : CEIL_DIV(n, BLOCK_SIZE)));
}
