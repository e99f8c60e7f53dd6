// Weights of any type as halves, eight neighbours of a row at a time, in two steps, so that a shader can have the bytes of
// its next tile on the way while it computes: `load_weights` reads them as they are, `weights` makes halves of them.
//
// The including shader says which type by DATA_A_*. A row is contiguous (but see ALONG of float types), and blocks are read
// as they lie, in units of two bytes: few types align them better.

#define WEIGHT_RUN 8

struct raw_weights {
    uvec4 v; // of a quantized type, mostly: the bytes that hold the eight values
    uvec2 s; // and what scales them
};

layout(binding = 0) readonly buffer A16 { uint16_t data_a16[]; };

#if defined(DATA_A_F16) || defined(DATA_A_BF16)

#define BLOCK 1
layout(binding = 0) readonly buffer A128 { uvec4 data_a128[]; };

// `row` is where the row begins. With ALIGNED, runs of eight lie at multiples of 16 bytes; else every value is read by
// itself, `along` apart from the next and not beyond `last`.
raw_weights load_weights(const uint row, const uint c, const uint along, const uint last) {
    raw_weights raw;
    raw.s = uvec2(0);
    if (ALIGNED != 0) {
        raw.v = data_a128[(row + c) / 8];
    } else {
        [[unroll]] for (uint i = 0; i < 4; ++i) {
            raw.v[i] = uint(data_a16[row + min(c + 2 * i, last) * along]) |
                       (uint(data_a16[row + min(c + 2 * i + 1, last) * along]) << 16);
        }
    }
    return raw;
}

uvec4 weights(const raw_weights raw, const uint c) {
#if defined(DATA_A_F16)
    return raw.v;
#else
    uvec4 halves;
    [[unroll]] for (uint i = 0; i < 4; ++i) {
        halves[i] = packFloat2x16(f16vec2(vec2(uintBitsToFloat(raw.v[i] << 16), uintBitsToFloat(raw.v[i] & 0xffff0000u))));
    }
    return halves;
#endif
}

#else

uint word(const uint at) {
    return uint(data_a16[at]);
}

uint two_words(const uint at) {
    return word(at) | (word(at + 1) << 16);
}

// Each type says: BLOCK, how many values a block has; WORDS, how many units of two bytes; how to read what eight values
// from `c` of the block at `at` need; `quants`, their integers as bytes, not negative; `scales`, so that a value is
// (integer - OFFSET) * scales.x + scales.y.

#if defined(DATA_A_Q4_0)

#define BLOCK 32
#define WORDS 9
#define OFFSET 8.0

raw_weights load_block(const uint at, const uint c) {
    const uint q = at + 1 + c % 16 / 2;
    return raw_weights(uvec4(two_words(q), two_words(q + 2), 0, 0), uvec2(word(at), 0));
}

uvec2 quants(const raw_weights raw, const uint c) {
    return (raw.v.xy >> (c / 16 * 4)) & 0x0f0f0f0fu;
}

vec2 scales(const raw_weights raw, const uint c) {
    return vec2(unpackHalf2x16(raw.s.x).x, 0.0);
}

#elif defined(DATA_A_Q4_1)

#define BLOCK 32
#define WORDS 10
#define OFFSET 0.0

raw_weights load_block(const uint at, const uint c) {
    const uint q = at + 2 + c % 16 / 2;
    return raw_weights(uvec4(two_words(q), two_words(q + 2), 0, 0), uvec2(two_words(at), 0));
}

uvec2 quants(const raw_weights raw, const uint c) {
    return (raw.v.xy >> (c / 16 * 4)) & 0x0f0f0f0fu;
}

vec2 scales(const raw_weights raw, const uint c) {
    return unpackHalf2x16(raw.s.x);
}

#elif defined(DATA_A_Q5_0)

#define BLOCK 32
#define WORDS 11
#define OFFSET 16.0

raw_weights load_block(const uint at, const uint c) {
    const uint q = at + 3 + c % 16 / 2;
    return raw_weights(uvec4(two_words(q), two_words(q + 2), two_words(at + 1), 0), uvec2(word(at), 0));
}

// Bits 0 to 3 as bit 4 of four bytes.
uint fifth_bits(const uint b) {
    return ((b & 1) << 4) | ((b & 2) << 11) | ((b & 4) << 18) | ((b & 8) << 25);
}

uvec2 quants(const raw_weights raw, const uint c) {
    const uint bits = raw.v.z >> c;
    return ((raw.v.xy >> (c / 16 * 4)) & 0x0f0f0f0fu) | uvec2(fifth_bits(bits), fifth_bits(bits >> 4));
}

vec2 scales(const raw_weights raw, const uint c) {
    return vec2(unpackHalf2x16(raw.s.x).x, 0.0);
}

#elif defined(DATA_A_Q8_0)

#define BLOCK 32
#define WORDS 17
#define OFFSET 128.0

raw_weights load_block(const uint at, const uint c) {
    const uint q = at + 1 + c / 2;
    return raw_weights(uvec4(two_words(q), two_words(q + 2), 0, 0), uvec2(word(at), 0));
}

uvec2 quants(const raw_weights raw, const uint c) {
    return raw.v.xy ^ 0x80808080u;
}

vec2 scales(const raw_weights raw, const uint c) {
    return vec2(unpackHalf2x16(raw.s.x).x, 0.0);
}

#elif defined(DATA_A_Q4_K)

#define BLOCK 256
#define WORDS 72
#define OFFSET 0.0

layout(binding = 0) readonly buffer A32 { uint data_a32[]; }; // blocks are of 144 bytes

