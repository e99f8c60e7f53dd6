#version 450

// Rotary positions of [D, H, T, ..], each pair of a head turned by a fraction of a turn (exact-angle.h), backward the other way. y may
// be x. A workgroup has whole tokens, and makes their sines and cosines once, for all heads.

#include "../../qvac/exact-math.h"
#include "../../qvac/exact-angle.h"

layout(constant_id = 0) const bool NEOX = true; // pairs are half of what turns apart, else neighbours

const uint BLOCK_SIZE = 256;
layout(local_size_x = 256, local_size_y = 1, local_size_z = 1) in;

// Strides and offsets in elements.
layout(push_constant) uniform parameter {
    uint  D; uint H; uint T; // T: tokens of all samples
    uint  ne2;               // tokens of a sample
    uint  first; uint pairs; // values before those that turn, and how many pairs do
    uint  tokens;            // of a workgroup, TABLE / pairs at most
    uint  x_nb1; uint x_nb2; uint x_nb3; uint x_offset;
    uint  y_nb1; uint y_nb2; uint y_nb3; uint y_offset;
    uint  pos_offset; uint ff_offset;
    uint  has_ff;
    float magnitude; float sign; // sign: -1 backward
    uint  theta_scale_hi; uint theta_scale_lo;
    uint  freq_scale_hi; uint freq_scale_lo;
    uint  ext_factor_hi; uint ext_factor_lo;
    int   low; int high;
} p;

layout(binding = 0) readonly buffer X { float data_x[]; };
layout(binding = 1) readonly buffer Pos { int data_pos[]; };
layout(binding = 2) readonly buffer Ff { float data_ff[]; }; // x again where there are none
layout(binding = 3) writeonly buffer Y { float data_y[]; };

// Workgroups are spread over two grid dimensions: one alone may hold 65535 of them at most.
const uint GRID_LINE = 512;

const uint MOST_PAIRS = 512;
const uint TABLE      = 1024;
shared uint  turn_hi[MOST_PAIRS];
shared uint  turn_lo[MOST_PAIRS];
shared float cosines[TABLE];
shared float sines[TABLE];

exact_rope rope() {
    exact_rope r;
    r.theta_scale = exact_fraction_of(p.theta_scale_hi, p.theta_scale_lo);
    r.freq_scale  = exact_fraction_of(p.freq_scale_hi, p.freq_scale_lo);
    r.ext_factor  = exact_fraction_of(p.ext_factor_hi, p.ext_factor_lo);
    r.low  = p.low;
    r.high = p.high;
    return r;
}

void main() {
    const uint tid = gl_LocalInvocationID.x;
    const uint t0  = (gl_WorkGroupID.y * GRID_LINE + gl_WorkGroupID.x) * p.tokens;
    if (t0 >= p.T) {
        return;
    }
    const uint tokens = min(p.tokens, p.T - t0);
    for (uint i = tid; i < p.pairs; i += BLOCK_SIZE) {
        const float factor = p.has_ff != 0u ? data_ff[p.ff_offset + i] : 1.0;
        const exact_fraction turn = exact_rope_turn(rope(), i, p.has_ff != 0u, factor);
        turn_hi[i] = turn.hi;
        turn_lo[i] = turn.lo;
    }
    barrier();
    for (uint i = tid; i < tokens * p.pairs; i += BLOCK_SIZE) {
        const uint pair = i % p.pairs;
        const uint turn = exact_turn_at(exact_fraction_of(turn_hi[pair], turn_lo[pair]), data_pos[p.pos_offset + (t0 + i / p.pairs) % p.ne2]);
        precise float c = exact_cos_turn(turn) * p.magnitude;
        precise float s = exact_sin_turn(turn) * p.magnitude;
        s = s * p.sign;
        cosines[i] = c;
        sines[i]   = s;
    }
    barrier();

    const uint turned = 2u * p.pairs;
    const uint items  = p.D - p.pairs; // of a head: pairs, and values that stay
    for (uint i = tid; i < tokens * p.H * items; i += BLOCK_SIZE) {
        const uint item  = i % items;
        const uint head  = i / items % p.H;
        const uint token = t0 + i / items / p.H;
        const uint x = p.x_offset + head * p.x_nb1 + token % p.ne2 * p.x_nb2 + token / p.ne2 * p.x_nb3;
        const uint y = p.y_offset + head * p.y_nb1 + token % p.ne2 * p.y_nb2 + token / p.ne2 * p.y_nb3;
        if (item >= p.pairs) {
            const uint stays = item - p.pairs;
            const uint at    = stays < p.first ? stays : stays + turned;
            data_y[y + at] = data_x[x + at];
            continue;
        }
        const uint  entry = (token - t0) * p.pairs + item;
        const uint  at0   = p.first + (NEOX ? item : 2u * item);
        const uint  at1   = at0 + (NEOX ? p.pairs : 1u);
        const float a = data_x[x + at0];
        const float b = data_x[x + at1];
        precise float ya = a * cosines[entry] - b * sines[entry];
        precise float yb = a * sines[entry] + b * cosines[entry];
        data_y[y + at0] = ya;
        data_y[y + at1] = yb;
    }
}
