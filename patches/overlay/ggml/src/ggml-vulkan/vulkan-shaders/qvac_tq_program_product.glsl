// An instruction of qvac_tq_program.comp: up to three ternary products of one token, with its norm before and scales,
// residual or gate behind (what qvac_tq_mul_mat_vec.comp does; the integers are the same).
//
// Every workgroup norms and quantizes the token for itself, into shared memory in the order of the weights' stream. Then
// each lane group makes bundles of ROWS rows, gate and up side by side.

const uint NORMED   = 1; // flags
const uint GLU      = 2;
const uint RELU_SQR = 4;

shared int   token_sum;
shared float matrix_scale[3];

// What is under way: words of the next rows, and the token's norm.
uint     next_words[ROWS * UNROLL];
uint64_t next_rows[ROWS]; // addresses of a lane's first words
vec4     norms[VALUES4];

float token_factor; // that a sum of the quantized token is multiplied with

// ---- which rows are a lane group's

uint row_words;   // of a row, with what it shares with its neighbours
uint parity;      // where rows have an odd number of halves, those of one parity at a time
uint n_units;     // rows of this parity, or pairs of gate and up
uint n_bundles;
uint first_bundle;
uint bundle_step;

uint units_a_bundle() {
    return (PARAM(flags) & GLU) != 0 ? ROWS / 2 : ROWS;
}

uint odd_rows() {
    return PARAM(row_halves) & 1;
}

void share_out(const uint this_parity) {
    const uint odd   = odd_rows();
    const uint units = units_a_bundle();
    parity       = subgroupBroadcastFirst(this_parity);
    row_words    = subgroupBroadcastFirst((PARAM(row_halves) + parity + 1) / 2);
    n_units      = subgroupBroadcastFirst((PARAM(units) + odd - parity) >> odd);
    n_bundles    = subgroupBroadcastFirst((n_units + units - 1) / units);
    const uint n = ALONE != 0 ? 1 : gl_NumWorkGroups.x >> odd;
    const uint i = ALONE != 0 ? 0 : gl_WorkGroupID.x >> odd;
    first_bundle = subgroupBroadcastFirst(group() * n + i);
    bundle_step  = subgroupBroadcastFirst(GROUPS * n);
}

// `part`: gate or up.
void place(const uint unit, const uint part, out uint matrix, out uint row) {
    const bool glu = (PARAM(flags) & GLU) != 0;
    matrix = glu ? part : unit < PARAM(begin1) ? 0 : unit < PARAM(begin2) ? 1 : 2;
    row    = glu || matrix == 0 ? unit : matrix == 1 ? unit - PARAM(begin1) : unit - PARAM(begin2);
}

uint unit_of(const uint i) {
    return (i << odd_rows()) + parity;
}

void find_rows(const uint bundle) {
    const bool glu = (PARAM(flags) & GLU) != 0;
    [[unroll]] for (uint r = 0; r < ROWS; ++r) {
        const uint i = min(bundle * units_a_bundle() + (glu ? r / 2 : r), n_units - 1);
        uint matrix, row;
        place(unit_of(i), glu ? r % 2 : 0, matrix, row);
        next_rows[r] = packUint2x32(address(CODE_w + 2 * matrix)) + (row * PARAM(row_halves) / 2 + lane()) * 4;
    }
}

// Asks for word `u` of the next rows, of whose words there are `words`. What a lane reads beyond them meets zeros; it is memory
// of the tensor's (get_alloc_size), which is known of a device's own memory only.
void ask_for(const uint u, const uint words) {
    if (u * LANES < words && (ALONE == 0 || u * LANES + lane() < words)) {
        [[unroll]] for (uint r = 0; r < ROWS; ++r) {
            next_words[u * ROWS + r] = words_at(next_rows[r]).v[u * LANES];
        }
    }
}

void begin_rows(const uint this_parity) {
    share_out(this_parity);
    [[unroll]] for (uint i = 0; i < ROWS * UNROLL; ++i) {
        next_words[i] = 0; // so that no register is kept for what was there
    }
    if (first_bundle < n_bundles) {
        find_rows(first_bundle);
        [[unroll]] for (uint u = 0; u < UNROLL; ++u) {
            ask_for(u, row_words);
        }
    }
}

// ---- before other workgroups are waited for

void clear_tokens() {
    for (uint i = gl_LocalInvocationID.x; i < DIGITS * PLANE; i += BLOCK_SIZE) {
        tokens[i] = 0;
    }
    if (gl_LocalInvocationID.x == 0) {
        token_sum = 0;
    }
}

