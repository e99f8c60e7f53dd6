//! Packed rows as the network takes them: tokens, positions, the attention mask and the targets.

use crate::data::Row;

/// One prediction that counts: the hidden state of token `at` should give `label`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Target {
    /// Index into the micro-batch's tokens.
    pub at: u32,
    pub label: i32,
}

/// The host side of one micro-batch of `n_rows * seq_len` tokens.
pub struct MicroBatch {
    pub tokens: Vec<i32>,
    pub positions: Vec<i32>,
    /// `[seq_len, seq_len, 1, n_rows]`, see [`crate::model::Place::mask`].
    pub mask: Vec<f32>,
    pub targets: Vec<Target>,
}

impl MicroBatch {
    /// Lays out `rows`, of `seq_len` tokens each, and fills up to `n_rows` rows with padding.
    pub fn new(rows: &[&Row], n_rows: usize, seq_len: usize) -> Self {
        let n_tokens = n_rows * seq_len;
        let mut batch = Self {
            tokens: vec![0; n_tokens],
            positions: vec![0; n_tokens],
            mask: vec![f32::NEG_INFINITY; n_tokens * seq_len],
            targets: Vec::new(),
        };
        for (r, row) in rows.iter().enumerate() {
            let first = r * seq_len;
            batch.tokens[first..first + seq_len].copy_from_slice(&row.tokens);
            batch.positions[first..first + seq_len].copy_from_slice(&row.positions);
            let targets = row.targets.iter().enumerate().filter(|(_, &label)| label >= 0);
            batch.targets.extend(targets.map(|(i, &label)| Target { at: (first + i) as u32, label }));
        }
        for r in 0..n_rows {
            let segments = rows.get(r).map(|row| row.segments.as_slice());
            fill_mask(&mut batch.mask[r * seq_len * seq_len..][..seq_len * seq_len], segments, seq_len);
        }
        batch
    }
}

/// A token looks at itself and at earlier tokens of its own segment. Padding looks at itself alone: a row of minus
/// infinities would make its softmax, and with it every gradient, not a number.
fn fill_mask(mask: &mut [f32], segments: Option<&[i32]>, seq_len: usize) {
    for query in 0..seq_len {
        let row = &mut mask[query * seq_len..][..seq_len];
        row[query] = 0.0;
        if let Some(s) = segments.filter(|s| s[query] >= 0) {
            let same = (0..query).rev().take_while(|&key| s[key] == s[query]);
            same.for_each(|key| row[key] = 0.0);
        }
    }
}
