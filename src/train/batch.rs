//! Packed rows as the network takes them: tokens, positions, the samples' bounds and the targets.

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
    /// `[2, n_tokens]`, see [`crate::model::Place::segments`].
    pub segments: Vec<i32>,
    pub targets: Vec<Prediction>,
}

impl MicroBatch {
    /// Lays out `rows`, of `seq_len` tokens each, and fills up to `n_rows` rows with padding.
    pub fn new(rows: &[Row], n_rows: usize, seq_len: usize) -> Self {
        let n_tokens = n_rows * seq_len;
        let mut batch = Self {
            tokens: vec![0; n_tokens],
            positions: vec![0; n_tokens],
            // Padding is a sample of one token: it looks at itself alone.
            segments: (0..n_tokens as i32).flat_map(|t| [t, t]).collect(),
            targets: Vec::new(),
        };
        for (r, row) in rows.iter().enumerate() {
            let first = r * seq_len;
            batch.tokens[first..first + seq_len].copy_from_slice(&row.tokens);
            batch.positions[first..first + seq_len].copy_from_slice(&row.positions);
            let mut start = first;
            for sample in row.segments.chunk_by(|a, b| a == b) {
                let end = start + sample.len();
                if sample[0] >= 0 {
                    let bounds = [start as i32, end as i32 - 1];
                    batch.segments[2 * start..2 * end].chunks_mut(2).for_each(|s| s.copy_from_slice(&bounds));
                }
                start = end;
            }
            let targets = row.targets.iter().enumerate().filter(|(_, &label)| label >= 0);
            batch.targets.extend(targets.map(|(i, &label)| Prediction { at: (first + i) as u32, label }));
        }
        batch
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
    fn a_token_knows_where_its_sample_begins_and_ends() {
        let batch = MicroBatch::new(&[row()], 1, 6);
        assert_eq!(batch.segments, [0, 1, 0, 1, 2, 4, 2, 4, 2, 4, 5, 5]);
    }

    #[test]
    fn rows_lie_one_after_the_other_and_absent_ones_are_padding() {
        let batch = MicroBatch::new(&[row(), row()], 3, 6);
        assert_eq!((batch.tokens.len(), batch.positions.len(), batch.segments.len()), (18, 18, 36));
        assert_eq!(batch.tokens[6..12], row().tokens);
        assert_eq!(batch.positions[6..12], row().positions);
        let moved: Vec<i32> = batch.segments[..12].iter().map(|s| s + 6).collect();
        assert_eq!(batch.segments[12..24], moved);
        let target = |at, label| Prediction { at, label };
        assert_eq!(batch.targets, [target(0, 11), target(3, 22), target(6, 11), target(9, 22)]);
        let alone: Vec<i32> = (12..18).flat_map(|t| [t, t]).collect();
        assert_eq!(batch.segments[24..], alone);
    }
}
