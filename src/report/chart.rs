//! Which pictures a report has, as data: what is on the axes and how it is called. `plot` draws them.

use std::collections::BTreeSet;

use super::format::Unit;
use super::input::{Kind, Line, Measurement, Run};
use super::{Input, Range};

/// Runs longer than this show the mean over some steps beside each step.
const SMOOTH_FROM: usize = 30;
/// Points of a line beyond these cannot be told apart in a picture.
const MAX_POINTS: usize = 800;

/// One picture.
#[derive(Clone, Debug)]
pub struct Chart {
    /// For file names: lower case, with hyphens.
    pub id: &'static str,
    pub title: String,
    /// Unit, and what the marks are.
    pub note: String,
    pub(super) body: Body,
}

#[derive(Clone, Debug)]
pub(super) enum Body {
    /// Over optimizer steps.
    Lines { unit: Unit, from_zero: bool, series: Vec<Series> },
    /// A bar for each group and series; whiskers from the least to the most.
    Bars { unit: Unit, groups: Vec<String>, series: Vec<BarSeries> },
    /// A bar for each group, its parts end to end.
    Stacked { unit: Unit, groups: Vec<String>, parts: Vec<(String, Vec<f64>)> },
}

#[derive(Clone, Debug)]
pub(super) struct Series {
    pub name: String,
    /// Place in the palette.
    pub color: usize,
    pub mark: Mark,
    pub points: Vec<(f64, f64)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mark {
    Line,
    /// In the background of a line.
    Faint,
    /// Joined points.
    Dots,
}

#[derive(Clone, Debug)]
pub(super) struct BarSeries {
    pub name: String,
    /// One for each group.
    pub values: Vec<Option<Range>>,
}

/// All pictures that `input` gives.
pub fn charts(input: &Input) -> Vec<Chart> {
    let runs = &input.runs;
    let mut charts = Vec::new();
    charts.extend(loss(runs));
    charts.extend(evaluated(runs));
    charts.extend(over_steps(runs, "learning-rate", "Learning rate", "", Unit::Rate, false, |l| l.lr));
    charts.extend(over_steps(
        runs,
        "gradient-norm",
        "Gradient norm",
        "before clipping",
        Unit::Plain,
        true,
        |l| l.grad_norm,
    ));
    let what = "tokens that are not padding, per second";
    charts.extend(over_steps(
        runs,
        "tokens-per-second",
        "Throughput",
        what,
        Unit::TokensPerSecond,
        true,
        |l| l.tokens_per_second,
    ));
    charts.extend(memory_of(runs));
    charts.extend(measured(&input.measurements));
    charts
}

/// The color of a run: of one alone, the first two tell training from evaluation.
fn lines(runs: &[Run], at: usize, what: &str, points: Vec<(f64, f64)>) -> Vec<Series> {
    let name = |suffix: &str| match (runs.len(), suffix) {
        (1, "") => what.to_owned(),
        (1, suffix) => format!("{what}, {suffix}"),
        (_, _) => runs[at].name.clone(),
    };
    if points.len() < SMOOTH_FROM {
        return vec![Series { name: name(""), color: at, mark: Mark::Line, points }];
    }
    let window = (points.len() / 20).clamp(2, 200);
    let smooth = smoothed(&points, window);
    let faint = if runs.len() == 1 { name("each step") } else { String::new() };
    vec![
        Series { name: faint, color: at, mark: Mark::Faint, points: thinned(points) },
        Series {
            name: name(&format!("mean of {window} steps")),
            color: at,
            mark: Mark::Line,
            points: thinned(smooth),
        },
    ]
}

fn loss(runs: &[Run]) -> Option<Chart> {
    let mut series = Vec::new();
    let mut evaluated = false;
    for (i, run) in runs.iter().enumerate() {
        let points = points(&run.steps, |l| l.loss);
        if !points.is_empty() {
            series.extend(lines(runs, i, "training", points));
        }
        let points = self::points(&run.evaluations, |l| l.eval_loss);
        if !points.is_empty() {
            evaluated = true;
            let (name, color) = match runs.len() {
                1 => ("held out".to_owned(), 1),
                _ => (String::new(), i),
            };
            series.push(Series { name, color, mark: Mark::Dots, points });
        }
    }
    if series.is_empty() {
        return None;
    }
    let note = match (runs.len() > 1, evaluated) {
        (true, true) => "nats per token over optimizer steps; dots: held-out data",
        _ => "nats per token over optimizer steps",
    };
    Some(Chart {
        id: "loss",
        title: "Loss".into(),
        note: note.into(),
        body: Body::Lines { unit: Unit::Plain, from_zero: false, series },
    })
}

fn evaluated(runs: &[Run]) -> Option<Chart> {
    let series: Vec<Series> = runs
        .iter()
        .enumerate()
        .map(|(i, run)| Series {
            name: if runs.len() == 1 { "held out".into() } else { run.name.clone() },
            color: if runs.len() == 1 { 1 } else { i },
            mark: Mark::Dots,
            points: points(&run.evaluations, |l| l.eval_accuracy),
        })
        .filter(|s| !s.points.is_empty())
        .collect();
    (!series.is_empty()).then(|| Chart {
        id: "accuracy",
        title: "Held-out accuracy".into(),
        note: "how often the right label is the likeliest, over optimizer steps".into(),
        body: Body::Lines { unit: Unit::Percent, from_zero: false, series },
    })
}

fn over_steps(
    runs: &[Run],
    id: &'static str,
    title: &str,
    what: &str,
    unit: Unit,
    from_zero: bool,
    value: Value,
) -> Option<Chart> {
    let mut series = Vec::new();
    for (i, run) in runs.iter().enumerate() {
        let points = points(&run.steps, value);
        if points.is_empty() {
            continue;
        }
        // A schedule has no noise to be smoothed.
        match unit {
            Unit::Rate => series.push(Series {
                name: run.name.clone(),
                color: i,
                mark: Mark::Line,
                points: thinned(points),
            }),
            _ => series.extend(lines(runs, i, "measured", points)),
        }
    }
    let note = [what, "over optimizer steps"].iter().filter(|s| !s.is_empty()).copied().collect::<Vec<_>>();
    (!series.is_empty()).then(|| Chart {
        id,
        title: title.into(),
        note: note.join(", "),
        body: Body::Lines { unit, from_zero, series },
    })
}

/// A figure of a step.
type Value = fn(&Line) -> Option<f64>;

fn memory_of(runs: &[Run]) -> Option<Chart> {
    let mut series = Vec::new();
    for (i, run) in runs.iter().enumerate() {
        let device = ("device", (|l| l.device_bytes) as Value);
        let process = ("process, in main memory", (|l| l.host_bytes) as Value);
        for (which, (what, value)) in [device, process].into_iter().enumerate() {
            let points = thinned(points(&run.steps, value));
            let (name, color, mark) = match runs.len() {
                1 => (what.to_owned(), which, Mark::Line),
                _ if which == 0 => (run.name.clone(), i, Mark::Line),
                _ => (String::new(), i, Mark::Faint),
            };
            if !points.is_empty() {
                series.push(Series { name, color, mark, points });
            }
        }
    }
    let note = match runs.len() {
        1 => "held after each optimizer step",
        _ => "held after each optimizer step; strong: on the device, faint: the process in main memory",
    };
    (!series.is_empty()).then(|| Chart {
        id: "memory",
        title: "Memory".into(),
        note: note.into(),
        body: Body::Lines { unit: Unit::Bytes, from_zero: true, series },
    })
}

fn points(lines: &[Line], value: Value) -> Vec<(f64, f64)> {
    let finite = |l: &Line| value(l).filter(|y| y.is_finite()).map(|y| (l.step as f64, y));
    lines.iter().filter_map(finite).collect()
}

/// Each point the mean of itself and those before it, `window` in all, fewer at the beginning.
fn smoothed(points: &[(f64, f64)], window: usize) -> Vec<(f64, f64)> {
    let mean = |i: usize| {
        let some = &points[(i + 1).saturating_sub(window)..=i];
        some.iter().map(|p| p.1).sum::<f64>() / some.len() as f64
    };
    points.iter().enumerate().map(|(i, p)| (p.0, mean(i))).collect()
}

/// Of a long line, the least and the most of each stretch, so that no peak is lost.
fn thinned(points: Vec<(f64, f64)>) -> Vec<(f64, f64)> {
    if points.len() <= MAX_POINTS {
        return points;
    }
    let stretch = points.len().div_ceil(MAX_POINTS / 2);
    let extremes = |some: &[(f64, f64)]| {
        let by = |a: &&(f64, f64), b: &&(f64, f64)| a.1.total_cmp(&b.1);
        let mut two: Vec<_> =
            [some.iter().min_by(by), some.iter().max_by(by)].into_iter().flatten().copied().collect();
        two.sort_by(|a, b| a.0.total_cmp(&b.0));
        two.dedup();
        two
    };
    points.chunks(stretch).flat_map(extremes).collect()
}

fn measured(all: &[Measurement]) -> Vec<Chart> {
    let mut charts = Vec::new();
    let of = |kind: Kind, prefix: &str| -> Vec<&Measurement> {
        all.iter().filter(|m| m.kind == kind && m.test.starts_with(prefix)).collect()
    };
    let kinds = [
        ("training", "Training throughput", "tokens of whole rows", "train-speed", of(Kind::Train, "")),
        ("prompts", "Prompt throughput", "tokens of a prompt", "prompt-speed", of(Kind::Infer, "pp")),
        ("generation", "Generation throughput", "generated tokens", "generate-speed", of(Kind::Infer, "tg")),
    ];
    for (_, title, what, id, some) in &kinds {
        let note = format!("{what} per second: median, with least and most");
        charts.extend(bars(id, title, note, Unit::TokensPerSecond, some, |m| m.tokens_per_second));
    }
    for (name, _, _, _, some) in &kinds {
        charts.extend(against_cpu(name, some));
    }
    for (name, _, _, _, some) in &kinds {
        let (id, title) = match *name {
            "training" => ("train-memory", "Memory of training"),
            "prompts" => ("prompt-memory", "Memory of prompts"),
            _ => ("generate-memory", "Memory of generation"),
        };
        // On a CPU the device's memory is part of the process's.
        let peak = |m: &Measurement| match m.device.as_str() {
            "cpu" => m.peak_host_bytes,
            _ => m.peak_device_bytes,
        };
        let note = "at most; on a GPU its own memory, on a CPU the whole process".to_owned();
        charts.extend(bars(id, title, note, Unit::Bytes, some, |m| peak(m).map(Range::exactly)));
    }
    charts.extend(step_parts(&kinds[0].4));
    charts
}

/// Names of what is measured, short: the model and its type, and of the rest what differs among those of one kind.
pub(super) fn labels(some: &[&Measurement]) -> Vec<String> {
    let setting = |m: &Measurement, name: &str| {
        m.settings.iter().find(|(n, _)| *n == name).map(|(_, v)| v.clone()).unwrap_or_default()
    };
    let differing = |kind: Kind| -> Vec<&'static str> {
        let of_kind = || some.iter().filter(|m| m.kind == kind);
        let mut names = Vec::new();
        for (name, _) in of_kind().flat_map(|m| &m.settings) {
            if !names.contains(name) && of_kind().map(|m| setting(m, name)).collect::<BTreeSet<_>>().len() > 1
            {
                names.push(*name);
            }
        }
        names
    };
    let names = [differing(Kind::Train), differing(Kind::Infer)];
    let label = |m: &&Measurement| {
        let mut label = format!("{} {}", m.model, m.dtype);
        for name in &names[usize::from(m.kind == Kind::Infer)] {
            let value = setting(m, name);
            match (*name, value.as_str()) {
                ("tokens a step", n) => label.push_str(&format!(", {n} tokens")),
                // What is the usual needs no words.
                ("recompute" | "cooperative matrices", "on") | (_, "fast" | "full" | "llama-bench" | "") => {}
                ("arithmetic" | "layout", value) => label.push_str(&format!(", {value}")),
                (name, value) => label.push_str(&format!(", {name} {value}")),
            }
        }
        label
    };
    some.iter().map(label).collect()
}

