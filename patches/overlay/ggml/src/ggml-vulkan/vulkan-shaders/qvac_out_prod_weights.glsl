// The weight operand of OUT_PROD: a BK x BM piece of `a` [M, K], in whatever type it is stored, brought to shared memory.
//
// The including shader declares BLOCK_SIZE, BM (a multiple of 32 where a is quantized), BK (BM * BK a multiple of
// 2 * BLOCK_SIZE), STRIDE_A, TILE_A_TYPE, and the push constants p.M, p.K, p.nb00, p.nb01 (in elements, of a quantized `a`
// in blocks). UNROLL_A may be [[unroll]]: a driver that compiles for a CPU takes most of a minute for some types then.

layout(binding = 0) readonly buffer A { A_TYPE data_a[]; };
#if defined(A_TYPE_PACKED16)
layout(binding = 0) readonly buffer A_PACKED16 { A_TYPE_PACKED16 data_a_packed16[]; };
#endif
#if defined(A_TYPE_PACKED32)
layout(binding = 0) readonly buffer A_PACKED32 { A_TYPE_PACKED32 data_a_packed32[]; };
#endif

#if QUANT_K > 1
#include "dequant_funcs.glsl"
#endif

shared TILE_A_TYPE tile_a[BK * STRIDE_A];

// Values beyond M or K become zero. They are read from where there is something instead of not at all: without a branch
// around them, the loads of one invocation are under way at the same time.
#if QUANT_K > 1

// Upstream's `dequantize` gives two values at a time: neighbours where QUANT_R is 1, half a block apart where it is 2.
// Both lie within 32 elements, hence within the tile and on the same side of M.
void load_a(const uint base, const uint m0, const uint k0) {
    const uint apart = QUANT_R == 1 ? 1 : QUANT_K / 2;

    UNROLL_A for (uint i = 0; i < BK * BM / 2; i += BLOCK_SIZE) {
        const uint t    = i + gl_LocalInvocationID.x;
        const uint pair = t % (BM / 2);
        const uint k    = t / (BM / 2);
#if QUANT_R == 1
        const uint m = 2 * pair;
#else
        const uint m = (pair / 16) * 32 + pair % 16;
#endif
        const bool inside = m0 + m < p.M && k0 + k < p.K;
        const uint at     = inside ? m0 + m : m % 32;
        const uint ib     = base + min(k0 + k, p.K - 1) * p.nb01 + at / QUANT_K;
        const vec2 dm     = get_dm(ib, 0);
        const vec2 v      = dequantize(ib, at % QUANT_K, 0) * dm.x + dm.y;
        tile_a[k * STRIDE_A + m]         = TILE_A_TYPE(inside ? v.x : 0.0);
        tile_a[k * STRIDE_A + m + apart] = TILE_A_TYPE(inside ? v.y : 0.0);
    }
}

#else

float element_a(const uint i) {
#if defined(DATA_A_BF16)
    return bf16_to_fp32(uint(data_a[i]));
#else
    return float(data_a[i]);
#endif
}

void load_a(const uint base, const uint m0, const uint k0) {
    UNROLL_A for (uint i = 0; i < BK * BM; i += BLOCK_SIZE) {
        const uint t = i + gl_LocalInvocationID.x;
        const uint m = t % BM;
        const uint k = t / BM;

        const bool  inside = m0 + m < p.M && k0 + k < p.K;
        const float v      = element_a(base + min(k0 + k, p.K - 1) * p.nb01 + min(m0 + m, p.M - 1) * p.nb00);
        tile_a[k * STRIDE_A + m] = TILE_A_TYPE(inside ? v : 0.0);
    }
}

#endif
