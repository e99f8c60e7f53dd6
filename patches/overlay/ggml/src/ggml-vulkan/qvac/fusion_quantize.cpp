// Which nodes of a training graph are recorded together because they go over the same rows, so that a row is read once and
// quantized by those who make it:
//
//     [SWIGLU]  RMS_NORM, MUL by its weight  [TQ_QUANTIZE]         with the first, the last or both
//     RMS_NORM_MUL_BACK, TQ_QUANTIZE
//     RMS_NORM_MUL_BACK, SWIGLU_BACK, TQ_QUANTIZE of both halves
//     ROPE_BACK, up to 3                   TQ_QUANTIZE of each, and of what is not turned (v)
//
// The last is a dispatch for each quantization, without a barrier between them. Results that other nodes need are written as
// well; the others are not. The bits are those of the nodes by themselves. Views may stand among the nodes.

#include "ops.h"

#include "ggml-train.h"

namespace {

// The patterns above, from the node `begin` on.
class finder {
public:
    finder(const ggml_backend_vk_context * ctx, const ggml_cgraph * cgraph, int begin) : ctx(ctx), cgraph(cgraph), begin(begin) {}

    const char * find(vk_qvac_quantize_fusion & f) {
        const ggml_tensor * first = at(begin);
        if (!first) {
            return nullptr;
        }
        const char * name = nullptr;
        switch (first->op) {
            case GGML_OP_GLU:
            case GGML_OP_RMS_NORM:
                name = find_norm(f);
                break;
            case GGML_OP_ROPE_BACK:
                name = find_rope_back(f);
                break;
            default:
                if (ggml_get_train_op(first) == GGML_TRAIN_OP_RMS_NORM_MUL_BACK) {
                    name = find_swiglu_back(f) ? "RMS_NORM_MUL_BACK_SWIGLU_BACK_QUANTIZE" :
                           find_norm_back(f)   ? "RMS_NORM_MUL_BACK_QUANTIZE" : nullptr;
                }
                break;
        }
        if (!name || last - begin >= VK_QVAC_FUSED_NODES_MAX || !memory_is_apart()) {
            return nullptr;
        }
        f.cgraph = cgraph;
        f.begin  = begin;
        f.count  = last - begin + 1;
        for (const access & write : writes) {
            f.results.push_back(write.t);
        }
        return name;
    }

private:
    // A tensor that a dispatch reads or writes.
    struct access {
        const ggml_tensor * t;
        int                 job;
        bool                rows; // whole rows, each read before it is written
    };

    const ggml_backend_vk_context * ctx;
    const ggml_cgraph *             cgraph;
    int                             begin;
    int                             last = -1;
    std::vector<access>             reads, writes;

    const ggml_tensor * at(int k) const { return ggml_vk_qvac_computed_node(cgraph, k); }

    int after(int k) const { return ggml_vk_qvac_skip_views(cgraph, k + 1); }

    bool is_inner(int k) const { return ggml_vk_qvac_is_inner(cgraph, k); }

    // Floats that are read and written in fours.
    bool is_plain(const ggml_tensor * t) const {
        return ggml_vk_qvac_is_plain(t) && ggml_vk_qvac_is_aligned(ctx, t, ggml_vk_tensor_subbuffer(ctx, t, true));
    }

    // Rows of which a kernel keeps one.
    bool are_rows(const ggml_tensor * t) const {
        return is_plain(t) && t->ne[0] % 4 == 0 && ggml_vk_qvac_rows_are_kept(t->ne[0]) && ggml_vk_qvac_rows_fit(ctx->device, t);
    }

    // TQ_QUANTIZE of all that `of` has from `offset` on, as rows of n values.
    static bool is_quantize(const ggml_tensor * q, const ggml_tensor * of, size_t offset, int64_t n, int64_t rows) {
        if (!q || ggml_get_train_op(q) != GGML_TRAIN_OP_TQ_QUANTIZE) {
            return false;
        }
        const ggml_tensor * x = q->src[0];
        return (x == of || (x->view_src == of && x->view_offs == offset)) && (x != of || offset == 0) && ggml_is_contiguous(x) &&
               x->ne[0] == n && ggml_nrows(x) == rows;
    }