/// The same for a picture, whose title does not name the test.
fn bar_labels(some: &[&Measurement]) -> Vec<String> {
    let several = some.iter().any(|m| m.kind == Kind::Infer && m.test != some[0].test);
    let label = |(label, m): (String, &&Measurement)| match several {
        true => format!("{label}, {}", m.test),
        false => label,
    };
    labels(some).into_iter().zip(some).map(label).collect()
}

/// What a series of bars is called: the device, and what it is where two of a name are not the same.
fn device_names(some: &[&Measurement]) -> Vec<String> {
    let kinds: BTreeSet<(&str, &str)> =
        some.iter().map(|m| (m.device.as_str(), m.device_description.as_str())).collect();
    let twice = |name: &str| kinds.iter().filter(|(n, _)| *n == name).count() > 1;
    let name = |m: &&Measurement| match twice(&m.device) {
        true => format!("{} ({})", m.device, m.device_description),
        false => m.device.clone(),
    };
    some.iter().map(name).collect()
}

/// Things in the order in which they first come.
fn distinct(names: &[String]) -> Vec<String> {
    let mut seen = BTreeSet::new();
    names.iter().filter(|n| seen.insert(n.as_str())).cloned().collect()
}

fn bars(
    id: &'static str,
    title: &str,
    note: String,
    unit: Unit,
    some: &[&Measurement],
    value: impl Fn(&Measurement) -> Option<Range>,
) -> Option<Chart> {
    let (labels, devices) = (bar_labels(some), device_names(some));
    let (groups, names) = (distinct(&labels), distinct(&devices));
    // Of a figure that was taken twice the last one stands.
    let cell = |group: &str, name: &str| {
        (0..some.len())
            .rev()
            .filter(|&i| labels[i] == group && devices[i] == name)
            .find_map(|i| value(some[i]))
    };
    let series: Vec<BarSeries> = names
        .iter()
        .map(|name| BarSeries {
            name: name.clone(),
            values: groups.iter().map(|group| cell(group, name)).collect(),
        })
        .filter(|s| s.values.iter().any(Option::is_some))
        .collect();
    let keep: Vec<bool> = (0..groups.len()).map(|i| series.iter().any(|s| s.values[i].is_some())).collect();
    let kept = |i: &usize| keep[*i];
    let series: Vec<BarSeries> = series
        .into_iter()
        .map(|s| BarSeries { values: (0..groups.len()).filter(kept).map(|i| s.values[i]).collect(), ..s })
        .collect();
    let groups: Vec<String> = (0..groups.len()).filter(kept).map(|i| groups[i].clone()).collect();
    (!series.is_empty()).then(|| Chart {
        id,
        title: title.into(),
        note,
        body: Body::Bars { unit, groups, series },
    })
}

