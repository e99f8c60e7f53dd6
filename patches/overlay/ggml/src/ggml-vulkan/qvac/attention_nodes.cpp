// Which nodes of a generating graph (one token) are its attention, as libllama has it with flash attention on:
//
//     ROPE of q, ROPE of k, SET_ROWS of k and of v into the cache, FLASH_ATTN_EXT
//
// in any order that ends with the last, with views between them.

#include "ops.h"

namespace {

// What a view is a view of, if all of it in the same order and nobody else wants it.
const ggml_tensor * behind_views(const ggml_cgraph * cgraph, const ggml_tensor * t) {
    while (t && ggml_op_is_empty(t->op) && t->op != GGML_OP_NONE) {
        if (ggml_vk_qvac_uses(cgraph, t) != 1 || ggml_nelements(t) != ggml_nelements(t->src[0])) {
            return nullptr;
        }
        t = t->src[0];
    }
    return t;
}

// The cache that a tensor is a view of.
const ggml_tensor * whole(const ggml_tensor * t) {
    return t->view_src ? t->view_src : t;
}

class matcher {
public:
    matcher(const ggml_cgraph * cgraph, vk_qvac_attention_nodes & found) : cgraph(cgraph), found(found) { found = {}; }

    bool match(int begin) {
        const ggml_tensor * ropes[2] = {};
        const ggml_tensor * sets[2]  = {};
        int n_ropes = 0;
        int n_sets  = 0;
        for (int k = ggml_vk_qvac_skip_views(cgraph, begin);; k = ggml_vk_qvac_skip_views(cgraph, k + 1)) {
            const ggml_tensor * node = ggml_vk_qvac_computed_node(cgraph, k);
            if (!node) {
                return false;
            }
            if (node->op == GGML_OP_FLASH_ATTN_EXT) {
                found.dst   = node;
                found.count = k + 1 - begin;
                break;
            }
            if (node->op == GGML_OP_ROPE && n_ropes < 2) {
                ropes[n_ropes++] = node;
            } else if (node->op == GGML_OP_SET_ROWS && n_sets < 2) {
                sets[n_sets++] = node;
            } else if (!ggml_vk_qvac_is_the_row(node)) {
                return false;
            }
        }
        return n_ropes == 2 && n_sets == 2 && sort(ropes, sets) && is_one_token() && is_cache(found.set_k, 1) &&
               is_cache(found.set_v, 2) && is_plain_attention();
    }

private:
    const ggml_cgraph *       cgraph;
    vk_qvac_attention_nodes & found;

    // Which is q's and which is k's.
    bool sort(const ggml_tensor ** ropes, const ggml_tensor ** sets) {
        const ggml_tensor * q = behind_views(cgraph, found.dst->src[0]);
        if (q != ropes[0] && q != ropes[1]) {
            return false;
        }
        const ggml_tensor * k = q == ropes[0] ? ropes[1] : ropes[0];
        const bool first_is_k = behind_views(cgraph, sets[0]->src[0]) == k;
        found.set_k = first_is_k ? sets[0] : sets[1];
        found.set_v = first_is_k ? sets[1] : sets[0];
        if (behind_views(cgraph, found.set_k->src[0]) != k || !is_rotation(q) || !is_rotation(k) || q->src[1] != k->src[1] ||
            q->src[2] != k->src[2] || memcmp(q->op_params, k->op_params, sizeof(q->op_params)) != 0 ||
            ggml_vk_qvac_uses(cgraph, q) != 1 || ggml_vk_qvac_uses(cgraph, k) != 1) {
            return false;
        }
        found.rotation   = q;
        found.rotation_k = k;
        return true;
    }

