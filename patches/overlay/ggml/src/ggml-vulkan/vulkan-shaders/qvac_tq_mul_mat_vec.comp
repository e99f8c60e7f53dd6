#version 450

// Products of up to 8 tokens with TQ1_0 or TQ2_0 weights, exact in integers (contract T0; the formulas are in ternary.h of
// ggml-cpu), and what stands around them when one token is generated:
//
//     y = W quantize(x),  or  W quantize(rms_norm(x) * norm),  for up to three W that share the token
//     y = y * scale + add,  or  silu(scale0 * W0 q) * (scale1 * W1 q)
//
// A lane group (a subgroup where the device says how large one is) makes ROWS rows at a time. Its lanes read neighbouring
// words of a row, with ROWS * UNROLL reads of each under way, and meet the same words of activations in shared memory with
// every row (qvac_tq_stream.glsl). A workgroup goes on to further rows when it is done, so that it brings the token to
// shared memory once. Where x is floats, every workgroup quantizes the token for itself: that is less work than a dispatch
// of its own takes to start and to be waited for.

#extension GL_EXT_control_flow_attributes : enable
#extension GL_GOOGLE_include_directive : enable
#if defined(TQ_DOT)
#extension GL_EXT_integer_dot_product : require
#extension GL_KHR_shader_subgroup_basic : require
#extension GL_KHR_shader_subgroup_arithmetic : require
#endif

layout(constant_id = 0) const uint BLOCK_SIZE = 256;
layout(constant_id = 1) const uint LANES      = 32;  // of a lane group
layout(constant_id = 2) const uint ROWS       = 2;
layout(constant_id = 3) const uint COLS       = 1;   // tokens
layout(constant_id = 4) const uint UNROLL     = 2;
layout(constant_id = 5) const uint CHUNK      = 128; // words of a row at a time, a multiple of LANES * UNROLL
layout(constant_id = 6) const uint GLU        = 0;   // matrices 0 and 1 are gate and up: 1 SwiGLU, 2 a squared ReLU
layout(constant_id = 7) const uint MIXED      = 0;   // blocks differ in scale: ROWS, COLS and UNROLL are 1
layout(constant_id = 8) const uint SOURCE     = 0;   // x: 0 quantized tokens, 1 floats, 2 floats to be normed (COLS 1)

layout(local_size_x_id = 0, local_size_y = 1, local_size_z = 1) in;

// Offsets and strides are in words.
layout(push_constant) uniform parameter {
    uint  n;                  // values a row
    uint  row_halves;         // 16-bit words of a row
    uint  units;              // rows, of all matrices; with GLU of one
    uint  tokens;
    uint  begin1, begin2;     // the first rows of matrices 1 and 2
    uint  w_offset0, w_offset1, w_offset2;
    uint  d_offset0, d_offset1, d_offset2;
    uint  d_stride0, d_stride1, d_stride2;
    uint  s_offset0, s_offset1, s_offset2; // NO_INDEX: no scale
    float d0, d1, d2;
    uint  x_offset, x_stride;
    uint  norm_offset;
    uint  add_offset, add_stride;          // NO_INDEX: no add
    float eps;
} p;

layout(binding = 0) readonly buffer W { uint data_w[]; };
layout(binding = 1) readonly buffer X { uint data_x[]; };
layout(binding = 1) readonly buffer X2 { vec2 data_x2[]; };
layout(binding = 1) readonly buffer X4 { vec4 data_x4[]; };
layout(binding = 2) readonly buffer N2 { vec2 data_norm2[]; };
layout(binding = 2) readonly buffer N4 { vec4 data_norm4[]; };
layout(binding = 3) readonly buffer S { float data_scale[]; };
layout(binding = 4) readonly buffer A { float data_add[]; };
layout(binding = 5) buffer D { float data_d[]; };

#include "qvac_tq_stream.glsl"
#include "qvac_tq_token.glsl"

const uint GROUPS = BLOCK_SIZE / LANES;
const uint PARTS  = GLU != 0 ? 2 : 1;
const uint SUMS   = ROWS * PARTS;

