// What is known of the scales of TQ1_0 and TQ2_0 weights that lie on the device.
//
// A weight is read back and scanned on the host once, when a graph first uses it; the result is kept in its `extra`, which
// ggml-vulkan has no other use for, and forgotten when the host writes to it.

#include "ops.h"

#include <atomic>

namespace {

using qvac::tq_scale;
using qvac::tq_scales;

// The tag of a known weight: never a pointer, and never 0, which says that nothing is known.
constexpr uintptr_t TAG_LIMIT = 1 << 24;

uintptr_t tag_of(tq_scales s) {
    return ((uintptr_t) s.bits << 2) | ((uintptr_t) s.kind + 1);
}

std::optional<tq_scales> known(const ggml_tensor * root) {
    const uintptr_t tag = (uintptr_t) root->extra;
    if (tag == 0 || tag >= TAG_LIMIT) {
        return std::nullopt;
    }
    return tq_scales{ (tq_scale) ((tag & 3) - 1), (uint16_t) (tag >> 2) };
}

// An `extra` of someone else's stays: such a weight is scanned for every graph.
void remember(ggml_tensor * root, tq_scales s) {
    if ((uintptr_t) root->extra < TAG_LIMIT) {
        root->extra = (void *) tag_of(s);
    }
}

ggml_tensor * root_of(ggml_tensor * t) {
    return t->view_src ? t->view_src : t;
}

bool makes_nothing(const ggml_tensor * node) {
    return node->op == GGML_OP_NONE || node->op == GGML_OP_VIEW || node->op == GGML_OP_RESHAPE ||
           node->op == GGML_OP_PERMUTE || node->op == GGML_OP_TRANSPOSE;
}

tq_scales read_and_scan(const ggml_tensor * w) {
    constexpr size_t part = 8 << 20; // bytes read at a time

    const size_t         row_size = ggml_row_size(w->type, w->ne[0]);
    const int64_t        n_rows   = ggml_nrows(w);
    const int64_t        step     = std::max<int64_t>(1, part / row_size);
    std::vector<uint8_t> bytes(std::min(step, n_rows) * row_size);
    tq_scales            all = { tq_scale::none, 0 };
    for (int64_t r = 0; r < n_rows && all.kind != tq_scale::mixed; r += step) {
        const int64_t n = std::min(step, n_rows - r);
        ggml_backend_tensor_get(w, bytes.data(), r * row_size, n * row_size);
        all = qvac::tq_merge(all, qvac::tq_scan_rows(w->type, bytes.data(), row_size, w->ne[0] / qvac::tq_block, n));
    }
    return all;
}

} // namespace

void ggml_vk_qvac_ternary_scan(ggml_backend_vk_context * ctx, const ggml_cgraph * cgraph) {
    auto & views = ctx->qvac->ternary.views;
    views.clear();

    // A weight that the graph itself writes cannot be scanned before; the formula for mixed scales is right for any.
    for (int i = 0; i < cgraph->n_nodes; ++i) {
        ggml_tensor * node = cgraph->nodes[i];
        if (qvac::is_ternary(root_of(node)->type) && !makes_nothing(node)) {
            remember(root_of(node), { tq_scale::mixed, 0 });
        }
    }

    bool waited = false;
    const auto scan = [&](const ggml_tensor * w) {
        if (!waited) {
            // Uploads that are on their way.
            ggml_vk_synchronize(ctx);
            waited = true;
        }
        return read_and_scan(w);
    };
    for (int i = 0; i < cgraph->n_nodes; ++i) {
        ggml_tensor * w = cgraph->nodes[i]->src[0];
        if (!w || !qvac::is_ternary(w->type) || views.count(w) || !ggml_vk_qvac_ternary_uses_scales(cgraph->nodes[i])) {
            continue;
        }
        ggml_tensor * root   = root_of(w);
        auto          scales = known(root);
        if (!scales) {
            scales = scan(root);
            remember(root, *scales);
        }
        // A part of a weight may have one scale though the whole has several.
        const bool part = ggml_nbytes(w) != ggml_nbytes(root);
        if (!known(root)) {
            views[w] = part ? scan(w) : *scales;
        } else if (part && scales->kind == tq_scale::mixed) {
            views[w] = scan(w);
        }
    }
}

static std::atomic<uint64_t> writes;

void ggml_vk_qvac_ternary_written(ggml_tensor * tensor) {
    ggml_tensor * root = root_of(tensor);
    if (qvac::is_ternary(root->type) && (uintptr_t) root->extra < TAG_LIMIT) {
        root->extra = nullptr;
        ++writes;
    }
}

vk_qvac_known_graph::vk_qvac_known_graph(const ggml_cgraph * cgraph) : uid(cgraph->uid), writes(::writes) {}

tq_scales ggml_vk_qvac_ternary_scales(const ggml_backend_vk_context * ctx, const ggml_tensor * w) {
    const auto & views = ctx->qvac->ternary.views;
    if (const auto it = views.find(w); it != views.end()) {
        return it->second;
    }
    const auto scales = known(w->view_src ? w->view_src : w);
    GGML_ASSERT(scales && "the graph's weights were scanned when it began");
    return *scales;
}
