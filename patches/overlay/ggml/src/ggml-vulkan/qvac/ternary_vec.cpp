// Products of up to 8 tokens with ternary weights: variants of qvac_tq_mul_mat_vec.comp, and when they are used.

#include "ops.h"
#include "span.h"

#include "ggml-train.h"
#include "ggml-vulkan-shaders.hpp"

namespace {

static_assert(sizeof(vk_qvac_vec_push_constants) <= 128, "Vulkan guarantees no more push constants than 128 bytes");

constexpr uint32_t NONE = UINT32_MAX; // the shader's NO_INDEX

constexpr uint32_t N_BUFFERS  = 6;
constexpr uint32_t BLOCK_SIZE = 256;

constexpr uint32_t ROWS[VK_QVAC_VEC_ROWS_COUNT] = { 1, 2, 4 };
constexpr uint32_t COLS[VK_QVAC_VEC_COLS_COUNT] = { 1, 2, 4, 8 };

// Where the device does not say how many cores it has.
constexpr uint32_t CORES_UNKNOWN = 16;

// Lanes of a group on devices without subgroup operations.
constexpr uint32_t PORTABLE_LANES = 32;

// Shared memory beside the token's words: partial sums, and some scalars.
constexpr uint32_t SHARED_REST = BLOCK_SIZE * sizeof(float) + 128;

// QVAC_VK_VEC=name=value,... for measuring: `rows` at a time (1, 2, 4; 0: by the size of the matrix), `unroll`, `wgs` (the
// most workgroups a core), `quantize` (0: a token is quantized by a dispatch of its own), `fuse` (0: nothing is fused);
// `program` is read by program.cpp.
struct tuning {
    uint32_t rows     = 0;
    uint32_t unroll   = 2;
    uint32_t wgs      = 4;
    uint32_t quantize = 1;

    tuning() {
        const char * env = getenv("QVAC_VK_VEC");
        if (!env) {
            return;
        }
        std::stringstream list(env);
        for (std::string item; std::getline(list, item, ',');) {
            const size_t      equals = item.find('=');
            const std::string name   = item.substr(0, equals);
            const uint32_t    value  = equals == std::string::npos ? 0 : (uint32_t) atoi(item.c_str() + equals + 1);
            if (name == "rows") {
                rows = value;
            } else if (name == "unroll") {
                unroll = std::min(std::max(value, 1u), 8u);
            } else if (name == "wgs") {
                wgs = std::max(value, 1u);
            } else if (name == "quantize") {
                quantize = value;
            }
        }
    }
};

const tuning & tuned() {
    static const tuning t;
    return t;
}

bool has_dot(const vk_device & device) {
    return device->qvac_integer_dot && device->subgroup_arithmetic && device->subgroup_size_control &&
           device->subgroup_require_full_support && device->subgroup_size >= 4 && device->subgroup_size <= 64;
}

uint32_t lanes(const vk_device & device, bool dot) {
    return dot ? device->subgroup_size : PORTABLE_LANES;
}

struct type_constants {
    uint32_t digits;       // weights a byte
    uint32_t block_halves; // 16-bit words a block
};

const type_constants TYPES[2] = { { 5, 27 }, { 4, 33 } };

int type_index(const ggml_tensor * w) {
    return w->type == GGML_TYPE_TQ2_0;
}

// Words of a row that lie in shared memory at a time. 20 KiB hold any row of one token; devices that have but what Vulkan
// guarantees read a token more often.
uint32_t chunk(const vk_device & device, int type, uint32_t cols, uint32_t step) {
    const uint32_t limit = device->properties.limits.maxComputeSharedMemorySize >= 32768 ? 20480 : 16384;
    const uint32_t words = (limit - SHARED_REST) / (sizeof(uint32_t) * TYPES[type].digits * cols);
    return words / step * step;
}

struct spans {
    vk_qvac_span w, d, s, x, norm, add;

