//! What a report tells in rows: results first, then with what they were got.

use serde::Serialize;
use serde_json::Value;

use super::footprint::{Footprint, Kernel};
use super::format::{count, duration, Unit};
use super::input::{is_exact, Kind, Measurement, Run};
use super::Input;

/// A table; cells are text as it is read.
#[derive(Clone, Debug, Serialize)]
pub struct Table {
    pub title: String,
    pub headers: Vec<String>,
    pub rows: Vec<Vec<String>>,
    /// Columns from here on are figures.
    pub figures_from: usize,
}

/// A figure that stands by itself at the top.
#[derive(Clone, Debug, Serialize)]
pub struct Tile {
    pub name: &'static str,
    pub value: String,
    pub note: String,
}

/// What a report of one run shows first.
pub fn tiles(input: &Input) -> Vec<Tile> {
    let [run] = input.runs.as_slice() else { return Vec::new() };
    let mut tiles = Vec::new();
    let mut tile = |name, value: Option<String>, note: String| {
        tiles.extend(value.map(|value| Tile { name, value, note }));
    };
    let last = run.steps.iter().rev().find_map(|l| l.loss);
    let first = run.steps.iter().find_map(|l| l.loss);
    let from = first.map_or(String::new(), |x| format!("{} at the first step", Unit::Plain.text(x)));
    tile("Training loss", last.map(|x| Unit::Plain.text(x)), from);
    let last_evaluated = run.evaluations.last();
    tile(
        "Held-out loss",
        last_evaluated.and_then(|l| l.eval_loss).map(|x| Unit::Plain.text(x)),
        String::new(),
    );
    let accuracy = last_evaluated.and_then(|l| l.eval_accuracy);
    tile("Held-out accuracy", accuracy.map(|x| Unit::Percent.text(x)), String::new());
    let speed = run.tokens_per_second();
    tile("Throughput", speed.map(|x| Unit::TokensPerSecond.text(x)), "without padding".into());
    let [device, host] = run.peaks();
    tile("Device memory", device.map(|x| Unit::Bytes.text(x)), "at most".into());
    if device.is_none() {
        tile("Memory", host.map(|x| Unit::Bytes.text(x)), "of the process, at most".into());
    }
    let time = (run.seconds() > 0.0).then(|| duration(run.seconds()));
    tile("Time", time, format!("on {} steps", count(run.steps.len() as u64)));
    tiles
}

/// All tables that `input` gives.
pub fn tables(input: &Input) -> Vec<Table> {
    let mut tables = Vec::new();
    if !input.runs.is_empty() {
        tables.push(columns("Runs", &input.runs, RESULTS));
        tables.push(columns("Settings of the runs", &input.runs, SETTINGS));
    }
    for (kind, title) in [(Kind::Train, "Measured training"), (Kind::Infer, "Measured inference")] {
        let some: Vec<&Measurement> = input.measurements.iter().filter(|m| m.kind == kind).collect();
        if !some.is_empty() {
            tables.push(measured(title, kind, &some));
        }
    }
    if !input.measurements.is_empty() {
        tables.push(subjects(&input.measurements));
    }
    if !input.footprints.is_empty() {
        tables.push(footprints(&input.footprints));
    }
    if !input.kernels.is_empty() {
        tables.push(kernels(&input.kernels));
    }
    tables.retain(|t| !t.rows.is_empty());
    tables
}

