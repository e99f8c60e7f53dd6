// An instruction of qvac_tq_program.comp: rotary positions, the cache's new row and attention, of one token. Where there are
// several times as many workgroups as query heads, those of a head share its keys, and the last of them to be done adds up what
// all have made. The new key and value they make for themselves, rounded to f16 as they go into the cache, and read only the older
// ones from there.
//
// Within a workgroup each lane group has keys of its own, and their values: it makes their scores, the largest, their weights
// (exponentials of what they are below it) and the sum of their values so weighted, without waiting for another. Then all
// lane groups' sums are brought to one scale and added up; those of several workgroups likewise.

const uint LANES_A_KEY = 4;
const uint KEYS        = LANES / LANES_A_KEY;        // of a lane group, at a time
const uint ALL_KEYS    = BLOCK_SIZE / LANES_A_KEY;   // of a workgroup
const uint PIECES      = MAX_HEAD / 8 / LANES_A_KEY; // of 8 values, that a lane has of a key, and of several keys' values
const uint SPLIT       = LANES < MAX_HEAD / 8 ? MAX_HEAD / 8 / LANES : 1; // pieces of the same values
const uint SHARE       = MAX_HEAD + 2;               // floats: a sum of values, their weights' sum, the largest score

shared float weights[ALL_KEYS];
shared float tops[GROUPS];   // the largest score of each lane group
shared float totals[GROUPS]; // the sum of its weights

// What is under way: pieces of older keys and values, and what is added to the scores.
uvec4 key_pieces[PIECES];
uvec4 value_pieces[PIECES];
float mask;

// How heads, keys and values are shared out.
uint sharing;           // workgroups of a head
uint first_head;        // of this workgroup
uint share;             // of its keys: which
uint begin_key;
uint end_key;
uint value_lanes;       // a lane group adds up several values at a time, each in lanes of its own
uint values_at_a_time;
uint value_slice;       // a lane's, and its place in it
uint value_lane;

void share_out_heads() {
    const uint keys = PARAM(keys);
    const uint most = ALONE != 0 ? 1 : min(gl_NumWorkGroups.x / PARAM(heads), MAX_SHARES);
    sharing    = max(1, min(most, (keys + 63) / 64));
    first_head = gl_WorkGroupID.x / sharing;
    share      = gl_WorkGroupID.x - first_head * sharing;
    const uint n = ((keys + sharing - 1) / sharing + KEYS - 1) / KEYS * KEYS;
    begin_key  = share * n;
    end_key    = min(keys, begin_key + n);
    value_lanes      = min(PARAM(head) / 8, LANES);
    values_at_a_time = LANES / value_lanes;
    value_slice      = lane() / value_lanes;
    value_lane       = lane() - value_slice * value_lanes;
}

void ask_for_keys(const uint key_head, const uint t0) {
    const uint n8    = PARAM(head) / 8;
    const uint part  = lane() % LANES_A_KEY;
    const uint first = t0 + group() * KEYS;
    const uint t     = first + lane() / LANES_A_KEY;
    mask = LOWEST;
    if (t < end_key) {
        const vec2 two = unpackHalf2x16(words_at(ADDRESS(mask)).v[t / 2]);
        mask = t == newest() ? LOWEST : (t & 1) == 0 ? two.x : two.y;
        words4_at cache = words4_at(ADDRESS(key_cache));
        const uint at = t * (PARAM(key_stride) / 4) + key_head * n8 + part;
        [[unroll]] for (uint j = 0; j < PIECES; ++j) {
            if (j * LANES_A_KEY + part < n8) {
                key_pieces[j] = cache.v[at + j * LANES_A_KEY];
            }
        }
    }
    words4_at cache = words4_at(ADDRESS(value_cache));
    [[unroll]] for (uint j = 0; j < PIECES; ++j) {
        const uint k     = j / SPLIT * values_at_a_time + value_slice;
        const uint piece = value_lane + j % SPLIT * LANES;
        if (value_slice < values_at_a_time && k < KEYS && first + k < end_key && piece < n8) {
            value_pieces[j] = cache.v[(first + k) * (PARAM(value_stride) / 4) + key_head * n8 + piece];
        }
    }
}

