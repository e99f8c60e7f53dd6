#include "exact-weights.h"

#include "qvac/exact-types.h"

#include <cstring>

namespace qvac {

namespace {

uint32_t half_at(const uint8_t * at) {
    uint16_t h;
    memcpy(&h, at, sizeof(h));
    return h;
}

uint32_t word_at(const uint8_t * at) {
    uint32_t w;
    memcpy(&w, at, sizeof(w));
    return w;
}

float scale_at(const uint8_t * at) {
    return exact_from_f16(half_at(at));
}

// 32 values: nibbles of 16 bytes, the low ones first.
void nibbles(const uint8_t * qs, int * q) {
    for (int i = 0; i < 16; ++i) {
        q[i]      = qs[i] & 15;
        q[i + 16] = qs[i] >> 4;
    }
}

void scaled(const float d, const int * q, const int zero, float * dst) {
    for (int i = 0; i < 32; ++i) {
        dst[i] = exact_scaled(d, q[i] - zero);
    }
}

// The j-th 32 values of a block of 256.

void unpack_q4_k(const uint8_t * block, const uint32_t j, float * dst) {
    const uint32_t s0 = word_at(block + 4), s1 = word_at(block + 8), s2 = word_at(block + 12);
    const float    d  = exact_scaled(scale_at(block), exact_q4_k_scale(s0, s2, j));
    const float    m  = exact_scaled(scale_at(block + 2), exact_q4_k_min(s1, s2, j));
    const uint8_t * qs = block + 16 + j / 2 * 32;
    for (int i = 0; i < 32; ++i) {
        dst[i] = exact_scaled_minus(d, (qs[i] >> (j % 2 * 4)) & 15, m);
    }
}

void unpack_q6_k(const uint8_t * block, const uint32_t j, float * dst) {
    const uint8_t * low   = block + j / 4 * 64 + j % 2 * 32;
    const uint8_t * high  = block + 128 + j / 4 * 32;
    const int8_t *  scale = (const int8_t *) block + 192 + j * 2;
    const float     all   = scale_at(block + 208);
    const float     d[2]  = { exact_scaled(all, scale[0]), exact_scaled(all, scale[1]) };
    for (int i = 0; i < 32; ++i) {
        const int q = ((low[i] >> (j % 4 / 2 * 4)) & 15) | (((high[i] >> (j % 4 * 2)) & 3) << 4);
        dst[i]      = exact_scaled(d[i / 16], q - 32);
    }
}

void unpack_tq2_0(const uint8_t * block, const uint32_t j, float * dst) {
    const uint8_t * qs = block + j / 4 * 32;
    const float     d  = scale_at(block + 64);
    for (int i = 0; i < 32; ++i) {
        dst[i] = exact_scaled(d, ((qs[i] >> (j % 4 * 2)) & 3) - 1);
    }
}

// 32 bytes of five values 32 apart, 16 of five values 16 apart, 4 of four values 4 apart
void unpack_tq1_0(const uint8_t * block, const uint32_t j, float * dst) {
    static const uint32_t power[5] = { 1, 3, 9, 27, 81 };
    const float d = scale_at(block + 52);
    for (int i = 0; i < 32; ++i) {
        const int e = (int) j * 32 + i;
        const int n = e < 160 ? e / 32 : e < 240 ? (e - 160) / 16 : (e - 240) / 4;
        const int b = e < 160 ? i : e < 240 ? 32 + i % 16 : 48 + i % 4;
        dst[i]      = exact_scaled(d, exact_tq1_digit(block[b], power[n]));
    }
}

}  // namespace

bool exact_has_type(ggml_type type) {
    switch (type) {
        case GGML_TYPE_F32:
        case GGML_TYPE_F16:
        case GGML_TYPE_BF16:
        case GGML_TYPE_Q8_0:
        case GGML_TYPE_Q4_0:
        case GGML_TYPE_Q4_1:
        case GGML_TYPE_Q5_0:
        case GGML_TYPE_Q4_K:
        case GGML_TYPE_Q6_K:
        case GGML_TYPE_TQ1_0:
        case GGML_TYPE_TQ2_0:
            return true;
        default:
            return false;
    }
}

void exact_unpack(ggml_type type, const void * row, int64_t i, int64_t n, float * dst) {
    const uint8_t * bytes = (const uint8_t *) row;
    switch (type) {
        case GGML_TYPE_F32:
            memcpy(dst, bytes + i * sizeof(float), n * sizeof(float));
            return;
        case GGML_TYPE_F16:
            for (int64_t j = 0; j < n; ++j) {
                dst[j] = scale_at(bytes + (i + j) * 2);
            }
            return;
        case GGML_TYPE_BF16:
            for (int64_t j = 0; j < n; ++j) {
                dst[j] = exact_from_bf16(half_at(bytes + (i + j) * 2));
            }
            return;
        default:
            break;
    }
    const int64_t   size  = ggml_blck_size(type);
    const uint8_t * block = bytes + i / size * ggml_type_size(type);
    const uint32_t  j     = (uint32_t) (i % size / 32);
    int             q[32];
    switch (type) {
        case GGML_TYPE_Q8_0:
            for (int l = 0; l < 32; ++l) {
                q[l] = (int8_t) block[2 + l];
            }
            scaled(scale_at(block), q, 0, dst);
            return;
        case GGML_TYPE_Q4_0:
            nibbles(block + 2, q);
            scaled(scale_at(block), q, 8, dst);
            return;
        case GGML_TYPE_Q4_1: {
            const float d = scale_at(block);
            const float m = scale_at(block + 2);
            nibbles(block + 4, q);
            for (int l = 0; l < 32; ++l) {
                dst[l] = exact_scaled_plus(d, q[l], m);
            }
            return;
        }
        case GGML_TYPE_Q5_0: {
            const uint32_t high = word_at(block + 2);
            nibbles(block + 6, q);
            for (int l = 0; l < 32; ++l) {
                q[l] |= (int) ((high >> l) & 1) << 4;
            }
            scaled(scale_at(block), q, 16, dst);
            return;
        }
        case GGML_TYPE_Q4_K:
            return unpack_q4_k(block, j, dst);
        case GGML_TYPE_Q6_K:
            return unpack_q6_k(block, j, dst);
        case GGML_TYPE_TQ1_0:
            return unpack_tq1_0(block, j, dst);
        default:
            return unpack_tq2_0(block, j, dst);
    }
}

}  // namespace qvac
