//! `chat`: a conversation on the terminal, or line by line from a pipe, through libllama.

use std::io::{self, BufRead as _, IsTerminal};

use anyhow::Context as _;
use rustyline::error::ReadlineError;
use rustyline::DefaultEditor;
use serde::Serialize;

use super::generate::summary;
use super::inference::{chat_tokens, stream, ModelArgs, Ready, SamplingArgs};
use super::ui::{Outcome, Ui};
use crate::data::{Message, Template};
use crate::error::Hint as _;
use crate::llama::{self, Sampler, Stop, Token};

/// Talk with a model, with or without an adapter
///
/// Ctrl-C stops an answer, Ctrl-D ends. Commands: /reset forgets the conversation, /system TEXT changes the system
/// prompt (and resets), /quit ends, /help lists them. With stdin not a terminal each line is one message.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    model: ModelArgs,

    /// Most tokens in an answer; until the context is full if 0
    #[arg(short = 'n', long, value_name = "N", default_value_t = 0)]
    max_tokens: usize,

    /// Temperature: 0 always takes the most probable token
    #[arg(long, value_name = "T", default_value_t = 0.8)]
    temp: f32,

    #[command(flatten)]
    sampling: SamplingArgs,
}

const HELP: &str = "\
/reset         forget the conversation
/system TEXT   change the system prompt, and forget the conversation
/quit          end (so does Ctrl-D)
Ctrl-C         stop an answer";

#[derive(Debug, Serialize)]
struct Report {
    messages: Vec<Turn>,
    n_generated: usize,
}

#[derive(Debug, Serialize)]
struct Turn {
    role: String,
    content: String,
}

pub fn run(args: Args, ui: &Ui) -> anyhow::Result<Outcome> {
    let (sampler, _) = args.sampling.sampler(args.temp)?;
    // Before `ready`: rustyline takes SIGINT for itself when it starts, and an answer must hear Ctrl-C.
    let mut lines = Lines::new()?;
    let ready = args.model.ready(ui)?;
    let template = args.model.template(&ready.context)?;
    let mut chat = Chat {
        ready,
        sampler,
        template,
        system: args.model.system.clone(),
        messages: Vec::new(),
        cached: Vec::new(),
        n_generated: 0,
        max_tokens: Some(args.max_tokens).filter(|&n| n > 0),
    };
    chat.reset();
    if lines.is_terminal() {
        ui.info("/help lists the commands");
    }
    while let Some(line) = lines.next(ui)? {
        match Input::parse(&line) {
            Input::Nothing => {}
            Input::Say(text) => chat.say(text, ui)?,
            Input::Reset => {
                chat.reset();
                ui.info("the conversation is forgotten");
            }
            Input::System(text) => {
                chat.system = (!text.is_empty()).then(|| text.to_owned());
                chat.reset();
                ui.info("the system prompt is changed, the conversation forgotten");
            }
            Input::Help => ui.info(HELP),
            Input::Quit => break,
            Input::Unknown(command) => ui.warn(format_args!("no command `{command}`; `/help` lists them")),
        }
    }
    if ui.json() {
        let messages = chat.messages.into_iter().map(|m| Turn { role: m.role, content: m.content }).collect();
        ui.result(&Report { messages, n_generated: chat.n_generated })?;
    }
    Ok(Outcome::Done)
}

