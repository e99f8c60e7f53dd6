// Finds a run of nodes that one dispatch can carry out, and writes it down as a program.
//
// The results of nodes lie in scratch memory of the program's own, for graph memory is shared by nodes that are not at
// work at the same time in the graph's order. What a node outside the run wants lies in its place in the graph.

#include "ops.h"

#include "ggml-train.h"
#include "qvac/exact-ops.h"

namespace {

constexpr size_t ALIGNMENT = 256;

// Bytes of a share: a head's sum of values, the sum of their weights, the largest score.
constexpr size_t SHARE = (VK_QVAC_PROGRAM_MAX_HEAD + 2) * sizeof(float);

// In exact arithmetic each so many keys have one (docs/exactness.md).
constexpr size_t CHUNK = 32;

size_t shares_of_head(size_t keys) {
    return ggml_is_exact() ? (keys + CHUNK - 1) / CHUNK : (size_t) VK_QVAC_PROGRAM_MAX_SHARES;
}

uint64_t address(const ggml_backend_vk_context * ctx, const ggml_tensor * t) {
    const vk_subbuffer b = ggml_vk_tensor_subbuffer(ctx, t, true);
    return b.buffer->bda_addr + b.offset + get_misalign_bytes(ctx, t);
}

// By what positions turn. False where exact arithmetic has no such numbers.
bool put_rotation(const ggml_tensor * rope, vk_qvac_program_attention & a) {
    const float * params = (const float *) rope->op_params;
    if (ggml_is_exact()) {
        ggml_exact_rope exact = {};
        const bool ok = ggml_exact_rope_of(rope, &exact);
        memcpy(a.theta, exact.theta_scale, sizeof(a.theta));
        memcpy(a.freq, exact.freq_scale, sizeof(a.freq));
        a.rotation_factor = exact.magnitude;
        return ok;
    }
    const float scales[] = { powf(params[5], -2.0f / rope->op_params[1]), params[6] }; // of the base, and of frequencies
    memcpy(a.theta, scales, sizeof(a.theta));
    a.rotation_factor = params[8];
    return true;
}

class builder {
public:
    builder(ggml_backend_vk_context * ctx, const ggml_cgraph * cgraph, int begin) :
        ctx(ctx), cgraph(cgraph), begin(begin) {}

    std::vector<vk_qvac_program_instruction> code;
    int                                      type = 0; // TQ2_0

    // The number of nodes; 0 where there is no run. `end` is where it ended in any case.
    int build(int & end) {
        end = begin;
        for (int k = ggml_vk_qvac_skip_views(cgraph, begin);; k = ggml_vk_qvac_skip_views(cgraph, k)) {
            const ggml_tensor * node = ggml_vk_qvac_computed_node(cgraph, k);
            if (!node) {
                break;
            }
            if (ggml_vk_qvac_is_the_row(node) && !code.empty()) {
                rows.push_back({ node, k, 0 });
                ++k;
                continue;
            }
            const int count = node->op == GGML_OP_RMS_NORM || node->op == GGML_OP_MUL_MAT ? add_product(k) :
                              node->op == GGML_OP_ROPE || node->op == GGML_OP_SET_ROWS    ? add_attention(k) : 0;
            if (count == 0) {
                break;
            }
            k += count;
            end = k;
            free_what_is_read();
        }
        return code.size() > 1 && place(end) ? end - begin : 0;
    }

private:
    // The result of an instruction.
    struct value {
        const ggml_tensor * tensor;
        int                 uses; // that were met
        int                 slot;
        size_t              instruction;
        bool                is_over; // and its slot another's
    };

    struct slot {
        size_t offset, size;
        bool   is_free;
    };

    // A row picked of one: it is never made, and read where that one is.
    struct row {
        const ggml_tensor * tensor;
        int                 node;
        int                 uses;
    };

    // An address to fill in: of a value, at this byte of an instruction.
    struct reference {
        size_t instruction, at;
        size_t value;
    };

    // What an instruction reads of the graph's memory.
    struct input {
        size_t              instruction;
        const ggml_tensor * tensor;
        bool                elementwise;
    };

