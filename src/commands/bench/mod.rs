//! `bench`: how fast this machine trains and answers, on a model or on the shape of one.

mod compare;
mod infer;
mod kernels;
mod report;
mod source;
mod train;

use anyhow::Context as _;

use super::ui::{Interrupt, Outcome, Ui};

/// Measure training steps, or prompts and generation; compare measurements
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Optimizer steps on random tokens: time, tokens per second, memory, and where the time goes
    Train(Box<train::Args>),
    /// Prompts and generated tokens through libllama, as llama-bench measures them
    Infer(infer::Args),
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
        Command::Kernels(args) => kernels::run(&args, ui)
            .with_context(|| format!("cannot measure the kernels of `{}`", args.shape())),
        Command::Compare(args) => {
            compare::run(&args, ui).with_context(|| format!("cannot compare {}", args.files()))
        }
    }
}
