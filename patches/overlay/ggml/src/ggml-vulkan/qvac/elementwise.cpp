// Element by element on contiguous values, four at a time: ADD of equal shapes, SWIGLU of two tensors and RELU, SQR, MUL in one
// (qvac_binary.comp), where upstream's shaders divide each index by the shape; SWIGLU_BACK and RELU_SQR_GLU_BACK (see ggml-train.h;
// qvac_glu_back.comp).

#include "ops.h"

#include "ggml-train.h"
#include "ggml-vulkan-shaders.hpp"

namespace {

// The shader's OP.
enum binary_op { ADD, SWIGLU, RELU_SQR };

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

// What qvac_binary.comp can read and write.
bool fits_binary(const ggml_backend_vk_context * ctx, const ggml_tensor * a, const ggml_tensor * b, const ggml_tensor * d) {
    return ggml_nelements(d) % 4 == 0 && ggml_are_same_shape(a, d) && ggml_are_same_shape(b, d) &&
           ggml_vk_qvac_is_plain(a) && ggml_vk_qvac_is_plain(b) && ggml_vk_qvac_is_plain(d) &&
           is_aligned(ctx, a) && is_aligned(ctx, b) && is_aligned(ctx, d) && fits_grid(ctx->device, d);
}

void binary(ggml_backend_vk_context * ctx, vk_context & subctx, binary_op op, const ggml_tensor * a, const ggml_tensor * b, const ggml_tensor * d) {
    vk_pipeline pipeline = ctx->device->qvac->binary[op];
    ggml_pipeline_request_descriptor_sets(ctx, pipeline, 1);

    const binary_push_constants pc = {
        (uint32_t) (ggml_nelements(d) / 4),
        ggml_vk_qvac_offset(ctx, a) / 4, ggml_vk_qvac_offset(ctx, b) / 4, ggml_vk_qvac_offset(ctx, d) / 4,
    };
    ggml_vk_dispatch_pipeline(ctx, subctx, pipeline,
        { ggml_vk_tensor_subbuffer(ctx, a, true), ggml_vk_tensor_subbuffer(ctx, b, true), ggml_vk_tensor_subbuffer(ctx, d, true) },
        pc, grid_of(CEIL_DIV(pc.N, EACH * BLOCK_SIZE)));
}

// What the squared ReLU is multiplied with.
const ggml_tensor * other_factor(const ggml_tensor * mul, const ggml_tensor * sqr) {
    return mul->src[mul->src[0] == sqr ? 1 : 0];
}

} // namespace

void ggml_vk_qvac_load_elementwise(vk_device & device, const vk_qvac_create_pipeline & create) {
    for (const binary_op op : { ADD, SWIGLU, RELU_SQR }) {
        static const char * const names[] = { "qvac_add", "qvac_swiglu", "qvac_relu_sqr_glu" };
        create(device->qvac->binary[op], names[op], qvac_binary_len, qvac_binary_data, 3, sizeof(binary_push_constants), { 1, 1, 1 },
               { (uint32_t) op }, 0);
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
    return b && ggml_nrows(op) > VK_QVAC_FEW_ROWS && fits_binary(ctx, a, b, op);
}

void ggml_vk_qvac_binary(ggml_backend_vk_context * ctx, vk_context & subctx, ggml_tensor * dst) {
    binary(ctx, subctx, dst->op == GGML_OP_GLU ? SWIGLU : ADD, dst->src[0], dst->src[1], dst);
}

bool ggml_vk_qvac_fuses_relu_sqr(const ggml_backend_vk_context * ctx, const ggml_cgraph * cgraph, int node_idx) {
    const ggml_tensor * relu = cgraph->nodes[node_idx];
    if (relu->op != GGML_OP_UNARY || ggml_get_unary_op(relu) != GGML_UNARY_OP_RELU ||
        !ggml_can_fuse(cgraph, node_idx, { GGML_OP_UNARY, GGML_OP_SQR, GGML_OP_MUL })) {
        return false;
    }
    const ggml_tensor * sqr = cgraph->nodes[node_idx + 1];
    const ggml_tensor * mul = cgraph->nodes[node_idx + 2];
    return fits_binary(ctx, relu->src[0], other_factor(mul, sqr), mul);
}

bool ggml_vk_qvac_fused_relu_sqr(ggml_backend_vk_context * ctx, vk_context & subctx, const ggml_cgraph * cgraph, int node_idx) {
    // Upstream has no fusion of three that begins with a UNARY, and takes one of ours back where memory overlaps.
    const ggml_tensor * relu = cgraph->nodes[node_idx];
    if (relu->op != GGML_OP_UNARY || ctx->num_additional_fused_ops != 2) {
        return false;
    }
    const ggml_tensor * mul = cgraph->nodes[node_idx + 2];
    binary(ctx, subctx, RELU_SQR, relu->src[0], other_factor(mul, cgraph->nodes[node_idx + 1]), mul);
    return true;
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