shared uint  tokens[COLS * DIGITS * CHUNK];
shared int   token_sums[COLS];
shared float token_scales[COLS];
// Partial sums: of the norm, of lanes without subgroup operations, and the blocks' products of mixed scales.
shared float partial[BLOCK_SIZE];

token_scaling scaling;
float norm_scale;

uint lane() {
#if defined(TQ_DOT)
    return gl_SubgroupInvocationID;
#else
    return gl_LocalInvocationID.x % LANES;
#endif
}

uint group() {
#if defined(TQ_DOT)
    return gl_SubgroupID;
#else
    return gl_LocalInvocationID.x / LANES;
#endif
}

// ---- the token

float float_of(const float x, const float norm) {
    if (SOURCE == 2) {
        // as upstream's rms_norm.comp multiplies
        precise const float normed = norm_scale * x;
        precise const float y      = normed * norm;
        return y;
    }
    return x;
}

// Over the workgroup, the same in all invocations.
float sum_of_all(float sum) {
    const uint tid = gl_LocalInvocationID.x;
#if defined(TQ_DOT)
    sum = subgroupAdd(sum);
    if (lane() == 0) {
        partial[group()] = sum;
    }
    barrier();
    sum = 0.0;
    [[unroll]] for (uint g = 0; g < GROUPS; ++g) {
        sum += partial[g];
    }
#else
    partial[tid] = sum;
    barrier();
    [[unroll]] for (uint half_size = BLOCK_SIZE / 2; half_size > 0; half_size /= 2) {
        if (tid < half_size) {
            sum += partial[tid + half_size];
            partial[tid] = sum;
        }
        barrier();
    }
    sum = partial[0];
#endif
    barrier();
    return sum;
}

uint top_of_all(uint top) {
    const uint tid = gl_LocalInvocationID.x;
#if defined(TQ_DOT)
    top = subgroupMax(top);
    if (lane() == 0) {
        partial[group()] = uintBitsToFloat(top);
    }
    barrier();
    [[unroll]] for (uint g = 0; g < GROUPS; ++g) {
        top = max(top, floatBitsToUint(partial[g]));
    }
#else
    partial[tid] = uintBitsToFloat(top);
    barrier();
    [[unroll]] for (uint half_size = BLOCK_SIZE / 2; half_size > 0; half_size /= 2) {
        if (tid < half_size) {
            top = max(top, floatBitsToUint(partial[tid + half_size]));
            partial[tid] = uintBitsToFloat(top);
        }
        barrier();
    }
    top = floatBitsToUint(partial[0]);
#endif
    barrier();
    return top;
}

// Makes one token of floats ready to be quantized.
void find_scales() {
    const uint x4 = p.x_offset / 4;
    const uint n4 = p.norm_offset / 4;
    if (SOURCE == 2) {
        float sum = 0.0;
        for (uint i = gl_LocalInvocationID.x; i < p.n / 4; i += BLOCK_SIZE) {
            const vec4 x = data_x4[x4 + i];
            sum += dot(x, x);
        }
        norm_scale = inversesqrt(sum_of_all(sum) / float(p.n) + p.eps);
    }
    // As integers the magnitudes compare as the floats do, and a NaN is above all.
    uint top = 0;
    for (uint i = gl_LocalInvocationID.x; i < p.n / 4; i += BLOCK_SIZE) {
        const vec4 x    = data_x4[x4 + i];
        const vec4 norm = SOURCE == 2 ? data_norm4[n4 + i] : vec4(1.0);
        [[unroll]] for (uint j = 0; j < 4; ++j) {
            top = max(top, floatBitsToUint(float_of(x[j], norm[j])) & ABS_MASK);
        }
    }
    top = top_of_all(top);

    scaling = scaling_of(top);
    if (gl_LocalInvocationID.x == 0) {
        token_scales[0] = scaling.factor;
    }
}

