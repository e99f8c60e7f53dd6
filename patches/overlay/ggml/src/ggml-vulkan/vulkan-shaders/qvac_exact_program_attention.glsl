// Attention of qvac_tq_program.comp in exact arithmetic (docs/exactness.md). As in qvac_tq_program_attention.glsl a head's
// workgroups share its keys, but what they share out is chunks, and what they hand over is each chunk's largest score, sum of weights
// and sum of values so weighted: the last of them to be done adds these up in their order. The new key and value lie in their
// chunk as the older ones do.
//
// A workgroup makes four chunks at a time: scores with four lanes a key, a segment of 32 products each; weights with
// an invocation a key; and sums of values with an invocation for two of them, over the chunk's keys one after another.

const uint CODE_theta_fraction = 9, CODE_freq_fraction = 38; // of turns, two words each (exact-angle.h)

const uint CHUNK       = 32;
const uint LANES_A_KEY = MAX_HEAD / 32;
const uint ALL_KEYS    = BLOCK_SIZE / LANES_A_KEY; // of a workgroup, at a time
const uint CHUNKS      = ALL_KEYS / CHUNK;
const uint MAX_CHUNKS  = 64;                       // of a head (VK_QVAC_PROGRAM_MAX_KEYS)
const uint SHARE       = MAX_HEAD + 2;             // floats: a sum of values, their weights' sum, the largest score
const uint BATCH       = 8;                        // chunks that are asked for before one is waited for

const uint MASKED = 0xffffffffu; // for a score or weight: no bits that arithmetic makes

shared uint  scores[ALL_KEYS];
shared uint  weights[ALL_KEYS];
shared float tops[MAX_CHUNKS];
shared float totals[MAX_CHUNKS];
shared float factors[MAX_CHUNKS];

// What is under way: of a key, the values of a segment; two values of each of a chunk's keys; and what is added to the score.
uvec4 key_pieces[4];
uint  value_words[CHUNK];
float mask;

// How heads, keys and values are shared out.
uint n_chunks;
uint sharing;     // workgroups of a head
uint first_head;  // of this workgroup
uint share;       // of its keys: which
uint begin_key;
uint end_key;
uint value_chunk; // of those at a time, whose values are an invocation's
uint value_word;

void share_out_heads() {
    const uint keys = PARAM(keys);
    const uint most = ALONE != 0 ? 1 : min(gl_NumWorkGroups.x / PARAM(heads), MAX_SHARES);
    n_chunks   = (keys + CHUNK - 1) / CHUNK;
    sharing    = max(1, min(most, (n_chunks + 1) / 2));
    first_head = gl_WorkGroupID.x / sharing;
    share      = gl_WorkGroupID.x - first_head * sharing;
    const uint n = (n_chunks + sharing - 1) / sharing * CHUNK;
    begin_key   = share * n;
    end_key     = min(keys, begin_key + n);
    value_chunk = gl_LocalInvocationID.x / (PARAM(head) / 2);
    value_word  = gl_LocalInvocationID.x - value_chunk * (PARAM(head) / 2);
}

void ask_for_keys(const uint key_head, const uint t0) {
    const uint n8   = PARAM(head) / 8;
    const uint part = lane() % LANES_A_KEY;
    const uint t    = t0 + gl_LocalInvocationID.x / LANES_A_KEY;
    mask = LOWEST;
    if (t < end_key) {
        mask = exact_from_f16((words_at(ADDRESS(mask)).v[t / 2] >> (t % 2 * 16)) & 0xffffu);
        words4_at cache = words4_at(ADDRESS(key_cache));
        const uint at = t * (PARAM(key_stride) / 4) + key_head * n8;
        [[unroll]] for (uint j = 0; j < 4; ++j) {
            if (part * 4 + j < n8) {
                key_pieces[j] = cache.v[at + part * 4 + j];
            }
        }
    }
    if (value_chunk < CHUNKS) {
        words_at cache = words_at(ADDRESS(value_cache));
        const uint first = t0 + value_chunk * CHUNK;
        [[unroll]] for (uint j = 0; j < CHUNK; ++j) {
            if (first + j < end_key) {
                value_words[j] = cache.v[(first + j) * PARAM(value_stride) + key_head * (PARAM(head) / 2) + value_word];
            }
        }
    }
}

