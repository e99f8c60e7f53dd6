//! `qvac-ft inspect`: what a model, an adapter or a run folder holds.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use serde_json::{json, Value};

use super::ui::{Outcome, Problem, Ui};
use crate::ggml::GgufFile;
use crate::model::{survey, AdapterFile, Hparams};
use crate::parallel;

/// Say what a model, an adapter or a run folder holds
#[derive(Debug, clap::Args)]
pub struct Args {
    /// A GGUF file, or the folder of a training run
    #[arg(value_name = "PATH")]
    path: PathBuf,
}

/// Looks at the path and prints what it found.
pub fn run(args: Args, ui: &Ui) -> anyhow::Result<Outcome> {
    let context = || format!("cannot inspect `{}`", args.path.display());
    let found = if args.path.is_dir() {
        run_folder(&args.path).with_context(context)?
    } else {
        gguf(&args.path, ui).with_context(context)?
    };
    if ui.json() {
        ui.result(&found)?;
    } else {
        ui.data(text(&found))?;
    }
    Ok(Outcome::Done)
}

fn gguf(path: &Path, ui: &Ui) -> anyhow::Result<Value> {
    let file = GgufFile::open(path)?;
    let mut found = json!({
        "kind": "model",
        "path": path,
        "bytes": file.len(),
        "gguf_version": file.version(),
        "name": file.get_str("general.name").ok().flatten(),
        "architecture": file.get_str("general.architecture").ok().flatten(),
    });
    let details = match AdapterFile::is_adapter(&file) {
        true => adapter(&file)?,
        false => model(&file, ui)?,
    };
    if let (Value::Object(found), Value::Object(details)) = (&mut found, details) {
        found.extend(details);
    }
    Ok(found)
}

fn adapter(file: &GgufFile) -> anyhow::Result<Value> {
    let adapter = AdapterFile::from_gguf(file)?;
    let layer = |t: &str| t.strip_prefix("blk.").and_then(|t| t.split('.').next()?.parse::<usize>().ok());
    let target = |t: &str| match layer(t) {
        Some(_) => t.split('.').nth(2).unwrap_or(t).to_owned(),
        None => t.to_owned(),
    };
    let layers: BTreeSet<usize> = adapter.pairs.iter().filter_map(|p| layer(&p.tensor)).collect();
    let targets: BTreeSet<String> = adapter.pairs.iter().map(|p| target(&p.tensor)).collect();
    let ranks: BTreeSet<usize> = adapter.pairs.iter().map(|p| p.rank()).collect();
    Ok(json!({
        "kind": "adapter",
        "base": adapter.base,
        "rank": adapter.rank(),
        "ranks": ranks,
        "alpha": decimal(adapter.alpha),
        "targets": targets,
        "n_layer": layers.len(),
        "n_pairs": adapter.pairs.len(),
        "n_params": adapter.n_params(),
        "types": survey::types(file),
    }))
}

fn model(file: &GgufFile, ui: &Ui) -> anyhow::Result<Value> {
    // A model that cannot be trained can still be looked at.
    let hparams = match Hparams::from_gguf(file) {
        Ok(hp) => json!({
            "n_vocab": hp.n_vocab,
            "n_ctx_train": hp.n_ctx_train,
            "n_embd": hp.n_embd,
            "n_layer": hp.n_layer,
            "n_head": hp.n_head,
            "n_head_kv": hp.n_head_kv,
            "n_embd_head": hp.n_embd_head,
            "n_ff": hp.n_ff,
            "rms_eps": decimal(hp.rms_eps),
            "rope_dims": hp.rope.n_dims,
            "rope_freq_base": decimal(hp.rope.freq_base),
            "rope_freq_scale": decimal(hp.rope.freq_scale),
            "rope_yarn": hp.rope.ext_factor != 0.0,
            "rope_freqs": file.tensor("rope_freqs.weight").is_some(),
        }),
        Err(e) => {
            ui.warn(format_args!("no sizes: {e}"));
            Value::Null
        }
    };
    let bar = ui.progress_bytes("look", 0);
    let ternary = survey::ternary(file, parallel::available(), &mut |done, total| {
        bar.set_len(total);
        bar.set(done);
    })?;
    drop(bar);
    let n_params: usize = file.tensors().iter().map(|t| t.n_elements()).sum();
    let number = |key: &str| file.get_u64(&format!("tokenizer.ggml.{key}")).ok().flatten();
    let tokens = file.get_strs("tokenizer.ggml.tokens").ok().flatten();
    let token = |key: &str| {
        let id = number(key)?;
        Some(json!({ "id": id, "text": tokens.and_then(|t| t.get(id as usize)) }))
    };
    Ok(json!({
        "hparams": hparams,
        "n_params": n_params,
        "n_tensors": file.tensors().len(),
        "tied_head": file.tensor("output.weight").is_none(),
        "types": survey::types(file),
        "ternary": ternary,
        "tokenizer": {
            "model": file.get_str("tokenizer.ggml.model").ok().flatten(),
            "pre": file.get_str("tokenizer.ggml.pre").ok().flatten(),
            "n_tokens": tokens.map(<[String]>::len),
            "bos": token("bos_token_id"),
            "eos": token("eos_token_id"),
            "eot": token("eot_token_id"),
            "add_bos": file.get_bool("tokenizer.ggml.add_bos_token").ok().flatten(),
        },
        "chat_template": file.get("tokenizer.chat_template").is_some(),
    }))
}