void prepare_product() {
    begin_rows(ALONE != 0 ? 0 : gl_WorkGroupID.x & odd_rows());
    constants4_at norm = constants4_at(ADDRESS(norm));
    const uint n_norms = (PARAM(flags) & NORMED) != 0 ? PARAM(n) / 4 : 0;
    [[unroll]] for (uint j = 0; j < VALUES4; ++j) {
        const uint i = gl_LocalInvocationID.x + j * BLOCK_SIZE;
        norms[j] = vec4(0.0);
        if (i < n_norms) {
            norms[j] = norm.v[i];
        }
    }
    if (gl_LocalInvocationID.x < 3 && exists(address(CODE_s + 2 * gl_LocalInvocationID.x))) {
        matrix_scale[gl_LocalInvocationID.x] = constants_at(address(CODE_s + 2 * gl_LocalInvocationID.x)).v[0];
    }
}

// ---- the token

// The half of the stream, and before it the plane, that have the first of four values from 4*i4 on.
uint place_in_stream(const uint i4) {
    const uint block = i4 * 4 / BLOCK;
    const uint r     = i4 * 4 % BLOCK;
#if defined(DATA_A_TQ1_0)
    const uint d  = r < 160 ? r / 32 : r < 240 ? (r - 160) / 16 : (r - 240) / 4;
    const uint at = r < 160 ? r % 32 : r < 240 ? 32 + r % 16 : 48;
#else
    const uint d  = r % 128 / 32;
    const uint at = r / 128 * 32 + r % 32;
#endif
    return d * 2 * PLANE + block * BLOCK_HALVES + at / 2 + parity;
}

void put_token(const uint half_at, const uint q) {
    if ((half_at & 1) == 0) {
        tokens[half_at / 2] = q;
    } else {
        atomicOr(tokens[half_at / 2], q << 16);
        atomicOr(tokens[half_at / 2 + 1], q >> 16);
    }
}

void quantize_token() {
    const uint tid = gl_LocalInvocationID.x;
    const uint n4  = PARAM(n) / 4;
    vec4 xs[VALUES4];
    floats4_at x = floats4_at(ADDRESS(x));
    [[unroll]] for (uint j = 0; j < VALUES4; ++j) {
        xs[j] = vec4(0.0);
        if (tid + j * BLOCK_SIZE < n4) {
            xs[j] = x.v[tid + j * BLOCK_SIZE];
        }
    }
    if ((PARAM(flags) & NORMED) != 0) {
        const float norm_scale = norm_scale_of(xs);
        [[unroll]] for (uint j = 0; j < VALUES4; ++j) {
            // as upstream's rms_norm.comp multiplies
            precise const vec4 normed = norm_scale * xs[j];
            precise const vec4 y      = normed * norms[j];
            xs[j] = y;
        }
    }
    // As integers the magnitudes compare as the floats do, and a NaN is above all.
    uvec4 tops = uvec4(0);
    [[unroll]] for (uint j = 0; j < VALUES4; ++j) {
        tops = max(tops, floatBitsToUint(xs[j]) & ABS_MASK);
    }
    const token_scaling scaling = scaling_of_all(max(max(tops.x, tops.y), max(tops.z, tops.w)));
    token_factor = scaling.factor;
    const uint at = place_in_stream(tid);
    int sum = 0;
    [[unroll]] for (uint j = 0; j < VALUES4; ++j) {
        if (tid + j * BLOCK_SIZE < n4 && scaling.value != 0.0) { // else x may be no number
            const uint q = token_bytes(xs[j], scaling);
            sum += dot4(0x01010101u, q);
            put_token(at + j * (BLOCK_SIZE * 4 / BLOCK * BLOCK_HALVES), q);
        }
    }
    sum = subgroupAdd(sum);
    if (lane() == 0) {
        atomicAdd(token_sum, sum);
    }
    barrier();
}

// ---- the rows

float scaled(const uint matrix, const int sum) {
    precise const float scale = token_factor * uintBitsToFloat(code(CODE_d + matrix));
    precise const float y     = float(sum) * scale;
    if (!exists(ADDRESS(s))) {
        return y;
    }
    precise const float z = y * matrix_scale[matrix];
    return z;
}

// Sums of one row: of TQ2_0 digits that lie in other places of their bytes, so that none need be moved, are apart.
#if defined(DATA_A_TQ2_0)
const uint SUMS = 3 * ROWS;
#else
const uint SUMS = ROWS;
#endif

