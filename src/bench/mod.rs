//! How fast a machine trains and answers, measured on the real engines with random tokens.
//!
//! ```text
//! kernels one operation of a training step after the other
//! train   optimizer steps exactly as the trainer takes them
//! protocol  the published way to measure answers
//! memory  what libllama allocates for a model
//! infer   prompts and generated tokens through libllama
//! ```
//! It never prints and never chooses a model or a device. What a figure includes stands at the function that takes it.

mod error;
mod infer;
mod kernels;
mod memory;
mod protocol;
mod train;

pub use error::{Error, Result};
pub use infer::{infer, InferConfig, InferFigures, Test, PROMPT_BEFORE_GENERATE};
pub use kernels::{fill, kernels, KernelFigure, Shape as KernelShape};
pub use memory::{loaded, Loaded};
pub use protocol::{answer, Answers, Figures, Protocol, PUBLISHED};
pub use train::{random_rows, train, Layout, Parts, TrainConfig, TrainFigures};

/// Several measurements of one thing.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize)]
pub struct Spread {
    pub median: f64,
    pub min: f64,
    pub max: f64,
}

impl Spread {
    /// Of at least one measurement; zeros of none.
    pub fn of(values: impl IntoIterator<Item = f64>) -> Self {
        let mut sorted: Vec<f64> = values.into_iter().collect();
        sorted.sort_by(f64::total_cmp);
        let (Some(&min), Some(&max)) = (sorted.first(), sorted.last()) else {
            return Self { median: 0.0, min: 0.0, max: 0.0 };
        };
        let n = sorted.len();
        Self { median: (sorted[(n - 1) / 2] + sorted[n / 2]) / 2.0, min, max }
    }

    /// All three through `f`, which may turn the order round (seconds into tokens per second).
    pub fn map(self, f: impl Fn(f64) -> f64) -> Self {
        let (a, b) = (f(self.min), f(self.max));
        Self { median: f(self.median), min: a.min(b), max: a.max(b) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_lies_in_the_middle() {
        assert_eq!(Spread::of([3.0, 1.0, 2.0]), Spread { median: 2.0, min: 1.0, max: 3.0 });
        assert_eq!(Spread::of([4.0, 1.0, 2.0, 3.0]).median, 2.5);
        assert_eq!(Spread::of([]).median, 0.0);
        assert_eq!(Spread::of([2.0, 4.0, 8.0]).map(|s| 8.0 / s), Spread { median: 2.0, min: 1.0, max: 4.0 });
    }
}
