//! `bench` from outside, on the nano shape: what it reports, in numbers that can be so, and what it refuses.

mod common;

use std::path::Path;
use std::process::Output;

use common::nano_model;
use common::program::{command, json, stderr};
use serde_json::Value;

fn bench(dir: &Path, line: &str) -> Output {
    // Temporary models go there, so that one left behind is seen.
    let mut command = command(dir, &format!("bench {line}"));
    command.env("TMPDIR", dir).output().expect("the program starts")
}

fn files(dir: &Path) -> usize {
    std::fs::read_dir(dir).unwrap().count()
}

#[track_caller]
fn is_spread(value: &Value) {
    let [median, min, max] = ["median", "min", "max"].map(|key| value[key].as_f64().unwrap());
    assert!(0.0 < min && min <= median && median <= max && max.is_finite(), "{value}");
}

#[track_caller]
fn is_subject(report: &Value) {
    assert_eq!(report["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(report["device"], "cpu");
    for key in ["file_bytes", "n_params", "threads"] {
        assert!(report[key].as_u64().is_some_and(|n| n > 0), "`{key}` of {report}");
    }
    for key in ["name", "device_description", "type"] {
        assert!(report[key].as_str().is_some_and(|s| !s.is_empty()), "`{key}` of {report}");
    }
    for key in ["commit", "driver", "model"] {
        assert!(report.get(key).is_some(), "`{key}` of {report}");
    }
}

const TRAIN: &str = "train --device cpu --threads 1 --seq-len 32 --steps 4 --warmup 1";

#[test]
fn training_steps_are_measured() {
    let dir = tempfile::tempdir().unwrap();
    let report = json(&bench(
        dir.path(),
        &format!("{TRAIN} --shape nano --batch-tokens 64 --rank 4 --targets attn_q,ffn_up --parts 2 --json"),
    ));
    is_subject(&report);
    assert_eq!((&report["type"], &report["model"]), (&"tq2_0".into(), &Value::Null));
    assert_eq!(files(dir.path()), 0, "the temporary model is gone");
    let [test] = report["tests"].as_array().unwrap().as_slice() else { panic!("{report}") };
    is_spread(&test["step_ms"]);
    is_spread(&test["tokens_per_second"]);
    let median = |key: &str| test[key]["median"].as_f64().unwrap();
    let from_step = 64e3 / median("step_ms");
    assert!((median("tokens_per_second") / from_step - 1.0).abs() < 0.5, "{test}");
    assert_eq!((&test["test"], &test["batch_tokens"]), (&"train64".into(), &64.into()));
    assert_eq!((&test["steps"], &test["warmup"]), (&4.into(), &1.into()));
    for key in ["first_step_seconds", "first_loss", "last_loss"] {
        assert!(test[key].as_f64().is_some_and(|x| x.is_finite() && x > 0.0), "`{key}` of {test}");
    }
    assert!(test["last_loss"].as_f64() < test["first_loss"].as_f64(), "steps train: {test}");
    // Two blocks; A and B of a square matrix, and of one from 256 to 768.
    assert_eq!(test["n_trained"], 2 * 4 * (256 + 256 + 256 + 768));
    for key in ["peak_device_bytes", "peak_host_bytes"] {
        assert!(test[key].as_u64().is_some_and(|n| n > 0), "`{key}` of {test}");
    }
    for part in ["layout", "forward", "head", "backward", "optimizer"] {
        assert!(test["parts_ms"][part].as_f64().is_some_and(|ms| ms >= 0.0), "`{part}` of {test}");
    }

    // Cut into micro-batches or not, kept or computed again: the same work, so the same loss.
    let dir = tempfile::tempdir().unwrap();
    nano_model(dir.path());
    let losses = ["", "--micro-batch 2", "--recompute off"].map(|flags| {
        let line = format!("{TRAIN} -m nano.gguf --batch-tokens 64 --parts 0 --json {flags}");
        let test = json(&bench(dir.path(), &line))["tests"][0].clone();
        assert_eq!(test["parts_ms"], Value::Null);
        test["last_loss"].as_f64().unwrap()
    });
    assert!(losses.iter().all(|loss| (loss - losses[0]).abs() < 1e-4), "{losses:?}");
}

#[test]
fn inference_is_measured() {
    let dir = tempfile::tempdir().unwrap();
    nano_model(dir.path());
    let line = "infer -m nano.gguf --device cpu --threads 1 -p 16 -p 40 -n 5 --reps 2";
    let report = json(&bench(dir.path(), &format!("{line} --json")));
    is_subject(&report);
    assert_eq!((&report["type"], &report["model"]), (&"f16".into(), &"nano.gguf".into()));
    let tests = report["tests"].as_array().unwrap();
    let names: Vec<&str> = tests.iter().map(|t| t["test"].as_str().unwrap()).collect();
    assert_eq!(names, ["pp16", "pp40", "tg5"]);
    for test in tests {
        is_spread(&test["tokens_per_second"]);
        assert_eq!(test["reps"], 2);
        assert!(test["first_seconds"].as_f64().is_some_and(|s| s > 0.0), "{test}");
    }

    let output = bench(dir.path(), line);
    let text = String::from_utf8(output.stdout.clone()).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines.len(), 2 + 3, "{text}");
    assert!(lines[0].starts_with("| model") && lines[1].starts_with("| ---"), "{text}");
    assert!(lines.iter().all(|line| line.chars().count() == lines[0].chars().count()), "aligned:\n{text}");
    assert!(lines[4].contains("| tg5 |") || lines[4].contains(" tg5 |"), "{text}");
    assert!(output.stderr.is_empty(), "{}", stderr(&output));
}

#[test]
fn a_shape_with_a_path_is_made_once() {
    let dir = tempfile::tempdir().unwrap();
    let line = "infer --device cpu --threads 1 -m made.gguf -p 4 -n 0 --reps 1 --json --shape nano --type";
    let report = json(&bench(dir.path(), &format!("{line} tq1_0")));
    assert_eq!((&report["type"], &report["model"]), (&"tq1_0".into(), &"made.gguf".into()));
    let written = || std::fs::metadata(dir.path().join("made.gguf")).unwrap().modified().unwrap();
    let at = written();
    json(&bench(dir.path(), &format!("{line} tq1_0")));
    assert_eq!((written(), files(dir.path())), (at, 1));

    let output = bench(dir.path(), &format!("{line} tq2_0"));
    assert_eq!(output.status.code(), Some(2));
    assert_eq!(
        stderr(&output),
        "error: cannot measure inference of `made.gguf`\n  \
           caused by: `made.gguf` is another model: it is called `synthetic bitnet-nano (tq1_0, seed 42)`, expected \
         `synthetic bitnet-nano (tq2_0, seed 42)`\n\n\
         hint: leave out `--shape`, or give `--model` another name\n"
    );
}

#[test]
fn what_cannot_be_measured_exits_with_2() {
    let dir = tempfile::tempdir().unwrap();
    for (line, word) in [
        ("", "Usage: qvac-ft bench"),
        ("train", "--model"),
        ("infer", "--model"),
        ("train -m x --type tq2_0", "--shape"),
        ("train --shape nano --steps 0", "--steps"),
        ("infer --shape nano --reps 0", "--reps"),
        ("train --shape no-such-shape", "no shape is called `no-such-shape`"),
        ("train --shape nano --type q9", "q9"),
        ("train --shape nano --batch-tokens 100", "hint: pass `--batch-tokens 512`"),
        ("train --shape nano --targets attn_x", "attn_x"),
        ("train --shape nano --device vulkan99", "no device named `vulkan99`"),
        ("infer --shape nano --device vulkan99", "no device named `vulkan99`"),
        ("infer --shape nano -p 0 -n 0", "nothing is left to measure"),
        ("train -m missing.gguf --device cpu", "error: cannot measure training of `missing.gguf`"),
        ("infer -m missing.gguf --device cpu", "error: cannot measure inference of `missing.gguf`"),
        ("train --shape nano --seq-len 4096 --device cpu", "--seq-len 2048"),
    ] {
        let output = bench(dir.path(), line);
        assert_eq!(output.status.code(), Some(2), "{line}: {}", stderr(&output));
        assert!(output.stdout.is_empty(), "{line}");
        assert!(stderr(&output).contains(word), "{line}: {}", stderr(&output));
    }
    assert_eq!(files(dir.path()), 0, "nothing is left behind");
}

#[test]
fn answers_are_measured_by_the_published_protocol() {
    let dir = tempfile::tempdir().unwrap();
    nano_model(dir.path());
    let line = "infer nano.gguf bitnet-nano:tq1_0 bitnet-nano:tq2_0 --devices cpu --threads 1 --reps 2";
    let report = json(&bench(dir.path(), &format!("{line} --json")));
    let protocol = &report["protocol"];
    assert_eq!(
        (&protocol["n_prompt"], &protocol["n_ctx"], &protocol["n_generate"]),
        (&13.into(), &512.into(), &256.into())
    );
    assert_eq!((&protocol["flash_attention"], &report["seed"]), (&false.into(), &42.into()));
    let runs = report["runs"].as_array().unwrap();
    assert_eq!(runs.len(), 3);
    for run in runs {
        is_subject(run);
        for key in ["tokens_per_second", "prompt_tokens_per_second", "first_token_ms"] {
            is_spread(&run[key]);
            assert!(run[key]["mean"].as_f64().is_some_and(|x| x > 0.0), "`{key}` of {run}");
        }
        assert_eq!(run["tokens_sha256"].as_str().map(str::len), Some(64));
    }
    for agreement in report["agreement"].as_array().unwrap() {
        assert_eq!((&agreement["repeats"], &agreement["same_tokens"]), (&true.into(), &true.into()));
    }
    let [ratio] = report["ratios"].as_array().unwrap().as_slice() else { panic!("{report}") };
    assert_eq!(ratio["of"], "bitnet-nano:tq1_0 on cpu");
    assert!(ratio["tokens_per_second"].as_f64().is_some_and(|x| x > 0.0));
    assert_eq!(files(dir.path()), 1, "made models are gone");

    let text =
        String::from_utf8(bench(dir.path(), "infer -m nano.gguf --device cpu --threads 1 --reps 1").stdout)
            .unwrap();
    assert!(text.contains("nano.gguf: every repetition gave the same tokens"), "{text}");
}

#[test]
fn memory_is_measured_by_loading() {
    let dir = tempfile::tempdir().unwrap();
    nano_model(dir.path());
    let line = "memory nano.gguf bitnet-tiny:tq2_0 --device cpu --threads 1 --context 64 --seq-len 32";
    let report = json(&bench(dir.path(), &format!("{line} --json")));
    let models = report["models"].as_array().unwrap();
    assert_eq!(models.len(), 2);
    for model in models {
        assert_eq!(model["failed"].as_array().map(Vec::len), Some(0), "{model}");
        let inference =
            |key: &str| model["inference"][key].as_u64().unwrap_or_else(|| panic!("`{key}` of {model}"));
        let file = model["file_bytes"].as_u64().unwrap();
        // The file has a table and a tokenizer, too; a CPU may repack what it multiplies.
        assert!(inference("weights") > file / 2 && inference("weights") < 2 * file, "{model}");
        assert!(inference("compute") > 0);
        let training = &model["training"];
        assert_eq!(training["allocated_bytes"], training["predicted_bytes"], "{model}");
    }
    // Two blocks of keys and values in f16, 256 wide, for 256 tokens: libllama makes its caches multiples of that.
    assert_eq!(models[0]["inference"]["kv"], 2 * 2 * 2 * 256 * 256);
    assert_eq!(files(dir.path()), 1, "nothing is left behind");

    let output = bench(dir.path(), "memory no-such-shape:tq2_0 --device cpu");
    assert_eq!(output.status.code(), Some(2), "{}", stderr(&output));
}
