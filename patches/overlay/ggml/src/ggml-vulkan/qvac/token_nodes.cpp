// Which nodes of a generating graph (one token) are one ternary product with what stands around it:
//
//     [RMS_NORM, MUL by the norm]  MUL_MAT, up to 3 of the same input  [MUL by a scale, each]
//     [GET_ROWS of the one row]  [ADD | SWIGLU | RELU, SQR, MUL]
//
// What lies between the ends is not to be written, so nothing else may need it. Nodes that make nothing (views) may stand
// among these.

#include "ops.h"

namespace {

// The pattern above, from the node `begin` on.
class matcher {
public:
    matcher(const ggml_cgraph * cgraph, int begin, vk_qvac_vec_nodes & found) : cgraph(cgraph), begin(begin), found(found), job(found.job) {
        found = {};
    }

    bool match() {
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
        if (!match_glu(k)) {
            match_row(k);
            match_add(k);
        }
        job.tokens = 1;
        for (int i = 0; i < found.n_results(); ++i) {
            found.results[i] = result_at[i] - begin;
        }
        found.count = k - begin;
        return true;
    }

private:
    const ggml_cgraph * cgraph;
    int                 begin;
    vk_qvac_vec_nodes & found;
    vk_qvac_vec_job &   job;
    int                 result_at[VK_QVAC_VEC_MAX_MATRICES] = {}; // nodes

    const ggml_tensor * at(int k) const { return ggml_vk_qvac_computed_node(cgraph, k); }

    int skip_views(int k) const { return ggml_vk_qvac_skip_views(cgraph, k); }

    bool is_inner(int k, int uses) const { return ggml_vk_qvac_is_inner(cgraph, k, uses); }

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

    // Of gate and up, as one node or as RELU, SQR and MUL.
    bool match_glu(int & k) {
        const int           next = skip_views(k);
        const ggml_tensor * node = at(next);
        if (job.n_matrices != 2 || !node || !is_inner(result_at[0], 1) || !is_inner(result_at[1], 1) ||
            job.matrices[0].w->ne[1] != job.matrices[1].w->ne[1]) {
            return false;
        }
        if (node->op == GGML_OP_GLU && ggml_get_glu_op(node) == GGML_GLU_OP_SWIGLU) {
            return take_glu(VK_QVAC_VEC_SWIGLU, node->src[0], node->src[1], next, k);
        }
        const int           second = skip_views(next + 1);
        const int           third  = skip_views(second + 1);
        const ggml_tensor * sqr    = at(second);
        const ggml_tensor * mul    = at(third);
        if (node->op != GGML_OP_UNARY || ggml_get_unary_op(node) != GGML_UNARY_OP_RELU || !sqr || sqr->op != GGML_OP_SQR ||
            sqr->src[0] != node || !mul || mul->op != GGML_OP_MUL || (mul->src[0] != sqr && mul->src[1] != sqr) ||
            !is_inner(next, 1) || !is_inner(second, 1)) {
            return false;
        }
        return take_glu(VK_QVAC_VEC_RELU_SQR, node->src[0], mul->src[0] == sqr ? mul->src[1] : mul->src[0], third, k);
    }

    // `result`: the node that is gate and up's.
    bool take_glu(vk_qvac_vec_glu glu, const ggml_tensor * gate, const ggml_tensor * up, int result, int & k) {
        const bool in_order = gate == job.matrices[0].dst && up == job.matrices[1].dst;
        const bool swapped  = gate == job.matrices[1].dst && up == job.matrices[0].dst;
        if (!(in_order || swapped) || !is_token(at(result))) {
            return false;
        }
        if (swapped) {
            std::swap(job.matrices[0], job.matrices[1]);
        }
        job.glu             = glu;
        job.matrices[0].dst = at(result);
        result_at[0]        = result;
        k                   = result + 1;
        return true;
    }

    // The row that is picked of one row.
    void match_row(int & k) {
        const int           next = skip_views(k);
        const ggml_tensor * node = at(next);
        if (job.n_matrices == 1 && node && ggml_vk_qvac_is_the_row(node) && node->src[0] == job.matrices[0].dst && is_inner(result_at[0], 1)) {
            job.matrices[0].dst = node;
            result_at[0]        = next;
            k                   = next + 1;
        }
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
        found.add           = next - begin;
        k                   = next + 1;
        return true;
    }
};

} // namespace

bool ggml_vk_qvac_is_the_row(const ggml_tensor * node) {
    return node->op == GGML_OP_GET_ROWS && node->type == GGML_TYPE_F32 && node->src[0]->type == GGML_TYPE_F32 &&
           ggml_is_contiguous(node->src[0]) && ggml_nrows(node->src[0]) == 1 && ggml_nrows(node) == 1;
}

bool ggml_vk_qvac_match_vec(const ggml_cgraph * cgraph, int begin, vk_qvac_vec_nodes & found) {
    return matcher(cgraph, begin, found).match();
}
