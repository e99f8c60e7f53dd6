//! Which part of a rendered conversation the model must learn to write.
//!
//! Chat templates are programs, so nothing is assumed about their form. A turn's span is found by asking the template
//! itself, and each answer is checked against the whole text:
//!
//! - *Where it starts*: at the end of the generation prompt, `render(messages[..i], add_generation_prompt)`, if that is
//!   a prefix of the whole text: exactly what inference puts before the model's first token. Otherwise (and for
//!   templates that ignore the flag) where the turn's text starts: the conversation is rendered once more with a probe
//!   word in place of that text, and what stands before the probe must be a prefix of the whole.
//! - *Where its text ends*: what stands behind the probe must be a suffix of the whole.
//! - *Its end-of-turn token*: the first end-of-generation token after the text and before the next turn's header. A
//!   template whose end-of-turn mark is plain text for this vocabulary has the whole mark, without the whitespace
//!   behind it. The newline that follows `<|im_end|>` is never trained: at inference nobody asks for it.
//!
//! Because the probe only replaces one message, templates may strip texts, add a system prompt, merge system into
//! user, or drop the reasoning of earlier turns. If the pieces do not fit together the span is an error, not a guess.

use std::ops::Range;

use serde_json::Value;

use super::record::Message;
use super::template::Template;

/// Which tokens contribute to the loss.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LossOn {
    /// Every token, headers and questions too.
    All,
    /// What the assistant wrote, in every turn.
    #[default]
    Assistant,
    /// What the assistant wrote in its last turn.
    Last,
}

/// An assistant turn within a rendered conversation; all offsets are bytes of the whole text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Turn {
    /// Index of the message.
    pub(super) message: usize,
    /// What the model writes, up to but without the end-of-turn mark.
    pub(super) text: Range<usize>,
    /// Where the message's own content starts, if it appears as it is: after `text.start` where a template writes
    /// something (a space, an empty thought) between header and content.
    pub(super) content_start: Option<usize>,
    /// What the turn writes behind its text; if cut short, the next header may begin where it ends.
    pub(super) tail: Range<usize>,
    pub(super) tail_is_whole: bool,
}

/// A conversation and its rendering.
pub(super) struct Chat<'a> {
    pub(super) template: &'a Template,
    pub(super) messages: &'a [Message],
    pub(super) tools: Option<&'a Value>,
    pub(super) text: &'a str,
}

/// Stands in for a message's text. Letters only, so that neither trimming, escaping nor case-keeping filters touch it.
const PROBE: &str = "QvacFtProbeWordThatNoConversationHolds";

impl Chat<'_> {
    /// The span of one assistant message. The error says what did not fit.
    pub(super) fn turn(&self, i: usize) -> Result<Turn, &'static str> {
        let text = self.text;
        if self.messages.iter().any(|m| m.content.contains(PROBE)) {
            return Err("a message contains the probe word");
        }
        self.tool_calls_are_written(i)?;
        let probed = self.probe(i, self.messages.len());
        let (before, after) = match &probed {
            Some((before, after)) => (prefix_len(text, before), suffix_start(text, after)),
            None => (None, None),
        };
        let start = self.start(i, before).ok_or("the text before it changes with what it says")?;
        let tail = self.probe(i, i + 1).map(|(_, tail)| tail);
        let end = match after {
            Some(end) => end,
            None => self
                .end_by_prefix(i, tail.as_deref())
                .ok_or("the text behind it changes with what it says")?,
        };
        if end < start {
            return Err("its start and end overlap");
        }
        let last = i + 1 == self.messages.len();
        let (tail_len, tail_is_whole) = match tail {
            _ if last => (text.len() - end, true),
            Some(tail) => {
                let common = common_prefix(&tail, &text[end..]);
                (common, common == tail.len())
            }
            None => (0, false),
        };
        let tail = end..end + tail_len;
        let content_start = before.filter(|b| *b >= start);
        Ok(Turn { message: i, text: start..end, content_start, tail, tail_is_whole })
    }

    /// End of a system message that opens the conversation, if the template writes it on its own.
    pub(super) fn system_end(&self) -> Option<usize> {
        let first = self.messages.first().filter(|m| m.role == "system" || m.role == "developer")?;
        let alone = self.render(std::slice::from_ref(first), false)?;
        self.text.starts_with(&alone).then_some(alone.len())
    }

    fn start(&self, i: usize, before: Option<usize>) -> Option<usize> {
        let asked = self.render(&self.messages[..i], true);
        let prompt = asked.as_ref().filter(|p| self.text.starts_with(p.as_str())).map(String::len);
        // A template that ignores the flag leaves the header to the text, unless it has none (`[/INST] answer`).
        let flag_works = asked.is_some() && asked != self.render(&self.messages[..i], false);
        match (prompt, before) {
            (Some(prompt), _) if flag_works => Some(prompt),
            (Some(prompt), Some(before)) if prompt <= before => {
                let between = &self.text[prompt..before];
                Some(if between.trim().is_empty() { prompt } else { before })
            }
            (_, before) => before,
        }
    }

    /// For a turn whose surroundings depend on what it is (tool calls that later turns refer to): the conversation up
    /// to and with it must be a prefix of the whole, and end in what the turn writes behind its text.
    fn end_by_prefix(&self, i: usize, tail: Option<&str>) -> Option<usize> {
        let until = self.render(&self.messages[..=i], false)?;
        (self.text.starts_with(&until) && until.ends_with(tail?))
            .then(|| until.len() - tail.map_or(0, str::len))
    }

    /// Renders the first `n` messages with the probe in place of message `i`, and parts the text at the probe.
    fn probe(&self, i: usize, n: usize) -> Option<(String, String)> {
        let mut messages = self.messages[..n].to_vec();
        messages[i] = Message::new(&self.messages[i].role, PROBE);
        let text = self.render(&messages, false)?;
        let (before, after) = text.split_once(PROBE)?;
        (!after.contains(PROBE)).then(|| (before.to_owned(), after.to_owned()))
    }

    fn render(&self, messages: &[Message], add_generation_prompt: bool) -> Option<String> {
        self.template.render(messages, self.tools, add_generation_prompt).ok()
    }

    /// A template that knows no tool calls writes an empty answer instead; the model would learn to say nothing.
    fn tool_calls_are_written(&self, i: usize) -> Result<(), &'static str> {
        if !self.messages[i].rest.contains_key("tool_calls") {
            return Ok(());
        }
        let mut bare = self.messages.to_vec();
        bare[i].rest.shift_remove("tool_calls");
        match self.render(&bare, false) {
            Some(text) if text == self.text => Err("the template leaves its tool calls out"),
            _ => Ok(()),
        }
    }
}

/// Length of `prefix` in `text`, allowing that whitespace at its end was stripped along with an empty message.
fn prefix_len(text: &str, prefix: &str) -> Option<usize> {
    [prefix, prefix.trim_end()].into_iter().find(|p| text.starts_with(p)).map(str::len)
}

fn suffix_start(text: &str, suffix: &str) -> Option<usize> {
    text.ends_with(suffix).then(|| text.len() - suffix.len())
}

fn common_prefix(a: &str, b: &str) -> usize {
    a.char_indices().zip(b.chars()).find(|((_, x), y)| x != y).map_or(a.len().min(b.len()), |((i, _), _)| i)
}