    ggml_backend_vk_context * ctx;
    const ggml_cgraph *       cgraph;
    int                       begin;
    std::vector<value>        values;
    std::vector<slot>         slots;
    std::vector<row>          rows;
    std::vector<reference>    references;
    std::vector<input>        inputs;
    size_t                    scratch  = 0;
    size_t                    n_shares = 0; // of heads' attention, the same memory for each instruction

    size_t current() const { return code.size() - 1; }

    void put(size_t at, uint64_t address) {
        memcpy((char *) &code.back() + at, &address, sizeof(address));
    }

    // Memory of the graph's, such as a weight.
    void read_outside(size_t at, const ggml_tensor * t, bool elementwise = false) {
        put(at, address(ctx, t));
        inputs.push_back({ current(), t, elementwise });
    }

    // What nodes read `times` times: a value, all of it, or memory of the graph's.
    bool read(size_t at, const ggml_tensor * t, int times, bool elementwise = false) {
        bool is_counted = false; // for another reader of the same row
        bool is_shared  = false; // a view with other readers
        while (true) {
            const auto r = std::find_if(rows.rbegin(), rows.rend(), [&](const row & r) { return r.tensor == t; });
            if (r != rows.rend()) {
                is_counted = is_counted || r->uses > 0;
                r->uses += times;
            } else if (t->op != GGML_OP_NONE && ggml_op_is_empty(t->op) && ggml_nelements(t) == ggml_nelements(t->src[0])) {
                is_shared = is_shared || ggml_vk_qvac_uses(cgraph, t) != times;
            } else {
                break;
            }
            times = 1;
            t     = t->src[0];
        }
        const auto v = std::find_if(values.rbegin(), values.rend(), [&](const value & v) { return v.tensor == t; });
        if (v == values.rend()) {
            if (t->buffer && address(ctx, t) % 16 == 0) {
                read_outside(at, t, elementwise);
                return true;
            }
            return false;
        }
        v->uses += is_counted ? 0 : times;
        references.push_back({ current(), at, (size_t) (values.rend() - v - 1) });
        return !is_shared;
    }

    void write(size_t at, const ggml_tensor * t) {
        const size_t size = GGML_PAD(ggml_nbytes(t), ALIGNMENT);
        int i = 0;
        while (i < (int) slots.size() && !(slots[i].is_free && slots[i].size == size)) {
            ++i;
        }
        if (i == (int) slots.size()) {
            slots.push_back({ scratch, size, false });
            scratch += size;
        }
        slots[i].is_free = false;
        references.push_back({ current(), at, values.size() });
        values.push_back({ t, 0, i, current(), false });
    }

    bool is_wanted_outside(const value & v) const {
        return v.uses == 0 || v.uses != ggml_vk_qvac_uses(cgraph, v.tensor) || (v.tensor->flags & GGML_TENSOR_FLAG_OUTPUT);
    }

    void free_what_is_read() {
        const size_t n = std::min(values.size(), size_t(16)); // what lives longer stays
        for (size_t i = values.size() - n; i < values.size(); ++i) {
            if (!values[i].is_over && !is_wanted_outside(values[i])) {
                values[i].is_over             = true;
                slots[values[i].slot].is_free = true;
            }
        }
    }

