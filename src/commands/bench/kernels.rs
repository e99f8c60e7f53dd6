//! `bench kernels`: each kernel of a training step by itself.

use clap::builder::RangedU64ValueParser;
use serde::Serialize;

use super::report::table;
use crate::bench::{self, KernelFigure, KernelShape};
use crate::commands::network::MachineArgs;
use crate::commands::provenance::Provenance;
use crate::commands::synth;
use crate::commands::ui::{Outcome, Ui};

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Shape of the model whose kernels are measured (see `synth`)
    #[arg(long, value_name = "NAME", default_value = "bitnet-1b")]
    shape: String,

    /// Tokens of a step
    #[arg(long, value_name = "N", default_value_t = 512, value_parser = RangedU64ValueParser::<u32>::new().range(1..=65536))]
    tokens: u32,

    /// Kernels whose name contains this, instead of all
    #[arg(long, value_name = "TEXT", default_value = "")]
    filter: String,

    /// Times that a kernel is run in one graph
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = RangedU64ValueParser::<usize>::new().range(1..))]
    reps: usize,

    #[command(flatten)]
    machine: MachineArgs,
}

impl Args {
    /// What is measured, for errors.
    pub fn shape(&self) -> &str {
        &self.shape
    }
}

#[derive(Serialize)]
struct Output<'a> {
    #[serde(flatten)]
    provenance: Provenance,
    shape: &'a str,
    n_tokens: u32,
    kernels: &'a [KernelFigure],
}

/// Runs `bench kernels`.
pub fn run(args: &Args, ui: &Ui) -> anyhow::Result<Outcome> {
    let shape = synth::config(&args.shape, "tq2_0", 42)?.shape;
    let machine = args.machine.open()?;
    let shape = KernelShape {
        n_embd: shape.n_embd as i64,
        n_head: shape.n_head as i64,
        n_embd_head: shape.n_embd_head as i64,
        n_ff: shape.n_ff as i64,
        n_vocab: shape.n_vocab as i64,
        n_tokens: i64::from(args.tokens),
        rank: 8,
    };
    let bar = ui.spinner("measure");
    let figures = bench::kernels(&machine.backend, &shape, &args.filter, args.reps, &mut |figure| {
        bar.message(format!("{} {}", figure.kernel, figure.shape));
    })?;
    drop(bar);
    if ui.json() {
        ui.result(&Output {
            provenance: Provenance::new(machine.backend.device(), None),
            shape: &args.shape,
            n_tokens: args.tokens,
            kernels: &figures,
        })?;
        return Ok(Outcome::Done);
    }
    let rows: Vec<Vec<String>> = figures
        .iter()
        .map(|f| {
            let gops = f.gops.map_or("-".into(), |g| format!("{g:.0}"));
            vec![
                f.kernel.clone(),
                f.shape.clone(),
                format!("{:.1}", f.microseconds),
                gops,
                format!("{:.0}", f.gbytes),
            ]
        })
        .collect();
    ui.data(table(&["kernel", "shape", "us", "GOP/s", "GB/s"], &rows))?;
    Ok(Outcome::Done)
}
