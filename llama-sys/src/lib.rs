//! Declarations of the C API of ggml, gguf and llama, as bound by `build.rs`.
//!
//! No judgement lives here: preconditions are checked, and owners made, in the `ggml` and `llama` modules of
//! `qvac-ft`. `symbols.txt` says what is declared; `shim.h` adds what C does not export, and variants of the calls that
//! may throw which return a status and the exception's message instead.

#![allow(non_camel_case_types, non_snake_case, non_upper_case_globals)]
#![allow(clippy::all, clippy::pedantic)]

include!(concat!(env!("OUT_DIR"), "/bindings.rs"));

#[cfg(test)]
mod tests;
