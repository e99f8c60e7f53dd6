//! Pictures of runs: figures over optimizer steps.

use super::chart::{Body, Chart, Mark, Series};
use super::format::Unit;
use super::input::{Line, Run};

/// Runs longer than this show the mean over some steps beside each step.
const SMOOTH_FROM: usize = 30;
/// Points of a line beyond these cannot be told apart in a picture.
const MAX_POINTS: usize = 800;

/// Every curve that `runs` have.
pub(super) fn charts(runs: &[Run]) -> Vec<Chart> {
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
