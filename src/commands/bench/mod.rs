//! `bench`: how fast this machine trains and answers, on a model or on the shape of one.

mod compare;
mod infer;
mod kernels;
mod memory;
mod protocol;
pub(super) mod report;
mod session;
pub(super) mod source;
mod train;

use anyhow::Context as _;

use super::ui::{Interrupt, Outcome, Ui};

/// Measure training steps, prompts and generation, or memory; compare measurements
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Optimizer steps on random tokens: time, tokens per second, memory, and where the time goes
    Train(Box<train::Args>),
    /// Answers through libllama, as the reference measures them; with --prompt or --generate as llama-bench does
    Infer(infer::Args),
    /// Weights, cache and buffers of a model at inference, and the peak of training, measured by loading
    Memory(Box<memory::Args>),
    /// Each kernel of a training step by itself, beside what the device can do
    Kernels(kernels::Args),
    /// Two files of results side by side: how many times as fast the new one is
    Compare(compare::Args),
}

/// Runs the subcommand.
pub fn run(args: Args, ui: &Ui) -> anyhow::Result<Outcome> {
    let interrupt = Interrupt::install()?;
    match args.command {
        Command::Train(args) => train::run(&args, interrupt, ui)
            .with_context(|| format!("cannot measure training of `{}`", args.source())),
        Command::Infer(args) => infer::run(&args, interrupt, ui)
            .with_context(|| format!("cannot measure inference of `{}`", args.source())),
        Command::Memory(args) => memory::run(&args, interrupt, ui).context("cannot measure memory"),
        Command::Kernels(args) => kernels::run(&args, ui)
            .with_context(|| format!("cannot measure the kernels of `{}`", args.shape())),
        Command::Compare(args) => {
            compare::run(&args, ui).with_context(|| format!("cannot compare {}", args.files()))
        }
    }
}
