//! Seconds of an engine's micro-batches and updates, and of an epoch of them.

use std::time::{Duration, Instant};

use serde::Serialize;

use crate::bench::{self, Spread};
use crate::data::Row;
use crate::ggml::Backend;
use crate::train::{self, Engine, MicroBatch};

/// How an epoch divides.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Pace {
    pub rows: usize,
    pub steps: usize,
    pub seconds: f64,
}

/// Seconds of a micro-batch, forward and backward, and of an update.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Times {
    pub micro_batch_seconds: f64,
    pub update_seconds: f64,
}

impl Times {
    /// Takes steps for `time` after the first, two at least.
    pub fn of(
        engine: &Engine,
        backend: &Backend,
        rows: &[Row],
        n_vocab: usize,
        time: Duration,
    ) -> train::Result<Self> {
        let config = engine.config();
        let random;
        let rows = match rows {
            [] => {
                random = bench::random_rows(config.n_rows, config.seq_len, n_vocab, 1);
                random.as_slice()
            }
            rows => &rows[..config.n_rows.min(rows.len())],
        };
        let batch = MicroBatch::new(rows, config.n_rows, config.seq_len);
        let weight = 1.0 / batch.targets.len().max(1) as f32;
        let step = |n: usize| -> train::Result<[f64; 2]> {
            let start = Instant::now();
            engine.zero_grad()?;
            engine.accumulate(&batch, weight)?;
            backend.wait()?;
            let half = Instant::now();
            engine.apply(n as u64, 1e-4)?;
            backend.wait()?;
            Ok([half - start, half.elapsed()].map(|t| t.as_secs_f64()))
        };
        // Compiles what there is to compile.
        step(0)?;
        let began = Instant::now();
        let (mut micro_batches, mut updates) = (Vec::new(), Vec::new());
        while updates.is_empty() || began.elapsed() < time {
            let [micro_batch, update] = step(updates.len() + 1)?;
            micro_batches.push(micro_batch);
            updates.push(update);
        }
        // The second half: an idle device's clock rises only after a while of work.
        let late = |all: &[f64]| Spread::of(all[all.len() / 2..].iter().copied()).median;
        Ok(Self { micro_batch_seconds: late(&micro_batches), update_seconds: late(&updates) })
    }

    /// What `rows` rows take in steps of `per_step`, `n_rows` of them at a time.
    pub fn pace(&self, rows: usize, per_step: usize, n_rows: usize) -> Pace {
        let micro_batches = |rows: usize| rows.div_ceil(n_rows);
        let (full, rest) = (rows / per_step, rows % per_step);
        let steps = full + usize::from(rest > 0);
        let n = full * micro_batches(per_step) + micro_batches(rest);
        let seconds = n as f64 * self.micro_batch_seconds + steps as f64 * self.update_seconds;
        Pace { rows, steps, seconds }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_epoch_counts_micro_batches_that_are_not_full() {
        let t = Times { micro_batch_seconds: 1.0, update_seconds: 0.5 };
        // Ten rows: two steps of four rows and one of two; three rows at a time.
        assert_eq!(t.pace(10, 4, 3), Pace { rows: 10, steps: 3, seconds: 5.0 + 1.5 });
        assert_eq!(t.pace(8, 4, 4), Pace { rows: 8, steps: 2, seconds: 3.0 });
        assert_eq!(t.pace(0, 4, 4), Pace { rows: 0, steps: 0, seconds: 0.0 });
    }
}
