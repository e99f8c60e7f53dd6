//! `eval`: how well a model, with and without an adapter, predicts a data set.

use std::path::PathBuf;

use anyhow::Context as _;
use serde::Serialize;

use super::network::{DataArgs, NetworkArgs};
use super::provenance::Provenance;
use super::ui::{Outcome, Ui};
use crate::ggml::{peak_host_bytes, GgufFile};
use crate::model::adapter::AdapterFile;
use crate::model::LoraConfig;
use crate::plan::Request;
use crate::train::{evaluate, Evaluation};

/// Loss, perplexity and (for data with labels) accuracy of a model on a data set
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    network: NetworkArgs,

    /// The data: `.jsonl` of chats, or `.txt`
    #[arg(short, long, value_name = "FILE")]
    data: PathBuf,

    /// The adapter to evaluate; the base model is evaluated beside it
    #[arg(long, value_name = "GGUF")]
    adapter: Option<PathBuf>,

    /// Do not evaluate the base model beside the adapter
    #[arg(long, requires = "adapter")]
    no_base: bool,

    #[command(flatten)]
    tokens: DataArgs,
}

/// Rows that are evaluated at a time on a GPU.
const ROWS: usize = 8;

#[derive(Debug, Serialize)]
struct Figures {
    loss: f64,
    perplexity: f64,
    /// Between 0 and 1; null without labels.
    accuracy: Option<f64>,
    n_tokens: usize,
    n_labelled: usize,
}

impl From<&Evaluation> for Figures {
    fn from(e: &Evaluation) -> Self {
        Self {
            loss: e.loss,
            perplexity: e.perplexity(),
            accuracy: e.accuracy.as_ref().map(|a| a.share()),
            n_tokens: e.n_tokens,
            n_labelled: e.accuracy.as_ref().map_or(0, |a| a.of),
        }
    }
}

#[derive(Debug, Serialize)]
struct Output {
    #[serde(flatten)]
    figures: Figures,
    /// The same of the model without the adapter.
    base: Option<Figures>,
    #[serde(flatten)]
    provenance: Provenance,
    peak_device_bytes: usize,
    peak_host_bytes: Option<u64>,
}

/// Runs `eval`.
pub fn run(args: Args, ui: &Ui) -> anyhow::Result<Outcome> {
    evaluate_all(&args, ui).with_context(|| format!("cannot evaluate on `{}`", args.data.display()))
}

fn evaluate_all(args: &Args, ui: &Ui) -> anyhow::Result<Outcome> {
    let file = GgufFile::open(&args.network.model)?;
    let adapter = args.adapter.as_ref().map(AdapterFile::read).transpose()?;
    let lora = match &adapter {
        Some(adapter) => {
            adapter.check_against(&file)?;
            Some(LoraConfig::of_file(adapter)?)
        }
        None => None,
    };
    let data = args.tokens.load(&args.network.model, &[&args.data], None, ui)?.remove(0);
    let machine = args.network.machine.open()?;
    let request = Request {
        seq_len: args.tokens.seq_len,
        rows_per_step: ROWS,
        n_rows: None,
        lora,
        training: None,
        any_recompute: false,
    };
    let (_, engine) = args.network.machine.ready(&file, &machine, &request, ui)?;

    let run = |what: &'static str| -> anyhow::Result<Figures> {
        let bar = ui.progress(what, 0);
        let evaluation = evaluate(&engine, &data, &mut |done, total| {
            bar.set_len(total as u64);
            bar.set(done as u64);
        })?;
        Ok(Figures::from(&evaluation))
    };
    // An adapter of zeros is the base model.
    let base = match adapter.is_some() && !args.no_base {
        true => Some(run("base")?),
        false => None,
    };
    if let (Some(adapter), Some(lora)) = (&adapter, engine.lora()) {
        lora.load(adapter)?;
    }
    let figures = run("eval")?;
    let output = Output {
        figures,
        base,
        provenance: Provenance::new(machine.backend.device(), Some(&file)),
        peak_device_bytes: engine.device_bytes(),
        peak_host_bytes: peak_host_bytes(),
    };
    if ui.json() {
        ui.result(&output)?;
    } else {
        ui.line(table(&output))?;
    }
    Ok(Outcome::Done)
}

fn table(output: &Output) -> String {
    let mut text = format!("{:>12}  {:>8}  {:>10}  {:>8}\n", "", "loss", "perplexity", "accuracy");
    let mut line = |name: &str, f: &Figures| {
        let accuracy = f.accuracy.map_or("-".into(), |a| format!("{:.1}%", 100.0 * a));
        text += &format!("{name:>12}  {:>8.4}  {:>10.3}  {accuracy:>8}\n", f.loss, f.perplexity);
    };
    if let Some(base) = &output.base {
        line("base", base);
        line("with adapter", &output.figures);
    } else {
        line("", &output.figures);
    }
    let f = &output.figures;
    text += &format!("over {} tokens on {}", f.n_tokens, output.provenance.device());
    if f.n_labelled > 0 {
        text += &format!(", accuracy over {} labelled records", f.n_labelled);
    }
    text
}