/// How many times as fast as the CPU each other device is, where both were measured.
fn against_cpu(what: &str, some: &[&Measurement]) -> Option<Chart> {
    let (labels, devices) = (bar_labels(some), device_names(some));
    let groups = distinct(&labels);
    let speed = |group: &str, name: &str| {
        (0..some.len())
            .rev()
            .filter(|&i| labels[i] == group && devices[i] == name)
            .find_map(|i| some[i].tokens_per_second)
    };
    let cpu = distinct(&devices).into_iter().find(|name| name.starts_with("cpu"))?;
    let mut series = Vec::new();
    for name in distinct(&devices).into_iter().filter(|name| *name != cpu) {
        let ratio = |group: &String| {
            let (new, old) = (speed(group, &name)?, speed(group, &cpu)?);
            Some(new.over(old))
        };
        series.push(BarSeries { values: groups.iter().map(ratio).collect(), name });
    }
    series.retain(|s| s.values.iter().any(Option::is_some));
    let kept: Vec<usize> =
        (0..groups.len()).filter(|&i| series.iter().any(|s| s.values[i].is_some())).collect();
    for s in &mut series {
        s.values = kept.iter().map(|&i| s.values[i]).collect();
    }
    let id = match what {
        "training" => "train-against-cpu",
        "prompts" => "prompt-against-cpu",
        _ => "generate-against-cpu",
    };
    let mut title = format!("{what} against the CPU");
    title[..1].make_ascii_uppercase();
    (!series.is_empty()).then(|| Chart {
        id,
        title,
        note: "times the CPU's throughput: of the medians, with least and most".into(),
        body: Body::Bars {
            unit: Unit::Times,
            groups: kept.iter().map(|&i| groups[i].clone()).collect(),
            series,
        },
    })
}