    int add_product(int k) {
        vk_qvac_vec_nodes nodes;
        if (!ggml_vk_qvac_match_vec(cgraph, k, nodes)) {
            return 0;
        }
        const vk_qvac_vec_job & job  = nodes.job;
        const ggml_tensor *     w    = job.matrices[0].w;
        const int               own  = w->type == GGML_TYPE_TQ2_0;
        if ((!code.empty() && own != type) || w->ne[0] > VK_QVAC_PROGRAM_MAX_ROW) {
            return 0;
        }
        for (int i = 0; i < job.n_matrices; ++i) {
            const vk_qvac_vec_matrix & m = job.matrices[i];
            if (ggml_vk_qvac_ternary_scales(ctx, m.w).kind == qvac::tq_scale::mixed || address(ctx, m.w) % 4 != 0 ||
                (job.matrices[0].scale == nullptr) != (m.scale == nullptr)) {
                return 0;
            }
        }
        type = own;
        code.push_back({});
        vk_qvac_program_product & p = code.back().product;
        p.kind       = VK_QVAC_PROGRAM_PRODUCT;
        p.flags      = (job.source == VK_QVAC_VEC_NORMED ? VK_QVAC_PROGRAM_NORMED : 0) | (job.glu ? VK_QVAC_PROGRAM_GLU : 0) |
                  (job.glu == VK_QVAC_VEC_RELU_SQR ? VK_QVAC_PROGRAM_RELU_SQR : 0);
        p.n          = (uint32_t) w->ne[0];
        p.row_halves = (uint32_t) (ggml_row_size(w->type, w->ne[0]) / 2);
        p.eps        = job.eps;
        bool ok = read(offsetof(vk_qvac_program_product, x), job.x, job.norm ? 1 : job.n_matrices);
        if (job.norm) {
            read_outside(offsetof(vk_qvac_program_product, norm), job.norm);
            ok = ok && p.norm % 16 == 0;
        }
        if (job.add) {
            ok = ok && read(offsetof(vk_qvac_program_product, add), job.add, 1, true);
        }
        for (int i = 0; i < job.n_matrices; ++i) {
            const vk_qvac_vec_matrix & m = job.matrices[i];
            p.d[i] = qvac::tq_value(ggml_vk_qvac_ternary_scales(ctx, m.w));
            p.w[i] = address(ctx, m.w);
            p.s[i] = m.scale ? address(ctx, m.scale) : 0;
            if (i > 0) {
                p.begin[i - 1] = p.units;
            }
            if (!job.glu || i == 0) {
                p.units += (uint32_t) m.w->ne[1];
                write(offsetof(vk_qvac_program_product, y) + i * sizeof(uint64_t), m.dst);
            }
        }
        for (int i = job.n_matrices; i < VK_QVAC_VEC_MAX_MATRICES; ++i) {
            p.begin[i - 1] = p.units;
        }
        return keep(ok, nodes.count);
    }

    int add_attention(int k) {
        vk_qvac_attention_nodes nodes;
        if (!ggml_vk_qvac_match_attention(cgraph, k, nodes)) {
            return 0;
        }
        const ggml_tensor * q    = nodes.dst->src[0];
        const ggml_tensor * keys = nodes.dst->src[1];
        const int32_t *     rope = nodes.rotation->op_params;
        code.push_back({});
        vk_qvac_program_attention & a = code.back().attention;
        a.kind        = VK_QVAC_PROGRAM_ATTENTION;
        a.head        = (uint32_t) q->ne[0];
        a.heads       = (uint32_t) q->ne[2];
        a.key_heads   = (uint32_t) keys->ne[2];
        a.keys        = (uint32_t) keys->ne[1];
        a.rotated     = (uint32_t) rope[1];
        a.neox        = rope[2] == GGML_ROPE_TYPE_NEOX;
        memcpy(&a.scale, nodes.dst->op_params, sizeof(float));
        const bool has_rotation = put_rotation(nodes.rotation, a);
        a.key_stride   = (uint32_t) (keys->nb[1] / sizeof(uint32_t));
        a.value_stride = (uint32_t) (nodes.dst->src[2]->nb[1] / sizeof(uint32_t));
        a.key_cache    = address(ctx, keys);
        a.value_cache  = address(ctx, nodes.dst->src[2]);
        a.factors      = nodes.rotation->src[2] ? address(ctx, nodes.rotation->src[2]) : 0;
        n_shares       = std::max(n_shares, a.heads * shares_of_head(a.keys));
        read_outside(offsetof(vk_qvac_program_attention, mask), nodes.dst->src[3]);
        read_outside(offsetof(vk_qvac_program_attention, position), nodes.rotation->src[1]);
        read_outside(offsetof(vk_qvac_program_attention, key_index), nodes.set_k->src[1]);
        read_outside(offsetof(vk_qvac_program_attention, value_index), nodes.set_v->src[1]);
        const bool ok = has_rotation && read(offsetof(vk_qvac_program_attention, q), nodes.rotation->src[0], 1) &&
                        read(offsetof(vk_qvac_program_attention, k), nodes.rotation_k->src[0], 1) &&
                        read(offsetof(vk_qvac_program_attention, v), nodes.set_v->src[0], 1) &&
                        (a.key_cache | a.value_cache) % 16 == 0 && (a.mask | a.position | a.key_index | a.value_index) % 4 == 0;
        write(offsetof(vk_qvac_program_attention, y), nodes.dst);
        for (int i = k; i < k + nodes.count; ++i) {
            if (ggml_vk_qvac_is_the_row(cgraph->nodes[i])) {
                rows.push_back({ cgraph->nodes[i], i, 0 });
            }
        }
        return keep(ok, nodes.count);
    }

