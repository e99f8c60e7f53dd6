//! What a command says to its user, and how it is asked to stop.
//!
//! stdout carries data only: text that was asked for, or with `--json` exactly one object. Everything else (progress,
//! notes, warnings) goes to stderr and may vanish: bars when stderr is not a terminal, notes with `-q`.
//! This file does not render errors (`cli::diagnostics` does) and reads no flags (`cli` builds the `Ui` from them).

use std::borrow::Cow;
use std::fmt::Display;
use std::io::{self, IsTerminal, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::OnceLock;

use anyhow::Context as _;
use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Serialize;

use crate::error::Hint;

/// How a command that ran to its end came out. What kept one from running is an `Err` and exits with 2.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It did what it was asked to; exit code 0.
    Done,
    /// It ran, and the answer to the question it was asked is no; exit code 1.
    CheckFailed,
}

impl Outcome {
    /// The exit code that belongs to this outcome.
    pub fn code(self) -> u8 {
        match self {
            Self::Done => 0,
            Self::CheckFailed => 1,
        }
    }
}

/// How much goes to stderr.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verbosity {
    /// `-q`: warnings and errors only.
    Quiet,
    /// Notes and progress.
    Normal,
    /// `-v`: details, and the log lines of ggml and libllama.
    Verbose,
}

/// Who read stdout has left (`| head`): no more is wanted, which is no failure. `cli` ends with 0 on it.
#[derive(Debug, thiserror::Error)]
#[error("nobody reads stdout any more")]
pub struct ReaderGone;

/// What is wrong with what a command was told, found by the command itself.
#[derive(Debug, thiserror::Error)]
#[error("{fact}")]
pub struct Problem {
    fact: String,
    remedy: String,
}

impl Problem {
    /// `fact` as an error is worded; `remedy` as a hint is.
    pub fn new(fact: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { fact: fact.into(), remedy: remedy.into() }
    }
}

impl Hint for Problem {
    fn hint(&self) -> Option<String> {
        Some(self.remedy.clone())
    }
}

/// The one way a command talks: data to stdout, the rest to stderr.
#[derive(Debug)]
pub struct Ui {
    json: bool,
    verbosity: Verbosity,
    bars: MultiProgress,
}

impl Ui {
    /// `json`: results are one JSON object each. Bars are drawn on a terminal only, and not when quiet.
    pub fn new(json: bool, verbosity: Verbosity) -> Self {
        let target = if verbosity == Verbosity::Quiet || !io::stderr().is_terminal() {
            ProgressDrawTarget::hidden()
        } else {
            ProgressDrawTarget::stderr()
        };
        Self { json, verbosity, bars: MultiProgress::with_draw_target(target) }
    }

    /// Whether `--json` was given: then call [`Ui::result`] once and [`Ui::data`] never.
    pub fn json(&self) -> bool {
        self.json
    }

    /// How much the user wants to hear.
    pub fn verbosity(&self) -> Verbosity {
        self.verbosity
    }

    /// Writes text to stdout as it is, flushed, so that a stream of pieces shows at once.
    pub fn data(&self, text: impl AsRef<[u8]>) -> anyhow::Result<()> {
        let written = self.bars.suspend(|| {
            let mut out = io::stdout().lock();
            out.write_all(text.as_ref())?;
            out.flush()
        });
        match written {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Err(ReaderGone.into()),
            written => written.context("cannot write to stdout"),
        }
    }

    /// Writes one line of text to stdout.
    pub fn line(&self, text: impl Display) -> anyhow::Result<()> {
        self.data(format!("{text}\n"))
    }

    /// Writes the command's result to stdout as one JSON object, pretty only where a person reads it.
    pub fn result(&self, value: &impl Serialize) -> anyhow::Result<()> {
        let text = if io::stdout().is_terminal() {
            serde_json::to_string_pretty(value)
        } else {
            serde_json::to_string(value)
        };
        self.line(text.context("cannot write the result as JSON")?)
    }

    /// A detail for `-v`.
    pub fn detail(&self, text: impl Display) {
        if self.verbosity >= Verbosity::Verbose {
            self.say(text);
        }
    }

    /// A note; silent with `-q`.
    pub fn info(&self, text: impl Display) {
        if self.verbosity >= Verbosity::Normal {
            self.say(text);
        }
    }

    /// A warning; never silent.
    pub fn warn(&self, text: impl Display) {
        self.say(format_args!("{} {text}", console::style("warning:").for_stderr().yellow().bold()));
    }

