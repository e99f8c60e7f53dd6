#version 450

// Causal attention within samples (ggml_attention). One workgroup makes ROWS queries of one head: over the tiles of keys
// that any of them sees it keeps each query's largest score, the sum of exp(score - largest) and the weighted sum of
// values, and rescales the latter two when a larger score comes.

#define SLOT_Q 0
#define SLOT_K 1
#define SLOT_V 2

#include "qvac_attention_plain.glsl"

// Invocations that share a row in the softmax.
const uint LANES = BLOCK / ROWS;

shared float row_part[BLOCK];
shared float row_factor[ROWS];

void main() {
    // Late queries see the most keys: they begin first, so that none of them is left to the end.
    const uint tiles = (p.T + ROWS - 1) / ROWS;
    head    = gl_WorkGroupID.x;
    head_kv = head / (p.H / p.H_kv);
    query0  = (tiles - 1 - gl_WorkGroupID.y) * ROWS;


    const uint query_end = min(query0 + ROWS, p.T);

    // Of the row whose softmax this invocation shares.
    const uint  row     = tid / LANES;
    const uint  lane    = tid % LANES;
    const uint  query   = query0 + row;
    const uint  first   = query < p.T ? first_of(query) : 0xffffffffu;
    float       largest = NEG_MAX;
    float       sum     = 0.0;

    OUTPUT_TILE(o);
    ZERO_OUTPUTS(o);

    for (key0 = first_of(query0); key0 < query_end; key0 += COLS) {

        SCORE_TILE(s);
        scores(s, SLOT_Q, SLOT_K);
        EACH_SCORE(f, e) {
            score_put(SCORE_ROW(f, e), SCORE_COL(f, e), s[f][e] * p.scale);
        }
        barrier();

        float x[COLS / LANES];
        float most = NEG_MAX;
        [[unroll]] for (uint i = 0; i < COLS / LANES; ++i) {
            const uint key = key0 + lane + i * LANES;
            x[i] = score_get(row, lane + i * LANES);
            if (first <= key && key <= query) {
                most = max(most, x[i]);
            }
        }
        row_part[tid] = most;
        barrier();

        [[unroll]] for (uint i = 0; i < LANES; ++i) {
            most = max(most, row_part[row * LANES + i]);
        }
        most = max(most, largest);
        // 1 as long as no key was seen: what it multiplies is 0.
        const float factor = exp(largest - most);
        largest = most;
        sum *= factor;
        [[unroll]] for (uint i = 0; i < COLS / LANES; ++i) {
            const uint  key = key0 + lane + i * LANES;
            const float w   = first <= key && key <= query ? exp(x[i] - most) : 0.0;
            sum += w;
            tile_put(row, lane + i * LANES, w);
        }
        if (lane == 0) {
            row_factor[row] = factor;
        }
        barrier();

        EACH_OUTPUT(f, e) {
            o[f][e] *= row_factor[OUTPUT_ROW(f, e) % ROWS];
        }
        outputs(o, SLOT_V);
    }

    barrier();
    row_part[tid] = sum;
    barrier();
    if (lane == 0) {
        float total = 0.0;
        for (uint i = 0; i < LANES; ++i) {
            total += row_part[row * LANES + i];
        }
        row_factor[row] = 1.0 / total;
        if (query < p.T) {
            data_dst[p.dst_offset + p.T * p.H * p.D + query * p.H + head] = largest + log(total);
        }
    }
    barrier();

    EACH_OUTPUT(f, e) {
        const uint r = OUTPUT_ROW(f, e);
        const uint d = OUTPUT_COL(f, e);
        if (query0 + r < p.T && d < p.D) {
            data_dst[p.dst_offset + query_row(query0 + r) + d] = o[f][e] * row_factor[r];
        }
    }
}
