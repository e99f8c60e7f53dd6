// Products of floats in exact arithmetic (exact.h), and rows of weights as floats.
//
// Every op is y[i, j] = sum_k x[i, k] * w[j, k] with strides of its own. Vectors run along j, of which a panel of 64 is unpacked at
// a time, with k outermost; so is a panel of up to 64 i. A register tile makes the sums of one segment, and adds them to totals.

#include "exact.h"

#include "exact-weights.h"
#include "ggml-cpu-impl.h"
#include "ggml-train.h"
#include "qvac/exact-math.h"
#include "simd-math.h"

#include <algorithm>
#include <cstring>
#include <utility>

namespace qvac {

namespace {

constexpr int64_t segment = 32;
constexpr int64_t width   = 64;  // of a panel: a multiple of the vectors
constexpr int64_t depth   = 256; // segments' k of a panel at a time
constexpr int     n_vecs  = vf_lanes == 16 ? 2 : vf_lanes == 8 ? 1 : 2;
constexpr int     n_rows  = 8;
constexpr size_t  scratch = (2 * depth + width) * width; // floats of a thread
static_assert(width % (n_vecs * vf_lanes) == 0 && width % n_rows == 0, "whole register tiles");

// A matrix [n, k]; strides in bytes.
struct operand {
    const char * data;
    ggml_type    type;
    int64_t      n;
    size_t       nb_n, nb_k;
    bool         along_k; // rows of values side by side run along k
};

enum class mode { store, update, grad };

struct product {
    operand x, w;
    int64_t k;
    char *  y; // [x.n, w.n], and `add` alike
    const char * add;
    size_t  nb_x, nb_w;
    mode    what;
    float   scale;
};

operand operand_of(const ggml_tensor * t, const void * data, bool k_first) {
    const bool along_k = ggml_is_quantized(t->type) ? k_first : t->nb[!k_first] == ggml_type_size(t->type);
    return { (const char *) data, t->type, t->ne[k_first], t->nb[k_first], t->nb[!k_first], along_k };
}

// Vectors run along the side that has more outputs.
void turn(product & p) {
    if (p.w.n < p.x.n && p.w.n < 2 * width) {
        std::swap(p.x, p.w);
        std::swap(p.nb_x, p.nb_w);
    }
}

product product_of(const ggml_tensor * dst, int64_t batch) {
    const ggml_tensor * s0 = dst->src[0];
    const ggml_tensor * s1 = dst->src[1];
    const ggml_tensor * s2 = dst->src[2];
    const ggml_train_op op = ggml_get_train_op(dst);
    product p = {};
    p.y     = (char *) dst->data;
    p.nb_w  = dst->nb[0];
    p.nb_x  = dst->nb[1];
    p.scale = op == GGML_TRAIN_OP_NONE ? 1.0f : ggml_train_op_param(dst);
    if (op == GGML_TRAIN_OP_LOW_RANK_ADD) {        // y [n, T], p [n, r], z [r, T]
        p.x    = operand_of(s2, s2->data, true);
        p.w    = operand_of(s1, s1->data, false);
        p.k    = s1->ne[1];
        p.add  = dst->src[3] ? (const char *) dst->src[3]->data : nullptr;
        p.what = mode::update;
    } else if (op == GGML_TRAIN_OP_LOW_RANK_GRAD) { // grad [n, r], v [n, T], z [r, T]
        p.x    = operand_of(s2, s2->data, false);
        p.w    = operand_of(s1, s1->data, false);
        p.k    = s1->ne[1];
        p.what = mode::grad;
    } else {
        const bool    k_first = dst->op != GGML_OP_OUT_PROD;
        const int64_t i2      = batch % dst->ne[2];
        const int64_t i3      = batch / dst->ne[2];
        const int64_t a2      = i2 / (dst->ne[2] / s0->ne[2]);
        const int64_t a3      = i3 / (dst->ne[3] / s0->ne[3]);
        p.w  = operand_of(s0, (const char *) s0->data + a2 * s0->nb[2] + a3 * s0->nb[3], k_first);
        p.x  = operand_of(s1, (const char *) s1->data + i2 * s1->nb[2] + i3 * s1->nb[3], k_first);
        p.k  = s0->ne[!k_first];
        p.y += i2 * dst->nb[2] + i3 * dst->nb[3];
    }
    turn(p);
    return p;
}

// panel[k][n] = m(n0 + n, k0 + k), with zeros behind the end of n up to a multiple of `unit`
void pack(const operand & m, int64_t n0, int64_t n, int64_t unit, int64_t k0, int64_t k, float * panel) {
    if (!m.along_k && m.nb_n != ggml_type_size(m.type)) {
        for (int64_t j = 0; j < k; ++j) {
            for (int64_t i = 0; i < n; ++i) {
                exact_unpack(m.type, m.data + (n0 + i) * m.nb_n + (k0 + j) * m.nb_k, 0, 1, panel + j * width + i);
            }
        }
    } else if (!m.along_k) {
        for (int64_t j = 0; j < k; ++j) {
            for (int64_t i = 0; i < n; i += segment) {
                exact_unpack(m.type, m.data + (k0 + j) * m.nb_k, n0 + i, std::min(segment, n - i), panel + j * width + i);
            }
        }
    } else {
        float four[4][segment] = {};
        const float * rows[4] = { four[0], four[1], four[2], four[3] };
        for (int64_t i = 0; i < n; i += 4) {
            for (int64_t j = 0; j < k; j += segment) {
                const int64_t nk = std::min(segment, k - j);
                for (int64_t l = 0; l < std::min<int64_t>(4, n - i); ++l) {
                    exact_unpack(m.type, m.data + (n0 + i + l) * m.nb_n, k0 + j, nk, four[l]);
                }
                int64_t l = 0;
                for (; l + 4 <= nk; l += 4) {
                    transpose4(rows, l, panel + (j + l) * width + i, width);
                }
                for (; l < nk; ++l) {
                    for (int r = 0; r < 4; ++r) {
                        panel[(j + l) * width + i + r] = four[r][l];
                    }
                }
            }
        }
    }
    const int64_t end = (n + unit - 1) / unit * unit;
    for (int64_t j = 0; j < k && n < end; ++j) {
        memset(panel + j * width + n, 0, (end - n) * sizeof(float));
    }
}

// total[i][j] += scale * (((0 + x_0 w_0) + x_1 w_1) ..) over the k of one segment, for `rows` i and n_vecs vectors of j
template <int rows, bool scaled> void tile(const float * x, const float * w, int64_t k, float scale, float * total) {
    vf sum[rows][n_vecs];
    QVAC_UNROLL
    for (int i = 0; i < rows; ++i) {
        QVAC_UNROLL
        for (int v = 0; v < n_vecs; ++v) {
            sum[i][v] = vf_zero();
        }
    }
    for (int64_t l = 0; l < k; ++l) {
        vf wl[n_vecs];
        QVAC_UNROLL
        for (int v = 0; v < n_vecs; ++v) {
            wl[v] = vf_load(w + l * width + v * vf_lanes);
        }
        QVAC_UNROLL
        for (int i = 0; i < rows; ++i) {
            const vf xl = vf_set1(x[l * width + i]);
            QVAC_UNROLL
            for (int v = 0; v < n_vecs; ++v) {
                sum[i][v] = vf_add(sum[i][v], vf_mul(xl, wl[v]));
            }
        }
    }
    QVAC_UNROLL
    for (int i = 0; i < rows; ++i) {
        QVAC_UNROLL
        for (int v = 0; v < n_vecs; ++v) {
            float * to = total + i * width + v * vf_lanes;
            vf_store(to, vf_add(vf_load(to), scaled ? vf_mul(vf_set1(scale), sum[i][v]) : sum[i][v]));
        }
    }
}

// All outputs of a panel of w and one of x, over the k of a panel.
template <bool scaled>
void tiles(const float * x, int64_t nx, const float * w, int64_t nw, int64_t k, float scale, float * total) {
    for (int64_t s = 0; s < k; s += segment) {
        const int64_t nk = std::min(segment, k - s);
        for (int64_t j = 0; j < nw; j += n_vecs * vf_lanes) {
            for (int64_t i = 0; i < nx;) {
                const float * xs = x + s * width + i;
                const float * ws = w + s * width + j;
                float *       to = total + i * width + j;
                if (nx - i > 1) { // rows behind the end are zeros
                    tile<n_rows, scaled>(xs, ws, nk, scale, to);
                    i += n_rows;
                } else {
                    tile<1, scaled>(xs, ws, nk, scale, to);
                    i += 1;
                }
            }
        }
    }
}

void make_unit(const product & p, int64_t x0, int64_t w0, float * work) {
    const int64_t nx    = std::min(width, p.x.n - x0);
    const int64_t nw    = std::min(width, p.w.n - w0);
    float *       x     = work;
    float *       w     = x + depth * width;
    float *       total = w + depth * width; // [nx][width]

    const auto at = [&](int64_t i, int64_t j) { return (x0 + i) * p.nb_x + (w0 + j) * p.nb_w; };
    memset(total, 0, width * width * sizeof(float));
    if (p.what == mode::grad) {
        for (int64_t i = 0; i < nx; ++i) {
            for (int64_t j = 0; j < nw; ++j) {
                memcpy(total + i * width + j, p.y + at(i, j), sizeof(float));
            }
        }
    }
    for (int64_t k0 = 0; k0 < p.k; k0 += depth) {
        const int64_t k = std::min(depth, p.k - k0);
        pack(p.x, x0, nx, nx > 1 ? n_rows : 1, k0, k, x);
        pack(p.w, w0, nw, n_vecs * vf_lanes, k0, k, w);
        if (p.what == mode::grad) {
            tiles<true>(x, nx, w, nw, k, p.scale, total);
        } else {
            tiles<false>(x, nx, w, nw, k, p.scale, total);
        }
    }
    for (int64_t i = 0; i < nx; ++i) {
        for (int64_t j = 0; j < nw; ++j) {
            float y = total[i * width + j];
            char * to = p.y + at(i, j);
            if (p.what != mode::grad) {
                y = p.scale * y;
            }
            if (p.what == mode::update) {
                float old;
                memcpy(&old, to, sizeof(old));
                y = old + y;
            }
            if (p.add) {
                float add;
                memcpy(&add, p.add + at(i, j), sizeof(add));
                y = y + add;
            }
            memcpy(to, &y, sizeof(y));
        }
    }
}

void compute_product(const ggml_compute_params * params, ggml_tensor * dst) {
    const int64_t batches = dst->ne[2] * dst->ne[3];
    const product first   = product_of(dst, 0);
    const int64_t units_x = (first.x.n + width - 1) / width;
    const int64_t units_w = (first.w.n + width - 1) / width;
    float *       work    = (float *) params->wdata + params->ith * scratch;
    GGML_ASSERT(params->wsize >= params->nth * scratch * sizeof(float));

    // Units are handed out as threads come for them: a core that is busy elsewhere does not hold the others up.
    if (params->ith == 0) {
        ggml_threadpool_chunk_set(params->threadpool, params->nth);
    }
    ggml_barrier(params->threadpool);
    for (int64_t u = params->ith; u < units_x * units_w * batches; u = ggml_threadpool_chunk_add(params->threadpool, 1)) {
        const product p = product_of(dst, u / (units_x * units_w));
        make_unit(p, u % units_x * width, u / units_x % units_w * width, work);
    }
}

size_t product_work_size(int n_tasks, const ggml_tensor * dst) {
    (void) dst;
    return n_tasks * scratch * sizeof(float);
}

void compute_rows(const ggml_compute_params * params, ggml_tensor * dst) {
    const ggml_tensor * a   = dst->src[0]; // [n, rows, n2, n3]
    const ggml_tensor * ids = dst->src[1]; // [n1, n2, n3]
    const int64_t       n   = dst->ne[0];
    for (int64_t r = params->ith; r < ggml_nrows(dst); r += params->nth) {
        const int64_t i1 = r % dst->ne[1];
        const int64_t i2 = r / dst->ne[1] % dst->ne[2];
        const int64_t i3 = r / dst->ne[1] / dst->ne[2];
        int32_t       id;
        memcpy(&id, (const char *) ids->data + i1 * ids->nb[0] + i2 * ids->nb[1] + i3 * ids->nb[2], sizeof(id));
        float * to = (float *) ((char *) dst->data + i1 * dst->nb[1] + i2 * dst->nb[2] + i3 * dst->nb[3]);
        if (id < 0 || id >= a->ne[1]) {
            std::fill(to, to + n, uintBitsToFloat(0x7fc00000u));
            continue;
        }
        const char * row = (const char *) a->data + id * a->nb[1] + i2 * a->nb[2] + i3 * a->nb[3];
        for (int64_t i = 0; i < n; i += segment) {
            exact_unpack(a->type, row, i, std::min(segment, n - i), to + i);
        }
    }
}

const exact_kernel product_kernel = { compute_product, product_work_size };
const exact_kernel rows_kernel    = { compute_rows, nullptr };

bool is_float(const ggml_tensor * t) {
    return t->type == GGML_TYPE_F32;
}

bool is_weight(const ggml_tensor * t) {
    return exact_has_type(t->type) && (!ggml_is_quantized(t->type) || t->nb[0] == ggml_type_size(t->type));
}

}  // namespace

const exact_kernel * exact_products(const ggml_tensor * op) {
    switch (op->op) {
        case GGML_OP_MUL_MAT: // ternary ones are exact in integers
            if (op->src[0]->type == GGML_TYPE_TQ1_0 || op->src[0]->type == GGML_TYPE_TQ2_0) {
                return nullptr;
            }
            [[fallthrough]];
        case GGML_OP_OUT_PROD:
            return is_weight(op->src[0]) && is_float(op->src[1]) && is_float(op) ? &product_kernel : nullptr;
        case GGML_OP_GET_ROWS:
            return is_weight(op->src[0]) && op->src[0]->nb[0] == ggml_type_size(op->src[0]->type) &&
                   op->src[1]->type == GGML_TYPE_I32 && is_float(op) ? &rows_kernel : nullptr;
        case GGML_OP_CUSTOM:
            switch (ggml_get_train_op(op)) {
                case GGML_TRAIN_OP_LOW_RANK_PROJECT:
                case GGML_TRAIN_OP_LOW_RANK_ADD:
                case GGML_TRAIN_OP_LOW_RANK_GRAD:
                    return &product_kernel;
                default:
                    return nullptr;
            }
        default:
            return nullptr;
    }
}

}  // namespace qvac