    // Of one token, of pairs of neighbours or NEOX, without YaRN.
    static bool is_rotation(const ggml_tensor * rope) {
        const int32_t * params = rope->op_params;
        float           ext_factor;
        memcpy(&ext_factor, params + 7, sizeof(ext_factor));
        const bool mode = params[2] == GGML_ROPE_TYPE_NORMAL || params[2] == GGML_ROPE_TYPE_NEOX;
        const ggml_tensor * factors = rope->src[2];
        return mode && ext_factor == 0.0f && params[1] % 2 == 0 && params[1] <= rope->ne[0] && params[15] == 0 &&
               rope->type == GGML_TYPE_F32 && rope->src[0]->type == GGML_TYPE_F32 && ggml_is_contiguous(rope->src[0]) &&
               rope->ne[2] == 1 && rope->ne[3] == 1 && rope->src[1]->type == GGML_TYPE_I32 && rope->src[1]->buffer &&
               (!factors || (factors->type == GGML_TYPE_F32 && ggml_is_contiguous(factors) && factors->buffer));
    }

    bool is_one_token() const {
        const ggml_tensor * q    = found.dst->src[0];
        const int64_t       head = q->ne[0];
        const int64_t       keys = found.dst->src[1]->ne[2]; // key heads
        return q->ne[1] == 1 && q->ne[3] == 1 && head % 8 == 0 && head <= VK_QVAC_PROGRAM_MAX_HEAD && q->ne[2] <= VK_QVAC_PROGRAM_MAX_HEADS && keys > 0 &&
               q->ne[2] % keys == 0 && found.rotation->ne[0] == head && is_floats(found.rotation, head * q->ne[2]) &&
               is_floats(found.rotation_k, head * keys) && is_floats(found.set_v->src[0], head * keys);
    }

    static bool is_floats(const ggml_tensor * t, int64_t n) {
        return t->type == GGML_TYPE_F32 && ggml_is_contiguous(t) && ggml_nelements(t) == n;
    }

    // Whether what SET_ROWS writes is a row of what FLASH_ATTN_EXT reads: of f16, heads side by side.
    bool is_cache(const ggml_tensor * set, int src) const {
        const ggml_tensor * cache = found.dst->src[src];
        const ggml_tensor * index = set->src[1];
        return cache->type == GGML_TYPE_F16 && cache->ne[0] == found.dst->src[0]->ne[0] && cache->ne[3] == 1 &&
               cache->nb[0] == sizeof(ggml_fp16_t) && cache->nb[2] == cache->ne[0] * sizeof(ggml_fp16_t) &&
               cache->nb[1] % 16 == 0 && whole(set) == whole(cache) && set->data == cache->data && set->nb[1] == cache->nb[1] &&
               set->ne[0] == cache->ne[0] * cache->ne[2] && index->type == GGML_TYPE_I64 && ggml_nelements(index) == 1 &&
               index->buffer && ggml_vk_qvac_uses(cgraph, set) == 0;
    }

    bool is_plain_attention() const {
        const ggml_tensor * k    = found.dst->src[1];
        const ggml_tensor * mask = found.dst->src[3];
        float max_bias;
        float softcap;
        memcpy(&max_bias, (const float *) found.dst->op_params + 1, sizeof(float));
        memcpy(&softcap, (const float *) found.dst->op_params + 2, sizeof(float));
        return max_bias == 0.0f && softcap == 0.0f && !found.dst->src[4] && mask && mask->type == GGML_TYPE_F16 && mask->buffer &&
               mask->ne[0] == k->ne[1] && mask->nb[0] == sizeof(ggml_fp16_t) && k->ne[1] <= VK_QVAC_PROGRAM_MAX_KEYS &&
               k->ne[1] == found.dst->src[2]->ne[1] && k->ne[2] == found.dst->src[2]->ne[2] &&
               found.dst->type == GGML_TYPE_F32 && ggml_is_contiguous(found.dst);
    }
};

} // namespace

bool ggml_vk_qvac_match_attention(const ggml_cgraph * cgraph, int begin, vk_qvac_attention_nodes & found) {
    return matcher(cgraph, found).match(begin);
}
