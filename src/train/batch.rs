//! Packed rows as the network takes them: tokens, positions, the attention mask and the targets.

use crate::data::Row;

/// One prediction that counts: the hidden state of token `at` should give `label`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Prediction {
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
    pub targets: Vec<Prediction>,
}

impl MicroBatch {
    /// Lays out `rows`, of `seq_len` tokens each, and fills up to `n_rows` rows with padding.
    pub fn new(rows: &[Row], n_rows: usize, seq_len: usize) -> Self {
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
            batch.targets.extend(targets.map(|(i, &label)| Prediction { at: (first + i) as u32, label }));
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

#[cfg(test)]
mod tests {
    use super::*;

    /// Segments `[0, 0, 1, 1, 1, -1]` in a row of six.
    fn row() -> Row {
        Row {
            tokens: vec![10, 11, 20, 21, 22, 0],
            positions: vec![0, 1, 0, 1, 2, 0],
            targets: vec![11, -1, -1, 22, -1, -1],
            segments: vec![0, 0, 1, 1, 1, -1],
            samples: vec![4, 7],
        }
    }

    #[test]
    fn a_token_sees_itself_and_what_came_before_in_its_sample() {
        let batch = MicroBatch::new(&[row()], 1, 6);
        let seen: Vec<String> = batch
            .mask
            .chunks(6)
            .map(|keys| keys.iter().map(|&m| if m == 0.0 { 'x' } else { '.' }).collect())
            .collect();
        assert_eq!(seen, ["x.....", "xx....", "..x...", "..xx..", "..xxx.", ".....x"]);
        assert!(batch.mask.iter().all(|&m| m == 0.0 || m == f32::NEG_INFINITY));
    }

    #[test]
    fn rows_lie_one_after_the_other_and_absent_ones_are_padding() {
        let batch = MicroBatch::new(&[row(), row()], 3, 6);
        assert_eq!((batch.tokens.len(), batch.positions.len(), batch.mask.len()), (18, 18, 3 * 36));
        assert_eq!(batch.tokens[6..12], row().tokens);
        assert_eq!(batch.positions[6..12], row().positions);
        assert_eq!(batch.mask[..36], batch.mask[36..72]);
        let target = |at, label| Prediction { at, label };
        assert_eq!(batch.targets, [target(0, 11), target(3, 22), target(6, 11), target(9, 22)]);
        for query in 0..6 {
            let keys = &batch.mask[72 + 6 * query..][..6];
            assert!(
                keys.iter().enumerate().all(|(key, &m)| (m == 0.0) == (key == query)),
                "padding sees itself"
            );
        }
    }
}
