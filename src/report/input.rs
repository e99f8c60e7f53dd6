//! What a report is made of: folders of runs, and files of results, one JSON object or one a line.

use std::fs;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::{Map, Value};

use super::error::{Error, Result};
use super::footprint::{self, Footprint, Kernel};
use super::Range;

/// Everything that was named.
#[derive(Clone, Debug, Default)]
pub struct Input {
    pub runs: Vec<Run>,
    pub measurements: Vec<Measurement>,
    pub footprints: Vec<Footprint>,
    pub kernels: Vec<Kernel>,
}

/// A training run, from its folder.
#[derive(Clone, Debug)]
pub struct Run {
    pub name: String,
    pub path: PathBuf,
    /// `config.json`; null where there is none.
    pub config: Value,
    pub steps: Vec<Line>,
    pub evaluations: Vec<Line>,
}

/// A line of `metrics.jsonl`, of a step or of an evaluation.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Line {
    pub step: u64,
    pub loss: Option<f64>,
    pub lr: Option<f64>,
    pub grad_norm: Option<f64>,
    pub tokens: Option<u64>,
    pub seconds: Option<f64>,
    pub tokens_per_second: Option<f64>,
    pub device_bytes: Option<f64>,
    pub host_bytes: Option<f64>,
    pub eval_loss: Option<f64>,
    pub eval_accuracy: Option<f64>,
}

/// Which command measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    Train,
    Infer,
}

/// The setting that a device's room decides.
pub(super) const ROWS: &str = "rows at a time";

