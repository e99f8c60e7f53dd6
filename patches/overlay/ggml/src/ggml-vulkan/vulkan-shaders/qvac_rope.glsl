// Rotary positions: the angle of a pair (YaRN: mixed with the interpolated one), and where four pairs of a head lie.

layout(constant_id = 2) const bool NEOX = true; // pairs are (i, i + D/2), else neighbours

// Of the pair `pair` of token `t`.
float angle(const uint t, const uint pair) {
    const float ff    = p.has_ff != 0 ? data_ff[p.ff_offset + pair] : 1.0;
    const float exact = float(data_pos[p.pos_offset + t]) * pow(p.theta_scale, float(pair)) / ff;
    const float scaled = p.freq_scale * exact;
    if (p.ext_factor == 0.0) {
        return scaled;
    }
    const float ramp = clamp((float(pair) - p.corr_low) / max(0.001, p.corr_high - p.corr_low), 0.0, 1.0);
    return mix(scaled, exact, (1.0 - ramp) * p.ext_factor);
}

// The two fours of item `i`, from the first token's head on.
uvec2 places(const uint i) {
    const uint quads = p.D / 8;
    if (NEOX) {
        const uint row = i / quads;
        const uint at  = row * 2 * quads + i % quads;
        return uvec2(at, at + quads);
    }
    return uvec2(2 * i, 2 * i + 1);
}

// Turns the four pairs in v0 and v1 by the angles with the cosines c and the sines s.
void turn(inout vec4 v0, inout vec4 v1, const vec4 c, const vec4 s) {
    const vec4 a = NEOX ? v0 : vec4(v0.xz, v1.xz);
    const vec4 b = NEOX ? v1 : vec4(v0.yw, v1.yw);

    const vec4 ra = a * c - b * s;
    const vec4 rb = a * s + b * c;
    v0 = NEOX ? ra : vec4(ra.x, rb.x, ra.y, rb.y);
    v1 = NEOX ? rb : vec4(ra.z, rb.z, ra.w, rb.w);
}
