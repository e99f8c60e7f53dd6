//! Rotary positions: angles as fractions of a turn.

use qvac_ft::ggml::{Rope, RopeKind};

use super::{in_place, noise, same, within};

fn plain(kind: RopeKind, n_dims: i32, freq_base: f32) -> Rope {
    Rope {
        kind,
        n_dims,
        n_ctx_orig: 2048,
        freq_base,
        freq_scale: 1.0,
        ext_factor: 0.0,
        attn_factor: 1.0,
        beta_fast: 32.0,
        beta_slow: 1.0,
    }
}

fn corr_dim(rope: &Rope, rotations: f32) -> f64 {
    let turns = f64::from(rope.n_ctx_orig) / (f64::from(rotations) * std::f64::consts::TAU);
    f64::from(rope.n_dims) * turns.ln() / (2.0 * f64::from(rope.freq_base).ln())
}

/// The angle of pair `i` at `pos`, and how much longer vectors become.
fn angle(rope: &Rope, i: usize, pos: i32, factor: f32) -> (f64, f64) {
    let power = -2.0 * i as f64 / f64::from(rope.n_dims);
    let theta = f64::from(pos) * f64::from(rope.freq_base).powf(power) / f64::from(factor);
    let scale = f64::from(rope.freq_scale);
    if rope.ext_factor == 0.0 {
        return (scale * theta, f64::from(rope.attn_factor));
    }
    let low = corr_dim(rope, rope.beta_fast).floor().max(0.0);
    let high = corr_dim(rope, rope.beta_slow).ceil().min(f64::from(rope.n_dims - 1));
    let ramp = ((i as f64 - low) / (high - low).max(0.001)).clamp(0.0, 1.0);
    let mix = (1.0 - ramp) * f64::from(rope.ext_factor);
    let longer = f64::from(rope.attn_factor) * (1.0 + 0.1 * (1.0 / scale).ln());
    (scale * theta * (1.0 - mix) + theta * mix, longer)
}

/// The rotation of `x` `[d, h, t]` in f64.
fn rotated(
    rope: &Rope,
    back: bool,
    x: &[f32],
    d: usize,
    h: usize,
    pos: &[i32],
    factors: Option<&[f32]>,
) -> Vec<f64> {
    let mut y: Vec<f64> = x.iter().map(|&x| f64::from(x)).collect();
    let pairs = rope.n_dims as usize / 2;
    for (row, y) in y.chunks_mut(d).enumerate() {
        for i in 0..pairs {
            let (theta, longer) = angle(rope, i, pos[row / h], factors.map_or(1.0, |f| f[i]));
            let (s, c) = if back { (-theta).sin_cos() } else { theta.sin_cos() };
            let (i0, i1) = match rope.kind {
                RopeKind::Norm => (2 * i, 2 * i + 1),
                RopeKind::Neox => (i, i + pairs),
            };
            let (a, b) = (y[i0], y[i1]);
            y[i0] = longer * (a * c - b * s);
            y[i1] = longer * (a * s + b * c);
        }
    }
    y
}

/// A sine's error and the roundings of two products and their sum.
const TURNED: f64 = 5e-7;

fn check(case: &str, rope: &Rope, [d, h]: [i64; 2], pos: &[i32], factors: Option<&[f32]>) {
    let n = pos.len();
    let x = noise(50, (d * h) as usize * n);
    let most = x.iter().fold(0.0f64, |m, &x| m.max(f64::from(x).abs()));
    for back in [false, true] {
        let case = format!("{case} {:?} [{d}, {h}, {n}] back {back}", rope.kind);
        let got = same(&case, |mut t| {
            let x = t.f32(&[d, h, n as i64], &x);
            let pos = t.i32(pos);
            let factors = factors.map(|f| t.f32(&[f.len() as i64], f));
            let y = in_place(&t, &x, |x| match back {
                false => t.ops.rope_ext(x, &pos, factors.as_ref(), rope).unwrap(),
                true => t.ops.rope_ext_back(x, &pos, factors.as_ref(), rope).unwrap(),
            });
            t.run(&y)
        });
        let want = rotated(rope, back, &x, d as usize, h as usize, pos, factors);
        within(&case, &got, &want, |_| TURNED * most);
    }
}

const KINDS: [RopeKind; 2] = [RopeKind::Norm, RopeKind::Neox];

#[test]
fn of_all_shapes() {
    for kind in KINDS {
        for [d, h, n] in [[2, 1, 1], [64, 5, 3], [128, 3, 17], [96, 2, 1100], [256, 1, 5]] {
            let pos: Vec<i32> = (0..n).map(|i| (i * 37 % 9001) as i32).collect();
            check("rope", &plain(kind, d as i32, 10_000.0), [d, h], &pos, None);
        }
    }
}

#[test]
fn of_part_of_a_head() {
    for kind in KINDS {
        check("part", &plain(kind, 32, 10_000.0), [80, 3], &[0, 5, 77, 8191], None);
    }
}

/// As accurate at the end of long contexts as at their beginning.
#[test]
fn far_away() {
    for kind in KINDS {
        for base in [10_000.0, 500_000.0, 1e6] {
            check(
                "far",
                &plain(kind, 128, base),
                [128, 2],
                &[0, 1, 4095, 8192, 131_071, 1_000_003, -3, -70_000],
                None,
            );
        }
    }
}

#[test]
fn with_factors_and_yarn() {
    let factors: Vec<f32> = (0..64).map(|i| [1.0, 0.7, 8.0, 3.3, 1.0 + i as f32 / 9.0][i % 5]).collect();
    let pos = [0, 1, 100, 2049, 8191, 30_000];
    for kind in KINDS {
        check("factors", &plain(kind, 128, 500_000.0), [128, 2], &pos, Some(&factors));
        let scaled = Rope { freq_scale: 0.25, attn_factor: 1.1, ..plain(kind, 128, 10_000.0) };
        check("scaled", &scaled, [128, 2], &pos, None);
        for ext_factor in [1.0, 0.3] {
            check("yarn", &Rope { ext_factor, ..scaled.clone() }, [128, 2], &pos, Some(&factors));
        }
    }
}
