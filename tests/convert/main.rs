//! Checkpoints as transformers loads them, converted: ternary values and scales, logits, texts as tokens, bad input.
//!
//! `tests/fixtures/convert/generate.py` made the cases and what is expected of them.

#[path = "../common/mod.rs"]
mod common;

mod bad_input;
mod checkpoint;
mod logits;
mod stock;
mod tokens;
mod values;
