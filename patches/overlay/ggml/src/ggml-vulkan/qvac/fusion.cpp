// Which nodes of a generating graph (one token) are recorded as one dispatch, with a ternary product in the middle:
//
//     [RMS_NORM, MUL by the norm]  MUL_MAT, up to 3 of the same input  [MUL by a scale, each]  [ADD | SWIGLU]
//
// A dispatch and its barrier cost more than a small product takes, so a layer of BitNet or Llama becomes four of these: the
// products of q, k and v with their norm; the output's with its norm and residual; gate and up with their norm and the
// activation; the last one with its norm and residual. What lies between the ends is never written, so nothing else may
// need it. Nodes that make nothing (views) may stand among these.

#include "ops.h"

#include "ggml-train.h"

namespace {

// The array that ggml_vk_qvac_fuse sets the first values of.
constexpr int MAX_NODES = 13;

// The pattern above, from the node `begin` on.
class matcher {
public:
    matcher(const ggml_backend_vk_context * ctx, const ggml_cgraph * cgraph, int begin) : ctx(ctx), cgraph(cgraph), begin(begin) {}

    bool match(vk_qvac_fusion & f, const char ** name) {
        int k = begin;
        const ggml_tensor * input = match_norm(k);
        if (!input) {
            const ggml_tensor * first = at(begin);
            if (!is_product(first)) {
                return false;
            }
            input      = first->src[1];
            job.source = VK_QVAC_VEC_FLOATS;
            job.x      = input;
        }
        if (!match_products(k, input)) {
            return false;
        }
        match_scales(k);
        *name = "TQ_MUL_MAT_VEC";
        if (match_glu(k)) {
            *name = "TQ_MUL_MAT_VEC_SWIGLU";
        } else if (match_add(k)) {
            *name = "TQ_MUL_MAT_VEC_ADD";
        }
        job.tokens = 1;
        if (k - begin > MAX_NODES || !memory_is_apart() || !ggml_vk_qvac_plan_vec(ctx, job, f.plan)) {
            return false;
        }
        f.cgraph = cgraph;
        f.begin  = begin;
        f.count  = k - begin;
        f.normed = job.source == VK_QVAC_VEC_NORMED ? job.x : nullptr;
        f.further_results.clear();
        return true;
    }

    int add_node() const { return add_at; }

    // Nodes that write: their place behind the first.
    std::vector<int> results() const {
        std::vector<int> places;
        for (int i = 0; i < (job.glu ? 1 : job.n_matrices); ++i) {
            places.push_back(result_at[i] - begin);
        }
        return places;
    }

private:
    const ggml_backend_vk_context * ctx;
    const ggml_cgraph *             cgraph;
    int                             begin;
    vk_qvac_vec_job                 job = {};
    int                             result_at[VK_QVAC_VEC_MAX_MATRICES] = {}; // nodes
    int                             add_at = -1;

    // The node, if it is to be computed.
    const ggml_tensor * at(int k) const {
        if (k >= cgraph->n_nodes) {
            return nullptr;
        }
        const ggml_tensor * node = cgraph->nodes[k];
        return node->buffer && !ggml_is_empty(node) && (node->flags & GGML_TENSOR_FLAG_COMPUTE) ? node : nullptr;
    }

    // The next node from k on that makes something.
    int skip_views(int k) const {
        while (k < cgraph->n_nodes && (cgraph->nodes[k]->op == GGML_OP_NONE || cgraph->nodes[k]->op == GGML_OP_VIEW ||
                                       cgraph->nodes[k]->op == GGML_OP_RESHAPE || cgraph->nodes[k]->op == GGML_OP_PERMUTE ||
                                       cgraph->nodes[k]->op == GGML_OP_TRANSPOSE)) {
            ++k;
        }
        return k;
    }

    // Whether nobody but `uses` nodes wants the node's result.
    bool is_inner(int k, int uses) const {
        return ggml_node_get_use_count(cgraph, k) == uses && (cgraph->nodes[k]->flags & GGML_TENSOR_FLAG_OUTPUT) == 0;
    }

    static bool is_token(const ggml_tensor * t) {
        return t->type == GGML_TYPE_F32 && ggml_is_contiguous(t) && ggml_nrows(t) == 1;
    }

    static bool is_constant(const ggml_tensor * t, int64_t n) {
        return t->type == GGML_TYPE_F32 && t->op == GGML_OP_NONE && ggml_is_contiguous(t) && ggml_nelements(t) == n;
    }

    static bool is_product(const ggml_tensor * node) {
        return node && ggml_vk_qvac_ternary_is_mul_mat(node) && is_token(node) && is_token(node->src[1]);
    }

