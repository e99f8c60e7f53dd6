// An instruction of qvac_tq_program.comp: rotary positions, the cache's new row and attention, of one token. A workgroup
// makes a query head. Its key and value it makes for itself, rounded to f16 as they go into the cache, and reads only the older ones
// from there.

const uint CODE_head = 2, CODE_heads = 3, CODE_key_heads = 4, CODE_keys = 5, CODE_scale = 6, CODE_rotated = 7, CODE_neox = 8;
const uint CODE_theta_scale = 9, CODE_freq_scale = 10, CODE_rotation_factor = 11;
const uint CODE_q = 12, CODE_k = 14, CODE_v = 16, CODE_key_cache = 20, CODE_value_cache = 22, CODE_mask = 24;
const uint CODE_position = 26, CODE_key_index = 28, CODE_value_index = 30, CODE_factors = 32;
const uint CODE_key_stride = 34, CODE_value_stride = 35; // of a token, in words

#define LOWEST uintBitsToFloat(0xff800000u) // minus infinity

const uint AT_ONCE     = 4; // keys whose values a lane asks for
const uint LANES_A_KEY = 4;
const uint MAX_PIECES  = MAX_HEAD / 8 / LANES_A_KEY; // of 8 values that a lane has of a key

shared float rotation[MAX_HEAD]; // cosines, then sines
shared float query[MAX_HEAD];
shared float key[MAX_HEAD];
shared float value[MAX_HEAD];
shared float scores[MAX_KEYS];

// As upstream's rope_funcs.glsl.
void prepare_attention() {
    const uint i = gl_LocalInvocationID.x;
    if (i < PARAM(rotated) / 2) {
        float theta = float(int(words_at(ADDRESS(position)).v[0])) * pow(FLOAT(theta_scale), float(i));
        if (exists(ADDRESS(factors))) {
            theta /= constants_at(ADDRESS(factors)).v[i];
        }
        theta *= FLOAT(freq_scale);
        const float factor = FLOAT(rotation_factor);
        rotation[i] = cos(theta) * factor;
        rotation[MAX_HEAD / 2 + i] = sin(theta) * factor;
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

float mask_of(const uint t) {
    const vec2 two = unpackHalf2x16(words_at(ADDRESS(mask)).v[t / 2]);
    return (t & 1) == 0 ? two.x : two.y;
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

// The scores of all keys, in shared memory, and the largest one.
float make_scores(const uint key_head) {
    const uint n      = PARAM(head);
    const uint keys   = PARAM(keys);
    const uint part   = gl_LocalInvocationID.x % LANES_A_KEY;
    const uint newest = words_at(ADDRESS(key_index)).v[0];
    words4_at cache = words4_at(ADDRESS(key_cache));
    float top = LOWEST;
    for (uint t0 = 0; t0 < keys; t0 += BLOCK_SIZE / LANES_A_KEY) {
        const uint  t    = t0 + gl_LocalInvocationID.x / LANES_A_KEY;
        const float mask = t < keys ? mask_of(t) : LOWEST;
        float score = 0.0;
        if (mask > LOWEST) {
            if (t == newest) {
                for (uint d = part; d < n; d += LANES_A_KEY) {
                    score += key[d] * query[d];
                }
            } else {
                const uint at = (t * PARAM(key_stride) + key_head * (n / 2)) / 4;
                uvec4 pieces[MAX_PIECES];
                [[unroll]] for (uint j = 0; j < MAX_PIECES; ++j) {
                    const uint piece = j * LANES_A_KEY + part;
                    if (piece < n / 8) {
                        pieces[j] = cache.v[at + piece];
                    }
                }
                [[unroll]] for (uint j = 0; j < MAX_PIECES; ++j) {
                    const uint piece = j * LANES_A_KEY + part;
                    if (piece < n / 8) {
                        score += dot8(pieces[j], piece * 8);
                    }
                }
            }
        }
        score += subgroupShuffleXor(score, 1);
        score += subgroupShuffleXor(score, 2);
        score = score * FLOAT(scale) + mask;
        if (t < keys && part == 0) {
            scores[t] = score;
        }
        top = max(top, score);
    }
    return largest_of_all(top);
}

// Of the values: each lane adds up 8 of a head's, of every so many keys.
void add_values(const uint head, const uint key_head, const float total) {
    const uint n      = PARAM(head);
    const uint keys   = PARAM(keys);
    const uint slices = BLOCK_SIZE / (n / 8);
    const uint piece  = gl_LocalInvocationID.x % (n / 8);
    const uint slice  = gl_LocalInvocationID.x / (n / 8);
    const uint newest = words_at(ADDRESS(value_index)).v[0];
    words4_at cache = words4_at(ADDRESS(value_cache));
    float sums[8];
    [[unroll]] for (uint j = 0; j < 8; ++j) {
        sums[j] = 0.0;
    }
    for (uint t0 = slice; t0 < keys && slice < slices; t0 += AT_ONCE * slices) {
        float factors[AT_ONCE];
        uvec4 pieces[AT_ONCE];
        [[unroll]] for (uint i = 0; i < AT_ONCE; ++i) {
            const uint t = t0 + i * slices;
            factors[i] = t < keys && t != newest ? scores[t] : 0.0;
            pieces[i]  = uvec4(0);
            if (factors[i] > 0.0) {
                pieces[i] = cache.v[(t * PARAM(value_stride) + key_head * (n / 2)) / 4 + piece];
            }
        }
        [[unroll]] for (uint i = 0; i < AT_ONCE; ++i) {
            [[unroll]] for (uint j = 0; j < 4; ++j) {
                const vec2 two = unpackHalf2x16(pieces[i][j]);
                sums[2 * j]     += factors[i] * two.x;
                sums[2 * j + 1] += factors[i] * two.y;
            }
        }
    }
    if (slice < slices) {
        [[unroll]] for (uint j = 0; j < 8; ++j) {
            tokens[slice * n + piece * 8 + j] = floatBitsToUint(sums[j]);
        }
    }
    barrier();
    for (uint d = gl_LocalInvocationID.x; d < n; d += BLOCK_SIZE) {
        float sum = scores[newest] * value[d];
        for (uint s = 0; s < slices; ++s) {
            sum += uintBitsToFloat(tokens[s * n + d]);
        }
        floats_at(ADDRESS(y)).v[head * n + d] = sum / total;
    }
}

void attend() {
    const uint group_size = PARAM(heads) / PARAM(key_heads);
    for (uint head = gl_WorkGroupID.x; head < PARAM(heads); head += gl_NumWorkGroups.x) {
        const uint key_head = head / group_size;
        load_head(head, key_head);
        if (head % group_size == 0) {
            write_cache(key_head);
        }
        const float top = make_scores(key_head);
        float sum = 0.0;
        for (uint t = gl_LocalInvocationID.x; t < PARAM(keys); t += BLOCK_SIZE) {
            const float e = exp(scores[t] - top);
            scores[t] = e;
            sum += e;
        }
        add_values(head, key_head, sum_of_all(sum));
        barrier();
    }
}