type Row = (&'static str, fn(&Run) -> Option<String>);

const RESULTS: &[Row] = &[
    ("steps", |r| r.steps.last().map(|l| count(l.step))),
    ("training loss, last step", |r| r.steps.iter().rev().find_map(|l| l.loss).map(|x| Unit::Plain.text(x))),
    ("held-out loss, last", |r| r.evaluations.last()?.eval_loss.map(|x| Unit::Plain.text(x))),
    ("held-out loss, least", |r| {
        let best = r.evaluations.iter().filter_map(|l| Some((l.eval_loss?, l.step)));
        let (loss, step) = best.min_by(|a, b| a.0.total_cmp(&b.0))?;
        Some(format!("{} (step {})", Unit::Plain.text(loss), count(step)))
    }),
    ("held-out accuracy, last", |r| r.evaluations.last()?.eval_accuracy.map(|x| Unit::Percent.text(x))),
    ("tokens", |r| {
        let tokens: u64 = r.steps.iter().filter_map(|l| l.tokens).sum();
        (tokens > 0).then(|| count(tokens))
    }),
    ("time on steps", |r| (r.seconds() > 0.0).then(|| duration(r.seconds()))),
    ("throughput", |r| r.tokens_per_second().map(|x| Unit::TokensPerSecond.text(x))),
    ("device memory, at most", |r| r.peaks()[0].map(|x| Unit::Bytes.text(x))),
    ("process memory, at most", |r| r.peaks()[1].map(|x| Unit::Bytes.text(x))),
];

const SETTINGS: &[Row] = &[
    ("model", |r| text(&r.config["model"])),
    ("model hash", |r| hash(&r.config["model_hash"])),
    ("data", |r| text(&r.config["data"])),
    ("data hash", |r| hash(&r.config["data_hash"])),
    ("adapter", |r| {
        let targets = list(&r.config["targets"])?;
        Some(format!("rank {}, alpha {}, on {targets}", r.config["rank"], r.config["alpha"]))
    }),
    ("learning rate", |r| {
        let schedule = &r.config["schedule"];
        let lr = Unit::Rate.text(schedule["lr"].as_f64()?);
        let decay = text(&schedule["decay"]).unwrap_or_default().to_lowercase();
        Some(format!("{lr}, {decay}, {} steps of warmup", schedule["warmup"]))
    }),
    ("tokens a step", |r| r.config["batch_tokens"].as_u64().map(count)),
    ("tokens a row", |r| r.config["seq_len"].as_u64().map(count)),
    ("rows at a time", |r| r.config["how"]["micro_batch_rows"].as_u64().map(count)),
    ("packing", |r| text(&r.config["pack"])),
    ("recompute", |r| text(&r.config["how"]["recompute"])),
    ("backward limbs", |r| text(&r.config["backward_limbs"])),
    ("arithmetic", |r| is_exact(&r.config["exact"]).then(|| "exact".into())),
    ("seed", |r| text(&r.config["seed"])),
    ("device", |r| {
        let how = &r.config["how"];
        Some(format!("{} ({})", text(&how["device"])?, text(&how["device_description"])?.trim()))
    }),
    ("driver", |r| text(&r.config["how"]["build"]["driver"])),
    ("CPU threads", |r| text(&r.config["how"]["threads"])),
    ("qvac-ft", |r| text(&r.config["version"])),
    ("llama.cpp", |r| text(&r.config["how"]["build"]["llama_cpp"])),
    ("patches", |r| hash(&r.config["how"]["build"]["patch_hash"])),
];

/// Rows of which no run knows anything are left out.
fn columns(title: &str, runs: &[Run], rows: &[Row]) -> Table {
    let cells = rows.iter().map(|(name, value)| {
        let mut row = vec![(*name).to_owned()];
        row.extend(runs.iter().map(|r| value(r).unwrap_or_default()));
        row
    });
    Table {
        title: title.into(),
        headers: std::iter::once(String::new()).chain(runs.iter().map(|r| r.name.clone())).collect(),
        rows: cells.filter(|row| row[1..].iter().any(|c| !c.is_empty())).collect(),
        figures_from: usize::MAX,
    }
}

fn text(value: &Value) -> Option<String> {
    match value {
        Value::Null => None,
        Value::String(text) => Some(text.clone()),
        Value::Bool(on) => Some(if *on { "on" } else { "off" }.into()),
        value => Some(value.to_string()),
    }
}

/// The beginning of a hash: enough to tell two apart.
fn hash(value: &Value) -> Option<String> {
    value.as_str().map(|h| h.chars().take(12).collect())
}

fn list(value: &Value) -> Option<String> {
    Some(value.as_array()?.iter().filter_map(Value::as_str).collect::<Vec<_>>().join(", "))
}

fn measured(title: &str, kind: Kind, some: &[&Measurement]) -> Table {
    // A setting that all share is no column.
    let mut settings: Vec<&str> = Vec::new();
    let value = |m: &Measurement, name: &str| {
        m.settings.iter().find(|s| s.0 == name).map(|s| s.1.clone()).unwrap_or_default()
    };
    for (name, _) in some.iter().flat_map(|m| &m.settings) {
        if !settings.contains(name) && some.iter().any(|m| value(m, name) != value(some[0], name)) {
            settings.push(name);
        }
    }
    let mut headers: Vec<String> = ["model", "type", "device", "test"].map(String::from).to_vec();
    headers.extend(settings.iter().map(|s| (*s).to_owned()));
    let figures_from = headers.len();
    headers.extend(["tok/s", "min", "max"].map(String::from));
    if kind == Kind::Train {
        headers.push("ms a step".into());
    }
    headers.extend(["device memory", "process memory"].map(String::from));
    let bytes = |b: Option<f64>| b.map_or("-".into(), |b| Unit::Bytes.text(b));
    let row = |m: &&Measurement| {
        let mut row = vec![m.model.clone(), m.dtype.clone(), m.device.clone(), m.test.clone()];
        row.extend(settings.iter().map(|s| value(m, s)));
        let speed = |of: fn(&super::Range) -> f64| {
            m.tokens_per_second.as_ref().map_or("-".into(), |r| Unit::TokensPerSecond.bare(of(r)))
        };
        row.extend([speed(|r| r.median), speed(|r| r.min), speed(|r| r.max)]);
        if kind == Kind::Train {
            row.push(m.step_ms.map_or("-".into(), |r| Unit::Milliseconds.bare(r.median)));
        }
        row.extend([bytes(m.peak_device_bytes), bytes(m.peak_host_bytes)]);
        row
    };
    Table { title: title.into(), headers, rows: some.iter().map(row).collect(), figures_from }
}

fn footprints(all: &[Footprint]) -> Table {
    let bytes = |b: Option<f64>| b.map_or("-".into(), |b| Unit::Bytes.text(b));
    let row = |f: &Footprint| {
        let mut row = vec![f.model.clone(), f.device.clone()];
        row.extend((0..3).map(|i| bytes(f.parts.map(|parts| parts[i]))));
        row.extend([bytes(f.inference()), bytes(f.training)]);
        row
    };
    let headers = ["model", "device", "weights", "cache", "computing", "inference", "training"];
    Table {
        title: "Memory of models".into(),
        headers: headers.map(String::from).to_vec(),
        rows: all.iter().map(row).collect(),
        figures_from: 2,
    }
}

fn kernels(all: &[Kernel]) -> Table {
    let row = |k: &Kernel| {
        let gops = k.gops.map_or("-".into(), |g| format!("{g:.0}"));
        let figures = [format!("{:.1}", k.microseconds), gops, format!("{:.0}", k.gbytes)];
        [k.kernel.clone(), k.shape.clone(), k.device.clone()].into_iter().chain(figures).collect()
    };
    Table {
        title: "Kernels".into(),
        headers: ["kernel", "shape", "device", "us", "GOP/s", "GB/s"].map(String::from).to_vec(),
        rows: all.iter().map(row).collect(),
        figures_from: 3,
    }
}

/// On what was measured, with what: a row for each that differs.
fn subjects(all: &[Measurement]) -> Table {
    const FIELDS: &[(&str, &str)] = &[
        ("device", "device"),
        ("what it is", "device_description"),
        ("driver", "driver"),
        ("CPU threads", "threads"),
        ("qvac-ft", "version"),
        ("commit", "commit"),
        ("llama.cpp", "llama_cpp"),
        ("patches", "patch_hash"),
    ];
    let cell = |m: &Measurement, field: &str| match field {
        "patch_hash" => hash(&m.subject.get(field).cloned().unwrap_or_default()).unwrap_or_default(),
        field => m.subject.get(field).and_then(text).unwrap_or_default(),
    };
    let mut rows: Vec<Vec<String>> = Vec::new();
    for m in all {
        let row: Vec<String> = FIELDS.iter().map(|(_, field)| cell(m, field)).collect();
        if !rows.contains(&row) {
            rows.push(row);
        }
    }
    let kept: Vec<usize> = (0..FIELDS.len()).filter(|&i| rows.iter().any(|row| !row[i].is_empty())).collect();
    Table {
        title: "Measured with".into(),
        headers: kept.iter().map(|&i| FIELDS[i].0.to_owned()).collect(),
        rows: rows.iter().map(|row| kept.iter().map(|&i| row[i].clone()).collect()).collect(),
        figures_from: usize::MAX,
    }
}
