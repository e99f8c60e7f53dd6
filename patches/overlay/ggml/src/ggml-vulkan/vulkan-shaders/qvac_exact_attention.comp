#version 450

// Exact attention of many queries: within samples, or over a cache (CACHE). A workgroup has ROWS queries of a head, and goes over
// their keys twice, in chunks: first for the largest score of each query, then for the rest.

#include "qvac_exact_attention.glsl"

// A value of each row from each invocation of the row.
shared vec4 row_parts[BLOCK];

#if defined(CACHE)
// Whether any score of the tile is seen (1) or masked (2). Three take turns, so that one barrier a chunk is enough.
shared uint in_sight[3];
#endif

#define WEIGHT_SEEN(row, c, w) (!((w) < 0.0))

vec4 larger(const vec4 a, const vec4 b) {
    return vec4(b.x > a.x ? b.x : a.x, b.y > a.y ? b.y : a.y, b.z > a.z ? b.z : a.z, b.w > a.w ? b.w : a.w);
}

// The largest of each of this invocation's rows, from what all invocations of the row have.
vec4 largest_of_rows(const vec4 own) {
    row_parts[tc * RT + tr] = own;
    barrier();
    vec4 m = vec4(MINUS_INFINITY);
    for (uint c = 0; c < CT; ++c) {
        m = larger(m, row_parts[c * RT + tr]);
    }
    return m;
}

// The rest of a tree over a row's 32 values of which each invocation has added up its own.
vec4 tree_of_rows() {
    precise vec4 sum[CT];
    [[unroll]] for (uint c = 0; c < CT; ++c) {
        sum[c] = row_parts[c * RT + tr];
    }
    [[unroll]] for (uint h = CT / 2; h > 0; h /= 2) {
        [[unroll]] for (uint c = 0; c < h; ++c) {
            sum[c] = sum[c] + sum[c + h];
        }
    }
    return sum[0];
}

vec4 exp4(const vec4 x) {
    return vec4(exact_exp(x.x), exact_exp(x.y), exact_exp(x.z), exact_exp(x.w));
}