// Adds word `u` of each row, which meets the token from `at` on.
void add_word(inout int acc[SUMS], const uint u, const uint at) {
#if defined(DATA_A_TQ2_0)
    [[unroll]] for (uint d = 0; d < DIGITS; ++d) {
        const uint q = tokens[d * PLANE + at];
        [[unroll]] for (uint r = 0; r < ROWS; ++r) {
            const uint word  = next_words[u * ROWS + r];
            const uint codes = d == 3 ? (word >> 6) & 0x03030303u : word & (0x03030303u << (2 * d)); // times 4^d, below 128
            acc[d % 3 * ROWS + r] += dot4(codes, q);
        }
    }
#else
    digit_reader readers[ROWS];
    [[unroll]] for (uint r = 0; r < ROWS; ++r) {
        readers[r] = digits_of(next_words[u * ROWS + r]);
    }
    [[unroll]] for (uint d = 0; d < DIGITS; ++d) {
        const uint q = tokens[d * PLANE + at];
        [[unroll]] for (uint r = 0; r < ROWS; ++r) {
            acc[r] += dot4(next_digits(readers[r]), q);
        }
    }
#endif
}

int sum_of_row(const int acc[SUMS], const uint r) {
#if defined(DATA_A_TQ2_0)
    return acc[r] + (acc[ROWS + r] >> 2) + (acc[2 * ROWS + r] >> 4);
#else
    return acc[r];
#endif
}

void finish_bundle(const uint bundle, const int acc[SUMS], const float residual) {
    const bool glu = (PARAM(flags) & GLU) != 0;
    int sum0 = 0;
    int sum1 = 0;
    [[unroll]] for (uint r = 0; r < ROWS; ++r) {
        const int sum = subgroupAdd(sum_of_row(acc, r)) - token_sum;
        if (lane() == (glu ? r / 2 : r)) {
            if (glu && r % 2 == 1) {
                sum1 = sum;
            } else {
                sum0 = sum;
            }
        }
    }
    const uint i = bundle * units_a_bundle() + lane();
    if (lane() < units_a_bundle() && i < n_units) {
        uint matrix, row;
        place(unit_of(i), 0, matrix, row);
        float y = scaled(matrix, sum0);
        if (glu) {
            precise const float z = activated(y, (PARAM(flags) & RELU_SQR) != 0) * scaled(1, sum1);
            y = z;
        }
        if (exists(ADDRESS(add))) {
            precise const float z = y + residual;
            y = z;
        }
        floats_at(address(CODE_y + 2 * matrix)).v[row] = y;
    }
}

// What is added to a lane's result of the bundle.
float residual_of(const uint bundle) {
    const uint i = bundle * units_a_bundle() + lane();
    if (exists(ADDRESS(add)) && lane() < units_a_bundle() && i < n_units) {
        return floats_at(ADDRESS(add)).v[unit_of(i)];
    }
    return 0.0;
}

void make_rows() {
    for (uint b = first_bundle; b < n_bundles; b += bundle_step) {
        const float residual = residual_of(b);
        int acc[SUMS];
        [[unroll]] for (uint r = 0; r < SUMS; ++r) {
            acc[r] = 0;
        }
        for (uint w0 = 0; w0 < row_words; w0 += LANES * UNROLL) {
            // When a word has been used, the next is asked for in its place: of these rows, or of the bundle behind.
            const uint here = row_words - w0;
            uint       then = 0;
            if (here > LANES * UNROLL) {
                then = here - LANES * UNROLL;
                [[unroll]] for (uint r = 0; r < ROWS; ++r) {
                    next_rows[r] += LANES * UNROLL * 4;
                }
            } else if (b + bundle_step < n_bundles) {
                then = row_words;
                find_rows(b + bundle_step);
            }
            [[unroll]] for (uint u = 0; u < UNROLL; ++u) {
                if (u * LANES < here) {
                    add_word(acc, u, w0 + u * LANES + lane());
                }
                ask_for(u, then);
            }
        }
        finish_bundle(b, acc, residual);
    }
}

void make_product() {
    // Alone, a workgroup makes one parity after the other.
    const uint passes = ALONE != 0 ? 1 + odd_rows() : 1;
    for (uint pass = 0; pass < passes; ++pass) {
        if (pass > 0) {
            barrier();
            clear_tokens();
            begin_rows(pass);
            barrier();
        }
        quantize_token();
        make_rows();
    }
}
