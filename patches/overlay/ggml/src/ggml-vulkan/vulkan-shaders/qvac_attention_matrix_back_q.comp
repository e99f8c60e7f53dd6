#version 450

// The gradient of causal attention in its queries (see qvac_attention_back_q.comp) on cooperative matrices. One workgroup
// makes ROWS queries of one head. Each query's dy is scaled by itself.

#define BACKWARD
#define STATS
#define ROW_SLOTS 2

#include "qvac_attention_matrix.glsl"

shared uint row_first[ROWS];
shared vec2 row_stats[ROWS]; // log-sum-exp and delta

void main() {
    const uint tiles = (p.T + ROWS - 1) / ROWS;
    head    = gl_WorkGroupID.x;
    head_kv = head / (p.H / p.H_kv);
    query0  = (tiles - 1 - gl_WorkGroupID.y) * ROWS;

    const uint query_end  = min(query0 + ROWS, p.T);
    const uint last_first = first_of(query_end - 1);

    find_elements();
    for (uint i = tid; i < ROWS; i += BLOCK) {
        const uint query = min(query0 + i, p.T - 1);
        const vec4 stats = data_stats[head * p.T + query];
        row_first[i] = first_of(query);
        dy_scale[i]  = scale_of(stats.z);
        row_stats[i] = vec2(stats.x, stats.y * dy_scale[i]);
    }
    barrier();
    stage(SLOT_ROWS(0), ROWS, OF_Q, query0);
    barrier();
    ROW_OPERAND(q);
    KEEP_ROWS(q, SLOT_ROWS(0));
    if (KEEP != 0) {
        barrier();
    }
    stage(SLOT_ROWS(1), ROWS, OF_DY, query0);
    barrier();
    ROW_OPERAND(dy);
    KEEP_ROWS(dy, SLOT_ROWS(1));

    vec2 stats[RB * ELEMENTS];
    EACH_ROW(rb, e) {
        stats[rb * ELEMENTS + e] = row_stats[ROW_OF(rb, e)];
    }
    MATRIX_SUMS(dq, NO);
    ZERO(dq, NO);

    for (key0 = first_of(query0); key0 < query_end; key0 += COLS) {
        barrier();
        stage(SLOT_COLS(0), COLS, OF_K, key0);
        stage(SLOT_COLS(1), COLS, OF_V, key0);
        barrier();

        SUBGROUP_IF (SPLIT != 1 || (key0 < query0 + ROW_0 + 16 * RB && key0 + COLS > row_first[ROW_0])) {
            MATRIX_SUMS(s, NS);
            SCORES(s, q, SLOT_ROWS(0), SLOT_COLS(0));
            MATRIX_SUMS(ds, NS);
            SCORES(ds, dy, SLOT_ROWS(1), SLOT_COLS(1));
            if (key0 + COLS - 1 > query0 || key0 < last_first) {
                EACH_ROW(rb, e) {
                    const uint query = query0 + ROW_OF(rb, e);
                    const uint first = row_first[ROW_OF(rb, e)];
                    EACH_SCORE(cb) {
                        const uint key = key0 + SCORE_COL(cb, e);
                        if (key < first || key > query) {
                            s[rb * S_COLS + cb][e] = UNSEEN;
                        }
                    }
                }
            }
            EACH_ROW(rb, e) {
                const vec2 of = stats[rb * ELEMENTS + e];
                EACH_SCORE(cb) {
                    const uint f = rb * S_COLS + cb;
                    ds[f][e] = f16_range(exp2(s[f][e] - of.x) * (ds[f][e] - of.y));
                }
            }
            STORE_SCORES(ds);
            GROUP_BARRIER();
            OUTPUTS(dq, SLOT_COLS(0));
        }
    }

    WRITE_OUTPUTS(dq, p.dst_offset, query_row, query0, p.scale / dy_scale[r_]);
}