    // RMS_NORM and MUL; moves k behind them and returns what they make.
    const ggml_tensor * match_norm(int & k) {
        const ggml_tensor * norm = at(begin);
        const ggml_tensor * mul  = at(begin + 1);
        if (!norm || !mul || norm->op != GGML_OP_RMS_NORM || mul->op != GGML_OP_MUL || !is_token(norm) ||
            !is_token(norm->src[0]) || !is_token(mul) || !is_inner(begin, 1)) {
            return nullptr;
        }
        const ggml_tensor * weight = mul->src[0] == norm ? mul->src[1] : mul->src[0];
        if ((mul->src[0] != norm && mul->src[1] != norm) || !is_constant(weight, norm->ne[0])) {
            return nullptr;
        }
        job.source = VK_QVAC_VEC_NORMED;
        job.x      = norm->src[0];
        job.norm   = weight;
        memcpy(&job.eps, norm->op_params, sizeof(job.eps));
        k = begin + 2;
        return mul;
    }

    bool match_products(int & k, const ggml_tensor * input) {
        while (job.n_matrices < VK_QVAC_VEC_MAX_MATRICES) {
            const int           next = skip_views(k);
            const ggml_tensor * node = at(next);
            if (!is_product(node) || node->src[1] != input) {
                break;
            }
            if (job.n_matrices > 0 && !ggml_vk_qvac_vec_can_stack(job.matrices[0].w, node->src[0])) {
                break;
            }
            result_at[job.n_matrices]      = next;
            job.matrices[job.n_matrices++] = { node->src[0], nullptr, node };
            k = next + 1;
        }
        return job.n_matrices > 0 && (job.source == VK_QVAC_VEC_FLOATS || is_inner(begin + 1, job.n_matrices));
    }

    void match_scales(int & k) {
        for (int n = 0; n < job.n_matrices; ++n) {
            const int           next = skip_views(k);
            const ggml_tensor * node = at(next);
            int                 i    = 0;
            while (i < job.n_matrices && !(node && node->op == GGML_OP_MUL && node->src[0] == job.matrices[i].dst)) {
                ++i;
            }
            if (i == job.n_matrices || !is_constant(node->src[1], 1) || !is_token(node) || !is_inner(result_at[i], 1)) {
                return;
            }
            job.matrices[i].scale = node->src[1];
            job.matrices[i].dst   = node;
            result_at[i]          = next;
            k                     = next + 1;
        }
    }

    bool match_glu(int & k) {
        const int           next = skip_views(k);
        const ggml_tensor * node = at(next);
        if (job.n_matrices != 2 || !node || node->op != GGML_OP_GLU || ggml_get_glu_op(node) != GGML_GLU_OP_SWIGLU ||
            !node->src[1] || !is_token(node) || !is_inner(result_at[0], 1) || !is_inner(result_at[1], 1)) {
            return false;
        }
        const bool in_order = node->src[0] == job.matrices[0].dst && node->src[1] == job.matrices[1].dst;
        const bool swapped  = node->src[0] == job.matrices[1].dst && node->src[1] == job.matrices[0].dst;
        if (!(in_order || swapped) || job.matrices[0].w->ne[1] != job.matrices[1].w->ne[1]) {
            return false;
        }
        if (swapped) {
            std::swap(job.matrices[0], job.matrices[1]);
        }
        job.glu             = true;
        job.matrices[0].dst = node;
        result_at[0]        = next;
        k                   = next + 1;
        return true;
    }

    bool match_add(int & k) {
        const int           next = skip_views(k);
        const ggml_tensor * node = at(next);
        const ggml_tensor * y    = job.matrices[0].dst;
        if (job.n_matrices != 1 || !node || node->op != GGML_OP_ADD || !is_token(node) || !is_inner(result_at[0], 1) ||
            (node->src[0] != y && node->src[1] != y)) {
            return false;
        }
        const ggml_tensor * other = node->src[0] == y ? node->src[1] : node->src[0];
        if (other == y || !is_token(other) || !ggml_are_same_shape(other, node) || !other->buffer) {
            return false;
        }
        job.add             = other;
        job.matrices[0].dst = node;
        result_at[0]        = next;
        add_at              = next;
        k                   = next + 1;
        return true;
    }

