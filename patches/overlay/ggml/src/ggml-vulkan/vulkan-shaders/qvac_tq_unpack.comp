#version 450

// Ternary weights as signed bytes in scratch memory, for products of so many tokens that unpacking them once a tile would
// take longer (qvac_tq_mul_mat.comp with TQ_UNPACKED). The sum's index k lies side by side, in its natural order:
//
//     forward   out[row, k]: a row of W is a row        backward   out[column, k]: a column is one; TQ_BACK is defined
//
// Rows go on to whole tiles of the product; those beyond the end hold whatever they did.

#extension GL_EXT_control_flow_attributes : enable
#extension GL_EXT_shader_16bit_storage : require

layout(constant_id = 0) const uint BLOCK_SIZE = 256;

layout(local_size_x_id = 0, local_size_y = 1, local_size_z = 1) in;

layout(push_constant) uniform parameter {
    uint columns; uint rows; // of W
    uint w_offset;           // in blocks
} p;

layout(binding = 0) readonly buffer W { uint16_t data_w[]; };
layout(binding = 1) writeonly buffer D { uvec4 data_d[]; };

#include "qvac_tq_weights.glsl"

uint word(const uint block, const uint w) {
    return uint(data_w[block * BLOCK_WORDS + w]);
}

#if !defined(TQ_BACK)

// An invocation unpacks a quad: four chunks of 16 weights.
void main() {
    const uint i = gl_GlobalInvocationID.x;
    if (i >= p.rows * (p.columns / QUAD)) {
        return;
    }
    const uint block = i / QUADS;
    const uint quad  = i % QUADS;
    uvec4 raw[COLUMNS];
    [[unroll]] for (uint c = 0; c < COLUMNS; ++c) {
        const uint column = quad_column(quad, c);
        [[unroll]] for (uint part = 0; part < 4; ++part) {
            raw[c][part] = word(p.w_offset + block, column_word(column, 2 * part)) |
                           (word(p.w_offset + block, column_word(column, 2 * part + 1)) << 16);
        }
    }
    [[unroll]] for (uint c = 0; c < 4; ++c) {
        const uint  chunk = 4 * quad + c;
        const uvec4 from  = c < second_column_from(quad) ? raw[0] : raw[COLUMNS - 1];
        uvec4 bytes;
        [[unroll]] for (uint part = 0; part < 4; ++part) {
            bytes[part] = digits(from[part], chunk, part);
        }
        data_d[(block * BLOCK + chunk_begin(chunk)) / 16] = bytes;
    }
}

#else

// An invocation turns two bytes of a column in 16 neighbouring rows: 16 steps of k for two outputs in each chunk of a quad.
// Neighbours write neighbouring bytes (four of them) and read neighbouring bytes (the eight in one row).
void main() {
    const uint i    = gl_GlobalInvocationID.x;
    const uint pair = i / 4 % 8;
    const uint quad = i / 32 % (p.columns / QUAD);
    const uint k16  = i / 32 / (p.columns / QUAD) * 4 + i % 4;
    if (16 * k16 >= p.rows) {
        return;
    }
    const uint stride = p.columns / BLOCK;
    const uint block  = p.w_offset + 16 * k16 * stride + quad / QUADS;
    uvec4 left[COLUMNS];  // the first byte's, of 16 rows
    uvec4 right[COLUMNS]; // the second one's
    [[unroll]] for (uint c = 0; c < COLUMNS; ++c) {
        const uint w = column_word(quad_column(quad % QUADS, c), pair);
        [[unroll]] for (uint part = 0; part < 4; ++part) {
            const uint at   = block + 4 * part * stride;
            const uint low  = word(at, w) | (word(at + stride, w) << 16);
            const uint high = word(at + 2 * stride, w) | (word(at + 3 * stride, w) << 16);
            left[c][part]  = (low & 0xffu) | ((low >> 8) & 0xff00u) | ((high & 0xffu) << 16) | ((high << 8) & 0xff000000u);
            right[c][part] = ((low >> 8) & 0xffu) | ((low >> 16) & 0xff00u) | ((high << 8) & 0xff0000u) | (high & 0xff000000u);
        }
    }
    [[unroll]] for (uint c = 0; c < 4; ++c) {
        const bool first = c < second_column_from(quad % QUADS);
        const uint chunk = 4 * (quad % QUADS) + c;
        const uint m     = quad / QUADS * BLOCK + chunk_begin(chunk) + 2 * pair;
        uvec4 one;
        uvec4 two;
        [[unroll]] for (uint part = 0; part < 4; ++part) {
            one[part] = digits(first ? left[0][part] : left[COLUMNS - 1][part], chunk, pair / 2);
            two[part] = digits(first ? right[0][part] : right[COLUMNS - 1][part], chunk, pair / 2);
        }
        data_d[m * (p.rows / 16) + k16]       = one;
        data_d[(m + 1) * (p.rows / 16) + k16] = two;
    }
}

#endif
