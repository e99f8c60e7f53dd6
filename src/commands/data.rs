//! `qvac-ft data`: look at what training will see, and make the PubMedQA set.

use std::path::PathBuf;

use anyhow::Context as _;
use console::style;
use serde::Serialize;
use serde_json::json;

use super::network::DataArgs;
use super::ui::{Outcome, Problem, Ui};
use crate::data::pubmedqa::{self, Eval, Plan};
use crate::data::{ordered_rows, Dataset, Options, PackMode, Row, Sample, Tokenizer};
use crate::llama::{Model, ModelParams};

/// Look at what training will see, or make a data set
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Show a sample as the model sees it, its trained tokens marked, and what the whole file amounts to
    Inspect(InspectArgs),
    /// Make a training and an evaluation set of chats from PubMedQA's `ori_pqal.json`
    Pubmedqa(PubmedqaArgs),
}

#[derive(Debug, clap::Args)]
struct InspectArgs {
    /// Model whose tokenizer and chat template are used (GGUF)
    #[arg(short, long, value_name = "FILE")]
    model: PathBuf,
    /// Records: JSONL, a JSON array, or .txt
    #[arg(short, long, value_name = "FILE")]
    data: PathBuf,
    /// Which sample to show, counted from 1
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..))]
    sample: u64,
    /// Show one token per line, with its id
    #[arg(long)]
    by_token: bool,
    #[command(flatten)]
    tokens: DataArgs,
}

#[derive(Debug, clap::Args)]
struct PubmedqaArgs {
    /// PubMedQA's `ori_pqal.json`
    #[arg(long, value_name = "FILE")]
    input: PathBuf,
    /// Folder for `train.jsonl` and `eval.jsonl`
    #[arg(short, long, value_name = "DIR")]
    out: PathBuf,
    /// Questions to take, each label in proportion
    #[arg(long, value_name = "N", default_value_t = 297)]
    samples: usize,
    /// Share of them that is held out for evaluation
    #[arg(long, value_name = "SHARE", default_value_t = 0.2, value_parser = share)]
    eval_fraction: f64,
    /// Hold out N of the other questions instead, and train on all that were taken
    #[arg(long, value_name = "N", conflicts_with = "eval_fraction")]
    eval_samples: Option<usize>,
    #[arg(long, default_value_t = 42)]
    seed: u64,
    /// Write over files that are there already
    #[arg(long)]
    force: bool,
}

fn share(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(share) if (0.0..1.0).contains(&share) => Ok(share),
        _ => Err("expected a number from 0 to below 1".into()),
    }
}

/// Runs the subcommand.
pub fn run(args: Args, ui: &Ui) -> anyhow::Result<Outcome> {
    match args.command {
        Command::Inspect(args) => inspect(&args, ui),
        Command::Pubmedqa(args) => make_pubmedqa(&args, ui),
    }
}

fn inspect(args: &InspectArgs, ui: &Ui) -> anyhow::Result<Outcome> {
    let cannot = || format!("cannot inspect `{}`", args.data.display());
    let model = Model::load(&args.model, &ModelParams::vocab_only()).with_context(cannot)?;
    let vocab = model.vocab().with_context(cannot)?;
    let model_template = model.chat_template(None);
    let options = Options {
        chat_template: args.tokens.chat_template.as_deref(),
        model_template: model_template.as_deref(),
        loss_on: args.tokens.loss_on.into(),
        seq_len: args.tokens.seq_len,
        time: None,
    };
    let set = Dataset::load(&args.data, &vocab, &options).with_context(cannot)?;
    let rows = ordered_rows(&set.samples, args.tokens.seq_len, PackMode::Pack).with_context(cannot)?;
    let index = args.sample as usize - 1;
    let sample = set.samples.get(index).ok_or_else(|| {
        Problem::new(
            format!("`{}` has no sample {}", args.data.display(), args.sample),
            format!("`--sample` goes from 1 to {}", set.samples.len()),
        )
    })?;
    let tokens = pieces(sample, &vocab).with_context(cannot)?;
    if ui.json() {
        ui.result(&json!({
            "sample": {
                "number": args.sample,
                "file": sample.origin.file.display().to_string(),
                "line": sample.origin.line,
                "label": sample.label,
                "answer_start": sample.answer_start,
                "answer_end": sample.answer_end,
                "truncated_from": sample.truncated.map(|t| t.original),
                "tokens": tokens,
            },
            "stats": set.stats,
            "rows": rows.len(),
            "seq_len": args.tokens.seq_len,
        }))?;
        return Ok(Outcome::Done);
    }
    if args.by_token {
        for token in &tokens {
            let line = format!("{:>8}  {}", token.id, format_args!("{:?}", token.piece));
            ui.line(mark(&line, token.trained))?;
        }
    } else {
        ui.line(runs(&tokens))?;
    }
    ui.line("")?;
    ui.line(about_sample(sample, args.sample))?;
    ui.data(about_set(&set, &rows, args.tokens.seq_len))?;
    Ok(Outcome::Done)
}

