//! `bench compare`: two files of results side by side, and the gate that a change has to pass.

use std::path::PathBuf;

use serde::Serialize;

use super::report::table;
use crate::commands::ui::{Outcome, Problem, Ui};
use crate::report::{compare, Comparison, Input, Ratio};

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Results from before: JSON of `bench train` or `bench infer`, one or one a line, or of `scripts/figures`
    old: PathBuf,

    /// Results from after
    new: PathBuf,

    /// Exit with 1 if a median throughput fell below this part of the old one, such as 0.95
    #[arg(long, value_name = "RATIO", value_parser = ratio)]
    fail_below: Option<f64>,
}

impl Args {
    /// What is compared, for errors.
    pub fn files(&self) -> String {
        format!("`{}` with `{}`", self.old.display(), self.new.display())
    }
}

fn ratio(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(x) if x.is_finite() && x > 0.0 => Ok(x),
        _ => Err("a positive number is needed".into()),
    }
}

#[derive(Serialize)]
struct Output<'a> {
    old: &'a PathBuf,
    new: &'a PathBuf,
    fail_below: Option<f64>,
    passed: bool,
    #[serde(flatten)]
    comparison: &'a Comparison,
}

/// Runs `bench compare`.
pub fn run(args: &Args, ui: &Ui) -> anyhow::Result<Outcome> {
    let read = |path: &PathBuf| Input::read(std::slice::from_ref(path)).map(|input| input.measurements);
    let (old, new) = (read(&args.old)?, read(&args.new)?);
    for (some, path) in [(&old, &args.old), (&new, &args.new)] {
        if some.is_empty() {
            let fact = format!("`{}` holds no throughput", path.display());
            return Err(Problem::new(
                fact,
                "compare what `bench train`, `bench infer` or `scripts/figures` wrote",
            )
            .into());
        }
    }
    let found = compare((&old, &args.old), (&new, &args.new))?;
    let failed: Vec<&Ratio> = args.fail_below.map_or_else(Vec::new, |limit| found.below(limit).collect());
    let outcome = if failed.is_empty() { Outcome::Done } else { Outcome::CheckFailed };
    for (old, new) in &found.other_hardware {
        ui.warn(format_args!("the hardware is not the same: `{old}` before, `{new}` now"));
    }
    for (names, which) in [(&found.only_old, &args.old), (&found.only_new, &args.new)] {
        for name in names {
            ui.info(format_args!("only in `{}`: {name}", which.display()));
        }
    }
    if ui.json() {
        let passed = outcome == Outcome::Done;
        let (old, new) = (&args.old, &args.new);
        ui.result(&Output { old, new, fail_below: args.fail_below, passed, comparison: &found })?;
    } else {
        ui.data(table(&HEADERS, &found.ratios.iter().map(cells).collect::<Vec<_>>()))?;
    }
    for ratio in failed {
        let limit = args.fail_below.unwrap_or_default();
        ui.warn(format_args!(
            "{}, {} on {}: {:.3} of the old throughput, at least {limit} is asked for",
            ratio.name, ratio.test, ratio.device, ratio.ratio.median
        ));
    }
    Ok(outcome)
}

const HEADERS: [&str; 9] =
    ["model", "test", "device", "old tok/s", "new tok/s", "new/old", "from", "to", "memory"];

fn cells(r: &Ratio) -> Vec<String> {
    let memory = r.device_memory.or(r.host_memory);
    vec![
        r.name.clone(),
        r.test.clone(),
        r.device.clone(),
        format!("{:.1}", r.old.median),
        format!("{:.1}", r.new.median),
        format!("{:.3}", r.ratio.median),
        format!("{:.3}", r.ratio.min),
        format!("{:.3}", r.ratio.max),
        memory.map_or("-".into(), |m| format!("{m:.3}")),
    ]
}