fn step_parts(some: &[&Measurement]) -> Option<Chart> {
    let some: Vec<&Measurement> = some.iter().filter(|m| !m.parts.is_empty()).copied().collect();
    let names = distinct(&some.iter().flat_map(|m| m.parts.iter().map(|p| p.0.clone())).collect::<Vec<_>>());
    let devices = device_names(&some);
    let several = distinct(&devices).len() > 1;
    let label = |(label, device): (String, &String)| match several {
        true => format!("{label}, {device}"),
        false => label,
    };
    let groups: Vec<String> = labels(&some).into_iter().zip(&devices).map(label).collect();
    // Shares, so that a slow device's bars do not hide a fast one's.
    let share = |m: &&Measurement, name: &String| {
        let all: f64 = m.parts.iter().map(|p| p.1).sum();
        m.parts.iter().find(|p| p.0 == *name).map_or(0.0, |p| p.1 / all.max(f64::MIN_POSITIVE))
    };
    let parts = names.iter().map(|n| (n.clone(), some.iter().map(|m| share(m, n)).collect())).collect();
    (!some.is_empty()).then(|| Chart {
        id: "step-parts",
        title: "Where a training step's time goes".into(),
        note: "shares of a step that was stopped between its parts".into(),
        body: Body::Stacked { unit: Unit::Percent, groups, parts },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_lines_keep_their_peaks() {
        let mut line: Vec<(f64, f64)> = (0..10_000).map(|i| (f64::from(i), 1.0)).collect();
        line[7_777].1 = 9.0;
        let thin = thinned(line);
        assert!(thin.len() <= MAX_POINTS, "{}", thin.len());
        assert!(thin.contains(&(7_777.0, 9.0)));
        assert!(thin.windows(2).all(|w| w[0].0 < w[1].0));
    }

    #[test]
    fn smoothing_is_a_mean_of_what_came_before() {
        let line = [(1.0, 1.0), (2.0, 3.0), (3.0, 5.0)];
        assert_eq!(smoothed(&line, 2), [(1.0, 1.0), (2.0, 2.0), (3.0, 4.0)]);
    }
}