// Two bytes of a token that follow one another, from an even `i` on.
uint token_half(const uint token, const uint i) {
    if (i == NO_INDEX) {
        return 0;
    }
    if (SOURCE == 0) {
        return (data_x[p.x_offset + token * p.x_stride + i / 4] >> (i % 4 * 8)) & 0xffffu;
    }
    if (scaling.value == 0.0) {
        return 0; // x may be no number
    }
    const vec2 x    = data_x2[(p.x_offset + i) / 2];
    const vec2 norm = SOURCE == 2 ? data_norm2[(p.norm_offset + i) / 2] : vec2(1.0);
    return uint(token_byte(float_of(x.x, norm.x), scaling.value, scaling.tiny) & 0xff) |
           (uint(token_byte(float_of(x.y, norm.y), scaling.value, scaling.tiny) & 0xff) << 8);
}

// `count` words of the row's stream, from `first` on, to shared memory, with zeros behind the row.
void fill(const uint first, const uint count, const uint parity, const bool sum) {
    int sums[COLS];
    [[unroll]] for (uint c = 0; c < COLS; ++c) {
        sums[c] = 0;
    }
    for (uint i = gl_LocalInvocationID.x; i < count * DIGITS; i += BLOCK_SIZE) {
        const uint d  = i / count;
        const uint t  = i - d * count;
        const uint h  = 2 * (first + t) - parity;
        const uint i0 = stream_index(h, d, p.row_halves);
        const uint i1 = stream_index(h + 1, d, p.row_halves);
        [[unroll]] for (uint c = 0; c < COLS; ++c) {
            const uint token = min(c, p.tokens - 1) + gl_WorkGroupID.y;
            const uint q     = token_half(token, i0) | (token_half(token, i1) << 16);
            tokens[(c * DIGITS + d) * CHUNK + t] = q;
            sums[c] += dot4(0x01010101u, q);
        }
    }
    if (sum) {
        [[unroll]] for (uint c = 0; c < COLS; ++c) {
#if defined(TQ_DOT)
            sums[c] = subgroupAdd(sums[c]);
            if (gl_SubgroupInvocationID == 0) {
                atomicAdd(token_sums[c], sums[c]);
            }
#else
            atomicAdd(token_sums[c], sums[c]);
#endif
        }
    }
    barrier();
}

// ---- rows

// A row of the stacked matrices: its matrix, its number there, and the word it begins in.
struct row_place {
    uint matrix;
    uint row;
    uint word;
};

row_place place_of(const uint unit, const uint part) {
    row_place r;
    r.matrix = GLU != 0 ? part : unit < p.begin1 ? 0 : unit < p.begin2 ? 1 : 2;
    r.row    = GLU != 0 || r.matrix == 0 ? unit : r.matrix == 1 ? unit - p.begin1 : unit - p.begin2;
    r.word   = (r.matrix == 0 ? p.w_offset0 : r.matrix == 1 ? p.w_offset1 : p.w_offset2) + r.row * p.row_halves / 2;
    return r;
}

float scaled(const row_place r, const float y) {
    const uint at = r.matrix == 0 ? p.s_offset0 : r.matrix == 1 ? p.s_offset1 : p.s_offset2;
    if (at == NO_INDEX) {
        return y;
    }
    precise const float z = y * data_scale[at];
    return z;
}

float product(const row_place r, const int sum, const float a) {
    const float d = r.matrix == 0 ? p.d0 : r.matrix == 1 ? p.d1 : p.d2;
    precise const float scale = a * d;
    precise const float y     = float(sum) * scale;
    return y;
}

void put(const row_place r, const uint token, const float y) {
    const uint stride = r.matrix == 0 ? p.d_stride0 : r.matrix == 1 ? p.d_stride1 : p.d_stride2;
    const uint at     = (r.matrix == 0 ? p.d_offset0 : r.matrix == 1 ? p.d_offset1 : p.d_offset2) + token * stride + r.row;
    if (p.add_offset == NO_INDEX) {
        data_d[at] = y;
    } else {
        precise const float z = y + data_add[p.add_offset + token * p.add_stride + r.row];
        data_d[at] = z;
    }
}

