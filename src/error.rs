//! The remedy that goes with an error.
//!
//! Every layer has one `thiserror` enum that states facts; `Hint` says what the reader can do about them.
//! `cli::diagnostics` walks the chain of causes and prints the first hint it finds, once.

/// An error that may know its own remedy.
pub trait Hint: std::error::Error {
    /// One sentence: what to do. Lowercase, no full stop, backticks on paths and flags.
    fn hint(&self) -> Option<String>;
}
