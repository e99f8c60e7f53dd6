// TQ_QUANTIZE, TQ_MUL_MAT and TQ_MUL_MAT_BACK (ggml-train.h), and MUL_MAT with TQ1_0 or TQ2_0 weights: exact in integers by
// the formulas of ternary.h of ggml-cpu (qvac_tq_quantize.comp, qvac_tq_mul_mat.comp).

#include "ops.h"

#include "ggml-train.h"

namespace {

// What quantized tokens are read by.
constexpr size_t Q_ALIGN = 16;

size_t q_row_size(int64_t n, int64_t limbs) {
    return limbs * n + GGML_TQ_TOKEN_TAIL;
}

const ggml_tensor * root_of(const ggml_tensor * t) {
    return t->view_src ? t->view_src : t;
}

bool is_weight(const ggml_tensor * w) {
    return qvac::is_ternary(w->type) && ggml_is_matrix(w) && ggml_is_contiguous(w) && root_of(w)->op == GGML_OP_NONE;
}

// A product of w with `tokens` columns of `limbs` limbs.
struct product {
    const ggml_tensor * w;
    const ggml_tensor * q;   // the tokens: quantized, or floats
    const ggml_tensor * add;
    bool                backward;
    int64_t             m, k, tokens, limbs;
};

product product_of(const ggml_tensor * op) {
    product p;
    p.w        = op->src[0];
    p.q        = op->src[1];
    p.add      = op->op == GGML_OP_CUSTOM ? op->src[2] : nullptr;
    p.backward = ggml_get_train_op(op) == GGML_TRAIN_OP_TQ_MUL_MAT_BACK;
    p.m        = p.w->ne[p.backward ? 0 : 1];
    p.k        = p.w->ne[p.backward ? 1 : 0];
    p.tokens   = ggml_nrows(p.q);
    p.limbs    = op->op == GGML_OP_MUL_MAT ? 1 : (p.q->ne[0] - GGML_TQ_TOKEN_TAIL) / p.k;
    return p;
}

bool product_supported(const vk_device & device, const ggml_tensor * op) {
    const product p      = product_of(op);
    const auto &  limits = device->properties.limits;
    // The shader needs a tile for any number of tokens; the narrowest holds 16 of them.
    return is_weight(p.w) && op->type == GGML_TYPE_F32 && ggml_is_contiguous(op) &&
           ggml_nbytes(p.w) <= limits.maxStorageBufferRange && ggml_nbytes(op) <= limits.maxStorageBufferRange &&
           p.tokens * q_row_size(p.k, p.limbs) <= limits.maxStorageBufferRange &&
           CEIL_DIV(p.m, 64) <= limits.maxComputeWorkGroupCount[0] && CEIL_DIV(p.tokens, 16) <= limits.maxComputeWorkGroupCount[1] &&
           ggml_vk_qvac_ternary_choose(device, { p.m, p.k, p.tokens, p.limbs, false }).has_value();
}

// Whether float rows of `t` can be read or written four values at a time.
bool has_fours(const ggml_backend_vk_context * ctx, const ggml_tensor * t) {
    return t->ne[0] % 4 == 0 && ggml_vk_qvac_is_aligned(ctx, t, ggml_vk_tensor_subbuffer(ctx, t, true));
}

// The variant and the tile shape of a product that is being recorded, or will be.
vk_qvac_ternary_choice choose(const ggml_backend_vk_context * ctx, const product & p) {
    const bool mixed  = ggml_vk_qvac_ternary_scales(ctx, p.w).kind == qvac::tq_scale::mixed;
    const auto choice = ggml_vk_qvac_ternary_choose(ctx->device, { p.m, p.k, p.tokens, p.limbs, mixed });
    GGML_ASSERT(choice && "QVAC_VK_TERNARY was changed meanwhile");
    return *choice;
}

void multiply(ggml_backend_vk_context * ctx, vk_context & subctx, const product & p, const vk_subbuffer & q, size_t q_offset, ggml_tensor * dst,
              const ggml_tensor * update) {
    if (!p.backward && !update) {
        vk_qvac_vec_job job = {};
        job.matrices[0] = { p.w, nullptr, dst };
        job.n_matrices  = 1;
        job.source      = VK_QVAC_VEC_QUANTIZED;
        job.q           = q;
        job.q_offset    = q_offset;
        job.tokens      = p.tokens;
        vk_qvac_vec_plan plan;
        if (ggml_vk_qvac_plan_vec(ctx, job, plan)) {
            ggml_vk_qvac_vec(ctx, subctx, plan);
            return;
        }
    }
    const qvac::tq_scales scales   = ggml_vk_qvac_ternary_scales(ctx, p.w);
    const bool            mixed    = scales.kind == qvac::tq_scale::mixed;
    const auto            choice   = choose(ctx, p);
    const bool            unpacked = choice.is_unpacked();
    const vk_subbuffer    weights  = unpacked ? ggml_vk_qvac_unpacked(ctx, subctx, { p.w, p.backward }) : ggml_vk_tensor_subbuffer(ctx, p.w, true);

    const auto & pipelines = ctx->device->qvac->ternary;
    vk_pipeline  pipeline  = unpacked
        ? pipelines.mul_mat_unpacked[choice.kernel][choice.tile - VK_QVAC_TERNARY_FIRST_UNPACKED][p.limbs - 1][update != nullptr]
        : pipelines.mul_mat[p.w->type == GGML_TYPE_TQ2_0][p.backward][choice.kernel][choice.tile][p.limbs - 1][mixed][update != nullptr];
    ggml_pipeline_request_descriptor_sets(ctx, pipeline, 1);

    vk_qvac_tq_mul_mat_push_constants pc = {};
    pc.M        = (uint32_t) p.m;
    pc.N        = (uint32_t) p.tokens;
    pc.K        = (uint32_t) p.k;
    pc.w_offset = unpacked ? 0 : ggml_vk_qvac_offset(ctx, p.w);
    pc.w_stride = unpacked ? (uint32_t) (p.k / Q_ALIGN) : ggml_vk_qvac_stride(p.w, 1);
    pc.q_offset = (uint32_t) (q_offset / Q_ALIGN);
    pc.q_stride = (uint32_t) (q_row_size(p.k, p.limbs) / Q_ALIGN);
    pc.d_offset = ggml_vk_qvac_offset(ctx, dst);
    pc.aligned  = has_fours(ctx, dst);
    pc.d        = mixed ? 0.0f : qvac::tq_value(scales);

    // A descriptor has to be there for what there is not.
    const vk_subbuffer out = ggml_vk_tensor_subbuffer(ctx, dst, true);
    vk_subbuffer add_buf = out, p_buf = out, z_buf = out;
    if (const ggml_tensor * add = p.add || !update ? p.add : update->src[3]) {
        add_buf       = ggml_vk_tensor_subbuffer(ctx, add, true);
        pc.add        = 1;
        pc.add_offset = ggml_vk_qvac_offset(ctx, add);
        pc.aligned    = pc.aligned && has_fours(ctx, add);
    }
    if (update) {
        const ggml_tensor * lp = update->src[1]; // [m, r]
        const ggml_tensor * lz = update->src[2]; // [r, tokens]
        p_buf       = ggml_vk_tensor_subbuffer(ctx, lp, true);
        z_buf       = ggml_vk_tensor_subbuffer(ctx, lz, true);
        pc.R        = (uint32_t) lp->ne[1];
        pc.nbp0     = ggml_vk_qvac_stride(lp, 0);
        pc.nbp1     = ggml_vk_qvac_stride(lp, 1);
        pc.nbz1     = ggml_vk_qvac_stride(lz, 1);
        pc.p_offset = ggml_vk_qvac_offset(ctx, lp);
        pc.z_offset = ggml_vk_qvac_offset(ctx, lz);
        pc.scale    = ggml_train_op_param(update);
    }
    ggml_vk_dispatch_pipeline(ctx, subctx, pipeline, { weights, q, add_buf, out, p_buf, z_buf }, pc, { pc.M, pc.N, 1 });
    if (unpacked) {
        ggml_vk_qvac_unpack_ahead(ctx, subctx);
    }
}

// Where quantized tokens begin behind their descriptor, in bytes.
size_t q_offset_of(const ggml_backend_vk_context * ctx, const ggml_tensor * q) {
    const size_t offset = get_misalign_bytes(ctx, q);
    GGML_ASSERT(offset % Q_ALIGN == 0);
    return offset;
}

} // namespace

