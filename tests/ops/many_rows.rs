//! Upstream's ops in the layouts that our Vulkan kernels take over (contiguous, more than eight rows), and beside them:
//! few rows, odd lengths, tensors that don't begin at 16 bytes. What takes which must not be seen in the result.

use qvac_ft::ggml::{Rope, RopeKind, Tensor};

use super::forward::rope_params;
use super::{check, noise, Bench, Want};

const FEW_ROUNDINGS: f64 = 1e-6;
const TRANSCENDENTAL: f64 = 2e-5; // as in forward.rs

/// A tensor `offset` values into another one.
fn at_offset(t: &mut Bench, ne: &[i64], values: &[f32], offset: usize) -> Tensor {
    let padded: Vec<f32> = std::iter::repeat_n(7.0, offset).chain(values.iter().copied()).collect();
    let all = t.f32(&[padded.len() as i64], &padded);
    t.ops.view(&all, ne, offset).unwrap()
}

fn rms_norm(n: usize, rows: usize, multiply: bool, offset: usize) {
    let eps = 1e-5f32;
    let (x, w) = (noise(60, n * rows), noise(61, n));
    let mut values = Vec::new();
    for row in x.chunks(n) {
        let mean = row.iter().map(|&x| f64::from(x) * f64::from(x)).sum::<f64>() / n as f64;
        let r = 1.0 / (mean + f64::from(eps)).sqrt();
        values.extend(
            row.iter().zip(&w).map(|(&x, &w)| f64::from(x) * r * if multiply { f64::from(w) } else { 1.0 }),
        );
    }
    let case = format!("rms_norm {n}x{rows} multiply {multiply} offset {offset}");
    check(&case, &Want::within(values, TRANSCENDENTAL), |mut t| {
        let x = at_offset(&mut t, &[n as i64, rows as i64], &x, offset);
        let mut y = t.ops.rms_norm(&x, eps).unwrap();
        if multiply {
            let w = t.f32(&[n as i64], &w);
            y = t.ops.mul(&y, &w).unwrap();
        }
        t.run(&y)
    });
}

#[test]
fn rms_norm_and_its_weight() {
    // Around what 32 and 256 invocations keep, and beyond.
    for n in [1, 7, 33, 128, 256, 260, 1030, 2048, 2052, 5632, 6145, 13824, 14340] {
        for multiply in [false, true] {
            rms_norm(n, 11, multiply, 0);
        }
    }
    rms_norm(64, 8, true, 0);
    rms_norm(64, 11, true, 4);
    rms_norm(64, 11, true, 1);
    rms_norm(2048, 11, false, 3);
    rms_norm(12, 4101, true, 0); // more rows than one line of the grid holds
    rms_norm(260, 515, true, 0);
}

#[test]
fn sums_and_gates() {
    let silu = |x: f64| x / (1.0 + (-x).exp());
    for (ne, offset) in [
        ([4i64, 9], 0),
        ([1024, 11], 0),
        ([1030, 10], 0),
        ([1030, 11], 0),
        ([7, 33], 0),
        ([64, 8], 0),
        ([64, 12], 4),
        ([64, 12], 1),
        ([2048, 517], 0), // more blocks than one line of the grid holds
    ] {
        let n = (ne[0] * ne[1]) as usize;
        let (a, b) = (noise(62, n), noise(63, n));
        let pairs = || a.iter().zip(&b).map(|(&a, &b)| (f64::from(a), f64::from(b)));
        let sums = Want::within(pairs().map(|(a, b)| a + b).collect(), FEW_ROUNDINGS);
        check(&format!("add {ne:?} offset {offset}"), &sums, |mut t| {
            let (a, b) = (at_offset(&mut t, &ne, &a, offset), t.f32(&ne, &b));
            let out = t.ops.add(&a, &b).unwrap();
            t.run(&out)
        });
        let gated = Want::within(pairs().map(|(a, b)| silu(a) * b).collect(), TRANSCENDENTAL);
        check(&format!("swiglu {ne:?} offset {offset}"), &gated, |mut t| {
            let (a, b) = (t.f32(&ne, &a), at_offset(&mut t, &ne, &b, offset));
            let out = t.ops.swiglu_split(&a, &b).unwrap();
            t.run(&out)
        });
        // One dispatch, of the same two roundings.
        let squared = Want::within(pairs().map(|(a, b)| a.max(0.0).powi(2) * b).collect(), FEW_ROUNDINGS);
        check(&format!("relu_sqr_glu {ne:?} offset {offset}"), &squared, |mut t| {
            let (a, b) = (t.f32(&ne, &a), at_offset(&mut t, &ne, &b, offset));
            let out = t.ops.relu_sqr_glu(&a, &b).unwrap();
            t.run(&out)
        });
    }
}