// The sum over the lanes of a group, in all of them.
int over_lanes(int sum) {
#if defined(TQ_DOT)
    return subgroupAdd(sum);
#else
    const uint tid = gl_LocalInvocationID.x;
    barrier();
    partial[tid] = intBitsToFloat(sum);
    barrier();
    [[unroll]] for (uint half_size = LANES / 2; half_size > 0; half_size /= 2) {
        if (lane() < half_size) {
            sum += floatBitsToInt(partial[tid + half_size]);
            partial[tid] = intBitsToFloat(sum);
        }
        barrier();
    }
    return floatBitsToInt(partial[group() * LANES]);
#endif
}

// What a unit's sums become.
void finish(const uint unit, const bool there, const int sum0, const int sum1, const uint c) {
    if (!there || c >= p.tokens) {
        return;
    }
    const uint  token = c + gl_WorkGroupID.y;
    const float a     = token_scales[c];
    const row_place r = place_of(unit, 0);
    float y = scaled(r, product(r, sum0, a));
    if (GLU != 0) {
        const row_place up = place_of(unit, 1);
        y = activated(y, GLU == 2) * scaled(up, product(up, sum1, a));
    }
    put(r, token, y);
}

// Blocks that differ in scale: each lane sums blocks of its own, and their products are added in the order of blocks.
void mixed_row(const uint unit, const bool there, const uint parity, const uint words) {
    const uint      n_blocks = p.n / BLOCK;
    const uint      base     = group() * LANES;
    const row_place r        = place_of(unit, 0);
    precise float   y        = 0.0;
    for (uint b0 = 0; b0 < n_blocks; b0 += LANES) {
        const uint b = b0 + lane();
        precise float block_product = 0.0;
        if (b < n_blocks) {
            const uint begin = b * BLOCK_HALVES + parity;
            int sum = 0;
            for (uint t = begin / 2; t <= (begin + BLOCK_HALVES - 2) / 2; ++t) {
                digit_reader reader = digits_of(data_w[r.word + t]);
                [[unroll]] for (uint d = 0; d < DIGITS; ++d) {
                    const uint q = tokens[d * CHUNK + t];
                    sum += dot4(next_digits(reader), q) - dot4(0x01010101u, q);
                }
            }
            const uint at = begin + BLOCK_HALVES - 1;
            block_product = float(sum) * scale_value((data_w[r.word + at / 2] >> (at % 2 * 16)) & 0xffffu);
        }
        barrier();
        partial[gl_LocalInvocationID.x] = block_product;
        barrier();
        for (uint i = 0; i < min(LANES, n_blocks - b0); ++i) {
            y = y + partial[base + i];
        }
    }
    if (there && lane() == 0) {
        precise const float z = y * token_scales[0];
        put(r, gl_WorkGroupID.y, scaled(r, z));
    }
}

// The words of weights that a lane multiplies next. They are asked for one step ahead, the first before the token is
// quantized, so that memory is never idle.
uint next_words[SUMS * UNROLL];

void ask_for(const uint first_unit, const uint units, const uint odd, const uint parity, const uint w0, const uint words) {
    [[unroll]] for (uint r = 0; r < SUMS; ++r) {
        const uint unit = (min(first_unit + r / PARTS, units - 1) << odd) + parity;
        const uint at   = place_of(unit, r % PARTS).word;
        [[unroll]] for (uint u = 0; u < UNROLL; ++u) {
            // behind the row there are zeros for activations
            next_words[u * SUMS + r] = data_w[at + min(w0 + u * LANES + lane(), words - 1)];
        }
    }
}

