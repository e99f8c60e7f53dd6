// TQ1_0 and TQ2_0 blocks as bytes of t in {-1, 0, 1}, four at a time. Included with DATA_A_TQ1_0 or DATA_A_TQ2_0 defined.
//
// A block holds its 256 weights in columns of 16 bytes; every byte holds one digit of each of several weights, and the n-th
// digits of a column are 16 weights in a row: a chunk. So a block is 16 chunks, taken here in the order of columns (and
// within one of digits), not in the order of weights: then four chunks, a quad, come from one column (TQ2_0) or two
// (TQ1_0). A sum may run in any order if its other operand is read in the same one, and so may outputs be computed.
//
// The code of a weight is t + 1 (ternary.h); the code 3 of a broken file is read as 2.

#if defined(DATA_A_TQ1_0)
const uint BLOCK_WORDS = 27; // in 16 bits
const uint SCALE_WORD  = 26;
const uint COLUMNS     = 2;  // that a quad comes from
#else
const uint BLOCK_WORDS = 33;
const uint SCALE_WORD  = 32;
const uint COLUMNS     = 1;
#endif

const uint BLOCK      = 256;
const uint CHUNK      = 16;
const uint QUAD       = 4 * CHUNK;
const uint QUADS      = BLOCK / QUAD;
const uint LAST_CHUNK = 15;

// Which weight of its block chunk `c` begins with.
uint chunk_begin(const uint c) {
#if defined(DATA_A_TQ1_0)
    // five digits in columns 0 to 2, then one chunk in the four bytes of column 3
    return c < 10 ? c % 5 * 32 + c / 5 * CHUNK : 160 + (c - 10) * CHUNK;
#else
    return c / 8 * 128 + c % 4 * 32 + c / 4 % 2 * CHUNK;
#endif
}

// Column `i` of those that quad `q` comes from.
uint quad_column(const uint q, const uint i) {
#if defined(DATA_A_TQ1_0)
    return (4 * q + 3 * i) / 5;
#else
    return q;
#endif
}

// 16-bit word `w` of a column of a block: column 3 of TQ1_0 has but two.
uint column_word(const uint column, const uint w) {
#if defined(DATA_A_TQ1_0)
    return 8 * column + (column == 3 ? w % 2 : w);
#else
    return 8 * column + w;
#endif
}

// The chunk in which quad `q` goes on with its second column.
uint second_column_from(const uint q) {
#if defined(DATA_A_TQ1_0)
    return (4 * q + 3) / 5 * 5 - 4 * q;
#else
    return 4;
#endif
}

// The digits of four bytes that belong to chunk `c` of a block, as bytes of t. The chunk of TQ1_0's column 3 lies across
// the digits of its four bytes: its weights `part`*4 and on are digit `part`.
uint digits(const uint raw, const uint c, const uint part) {
#if defined(DATA_A_TQ1_0)
    const uint n     = c == LAST_CHUNK ? part : c % 5;
    const uint power = n == 4 ? 81 : (0x1b090301u >> (8 * n)) & 0xffu; // 3^n
    // A byte is ceil(v * 256/243): times 3^n, digit n is what three times the rest carries into the ninth and tenth bit.
    const uint even  = (((raw & 0x00ff00ffu) * power) & 0x00ff00ffu) * 3;
    const uint odd   = ((((raw >> 8) & 0x00ff00ffu) * power) & 0x00ff00ffu) * 3;
    const uint codes = ((even >> 8) & 0x00030003u) | (odd & 0x03000300u);
#else
    const uint codes = (raw >> (c % 4 * 2)) & 0x03030303u;
#endif
    return (codes + 0x7f7f7f7fu) ^ 0x80808080u;
}

// An f16 as a float; its denormals too, which devices may take for zero.
float scale_value(const uint bits) {
    if ((bits & 0x7c00u) == 0) {
        const float magnitude = float(bits & 0x3ffu) * uintBitsToFloat(uint(127 - 24) << 23);
        return (bits & 0x8000u) != 0 ? -magnitude : magnitude;
    }
    return unpackHalf2x16(bits).x;
}