bool ggml_vk_qvac_ternary_is_mul_mat(const ggml_tensor * op) {
    return op->op == GGML_OP_MUL_MAT && is_weight(op->src[0]) && ggml_vk_qvac_is_float_rows(op->src[1]) && op->type == GGML_TYPE_F32 &&
           ggml_is_contiguous(op);
}

bool ggml_vk_qvac_ternary_uses_scales(const ggml_tensor * node) {
    const ggml_train_op op = ggml_get_train_op(node);
    return op == GGML_TRAIN_OP_TQ_MUL_MAT || op == GGML_TRAIN_OP_TQ_MUL_MAT_BACK || ggml_vk_qvac_ternary_is_mul_mat(node);
}

bool ggml_vk_qvac_ternary_supported(const vk_device & device, const ggml_tensor * op) {
    if (ggml_get_train_op(op) == GGML_TRAIN_OP_TQ_QUANTIZE) {
        return ggml_vk_qvac_quantize_supported(device, op->src[0], ggml_vk_qvac_limbs_of(op)) && op->view_offs % sizeof(uint32_t) == 0;
    }
    if (!product_supported(device, op)) {
        return false;
    }
    return op->op == GGML_OP_MUL_MAT ? ggml_vk_qvac_quantize_supported(device, op->src[1], 1) : op->src[1]->view_offs % Q_ALIGN == 0;
}

