#version 450

// Causal attention within samples (ggml_attention) on cooperative matrices. One workgroup makes ROWS queries of one head:
// over the tiles of keys that any of them sees it keeps the sum of 2^(score - reference) and the weighted sum of values.
// The reference is the largest score of some tile; where one comes that is larger by SLACK, the sums are rescaled, so that
// most tiles need no largest score of a row, which no invocation has. A subgroup has rows of its own (SPLIT is 1).

#define ROW_SLOTS 1

#include "qvac_attention_matrix.glsl"

const uint  GROUP_ROWS = 16 * RB; // at most 32
const float LEAST      = -1e30;   // no score is smaller, and UNSEEN is by far
const float SLACK      = 8.0;

// Matrices whose rows are to be joined lie where the subgroup's rows of the tile do: COLS is 32 at least.
#define JOIN_AT(row) (TILE_AT + ROW_0 * TILE_STRIDE + (row) * FLOAT_STRIDE)

shared vec2 row_state[ROWS]; // the reference, and what the sums so far are multiplied by
shared uint row_first[ROWS];

void main() {
    // Late queries see the most keys: they begin first, so that none of them is left to the end.
    const uint tiles = (p.T + ROWS - 1) / ROWS;
    head    = gl_WorkGroupID.x;
    head_kv = head / (p.H / p.H_kv);
    query0  = (tiles - 1 - gl_WorkGroupID.y) * ROWS;

    const uint query_end  = min(query0 + ROWS, p.T);
    const uint last_first = first_of(query_end - 1);

    find_elements();
    for (uint i = tid; i < ROWS; i += BLOCK) {
        row_first[i] = first_of(min(query0 + i, p.T - 1));
    }
    stage(SLOT_ROWS(0), ROWS, OF_Q, query0);
    barrier();
    ROW_OPERAND(q);
    KEEP_ROWS(q, SLOT_ROWS(0));

    // The row that this invocation joins.
    const uint row           = ROW_0 + tid % GROUP_ROWS;
    float      row_reference = LEAST;

    MATRIX_SUMS(o, NO);
    ZERO(o, NO);
    MATRIX_SUMS(sum, RB); // of weights, by columns
    ZERO(sum, RB);
    float reference[RB][ELEMENTS];
    EACH_ROW(rb, e) {
        reference[rb][e] = LEAST;
    }

    for (key0 = first_of(query0); key0 < query_end; key0 += COLS) {
        barrier();
        stage(SLOT_COLS(0), COLS, OF_K, key0);
        stage(SLOT_COLS(1), COLS, OF_V, key0);
        barrier();

        SUBGROUP_IF (key0 < query0 + ROW_0 + 16 * RB && key0 + COLS > row_first[ROW_0]) {
            MATRIX_SUMS(s, NS);
            SCORES(s, q, SLOT_ROWS(0), SLOT_COLS(0));
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

            bool larger = false;
            EACH_ROW(rb, e) {
                EACH_SCORE(cb) {
                    larger = larger || s[rb * S_COLS + cb][e] > reference[rb][e] + SLACK;
                }
            }
            if (SUBGROUP_ANY(larger)) {
                MATRIX_SUMS(most, RB);
                EACH_ROW(rb, e) {
                    most[rb][e] = s[rb * S_COLS][e];
                    EACH_SCORE(cb) {
                        most[rb][e] = max(most[rb][e], s[rb * S_COLS + cb][e]);
                    }
                }
                UNROLL for (uint rb = 0; rb < RB; ++rb) {
                    STORE_FLOATS(most[rb], JOIN_AT(16 * rb));
                }
                SUBGROUP_BARRIER();
                const uint  at  = JOIN_AT(tid % GROUP_ROWS);
                const vec4  m   = max(max(floats_at(at), floats_at(at + 2)), max(floats_at(at + 4), floats_at(at + 6)));
                const float now = max(max(max(m.x, m.y), max(m.z, m.w)), row_reference);
                row_state[row] = vec2(now, exp2(row_reference - now));
                row_reference  = now;
                SUBGROUP_BARRIER();
                EACH_ROW(rb, e) {
                    const vec2 state = row_state[ROW_OF(rb, e)];
                    reference[rb][e] = state.x;
                    sum[rb][e] *= state.y;
                    EACH_OUTPUT(db) {
                        o[rb * O_COLS + db][e] *= state.y;
                    }
                }
            }

            EACH_ROW(rb, e) {
                EACH_SCORE(cb) {
                    const float weight = exp2(s[rb * S_COLS + cb][e] - reference[rb][e]);
                    sum[rb][e] += weight;
                    s[rb * S_COLS + cb][e] = weight;
                }
            }
            STORE_SCORES(s);
            SUBGROUP_BARRIER();
            OUTPUTS(o, SLOT_COLS(1));
        }
    }

    SUBGROUP_BARRIER();
    UNROLL for (uint rb = 0; rb < RB; ++rb) {
        STORE_FLOATS(sum[rb], JOIN_AT(16 * rb));
    }
    SUBGROUP_BARRIER();
    {
        const uint  at    = JOIN_AT(tid % GROUP_ROWS);
        const vec4  m     = (floats_at(at) + floats_at(at + 2)) + (floats_at(at + 4) + floats_at(at + 6));
        const float total = (m.x + m.y) + (m.z + m.w);
        row_state[row].x  = 1.0 / total;
        if (query0 + row < p.T) {
            data_dst[p.dst_offset + p.T * p.H * p.D + (query0 + row) * p.H + head] = (row_reference + log2(total)) * LN_2;
        }
    }
    SUBGROUP_BARRIER();

    WRITE_OUTPUTS(o, p.dst_offset, query_row, query0, row_state[r_].x);
}
