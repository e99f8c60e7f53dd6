//! qvac-ft: LoRA fine-tuning of ternary (BitNet b1.58) language models on ggml.
//!
//! The layers, from the top; imports go down only (`tests/architecture.rs` holds them to it):
//! `cli` → `commands` → engines (`data`, `train`, `eval`, `synth`, `export`, `convert`, `bench`, `plan`, `report`, `verify`) → `model` → `ggml`, `llama`.

pub mod bench;
pub mod cli;
pub mod commands;
pub mod convert;
pub mod data;
pub mod error;
pub mod export;
pub mod ggml;
pub mod llama;
pub mod model;
pub mod parallel;
pub mod plan;
pub mod report;
pub mod synth;
pub mod train;
pub mod verify;