raw_weights load_block(const uint at, const uint c) {
    const uint b = at / 2;
    const uint q = b + 4 + c / 64 * 8 + c % 32 / 4;
    return raw_weights(uvec4(data_a32[q], data_a32[q + 1], data_a32[b + 1], data_a32[b + 2]),
                       uvec2(data_a32[b + 3], data_a32[b]));
}

uvec2 quants(const raw_weights raw, const uint c) {
    return (raw.v.xy >> (c / 32 % 2 * 4)) & 0x0f0f0f0fu;
}

// Six bits each for the scales and minima of eight runs of 32: of the last four, the high two bits lie above the others'.
vec2 scales(const raw_weights raw, const uint c) {
    const uint run   = c / 32;
    const uint shift = run % 4 * 8;
    const uint low   = raw.v.z >> shift;
    const uint mid   = raw.v.w >> shift;
    const uint high  = raw.s.x >> shift;
    const uint scale = run < 4 ? low & 63 : (high & 15) | ((low >> 2) & 48);
    const uint least = run < 4 ? mid & 63 : ((high >> 4) & 15) | ((mid >> 2) & 48);
    return unpackHalf2x16(raw.s.y) * vec2(float(scale), -float(least));
}

#elif defined(DATA_A_Q6_K)

#define BLOCK 256
#define WORDS 105
#define OFFSET 32.0

// In each half of a block, values 32 apart share bytes: the first 64 have the low nibbles of `ql`, all four the bytes of `qh`.
raw_weights load_block(const uint at, const uint c) {
    const uint ql = at + c / 128 * 32 + c / 32 % 2 * 16 + c % 32 / 2;
    const uint qh = at + 64 + c / 128 * 16 + c % 32 / 2;
    return raw_weights(uvec4(two_words(ql), two_words(ql + 2), two_words(qh), two_words(qh + 2)),
                       uvec2(word(at + 104), word(at + 96 + c / 32)));
}

uvec2 quants(const raw_weights raw, const uint c) {
    return ((raw.v.xy >> (c / 64 % 2 * 4)) & 0x0f0f0f0fu) | (((raw.v.zw >> (c / 32 % 4 * 2)) & 0x03030303u) << 4);
}

vec2 scales(const raw_weights raw, const uint c) {
    return vec2(unpackHalf2x16(raw.s.x).x * float(bitfieldExtract(int(raw.s.y), int(c / 16 % 2 * 8), 8)), 0.0);
}

#elif defined(DATA_A_TQ2_0)

#define BLOCK 256
#define WORDS 33
#define OFFSET 1.0

raw_weights load_block(const uint at, const uint c) {
    const uint q = at + c / 128 * 16 + c % 32 / 2;
    return raw_weights(uvec4(two_words(q), two_words(q + 2), 0, 0), uvec2(word(at + 32), 0));
}

uvec2 quants(const raw_weights raw, const uint c) {
    return (raw.v.xy >> (c / 32 % 4 * 2)) & 0x03030303u;
}

vec2 scales(const raw_weights raw, const uint c) {
    return vec2(unpackHalf2x16(raw.s.x).x, 0.0);
}

#elif defined(DATA_A_TQ1_0)

#define BLOCK 256
#define WORDS 27
#define OFFSET 1.0

// Five values a byte: 32 bytes for 160 values, 16 for 80, and four, of four values each, for the last 16.
raw_weights load_block(const uint at, const uint c) {
    const uint q = at + (c < 160 ? c % 32 / 2 : c < 240 ? 16 + c % 16 / 2 : 24);
    return raw_weights(uvec4(two_words(q), two_words(c < 240 ? q + 2 : q), 0, 0), uvec2(word(at + 26), 0));
}

// A byte is a fraction in base three: times a power of it, the next digit is what times three leaves a byte.
uint digits(const uint bytes, const uint digit) {
    const uint power = digit == 0 ? 1 : digit == 1 ? 3 : digit == 2 ? 9 : digit == 3 ? 27 : 81;
    const uint even  = ((bytes & 0x00ff00ffu) * power) & 0x00ff00ffu;
    const uint odd   = (((bytes >> 8) & 0x00ff00ffu) * power) & 0x00ff00ffu;
    return ((even * 3) >> 8 & 0x00030003u) | ((odd * 3) & 0x03000300u);
}

uvec2 quants(const raw_weights raw, const uint c) {
    const uint digit = c < 160 ? c / 32 : c < 240 ? (c - 160) / 16 : (c - 240) / 4;
    return uvec2(digits(raw.v.x, digit), digits(raw.v.y, c < 240 ? digit : digit + 1));
}

vec2 scales(const raw_weights raw, const uint c) {
    return vec2(unpackHalf2x16(raw.s.x).x, 0.0);
}

#endif

// `row` is the block with which the row begins.
raw_weights load_weights(const uint row, const uint c, const uint along, const uint last) {
    return load_block((row + c / BLOCK) * WORDS, c % BLOCK);
}

// A byte below 2^23 becomes a float by being its last bits: GPUs convert integers slowly.
float from_byte(const uint bytes, const uint i) {
    return uintBitsToFloat(0x4b000000u | ((bytes >> (8 * i)) & 0xffu)) - (8388608.0 + OFFSET);
}

uvec4 weights(const raw_weights raw, const uint c) {
    const uvec2 q = quants(raw, c % BLOCK);
    const vec2  s = scales(raw, c % BLOCK);
    uvec4 halves;
    [[unroll]] for (uint i = 0; i < 4; ++i) {
        const vec2 pair = vec2(from_byte(q[i / 2], 2 * (i % 2)), from_byte(q[i / 2], 2 * (i % 2) + 1));
        halves[i] = packFloat2x16(f16vec2(pair * s.x + s.y));
    }
    return halves;
}

#endif