    spans(const ggml_backend_vk_context * ctx, const vk_qvac_vec_job & job) {
        for (int i = 0; i < job.n_matrices; ++i) {
            const vk_qvac_vec_matrix & m = job.matrices[i];
            w.add(ctx, m.w);
            if (!job.glu || i == 0) {
                d.add(ctx, m.dst);
            }
            if (m.scale) {
                s.add(ctx, m.scale);
            }
        }
        if (job.source != VK_QVAC_VEC_QUANTIZED) {
            x.add(ctx, job.x);
        }
        if (job.source == VK_QVAC_VEC_NORMED) {
            norm.add(ctx, job.norm);
        }
        if (job.add) {
            add.add(ctx, job.add);
        }
        for (vk_qvac_span * each : { &w, &d, &s, &x, &norm, &add }) {
            each->close(ctx);
        }
    }

    bool ok() const { return w.ok && d.ok && s.ok && x.ok && norm.ok && add.ok; }
};

// The shader reads floats of a token four at a time.
bool is_aligned(const ggml_backend_vk_context * ctx, const vk_qvac_span & s, const ggml_tensor * t) {
    return s.offset(ctx, t) % 4 == 0;
}

uint32_t row_halves(const ggml_tensor * w) {
    return (uint32_t) (w->ne[0] / qvac::tq_block) * TYPES[type_index(w)].block_halves;
}

bool is_mixed(const ggml_backend_vk_context * ctx, const vk_qvac_vec_job & job) {
    for (int i = 0; i < job.n_matrices; ++i) {
        if (ggml_vk_qvac_ternary_scales(ctx, job.matrices[i].w).kind == qvac::tq_scale::mixed) {
            return true;
        }
    }
    return false;
}

// Rows beyond the first matrix's with GLU are the same workgroup's.
uint32_t units_of(const vk_qvac_vec_job & job) {
    int64_t rows = 0;
    for (int i = 0; i < (job.glu ? 1 : job.n_matrices); ++i) {
        rows += job.matrices[i].w->ne[1];
    }
    return (uint32_t) rows;
}

// As many rows at a time as leave two workgroups for every core; with gate and up there are two rows in each.
int rows_index(const vk_device & device, uint32_t units, uint32_t groups, bool glu) {
    const uint32_t cores = device->shader_core_count ? device->shader_core_count : CORES_UNKNOWN;
    for (int i = VK_QVAC_VEC_ROWS_COUNT - 1 - glu; i > 0; --i) {
        if (tuned().rows ? ROWS[i] <= tuned().rows : CEIL_DIV(units, ROWS[i] * groups) >= 2 * cores) {
            return i;
        }
    }
    return 0;
}

} // namespace

void ggml_vk_qvac_load_ternary_vec(vk_device & device, const vk_qvac_create_pipeline & create) {
    struct shader {
        const char * name;
        uint64_t     size;
        const void * data;
    };
#define QVAC_VEC(name) { #name, name##_len, name##_data }
    const shader shaders[2][2] = {
        { QVAC_VEC(qvac_tq_mul_mat_vec_tq1_0_plain), QVAC_VEC(qvac_tq_mul_mat_vec_tq1_0_dot) },
        { QVAC_VEC(qvac_tq_mul_mat_vec_tq2_0_plain), QVAC_VEC(qvac_tq_mul_mat_vec_tq2_0_dot) },
    };
#undef QVAC_VEC
    vk_qvac_vec_pipelines & pipelines = device->qvac->ternary_vec;
    for (int type = 0; type < 2; ++type) {
        for (int dot = 0; dot < (has_dot(device) ? 2 : 1); ++dot) {
            const uint32_t n_lanes = lanes(device, dot);
            const auto make = [&](vk_pipeline & pipeline, uint32_t rows, uint32_t cols, uint32_t unroll, uint32_t glu,
                                  uint32_t mixed, uint32_t source) {
                const shader & s = shaders[type][dot];
                create(pipeline, s.name, s.size, s.data, N_BUFFERS, sizeof(vk_qvac_vec_push_constants), { 1, 1, 1 },
                       { BLOCK_SIZE, n_lanes, rows, cols, unroll, chunk(device, type, cols, n_lanes * unroll), glu, mixed, source },
                       dot ? n_lanes : 0);
            };
            for (int rows = 0; rows < VK_QVAC_VEC_ROWS_COUNT; ++rows) {
                for (int source = 0; source < VK_QVAC_VEC_SOURCE_COUNT; ++source) {
                    for (uint32_t glu = 0; glu < VK_QVAC_VEC_GLU_COUNT; ++glu) {
                        make(pipelines.one_token[type][dot][rows][source][glu], ROWS[rows], 1, tuned().unroll, glu, 0, source);
                    }
                }
            }
            for (int cols = 1; cols < VK_QVAC_VEC_COLS_COUNT; ++cols) {
                make(pipelines.tokens[type][dot][cols], 2, COLS[cols], 1, 0, 0, VK_QVAC_VEC_QUANTIZED);
            }
            make(pipelines.mixed[type][dot], 1, 1, 1, 0, 1, VK_QVAC_VEC_QUANTIZED);
        }
    }
}

