//! One file per subcommand: flags, validated into a config, handed to an engine, its answer written out.
//!
//! Each file has `pub struct Args` (`clap::Args`) and `pub fn run(args: Args, ui: &Ui) -> anyhow::Result<Outcome>`.
//! To add one: a new file here, a `pub mod` line, and one variant in `cli::Command`.

pub mod synth;
pub mod ui;
