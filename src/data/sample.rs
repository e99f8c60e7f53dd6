//! One training sample: token ids, and for each whether the model is to learn to write it.

use std::ops::Range;

use super::error::Origin;

/// A tokenised record. `train` is as long as `tokens` and says of each token itself, not of its successor: the shift
/// from tokens to targets happens in `pack` and nowhere else.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sample {
    pub tokens: Vec<i32>,
    pub train: Vec<bool>,
    pub origin: Origin,
    /// The class of a classification record, as its `label` field gives it.
    pub label: Option<String>,
    /// First token of the last answer (of plain text: the first token that can be predicted).
    pub answer_start: usize,
    /// One past the last answer's last token, its end-of-turn token included.
    pub answer_end: usize,
    /// Where `tokens` and the whole record's tokens part, if the record was longer than `seq_len`.
    pub truncated: Option<Truncation>,
}

/// What was dropped to make a sample fit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Truncation {
    /// Tokens before.
    pub original: usize,
    /// Whether the last answer itself lost its end.
    pub answer_cut: bool,
}

impl Sample {
    /// Number of tokens.
    pub fn len(&self) -> usize {
        self.tokens.len()
    }

    /// Whether there are no tokens; the loader makes no such sample.
    pub fn is_empty(&self) -> bool {
        self.tokens.is_empty()
    }

    /// Token positions of the last answer.
    pub fn answer(&self) -> Range<usize> {
        self.answer_start..self.answer_end
    }

    /// How many targets this sample gives: its trained tokens, less a trained first one, which nothing predicts.
    pub fn n_targets(&self) -> usize {
        self.train.iter().skip(1).filter(|t| **t).count()
    }
}
