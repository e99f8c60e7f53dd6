#version 450

// Exact gradients of the keys and values of attention within samples. A workgroup has ROWS keys of a key head and goes over the
// queries that see them: head by head, and segment by segment of 32.

#define GRADIENTS
#include "qvac_exact_attention.glsl"

// n keys from key0 on, of the sample from `first` to `last`.
void run(const uint first, const uint last, const uint key0, const uint n) {
    precise vec4 dk[TM][ND];
    precise vec4 dv[TM][ND];
    [[unroll]] for (uint i = 0; i < TM; ++i) {
        [[unroll]] for (uint j = 0; j < ND; ++j) {
            dk[i][j] = vec4(0.0);
            dv[i][j] = vec4(0.0);
        }
    }

    const uint begin      = first + (key0 - first) / CHUNK * CHUNK;
    const uint n_segments = (last - begin) / CHUNK + 1;
    for (uint step = 0; step < p.group * n_segments; ++step) {
        head = head_kv * p.group + step / n_segments;
        const uint query0  = begin + step % n_segments * CHUNK;
        const bool guarded = query0 < key0 + n - 1 || query0 + CHUNK - 1 > last;

        precise vec4 w[TN];
        precise vec4 ds[TN];
#define ROW_K(r, d4)  fetch_k(key0 + (r), d4, (r) < n)
#define ROW_V(r, d4)  fetch_v(key0 + (r), d4, (r) < n)
#define COL_Q(c, d4)  fetch_q(query0 + (c), d4, query0 + (c) <= last)
#define COL_DY(c, d4) fetch_dy(query0 + (c), d4, query0 + (c) <= last)
        SCORES(w, ROW_K, COL_Q)
        SCORES(ds, ROW_V, COL_DY)
        [[unroll]] for (uint j = 0; j < TN; ++j) {
            const uint query = query0 + tc + j * CT;
            vec2 stats = vec2(0.0);
            if (query <= last) {
                stats = data_stats[query * p.H + head];
            }
            precise vec4 x = vec4(p.scale) * w[j] - vec4(stats.x);
            w[j] = vec4(exact_exp(x.x), exact_exp(x.y), exact_exp(x.z), exact_exp(x.w));
            ds[j] = vec4(p.scale) * (w[j] * (ds[j] - vec4(stats.y)));
        }
        precise vec4 part[TM][ND];
#define SEEN_BY(row, c, w) (query0 + (c) >= key0 + (row) && query0 + (c) <= last)
        PUT_WEIGHTS(w)
        OUTPUTS(part, COL_DY, guarded, SEEN_BY)
        [[unroll]] for (uint i = 0; i < TM; ++i) {
            [[unroll]] for (uint j = 0; j < ND; ++j) {
                dv[i][j] = dv[i][j] + part[i][j];
            }
        }
        PUT_WEIGHTS(ds)
        OUTPUTS(part, COL_Q, guarded, SEEN_BY)
        [[unroll]] for (uint i = 0; i < TM; ++i) {
            [[unroll]] for (uint j = 0; j < ND; ++j) {
                dk[i][j] = dk[i][j] + part[i][j];
            }
        }
    }

    const uint dk_offset = p.dst_offset + p.T * p.H * p.D;
    const uint dv_offset = dk_offset + p.T * (p.H / p.group) * p.D;
    [[unroll]] for (uint i = 0; i < TM; ++i) {
        const uint row = tr * TM + i;
        if (row < n) {
            const uint at = ((key0 + row) * (p.H / p.group) + head_kv) * p.D;
            STORE(dk, i, dk_offset + at)
            STORE(dv, i, dv_offset + at)
        }
    }
}

void main() {
    head_kv = gl_WorkGroupID.x;

    // The first keys are seen by the most queries.
    uint t = gl_WorkGroupID.y * ROWS;
    const uint end = min(t + ROWS, p.T);
    while (t < end) {
        const uint last = last_of(t);
        const uint stop = min(last, end - 1);
        run(first_of(t), last, t, stop + 1 - t);
        t = stop + 1;
    }
}
