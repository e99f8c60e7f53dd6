//! The loop of inference: feed, sample, hand out text, until something ends it.

use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use super::{Context, Error, Result, Sampler, Token};

/// What ended a generation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Stop {
    /// The model said that it is done.
    EndOfGeneration,
    MaxTokens,
    ContextFull,
    /// The context's `interrupt` flag was set, or the reader of the text broke off.
    Interrupted,
}

/// What came out, and how fast.
#[derive(Debug, Clone)]
pub struct Generated {
    /// Without the token that ended it.
    pub tokens: Vec<Token>,
    /// Their text; control tokens left out.
    pub text: String,
    /// Prompt tokens that were computed.
    pub n_prompt: usize,
    /// Time to the first token.
    pub prompt_time: Duration,
    /// Time for the tokens after the first.
    pub time: Duration,
    pub stop: Stop,
}

impl Generated {
    /// Prompt tokens per second.
    pub fn prompt_tokens_per_second(&self) -> f64 {
        per_second(self.n_prompt, self.prompt_time)
    }

    /// Generated tokens per second, those after the first.
    pub fn tokens_per_second(&self) -> f64 {
        per_second(self.tokens.len().saturating_sub(1), self.time)
    }
}

fn per_second(n: usize, time: Duration) -> f64 {
    if time.is_zero() {
        0.0
    } else {
        n as f64 / time.as_secs_f64()
    }
}

/// Continues sequence 0 with `prompt`, then with up to `max_tokens` sampled tokens (`None`: until the context is full).
/// `on_text` gets each piece of text as soon as its characters are whole.
pub fn generate(
    context: &mut Context,
    sampler: &mut Sampler,
    prompt: &[Token],
    max_tokens: Option<usize>,
    on_text: &mut dyn FnMut(&str) -> ControlFlow<()>,
) -> Result<Generated> {
    let start = Instant::now();
    let mut out = Generated {
        tokens: Vec::new(),
        text: String::new(),
        n_prompt: prompt.len(),
        prompt_time: Duration::ZERO,
        time: Duration::ZERO,
        stop: Stop::MaxTokens,
    };
    let mut whole = WholeChars::default();
    let mut first_token = None;
    let mut fed = context.feed(prompt);
    out.stop = loop {
        let row = match fed {
            Ok(row) => row,
            Err(Error::Interrupted) => break Stop::Interrupted,
            Err(Error::ContextFull { .. }) if first_token.is_some() => break Stop::ContextFull,
            Err(error) => return Err(error),
        };
        if context.is_interrupted() {
            break Stop::Interrupted;
        }
        let token = sampler.sample(context.logits(row)?, row)?;
        first_token.get_or_insert_with(Instant::now);
        if context.vocab().is_eog(token) {
            break Stop::EndOfGeneration;
        }
        if max_tokens.is_some_and(|max| out.tokens.len() >= max) {
            break Stop::MaxTokens;
        }
        out.tokens.push(token);
        let text = whole.push(&context.vocab().text_piece(token)?);
        out.text.push_str(&text);
        if !text.is_empty() && on_text(&text).is_break() {
            break Stop::Interrupted;
        }
        fed = context.feed(&[token]);
    };
    let rest = whole.finish();
    if !rest.is_empty() {
        out.text.push_str(&rest);
        let _ = on_text(&rest);
    }
    let end = Instant::now();
    let first_token = first_token.unwrap_or(end);
    out.prompt_time = first_token - start;
    out.time = end - first_token;
    Ok(out)
}

/// Bytes in, whole characters out: a token may end within a character.
#[derive(Debug, Default)]
struct WholeChars {
    pending: Vec<u8>,
}

impl WholeChars {
    /// The text that is complete now. Bytes that can never become a character come out as U+FFFD.
    fn push(&mut self, bytes: &[u8]) -> String {
        self.pending.extend_from_slice(bytes);
        let mut text = String::new();
        let mut rest = self.pending.as_slice();
        loop {
            match std::str::from_utf8(rest) {
                Ok(valid) => {
                    text.push_str(valid);
                    rest = &[];
                    break;
                }
                Err(error) => {
                    let (valid, after) = rest.split_at(error.valid_up_to());
                    text.push_str(&String::from_utf8_lossy(valid));
                    rest = after;
                    match error.error_len() {
                        Some(bad) => {
                            text.push(char::REPLACEMENT_CHARACTER);
                            rest = &rest[bad..];
                        }
                        // An unfinished character; the next token may bring its end.
                        None => break,
                    }
                }
            }
        }
        self.pending = rest.to_vec();
        text
    }

    /// What is left when no more bytes come.
    fn finish(self) -> String {
        String::from_utf8_lossy(&self.pending).into_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn characters_come_out_whole() {
        let mut whole = WholeChars::default();
        let snowman = "☃".as_bytes();
        assert_eq!(whole.push(b"a"), "a");
        assert_eq!(whole.push(&snowman[..1]), "");
        assert_eq!(whole.push(&snowman[1..2]), "");
        assert_eq!(whole.push(&[snowman[2], b'b']), "☃b");
        assert_eq!(whole.finish(), "");
    }

    #[test]
    fn bytes_that_are_no_text_do_not_hold_up_what_follows() {
        let mut whole = WholeChars::default();
        assert_eq!(whole.push(&[0xff, b'a', 0xe2]), "\u{fffd}a");
        assert_eq!(whole.push(b"b"), "\u{fffd}b");
        assert_eq!(whole.push(&[0xe2, 0x98]), "");
        assert_eq!(whole.finish(), "\u{fffd}");
    }
}
