//! libllama on both devices: its operations, the logits of prompts, and the tokens that it would generate.

use std::num::NonZeroU32;

use super::class::LOGITS;
use super::ops::Watcher;
use super::{Check, Class, Comparison, Kind, Place, Result, Session, Status, Tier};
use crate::ggml::Dtype;
use crate::llama::{Batch, Context, ContextParams, Model, ModelParams, Sampler, SamplerParams, Token};

/// Prompts, and the most tokens of one.
const PROMPTS: usize = 3;
const PROMPT_TOKENS: usize = 64;

pub(super) fn all(session: &mut Session) -> Result<()> {
    let long_enough = session.pair.samples.iter().filter(|s| s.tokens.len() > 1).take(PROMPTS);
    let prompts: Vec<Vec<Token>> =
        long_enough.map(|s| s.tokens.iter().copied().take(PROMPT_TOKENS).collect()).collect();
    session.observer.stage("operations of inference");
    let reference = load(session, &session.pair.reference)?;
    ops(session, &reference, &prompts[0])?;

    session.observer.stage("logits");
    let device = load(session, &session.pair.device)?;
    let theirs = Answers::of(session, &reference, &session.pair.reference, &prompts)?;
    let ours = Answers::of(session, &device, &session.pair.device, &prompts)?;
    let exact = session.config.tier != Tier::T0;
    let n_tokens: usize = prompts.iter().map(Vec::len).sum();
    let class = if exact { Class::Exact } else { LOGITS };
    let what = |how: &str| format!("{} prompts, {n_tokens} tokens, {how}", prompts.len());
    let in_one = "each prompt in one batch";
    let one_by_one = "token by token";
    let mut pairs = vec![
        ("batch", what(in_one), &ours.in_one, &theirs.in_one),
        ("token", what(one_by_one), &ours.one_by_one, &theirs.one_by_one),
    ];
    if exact {
        let both = format!("{in_one} against {one_by_one}, on {}", session.pair.device.name());
        pairs.push(("split", what(&both), &ours.in_one, &ours.one_by_one));
    }
    for (name, what, ours, theirs) in pairs {
        let found = Comparison::of_floats(ours, theirs);
        session.add(Check::held(Kind::Logits, name, what, class, found))?;
    }

    session.observer.stage("tokens");
    let theirs = greedy(session, &reference, &session.pair.reference, &prompts[0])?;
    let ours = greedy(session, &device, &session.pair.device, &prompts[0])?;
    let bytes = |tokens: &[Token]| -> Vec<u8> { tokens.iter().flat_map(|t| t.to_le_bytes()).collect() };
    let found = Comparison::of(Dtype::I32, &bytes(&ours), &bytes(&theirs));
    let what = format!("{} most probable tokens", theirs.len());
    let check = match exact {
        true => Check::held(Kind::Tokens, "greedy", what, Class::Exact, found),
        false => {
            let alike = found.first.as_ref().map_or(found.values, |m| m.index);
            let note = format!("the first {alike} of {} are the same; nothing is promised", found.values);
            Check::not_held(Kind::Tokens, "greedy", what, Status::Skip, note)
        }
    };
    session.add(check)
}

fn load(session: &Session, place: &Place) -> Result<Model> {
    Ok(Model::load(session.pair.model, &ModelParams::on(Some(place.device.name())))?)
}

fn context(session: &Session, model: &Model, place: &Place, watched: bool) -> Result<Context> {
    let n_ctx = (PROMPT_TOKENS + session.config.tokens).max(PROMPT_TOKENS) as u32;
    let params = ContextParams {
        n_ctx: NonZeroU32::new(n_ctx),
        n_threads: place.n_threads(),
        interrupt: session.config.interrupt,
        watched,
        ..ContextParams::default()
    };
    Ok(Context::new(model, &params)?)
}

/// Compares the operations of a prompt in one batch, and of one token behind it.
fn ops(session: &mut Session, model: &Model, prompt: &[Token]) -> Result<()> {
    let watcher = Watcher::new(session)?;
    let mut context = context(session, model, &session.pair.reference, true)?;
    let (last, before) = prompt.split_last().expect("prompts have two tokens");
    let mut batch = Batch::new();
    batch.extend(before, 0, 0, true);
    watcher.graph("prompt");
    context.decode_watched(&mut batch, &watcher)?;
    batch.clear();
    batch.push(*last, before.len() as i32, 0, true);
    watcher.graph("token");
    context.decode_watched(&mut batch, &watcher)?;
    watcher.report(session)
}

/// The logits after every token of every prompt.
struct Answers {
    in_one: Vec<f32>,
    one_by_one: Vec<f32>,
}

impl Answers {
    fn of(session: &Session, model: &Model, place: &Place, prompts: &[Vec<Token>]) -> Result<Self> {
        let mut context = context(session, model, place, false)?;
        let mut answers = Self { in_one: Vec::new(), one_by_one: Vec::new() };
        let mut batch = Batch::new();
        for prompt in prompts {
            context.clear();
            batch.clear();
            batch.extend(prompt, 0, 0, true);
            context.decode(&mut batch)?;
            for row in 0..prompt.len() {
                answers.in_one.extend_from_slice(context.logits(row)?);
            }
            context.clear();
            for &token in prompt {
                let row = context.feed(&[token])?;
                answers.one_by_one.extend_from_slice(context.logits(row)?);
            }
        }
        Ok(answers)
    }
}

/// The most probable tokens behind a prompt, whatever they mean.
fn greedy(session: &Session, model: &Model, place: &Place, prompt: &[Token]) -> Result<Vec<Token>> {
    let mut context = context(session, model, place, false)?;
    let mut sampler = Sampler::new(&SamplerParams::greedy())?;
    let mut row = context.feed(prompt)?;
    let mut tokens = Vec::with_capacity(session.config.tokens);
    while tokens.len() < session.config.tokens {
        let token = sampler.sample(context.logits(row)?, row)?;
        tokens.push(token);
        if tokens.len() < session.config.tokens {
            row = context.feed(&[token])?;
        }
    }
    Ok(tokens)
}
