#version 450

// Exact gradients of the queries of attention within samples. A workgroup has ROWS queries of a head and goes over their keys.

#define GRADIENTS
#include "qvac_exact_attention.glsl"

// n queries from query0 on, whose keys begin with `first`.
void run(const uint first, const uint query0, const uint n) {
    const uint n_keys = query0 + n - first;

    vec2 stats[TM]; // the logarithm of the sum of exponentials; delta
    precise vec4 o[TM][ND];
    [[unroll]] for (uint i = 0; i < TM; ++i) {
        const uint row = tr * TM + i;
        stats[i] = vec2(0.0);
        if (row < n) {
            stats[i] = data_stats[(query0 + row) * p.H + head];
        }
        [[unroll]] for (uint j = 0; j < ND; ++j) {
            o[i][j] = vec4(0.0);
        }
    }
    const vec4 lse   = vec4(stats[0].x, stats[1].x, stats[2].x, stats[3].x);
    const vec4 delta = vec4(stats[0].y, stats[1].y, stats[2].y, stats[3].y);

    for (uint key0 = first; key0 < first + n_keys; key0 += CHUNK) {
        precise vec4 s[TN];
        precise vec4 w[TN];
#define ROW_Q(r, d4)  fetch_q(query0 + (r), d4, (r) < n)
#define ROW_DY(r, d4) fetch_dy(query0 + (r), d4, (r) < n)
#define COL_K(c, d4)  fetch_k(key0 + (c), d4, key0 + (c) < first + n_keys)
#define COL_V(c, d4)  fetch_v(key0 + (c), d4, key0 + (c) < first + n_keys)
        SCORES(s, ROW_Q, COL_K)
        SCORES(w, ROW_DY, COL_V)
        [[unroll]] for (uint j = 0; j < TN; ++j) {
            precise vec4 x = vec4(p.scale) * s[j] - lse;
            precise vec4 e = vec4(exact_exp(x.x), exact_exp(x.y), exact_exp(x.z), exact_exp(x.w));
            w[j] = vec4(p.scale) * (e * (w[j] - delta));
        }
        PUT_WEIGHTS(w)
        precise vec4 part[TM][ND];
#define SEEN_KEY(row, c, w) (key0 + (c) <= query0 + (row))
        OUTPUTS(part, COL_K, key0 + CHUNK - 1 > query0, SEEN_KEY)
        [[unroll]] for (uint i = 0; i < TM; ++i) {
            [[unroll]] for (uint j = 0; j < ND; ++j) {
                o[i][j] = o[i][j] + part[i][j];
            }
        }
    }

    [[unroll]] for (uint i = 0; i < TM; ++i) {
        const uint row = tr * TM + i;
        if (row < n) {
            STORE(o, i, p.dst_offset + ((query0 + row) * p.H + head) * p.D)
        }
    }
}

void main() {
    head    = gl_WorkGroupID.x;
    head_kv = head / p.group;

    // The last queries see the most keys: they come first.
    uint t = (gl_NumWorkGroups.y - 1 - gl_WorkGroupID.y) * ROWS;
    const uint end = min(t + ROWS, p.T);
    while (t < end) {
        const uint last = min(last_of(t), end - 1);
        run(first_of(t), t, last + 1 - t);
        t = last + 1;
    }
}