void ggml_vk_qvac_vec_graph_begin(ggml_backend_vk_context * ctx) {
    const char *       env  = getenv("QVAC_VK_TERNARY");
    vk_qvac_vec_wish & wish = ctx->qvac->vec_wish;
    wish.plain = env && strncmp(env, "plain", 5) == 0;
    wish.dot   = env && strncmp(env, "dot", 3) == 0;
    wish.tile  = env && strchr(env, ':');
}

bool ggml_vk_qvac_vec_can_stack(const ggml_tensor * w0, const ggml_tensor * w1) {
    // Rows of one parity belong together (the shader's main).
    const bool even = row_halves(w0) % 2 == 0 || (w0->ne[1] % 2 == 0 && w1->ne[1] % 2 == 0);
    return w0->type == w1->type && w0->ne[0] == w1->ne[0] && even;
}

bool ggml_vk_qvac_plan_vec(const ggml_backend_vk_context * ctx, const vk_qvac_vec_job & job, vk_qvac_vec_plan & plan) {
    const vk_device &   device = ctx->device;
    const ggml_tensor * w      = job.matrices[0].w;
    const bool          floats = job.source != VK_QVAC_VEC_QUANTIZED;
    const bool          mixed  = is_mixed(ctx, job);
    if (job.tokens > VK_QVAC_VEC_MAX_TOKENS || ctx->qvac->vec_wish.tile || (floats && (job.tokens > 1 || !tuned().quantize)) ||
        (mixed && (job.n_matrices > 1 || floats)) || (ctx->qvac->vec_wish.dot && !has_dot(device))) {
        return false;
    }
    for (int i = 1; i < job.n_matrices; ++i) {
        if (!ggml_vk_qvac_vec_can_stack(w, job.matrices[i].w)) {
            return false;
        }
    }
    const int      type   = type_index(w);
    const int      dot    = has_dot(device) && !ctx->qvac->vec_wish.plain;
    const uint32_t groups = BLOCK_SIZE / lanes(device, dot);
    const uint32_t units  = units_of(job);
    if (mixed && CEIL_DIV(row_halves(w) + 1, 2u) > chunk(device, type, 1, lanes(device, dot))) {
        return false;
    }
    const spans s(ctx, job);
    if (!s.ok() || (floats && !is_aligned(ctx, s.x, job.x)) ||
        (job.source == VK_QVAC_VEC_NORMED && !is_aligned(ctx, s.norm, job.norm))) {
        return false;
    }

    vk_qvac_vec_pipelines & pipelines = device->qvac->ternary_vec;
    uint32_t                rows      = 2;
    if (mixed) {
        plan.pipeline = pipelines.mixed[type][dot];
        rows          = 1;
    } else if (job.tokens == 1) {
        const int i   = rows_index(device, units, groups, job.glu != VK_QVAC_VEC_NO_GLU);
        plan.pipeline = pipelines.one_token[type][dot][i][job.source][job.glu];
        rows          = ROWS[i];
    } else {
        plan.pipeline = pipelines.tokens[type][dot][job.tokens > 4 ? 3 : job.tokens > 2 ? 2 : 1];
    }

    vk_qvac_vec_push_constants & pc = plan.pc;
    pc            = {};
    pc.n          = (uint32_t) w->ne[0];
    pc.row_halves = row_halves(w);
    pc.units      = units;
    pc.tokens     = mixed ? 1 : (uint32_t) job.tokens;
    uint32_t begin = 0;
    for (int i = 0; i < VK_QVAC_VEC_MAX_MATRICES; ++i) {
        if (i > 0) {
            pc.begin[i - 1] = begin;
        }
        pc.s_offset[i] = NONE;
        if (i >= job.n_matrices) {
            continue;
        }
        const vk_qvac_vec_matrix & m = job.matrices[i];
        pc.w_offset[i] = s.w.offset(ctx, m.w);
        pc.d[i]        = mixed ? 0.0f : qvac::tq_value(ggml_vk_qvac_ternary_scales(ctx, m.w));
        if (!job.glu || i == 0) {
            pc.d_offset[i] = s.d.offset(ctx, m.dst);
            pc.d_stride[i] = (uint32_t) m.w->ne[1];
        }
        if (m.scale) {
            pc.s_offset[i] = s.s.offset(ctx, m.scale);
        }
        begin += (uint32_t) m.w->ne[1];
    }
    if (floats) {
        plan.x      = s.x.sub();
        pc.x_offset = s.x.offset(ctx, job.x);
    } else {
        plan.x      = job.q;
        pc.x_offset = (uint32_t) (job.q_offset / sizeof(uint32_t));
        pc.x_stride = (pc.n + GGML_TQ_TOKEN_TAIL) / sizeof(uint32_t);
    }
    pc.norm_offset = job.source == VK_QVAC_VEC_NORMED ? s.norm.offset(ctx, job.norm) : 0;
    pc.eps         = job.eps;
    pc.add_offset  = job.add ? s.add.offset(ctx, job.add) : NONE;
    pc.add_stride  = (uint32_t) w->ne[1];

    // What is not used needs a descriptor too.
    plan.w     = s.w.sub();
    plan.norm  = s.norm.buffer ? s.norm.sub() : plan.x;
    plan.scale = s.s.buffer ? s.s.sub() : plan.x;
    plan.add   = s.add.buffer ? s.add.sub() : plan.x;
    plan.d     = s.d.sub();

    // With rows of an odd number of halves, workgroups come in twos (the shader's main). All make the same number of rounds.
    const uint32_t odd    = pc.row_halves & 1;
    const uint32_t cores  = device->shader_core_count ? device->shader_core_count : CORES_UNKNOWN;
    const uint32_t most   = std::min(cores * tuned().wgs, device->properties.limits.maxComputeWorkGroupCount[0]);
    const uint32_t work   = CEIL_DIV(CEIL_DIV(units, 1 + odd), rows * groups) << odd;
    const uint32_t rounds = CEIL_DIV(work, std::max(most, 2u));
    plan.wgs         = CEIL_DIV(work >> odd, rounds) << odd;
    plan.grid_tokens = mixed ? (uint32_t) job.tokens : 1;
    return true;
}

void ggml_vk_qvac_vec(ggml_backend_vk_context * ctx, vk_context & subctx, vk_qvac_vec_plan & plan) {
    ggml_pipeline_request_descriptor_sets(ctx, plan.pipeline, 1);
    ggml_vk_dispatch_pipeline(ctx, subctx, plan.pipeline, { plan.w, plan.x, plan.norm, plan.scale, plan.add, plan.d },
                              plan.pc, { plan.wgs, plan.grid_tokens, 1 });
}
