//! The command line: parses flags, runs the command, renders its error, picks the exit code.
//!
//! A command is a file in `commands` and one variant of [`Command`] here. Exit codes: 0 done, 1 the check said no, 2
//! could not run (also for bad flags).

mod diagnostics;

use std::process::ExitCode;

use clap::{CommandFactory as _, Parser, Subcommand, ValueEnum};

use crate::commands::ui::{Outcome, Ui, Verbosity};
use crate::commands::{
    bench, chat, completions, convert, data, devices, eval, export, generate, inspect, man, plan, quantize,
    report, synth, train, verify,
};
use crate::{ggml, llama};

/// Fine-tune ternary (BitNet b1.58) language models on whatever GPU a person has
#[derive(Debug, Parser)]
#[command(name = "qvac-ft", version, propagate_version = true, max_term_width = 100)]
struct Cli {
    #[command(flatten)]
    global: GlobalArgs,

    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Global options")]
struct GlobalArgs {
    /// Write the result to stdout as one JSON object
    #[arg(long, global = true)]
    json: bool,

    /// Tell details, and what ggml and libllama log
    #[arg(short, long, global = true)]
    verbose: bool,

    /// Only warnings and errors; no progress
    #[arg(short, long, global = true, conflicts_with = "verbose")]
    quiet: bool,

    /// When to use colour
    #[arg(long, global = true, value_enum, default_value_t, value_name = "WHEN")]
    color: Color,
}

#[derive(Debug, Clone, Copy, Default, ValueEnum)]
enum Color {
    /// On a terminal, unless `NO_COLOR` is set
    #[default]
    Auto,
    Always,
    Never,
}

#[derive(Debug, Subcommand)]
enum Command {
    Train(Box<train::Args>),
    Eval(eval::Args),
    Generate(generate::Args),
    Chat(chat::Args),
    Data(data::Args),
    Inspect(inspect::Args),
    Export(export::Args),
    Convert(convert::Args),
    Quantize(quantize::Args),
    Plan(Box<plan::Args>),
    Bench(bench::Args),
    Verify(verify::Args),
    Report(report::Args),
    Synth(synth::Args),
    Devices(devices::Args),
    Completions(completions::Args),
    Man(man::Args),
}

impl Command {
    fn run(self, ui: &Ui) -> anyhow::Result<Outcome> {
        match self {
            Self::Train(args) => train::run(*args, ui),
            Self::Eval(args) => eval::run(args, ui),
            Self::Generate(args) => generate::run(args, ui),
            Self::Chat(args) => chat::run(args, ui),
            Self::Data(args) => data::run(args, ui),
            Self::Inspect(args) => inspect::run(args, ui),
            Self::Export(args) => export::run(args, ui),
            Self::Convert(args) => convert::run(args, ui),
            Self::Quantize(args) => quantize::run(args, ui),
            Self::Plan(args) => plan::run(*args, ui),
            Self::Bench(args) => bench::run(args, ui),
            Self::Verify(args) => verify::run(args, ui),
            Self::Report(args) => report::run(args, ui),
            Self::Synth(args) => synth::run(args, ui),
            Self::Devices(args) => devices::run(args, ui),
            Self::Completions(args) => completions::run(args, Cli::command(), ui),
            Self::Man(args) => man::run(args, Cli::command(), ui),
        }
    }
}

impl GlobalArgs {
    fn ui(&self) -> Ui {
        match self.color {
            Color::Auto => {}
            Color::Always | Color::Never => {
                let enabled = matches!(self.color, Color::Always);
                console::set_colors_enabled(enabled);
                console::set_colors_enabled_stderr(enabled);
            }
        }
        let verbosity = match (self.quiet, self.verbose) {
            (true, _) => Verbosity::Quiet,
            (_, true) => Verbosity::Verbose,
            _ => Verbosity::Normal,
        };
        Ui::new(self.json, verbosity)
    }
}

/// Code for "could not run"; `Outcome` has the others.
const COULD_NOT_RUN: u8 = 2;

/// Runs the program with the process's arguments.
pub fn main() -> ExitCode {
    diagnostics::install_panic_hook();
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Also `--help` and `--version`, which go to stdout and are no failure.
            let _ = error.print();
            return if error.use_stderr() { COULD_NOT_RUN.into() } else { ExitCode::SUCCESS };
        }
    };
    let ui = cli.global.ui();
    if let Some(caches) = dirs::cache_dir() {
        ggml::keep_pipelines_in(&caches.join("qvac-ft").join("pipelines"));
    }
    llama::log::install(ui.verbosity() == Verbosity::Verbose);
    match cli.command.run(&ui) {
        Ok(outcome) => outcome.code().into(),
        Err(error) if diagnostics::is_reader_gone(&error) => ExitCode::SUCCESS,
        Err(error) => {
            diagnostics::report(&error);
            COULD_NOT_RUN.into()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_flags_do_not_contradict_each_other() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_command_says_what_it_does() {
        for command in Cli::command().get_subcommands() {
            let about = command.get_about().map(ToString::to_string).unwrap_or_default();
            assert!(!about.is_empty(), "`{}` has no help", command.get_name());
        }
    }
}