    fn say(&self, text: impl Display) {
        // A note that cannot be written must not stop the work it is about.
        self.bars.suspend(|| drop(writeln!(io::stderr().lock(), "{text}")));
    }

    /// A bar over `len` units with a free message at its end: `train  [####----] 12/40  loss 2.31  eta 1m`.
    /// It vanishes when dropped.
    pub fn progress(&self, what: impl Into<Cow<'static, str>>, len: u64) -> Progress {
        self.bar(
            ProgressBar::new(len),
            "{prefix:>9}  [{bar:30}] {human_pos}/{human_len}  {msg}  eta {eta}",
            what,
        )
    }

    /// A bar over bytes, with the rate.
    pub fn progress_bytes(&self, what: impl Into<Cow<'static, str>>, len: u64) -> Progress {
        self.bar(
            ProgressBar::new(len),
            "{prefix:>9}  [{bar:30}] {binary_bytes}/{binary_total_bytes}  {binary_bytes_per_sec}  eta {eta}",
            what,
        )
    }

    /// A spinner for work of unknown length.
    pub fn spinner(&self, what: impl Into<Cow<'static, str>>) -> Progress {
        let spinner = self.bar(ProgressBar::new_spinner(), "{prefix}  {spinner} {msg}", what);
        spinner.bar.enable_steady_tick(std::time::Duration::from_millis(120));
        spinner
    }

    fn bar(&self, bar: ProgressBar, template: &str, what: impl Into<Cow<'static, str>>) -> Progress {
        let style = ProgressStyle::with_template(template)
            .expect("the templates above are constants, tried by `bars_have_valid_templates`")
            .progress_chars("##-");
        let bar = self.bars.add(bar.with_style(style).with_prefix(what));
        Progress { bar }
    }
}

/// A running progress bar or spinner; gone when dropped.
#[derive(Debug)]
pub struct Progress {
    bar: ProgressBar,
}

impl Progress {
    /// Sets how much is done.
    pub fn set(&self, position: u64) {
        self.bar.set_position(position);
    }

    /// Adds to how much is done.
    pub fn inc(&self, delta: u64) {
        self.bar.inc(delta);
    }

    /// Changes the total, once it is known better.
    pub fn set_len(&self, len: u64) {
        self.bar.set_length(len);
    }

    /// Sets the free text at the end.
    pub fn message(&self, text: impl Into<Cow<'static, str>>) {
        self.bar.set_message(text);
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// Ctrl-C (and SIGTERM, SIGHUP) as a flag that long work looks at between two steps.
///
/// Holding one means the handler is in place. A second signal before the first was noticed ends the process with 130.
#[derive(Debug, Clone, Copy)]
pub struct Interrupt(());

impl Interrupt {
    /// Puts the handler in place (once per process; later calls give the same flag).
    pub fn install() -> anyhow::Result<Self> {
        static INSTALLED: OnceLock<Result<(), String>> = OnceLock::new();
        let installed = INSTALLED.get_or_init(|| {
            ctrlc::set_handler(|| {
                if INTERRUPTED.swap(true, Ordering::SeqCst) {
                    std::process::exit(130);
                }
            })
            .map_err(|e| e.to_string())
        });
        match installed {
            Ok(()) => Ok(Self(())),
            Err(reason) => anyhow::bail!("cannot listen for Ctrl-C: {reason}"),
        }
    }

    /// Whether the user asked to stop.
    pub fn requested(self) -> bool {
        INTERRUPTED.load(Ordering::SeqCst)
    }

    /// Forgets the request, for work that goes on after a stop (`chat`).
    pub fn clear(self) {
        INTERRUPTED.store(false, Ordering::SeqCst);
    }

    /// The flag itself, for engines, which know nothing of commands.
    pub fn flag(self) -> &'static AtomicBool {
        &INTERRUPTED
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outcomes_have_the_documented_codes() {
        assert_eq!(Outcome::Done.code(), 0);
        assert_eq!(Outcome::CheckFailed.code(), 1);
    }

    #[test]
    fn bars_have_valid_templates() {
        let ui = Ui::new(false, Verbosity::Quiet);
        ui.progress("train", 3).inc(1);
        ui.progress_bytes("write", 3).set(3);
        ui.spinner("load").message("model");
    }

    #[test]
    fn an_interrupt_can_be_seen_and_cleared() {
        let interrupt = Interrupt::install().unwrap();
        assert!(!interrupt.requested());
        interrupt.flag().store(true, Ordering::SeqCst);
        assert!(Interrupt::install().unwrap().requested());
        interrupt.clear();
        assert!(!interrupt.requested());
    }
}
