// What attention has of a program's instruction, in either arithmetic: its words, the new query, key and value of a head with their
// rotation, and the cache's new row.

const uint CODE_head = 2, CODE_heads = 3, CODE_key_heads = 4, CODE_keys = 5, CODE_scale = 6, CODE_rotated = 7, CODE_neox = 8;
const uint CODE_theta_scale = 9, CODE_freq_scale = 10, CODE_rotation_factor = 11;
const uint CODE_q = 12, CODE_k = 14, CODE_v = 16, CODE_key_cache = 20, CODE_value_cache = 22, CODE_mask = 24;
const uint CODE_position = 26, CODE_key_index = 28, CODE_value_index = 30, CODE_factors = 32;
const uint CODE_key_stride = 34, CODE_value_stride = 35; // of a token, in words
const uint CODE_shares = 36;

#define LOWEST uintBitsToFloat(0xff800000u) // minus infinity

shared float rotation[MAX_HEAD]; // cosines, then sines
shared float query[MAX_HEAD];
shared float key[MAX_HEAD];
shared float value[MAX_HEAD];
shared uint  n_done; // workgroups of the head

uint key_head_of(const uint head) {
    return head / (PARAM(heads) / PARAM(key_heads));
}

uint newest() {
    return words_at(ADDRESS(key_index)).v[0];
}

#if defined(EXACT)
float stored(const float x) {
    return x; // rounded when it is packed
}

uint halves(const vec2 x) {
    return exact_to_f16(x.x) | (exact_to_f16(x.y) << 16);
}
#else
// To the nearest f16, half to even, whatever the device's packHalf2x16 does.
float stored(const float x) {
    const uint  bits = floatBitsToUint(x) & 0x7fffffffu;
    const uint  cut  = (bits + 0xfffu + ((bits >> 13) & 1)) & ~0x1fffu;
    precise const float shifted = uintBitsToFloat(bits) + 0.5; // its last place is the smallest f16
    precise const float tiny    = shifted - 0.5;
    const float y = bits < 0x38800000u ? tiny : uintBitsToFloat(cut);
    return (floatBitsToUint(x) >> 31) != 0 ? -y : y;
}

uint halves(const vec2 x) {
    return packHalf2x16(x);
}
#endif

vec2 turned(const vec2 x, const uint pair) {
    const float c = rotation[pair];
    const float s = rotation[MAX_HEAD / 2 + pair];
    precise const float y0 = x.x * c - x.y * s;
    precise const float y1 = x.x * s + x.y * c;
    return vec2(y0, y1);
}

void load_head(const uint head, const uint key_head) {
    const uint n     = PARAM(head);
    const uint pairs = PARAM(rotated) / 2;
    floats_at q = floats_at(ADDRESS(q));
    floats_at k = floats_at(ADDRESS(k));
    floats_at v = floats_at(ADDRESS(v));
    for (uint i = gl_LocalInvocationID.x; i < n; i += BLOCK_SIZE) {
        const bool is_key    = i >= n / 2;
        const uint pair      = is_key ? i - n / 2 : i;
        const bool is_turned = pair < pairs;
        const uint i0        = is_turned && PARAM(neox) != 0 ? pair : 2 * pair;
        const uint i1        = is_turned && PARAM(neox) != 0 ? pair + pairs : 2 * pair + 1;
        vec2 x = is_key ? vec2(k.v[key_head * n + i0], k.v[key_head * n + i1]) : vec2(q.v[head * n + i0], q.v[head * n + i1]);
        if (is_turned) {
            x = turned(x, pair);
        }
        if (is_key) {
            key[i0] = stored(x.x);
            key[i1] = stored(x.y);
        } else {
            query[i0] = x.x;
            query[i1] = x.y;
        }
        value[i] = stored(v.v[key_head * n + i]);
    }
    barrier();
}

void write_cache(const uint key_head) {
    const uint words = PARAM(head) / 2;
    const uint i     = gl_LocalInvocationID.x;
    if (i < words) {
        results_at(ADDRESS(key_cache)).v[newest() * PARAM(key_stride) + key_head * words + i] = halves(vec2(key[2 * i], key[2 * i + 1]));
    } else if (i < 2 * words) {
        const uint row = words_at(ADDRESS(value_index)).v[0];
        const uint j   = i - words;
        results_at(ADDRESS(value_cache)).v[row * PARAM(value_stride) + key_head * words + j] = halves(vec2(value[2 * j], value[2 * j + 1]));
    }
}

void put_result(const uint head, const uint d, const float y) {
    floats_at(ADDRESS(y)).v[head * PARAM(head) + d] = y;
}
