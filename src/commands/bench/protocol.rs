//! `bench infer` as the reference publishes it: models times devices, and whether all gave the same tokens.

use serde::Serialize;

use super::report::{table, Subject};
use super::session::{How, Session};
use super::source::Source;
use crate::bench::{self, Answers, Protocol, PUBLISHED};
use crate::commands::ui::{Interrupt, Outcome, Ui};
use crate::ggml::{peak_host_bytes, Device, DeviceKind};

/// What to run.
pub struct Plan<'a> {
    /// GGUF files, or SHAPE:TYPE.
    pub models: &'a [String],
    pub devices: &'a [String],
    pub how: How,
}

#[derive(Serialize)]
struct Run {
    #[serde(flatten)]
    subject: Subject,
    #[serde(skip)]
    label: String,
    #[serde(skip)]
    device: String,
    #[serde(skip)]
    on_cpu: bool,
    #[serde(flatten)]
    answers: Answers,
    peak_device_bytes: Option<usize>,
    peak_host_bytes: Option<u64>,
}

/// Whether all devices gave the same tokens for a model.
#[derive(Serialize)]
struct Agreement {
    model: String,
    devices: Vec<String>,
    same_tokens: bool,
    repeats: bool,
}

/// How many times as fast one run is as another.
#[derive(Serialize)]
struct Ratio {
    of: String,
    over: String,
    tokens_per_second: f64,
    prompt_tokens_per_second: f64,
}

#[derive(Serialize)]
struct Output {
    protocol: Protocol,
    reps: usize,
    seed: u64,
    runs: Vec<Run>,
    agreement: Vec<Agreement>,
    ratios: Vec<Ratio>,
}

/// Runs the protocol on every model and device.
pub fn run(plan: &Plan, interrupt: Interrupt, ui: &Ui) -> anyhow::Result<Outcome> {
    let devices = match plan.devices {
        [] => vec![Device::best()?],
        names => names.iter().map(|n| Device::by_name(n)).collect::<Result<_, _>>()?,
    };
    let n = plan.models.len() * devices.len();
    let bar = ui.progress("test", (n * (1 + plan.how.reps)) as u64);
    let mut runs = Vec::new();
    for model in plan.models {
        let source = Source::named(model, ui)?;
        for device in &devices {
            bar.message(format!("{model} on {}", device.name()));
            runs.push(measure(model, &source, device, plan.how, (interrupt, ui), &mut || bar.inc(1))?);
        }
    }
    drop(bar);
    let of = |model: &String| {
        runs.iter().filter(|r| r.label == *model).map(|r| (r.device.as_str(), &r.answers)).collect()
    };
    let agreement: Vec<Agreement> = plan.models.iter().map(|m| Agreement::of(m, of(m))).collect();
    let outcome = Agreement::outcome(&agreement, plan.how.exact.exact);
    let output = Output {
        protocol: PUBLISHED,
        reps: plan.how.reps,
        seed: plan.how.seed,
        agreement,
        ratios: ratios(&runs),
        runs,
    };
    if ui.json() {
        ui.result(&output)?;
    } else {
        text(&output, ui)?;
    }
    Ok(outcome)
}

fn measure(
    label: &str,
    source: &Source,
    device: &Device,
    how: How,
    (interrupt, ui): (Interrupt, &Ui),
    done: &mut dyn FnMut(),
) -> anyhow::Result<Run> {
    let session = Session::open(source, device, how, interrupt, ui)?;
    let answers = bench::answer(&session.model, &PUBLISHED, &session.config, &mut || {
        session.look();
        done();
    })?;
    Ok(Run {
        label: label.into(),
        device: device.name().into(),
        on_cpu: device.kind() == DeviceKind::Cpu,
        answers,
        peak_device_bytes: session.peak_device_bytes(),
        peak_host_bytes: peak_host_bytes(),
        subject: session.subject,
    })
}

impl Agreement {
    fn of(model: &str, answers: Vec<(&str, &Answers)>) -> Self {
        Self {
            model: model.into(),
            devices: answers.iter().map(|(device, _)| (*device).to_owned()).collect(),
            same_tokens: answers.windows(2).all(|w| w[0].1.tokens_sha256 == w[1].1.tokens_sha256),
            repeats: answers.iter().all(|(_, a)| a.repeats),
        }
    }

