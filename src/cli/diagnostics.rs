//! How a failure is told: what could not be done, the chain of causes, and the remedy of the first cause that has one.
//!
//! ```text
//! error: cannot train on `chats.jsonl`
//!   caused by: chats.jsonl:17: no token contributes to the loss
//!
//! hint: pass `--loss-on all`, or drop the record
//! ```
//!
//! Colour only repeats what the words say. A layer whose errors have hints is one line in [`HINTS`].

use std::error::Error;
use std::fmt::Write as _;
use std::io::Write as _;

use console::{style, StyledObject};

use crate::commands::ui::{Problem, ReaderGone};
use crate::error::Hint;
use crate::{bench, convert, data, export, ggml, llama, model, report, synth, train, verify};

type HintOf = fn(&(dyn Error + 'static)) -> Option<String>;

/// The error types that know remedies.
const HINTS: &[HintOf] = &[
    hint_of::<Problem>,
    hint_of::<data::Error>,
    hint_of::<bench::Error>,
    hint_of::<verify::Error>,
    hint_of::<report::Error>,
    hint_of::<train::Error>,
    hint_of::<export::Error>,
    hint_of::<convert::Error>,
    hint_of::<synth::Error>,
    hint_of::<model::Error>,
    hint_of::<llama::Error>,
    hint_of::<ggml::Error>,
];

fn hint_of<E: Hint + 'static>(error: &(dyn Error + 'static)) -> Option<String> {
    error.downcast_ref::<E>()?.hint()
}

/// Prints an error to stderr.
pub(super) fn report(error: &anyhow::Error) {
    // With stderr closed there is no one left to tell.
    let _ = std::io::stderr().lock().write_all(render(error).as_bytes());
}

/// Whether the failure is only that nobody reads stdout any more.
pub(super) fn is_reader_gone(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| cause.is::<ReaderGone>())
}

fn render(error: &anyhow::Error) -> String {
    let label = |text: &'static str| -> StyledObject<&str> { style(text).for_stderr().bold() };
    let mut out = String::new();
    let mut last = String::new();
    for (depth, cause) in error.chain().enumerate() {
        let text = cause.to_string();
        // An error that only passes its source on would say the same twice.
        if text == last {
            continue;
        }
        // Writing to a `String` does not fail.
        let _ = match depth {
            0 => writeln!(out, "{} {text}", label("error:").red()),
            _ => writeln!(out, "  {} {text}", label("caused by:")),
        };
        last = text;
    }
    let hint = error.chain().find_map(|cause| HINTS.iter().find_map(|hint_of| hint_of(cause)));
    if let Some(hint) = hint {
        let _ = writeln!(out, "\n{} {hint}", label("hint:").cyan());
    }
    out
}

/// A panic is a bug: says so, with what a report needs. The exit code is Rust's own, 101.
pub(super) fn install_panic_hook() {
    std::panic::set_hook(Box::new(|panic| {
        let what = panic
            .payload()
            .downcast_ref::<&str>()
            .map(|text| (*text).to_owned())
            .or_else(|| panic.payload().downcast_ref::<String>().cloned())
            .unwrap_or_else(|| "no message".into());
        let place = panic.location().map(|l| format!("{}:{}", l.file(), l.line())).unwrap_or_default();
        let _ = writeln!(
            std::io::stderr().lock(),
            "{} this is a bug of qvac-ft {}: {what} ({place})\n\n{} please report this line and the command; \
             `RUST_BACKTRACE=1` adds where it came from",
            style("error:").for_stderr().red().bold(),
            env!("CARGO_PKG_VERSION"),
            style("hint:").for_stderr().cyan().bold(),
        );
        let backtrace = std::backtrace::Backtrace::capture();
        if backtrace.status() == std::backtrace::BacktraceStatus::Captured {
            let _ = writeln!(std::io::stderr().lock(), "{backtrace}");
        }
    }));
}

#[cfg(test)]
mod tests {
    use anyhow::Context as _;

    use super::*;

    #[test]
    fn the_chain_is_told_once_with_the_first_hint() {
        let cause = ggml::Error::NoSuchDevice { name: "x".into(), found: vec!["cpu".into()] };
        let error = Err::<(), _>(llama::Error::from(cause)).context("cannot load `m.gguf`").unwrap_err();
        assert_eq!(
            console::strip_ansi_codes(&render(&error)),
            "error: cannot load `m.gguf`\n  \
               caused by: no device named `x` (found: cpu)\n\n\
             hint: `qvac-ft devices` lists what this machine has\n"
        );
    }

    #[test]
    fn an_error_without_a_remedy_has_no_hint() {
        assert_eq!(console::strip_ansi_codes(&render(&anyhow::anyhow!("it broke"))), "error: it broke\n");
    }

    #[test]
    fn a_reader_that_left_is_recognised_under_context() {
        let error = anyhow::Error::from(ReaderGone).context("cannot list devices");
        assert!(is_reader_gone(&error));
        assert!(!is_reader_gone(&anyhow::anyhow!("else")));
    }
}