void prepare_attention() {
    const uint i = gl_LocalInvocationID.x;
    [[unroll]] for (uint j = 0; j < PIECES; ++j) {
        key_pieces[j]   = uvec4(0);
        value_pieces[j] = uvec4(0);
    }
    mask = LOWEST;
    share_out_heads();
    if (first_head < PARAM(heads)) {
        ask_for_keys(key_head_of(first_head), begin_key);
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

// ---- a lane group's keys

float top;             // the largest score
float total;           // the sum of the weights
float sums[SPLIT * 8]; // a lane's share of the sum of values

// Of a score or a sum made with `score` for the largest, where `all` is the largest of all.
float weight_of(const float score, const float all) {
    return score > LOWEST ? exp(score - all) : 0.0;
}

// The new key is one lane group's first.
void begin_sums(const bool has_newest) {
    const uint n = PARAM(head);
    top   = LOWEST;
    total = 0.0;
    [[unroll]] for (uint j = 0; j < SPLIT * 8; ++j) {
        sums[j] = 0.0;
    }
    if (has_newest && group() == 0) {
        float score = 0.0;
        for (uint i = lane(); i < n; i += LANES) {
            score += query[i] * key[i];
        }
        top   = subgroupAdd(score) * FLOAT(scale);
        total = 1.0;
        [[unroll]] for (uint s = 0; s < SPLIT; ++s) {
            const uint piece = lane() + s * LANES;
            if (piece < n / 8) {
                [[unroll]] for (uint j = 0; j < 8; ++j) {
                    sums[s * 8 + j] = value[piece * 8 + j];
                }
            }
        }
    }
}

// Adds the keys and values that were asked for.
void add_keys() {
    const uint n8   = PARAM(head) / 8;
    const uint part = lane() % LANES_A_KEY;
    float score = 0.0;
    [[unroll]] for (uint j = 0; j < PIECES; ++j) {
        const uint piece = j * LANES_A_KEY + part;
        if (piece < n8) {
            [[unroll]] for (uint i = 0; i < 4; ++i) {
                const vec2 two = unpackHalf2x16(key_pieces[j][i]);
                score += two.x * query[piece * 8 + 2 * i];
                score += two.y * query[piece * 8 + 2 * i + 1];
            }
        }
    }
    score += subgroupShuffleXor(score, 1);
    score += subgroupShuffleXor(score, 2);
    score = mask > LOWEST ? score * FLOAT(scale) + mask : LOWEST;

    const float new_top = max(top, subgroupMax(score));
    const float keep    = weight_of(top, new_top);
    const float mine    = weight_of(score, new_top);
    if (part == 0) {
        weights[group() * KEYS + lane() / LANES_A_KEY] = mine;
    }
    total = total * keep + subgroupAdd(part == 0 ? mine : 0.0);
    top   = new_top;
    [[unroll]] for (uint j = 0; j < SPLIT * 8; ++j) {
        sums[j] *= keep;
    }
    subgroupMemoryBarrierShared();
    subgroupBarrier();
    [[unroll]] for (uint j = 0; j < PIECES; ++j) {
        const uint  k      = j / SPLIT * values_at_a_time + value_slice;
        const float weight = value_slice < values_at_a_time && k < KEYS ? weights[group() * KEYS + k] : 0.0;
        if (weight > 0.0) { // else there may be no numbers
            [[unroll]] for (uint i = 0; i < 4; ++i) {
                const vec2 two = unpackHalf2x16(value_pieces[j][i]);
                sums[j % SPLIT * 8 + 2 * i]     += weight * two.x;
                sums[j % SPLIT * 8 + 2 * i + 1] += weight * two.y;
            }
        }
    }
    subgroupBarrier();
}

// ---- the head

uint64_t share_at(const uint head, const uint i) {
    return packUint2x32(ADDRESS(shares)) + (head * MAX_SHARES + i) * SHARE * 4;
}

// Adds up the lane groups, as many values at a time as lanes have pieces. The only workgroup of a head writes the result, one of
// several its share.
void add_groups(const uint head) {
    const uint width = value_lanes * 8;
    const uint part  = gl_LocalInvocationID.x % LANES_A_KEY;
    floats_at mine = floats_at(share_at(head, share));
    if (lane() == 0) {
        tops[group()]   = top;
        totals[group()] = total;
    }
    [[unroll]] for (uint s = 0; s < SPLIT; ++s) {
        if (value_slice < values_at_a_time) {
            const uint at = (group() * values_at_a_time + value_slice) * width + value_lane;
            [[unroll]] for (uint j = 0; j < 8; ++j) {
                tokens[at + j * value_lanes] = floatBitsToUint(sums[s * 8 + j]);
            }
        }
        barrier();
        float all = LOWEST;
        [[unroll]] for (uint g = 0; g < GROUPS; ++g) {
            all = max(all, tops[g]);
        }
        for (uint i = gl_LocalInvocationID.x / LANES_A_KEY; i < min(width, PARAM(head) - s * width); i += BLOCK_SIZE / LANES_A_KEY) {
            float y = 0.0;
            float z = 0.0;
            for (uint g = part; g < GROUPS; g += LANES_A_KEY) {
                float sum = 0.0;
                for (uint k = 0; k < values_at_a_time; ++k) {
                    sum += uintBitsToFloat(tokens[(g * values_at_a_time + k) * width + i]);
                }
                const float weight = weight_of(tops[g], all);
                y += weight * sum;
                z += weight * totals[g];
            }
            y += subgroupShuffleXor(y, 1);
            z += subgroupShuffleXor(z, 1);
            y += subgroupShuffleXor(y, 2);
            z += subgroupShuffleXor(z, 2);
            if (part == 0) {
                const uint d = s * width + i % value_lanes * 8 + i / value_lanes;
                if (sharing == 1) {
                    put_result(head, d, y / z);
                } else {
                    mine.v[d] = y;
                    if (d == 0) {
                        mine.v[MAX_HEAD]     = z;
                        mine.v[MAX_HEAD + 1] = all;
                    }
                }
            }
        }
        if (SPLIT > 1) {
            barrier();
        }
    }
}

// The last workgroup of a head to be done adds up all shares.
void add_shares(const uint head) {
    memoryBarrierBuffer();
    barrier();
    if (gl_LocalInvocationID.x == 0) {
        n_done = atomicAdd(control.done[head], 1);
    }
    barrier();
    if (n_done != sharing - 1) {
        return;
    }
    memoryBarrierBuffer();
    for (uint d = gl_LocalInvocationID.x; d < PARAM(head); d += BLOCK_SIZE) {
        // All are asked for before one is waited for.
        float values[MAX_SHARES];
        float totals[MAX_SHARES];
        float tops[MAX_SHARES];
        [[unroll]] for (uint s = 0; s < MAX_SHARES; ++s) {
            values[s] = 0.0;
            totals[s] = 0.0;
            tops[s]   = LOWEST;
            if (s < sharing) {
                floats_at made = floats_at(share_at(head, s));
                values[s] = made.v[d];
                totals[s] = made.v[MAX_HEAD];
                tops[s]   = made.v[MAX_HEAD + 1];
            }
        }
        float all = LOWEST;
        [[unroll]] for (uint s = 0; s < MAX_SHARES; ++s) {
            all = max(all, tops[s]);
        }
        float y = 0.0;
        float z = 0.0;
        [[unroll]] for (uint s = 0; s < MAX_SHARES; ++s) {
            const float weight = weight_of(tops[s], all);
            y += weight * values[s];
            z += weight * totals[s];
        }
        put_result(head, d, y / z);
    }
    if (gl_LocalInvocationID.x == 0) {
        control.done[head] = 0;
    }
}

void attend() {
    const uint step = gl_NumWorkGroups.x / sharing; // more than there are heads where these are shared
    for (uint head = first_head; head < PARAM(heads); head += step) {
        const uint key_head = key_head_of(head);
        if (head != first_head) {
            barrier(); // what the head before left in shared memory has been read
            ask_for_keys(key_head, begin_key);
        }
        load_head(head, key_head);
        if (share == 0 && head % (PARAM(heads) / PARAM(key_heads)) == 0) {
            write_cache(key_head);
        }
        begin_sums(share == 0);
        add_keys();
        for (uint t0 = begin_key + ALL_KEYS; t0 < end_key; t0 += ALL_KEYS) {
            ask_for_keys(key_head, t0);
            add_keys();
        }
        add_groups(head);
        if (sharing > 1) {
            add_shares(head);
        }
    }
}
