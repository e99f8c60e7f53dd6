#version 450

// The gradients of causal attention in its keys and values (see qvac_attention_back_kv.comp) on cooperative matrices. One
// workgroup makes ROWS keys of one key head. Queries are added to each other, so that those of a tile have one scale.

#define BACKWARD
#define STATS
#define ONE_SCALE
#define ROW_SLOTS 2

#include "qvac_attention_matrix.glsl"

shared uint row_last[ROWS];
shared vec2 col_stats[COLS]; // log-sum-exp and delta of a query

// A tile's dy should have a largest value of 8 .. 16; the scale stays as long as it lies here.
const float SCALED_MIN = 0.5;
const float SCALED_MAX = 32.0;

// The most by which a tile is scaled beyond one before: sums so far are multiplied by as much.
const float SCALE_RANGE = 1e24;

void main() {
    const uint group = p.H / p.H_kv;
    head_kv = gl_WorkGroupID.x;
    key0    = gl_WorkGroupID.y * ROWS;

    const uint query_end  = last_of(min(key0 + ROWS, p.T) - 1) + 1;
    const uint first_last = last_of(key0);

    find_elements();
    for (uint i = tid; i < ROWS; i += BLOCK) {
        row_last[i] = last_of(min(key0 + i, p.T - 1));
    }
    stage(SLOT_ROWS(0), ROWS, OF_K, key0);
    barrier();
    ROW_OPERAND(k);
    KEEP_ROWS(k, SLOT_ROWS(0));
    if (KEEP != 0) {
        barrier();
    }
    stage(SLOT_ROWS(1), ROWS, OF_V, key0);
    barrier();
    ROW_OPERAND(v);
    KEEP_ROWS(v, SLOT_ROWS(1));

    MATRIX_SUMS(dk, NO);
    ZERO(dk, NO);
    MATRIX_SUMS(dv, NO);
    ZERO(dv, NO);
    float scale = 0.0; // of dy, and of the sums
    float least = 0.0;

    for (head = head_kv * group; head < (head_kv + 1) * group; ++head) {
        for (query0 = key0; query0 < query_end; query0 += COLS) {
            const float largest = data_stats[head * p.T + query0].w;
            const float wanted  = scale_of(largest);
            if (scale == 0.0) {
                scale = wanted;
                least = wanted;
            } else if (largest != 0.0 && !(largest * scale >= SCALED_MIN && largest * scale < SCALED_MAX)) {
                least = min(least, wanted);
                const float next   = min(wanted, least * SCALE_RANGE);
                const float factor = next / scale;
                EACH_ROW(rb, e) {
                    EACH_OUTPUT(db) {
                        dk[rb * O_COLS + db][e] *= factor;
                        dv[rb * O_COLS + db][e] *= factor;
                    }
                }
                scale = next;
            }
            barrier();
            if (tid < COLS) {
                const vec4 stats = data_stats[head * p.T + min(query0 + tid, p.T - 1)];
                col_stats[tid] = vec2(stats.x, stats.y * scale);
            }
            stage(SLOT_COLS(0), COLS, OF_Q, query0);
            dy_scale = scale;
            stage(SLOT_COLS(1), COLS, OF_DY, query0);
            barrier();

            SUBGROUP_IF (SPLIT != 1 || (query0 + COLS > key0 + ROW_0 && query0 <= row_last[ROW_0 + 16 * RB - 1])) {
                MATRIX_SUMS(s, NS);
                SCORES(s, k, SLOT_ROWS(0), SLOT_COLS(0));
                MATRIX_SUMS(ds, NS);
                SCORES(ds, v, SLOT_ROWS(1), SLOT_COLS(1));
                if (query0 < key0 + ROWS - 1 || query0 + COLS - 1 > first_last) {
                    EACH_ROW(rb, e) {
                        const uint key  = key0 + ROW_OF(rb, e);
                        const uint last = row_last[ROW_OF(rb, e)];
                        EACH_SCORE(cb) {
                            const uint query = query0 + SCORE_COL(cb, e);
                            if (query < key || query > last) {
                                s[rb * S_COLS + cb][e] = UNSEEN;
                            }
                        }
                    }
                }
                EACH_SCORE(cb) {
                    UNROLL for (uint e = 0; e < ELEMENTS; ++e) {
                        const vec2 of = col_stats[SCORE_COL(cb, e)];
                        UNROLL for (uint rb = 0; rb < RB; ++rb) {
                            const uint  f      = rb * S_COLS + cb;
                            const float weight = exp2(s[f][e] - of.x);
                            s[f][e]  = weight;
                            ds[f][e] = f16_range(weight * (ds[f][e] - of.y));
                        }
                    }
                }
                STORE_SCORES(s);
                GROUP_BARRIER();
                OUTPUTS(dv, SLOT_COLS(1));
                GROUP_BARRIER();
                STORE_SCORES(ds);
                GROUP_BARRIER();
                OUTPUTS(dk, SLOT_COLS(0));
            }
        }
    }

    const uint  base_k = p.dst_offset + p.T * p.H * p.D;
    const uint  base_v = base_k + p.T * p.H_kv * p.D;
    const float factor = 1.0 / scale;
    WRITE_OUTPUTS(dk, base_k, key_row, key0, factor * LN_2);
    WRITE_OUTPUTS(dv, base_v, key_row, key0, factor);
}
