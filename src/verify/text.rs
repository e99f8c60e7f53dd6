//! Something to compare on where no data is given.

use std::path::Path;
use std::sync::Arc;

use crate::data::{Origin, Sample};
use crate::llama::{self, Vocab};

/// Sentences of different lengths, with digits and letters beyond ASCII: tokens of many kinds.
const SENTENCES: [&str; 4] = [
    "Ternary weights are minus one, zero or one, so a product with them is a sum of integers, and a sum of integers is the same in \
     any order.",
    "In 1989 the bridge over the Öresund was planned to be 7.8 km long; it was opened on 1 July 2000.",
    "Is water wet? Yes.",
    "def norm(x):\n    return x / (sum(v * v for v in x) / len(x) + 1e-5) ** 0.5",
];

/// The built-in sentences as samples, every token of them trained.
pub fn samples(vocab: &Vocab) -> llama::Result<Vec<Sample>> {
    let file: Arc<Path> = Path::new("built-in sentences").into();
    let sample = |(i, text): (usize, &&str)| {
        let tokens = vocab.tokenize(text, true, false)?;
        let n = tokens.len();
        let train = (0..n).map(|i| i > 0).collect();
        let origin = Origin { file: file.clone(), line: i + 1 };
        Ok(Sample { tokens, train, origin, label: None, answer_start: 1, answer_end: n, truncated: None })
    };
    SENTENCES.iter().enumerate().map(sample).collect()
}
