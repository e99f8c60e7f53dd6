//! The learning rate over the steps of a run: the same bits on every platform, whose own cosines differ.

use serde::{Deserialize, Serialize};

/// How the learning rate falls after the warm-up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Decay {
    /// In a straight line to zero at the end of the run.
    #[default]
    Linear,
    /// Along half a cosine to zero at the end of the run.
    Cosine,
    /// Not at all.
    Constant,
}

/// A learning-rate schedule.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Schedule {
    /// The highest rate.
    pub lr: f64,
    pub decay: Decay,
    /// Steps of linear rise from zero.
    pub warmup: u64,
    /// Optimizer steps in the run.
    pub total: u64,
}

impl Schedule {
    /// The rate of step `step`, counted from 0. The first step after a warm-up, or of a run without one, has the
    /// full rate.
    pub fn lr_at(&self, step: u64) -> f64 {
        if step < self.warmup {
            return self.lr * (step + 1) as f64 / (self.warmup + 1) as f64;
        }
        let span = self.total.saturating_sub(self.warmup).max(1) as f64;
        let done = ((step - self.warmup) as f64 / span).min(1.0);
        match self.decay {
            Decay::Linear => self.lr * (1.0 - done),
            Decay::Cosine => self.lr * 0.5 * (1.0 + libm::cos(std::f64::consts::PI * done)),
            Decay::Constant => self.lr,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rates(decay: Decay, warmup: u64) -> Vec<f64> {
        let s = Schedule { lr: 1.0, decay, warmup, total: 8 };
        (0..8).map(|i| s.lr_at(i)).collect()
    }

    #[test]
    fn linear_falls_evenly_and_never_reaches_zero_within_the_run() {
        assert_eq!(rates(Decay::Linear, 0), [1.0, 0.875, 0.75, 0.625, 0.5, 0.375, 0.25, 0.125]);
    }

    #[test]
    fn warmup_rises_to_the_full_rate() {
        assert_eq!(rates(Decay::Constant, 3), [0.25, 0.5, 0.75, 1.0, 1.0, 1.0, 1.0, 1.0]);
        assert_eq!(rates(Decay::Linear, 4)[3..], [0.8, 1.0, 0.75, 0.5, 0.25]);
    }

    #[test]
    fn cosine_is_half_way_down_in_the_middle() {
        let r = rates(Decay::Cosine, 0);
        assert_eq!(r[0], 1.0);
        assert!((r[4] - 0.5).abs() < 1e-12);
        assert!(r.windows(2).all(|w| w[0] > w[1]));
    }
}
