// Nodes of a generating graph that are recorded as one dispatch: a ternary product with what stands around it
// (token_nodes.cpp).
//
// A dispatch and its barrier cost more than a small product takes, so a layer of BitNet or Llama becomes four of these: the
// products of q, k and v with their norm; the output's with its norm and residual; gate and up with their norm and the
// activation; the last one with its norm and residual. Where a whole run of nodes can be one dispatch, program.cpp has it.

#include "ops.h"

#include "ggml-train.h"

namespace {

// Results are written while the input is still read; what is added is read by who writes there.
bool memory_is_apart(const vk_qvac_vec_nodes & nodes) {
    const vk_qvac_vec_job & job = nodes.job;
    for (int i = 0; i < nodes.n_results(); ++i) {
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

bool wanted() {
    static const bool on = [] {
        const char * env = getenv("QVAC_VK_VEC");
        return !env || !strstr(env, "fuse=0");
    }();
    return on;
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
    for (int k = begin + 2; k < std::min(begin + VK_QVAC_FUSED_NODES_MAX, cgraph->n_nodes); ++k) {
        const ggml_tensor * node = cgraph->nodes[k];
        if (ggml_op_is_empty(node->op)) {
            continue;
        }
        const bool product = node->op == GGML_OP_MUL_MAT && node->src[1] == mul && qvac::is_ternary(node->src[0]->type);
        const bool after   = node->op == GGML_OP_MUL || node->op == GGML_OP_ADD || node->op == GGML_OP_GLU ||
                           node->op == GGML_OP_UNARY || node->op == GGML_OP_SQR;
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
    vk_qvac_vec_nodes nodes;
    if (!ggml_vk_qvac_match_vec(cgraph, node_idx, nodes) || nodes.count > VK_QVAC_FUSED_NODES_MAX || !memory_is_apart(nodes) ||
        !ggml_vk_qvac_plan_vec(ctx, nodes.job, fusion.plan)) {
        return false;
    }
    fusion.cgraph = cgraph;
    fusion.begin  = node_idx;
    fusion.count  = nodes.count;
    fusion.normed = nodes.job.source == VK_QVAC_VEC_NORMED ? nodes.job.x : nullptr;
    fusion.further_results.clear();
    static const char * const names[VK_QVAC_VEC_GLU_COUNT] = { "TQ_MUL_MAT_VEC", "TQ_MUL_MAT_VEC_SWIGLU", "TQ_MUL_MAT_VEC_RELU_SQR_GLU" };
    *name = nodes.job.add ? "TQ_MUL_MAT_VEC_ADD" : names[nodes.job.glu];
    ctx->num_additional_fused_ops = fusion.count - 1;
    for (int i = 0; i < fusion.count; ++i) {
        elementwise[i] = i == nodes.add;
    }
    // Upstream knows of the last node's result and of one more; of further ones ggml_vk_qvac_fused takes care.
    bool told = false;
    for (int i = 0; i < nodes.n_results(); ++i) {
        const int place = nodes.results[i];
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
        if (ggml_vk_qvac_overlaps_one_of(result, ctx->unsynced_nodes_written) ||
            ggml_vk_qvac_overlaps_one_of(result, ctx->unsynced_nodes_read)) {
            ggml_vk_qvac_wait_for_all(ctx, subctx, cgraph, node_idx);
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