    // Results are written while the input is still read; what is added is read by who writes there.
    bool memory_is_apart() const {
        const int n = job.glu ? 1 : job.n_matrices;
        for (int i = 0; i < n; ++i) {
            const ggml_tensor * dst = job.matrices[i].dst;
            if (ggml_vk_tensors_overlap(job.x, dst, false) || (job.add && ggml_vk_tensors_overlap(job.add, dst, true))) {
                return false;
            }
            for (int j = 0; j < i; ++j) {
                if (ggml_vk_tensors_overlap(job.matrices[j].dst, dst, false)) {
                    return false;
                }
            }
        }
        return true;
    }
};

bool wanted() {
    static const bool on = [] {
        const char * env = getenv("QVAC_VK_VEC");
        return !env || !strstr(env, "fuse=0");
    }();
    return on;
}

bool overlaps_one_of(const ggml_tensor * t, const std::vector<const ggml_tensor *> & others) {
    for (const ggml_tensor * other : others) {
        if (other->buffer && ggml_vk_tensors_overlap(t, other, false)) {
            return true;
        }
    }
    return false;
}

bool is_used_by(const ggml_cgraph * cgraph, int first, int last, const ggml_tensor * node) {
    for (int i = first; i <= last; ++i) {
        if (node->src[0] == cgraph->nodes[i] || node->src[1] == cgraph->nodes[i]) {
            return true;
        }
    }
    return false;
}

// The last node of a match that begins with a norm at `begin`, as far as can be told before there is memory; or -1.
int last_of_normed(const ggml_cgraph * cgraph, int begin) {
    const ggml_tensor * norm = cgraph->nodes[begin];
    if (norm->op != GGML_OP_RMS_NORM || ggml_nrows(norm) != 1 || begin + 1 >= cgraph->n_nodes) {
        return -1;
    }
    const ggml_tensor * mul = cgraph->nodes[begin + 1];
    if (mul->op != GGML_OP_MUL || (mul->src[0] != norm && mul->src[1] != norm)) {
        return -1;
    }
    int first = -1;
    int last  = -1;
    for (int k = begin + 2; k < std::min(begin + MAX_NODES, cgraph->n_nodes); ++k) {
        const ggml_tensor * node = cgraph->nodes[k];
        if (ggml_op_is_empty(node->op)) {
            continue;
        }
        const bool product = node->op == GGML_OP_MUL_MAT && node->src[1] == mul && qvac::is_ternary(node->src[0]->type);
        const bool after   = node->op == GGML_OP_MUL || node->op == GGML_OP_ADD || node->op == GGML_OP_GLU;
        if (!product && !(after && first >= 0 && is_used_by(cgraph, first, last, node))) {
            break;
        }
        first = first < 0 ? k : first;
        last  = k;
    }
    return last;
}

} // namespace

void ggml_vk_qvac_graph_optimized(const ggml_cgraph * cgraph, ggml_backend_graph_optimize_params * params) {
    for (int i = 0; wanted() && i < cgraph->n_nodes; ++i) {
        const int last = last_of_normed(cgraph, i);
        if (last >= 0) {
            params->add_alloc_dep(params->user_data, cgraph->nodes[i]->src[0], cgraph->nodes[last]);
        }
    }
}

bool ggml_vk_qvac_fuse_generation(
        ggml_backend_vk_context * ctx, const ggml_cgraph * cgraph, int node_idx, const char ** name, bool * elementwise) {
    vk_qvac_fusion & fusion = ctx->qvac->fusion;
    fusion.cgraph = nullptr;
    const ggml_op op = cgraph->nodes[node_idx]->op;
    if (!wanted() || (op != GGML_OP_RMS_NORM && op != GGML_OP_MUL_MAT)) {
        return false;
    }
    matcher m(ctx, cgraph, node_idx);
    if (!m.match(fusion, name)) {
        return false;
    }
    ctx->num_additional_fused_ops = fusion.count - 1;
    for (int i = 0; i < fusion.count; ++i) {
        elementwise[i] = node_idx + i == m.add_node();
    }
    // Upstream knows of the last node's result and of one more; of further ones ggml_vk_qvac_fused takes care.
    bool told = false;
    for (const int place : m.results()) {
        if (place == fusion.count - 1) {
            continue;
        }
        if (!told) {
            ctx->fused_ops_write_mask |= 1 << place;
            told = true;
        } else {
            fusion.further_results.push_back(cgraph->nodes[node_idx + place]);
        }
    }
    return true;
}

bool ggml_vk_qvac_fused(ggml_backend_vk_context * ctx, vk_context & subctx, const ggml_cgraph * cgraph, int node_idx) {
    vk_qvac_fusion & fusion = ctx->qvac->fusion;
    if (fusion.cgraph != cgraph || fusion.begin != node_idx || fusion.count != ctx->num_additional_fused_ops + 1) {
        return false;
    }
    fusion.cgraph = nullptr;

    // What upstream's ggml_vk_build_graph did for the other nodes: wait where memory is still in use, and say what is.
    for (const ggml_tensor * result : fusion.further_results) {
        if (overlaps_one_of(result, ctx->unsynced_nodes_written) || overlaps_one_of(result, ctx->unsynced_nodes_read)) {
            ctx->unsynced_nodes_written.clear();
            ctx->unsynced_nodes_read.clear();
            ggml_vk_sync_buffers(ctx, subctx);
            for (int i = 0; i < fusion.count; ++i) {
                const ggml_tensor * node = cgraph->nodes[node_idx + i];
                if (ctx->fused_ops_write_mask & (1 << i)) {
                    ctx->unsynced_nodes_written.push_back(node);
                }
                for (const ggml_tensor * src : node->src) {
                    if (src) {
                        ctx->unsynced_nodes_read.push_back(src);
                    }
                }
            }
        }
    }
    for (const ggml_tensor * result : fusion.further_results) {
        ctx->unsynced_nodes_written.push_back(result);
    }
    // Upstream's ADD may have left partial sums for this norm, which it does not need.
    if (fusion.normed && ctx->do_add_rms_partials_offset_calculation) {
        ctx->prealloc_size_add_rms_partials_offset += ggml_vk_rms_partials_size(ctx, fusion.normed);
        ctx->do_add_rms_partials                    = false;
        ctx->do_add_rms_partials_offset_calculation = false;
    }
    ggml_vk_qvac_vec(ctx, subctx, fusion.plan);
    return true;
}
