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
/// How many reports of buffers are kept; a model and a context give a handful.
const MOST_BUFFERS: usize = 512;

static VERBOSE: AtomicBool = AtomicBool::new(false);
static LINES: Mutex<Lines> = Mutex::new(Lines {
    next: 0,
    level: Level::Info,
    partial: String::new(),
    kept: VecDeque::new(),
    buffers: Vec::new(),
});

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
    /// Buffers that this thread's models and contexts were given, since they were last taken.
    buffers: Vec<(ThreadId, Buffer)>,
}

/// A buffer that libllama allocated, as its log tells; there is no C function that does.
#[derive(Debug, Clone, PartialEq)]
pub struct Buffer {
    /// `model`, `KV`, `compute` or `output`.
    pub what: String,
    /// The backend's name for the memory: `Vulkan0`, `CPU_Mapped`.
    pub place: String,
    /// To a hundredth of a MiB.
    pub bytes: u64,
}

impl Buffer {
    /// Of `f: Vulkan0 model buffer size = 12.50 MiB`.
    fn of_line(line: &str) -> Option<Self> {
        let (head, size) = line.split_once(" buffer size =")?;
        let mut words = head.rsplit(' ').filter(|w| !w.is_empty());
        let (what, place) = (words.next()?.to_owned(), words.next()?.to_owned());
        let mib: f64 = size.trim().strip_suffix("MiB")?.trim().parse().ok()?;
        Some(Self { what, place, bytes: (mib * f64::from(1 << 20)) as u64 })
    }
}

/// The buffers that were allocated on this thread since the last call; their reports beyond a few hundred are dropped.
pub fn take_buffers() -> Vec<Buffer> {
    ensure_installed();
    let here = thread::current().id();
    let mut lines = lock();
    let (own, others) =
        std::mem::take(&mut lines.buffers).into_iter().partition(|(thread, _)| *thread == here);
    lines.buffers = others;
    let own: Vec<(ThreadId, Buffer)> = own;
    own.into_iter().map(|(_, buffer)| buffer).collect()
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
            if self.level == Level::Info && self.buffers.len() < MOST_BUFFERS {
                self.buffers.extend(Buffer::of_line(&line).map(|b| (thread::current().id(), b)));
            }
            self.next += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn empty() -> Lines {
        Lines {
            next: 0,
            level: Level::Info,
            partial: String::new(),
            kept: VecDeque::new(),
            buffers: Vec::new(),
        }
    }

    #[test]
    fn sizes_of_buffers_are_read() {
        let mut lines = empty();
        lines.push(Some(Level::Info), "load_tensors:      Vulkan0 model buffer size =   12.50 MiB\n");
        lines.push(Some(Level::Info), "llama_context:        CPU  output buffer size =     0.12 MiB\n");
        lines.push(Some(Level::Info), "the buffer size = of nothing\n");
        let found: Vec<_> =
            lines.buffers.iter().map(|(_, b)| (b.what.as_str(), b.place.as_str(), b.bytes)).collect();
        assert_eq!(found, [("model", "Vulkan0", 13107200), ("output", "CPU", 125829)]);
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