#[derive(Serialize)]
struct Shown {
    id: i32,
    piece: String,
    special: bool,
    trained: bool,
    #[serde(skip)]
    bytes: Vec<u8>,
}

fn pieces(sample: &Sample, tokenizer: &dyn Tokenizer) -> crate::data::Result<Vec<Shown>> {
    let one = |(&id, &trained): (&i32, &bool)| {
        let bytes = tokenizer.piece(id)?;
        let piece = String::from_utf8_lossy(&bytes).into_owned();
        Ok(Shown { id, piece, special: tokenizer.is_special(id), trained, bytes })
    };
    sample.tokens.iter().zip(&sample.train).map(one).collect()
}

/// The text in runs of trained and untrained tokens; joined before decoding, as a character may span tokens.
fn runs(tokens: &[Shown]) -> String {
    tokens
        .chunk_by(|a, b| a.trained == b.trained)
        .map(|run| {
            let bytes: Vec<u8> = run.iter().flat_map(|t| t.bytes.iter().copied()).collect();
            mark(&String::from_utf8_lossy(&bytes), run[0].trained)
        })
        .collect()
}

/// Trained text in green, the rest dim; brackets where there is no colour.
fn mark(text: &str, trained: bool) -> String {
    match (console::colors_enabled(), trained) {
        (true, true) => style(text).green().bold().to_string(),
        (true, false) => style(text).dim().to_string(),
        (false, true) => format!("«{text}»"),
        (false, false) => text.to_owned(),
    }
}

fn about_sample(sample: &Sample, number: u64) -> String {
    let mut text = format!(
        "sample {number} ({}): {} tokens, {} trained",
        sample.origin,
        sample.len(),
        sample.n_targets()
    );
    if let Some(label) = &sample.label {
        text += &format!(", label `{label}`");
    }
    if let Some(t) = sample.truncated {
        text += &format!(", shortened from {}", t.original);
        if t.answer_cut {
            text += " (the answer lost its end)";
        }
    }
    text
}

fn about_set(set: &Dataset, rows: &[Row], seq_len: usize) -> String {
    let s = &set.stats;
    let percent = |part: usize, whole: usize| 100.0 * part as f64 / whole.max(1) as f64;
    let mut text = format!(
        "records   {}\nsamples   {}\ntokens    {} ({} trained, {:.1} %)\nlongest   {} tokens\n",
        s.records,
        s.samples,
        s.tokens,
        s.trained_tokens,
        percent(s.trained_tokens, s.tokens),
        s.longest,
    );
    text += &format!(
        "rows      {} of {seq_len} ({:.1} % filled)\nshortened {} samples, {} of them in the answer\n",
        rows.len(),
        percent(s.tokens, rows.len() * seq_len),
        s.truncated,
        s.answers_cut,
    );
    if !s.labels.is_empty() {
        let labels: Vec<_> = s.labels.iter().map(|(label, n)| format!("{label} {n}")).collect();
        text += &format!("labels    {} ({} can be scored)\n", labels.join(", "), s.scorable);
    }
    text
}

fn make_pubmedqa(args: &PubmedqaArgs, ui: &Ui) -> anyhow::Result<Outcome> {
    let cannot = || format!("cannot make a data set from `{}`", args.input.display());
    let eval = match args.eval_samples {
        Some(n) => Eval::Others(n),
        None => Eval::Fraction(args.eval_fraction),
    };
    let plan = Plan { samples: args.samples, eval, seed: args.seed };
    let sets = pubmedqa::sets(&args.input, &plan).with_context(cannot)?;
    let [train, eval] = pubmedqa::write(&sets, &args.out, args.force).with_context(cannot)?;
    let count = |chats: &[pubmedqa::Chat]| {
        let mut counts = serde_json::Map::new();
        for label in ["yes", "no", "maybe"] {
            counts.insert(label.into(), chats.iter().filter(|c| c.label == label).count().into());
        }
        counts
    };
    let written = [("train", train, &sets.train), ("eval", eval, &sets.eval)];
    if ui.json() {
        let mut result = serde_json::Map::new();
        for (name, path, chats) in written {
            let about = json!({"file": path, "samples": chats.len(), "labels": count(chats)});
            result.insert(name.into(), about);
        }
        result.insert("seed".into(), args.seed.into());
        ui.result(&result)?;
        return Ok(Outcome::Done);
    }
    for (_, path, chats) in written {
        let labels: Vec<_> = count(chats).iter().map(|(label, n)| format!("{label} {n}")).collect();
        ui.line(format_args!("{}: {} samples ({})", path.display(), chats.len(), labels.join(", ")))?;
    }
    Ok(Outcome::Done)
}
