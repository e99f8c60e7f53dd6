//! The log lines of ggml and libllama: kept, not shown, unless the user asked for them.
//!
//! C reports the reason of a failure only through its log. So each call that may fail takes a [`Mark`] first, and its
//! error cites the line that was logged since. Nothing here decides what is an error.

use std::collections::VecDeque;
use std::ffi::{c_char, c_void, CStr};
use std::io::Write;
use std::panic::catch_unwind;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, Once};
use std::thread::{self, ThreadId};

use llama_sys as sys;

/// How many lines are kept; a failing load logs fewer than ten.
const KEPT: usize = 64;

static VERBOSE: AtomicBool = AtomicBool::new(false);
static LINES: Mutex<Lines> =
    Mutex::new(Lines { next: 0, level: Level::Info, partial: String::new(), kept: VecDeque::new() });

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Level {
    Debug,
    Info,
    Warn,
    Error,
}

struct Lines {
    /// Number of lines ever completed; a `Mark` is this number.
    next: u64,
    /// Level and text of the line that has not seen its newline yet.
    level: Level,
    partial: String,
    /// Completed warnings and errors.
    kept: VecDeque<Line>,
}

struct Line {
    number: u64,
    level: Level,
    thread: ThreadId,
    text: String,
}

/// Routes the C log here, once; `verbose` prints every line to stderr as well.
pub fn install(verbose: bool) {
    VERBOSE.store(verbose, Ordering::Relaxed);
    ensure_installed();
}

/// Routes the C log here if nobody did, and leaves verbosity as it is.
pub(super) fn ensure_installed() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        // SAFETY: `on_line` has the signature that `ggml_log_callback` asks for, lives for ever and does not unwind;
        // it does not read its user data, so null is fine. llama_log_set sets ggml's callback too.
        unsafe { sys::llama_log_set(Some(on_line), std::ptr::null_mut()) };
    });
}

/// A place in the log, to find what was logged after it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Mark(u64);

impl Mark {
    /// The place where the log is now.
    pub(super) fn now() -> Self {
        Self(lock().next)
    }

    /// Why a call failed that was begun at this mark: the first error since, which is the nearest to the cause (later
    /// ones say that their callee failed), else the last warning, else that nothing was said.
    pub(super) fn reason(self) -> String {
        let last_warning = || {
            let lines = lock();
            let line = lines.kept.back()?;
            (line.number >= self.0).then(|| strip_function(&line.text).to_owned())
        };
        self.error(|_| true).or_else(last_warning).unwrap_or_else(|| "it gave no reason".into())
    }

    /// The first error since that was logged by this thread: by a call that did not fail, so others' are none of its.
    pub(super) fn error_here(self) -> Option<String> {
        let here = thread::current().id();
        self.error(|line| line.thread == here)
    }

    fn error(self, counts: impl Fn(&Line) -> bool) -> Option<String> {
        let lines = lock();
        let mut since = lines.kept.iter().filter(|line| line.number >= self.0 && counts(line));
        since.find(|line| line.level == Level::Error).map(|line| strip_function(&line.text).to_owned())
    }
}

fn lock() -> std::sync::MutexGuard<'static, Lines> {
    // A panic while holding the lock leaves whole lines behind, which is all that is asked of them.
    LINES.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// `llama_model_load: error loading model: x` is `x` for a person.
fn strip_function(line: &str) -> &str {
    let mut rest = line.trim();
    while let Some((head, tail)) = rest.split_once(": ") {
        let is_function = !head.is_empty()
            && head.contains('_')
            && head.chars().all(|c| c.is_ascii_alphanumeric() || c == '_' || c == ':');
        let is_phrase = matches!(head, "error loading model" | "failed to apply lora adapter");
        if !is_function && !is_phrase {
            break;
        }
        rest = tail.trim_start();
    }
    rest
}

extern "C" fn on_line(level: sys::ggml_log_level, text: *const c_char, _: *mut c_void) {
    // Unwinding into C is undefined; a log line is not worth more than being lost.
    let _ = catch_unwind(|| {
        if text.is_null() {
            return;
        }
        // SAFETY: C passes a NUL-terminated string that lives until this function returns.
        let text = unsafe { CStr::from_ptr(text) }.to_string_lossy();
        if VERBOSE.load(Ordering::Relaxed) {
            let _ = std::io::stderr().lock().write_all(text.as_bytes());
        }
        let level = match level {
            sys::GGML_LOG_LEVEL_ERROR => Some(Level::Error),
            sys::GGML_LOG_LEVEL_WARN => Some(Level::Warn),
            sys::GGML_LOG_LEVEL_INFO => Some(Level::Info),
            sys::GGML_LOG_LEVEL_CONT => None,
            _ => Some(Level::Debug),
        };
        lock().push(level, &text);
    });
}

impl Lines {
    /// Takes a piece of log; `None` goes on with the level of the piece before.
    fn push(&mut self, level: Option<Level>, text: &str) {
        if let Some(level) = level {
            self.level = level;
        }
        self.partial.push_str(text);
        while let Some(end) = self.partial.find('\n') {
            let line: String = self.partial.drain(..=end).collect();
            if self.level >= Level::Warn && !line.trim().is_empty() {
                let (number, level, thread) = (self.next, self.level, thread::current().id());
                self.kept.push_back(Line { number, level, thread, text: line.trim().to_owned() });
                if self.kept.len() > KEPT {
                    self.kept.pop_front();
                }
            }
            self.next += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn empty() -> Lines {
        Lines { next: 0, level: Level::Info, partial: String::new(), kept: VecDeque::new() }
    }

    #[test]
    fn pieces_become_lines_of_the_level_they_began_with() {
        let mut lines = empty();
        lines.push(Some(Level::Error), "half ");
        lines.push(None, "a line\nand ");
        lines.push(None, "another\n");
        lines.push(Some(Level::Info), "not kept\n");
        let kept: Vec<_> = lines.kept.iter().map(|l| (l.number, l.level, l.text.as_str())).collect();
        assert_eq!(kept, [(0, Level::Error, "half a line"), (1, Level::Error, "and another")]);
        assert_eq!(lines.next, 3);
    }

    #[test]
    fn only_the_last_lines_are_kept() {
        let mut lines = empty();
        for i in 0..KEPT + 5 {
            lines.push(Some(Level::Warn), &format!("{i}\n"));
        }
        assert_eq!(lines.kept.len(), KEPT);
        assert_eq!(lines.kept.front().map(|l| l.text.as_str()), Some("5"));
    }

    #[test]
    fn function_names_are_stripped_and_nothing_else() {
        assert_eq!(
            strip_function("llama_model_load: error loading model: key not found: x"),
            "key not found: x"
        );
        assert_eq!(strip_function("gguf_init_from_reader: tensor 'a': bad"), "tensor 'a': bad");
        assert_eq!(strip_function("no prefix at all"), "no prefix at all");
    }
}