// n queries from query0 on, whose keys begin with `first`.
void run(const uint first, const uint query0, const uint n) {
#if defined(CACHE)
    const uint n_keys = p.n_keys;
#else
    const uint n_keys = query0 + n - first;
#endif
    const uint n_chunks = (n_keys + CHUNK - 1) / CHUNK;

    precise vec4 top = vec4(MINUS_INFINITY);
    precise vec4 sum = vec4(0.0);
    precise vec4 o[TM][ND];
    [[unroll]] for (uint i = 0; i < TM; ++i) {
        [[unroll]] for (uint j = 0; j < ND; ++j) {
            o[i][j] = vec4(0.0);
        }
    }

    for (uint step = 0; step < 2 * n_chunks; ++step) {
        const bool second = step >= n_chunks;
        const uint key0   = first + (second ? step - n_chunks : step) * CHUNK;
        if (step == n_chunks) {
            top = largest_of_rows(top);
        }

#if defined(CACHE)
        // Scores that are masked get minus infinity; so do those that do not exist.
        precise vec4 mask[TN];
        uint here = 0;
        [[unroll]] for (uint j = 0; j < TN; ++j) {
            const uint key = key0 + tc + j * CT;
            [[unroll]] for (uint i = 0; i < TM; ++i) {
                const uint row = tr * TM + i;
                const uint at  = p.see_offset + (query0 + row) * p.mask_token + head % p.mask_heads * p.mask_head + key;
                mask[j][i] = MINUS_INFINITY;
                if (row < n) {
                    if (key < n_keys) {
                        mask[j][i] = HALF(data_mask, at);
                    }
                    here |= is_minus_infinity(mask[j][i]) ? 2 : 1;
                }
            }
        }
        if (step == 0) {
            if (tid < 3) {
                in_sight[tid] = 0;
            }
            barrier();
        }
        if (tid == 0) {
            in_sight[(step + 1) % 3] = 0;
        }
        atomicOr(in_sight[step % 3], here);
        barrier();
        const uint sight = in_sight[step % 3];
        if ((sight & 1) == 0) {
            continue;
        }
        const bool guarded = (sight & 2) != 0;
#else
        const bool guarded = key0 + CHUNK - 1 > query0;
#endif

        precise vec4 s[TN];
#define ROW(r, d4) fetch_q(query0 + (r), d4, (r) < n)
#define COL(c, d4) fetch_k(key0 + (c), d4, key0 + (c) < first + n_keys)
        SCORES(s, ROW, COL)
        [[unroll]] for (uint j = 0; j < TN; ++j) {
            s[j] = vec4(p.scale) * s[j];
#if defined(CACHE)
            s[j] = s[j] + mask[j];
#endif
            [[unroll]] for (uint i = 0; i < TM; ++i) {
#if defined(CACHE)
                const bool seen = !is_minus_infinity(mask[j][i]);
#else
                const bool seen = key0 + tc + j * CT <= query0 + tr * TM + i;
#endif
                s[j][i] = seen ? s[j][i] : MINUS_INFINITY;
            }
        }
        precise vec4 own = vec4(MINUS_INFINITY); // and so never what is no number
        [[unroll]] for (uint j = 0; j < TN; ++j) {
            own = larger(own, s[j]);
        }
        if (!second) {
            top = larger(top, own);
            continue;
        }

        const vec4 m = largest_of_rows(own);
        precise vec4 w[TN];
        precise vec4 l[TN];
        [[unroll]] for (uint j = 0; j < TN; ++j) {
            precise vec4 x = s[j] - m;
            l[j] = exp4(x);
            [[unroll]] for (uint i = 0; i < TM; ++i) {
#if defined(CACHE)
                const bool seen = !is_minus_infinity(mask[j][i]);
#else
                const bool seen = key0 + tc + j * CT <= query0 + tr * TM + i;
#endif
                l[j][i] = is_minus_infinity(s[j][i]) ? 0.0 : l[j][i];
                w[j][i] = seen ? l[j][i] : -1.0; // a mark: not even a value that is no number may enter
            }
        }
        [[unroll]] for (uint h = TN / 2; h > 0; h /= 2) {
            [[unroll]] for (uint j = 0; j < h; ++j) {
                l[j] = l[j] + l[j + h];
            }
        }
        PUT_WEIGHTS(w)
        row_parts[tc * RT + tr] = l[0]; // everyone has read the last ones

        precise vec4 oc[TM][ND];
#define VALUE(c, d4) fetch_v(key0 + (c), d4, key0 + (c) < first + n_keys)
        OUTPUTS(oc, VALUE, guarded, WEIGHT_SEEN)
        const vec4 lc = tree_of_rows();
        precise vec4 x = m - top;
        const vec4 e = exp4(x);
        precise vec4 more = sum + lc * e;
        [[unroll]] for (uint i = 0; i < TM; ++i) {
            if (lc[i] != 0.0) {
                sum[i] = more[i];
                [[unroll]] for (uint j = 0; j < ND; ++j) {
                    o[i][j] = o[i][j] + oc[i][j] * vec4(e[i]);
                }
            }
        }
    }

    [[unroll]] for (uint i = 0; i < TM; ++i) {
        const uint row = tr * TM + i;
        if (row < n) {
            const uint at = (query0 + row) * p.H + head;
            const float r = sum[i] == 0.0 ? 0.0 : exact_recip(sum[i]);
            precise vec4 y[TM][ND];
            [[unroll]] for (uint j = 0; j < ND; ++j) {
                y[i][j] = o[i][j] * vec4(r);
            }
            STORE(y, i, p.dst_offset + at * p.D)
#if !defined(CACHE)
            if (tc == 0) {
                precise float lse = top[i] + exact_log(sum[i]);
                data_dst[p.dst_offset + p.T * p.H * p.D + at] = lse;
            }
#endif
        }
    }
}

void main() {
    head    = gl_WorkGroupID.x;
    head_kv = head / p.group;

    // The last queries see the most keys: they come first.
    uint t = (gl_NumWorkGroups.y - 1 - gl_WorkGroupID.y) * ROWS;
    const uint end = min(t + ROWS, p.T);
#if defined(CACHE)
    run(0, t, end - t);
#else
    while (t < end) {
        const uint last = min(last_of(t), end - 1);
        run(first_of(t), t, last + 1 - t);
        t = last + 1;
    }
#endif
}
