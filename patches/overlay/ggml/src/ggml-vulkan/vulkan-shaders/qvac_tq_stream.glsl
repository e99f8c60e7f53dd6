// A row of TQ1_0 or TQ2_0 weights as a stream of aligned 32-bit words, whatever the alignment of its blocks. Included with
// DATA_A_TQ1_0 or DATA_A_TQ2_0 defined.
//
// A block is an odd number of 16-bit halves, its scale the last; so a row begins at a word or in the middle of one
// (`parity`), and a word never holds digits of two blocks, for a scale lies between them. A byte of digits holds one digit of
// each of DIGITS weights, which lie apart in the row. Activations are brought into the same order once: word `t` of digit
// `d` holds the four activations that the d-th digits of the four bytes of the stream's word `t` meet, and zeros where
// those bytes are no digits. So a word of weights meets DIGITS words of activations, without a shuffle.
//
// The code of a weight is its value + 1 (qvac_tq_weights.glsl), so sum(q*t) = sum(q*c) - sum(q).

#if defined(DATA_A_TQ1_0)
const uint BLOCK_HALVES = 27;
const uint DIGITS       = 5;
#else
const uint BLOCK_HALVES = 33;
const uint DIGITS       = 4;
#endif

const uint BLOCK    = 256;
const uint NO_INDEX = 0xffffffffu;

// Which value of the row the d-th digit of half `h`'s first byte meets (the second byte meets the next one), or NO_INDEX.
// An unsigned -1 for the half before the row is none either.
uint stream_index(const uint h, const uint d, const uint row_halves) {
    if (h >= row_halves) {
        return NO_INDEX;
    }
    const uint block = h / BLOCK_HALVES;
    const uint at    = (h - block * BLOCK_HALVES) * 2; // byte of the block
    const uint begin = block * BLOCK;
#if defined(DATA_A_TQ1_0)
    if (at < 32) {
        return begin + 32 * d + at;
    }
    if (at < 48) {
        return begin + 160 + 16 * d + at - 32;
    }
    return at < 52 && d < 4 ? begin + 240 + 4 * d + at - 48 : NO_INDEX;
#else
    return at < 64 ? begin + at / 32 * 128 + 32 * d + at % 32 : NO_INDEX;
#endif
}

// The digits of a word of weights, one after another.
struct digit_reader {
#if defined(DATA_A_TQ1_0)
    uint even, odd; // bytes 0 and 2, and bytes 1 and 3, in 16 bits each, times a power of 3
    uint before;    // the digits of before, as numbers
#else
    uint rest;
#endif
};

digit_reader digits_of(const uint word) {
#if defined(DATA_A_TQ1_0)
    return digit_reader(word & 0x00ff00ffu, (word >> 8) & 0x00ff00ffu, 0);
#else
    return digit_reader(word);
#endif
}

// Four codes as bytes.
uint next_digits(inout digit_reader r) {
#if defined(DATA_A_TQ1_0)
    // A byte is ceil(v * 256/243) of a v of five digits: 3^k times the byte has the first k of them above its lowest 8 bits,
    // as a number of at most 242. Three times the number of before taken off, the k-th digit is left; no byte borrows.
    r.even *= 3;
    r.odd  *= 3;
#if defined(TQ_BYTES)
    const u8vec4 even = unpack8(r.even);
    const u8vec4 odd  = unpack8(r.odd);
    const uint number = pack32(u8vec4(even.y, odd.y, even.w, odd.w)); // one instruction where bytes can be picked
#else
    const uint number = ((r.even >> 8) & 0x00ff00ffu) | (r.odd & 0xff00ff00u);
#endif
    const uint digits = number - 3 * r.before;
    r.before = number;
    return digits;
#else
    const uint codes = r.rest & 0x03030303u;
    r.rest >>= 2;
    return codes;
#endif
}

#if defined(TQ_DOT)
int dot4(const uint a, const uint b) {
    return dotPacked4x8EXT(int(a), int(b));
}
#else
int dot4(const uint a, const uint b) {
    const int x = int(a);
    const int y = int(b);
    return bitfieldExtract(x, 0, 8) * bitfieldExtract(y, 0, 8) + bitfieldExtract(x, 8, 8) * bitfieldExtract(y, 8, 8) +
           bitfieldExtract(x, 16, 8) * bitfieldExtract(y, 16, 8) + (x >> 24) * (y >> 24);
}
#endif

// An f16 as a float; its denormals too, which devices may take for zero.
float scale_value(const uint bits) {
    if ((bits & 0x7c00u) == 0) {
        const float magnitude = float(bits & 0x3ffu) * uintBitsToFloat(uint(127 - 24) << 23);
        return (bits & 0x8000u) != 0 ? -magnitude : magnitude;
    }
    return unpackHalf2x16(bits).x;
}
