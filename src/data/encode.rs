//! A record into a sample: rendered, tokenised once as a whole, and masked token by token.
//!
//! The text is tokenised in one piece and not message by message, so that training sees the tokens that inference sees.
//! A token is trained if it starts inside a span; one that starts before and reaches in belongs to the prompt.

use std::ops::Range;

use super::error::{Error, Origin, Result};
use super::mask::{Chat, LossOn, Turn};
use super::record::{Content, Message, Record};
use super::sample::Sample;
use super::template::Template;
use super::tokenizer::{encode_text, Encoded, Tokenizer};

/// A sample of any length, with what `truncate` and `label` still need of its text.
pub(super) struct Rendered {
    pub(super) sample: Sample,
    pub(super) text: String,
    pub(super) bytes: Vec<Range<usize>>,
    /// Bytes of the last assistant turn's own content.
    pub(super) content: Option<Range<usize>>,
    /// Tokens of BOS and the system message: kept when a prompt is shortened.
    pub(super) n_header: usize,
    /// Token spans of all trained turns.
    pub(super) turns: Vec<Range<usize>>,
}

/// Encodes a conversation. `Error::NoAssistant` and `Error::NothingTrained` if it teaches nothing under `loss_on`.
pub(super) fn chat(
    record: &Record,
    template: &Template,
    loss_on: LossOn,
    tokenizer: &dyn Tokenizer,
) -> Result<Rendered> {
    let Content::Chat { messages, tools } = &record.content else {
        unreachable!("`dataset` sends texts to `text`");
    };
    let origin = &record.origin;
    let text = template.render(messages, tools.as_ref(), false).map_err(|reason| Error::Render {
        origin: origin.clone(),
        name: template.name().into(),
        reason,
    })?;
    let encoded = encode_text(tokenizer, &text, origin)?;
    let chat = Chat { template, messages, tools: tools.as_ref(), text: &text };
    let turns = turns(&chat, origin, loss_on)?;
    let mut spans = Vec::with_capacity(turns.len());
    for turn in &turns {
        match turn_end(turn, &text, &encoded, tokenizer) {
            Some(end) => spans.push(covered(&encoded, turn.text.start..end)),
            None => return Err(span_error(origin, template, turn.message, UNCLEAR_END)),
        }
    }
    let n = encoded.tokens.len();
    let mut train = vec![loss_on == LossOn::All; n];
    for (turn, span) in turns.iter().zip(&spans) {
        if messages[turn.message].trained {
            train[span.clone()].fill(true);
        }
    }
    if !train.iter().skip(1).any(|t| *t) {
        return Err(Error::NothingTrained { origin: origin.clone() });
    }
    let answer = spans.last().cloned().unwrap_or(1.min(n)..n);
    let n_header = match chat.system_end() {
        Some(end) => covered(&encoded, 0..end).end,
        None => usize::from(tokenizer.bos().is_some_and(|bos| encoded.tokens.first() == Some(&bos))),
    };
    let content = turns.last().and_then(|t| t.content_start.map(|start| start..t.text.end.max(start)));
    let turns =
        turns.iter().zip(spans).filter(|(t, _)| messages[t.message].trained).map(|(_, s)| s).collect();
    let sample = Sample {
        tokens: encoded.tokens,
        train,
        origin: origin.clone(),
        label: record.label.clone(),
        answer_start: answer.start,
        answer_end: answer.end,
        truncated: None,
    };
    Ok(Rendered { sample, text, bytes: encoded.bytes, content, n_header, turns })
}

/// Encodes plain text into windows of at most `seq_len`, each with BOS where the vocabulary asks for it; EOS closes the
/// last. Every token is trained.
pub(super) fn text(
    record: &Record,
    text: &str,
    seq_len: usize,
    tokenizer: &dyn Tokenizer,
) -> Result<Vec<Sample>> {
    let bos = tokenizer.bos().filter(|_| tokenizer.add_bos());
    let mut body = tokenizer.encode(text, false, true)?;
    if body.first() == bos.as_ref() && bos.is_some() {
        body.remove(0);
    }
    if let Some(eos) = tokenizer.eos().filter(|eos| body.last() != Some(eos)) {
        body.push(eos);
    }
    let window = |part: &[i32]| {
        let tokens: Vec<i32> = bos.into_iter().chain(part.iter().copied()).collect();
        Sample {
            train: vec![true; tokens.len()],
            answer_start: 1.min(tokens.len()),
            answer_end: tokens.len(),
            tokens,
            origin: record.origin.clone(),
            label: record.label.clone(),
            truncated: None,
        }
    };
    let samples: Vec<Sample> =
        body.chunks(seq_len - usize::from(bos.is_some())).map(window).filter(|s| s.n_targets() > 0).collect();
    if samples.is_empty() {
        return Err(Error::NothingTrained { origin: record.origin.clone() });
    }
    Ok(samples)
}

/// The assistant turns that matter under `loss_on`, in order.
fn turns(chat: &Chat<'_>, origin: &Origin, loss_on: LossOn) -> Result<Vec<Turn>> {
    let is_turn = |i: &usize| chat.messages[*i].is_assistant();
    let mut wanted: Vec<usize> = (0..chat.messages.len()).filter(is_turn).collect();
    if loss_on != LossOn::Assistant {
        wanted.drain(..wanted.len().saturating_sub(1));
    }
    if wanted.is_empty() && loss_on != LossOn::All {
        return Err(Error::NoAssistant { origin: origin.clone() });
    }
    let mut turns = Vec::with_capacity(wanted.len());
    for i in wanted {
        match chat.turn(i) {
            Ok(turn) => turns.push(turn),
            // With every token trained the answer's place only steers truncation, so not knowing it is no harm.
            Err(_) if loss_on == LossOn::All => {}
            Err(reason) => return Err(span_error(origin, chat.template, i, reason)),
        }
    }
    Ok(turns)
}

const UNCLEAR_END: &str = "its end-of-turn mark runs into the next turn";

fn span_error(origin: &Origin, template: &Template, message: usize, reason: &'static str) -> Error {
    Error::Span { origin: origin.clone(), name: template.name().into(), message, reason }
}

/// The byte behind the turn's end-of-turn token.
fn turn_end(turn: &Turn, text: &str, encoded: &Encoded, tokenizer: &dyn Tokenizer) -> Option<usize> {
    // One that begins in the tail is the turn's own even where the tail's end is not known to the byte.
    let mark = encoded
        .tokens
        .iter()
        .zip(&encoded.bytes)
        .find(|(token, at)| turn.tail.contains(&at.start) && !at.is_empty() && tokenizer.is_eog(**token));
    match mark {
        Some((_, at)) => Some(at.end),
        None => turn.tail_is_whole.then(|| turn.tail.start + text[turn.tail.clone()].trim_end().len()),
    }
}

/// The tokens that start within `span`.
pub(super) fn covered(encoded: &Encoded, span: Range<usize>) -> Range<usize> {
    let first = encoded.bytes.partition_point(|at| at.start < span.start);
    let end = encoded.bytes.partition_point(|at| at.start < span.end);
    first..end.max(first)
}

/// The messages of a conversation, for those that print it.
impl Content {
    /// The conversation, if it is one.
    pub fn messages(&self) -> Option<&[Message]> {
        match self {
            Self::Chat { messages, .. } => Some(messages),
            Self::Text(_) => None,
        }
    }
}
