// An instruction of qvac_tq_program.comp: rotary positions, the cache's new row and attention, of one token. A workgroup
// makes a query head. Its key and value it makes for itself, rounded to f16 as they go into the cache, and reads only the older ones
// from there.

const uint CODE_head = 2, CODE_heads = 3, CODE_key_heads = 4, CODE_keys = 5, CODE_scale = 6, CODE_rotated = 7, CODE_neox = 8;
const uint CODE_theta_scale = 9, CODE_freq_scale = 10, CODE_rotation_factor = 11;
const uint CODE_q = 12, CODE_k = 14, CODE_v = 16, CODE_key_cache = 20, CODE_value_cache = 22, CODE_mask = 24;
const uint CODE_position = 26, CODE_key_index = 28, CODE_value_index = 30, CODE_factors = 32;
const uint CODE_key_stride = 34, CODE_value_stride = 35; // of a token, in words

#define LOWEST uintBitsToFloat(0xff800000u) // minus infinity

const uint LANES_A_KEY = 4;
const uint ROUNDS      = ALONE != 0 ? 1 : 4;  // of keys that are under way at a time: 512 with a workgroup of 512
const uint AT_ONCE     = ALONE != 0 ? 4 : 12; // keys whose values a lane has under way
const uint MAX_PIECES  = MAX_HEAD / 8 / LANES_A_KEY; // of 8 values that a lane has of a key

shared float rotation[MAX_HEAD]; // cosines, then sines
shared float query[MAX_HEAD];
shared float key[MAX_HEAD];
shared float value[MAX_HEAD];
shared float scores[MAX_KEYS];

// What is under way: pieces of older keys, and what is added to their scores.
uvec4 pieces[ROUNDS * MAX_PIECES];
float masks[ROUNDS];

uint key_head_of(const uint head) {
    return head / (PARAM(heads) / PARAM(key_heads));
}

float mask_of(const uint t) {
    const vec2 two = unpackHalf2x16(words_at(ADDRESS(mask)).v[t / 2]);
    return (t & 1) == 0 ? two.x : two.y;
}

void ask_for_keys(const uint key_head, const uint t0) {
    const uint part   = gl_LocalInvocationID.x % LANES_A_KEY;
    const uint first  = t0 + gl_LocalInvocationID.x / LANES_A_KEY;
    const uint newest = words_at(ADDRESS(key_index)).v[0];
    words4_at cache = words4_at(ADDRESS(key_cache));
    [[unroll]] for (uint r = 0; r < ROUNDS; ++r) {
        const uint t = first + r * (BLOCK_SIZE / LANES_A_KEY);
        masks[r] = LOWEST;
        if (t < PARAM(keys)) {
            masks[r] = mask_of(t);
        }
    }
    [[unroll]] for (uint r = 0; r < ROUNDS; ++r) {
        const uint t  = first + r * (BLOCK_SIZE / LANES_A_KEY);
        const uint at = (t * PARAM(key_stride) + key_head * (PARAM(head) / 2)) / 4;
        if (masks[r] > LOWEST && t != newest) {
            [[unroll]] for (uint j = 0; j < MAX_PIECES; ++j) {
                if (j * LANES_A_KEY + part < PARAM(head) / 8) {
                    pieces[r * MAX_PIECES + j] = cache.v[at + j * LANES_A_KEY + part];
                }
            }
        }
    }
}

void prepare_attention() {
    const uint i = gl_LocalInvocationID.x;
    [[unroll]] for (uint r = 0; r < ROUNDS; ++r) {
        masks[r] = LOWEST;
    }
    [[unroll]] for (uint j = 0; j < ROUNDS * MAX_PIECES; ++j) {
        pieces[j] = uvec4(0);
    }
    if (gl_WorkGroupID.x < PARAM(heads)) {
        ask_for_keys(key_head_of(gl_WorkGroupID.x), 0);
    }
    // As upstream's rope_funcs.glsl.
    if (i < PARAM(rotated) / 2) {
        float theta = float(int(words_at(ADDRESS(position)).v[0])) * pow(FLOAT(theta_scale), float(i));
        if (exists(ADDRESS(factors))) {
            theta /= constants_at(ADDRESS(factors)).v[i];
        }
        theta *= FLOAT(freq_scale);
        rotation[i] = cos(theta) * FLOAT(rotation_factor);
        rotation[MAX_HEAD / 2 + i] = sin(theta) * FLOAT(rotation_factor);
    }
}