void ggml_vk_qvac_ternary_graph_begin(ggml_backend_vk_context * ctx, const ggml_cgraph * cgraph) {
    vk_qvac_ternary_state & state = ctx->qvac->ternary;
    state.quantized = nullptr;
    const vk_qvac_known_graph graph(cgraph);
    if (state.scanned.is_same_as(graph)) {
        // As it was; to go over all nodes takes a noticeable part of a token.
        ggml_vk_qvac_unpack_graph_begin(ctx, std::move(state.unpack.unpackings));
        return;
    }
    state.scanned = graph;
    ggml_vk_qvac_ternary_scan(ctx, cgraph);
    size_t needed = 0;
    std::vector<vk_qvac_unpacking> unpackings;
    for (int i = 0; i < cgraph->n_nodes; ++i) {
        const ggml_tensor * node = cgraph->nodes[i];
        if (ggml_vk_qvac_ternary_uses_scales(node)) {
            const product p = product_of(node);
            if (p.tokens > VK_QVAC_VEC_MAX_TOKENS && choose(ctx, p).is_unpacked()) {
                unpackings.push_back({ p.w, p.backward });
            }
        }
        if (ggml_vk_qvac_ternary_is_mul_mat(node)) {
            needed = std::max(needed, ggml_nrows(node->src[1]) * q_row_size(node->src[1]->ne[0], 1));
        }
    }
    ggml_vk_qvac_unpack_graph_begin(ctx, std::move(unpackings));
    if (needed > state.slot_size) {
        ggml_vk_synchronize(ctx); // an earlier graph may still read the slots
        state.slot_size = ggml_vk_align_size(needed, ctx->device->properties.limits.minStorageBufferOffsetAlignment);
        state.slot_size = ggml_vk_align_size(state.slot_size, 256);
        ggml_vk_destroy_buffer(state.slots);
        state.slots = ggml_vk_create_buffer_device(ctx->device, 2 * state.slot_size);
    }
}

vk_subbuffer ggml_vk_qvac_ternary_tokens(ggml_backend_vk_context * ctx, vk_context & subctx, const ggml_tensor * x) {
    vk_qvac_ternary_state & state = ctx->qvac->ternary;
    const size_t            size  = ggml_nrows(x) * q_row_size(x->ne[0], 1);
    if (state.quantized != x) {
        state.slot      = 1 - state.slot;
        state.quantized = x;
        ggml_vk_qvac_quantize(ctx, subctx, x, 1, { state.slots, state.slot * state.slot_size, size }, 0);
        ggml_vk_sync_buffers(ctx, subctx);
    }
    return { state.slots, state.slot * state.slot_size, size };
}

bool ggml_vk_qvac_ternary_can_update(const ggml_tensor * product_op, const ggml_tensor * update) {
    const product       p   = product_of(product_op);
    const ggml_tensor * add = update->src[3];
    // Few tokens have a kernel of their own, without an update.
    return (p.backward || p.tokens > VK_QVAC_VEC_MAX_TOKENS) && !(p.add && add) &&
           !ggml_vk_tensors_overlap(update->src[1], product_op, false) &&
           !ggml_vk_tensors_overlap(update->src[2], product_op, false) &&
           !(add && ggml_vk_tensors_overlap(add, product_op, false));
}

void ggml_vk_qvac_ternary(ggml_backend_vk_context * ctx, vk_context & subctx, ggml_tensor * dst, const ggml_tensor * update) {
    if (ggml_get_train_op(dst) == GGML_TRAIN_OP_TQ_QUANTIZE) {
        ggml_vk_qvac_quantize(ctx, subctx, dst->src[0], ggml_vk_qvac_limbs_of(dst), ggml_vk_tensor_subbuffer(ctx, dst, true),
                              get_misalign_bytes(ctx, dst));
        return;
    }
    const product p = product_of(dst);
    if (dst->op == GGML_OP_MUL_MAT) {
        multiply(ctx, subctx, p, ggml_vk_qvac_ternary_tokens(ctx, subctx, p.q), 0, dst, nullptr);
    } else {
        multiply(ctx, subctx, p, ggml_vk_tensor_subbuffer(ctx, p.q, true), q_offset_of(ctx, p.q), dst, update);
    }
}