/// The f64 that prints like the f32: 1e-5, and not 9.999999747378752e-6.
fn decimal(value: f32) -> f64 {
    value.to_string().parse().unwrap_or(f64::NAN)
}

fn run_folder(dir: &Path) -> anyhow::Result<Value> {
    let config_path = dir.join("config.json");
    if !config_path.is_file() {
        let fact = format!("`{}` is not the folder of a run: it has no `config.json`", dir.display());
        return Err(Problem::new(fact, "pass a GGUF file, or what `qvac-ft train --out` named").into());
    }
    let text = fs::read_to_string(&config_path)
        .with_context(|| format!("cannot read `{}`", config_path.display()))?;
    let config: Value = serde_json::from_str(&text)
        .with_context(|| format!("`{}` is not valid JSON", config_path.display()))?;

    let (mut last, mut last_eval, mut n_steps) = (Value::Null, Value::Null, 0);
    if let Ok(metrics) = fs::read_to_string(dir.join("metrics.jsonl")) {
        // The last line of a run that was killed may be half written; it counts for nothing.
        for record in metrics.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok()) {
            if record.get("loss").is_some() {
                n_steps += 1;
                last = record;
            } else if record.get("eval_loss").is_some() {
                last_eval = record;
            }
        }
    }
    let mut checkpoints: Vec<u64> = fs::read_dir(dir.join("checkpoints"))
        .map(|entries| {
            let name = |e: fs::DirEntry| e.file_name().to_str()?.strip_prefix("step-")?.parse().ok();
            entries.flatten().filter_map(name).collect()
        })
        .unwrap_or_default();
    checkpoints.sort_unstable();
    let adapter = dir.join("adapter.gguf");
    Ok(json!({
        "kind": "run",
        "path": dir,
        "config": config,
        "n_steps": n_steps,
        "last_step": last,
        "last_eval": last_eval,
        "checkpoints": checkpoints,
        "adapter": adapter.is_file().then_some(adapter),
    }))
}

/// The same for people: one line per fact, indented below its heading.
fn text(found: &Value) -> String {
    let mut out = String::new();
    lines(found, 0, &mut out);
    out
}

fn lines(value: &Value, depth: usize, out: &mut String) {
    let indent = "  ".repeat(depth);
    let Value::Object(map) = value else { return };
    for (key, value) in map.iter().filter(|(_, v)| !v.is_null()) {
        let label = key.replace('_', " ");
        match value {
            Value::Object(token) if token.contains_key("id") => {
                let text = token["text"].as_str().unwrap_or_default();
                out.push_str(&format!("{indent}{label:<16} {} {text:?}\n", token["id"]));
            }
            Value::Object(_) => {
                out.push_str(&format!("{indent}{label}\n"));
                lines(value, depth + 1, out);
            }
            Value::Array(rows) if rows.first().is_some_and(Value::is_object) => {
                out.push_str(&format!("{indent}{label}\n"));
                for row in rows {
                    out.push_str(&format!("{indent}  {}\n", type_row(row)));
                }
            }
            Value::Array(items) => {
                let items: Vec<String> = items.iter().map(plain).collect();
                let items = if items.is_empty() { "none".into() } else { items.join(", ") };
                out.push_str(&format!("{indent}{label:<16} {items}\n"));
            }
            _ => out.push_str(&format!("{indent}{label:<16} {}\n", fact(key, value))),
        }
    }
}

fn type_row(row: &Value) -> String {
    let n = |key: &str| row[key].as_f64().unwrap_or_default();
    let name = row["type"].as_str().unwrap_or("?");
    format!(
        "{name:<8} {:>5} tensors {:>10.3} M values {:>10.1} MB",
        n("n_tensors"),
        n("n_params") / 1e6,
        n("bytes") / 1e6
    )
}

fn plain(value: &Value) -> String {
    match value {
        Value::String(s) => s.clone(),
        other => other.to_string(),
    }
}

fn fact(key: &str, value: &Value) -> String {
    match (key, value) {
        ("bytes", _) => format!("{:.1} MB", value.as_f64().unwrap_or_default() / 1e6),
        ("n_params", _) => format!("{:.3} M", value.as_f64().unwrap_or_default() / 1e6),
        ("zeros", _) => format!("{:.2} %", value.as_f64().unwrap_or_default() * 100.0),
        (_, Value::Bool(true)) => "yes".into(),
        (_, Value::Bool(false)) => "no".into(),
        _ => plain(value),
    }
}