// Of pair i; without YaRN.
void find_rotation(const uint i) {
    exact_rope rope;
    rope.theta_scale = exact_fraction_of(code(CODE_theta_fraction), code(CODE_theta_fraction + 1));
    rope.freq_scale  = exact_fraction_of(code(CODE_freq_fraction), code(CODE_freq_fraction + 1));
    rope.ext_factor  = exact_fraction_of(0, 0);
    rope.low         = 0;
    rope.high        = 0;
    const bool  has_factor = exists(ADDRESS(factors));
    const float factor     = has_factor ? constants_at(ADDRESS(factors)).v[i] : 1.0;
    const uint  turn       = exact_turn_at(exact_rope_turn(rope, i, has_factor, factor), int(words_at(ADDRESS(position)).v[0]));
    precise const float c = exact_cos_turn(turn) * FLOAT(rotation_factor);
    precise const float s = exact_sin_turn(turn) * FLOAT(rotation_factor);
    rotation[i] = c;
    rotation[MAX_HEAD / 2 + i] = s;
}

void prepare_attention() {
    [[unroll]] for (uint j = 0; j < 4; ++j) {
        key_pieces[j] = uvec4(0);
    }
    [[unroll]] for (uint j = 0; j < CHUNK; ++j) {
        value_words[j] = 0;
    }
    share_out_heads();
    if (first_head < PARAM(heads)) {
        ask_for_keys(key_head_of(first_head), begin_key);
    }
    if (gl_LocalInvocationID.x < PARAM(rotated) / 2) {
        find_rotation(gl_LocalInvocationID.x);
    }
}

// ---- chunks

// Of a key's segments, by the lanes that have them.
uint score_of(const uint t) {
    const uint n8   = PARAM(head) / 8;
    const uint part = lane() % LANES_A_KEY;
    if (t == newest()) {
        [[unroll]] for (uint j = 0; j < 4; ++j) {
            const uint at = (part * 4 + j) * 8;
            [[unroll]] for (uint i = 0; i < 4; ++i) {
                key_pieces[j][i] = halves(vec2(key[at + 2 * i], key[at + 2 * i + 1]));
            }
        }
    }
    precise float sum = 0.0;
    [[unroll]] for (uint j = 0; j < 4; ++j) {
        const uint piece = part * 4 + j;
        if (piece < n8) {
            [[unroll]] for (uint i = 0; i < 4; ++i) {
                const vec2 two = unpackHalf2x16(key_pieces[j][i]);
                sum = sum + query[piece * 8 + 2 * i] * two.x;
                sum = sum + query[piece * 8 + 2 * i + 1] * two.y;
            }
        }
    }
    precise float product = 0.0;
    [[unroll]] for (uint s = 0; s < LANES_A_KEY; ++s) {
        const float segment = subgroupShuffle(sum, lane() - part + s);
        if (s * 4 < n8) {
            product = product + segment;
        }
    }
    precise const float score = product * FLOAT(scale) + mask;
    return mask == LOWEST ? MASKED : floatBitsToUint(score);
}

// A NaN is never larger.
float larger(const float a, const float b) {
    return b > a ? b : a;
}

// Of a score, or of what was made with `score` for the largest, where `all` is the largest of all.
float weight_of(const float score, const float all) {
    precise const float below = score - all;
    return score == LOWEST ? 0.0 : exact_exp(below);
}

uint64_t share_at(const uint head, const uint chunk) {
    return packUint2x32(ADDRESS(shares)) + (head * n_chunks + chunk) * SHARE * 4;
}

