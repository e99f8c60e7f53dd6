// The parameters of ROPE in exact arithmetic (exact-ops.h). In double, of additions, multiplications and divisions only, so that every
// host has the same bits; a logarithm of a library's own would not.

#include "exact-ops.h"

#include "ggml-impl.h"

#include <math.h>

static const double LN_2 = 0.69314718055994530942;
static const double PI   = 3.14159265358979323846;

// Of x > 0: 2 atanh((m - 1) / (m + 1)) with sqrt(1/2) <= m < sqrt(2).
static double log_of(double x) {
    int    e;
    double m = frexp(x, &e);
    if (m < 0.70710678118654752440) {
        m *= 2.0;
        e -= 1;
    }
    const double s = (m - 1.0) / (m + 1.0);
    const double w = s * s;
    double       q = 0.0;
    for (int k = 27; k >= 1; k -= 2) {
        q = q * w + 1.0 / k;
    }
    return 2.0 * s * q + e * LN_2;
}

static double exp_of(double x) {
    const double n = floor(x / LN_2 + 0.5);
    const double r = x - n * LN_2;
    double       q = 1.0;
    for (int k = 18; k >= 1; --k) {
        q = 1.0 + q * r / k;
    }
    return ldexp(q, (int) n);
}

static void set_fraction(uint32_t words[2], double x) {
    const uint64_t bits = x < 1.0 ? (uint64_t) ldexp(x, 64) : UINT64_MAX;
    words[0] = (uint32_t) (bits >> 32);
    words[1] = (uint32_t) bits;
}

static bool is_fraction(float x) {
    return x >= 0.0f && x <= 1.0f;
}

// The pair that turns n_rotations times over the original context.
static double corr_dim(int n_dims, int n_ctx_orig, float n_rotations, float freq_base) {
    return n_dims * log_of(n_ctx_orig / (n_rotations * 2.0 * PI)) / (2.0 * log_of(freq_base));
}

bool ggml_exact_rope_of(const struct ggml_tensor * op, struct ggml_exact_rope * rope) {
    const int   n_dims      = ggml_get_op_params_i32(op, 1);
    const int   mode        = ggml_get_op_params_i32(op, 2);
    const int   n_ctx_orig  = ggml_get_op_params_i32(op, 4);
    const float freq_base   = ggml_get_op_params_f32(op, 5);
    const float freq_scale  = ggml_get_op_params_f32(op, 6);
    const float ext_factor  = ggml_get_op_params_f32(op, 7);
    const float attn_factor = ggml_get_op_params_f32(op, 8);
    const float beta_fast   = ggml_get_op_params_f32(op, 9);
    const float beta_slow   = ggml_get_op_params_f32(op, 10);

    if ((mode != GGML_ROPE_TYPE_NORMAL && mode != GGML_ROPE_TYPE_NEOX) || n_dims < 2 || n_dims % 2 != 0 || !(freq_base > 1.0f) ||
        !isfinite(freq_base) || !is_fraction(freq_scale) || !is_fraction(ext_factor)) {
        return false;
    }
    set_fraction(rope->theta_scale, exp_of(-2.0 / n_dims * log_of(freq_base)));
    set_fraction(rope->freq_scale, freq_scale);
    set_fraction(rope->ext_factor, ext_factor);
    rope->low       = 0;
    rope->high      = 0;
    rope->magnitude = attn_factor;
    if (ext_factor == 0.0f) {
        return true;
    }
    if (!(freq_scale > 0.0f && n_ctx_orig > 0 && beta_fast > 0.0f && beta_slow > 0.0f)) {
        return false;
    }
    const double low  = floor(corr_dim(n_dims, n_ctx_orig, beta_fast, freq_base));
    const double high = ceil(corr_dim(n_dims, n_ctx_orig, beta_slow, freq_base));
    rope->low       = low < 0.0 ? 0 : low > n_dims ? n_dims : (int) low;
    rope->high      = high > n_dims - 1 ? n_dims - 1 : high < 0.0 ? 0 : (int) high;
    rope->magnitude = (float) (attn_factor * (1.0 + 0.1 * log_of(1.0 / freq_scale)));
    return true;
}
