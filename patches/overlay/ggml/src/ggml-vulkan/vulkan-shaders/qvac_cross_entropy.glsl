// What the forward and the backward of cross entropy over class ids share: the log-sum-exp of one row of logits,
// made by one workgroup in one pass over the row.

#extension GL_EXT_control_flow_attributes : enable

layout(constant_id = 0) const uint BLOCK_SIZE = 256; // a power of two
layout(constant_id = 1) const bool ALIGNED = false;  // rows are whole fours of values, each at 16 bytes
layout(local_size_x_id = 0, local_size_y = 1, local_size_z = 1) in;

// Offsets and strides in elements.
layout(push_constant) uniform parameter {
    uint  n_vocab;
    uint  n_rows;
    uint  nb_logits;   // from one row of logits to the next
    uint  nb_dst;      // the same of the gradient; unused forward
    uint  nb_grad;     // 0 where one gradient serves all rows
    float scale;
    uint  logits_offset;
    uint  labels_offset;
    uint  grad_offset;
    uint  dst_offset;
} p;

// Rows are spread over two grid dimensions: one alone may hold 65535 workgroups at most.
const uint ROWS_PER_GRID_LINE = 512;

const float NEG_MAX = -3.402823466e38;
const uint  NAN_BITS = 0x7fc00000u;
const uint  MINUS_INFINITY_BITS = 0xff800000u;

shared float row_max[BLOCK_SIZE];
shared float row_sum[BLOCK_SIZE];

uint row_of_workgroup() {
    return gl_WorkGroupID.y * ROWS_PER_GRID_LINE + gl_WorkGroupID.x;
}

// Merges two partial sums of exp(x - max), each relative to its own maximum.
vec2 merge(const vec2 a, const vec2 b) {
    const float m = max(a.x, b.x);
    return vec2(m, a.y * exp(a.x - m) + b.y * exp(b.x - m));
}

// Fours of a row that an invocation has on their way at once.
const uint EACH = 4;

// The columns of an invocation's four `k`: side by side where they are read at once, else each beside its neighbours'.
uvec4 columns(const uint k) {
    if (ALIGNED) {
        return 4 * (k * BLOCK_SIZE + gl_LocalInvocationID.x) + uvec4(0, 1, 2, 3);
    }
    return (4 * k + uvec4(0, 1, 2, 3)) * BLOCK_SIZE + gl_LocalInvocationID.x;
}

// Whether any invocation has a four `k`.
bool is_in_row(const uint k) {
    return 4 * k * BLOCK_SIZE < p.n_vocab;
}

// Four logits, those behind the row's end minus infinity: exp makes zeros of them.
vec4 load_logits(const uint base, const uint k) {
    const uvec4 column = columns(k);
    const uvec4 at     = base + min(column, uvec4(p.n_vocab - 1));
    vec4 x;
    if (ALIGNED) {
        x = data_logits4[at.x / 4];
    } else {
        x = vec4(data_logits[at.x], data_logits[at.y], data_logits[at.z], data_logits[at.w]);
    }
    return mix(vec4(uintBitsToFloat(MINUS_INFINITY_BITS)), x, lessThan(column, uvec4(p.n_vocab)));
}

// x: the row's maximum, y: sum of exp(logit - maximum). Every invocation of the workgroup must call it.
//
// The running maximum starts at the lowest finite number and not at minus infinity: a masked logit of -inf then adds
// exp(-inf) = 0 instead of exp(-inf + inf) = NaN.
vec2 max_and_sum(const uint base) {
    const uint tid = gl_LocalInvocationID.x;

    vec2 r = vec2(NEG_MAX, 0.0);
    for (uint k = 0; is_in_row(k); k += EACH) {
        vec4 x[EACH];
        [[unroll]] for (uint j = 0; j < EACH; ++j) {
            x[j] = load_logits(base, k + j);
        }
        vec4 m4 = x[0];
        [[unroll]] for (uint j = 1; j < EACH; ++j) {
            m4 = max(m4, x[j]);
        }
        const float m = max(r.x, max(max(m4.x, m4.y), max(m4.z, m4.w)));
        r = vec2(m, r.y * exp(r.x - m));
        [[unroll]] for (uint j = 0; j < EACH; ++j) {
            r.y += dot(exp(x[j] - m), vec4(1.0));
        }
    }
    row_max[tid] = r.x;
    row_sum[tid] = r.y;
    barrier();

    [[unroll]] for (uint s = BLOCK_SIZE / 2; s > 0; s >>= 1) {
        if (tid < s) {
            const vec2 both = merge(vec2(row_max[tid], row_sum[tid]), vec2(row_max[tid + s], row_sum[tid + s]));
            row_max[tid] = both.x;
            row_sum[tid] = both.y;
        }
        barrier();
    }
    return vec2(row_max[0], row_sum[0]);
}
