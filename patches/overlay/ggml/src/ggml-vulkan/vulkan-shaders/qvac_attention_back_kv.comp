#version 450

// The gradients of causal attention in its keys and values (ggml_attention_back). One workgroup makes ROWS keys of one
// key head, over all queries that see them and all query heads that share the head, one after another:
//
//     dv[j] = sum_t p[t, j] * dy[t]
//     dk[j] = scale * sum_t ds[t, j] * q[t]
//
// with p and ds as in qvac_attention_back_q.comp. Nobody else adds to these rows, so that the sums have one order.

#define BACKWARD
#define SLOT_K  0
#define SLOT_V  1
#define SLOT_Q  2
#define SLOT_DY 3
#define QUERIES COLS

#include "qvac_attention_plain.glsl"

void main() {
    const uint group = p.H / p.H_kv;
    head_kv = gl_WorkGroupID.x;
    key0    = gl_WorkGroupID.y * ROWS;

    const uint query_end = last_of(min(key0 + ROWS, p.T) - 1) + 1;


    OUTPUT_TILE(dk);
    ZERO_OUTPUTS(dk);
    OUTPUT_TILE(dv);
    ZERO_OUTPUTS(dv);

    for (head = head_kv * group; head < (head_kv + 1) * group; ++head) {
        for (query0 = key0; query0 < query_end; query0 += COLS) {
            barrier();
            load_queries();

            SCORE_TILE(s);
            scores(s, SLOT_K, SLOT_Q);
            SCORE_TILE(dp);
            scores(dp, SLOT_V, SLOT_DY);

            EACH_SCORE(f, e) {
                const uint r   = SCORE_ROW(f, e);
                const uint c   = SCORE_COL(f, e);
                const uint key = key0 + r;

                float w  = 0.0;
                float ds = 0.0;
                if (query_first[c] <= key && key <= query0 + c) {
                    w  = exp(s[f][e] * p.scale - query_lse[c]);
                    ds = w * (dp[f][e] - query_delta[c]);
                }
                tile_put(r, c, w);
                dp[f][e] = ds;
            }
            outputs(dv, SLOT_DY);

            barrier();
            EACH_SCORE(f, e) {
                tile_put(SCORE_ROW(f, e), SCORE_COL(f, e), dp[f][e]);
            }
            outputs(dk, SLOT_Q);
        }
    }

    const uint base_k = p.dst_offset + p.T * p.H * p.D;
    const uint base_v = base_k + p.T * p.H_kv * p.D;
    EACH_OUTPUT(f, e) {
        const uint r = OUTPUT_ROW(f, e);
        const uint d = OUTPUT_COL(f, e);
        if (key0 + r < p.T && d < p.D) {
            data_dst[base_k + key_row(key0 + r) + d] = dk[f][e] * p.scale;
            data_dst[base_v + key_row(key0 + r) + d] = dv[f][e];
        }
    }
}
