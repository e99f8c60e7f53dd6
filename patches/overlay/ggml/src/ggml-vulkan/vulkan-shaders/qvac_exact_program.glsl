// What products of qvac_tq_program.comp have of floats, in exact arithmetic (docs/exactness.md): the bits of the nodes by
// themselves.

shared float lane_sums[BLOCK_SIZE];

// A row's 512 lanes are the invocations. Each subgroup makes the tree for itself; which of two values are added is what the
// definition has, whatever a subgroup's size.
float sum_of_all(const float mine) {
    lane_sums[gl_LocalInvocationID.x] = mine;
    barrier();
    float sums[GROUPS];
    [[unroll]] for (uint g = 0; g < GROUPS; ++g) {
        sums[g] = lane_sums[g * LANES + lane()];
    }
    // Loops that count in ones are unrolled by every driver.
    [[unroll]] for (uint level = 1; level <= 6; ++level) {
        const uint h = GROUPS >> level;
        [[unroll]] for (uint g = 0; g < GROUPS / 2; ++g) {
            if (g < h) {
                precise const float sum = sums[g] + sums[g + h];
                sums[g] = sum;
            }
        }
    }
    [[unroll]] for (uint level = 1; level <= 6; ++level) {
        const uint h = LANES >> level;
        if (h > 0) {
            precise const float sum = sums[0] + subgroupShuffleXor(sums[0], h);
            sums[0] = sum;
        }
    }
    return sums[0];
}

float norm_scale_of(const vec4 xs[VALUES4]) {
    precise float sum = 0.0;
    [[unroll]] for (uint j = 0; j < VALUES4; ++j) {
        precise const vec4 squares = xs[j] * xs[j];
        sum = sum + squares.x;
        sum = sum + squares.y;
        sum = sum + squares.z;
        sum = sum + squares.w;
    }
    precise const float mean = sum_of_all(sum) * exact_recip(float(PARAM(n))) + FLOAT(eps);
    return exact_rsqrt(mean);
}

// The gate of a gated unit.
float activated(const float x, const bool relu_sqr) {
    const float r = x > 0.0 ? x : 0.0;
    precise const float square = r * r;
    return relu_sqr ? square : exact_silu(x);
}