    const char * find_norm(vk_qvac_quantize_fusion & f) {
        vk_qvac_norm_job job = {};
        int k = begin;
        const ggml_tensor * glu = at(k)->op == GGML_OP_GLU ? at(k) : nullptr;
        if (glu) {
            if (ggml_get_glu_op(glu) != GGML_GLU_OP_SWIGLU || !glu->src[1] || !are_rows(glu) || !are_rows(glu->src[0]) ||
                !are_rows(glu->src[1])) {
                return nullptr;
            }
            job.x  = glu->src[0];
            job.up = glu->src[1];
            k      = after(k);
        }
        const int           norm_at = k;
        const int           mul_at  = after(k);
        const ggml_tensor * norm    = at(norm_at);
        const ggml_tensor * mul     = at(mul_at);
        if (!norm || !mul || norm->op != GGML_OP_RMS_NORM || mul->op != GGML_OP_MUL || mul->src[0] != norm || !is_inner(norm_at) ||
            (glu && norm->src[0] != glu) || !ggml_vk_qvac_takes_rms_norm(ctx, norm)) {
            return nullptr;
        }
        const ggml_tensor * w = mul->src[1];
        if (ggml_nelements(w) != norm->ne[0] || w->ne[0] != norm->ne[0] || !is_plain(w) || !are_rows(norm->src[0]) || !are_rows(mul)) {
            return nullptr;
        }
        const ggml_tensor * q = at(after(mul_at));
        if (is_quantize(q, mul, 0, mul->ne[0], ggml_nrows(mul))) {
            job.q = q;
        } else if (!glu) {
            return nullptr;
        }
        last    = job.q ? after(mul_at) : mul_at;
        job.x   = glu ? job.x : norm->src[0];
        job.w   = w;
        job.y   = job.q && is_inner(mul_at) ? nullptr : mul;
        job.act = glu && !is_inner(begin) && !is_made_again(glu) ? glu : nullptr;
        memcpy(&job.eps, norm->op_params, sizeof(job.eps));

        read(job.x, true);
        read(job.up, true);
        read(job.w, false);
        write(job.act, true);
        write(job.y, true);
        write(job.q, false);
        f.norms.push_back(job);
        return glu ? job.q ? "SWIGLU_RMS_NORM_MUL_QUANTIZE" : "SWIGLU_RMS_NORM_MUL" : "RMS_NORM_MUL_QUANTIZE";
    }

    // Whether the only node beside the norm that wants silu(gate) * up is one that makes it again.
    bool is_made_again(const ggml_tensor * glu) const {
        if (ggml_node_get_use_count(cgraph, begin) != 2 || (glu->flags & GGML_TENSOR_FLAG_OUTPUT)) {
            return false;
        }
        for (int k = begin + 1; k < cgraph->n_nodes; ++k) {
            const ggml_tensor * node = cgraph->nodes[k];
            if (ggml_get_train_op(node) == GGML_TRAIN_OP_RMS_NORM_MUL_BACK && node->src[1] == glu) {
                vk_qvac_quantize_fusion later;
                return finder(ctx, cgraph, k).find(later) && !later.swiglu_backs.empty();
            }
        }
        return false;
    }

    bool find_norm_back(vk_qvac_quantize_fusion & f) {
        const ggml_tensor * dx = at(begin);
        const ggml_tensor * q  = at(after(begin));
        if (!is_quantize(q, dx, 0, dx->ne[0], dx->ne[1]) || !is_kept_norm_back(dx)) {
            return false;
        }
        last = after(begin);
        read(dx->src[0], true);
        read(dx->src[1], true);
        read(dx->src[2], false);
        read(dx->src[3], true);
        write(dx, true);
        write(q, false);
        f.norm_backs.push_back({ dx, q });
        return true;
    }

    bool find_swiglu_back(vk_qvac_quantize_fusion & f) {
        const int           d_at  = after(begin);
        const int           q0_at = after(d_at);
        const int           q1_at = after(q0_at);
        const ggml_tensor * dx    = at(begin);
        const ggml_tensor * d     = at(d_at);
        if (!d || ggml_get_train_op(d) != GGML_TRAIN_OP_SWIGLU_BACK || d->src[0] != dx || !is_inner(begin) || dx->src[3] ||
            !is_kept_norm_back(dx)) {
            return false;
        }
        const ggml_tensor * act  = dx->src[1];
        const ggml_tensor * gate = d->src[1];
        const ggml_tensor * up   = d->src[2];
        if (act->op != GGML_OP_GLU || ggml_get_glu_op(act) != GGML_GLU_OP_SWIGLU || act->src[0] != gate || act->src[1] != up) {
            return false;
        }
        const int64_t       n = dx->ne[0], rows = dx->ne[1];
        const ggml_tensor * q0 = at(q0_at);
        const ggml_tensor * q1 = at(q1_at);
        if (!is_quantize(q0, d, 0, n, rows) || !is_quantize(q1, d, n * rows * sizeof(float), n, rows) || q0->ne[0] != q1->ne[0] ||
            !are_rows(gate) || !are_rows(up) || !is_plain(d) || (uint64_t) ggml_nelements(d) >= UINT32_MAX) {
            return false;
        }
        last = q1_at;
        read(dx->src[0], true); // but not what the norm read: its memory may be in use again
        read(dx->src[2], false);
        read(gate, true);
        read(up, true);
        write(d, false);
        write(q0, false);
        write(q1, false);
        f.swiglu_backs.push_back({ dx, d, q0, q1 });
        return true;
    }

    bool is_kept_norm_back(const ggml_tensor * dx) const {
        return are_rows(dx) && are_rows(dx->src[0]) && are_rows(dx->src[1]) && is_plain(dx->src[2]) &&
               (!dx->src[3] || are_rows(dx->src[3]));
    }