void main() {
    // Rows that begin in the middle of a word need the activations one half further: then every second workgroup makes
    // those, and the others the rest.
    const uint odd    = p.row_halves & 1;
    const uint parity = odd & gl_WorkGroupID.x;
    const uint wg     = gl_WorkGroupID.x >> odd;
    const uint n_wg   = (gl_NumWorkGroups.x + odd - parity) >> odd;
    const uint units  = (p.units + odd - parity) >> odd; // of this parity
    const uint words  = (p.row_halves + parity + 1) / 2;

    const uint rows = GROUPS * ROWS;   // of a workgroup at a time
    const uint step = LANES * UNROLL; // words of a row at a time
    if (wg * rows >= units) {
        return;
    }
    if (MIXED == 0) {
        ask_for(wg * rows + group() * ROWS, units, odd, parity, 0, words);
    }

    if (gl_LocalInvocationID.x < COLS) {
        token_sums[gl_LocalInvocationID.x] = 0;
        if (SOURCE == 0) {
            const uint token = min(gl_LocalInvocationID.x, p.tokens - 1) + gl_WorkGroupID.y;
            token_scales[gl_LocalInvocationID.x] = uintBitsToFloat(data_x[p.x_offset + token * p.x_stride + p.n / 4]);
        }
    }
    if (SOURCE != 0) {
        find_scales();
    }
    barrier();

    for (uint u0 = wg * rows; u0 < units; u0 += n_wg * rows) {
        const bool first_rows = u0 == wg * rows;
        const uint mine       = u0 + group() * ROWS;

        if (MIXED != 0) {
            if (first_rows) {
                fill(0, words, parity, false);
            }
            mixed_row((min(mine, units - 1) << odd) + parity, mine < units, parity, words);
            continue;
        }

        int acc[SUMS * COLS];
        [[unroll]] for (uint i = 0; i < SUMS * COLS; ++i) {
            acc[i] = 0;
        }

        for (uint w0 = 0; w0 < words; w0 += step) {
            const uint in_chunk = w0 % CHUNK;
            if (in_chunk == 0 && (words > CHUNK || first_rows)) {
                if (!first_rows || w0 != 0) {
                    barrier(); // the words of before are no longer read
                }
                fill(w0, (min(CHUNK, words - w0) + step - 1) / step * step, parity, first_rows);
            }
            uint w[SUMS * UNROLL];
            [[unroll]] for (uint i = 0; i < SUMS * UNROLL; ++i) {
                w[i] = next_words[i];
            }
            const bool row_ends = w0 + step >= words;
            if (!row_ends || u0 + n_wg * rows < units) {
                ask_for(row_ends ? mine + n_wg * rows : mine, units, odd, parity, row_ends ? 0 : w0 + step, words);
            }
            [[unroll]] for (uint u = 0; u < UNROLL; ++u) {
                digit_reader readers[SUMS];
                [[unroll]] for (uint r = 0; r < SUMS; ++r) {
                    readers[r] = digits_of(w[u * SUMS + r]);
                }
                [[unroll]] for (uint d = 0; d < DIGITS; ++d) {
                    uint q[COLS];
                    [[unroll]] for (uint c = 0; c < COLS; ++c) {
                        q[c] = tokens[(c * DIGITS + d) * CHUNK + in_chunk + u * LANES + lane()];
                    }
                    [[unroll]] for (uint r = 0; r < SUMS; ++r) {
                        const uint codes = next_digits(readers[r]);
                        [[unroll]] for (uint c = 0; c < COLS; ++c) {
                            acc[r * COLS + c] += dot4(codes, q[c]);
                        }
                    }
                }
            }
        }

        // Every lane has every sum; lane i finishes the i-th.
        [[unroll]] for (uint i = 0; i < SUMS * COLS; ++i) {
            acc[i] = over_lanes(acc[i]) - token_sums[i % COLS];
        }
        for (uint i0 = 0; i0 < ROWS * COLS; i0 += LANES) {
            int  sum0 = 0;
            int  sum1 = 0;
            const uint i = i0 + lane();
            [[unroll]] for (uint j = 0; j < ROWS * COLS; ++j) {
                if (i == j) {
                    sum0 = acc[j / COLS * PARTS * COLS + j % COLS];
                    sum1 = acc[(j / COLS * PARTS + PARTS - 1) * COLS + j % COLS];
                }
            }
            const uint unit = mine + i / COLS;
            finish((min(unit, units - 1) << odd) + parity, i < ROWS * COLS && unit < units, sum0, sum1, i % COLS);
        }
    }
}