// Makes the chunks from the key t0 on, whose keys and values were asked for.
void make_chunks(const uint head, const uint t0) {
    const uint tid = gl_LocalInvocationID.x;
    const uint score = score_of(t0 + tid / LANES_A_KEY);
    if (tid % LANES_A_KEY == 0) {
        scores[tid / LANES_A_KEY] = score;
    }
    barrier();
    if (tid < ALL_KEYS) {
        float top = LOWEST;
        for (uint j = 0; j < CHUNK; ++j) {
            top = larger(top, uintBitsToFloat(scores[tid / CHUNK * CHUNK + j]));
        }
        const uint own = scores[tid];
        weights[tid] = own == MASKED ? MASKED : floatBitsToUint(weight_of(uintBitsToFloat(own), top));
        if (tid % CHUNK == 0) {
            tops[tid / CHUNK] = top;
        }
    }
    barrier();
    const uint first = t0 + value_chunk * CHUNK;
    if (value_chunk < CHUNKS && first < end_key) {
        const uint new_key  = newest() - first;
        const uint new_word = halves(vec2(value[2 * value_word], value[2 * value_word + 1]));
        float sums[CHUNK];
        precise float y0 = 0.0;
        precise float y1 = 0.0;
        [[unroll]] for (uint j = 0; j < CHUNK; ++j) {
            const uint  weight = weights[value_chunk * CHUNK + j];
            const float p      = weight == MASKED ? 0.0 : uintBitsToFloat(weight);
            const vec2  two    = unpackHalf2x16(weight == MASKED ? 0 : j == new_key ? new_word : value_words[j]);
            y0 = y0 + p * two.x;
            y1 = y1 + p * two.y;
            sums[j] = p;
        }
        [[unroll]] for (uint level = 1; level <= 5; ++level) {
            [[unroll]] for (uint j = 0; j < CHUNK / 2; ++j) {
                if (j < CHUNK >> level) {
                    precise const float sum = sums[j] + sums[j + (CHUNK >> level)];
                    sums[j] = sum;
                }
            }
        }
        floats_at made = floats_at(share_at(head, first / CHUNK));
        made.v[2 * value_word]     = y0;
        made.v[2 * value_word + 1] = y1;
        if (value_word == 0) {
            made.v[MAX_HEAD]     = sums[0];
            made.v[MAX_HEAD + 1] = tops[value_chunk];
        }
    }
}

// ---- the head

// Adds up all chunks, in one workgroup.
void add_chunks(const uint head) {
    const uint tid = gl_LocalInvocationID.x;
    if (tid < n_chunks) {
        floats_at made = floats_at(share_at(head, tid));
        totals[tid] = made.v[MAX_HEAD];
        tops[tid]   = made.v[MAX_HEAD + 1];
    }
    barrier();
    if (tid < n_chunks) {
        float all = LOWEST;
        for (uint c = 0; c < n_chunks; ++c) {
            all = larger(all, tops[c]);
        }
        factors[tid] = weight_of(tops[tid], all);
    }
    barrier();
    if (tid < PARAM(head)) {
        precise float y = 0.0;
        precise float z = 0.0;
        for (uint c0 = 0; c0 < n_chunks; c0 += BATCH) {
            float values[BATCH];
            [[unroll]] for (uint i = 0; i < BATCH; ++i) {
                values[i] = 0.0;
                if (c0 + i < n_chunks) {
                    floats_at made = floats_at(share_at(head, c0 + i));
                    values[i] = made.v[tid];
                }
            }
            [[unroll]] for (uint i = 0; i < BATCH; ++i) {
                if (c0 + i < n_chunks && totals[c0 + i] != 0.0) {
                    y = y + values[i] * factors[c0 + i];
                    z = z + totals[c0 + i] * factors[c0 + i];
                }
            }
        }
        precise const float mean = y * (z == 0.0 ? 0.0 : exact_recip(z));
        put_result(head, tid, mean);
    }
}

// Whether this is the last workgroup of the head to be done.
bool all_chunks_are_made(const uint head) {
    memoryBarrierBuffer();
    barrier();
    if (sharing == 1) {
        return true;
    }
    if (gl_LocalInvocationID.x == 0) {
        n_done = atomicAdd(control.done[head], 1);
    }
    barrier();
    if (n_done != sharing - 1) {
        return false;
    }
    memoryBarrierBuffer();
    if (gl_LocalInvocationID.x == 0) {
        control.done[head] = 0;
    }
    return true;
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
        make_chunks(head, begin_key);
        for (uint t0 = begin_key + ALL_KEYS; t0 < end_key; t0 += ALL_KEYS) {
            ask_for_keys(key_head, t0);
            make_chunks(head, t0);
        }
        if (all_chunks_are_made(head)) {
            add_chunks(head);
        }
    }
}
