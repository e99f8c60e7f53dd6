//! The published protocol of inference: one seeded prompt, a fixed number of greedy tokens, several times over.

use std::num::NonZeroU32;
use std::time::Instant;

use rand::{Rng as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use serde::Serialize;
use sha2::{Digest as _, Sha256};

use crate::llama::{Context, ContextParams, FlashAttention, Model, Token};

use super::infer::most_probable;
use super::{Error, InferConfig, Result, Spread};

/// What one repetition is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Protocol {
    pub n_prompt: usize,
    pub n_generate: usize,
    pub n_ctx: u32,
    pub flash_attention: bool,
}

/// As QVAC Fabric's tables have it.
pub const PUBLISHED: Protocol =
    Protocol { n_prompt: 13, n_generate: 256, n_ctx: 512, flash_attention: false };

/// What came out.
#[derive(Clone, Debug, Serialize)]
pub struct Answers {
    /// Generated tokens a second, those after the first.
    pub tokens_per_second: Figures,
    pub prompt_tokens_per_second: Figures,
    /// From the prompt to the first token.
    pub first_token_ms: Figures,
    /// Hash of the tokens of the first repetition.
    pub tokens_sha256: String,
    /// Whether every repetition gave those.
    pub repeats: bool,
    /// Whether attention was as asked: a device without the plain kernels needs the other.
    pub flash_attention: bool,
}

/// Several measurements of one thing.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Figures {
    pub mean: f64,
    pub deviation: f64,
    #[serde(flatten)]
    pub spread: Spread,
}

impl Figures {
    /// Of at least one measurement.
    pub fn of(values: &[f64]) -> Self {
        let n = values.len() as f64;
        let mean = values.iter().sum::<f64>() / n;
        let squares = values.iter().map(|x| (x - mean).powi(2)).sum::<f64>();
        let deviation = if values.len() > 1 { (squares / (n - 1.0)).sqrt() } else { 0.0 };
        Self { mean, deviation, spread: Spread::of(values.iter().copied()) }
    }
}

/// Runs `protocol` as often as `config` says, after a warm-up. `progress` is told after each repetition.
pub fn answer(
    model: &Model,
    protocol: &Protocol,
    config: &InferConfig,
    progress: &mut dyn FnMut(),
) -> Result<Answers> {
    let params = |flash_attention| ContextParams {
        n_ctx: NonZeroU32::new(protocol.n_ctx),
        n_threads: config.n_threads,
        interrupt: config.interrupt,
        flash_attention,
        ..ContextParams::default()
    };
    let asked = if protocol.flash_attention { FlashAttention::On } else { FlashAttention::Off };
    let (mut context, flash_attention) = match Context::new(model, &params(asked)) {
        Ok(context) => (context, protocol.flash_attention),
        Err(_) => (Context::new(model, &params(FlashAttention::Auto))?, !protocol.flash_attention),
    };
    let n_vocab = context.vocab().n_tokens();
    let mut rng = ChaCha8Rng::seed_from_u64(config.seed);
    let prompt: Vec<Token> = (0..protocol.n_prompt).map(|_| rng.random_range(0..n_vocab) as Token).collect();
    let mut repeat = || -> Result<(Vec<Token>, f64, f64)> {
        context.clear();
        let start = Instant::now();
        let mut tokens = Vec::with_capacity(protocol.n_generate);
        tokens.push(most_probable(&mut context, &prompt)?);
        let first = start.elapsed().as_secs_f64();
        while tokens.len() < protocol.n_generate {
            tokens.push(most_probable(&mut context, &tokens[tokens.len() - 1..])?);
        }
        let all = start.elapsed().as_secs_f64();
        match context.is_interrupted() {
            true => Err(Error::Interrupted),
            false => Ok((tokens, first, all - first)),
        }
    };
    let began = Instant::now();
    let (expected, ..) = repeat()?;
    while began.elapsed() < config.warm_up {
        repeat()?;
    }
    progress();
    let (mut speed, mut prompts, mut firsts) = (Vec::new(), Vec::new(), Vec::new());
    let mut repeats = true;
    for _ in 0..config.reps {
        let (tokens, first, rest) = repeat()?;
        repeats &= tokens == expected;
        speed.push((protocol.n_generate - 1) as f64 / rest);
        prompts.push(protocol.n_prompt as f64 / first);
        firsts.push(1e3 * first);
        progress();
    }
    let mut hash = Sha256::new();
    expected.iter().for_each(|t| hash.update(t.to_le_bytes()));
    Ok(Answers {
        tokens_per_second: Figures::of(&speed),
        prompt_tokens_per_second: Figures::of(&prompts),
        first_token_ms: Figures::of(&firsts),
        tokens_sha256: hash.finalize().iter().map(|b| format!("{b:02x}")).collect(),
        repeats,
        flash_attention,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_of_a_sample() {
        let f = Figures::of(&[2.0, 4.0, 6.0]);
        assert_eq!((f.mean, f.deviation, f.spread.median), (4.0, 2.0, 4.0));
        assert_eq!(Figures::of(&[3.0]).deviation, 0.0);
    }
}
