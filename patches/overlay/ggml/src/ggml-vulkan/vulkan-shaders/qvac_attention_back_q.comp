#version 450

// The gradient of causal attention in its queries (ggml_attention_back). One workgroup makes ROWS queries of one head:
//
//     p[t, j]  = exp(scale * q[t].k[j] - lse[t])
//     ds[t, j] = p[t, j] * (dy[t].v[j] - dy[t].output[t])
//     dq[t]    = scale * sum_j ds[t, j] * k[j]

#define BACKWARD
#define SLOT_Q  0
#define SLOT_DY 1
#define SLOT_K  2
#define SLOT_V  3
#define QUERIES ROWS

#include "qvac_attention_plain.glsl"

void main() {
    const uint tiles = (p.T + ROWS - 1) / ROWS;
    head    = gl_WorkGroupID.x;
    head_kv = head / (p.H / p.H_kv);
    query0  = (tiles - 1 - gl_WorkGroupID.y) * ROWS;

    const uint query_end = min(query0 + ROWS, p.T);

    load_queries();

    OUTPUT_TILE(dq);
    ZERO_OUTPUTS(dq);

    for (key0 = first_of(query0); key0 < query_end; key0 += COLS) {

        SCORE_TILE(s);
        scores(s, SLOT_Q, SLOT_K);
        SCORE_TILE(dp);
        scores(dp, SLOT_DY, SLOT_V);

        EACH_SCORE(f, e) {
            const uint r   = SCORE_ROW(f, e);
            const uint c   = SCORE_COL(f, e);
            const uint key = key0 + c;

            float ds = 0.0;
            if (query_first[r] <= key && key <= query0 + r) {
                ds = exp(s[f][e] * p.scale - query_lse[r]) * (dp[f][e] - query_delta[r]);
            }
            tile_put(r, c, ds);
        }
        outputs(dq, SLOT_K);
    }

    EACH_OUTPUT(f, e) {
        const uint r = OUTPUT_ROW(f, e);
        const uint d = OUTPUT_COL(f, e);
        if (query0 + r < p.T && d < p.D) {
            data_dst[p.dst_offset + query_row(query0 + r) + d] = dq[f][e] * p.scale;
        }
    }
}
