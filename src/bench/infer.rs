//! Prompts and generated tokens through libllama, timed as `llama-bench` does: random token ids, no sampler.

use std::num::NonZeroU32;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use rand::{Rng as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;

use crate::llama::{Context, ContextParams, Model, Token};

use super::{Error, Result, Spread};

/// Tokens in the cache before generation begins.
pub const PROMPT_BEFORE_GENERATE: usize = 13;

/// One thing to measure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Test {
    /// A prompt of that many tokens, computed at once, into an empty cache, up to the logits of its last token.
    Prompt(usize),
    /// That many tokens one after the other, each the most probable one, behind [`PROMPT_BEFORE_GENERATE`] others. Timed
    /// are the decodes, the logits' way to the host and the search for the largest.
    Generate(usize),
}

impl Test {
    /// `pp512`, `tg256`: llama-bench's names.
    pub fn name(self) -> String {
        match self {
            Self::Prompt(n) => format!("pp{n}"),
            Self::Generate(n) => format!("tg{n}"),
        }
    }

    /// Tokens that the clock sees.
    pub fn n_tokens(self) -> usize {
        match self {
            Self::Prompt(n) | Self::Generate(n) => n,
        }
    }
}

/// How to measure.
#[derive(Clone, Debug)]
pub struct InferConfig {
    /// Repetitions that are timed, after one that is not.
    pub reps: usize,
    /// As long as this the one that is not is repeated: an idle GPU's clock is a fraction of a busy one's (345 of 1980 MHz), and rises
    /// only after a while of work.
    pub warm_up: Duration,
    pub seed: u64,
    /// `None` is one thread for each physical core.
    pub n_threads: Option<NonZeroU32>,
    pub interrupt: Option<&'static AtomicBool>,
}

/// What came out.
#[derive(Clone, Debug)]
pub struct InferFigures {
    /// Seconds of one repetition.
    pub seconds: Spread,
    /// Seconds of the one before, in which pipelines are compiled.
    pub first_seconds: f64,
}

/// Measures one test in a context of its own, as small as it may be. `progress` is told after each repetition, the context
/// still there.
pub fn infer(
    model: &Model,
    test: Test,
    config: &InferConfig,
    progress: &mut dyn FnMut(),
) -> Result<InferFigures> {
    let (n_prompt, n_generate) = match test {
        Test::Prompt(n) => (n, 0),
        Test::Generate(n) => (PROMPT_BEFORE_GENERATE, n),
    };
    let defaults = ContextParams::default();
    // A prompt is one piece of work, however long.
    let n_batch = u32::try_from(n_prompt).unwrap_or(u32::MAX).max(defaults.n_batch);
    let params = ContextParams {
        n_ctx: u32::try_from(n_prompt + n_generate).ok().and_then(NonZeroU32::new),
        n_batch,
        n_ubatch: n_batch,
        n_threads: config.n_threads,
        interrupt: config.interrupt,
        ..defaults
    };
    let mut context = Context::new(model, &params)?;
    let n_vocab = context.vocab().n_tokens();
    let mut rng = ChaCha8Rng::seed_from_u64(config.seed);
    let mut repeat = || {
        let prompt: Vec<Token> = (0..n_prompt).map(|_| rng.random_range(0..n_vocab) as Token).collect();
        context.clear();
        let start = Instant::now();
        let mut token = most_probable(&mut context, &prompt)?;
        let prompted = start.elapsed();
        for _ in 0..n_generate {
            token = most_probable(&mut context, &[token])?;
        }
        let all = start.elapsed();
        if context.is_interrupted() {
            return Err(Error::Interrupted);
        }
        Ok(match test {
            Test::Prompt(_) => prompted,
            Test::Generate(_) => all - prompted,
        })
    };
    let began = Instant::now();
    let first = repeat()?;
    while began.elapsed() < config.warm_up {
        repeat()?;
    }
    progress();
    let mut seconds = Vec::with_capacity(config.reps);
    for _ in 0..config.reps {
        seconds.push(repeat()?.as_secs_f64());
        progress();
    }
    Ok(InferFigures { first_seconds: first.as_secs_f64(), seconds: Spread::of(seconds) })
}

/// Computes `tokens` and looks up the most probable next one, which also waits for the device.
pub(super) fn most_probable(context: &mut Context, tokens: &[Token]) -> Result<Token> {
    let row = context.feed(tokens)?;
    Ok(argmax(context.logits(row)?) as Token)
}

/// Where the largest value first stands; written so that it compiles to a few microseconds for a large vocabulary, where
/// the plain loop takes a twentieth of a fast device's token.
fn argmax(values: &[f32]) -> usize {
    const LANES: usize = 16;
    let larger = |a: f32, b: f32| if b > a { b } else { a };
    let mut most = [f32::NEG_INFINITY; LANES];
    let chunks = values.chunks_exact(LANES);
    let rest = chunks.remainder().iter().copied().fold(f32::NEG_INFINITY, larger);
    for chunk in chunks {
        for (most, &x) in most.iter_mut().zip(chunk) {
            *most = larger(*most, x);
        }
    }
    let most = most.into_iter().fold(rest, larger);
    values.iter().position(|&x| x == most).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn argmax_finds_the_first_of_the_largest() {
        for n in [1, 15, 16, 17, 100] {
            for at in [0, n / 2, n - 1] {
                let mut values = vec![-3.0; n];
                values[at] = -1.0;
                values[n - 1] = -1.0;
                assert_eq!(argmax(&values), at, "of {n}");
            }
        }
        assert_eq!(argmax(&[f32::NAN, 1.0, f32::NAN]), 1);
        assert_eq!(argmax(&[f32::NAN]), 0);
    }
}