    /// Where exact arithmetic was asked for, which promises the same tokens, they have to be the same.
    fn outcome(all: &[Self], exact: bool) -> Outcome {
        match exact && all.iter().any(|a| !a.same_tokens || !a.repeats) {
            true => Outcome::CheckFailed,
            false => Outcome::Done,
        }
    }
}

/// Every device over the CPU, and every TQ1_0 over its TQ2_0.
fn ratios(runs: &[Run]) -> Vec<Ratio> {
    let ratio = |a: &Run, b: &Run| Ratio {
        of: format!("{} on {}", a.label, a.device),
        over: format!("{} on {}", b.label, b.device),
        tokens_per_second: a.answers.tokens_per_second.spread.median
            / b.answers.tokens_per_second.spread.median,
        prompt_tokens_per_second: a.answers.prompt_tokens_per_second.spread.median
            / b.answers.prompt_tokens_per_second.spread.median,
    };
    let mut found = Vec::new();
    for a in runs {
        let other = a.label.replace("tq1_0", "tq2_0");
        for b in runs {
            let over_cpu = a.label == b.label && !a.on_cpu && b.on_cpu;
            let over_type = a.device == b.device && a.label != b.label && b.label == other;
            if over_cpu || over_type {
                found.push(ratio(a, b));
            }
        }
    }
    found
}

fn text(output: &Output, ui: &Ui) -> anyhow::Result<()> {
    let mut headers = Subject::HEADERS.to_vec();
    headers.extend(["tok/s", "mean", "min", "max", "prompt tok/s", "first ms", "device MB", "host MB"]);
    let megabytes = |n: Option<u64>| n.map_or("-".into(), |n| format!("{:.0}", n as f64 / 1e6));
    let rows: Vec<Vec<String>> = output
        .runs
        .iter()
        .map(|run| {
            let a = &run.answers;
            let speed = a.tokens_per_second;
            let mut row = run.subject.cells();
            row.extend(
                [speed.spread.median, speed.mean, speed.spread.min, speed.spread.max]
                    .map(|x| format!("{x:.1}")),
            );
            row.push(format!("{:.1}", a.prompt_tokens_per_second.spread.median));
            row.push(format!("{:.1}", a.first_token_ms.spread.median));
            row.push(megabytes(run.peak_device_bytes.map(|n| n as u64)));
            row.push(megabytes(run.peak_host_bytes));
            row
        })
        .collect();
    ui.data(table(&headers, &rows))?;
    for a in &output.agreement {
        let repeats = if a.repeats { "every repetition gave the same tokens" } else { "repetitions differ" };
        let devices = match (a.devices.len(), a.same_tokens) {
            (1, _) => "",
            (_, true) => "; so did every device",
            (_, false) => "; the devices' tokens differ",
        };
        ui.line(format_args!("{}: {repeats}{devices}", a.model))?;
    }
    for r in &output.ratios {
        ui.line(format_args!(
            "{} over {}: {:.2} of the tokens a second, {:.2} at the prompt",
            r.of, r.over, r.tokens_per_second, r.prompt_tokens_per_second
        ))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::Figures;

    fn answers(tokens: &str, repeats: bool) -> Answers {
        let figures = Figures::of(&[1.0]);
        Answers {
            tokens_per_second: figures,
            prompt_tokens_per_second: figures,
            first_token_ms: figures,
            tokens_sha256: tokens.into(),
            repeats,
            flash_attention: false,
        }
    }

    #[test]
    fn tokens_that_differ_fail_in_exact_arithmetic_only() {
        let (a, b) = (answers("a", true), answers("b", true));
        let outcome = |devices, exact| Agreement::outcome(&[Agreement::of("m", devices)], exact);
        let same = || vec![("cpu", &a), ("vulkan0", &a)];
        let other = || vec![("cpu", &a), ("vulkan0", &a), ("vulkan1", &b)];
        assert_eq!([outcome(same(), false), outcome(same(), true)], [Outcome::Done; 2]);
        assert_eq!([outcome(other(), false), outcome(other(), true)], [Outcome::Done, Outcome::CheckFailed]);
        let restless = answers("a", false);
        assert_eq!(outcome(vec![("cpu", &restless)], true), Outcome::CheckFailed);
    }
}
