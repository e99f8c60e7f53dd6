// What exact arithmetic (docs/exactness.md) makes of values one by one: one source for C++ and GLSL. exact-math.h and
// exact-angle.h stand before it.

#ifdef __cplusplus
#pragma once

#include "exact-angle.h"

#define precise

namespace qvac {
#endif

const uint EXACT_ADD     = 0u;
const uint EXACT_SUB     = 1u;
const uint EXACT_MUL     = 2u;
const uint EXACT_DIV     = 3u;
const uint EXACT_SWIGLU  = 4u;
const uint EXACT_REGLU   = 5u;
const uint EXACT_SCALE   = 6u; // from here on of one operand
const uint EXACT_SQR     = 7u;
const uint EXACT_SQRT    = 8u;
const uint EXACT_EXP     = 9u;
const uint EXACT_LOG     = 10u;
const uint EXACT_SIN     = 11u;
const uint EXACT_COS     = 12u;
const uint EXACT_SILU    = 13u;
const uint EXACT_RELU    = 14u;
const uint EXACT_SIGMOID = 15u;
const uint EXACT_NEG     = 16u;
const uint EXACT_COUNT   = 17u;

EXACT_FN bool exact_is_finite(const float x) {
    return (floatBitsToUint(x) & 0x7f800000u) != 0x7f800000u;
}

EXACT_FN float exact_nan() {
    return uintBitsToFloat(0x7fc00000u);
}

EXACT_FN float exact_relu(const float x) {
    return x > 0.0f ? x : 0.0f;
}

EXACT_FN float exact_add(const float a, const float b) {
    precise float y = a + b;
    return y;
}

EXACT_FN float exact_sub(const float a, const float b) {
    precise float y = a - b;
    return y;
}

EXACT_FN float exact_mul(const float a, const float b) {
    precise float y = a * b;
    return y;
}

// Without a number where that is not real.
EXACT_FN float exact_root(const float x) {
    return x < 0.0f ? exact_nan() : exact_is_finite(x) ? exact_sqrt(x) : x;
}

EXACT_FN float exact_logarithm(const float x) {
    const bool  tiny = floatBitsToUint(x) < 0x00800000u; // a denormal: 2^24 times that is none
    precise float up = x * 16777216.0f;
    precise float down = exact_log(tiny ? up : x) - 16.6355324f;
    const float y = !exact_is_finite(x) ? x : tiny ? down : exact_log(x);
    return x < 0.0f ? exact_nan() : x == 0.0f ? uintBitsToFloat(0xff800000u) : y;
}

// x factor, and then + offset where that is not 0.
EXACT_FN float exact_scale(const float x, const float factor, const float offset) {
    precise float y = x * factor;
    precise float z = y + offset;
    return offset != 0.0f ? z : y;
}

EXACT_FN float exact_value(const uint op, const float a, const float b, const float factor, const float offset) {
    if (op == EXACT_ADD) {
        return exact_add(a, b);
    }
    if (op == EXACT_SUB) {
        return exact_sub(a, b);
    }
    if (op == EXACT_MUL) {
        return exact_mul(a, b);
    }
    if (op == EXACT_DIV) {
        return exact_div(a, b);
    }
    if (op == EXACT_SWIGLU) {
        return exact_mul(exact_silu(a), b);
    }
    if (op == EXACT_REGLU) {
        return exact_mul(exact_relu(a), b);
    }
    if (op == EXACT_SCALE) {
        return exact_scale(a, factor, offset);
    }
    if (op == EXACT_SQR) {
        return exact_mul(a, a);
    }
    if (op == EXACT_SQRT) {
        return exact_root(a);
    }
    if (op == EXACT_EXP) {
        return exact_exp(a);
    }
    if (op == EXACT_LOG) {
        return exact_logarithm(a);
    }
    if (op == EXACT_SIN) {
        return exact_is_finite(a) ? exact_sin_turn(exact_turn_of(a)) : exact_nan();
    }
    if (op == EXACT_COS) {
        return exact_is_finite(a) ? exact_cos_turn(exact_turn_of(a)) : exact_nan();
    }
    if (op == EXACT_SILU) {
        return exact_silu(a);
    }
    if (op == EXACT_RELU) {
        return exact_relu(a);
    }
    if (op == EXACT_SIGMOID) {
        return exact_sigmoid(a);
    }
    return uintBitsToFloat(floatBitsToUint(a) ^ 0x80000000u);
}

// The gradients of silu(gate) up in gate and in up.
EXACT_FN float exact_swiglu_back_gate(const float dy, const float gate, const float up) {
    const float s = exact_sigmoid(gate);
    precise float slope = 1.0f + gate * (1.0f - s);
    precise float y = ((dy * up) * s) * slope;
    return y;
}

EXACT_FN float exact_swiglu_back_up(const float dy, const float gate) {
    return exact_mul(dy, exact_silu(gate));
}

// The gradients of relu(gate)^2 up.
EXACT_FN float exact_relu_sqr_back_gate(const float dy, const float gate, const float up) {
    const float r = exact_relu(gate);
    precise float dr = dy * r;
    precise float y  = (dr + dr) * up;
    return y;
}

EXACT_FN float exact_relu_sqr_back_up(const float dy, const float gate) {
    const float r = exact_relu(gate);
    precise float y = (dy * r) * r;
    return y;
}

// AdamW: the moments after gradient g, and the weight after those; correction: 1 / (1 - beta^step).
EXACT_FN float exact_adamw_m(const float m, const float g, const float beta1) {
    precise float y = m * beta1 + g * (1.0f - beta1);
    return y;
}

EXACT_FN float exact_adamw_v(const float v, const float g, const float beta2) {
    precise float y = v * beta2 + (g * g) * (1.0f - beta2);
    return y;
}

EXACT_FN float exact_adamw_w(const float w, const float m, const float v, const float lr, const float eps, const float decay,
                             const float correction1, const float correction2) {
    precise float keep = 1.0f - lr * decay;
    precise float step = lr * (m * correction1);
    precise float square = v * correction2;
    precise float size = exact_sqrt(square) + eps;
    precise float y = w * keep - exact_div(step, size);
    return y;
}

#ifdef __cplusplus
#undef precise
}  // namespace qvac
#endif