    const char * find_rope_back(vk_qvac_quantize_fusion & f) {
        std::vector<const ggml_tensor *> ropes;
        int k = begin;
        for (; at(k) && at(k)->op == GGML_OP_ROPE_BACK; k = after(k)) {
            if (!ggml_vk_qvac_takes_rope(ctx, at(k)) || !ggml_vk_qvac_rope_back_is_kept(at(k))) {
                return nullptr;
            }
            ropes.push_back(at(k));
        }
        for (; at(k) && ggml_get_train_op(at(k)) == GGML_TRAIN_OP_TQ_QUANTIZE; k = after(k)) {
            const ggml_tensor * q    = at(k);
            const auto          rope = std::find_if(ropes.begin(), ropes.end(), [&](const ggml_tensor * y) {
                return is_quantize(q, y, 0, y->ne[0] * y->ne[1], y->ne[2]);
            });
            job += 1;
            if (rope != ropes.end()) {
                read((*rope)->src[0], true);
                read((*rope)->src[1], false);
                read((*rope)->src[2], false);
                write(*rope, true);
                f.rope_backs.push_back({ *rope, q });
                ropes.erase(rope);
            } else {
                read(q->src[0], false);
                f.quantizations.push_back(q);
            }
            write(q, false);
            last = k;
        }
        return ropes.empty() && last >= 0 ? "ROPE_BACK_QUANTIZE" : nullptr;
    }

    int job = 0;

    void read(const ggml_tensor * t, bool rows) {
        if (t) {
            reads.push_back({ t, job, rows });
        }
    }

    void write(const ggml_tensor * t, bool rows) {
        if (t) {
            writes.push_back({ t, job, rows });
        }
    }

    // The allocator saw the nodes one after another; here all of them read and write at the same time.
    bool memory_is_apart() const {
        for (size_t i = 0; i < writes.size(); ++i) {
            const access & w = writes[i];
            for (const access & r : reads) {
                if (ggml_vk_tensors_overlap(w.t, r.t, w.job == r.job && w.rows && r.rows)) {
                    return false;
                }
            }
            for (size_t j = 0; j < i; ++j) {
                if (ggml_vk_tensors_overlap(w.t, writes[j].t, false)) {
                    return false;
                }
            }
        }
        return true;
    }
};

} // namespace

bool ggml_vk_qvac_fuse_quantize(
        ggml_backend_vk_context * ctx, const ggml_cgraph * cgraph, int node_idx, const char ** name, bool * elementwise) {
    vk_qvac_quantize_fusion & fusion = ctx->qvac->quantize_fusion;
    fusion = {};
    const char * found = finder(ctx, cgraph, node_idx).find(fusion);
    if (!found) {
        fusion = {};
        return false;
    }
    *name = found;
    ctx->num_additional_fused_ops = fusion.count - 1;
    std::fill_n(elementwise, fusion.count, false);
    elementwise[0] = !fusion.norms.empty(); // a row is read before it is written

    // Upstream waits for whoever still uses the memory of what the nodes read and of the last one's result. The others' is our
    // business, and before upstream lists what these nodes use.
    for (const ggml_tensor * result : fusion.results) {
        if (result != cgraph->nodes[node_idx + fusion.count - 1] &&
            (ggml_vk_qvac_overlaps_one_of(result, ctx->unsynced_nodes_written) ||
             ggml_vk_qvac_overlaps_one_of(result, ctx->unsynced_nodes_read))) {
            vk_context subctx = ggml_vk_get_compute_ctx(ctx);
            ggml_vk_sync_buffers(ctx, subctx);
            ctx->unsynced_nodes_written.clear();
            ctx->unsynced_nodes_read.clear();
        }
    }
    return true;
}

bool ggml_vk_qvac_fusion_is_checked(const ggml_backend_vk_context * ctx) {
    return ctx->qvac->quantize_fusion.cgraph != nullptr;
}

bool ggml_vk_qvac_fused_quantize(ggml_backend_vk_context * ctx, vk_context & subctx, const ggml_cgraph * cgraph, int node_idx) {
    vk_qvac_quantize_fusion & fusion = ctx->qvac->quantize_fusion;
    if (fusion.cgraph != cgraph || fusion.begin != node_idx || fusion.count != ctx->num_additional_fused_ops + 1) {
        return false;
    }
    fusion.cgraph = nullptr;
    for (const ggml_tensor * result : fusion.results) {
        ctx->unsynced_nodes_written.push_back(result);
    }
    for (const auto & job : fusion.norms) {
        ggml_vk_qvac_norm_quantize(ctx, subctx, job);
    }
    for (const auto & job : fusion.norm_backs) {
        ggml_vk_qvac_norm_back_quantize(ctx, subctx, job);
    }
    for (const auto & job : fusion.swiglu_backs) {
        ggml_vk_qvac_swiglu_back_quantize(ctx, subctx, job);
    }
    for (const auto & job : fusion.rope_backs) {
        ggml_vk_qvac_rope_back_quantize(ctx, subctx, job);
    }
    for (const ggml_tensor * q : fusion.quantizations) {
        ggml_vk_qvac_quantize(ctx, subctx, q->src[0], ggml_vk_qvac_limbs_of(q), ggml_vk_tensor_subbuffer(ctx, q, true),
                              get_misalign_bytes(ctx, q));
    }
    return true;
}