/// What a line means.
#[derive(Debug, PartialEq)]
enum Input<'a> {
    Nothing,
    Say(&'a str),
    Reset,
    System(&'a str),
    Help,
    Quit,
    Unknown(&'a str),
}

impl<'a> Input<'a> {
    fn parse(line: &'a str) -> Self {
        let line = line.trim();
        let (word, rest) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
        match word {
            "" => Self::Nothing,
            "/reset" => Self::Reset,
            "/system" => Self::System(rest.trim()),
            "/help" | "/?" => Self::Help,
            "/quit" | "/exit" => Self::Quit,
            // A path or a fraction may begin with a slash; a command is a slash and a word.
            _ if rest.is_empty()
                && word.len() > 1
                && word[1..].chars().all(char::is_alphabetic)
                && word.starts_with('/') =>
            {
                Self::Unknown(word)
            }
            _ => Self::Say(line),
        }
    }
}

struct Chat {
    ready: Ready,
    sampler: Sampler,
    template: Template,
    system: Option<String>,
    messages: Vec<Message>,
    /// The tokens in the context's cache.
    cached: Vec<Token>,
    n_generated: usize,
    max_tokens: Option<usize>,
}

impl Chat {
    fn reset(&mut self) {
        self.messages.clear();
        if let Some(system) = &self.system {
            self.messages.push(Message::new("system", system));
        }
        self.ready.context.clear();
        self.cached.clear();
    }

    /// Adds a question and streams its answer. What concerns this turn only is a warning, and the turn is taken back.
    fn say(&mut self, text: &str, ui: &Ui) -> anyhow::Result<()> {
        self.messages.push(Message::new("user", text));
        // A Ctrl-C from before this answer was not meant for it.
        self.ready.interrupt.clear();
        match self.answer(ui) {
            Ok(answer) => {
                self.messages.push(Message::new("assistant", answer));
                Ok(())
            }
            Err(error) => {
                let full = error.chain().find_map(|e| match e.downcast_ref::<llama::Error>() {
                    Some(full @ llama::Error::ContextFull { .. }) => Some(full),
                    _ => None,
                });
                let Some(full) = full else { return Err(error) };
                ui.warn(format_args!("{full}"));
                ui.warn(format_args!(
                    "`/reset` forgets the conversation; {}",
                    full.hint().unwrap_or_default()
                ));
                self.messages.pop();
                Ok(())
            }
        }
    }

    fn answer(&mut self, ui: &Ui) -> anyhow::Result<String> {
        let context = &mut self.ready.context;
        let tokens = chat_tokens(context, &self.template, &self.messages)?;
        // Templates may rewrite what was said before, so the cache is kept only as far as it agrees. The last token is
        // always computed, for its logits.
        let agree = self.cached.iter().zip(&tokens).take_while(|(a, b)| a == b).count().min(tokens.len() - 1);
        if context.truncate(0, agree).is_err() {
            self.cached.clear();
        }
        let n_cached = context.n_past(0);
        self.cached.truncate(n_cached);

        let out = stream(context, &mut self.sampler, &tokens[n_cached..], self.max_tokens, ui)
            .context("cannot answer")?;
        self.cached.extend(&tokens[n_cached..]);
        self.cached.extend(&out.tokens);
        self.cached.truncate(context.n_past(0));
        self.n_generated += out.tokens.len();
        if !ui.json() {
            ui.data("\n")?;
        }
        if out.stop == Stop::ContextFull {
            ui.warn("the context is full; `/reset` forgets the conversation, `--ctx-size` makes it larger");
        }
        ui.detail(summary(&out));
        Ok(out.text)
    }
}

/// Where messages come from.
enum Lines {
    Terminal(Box<DefaultEditor>),
    Pipe(io::Lines<io::StdinLock<'static>>),
}

impl Lines {
    fn new() -> anyhow::Result<Self> {
        if !io::stdin().is_terminal() {
            return Ok(Self::Pipe(io::stdin().lock().lines()));
        }
        let editor = DefaultEditor::new().context("cannot read from the terminal")?;
        Ok(Self::Terminal(Box::new(editor)))
    }

    fn is_terminal(&self) -> bool {
        matches!(self, Self::Terminal(_))
    }

    fn next(&mut self, ui: &Ui) -> anyhow::Result<Option<String>> {
        match self {
            Self::Pipe(lines) => lines.next().transpose().context("cannot read stdin"),
            Self::Terminal(editor) => loop {
                match editor.readline("> ") {
                    Ok(line) => {
                        // A full history is no reason to stop talking.
                        let _ = editor.add_history_entry(&line);
                        return Ok(Some(line));
                    }
                    Err(ReadlineError::Interrupted) => ui.info("(Ctrl-D or /quit ends)"),
                    Err(ReadlineError::Eof) => return Ok(None),
                    Err(error) => return Err(error).context("cannot read from the terminal"),
                }
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_told_from_commands() {
        assert_eq!(Input::parse("  "), Input::Nothing);
        assert_eq!(Input::parse(" hello there "), Input::Say("hello there"));
        assert_eq!(Input::parse("/reset"), Input::Reset);
        assert_eq!(Input::parse("/system  be brief "), Input::System("be brief"));
        assert_eq!(Input::parse("/system"), Input::System(""));
        assert_eq!(Input::parse("/quit"), Input::Quit);
        assert_eq!(Input::parse("/rest"), Input::Unknown("/rest"));
        assert_eq!(Input::parse("/usr/bin is what?"), Input::Say("/usr/bin is what?"));
        assert_eq!(Input::parse("/3"), Input::Say("/3"));
    }
}