// To the nearest f16, half to even, whatever the device's packHalf2x16 does.
float as_f16(const float x) {
    const uint  bits = floatBitsToUint(x) & 0x7fffffffu;
    const uint  cut  = (bits + 0xfffu + ((bits >> 13) & 1)) & ~0x1fffu;
    precise const float shifted = uintBitsToFloat(bits) + 0.5; // its last place is the smallest f16
    precise const float tiny    = shifted - 0.5;
    const float y = bits < 0x38800000u ? tiny : uintBitsToFloat(cut);
    return (floatBitsToUint(x) >> 31) != 0 ? -y : y;
}

void load_head(const uint head, const uint key_head) {
    const uint n     = PARAM(head);
    const uint pairs = PARAM(rotated) / 2;
    floats_at q = floats_at(ADDRESS(q));
    floats_at k = floats_at(ADDRESS(k));
    floats_at v = floats_at(ADDRESS(v));
    for (uint i = gl_LocalInvocationID.x; i < n; i += BLOCK_SIZE) {
        const bool is_key = i >= n / 2;
        const uint pair   = is_key ? i - n / 2 : i;
        const bool turned = pair < pairs;
        const uint i0     = turned && PARAM(neox) != 0 ? pair : 2 * pair;
        const uint i1     = turned && PARAM(neox) != 0 ? pair + pairs : 2 * pair + 1;
        const float cosine = turned ? rotation[pair] : 1.0;
        const float sine   = turned ? rotation[MAX_HEAD / 2 + pair] : 0.0;
        if (is_key) {
            const vec2 x = vec2(k.v[key_head * n + i0], k.v[key_head * n + i1]);
            key[i0] = as_f16(x.x * cosine - x.y * sine);
            key[i1] = as_f16(x.x * sine + x.y * cosine);
        } else {
            const vec2 x = vec2(q.v[head * n + i0], q.v[head * n + i1]);
            query[i0] = x.x * cosine - x.y * sine;
            query[i1] = x.x * sine + x.y * cosine;
        }
        value[i] = as_f16(v.v[key_head * n + i]);
    }
    barrier();
}

void write_cache(const uint key_head) {
    const uint words = PARAM(head) / 2;
    const uint i     = gl_LocalInvocationID.x;
    if (i < words) {
        const uint row = words_at(ADDRESS(key_index)).v[0];
        results_at(ADDRESS(key_cache)).v[row * PARAM(key_stride) + key_head * words + i] = packHalf2x16(vec2(key[2 * i], key[2 * i + 1]));
    } else if (i < 2 * words) {
        const uint row = words_at(ADDRESS(value_index)).v[0];
        const uint j   = i - words;
        results_at(ADDRESS(value_cache)).v[row * PARAM(value_stride) + key_head * words + j] = packHalf2x16(vec2(value[2 * j], value[2 * j + 1]));
    }
}

float largest_of_all(float x) {
    x = subgroupMax(x);
    if (lane() == 0) {
        partial[group()] = x;
    }
    barrier();
    [[unroll]] for (uint g = 0; g < GROUPS; ++g) {
        x = max(x, partial[g]);
    }
    barrier();
    return x;
}

float dot8(const uvec4 a, const uint at) {
    float sum = 0.0;
    [[unroll]] for (uint j = 0; j < 4; ++j) {
        const vec2 two = unpackHalf2x16(a[j]);
        sum += two.x * query[at + 2 * j] + two.y * query[at + 2 * j + 1];
    }
    return sum;
}

float newest_dot8(const uint at) {
    float sum = 0.0;
    for (uint j = 0; j < 8; ++j) {
        sum += key[at + j] * query[at + j];
    }
    return sum;
}

// The scores of all keys, in shared memory, and the largest one.
float make_scores(const uint key_head) {
    const uint n      = PARAM(head);
    const uint part   = gl_LocalInvocationID.x % LANES_A_KEY;
    const uint newest = words_at(ADDRESS(key_index)).v[0];
    float top = LOWEST;
    for (uint t0 = 0; t0 < PARAM(keys); t0 += ROUNDS * BLOCK_SIZE / LANES_A_KEY) {
        if (t0 > 0) {
            ask_for_keys(key_head, t0);
        }
        [[unroll]] for (uint r = 0; r < ROUNDS; ++r) {
            const uint t = t0 + gl_LocalInvocationID.x / LANES_A_KEY + r * (BLOCK_SIZE / LANES_A_KEY);
            float score = 0.0;
            if (masks[r] > LOWEST) {
                [[unroll]] for (uint j = 0; j < MAX_PIECES; ++j) {
                    const uint d = (j * LANES_A_KEY + part) * 8;
                    if (d < n) {
                        score += t == newest ? newest_dot8(d) : dot8(pieces[r * MAX_PIECES + j], d);
                    }
                }
            }
            score += subgroupShuffleXor(score, 1);
            score += subgroupShuffleXor(score, 2);
            score = score * FLOAT(scale) + masks[r];
            if (t < PARAM(keys) && part == 0) {
                scores[t] = score;
            }
            top = max(top, score);
        }
    }
    return largest_of_all(top);
}

