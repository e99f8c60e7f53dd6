//! One file per subcommand: flags, validated into a config, handed to an engine, its answer written out.
//!
//! Each file has `pub struct Args` (`clap::Args`) and `pub fn run(args: Args, ui: &Ui) -> anyhow::Result<Outcome>`.
//! To add one: a new file here, a `pub mod` line, and one variant in `cli::Command`. `ui`, `exact`, `inference`, `memory`,
//! `network` and `provenance` are no commands but what commands share.

pub mod bench;
pub mod chat;
pub mod completions;
pub mod convert;
pub mod data;
pub mod devices;
pub mod eval;
pub mod exact;
pub mod export;
pub mod generate;
pub mod inference;
pub mod inspect;
pub mod man;
pub mod memory;
pub mod network;
pub mod plan;
pub mod provenance;
pub mod quantize;
pub mod report;
pub mod synth;
pub mod train;
pub mod ui;
pub mod verify;