/// What the ops promise: ggml's formula for rotary positions, with YaRN, in f64.
fn rotate(x: &[f32], ne: [usize; 3], pos: &[i32], ff: Option<&[f32]>, rope: &Rope, sign: f64) -> Vec<f64> {
    let [d, heads, tokens] = ne;
    let dims = f64::from(rope.n_dims);
    let (base, scale, ext) =
        (f64::from(rope.freq_base), f64::from(rope.freq_scale), f64::from(rope.ext_factor));
    let turns = |beta: f32| {
        dims * (f64::from(rope.n_ctx_orig) / (f64::from(beta) * std::f64::consts::TAU)).ln()
            / (2.0 * base.ln())
    };
    let low = turns(rope.beta_fast).floor().max(0.0);
    let high = turns(rope.beta_slow).ceil().min(dims - 1.0);
    let longer = if ext == 0.0 { 1.0 } else { 1.0 - 0.1 * scale.ln() };
    let magnitude = f64::from(rope.attn_factor) * longer;

    let mut out: Vec<f64> = x.iter().map(|&x| x.into()).collect();
    for (token, &position) in pos.iter().enumerate().take(tokens) {
        for pair in 0..d / 2 {
            let exact = f64::from(position) * base.powf(-2.0 * pair as f64 / dims)
                / ff.map_or(1.0, |ff| f64::from(ff[pair]));
            let ramp = 1.0 - ((pair as f64 - low) / (high - low).max(0.001)).clamp(0.0, 1.0);
            let mix = ramp * ext;
            let angle = sign * (scale * exact * (1.0 - mix) + exact * mix);
            let (i, j) = match rope.kind {
                RopeKind::Norm => (2 * pair, 2 * pair + 1),
                RopeKind::Neox => (pair, pair + d / 2),
            };
            for head in 0..heads {
                let at = (token * heads + head) * d;
                let (a, b) = (out[at + i], out[at + j]);
                out[at + i] = magnitude * (a * angle.cos() - b * angle.sin());
                out[at + j] = magnitude * (a * angle.sin() + b * angle.cos());
            }
        }
    }
    out
}

fn rope(ne: [usize; 3], rope: &Rope, ff: bool, offset: usize, back: bool) {
    let x = noise(64, ne.iter().product());
    let pos: Vec<i32> = (0..ne[2] as i32).map(|i| (i * 5 + 2) % 43).collect();
    let ff = ff.then(|| noise(65, ne[0] / 2).iter().map(|f| 1.5 + f.abs()).collect::<Vec<f32>>());
    let values = rotate(&x, ne, &pos, ff.as_deref(), rope, if back { -1.0 } else { 1.0 });
    let ne = ne.map(|n| n as i64);
    let with = (rope.ext_factor, ff.is_some());
    let case = format!("rope {:?} {ne:?} offset {offset} yarn, ff {with:?} back {back}", rope.kind);
    check(&case, &Want::within(values, TRANSCENDENTAL), |mut t| {
        let (x, pos) = (at_offset(&mut t, &ne, &x, offset), t.i32(&pos));
        let ff = ff.as_ref().map(|ff| t.f32(&[ne[0] / 2], ff));
        let y = match back {
            true => t.ops.rope_ext_back(&x, &pos, ff.as_ref(), rope),
            false => t.ops.rope_ext(&x, &pos, ff.as_ref(), rope),
        };
        t.run(&y.unwrap())
    });
}

#[test]
fn rope_forward_and_back() {
    for kind in [RopeKind::Norm, RopeKind::Neox] {
        // Several tokens in a workgroup, and one; more values than invocations; a head that no four pairs fill; few tokens.
        for ne in [[64, 3, 19], [64, 32, 10], [128, 40, 9], [20, 3, 19], [64, 3, 8]] {
            let plain = rope_params(kind, ne[0] as i32);
            let yarn =
                Rope { freq_scale: 0.25, ext_factor: 1.0, attn_factor: 0.9, n_ctx_orig: 64, ..plain.clone() };
            for back in [false, true] {
                rope(ne, &plain, false, 0, back);
                rope(ne, &plain, true, 1, back);
                rope(ne, &yarn, false, 4, back);
                rope(ne, &yarn, true, 0, back);
            }
        }
    }
    // More workgroups than one line of the grid holds.
    rope([64, 32, 520], &rope_params(RopeKind::Neox, 64), false, 0, false);
}
