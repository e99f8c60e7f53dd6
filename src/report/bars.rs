//! Pictures of measurements: throughput and memory by model, type and device.

use std::collections::BTreeSet;

use super::chart::{BarSeries, Body, Chart};
use super::footprint::Footprint;
use super::format::Unit;
use super::input::{Kind, Measurement, ROWS};
use super::Range;

/// Every picture that `all` give.
pub(super) fn charts(all: &[Measurement]) -> Vec<Chart> {
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
        let grid = Grid::of(some, |m| m.tokens_per_second);
        charts.extend(grid.chart(id, (*title).into(), note, Unit::TokensPerSecond));
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
        let grid = Grid::of(some, |m| peak(m).map(Range::exactly));
        charts.extend(grid.chart(id, title.into(), note, Unit::Bytes));
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
    let mut names = [differing(Kind::Train), differing(Kind::Infer)];
    // How a device does it, not what it does: told only where nothing else tells two results of a device apart.
    let rest = |m: &Measurement| {
        let others = m.settings.iter().filter(|(name, _)| *name != ROWS).cloned().collect::<Vec<_>>();
        (m.model.clone(), m.dtype.clone(), m.device.clone(), m.device_description.clone(), others)
    };
    let alike = |a: &Measurement, b: &Measurement| rest(a) == rest(b) && setting(a, ROWS) != setting(b, ROWS);
    if !some.iter().enumerate().any(|(i, a)| some[..i].iter().any(|b| alike(a, b))) {
        names[0].retain(|name| *name != ROWS);
    }
    let label = |m: &&Measurement| {
        let mut label = format!("{} {}", m.model, m.dtype);
        for name in &names[usize::from(m.kind == Kind::Infer)] {
            let value = setting(m, name);
            match (*name, value.as_str()) {
                ("tokens a step", n) => label.push_str(&format!(", {n} tokens")),
                (ROWS, n) => label.push_str(&format!(", {n} rows at a time")),
                ("cooperative matrices", "off") => label.push_str(", no matrix cores"),
                // What is the usual needs no words.
                ("recompute" | "cooperative matrices", "on") | (_, "fast" | "full" | "llama-bench" | "") => {}
                ("arithmetic" | "layout" | "protocol", value) => label.push_str(&format!(", {value}")),
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

/// Figures by what was measured, a series for each device.
struct Grid {
    groups: Vec<String>,
    series: Vec<BarSeries>,
}

impl Grid {
    fn of(some: &[&Measurement], value: impl Fn(&Measurement) -> Option<Range>) -> Self {
        let (labels, devices) = (bar_labels(some), device_names(some));
        let groups = distinct(&labels);
        // Of a figure that was taken twice the last one stands.
        let cell = |group: &str, name: &str| {
            (0..some.len())
                .rev()
                .filter(|&i| labels[i] == group && devices[i] == name)
                .find_map(|i| value(some[i]))
        };
        let series = distinct(&devices)
            .into_iter()
            .map(|name| BarSeries { values: groups.iter().map(|group| cell(group, &name)).collect(), name });
        Self { series: series.collect(), groups }
    }

    /// The same over the CPU's figures, which are no longer there; none without a CPU.
    fn over_cpu(mut self) -> Option<Self> {
        let cpu = self.series.iter().position(|s| s.name.starts_with("cpu"))?;
        let cpu = self.series.remove(cpu);
        for s in &mut self.series {
            for (value, cpu) in s.values.iter_mut().zip(&cpu.values) {
                *value = value.zip(*cpu).map(|(new, old)| new.over(old));
            }
        }
        Some(self)
    }

    /// A picture without the groups and series of which nothing is known; none where that is all.
    fn chart(mut self, id: &'static str, title: String, note: String, unit: Unit) -> Option<Chart> {
        self.series.retain(|s| s.values.iter().any(Option::is_some));
        let known = |i: &usize| self.series.iter().any(|s| s.values[*i].is_some());
        let kept: Vec<usize> = (0..self.groups.len()).filter(known).collect();
        for s in &mut self.series {
            s.values = kept.iter().map(|&i| s.values[i]).collect();
        }
        let groups = kept.iter().map(|&i| self.groups[i].clone()).collect();
        let body = Body::Bars { unit, groups, series: self.series };
        (!kept.is_empty()).then_some(Chart { id, title, note, body })
    }
}

/// How many times as fast as the CPU each other device is, where both were measured.
fn against_cpu(what: &str, some: &[&Measurement]) -> Option<Chart> {
    let id = match what {
        "training" => "train-against-cpu",
        "prompts" => "prompt-against-cpu",
        _ => "generate-against-cpu",
    };
    let mut title = format!("{what} against the CPU");
    title[..1].make_ascii_uppercase();
    let note = "times the CPU's throughput: of the medians, with least and most".into();
    Grid::of(some, |m| m.tokens_per_second).over_cpu()?.chart(id, title, note, Unit::Times)
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

/// What models take, at inference and in training.
pub(super) fn footprints(all: &[Footprint]) -> Option<Chart> {
    let devices = all.iter().map(|f| f.device.as_str()).collect::<BTreeSet<_>>().len();
    let group = |f: &Footprint| match devices {
        1 => f.model.clone(),
        _ => format!("{} on {}", f.model, f.device),
    };
    let series = |name: &str, value: fn(&Footprint) -> Option<f64>| BarSeries {
        name: name.into(),
        values: all.iter().map(|f| value(f).map(Range::exactly)).collect(),
    };
    let series = vec![series("inference", Footprint::inference), series("training", |f| f.training)];
    let note = "buffers at inference (weights, cache, computing) and in training of an adapter";
    let grid = Grid { groups: all.iter().map(group).collect(), series };
    grid.chart("memory-of-models", "Memory of models".into(), note.into(), Unit::Bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn measurement(device: &str, tokens: &str, rows: &str) -> Measurement {
        Measurement::sample(device, &[("tokens a step", tokens), (ROWS, rows)], 1.0)
    }

    #[test]
    fn rows_are_named_where_they_alone_differ() {
        let (cpu, gpu) = (measurement("cpu", "4096", "1"), measurement("vulkan0", "4096", "8"));
        let (short, fewer) = (measurement("vulkan0", "512", "1"), measurement("vulkan0", "4096", "4"));
        let (a, b) = ("m TQ2_0, 4096 tokens", "m TQ2_0, 512 tokens");
        assert_eq!(labels(&[&cpu, &gpu, &short]), [a, a, b]);
        assert_eq!(labels(&[&cpu, &gpu]), ["m TQ2_0", "m TQ2_0"]);
        assert_eq!(labels(&[&gpu, &fewer]), ["m TQ2_0, 8 rows at a time", "m TQ2_0, 4 rows at a time"]);
    }
}