// Of the values each lane adds up 8 of a head's, of every so many keys. They are asked for before their factors are known.
float sums[8];

uint slices() {
    return BLOCK_SIZE / (PARAM(head) / 8);
}

void ask_for_values(const uint key_head, const uint t0) {
    const uint n = PARAM(head);
    const uint newest = words_at(ADDRESS(value_index)).v[0];
    words4_at cache = words4_at(ADDRESS(value_cache));
    [[unroll]] for (uint i = 0; i < AT_ONCE; ++i) {
        const uint t = t0 + i * slices() + gl_LocalInvocationID.x / (n / 8);
        pieces[i] = uvec4(0);
        if (t < PARAM(keys) && t != newest && scores[t] > LOWEST) {
            pieces[i] = cache.v[(t * PARAM(value_stride) + key_head * (n / 2)) / 4 + gl_LocalInvocationID.x % (n / 8)];
        }
    }
}

void add_values(const uint t0) {
    [[unroll]] for (uint i = 0; i < AT_ONCE; ++i) {
        const uint  t = t0 + i * slices() + gl_LocalInvocationID.x / (PARAM(head) / 8);
        const float e = t < PARAM(keys) ? scores[t] : 0.0;
        [[unroll]] for (uint j = 0; j < 4; ++j) {
            const vec2 two = unpackHalf2x16(pieces[i][j]);
            sums[2 * j]     += e * two.x;
            sums[2 * j + 1] += e * two.y;
        }
    }
}

void attend_head(const uint head) {
    const uint tid      = gl_LocalInvocationID.x;
    const uint n        = PARAM(head);
    const uint keys     = PARAM(keys);
    const uint key_head = key_head_of(head);
    load_head(head, key_head);
    if (head % (PARAM(heads) / PARAM(key_heads)) == 0) {
        write_cache(key_head);
    }
    const float top = make_scores(key_head);
    ask_for_values(key_head, 0);
    float sum = 0.0;
    float mine[MAX_KEYS / BLOCK_SIZE];
    [[unroll]] for (uint i = 0; i < MAX_KEYS / BLOCK_SIZE; ++i) {
        mine[i] = tid + i * BLOCK_SIZE < keys ? exp(scores[tid + i * BLOCK_SIZE] - top) : 0.0;
        sum += mine[i];
    }
    const float total = sum_of_all(sum); // a barrier: the scores are no longer read
    [[unroll]] for (uint i = 0; i < MAX_KEYS / BLOCK_SIZE; ++i) {
        if (tid + i * BLOCK_SIZE < keys) {
            scores[tid + i * BLOCK_SIZE] = mine[i];
        }
    }
    barrier();
    [[unroll]] for (uint j = 0; j < 8; ++j) {
        sums[j] = 0.0;
    }
    add_values(0);
    for (uint t0 = AT_ONCE * slices(); t0 < keys; t0 += AT_ONCE * slices()) {
        ask_for_values(key_head, t0);
        add_values(t0);
    }
    if (tid < slices() * (n / 8)) {
        [[unroll]] for (uint j = 0; j < 8; ++j) {
            tokens[tid * 8 + j] = floatBitsToUint(sums[j]); // by slice, and by dimension
        }
    }
    barrier();
    const uint part = tid % LANES_A_KEY;
    const uint d    = tid / LANES_A_KEY;
    float y = 0.0;
    if (d < n) {
        for (uint s = part; s < slices(); s += LANES_A_KEY) {
            y += uintBitsToFloat(tokens[s * n + d]);
        }
    }
    y += subgroupShuffleXor(y, 1);
    y += subgroupShuffleXor(y, 2);
    if (part == 0 && d < n) {
        const uint newest = words_at(ADDRESS(value_index)).v[0];
        floats_at(ADDRESS(y)).v[head * n + d] = (y + scores[newest] * value[d]) / total;
    }
    barrier();
}

void attend() {
    for (uint head = gl_WorkGroupID.x; head < PARAM(heads); head += gl_NumWorkGroups.x) {
        if (head != gl_WorkGroupID.x) {
            ask_for_keys(key_head_of(head), 0);
        }
        attend_head(head);
    }
}