/// One test of one result of `bench`.
#[derive(Clone, Debug)]
pub struct Measurement {
    pub path: PathBuf,
    pub kind: Kind,
    /// The model's name: of a random one, its shape's.
    pub model: String,
    pub dtype: String,
    pub device: String,
    pub device_description: String,
    /// `train512`, `pp512`, `tg256`.
    pub test: String,
    /// What else decides the figure, by name; the same names in the same order for one kind.
    pub settings: Vec<(&'static str, String)>,
    pub tokens_per_second: Option<Range>,
    pub step_ms: Option<Range>,
    pub peak_device_bytes: Option<f64>,
    pub peak_host_bytes: Option<f64>,
    /// Milliseconds of a step's parts.
    pub parts: Vec<(String, f64)>,
    /// The whole result but for its tests.
    pub subject: Map<String, Value>,
}

#[cfg(test)]
impl Measurement {
    /// One of training, for tests; a tenth less to a tenth more.
    pub fn sample(device: &str, settings: &[(&'static str, &str)], speed: f64) -> Self {
        Self {
            path: "x.json".into(),
            kind: Kind::Train,
            model: "m".into(),
            dtype: "TQ2_0".into(),
            device: device.into(),
            device_description: "a device".into(),
            test: "train512".into(),
            settings: settings.iter().map(|&(name, value)| (name, value.to_owned())).collect(),
            tokens_per_second: Some(Range { median: speed, min: 0.9 * speed, max: 1.1 * speed }),
            step_ms: None,
            peak_device_bytes: Some(100.0),
            peak_host_bytes: None,
            parts: Vec::new(),
            subject: Map::new(),
        }
    }
}

impl Input {
    /// Reads all of `paths`.
    pub fn read(paths: &[PathBuf]) -> Result<Self> {
        let mut input = Self::default();
        for path in paths {
            if path.is_dir() {
                input.runs.push(Run::read(path)?);
                continue;
            }
            let text = read(path)?;
            let objects = objects(&text, path)?;
            match objects.first() {
                None => return Err(Error::Empty { path: path.clone() }),
                Some(first) if first["step"].is_u64() => {
                    input.runs.push(Run::read(path.parent().unwrap_or(Path::new(".")))?);
                }
                Some(_) => objects.iter().try_for_each(|object| input.add(object, path))?,
            }
        }
        name_apart(&mut input.runs);
        Ok(input)
    }

    /// Takes a result in.
    fn add(&mut self, object: &Value, path: &Path) -> Result<()> {
        if let Some(all) = footprint::footprints(object, path) {
            self.footprints.extend(all?);
        } else if let Some(all) = footprint::kernels(object, path) {
            self.kernels.extend(all?);
        } else {
            self.measurements.extend(measurements(object, path)?);
        }
        Ok(())
    }

    /// Whether there are runs only.
    pub fn is_runs(&self) -> bool {
        self.measurements.is_empty() && self.footprints.is_empty() && self.kernels.is_empty()
    }
}

impl Run {
    /// Reads a run's folder.
    pub fn read(folder: &Path) -> Result<Self> {
        let path = folder.join("metrics.jsonl");
        if !path.is_file() {
            return Err(Error::NoRun { path: folder.into() });
        }
        let text = read(&path)?;
        let mut run = Self {
            name: String::new(),
            path: folder.into(),
            config: Value::Null,
            steps: Vec::new(),
            evaluations: Vec::new(),
        };
        for (n, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
            let line: Line = match serde_json::from_str(line) {
                Ok(line) => line,
                // The line that is being written, or that a kill cut short.
                Err(_) if !text.ends_with('\n') && n + 1 == text.lines().count() => continue,
                Err(source) => return Err(Error::Metrics { path, line: n + 1, source }),
            };
            if line.eval_loss.is_some() {
                run.evaluations.push(line);
            } else if line.loss.is_some() {
                run.steps.push(line);
            }
        }
        if run.steps.is_empty() && run.evaluations.is_empty() {
            return Err(Error::Empty { path });
        }
        let config = folder.join("config.json");
        if config.is_file() {
            run.config = serde_json::from_str(&read(&config)?).map_err(|source| Error::NotJson {
                path: config,
                line: source.line(),
                source,
            })?;
        }
        Ok(run)
    }

    /// Bytes that the run was seen to hold on its device, and in main memory, at most.
    pub fn peaks(&self) -> [Option<f64>; 2] {
        let most = |of: fn(&Line) -> Option<f64>| self.steps.iter().filter_map(of).reduce(f64::max);
        [most(|l| l.device_bytes), most(|l| l.host_bytes)]
    }

    /// Tokens per second over all steps.
    pub fn tokens_per_second(&self) -> Option<f64> {
        let tokens: u64 = self.steps.iter().filter_map(|l| l.tokens).sum();
        let seconds = self.seconds();
        (seconds > 0.0 && tokens > 0).then(|| tokens as f64 / seconds)
    }

    /// Seconds spent on steps.
    pub fn seconds(&self) -> f64 {
        self.steps.iter().filter_map(|l| l.seconds).sum()
    }
}

/// Runs are called as their folders are, with as many of the folders above as tell them apart.
fn name_apart(runs: &mut [Run]) {
    let names = |run: &Run| -> Vec<String> {
        let path = fs::canonicalize(&run.path).unwrap_or_else(|_| run.path.clone());
        path.components().rev().map(|c| c.as_os_str().to_string_lossy().into_owned()).collect()
    };
    let all: Vec<Vec<String>> = runs.iter().map(names).collect();
    for (i, run) in runs.iter_mut().enumerate() {
        let clash =
            |n: usize| all.iter().enumerate().any(|(j, o)| j != i && o[..n.min(o.len())] == all[i][..n]);
        let n = (1..=all[i].len()).find(|&n| !clash(n)).unwrap_or(1);
        run.name = all[i][..n].iter().rev().cloned().collect::<Vec<_>>().join("/");
    }
}

fn read(path: &Path) -> Result<String> {
    fs::read_to_string(path).map_err(|source| Error::Io { action: "read", path: path.into(), source })
}

/// The JSON objects of a file: one, over as many lines as it likes, or one a line.
fn objects(text: &str, path: &Path) -> Result<Vec<Value>> {
    let mut found = Vec::new();
    let mut stream = serde_json::Deserializer::from_str(text).into_iter::<Value>();
    loop {
        match stream.next() {
            None => return Ok(found),
            Some(Ok(value @ Value::Object(_))) => found.push(value),
            Some(Ok(_)) => return Err(Error::Unknown { path: path.into() }),
            Some(Err(source)) => {
                return Err(Error::NotJson { path: path.into(), line: source.line(), source })
            }
        }
    }
}

fn measurements(object: &Value, path: &Path) -> Result<Vec<Measurement>> {
    // Several models or devices in one call.
    let runs = match &object["runs"] {
        Value::Array(runs) => runs.clone(),
        _ => vec![object.clone()],
    };
    let mut found = Vec::new();
    for run in runs {
        let Value::Object(mut subject) = run else { continue };
        let tests = match subject.remove("tests") {
            Some(Value::Array(tests)) => tests,
            None if subject.contains_key("prompt_tokens_per_second") => {
                answered(&subject, &object["protocol"])
            }
            _ => return Err(Error::Unknown { path: path.into() }),
        };
        for test in tests {
            found.push(measurement(&subject, &test, path)?);
        }
    }
    if found.is_empty() {
        return Err(Error::Empty { path: path.into() });
    }
    Ok(found)
}

/// The two figures of a run of the published protocol, as tests.
fn answered(run: &Map<String, Value>, protocol: &Value) -> Vec<Value> {
    let test = |prefix: &str, n: &str, usual: u64, figure: &str| {
        let n = protocol[n].as_u64().unwrap_or(usual);
        serde_json::json!({
            "test": format!("{prefix}{n}"),
            "protocol": "published",
            "tokens_per_second": run[figure],
            "peak_device_bytes": run.get("peak_device_bytes"),
            "peak_host_bytes": run.get("peak_host_bytes"),
        })
    };
    vec![
        test("pp", "n_prompt", 13, "prompt_tokens_per_second"),
        test("tg", "n_generate", 256, "tokens_per_second"),
    ]
}

fn measurement(subject: &Map<String, Value>, test: &Value, path: &Path) -> Result<Measurement> {
    let malformed = |field: &str| Error::Malformed { path: path.into(), field: field.into() };
    let text = |field: &str| {
        subject.get(field).and_then(Value::as_str).map(str::to_owned).ok_or_else(|| malformed(field))
    };
    let range = |field: &str| -> Result<Option<Range>> {
        let Some(value) = test.get(field).filter(|v| !v.is_null()) else { return Ok(None) };
        let range = Range::deserialize(value).ok().filter(Range::is_sound);
        range.map(Some).ok_or_else(|| malformed(field))
    };
    let name = test["test"].as_str().ok_or_else(|| malformed("test"))?;
    let kind = if name.starts_with("train") { Kind::Train } else { Kind::Infer };
    let shown = |key: &str| match &test[key] {
        Value::Null => None,
        Value::Bool(on) => Some(if *on { "on" } else { "off" }.to_owned()),
        Value::String(text) => Some(text.clone()),
        Value::Array(items) => {
            Some(items.iter().map(|i| i.as_str().unwrap_or_default()).collect::<Vec<_>>().join(","))
        }
        value => Some(value.to_string()),
    };
    const OF_TRAINING: &[(&str, &str)] = &[
        ("tokens a step", "batch_tokens"),
        ("tokens a row", "seq_len"),
        (ROWS, "micro_batch_rows"),
        ("recompute", "recompute"),
        ("limbs", "backward_limbs"),
        ("rank", "rank"),
        ("targets", "targets"),
    ];
    let mut settings = Vec::new();
    if kind == Kind::Train {
        settings.extend(OF_TRAINING.iter().filter_map(|(name, key)| Some((*name, shown(key)?))));
    }
    // What a result does not say is as it was before it could be otherwise.
    match kind {
        Kind::Train => settings.push(("layout", shown("layout").unwrap_or_else(|| "full".into()))),
        Kind::Infer => settings.push(("protocol", shown("protocol").unwrap_or_else(|| "llama-bench".into()))),
    }
    let exact = test.get("exact").or(subject.get("exact"));
    settings.push(("arithmetic", if exact.is_some_and(is_exact) { "exact" } else { "fast" }.into()));
    // `scripts/figures` switches cooperative matrices off by the environment, and says so in the case's name.
    let nocoop = subject.get("case").and_then(Value::as_str).is_some_and(|case| case.ends_with("-nocoop"));
    settings.push(("cooperative matrices", if nocoop { "off" } else { "on" }.into()));
    let mut parts: Vec<(String, f64)> = Vec::new();
    if let Some(all) = test["parts_ms"].as_object() {
        for part in ["layout", "forward", "head", "backward", "optimizer"] {
            parts.extend(all.get(part).and_then(Value::as_f64).map(|ms| (part.to_owned(), ms)));
        }
    }
    Ok(Measurement {
        path: path.into(),
        kind,
        model: short_name(&text("name")?),
        dtype: text("type")?.to_uppercase(),
        device: text("device")?,
        device_description: text("device_description")?,
        test: name.to_owned(),
        settings,
        tokens_per_second: range("tokens_per_second")?,
        step_ms: range("step_ms")?,
        peak_device_bytes: test["peak_device_bytes"].as_f64(),
        peak_host_bytes: test["peak_host_bytes"].as_f64(),
        parts,
        subject: subject.clone(),
    })
}

/// A flag, or the version of the exact arithmetic.
pub fn is_exact(value: &Value) -> bool {
    value.as_bool().unwrap_or(value.is_number())
}

/// `synthetic bitnet-1b (tq2_0, seed 42)` is `bitnet-1b`: its type stands beside it.
fn short_name(name: &str) -> String {
    let short =
        name.strip_prefix("synthetic ").and_then(|rest| rest.split_once(" (")).map(|(shape, _)| shape);
    short.unwrap_or(name).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_random_model_is_called_by_its_shape() {
        assert_eq!(short_name("synthetic bitnet-1b (tq2_0, seed 42)"), "bitnet-1b");
        assert_eq!(short_name("SmolLM2 135M"), "SmolLM2 135M");
    }

    #[test]
    fn runs_of_one_name_are_told_apart() {
        let run = |path: &str| Run {
            name: String::new(),
            path: path.into(),
            config: Value::Null,
            steps: Vec::new(),
            evaluations: Vec::new(),
        };
        let mut runs = [run("/x/a/run"), run("/x/b/run"), run("/x/c")];
        name_apart(&mut runs);
        assert_eq!(runs.map(|r| r.name), ["a/run", "b/run", "c"]);
    }

    #[test]
    fn a_file_holds_one_object_or_many() {
        let path = Path::new("x.json");
        assert_eq!(objects("{\n\"a\": 1\n}", path).unwrap().len(), 1);
        assert_eq!(objects("{\"a\":1}\n{\"a\":2}\n", path).unwrap().len(), 2);
        assert!(matches!(objects("[1]", path), Err(Error::Unknown { .. })));
        assert!(matches!(objects("{\"a\":1}\n{\"a\":", path), Err(Error::NotJson { line: 2, .. })));
    }

    #[test]
    fn a_damaged_spread_is_named() {
        let subject =
            serde_json::json!({ "name": "m", "type": "f16", "device": "cpu", "device_description": "a CPU" });
        let test = serde_json::json!({ "test": "pp8", "tokens_per_second": { "median": 5.0, "min": 6.0, "max": 7.0 } });
        let error = measurement(subject.as_object().unwrap(), &test, Path::new("x.json")).unwrap_err();
        assert!(matches!(error, Error::Malformed { field, .. } if field == "tokens_per_second"));
    }
}