    // Takes the last instruction back if it cannot be.
    int keep(bool ok, int count) {
        if (ok) {
            return count;
        }
        const size_t i = current();
        const auto   gone = [&](const auto & x) { return x.instruction == i; };
        for (const reference & r : references) {
            // It counts as no reader; what it writes is taken back with it.
            values[r.value].uses -= r.instruction == i && values[r.value].instruction != i;
        }
        references.erase(std::remove_if(references.begin(), references.end(), gone), references.end());
        inputs.erase(std::remove_if(inputs.begin(), inputs.end(), gone), inputs.end());
        values.erase(std::remove_if(values.begin(), values.end(), gone), values.end());
        code.pop_back();
        return 0;
    }

    // Finds a place for every result, and fills in the addresses.
    bool place(int end) {
        for (const row & r : rows) {
            if (r.node < end && r.uses != ggml_vk_qvac_uses(cgraph, r.tensor)) {
                return false;
            }
        }
        const uint64_t memory = ggml_vk_qvac_program_scratch(ctx, scratch + n_shares * SHARE);
        for (vk_qvac_program_instruction & c : code) {
            if (c.attention.kind == VK_QVAC_PROGRAM_ATTENTION) {
                c.attention.shares = memory + scratch;
            }
        }
        std::vector<uint64_t> addresses;
        for (const value & v : values) {
            if (!is_wanted_outside(v)) {
                addresses.push_back(memory + slots[v.slot].offset);
                continue;
            }
            for (const input & in : inputs) {
                if (in.instruction == v.instruction && ggml_vk_tensors_overlap(v.tensor, in.tensor, in.elementwise)) {
                    return false;
                }
            }
            addresses.push_back(address(ctx, v.tensor));
        }
        for (const reference & r : references) {
            memcpy((char *) &code[r.instruction] + r.at, &addresses[r.value], sizeof(uint64_t));
        }
        return true;
    }
};

} // namespace

int ggml_vk_qvac_find_program(ggml_backend_vk_context * ctx, const ggml_cgraph * cgraph, int begin) {
    vk_qvac_program & program = ctx->qvac->program;
    const ggml_op     op      = cgraph->nodes[begin]->op;
    if (!ggml_vk_qvac_program_wanted(ctx) || (program.cgraph == cgraph && begin < program.searched) ||
        (op != GGML_OP_RMS_NORM && op != GGML_OP_MUL_MAT && op != GGML_OP_ROPE && op != GGML_OP_SET_ROWS)) {
        return 0;
    }
    program.cgraph = cgraph;
    const vk_qvac_known_graph graph(cgraph);
    if (!program.graph.is_same_as(graph) || program.begin != begin || program.is_exact != ggml_is_exact()) {
        builder   b(ctx, cgraph, begin);
        const int count = b.build(program.searched);
        program.last = -1;
        if (count == 0) {
            return 0;
        }
        program.code  = std::move(b.code);
        program.type  = b.type;
        program.is_exact = ggml_is_exact();
        program.begin = begin;
        program.count = count;
        program.graph = graph;
    }
    program.searched = begin + program.count;
    program.last     = program.searched - 1;
    return program.count;
}
