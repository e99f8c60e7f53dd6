//! Widths before and after padding.
//!
//! Rows of a ternary type are whole blocks of 256 values. A width that is none is filled up with zeros, and the network
//! still computes the same. What changes with a width is the mean in its norm and, with heads, the scale of attention;
//! both are put right in weights that are scaled anyway, with factors that are exact but for their rounding to f32.
//!
//! A norm over `n` values filled up to `n'` divides by the root of `sum / n' + eps'`. All norms of a file share `eps'`.
//! With `r = n_embd / n_embd'` and `eps' = r eps`:
//!
//! - over the residual stream the root becomes `sqrt(r)` times what it was: the norm's weight takes `sqrt(r)`;
//! - over the FFN the input is multiplied by `c = sqrt(r n_ff' / n_ff)` (the scale of `ffn_up`), which makes the root
//!   `sqrt(r)` times what it was again: `ffn_sub_norm` takes `sqrt(r) / c = sqrt(n_ff / n_ff')`. The gate's zero rows
//!   give silu(0) = relu(0)^2 = 0;
//! - heads are filled up where queries have to be as wide as the residual stream (`bitnet`). Rotary positions stay at
//!   the old width (`rope.dimension_count`). Attention divides by the root of the new one: `attn_q` takes
//!   `sqrt(n_embd_head' / n_embd_head)`. `attn_sub_norm` is as wide as the stream, and takes `sqrt(r)`.
//!
//! Where only the FFN is filled up, `r` is 1 and epsilon stays as it is.

use super::config::{Family, ModelConfig};

/// A width made of groups, each filled up with zeros at its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Padding {
    groups: usize,
    group_from: usize,
    group_to: usize,
}

impl Padding {
    pub(super) fn none(n: usize) -> Self {
        Self { groups: 1, group_from: n, group_to: n }
    }

    fn to_multiple(n: usize, unit: usize) -> Self {
        Self { groups: 1, group_from: n, group_to: n.next_multiple_of(unit) }
    }

    /// Values before.
    pub(super) fn from(self) -> usize {
        self.groups * self.group_from
    }

    /// Values after.
    pub(super) fn to(self) -> usize {
        self.groups * self.group_to
    }

    pub(super) fn pads(self) -> bool {
        self.group_from != self.group_to
    }

    /// Which value stands at place `i`; `None` for a zero.
    pub(super) fn source(self, i: usize) -> Option<usize> {
        let (group, at) = (i / self.group_to, i % self.group_to);
        (at < self.group_from).then_some(group * self.group_from + at)
    }

    /// `sqrt(to / from)`
    pub(super) fn gain(self) -> f64 {
        (self.group_to as f64 / self.group_from as f64).sqrt()
    }

    /// `values` with the zeros in between.
    pub(super) fn apply(self, values: &[f32], out: &mut [f32]) {
        out.fill(0.0);
        for (from, to) in values.chunks_exact(self.group_from).zip(out.chunks_exact_mut(self.group_to)) {
            to[..self.group_from].copy_from_slice(from);
        }
    }
}

/// All widths of a network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Layout {
    pub embd: Padding,
    pub q: Padding,
    pub kv: Padding,
    pub ff: Padding,
    pub n_embd_head: usize,
}

impl Layout {
    /// Widths as they are, but filled up to multiples of `unit` where that changes nothing.
    pub(super) fn new(config: &ModelConfig, unit: usize) -> Self {
        let (n_head, n_head_kv, head) = (config.n_head, config.n_head_kv, config.n_embd_head);
        let plain = Self {
            embd: Padding::none(config.n_embd),
            q: Padding::none(n_head * head),
            kv: Padding::none(n_head_kv * head),
            ff: Padding::to_multiple(config.n_ff, unit),
            n_embd_head: head,
        };
        let embd = Padding::to_multiple(config.n_embd, unit);
        if config.family == Family::Llama || !embd.pads() {
            return Self { embd, ..plain };
        }
        // Heads that share the new width among them.
        let new_head = embd.to() / n_head;
        if embd.to() % n_head != 0 || new_head % 2 != 0 {
            return plain;
        }
        let heads = |groups| Padding { groups, group_from: head, group_to: new_head };
        Self { embd, q: heads(n_head), kv: heads(n_head_kv), n_embd_head: new_head, ..plain }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_are_filled_up_at_their_ends() {
        let p = Padding { groups: 2, group_from: 2, group_to: 3 };
        assert_eq!((p.from(), p.to()), (4, 6));
        let places: Vec<_> = (0..6).map(|i| p.source(i)).collect();
        assert_eq!(places, [Some(0), Some(1), None, Some(2), Some(3), None]);
        let mut out = [9.0; 6];
        p.apply(&[1.0, 2.0, 3.0, 4.0], &mut out);
        assert_eq!(out, [1.0, 2.0, 0.0, 3.0, 4.0, 0.0]);
    }

    #[test]
    fn a_norm_over_padded_values_is_the_norm_before() {
        let (embd, ff) = (Padding::to_multiple(320, 256), Padding::to_multiple(340, 256));
        let eps = 1e-5;
        let new_eps = eps / embd.gain().powi(2);
        // Values so small that the epsilon weighs as much as they do.
        let x: Vec<f64> = (0..320).map(|i| ((i * 37 % 101) as f64 - 50.0) * 1e-4).collect();
        let square = |x: &[f64], n: usize| x.iter().map(|x| x * x).sum::<f64>() / n as f64;
        let before = |n: usize| x[7] / (square(&x, n) + eps).sqrt();
        let after = |x: &[f64], n: usize, factor: f64| x[7] / (square(x, n) + new_eps).sqrt() * factor;
        let same = |a: f64, b: f64| assert!((a / b - 1.0).abs() < 1e-12, "{a} {b}");
        same(after(&x, embd.to(), 1.0 / embd.gain()), before(320));
        let c = ff.gain() / embd.gain();
        let scaled: Vec<f64> = x.iter().map(|x| x * c).collect();
        same(after(&scaled, ff.to(), 1.0 / ff.gain()), before(340));
    }
}
