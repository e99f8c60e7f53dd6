//! `train` and `eval` from outside, on the nano model: what they report, what they leave, and that a run that was
//! stopped and gone on with ends as one that was not.

mod common;

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use common::nano_model;
use common::program::{command as qvac, json, stderr};
use serde_json::Value;

/// A folder with the model and twenty labelled chats.
fn room() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    nano_model(dir.path());
    let chat = |i: usize| {
        let (label, word) = [("yes", "Yes"), ("no", "No")][i % 2];
        format!(
            r#"{{"messages":[{{"role":"user","content":"Is {i} even?"}},{{"role":"assistant","content":"{word}. It is."}}],"label":"{label}"}}"#
        )
    };
    fs::write(dir.path().join("chats.jsonl"), (0..20).map(chat).collect::<Vec<_>>().join("\n")).unwrap();
    dir
}

const TRAIN: &str = "train -m nano.gguf -d chats.jsonl --device cpu --threads 1 --chat-template chatml \
                     --seq-len 128 --batch-tokens 128 --lr 1e-3";

fn lines(path: &Path) -> usize {
    fs::read_to_string(path).map_or(0, |text| text.lines().count())
}

#[test]
fn train_and_eval_report_what_they_did() {
    let dir = room();
    let output =
        qvac(dir.path(), &format!("{TRAIN} --steps 3 --eval-data chats.jsonl --eval-every 2 -o run --json"));
    let report = json(&{ output }.output().unwrap());
    for key in ["final_loss", "eval_loss", "eval_accuracy", "tokens_per_second", "seconds"] {
        assert!(report[key].as_f64().is_some_and(|x| x.is_finite() && x >= 0.0), "`{key}` of {report}");
    }
    for key in ["peak_device_bytes", "peak_host_bytes", "n_params"] {
        assert!(report[key].as_u64().is_some_and(|n| n > 0), "`{key}` of {report}");
    }
    assert_eq!((&report["steps"], &report["finished"]), (&3.into(), &true.into()));
    assert_eq!((&report["adapter"], &report["run"]), (&"run/adapter.gguf".into(), &"run".into()));
    assert_eq!(report["device"], "cpu");
    // Three steps, and an evaluation after the second and at the end.
    assert_eq!(lines(&dir.path().join("run/metrics.jsonl")), 5);
    for file in ["config.json", "adapter.gguf", "checkpoints/step-3/state.json"] {
        assert!(dir.path().join("run").join(file).is_file(), "`{file}`");
    }

    let eval =
        "eval -m nano.gguf -d chats.jsonl --device cpu --threads 1 --chat-template chatml --seq-len 128";
    let with =
        json(&qvac(dir.path(), &format!("{eval} --adapter run/adapter.gguf --json")).output().unwrap());
    let base = json(&qvac(dir.path(), &format!("{eval} --json")).output().unwrap());
    assert_eq!(base["base"], Value::Null);
    for key in ["loss", "perplexity", "accuracy", "n_tokens", "n_labelled"] {
        assert!(with[key].is_number(), "`{key}` of {with}");
        assert_eq!(with["base"][key], base[key], "`{key}`: an adapter of zeros is the bare model");
    }
    assert_eq!(with["n_labelled"], 20);
    // The adapter file is f16, the engine at the end of training is f32.
    let (stored, trained) = (with["loss"].as_f64().unwrap(), report["eval_loss"].as_f64().unwrap());
    assert!((stored - trained).abs() < 1e-2 * trained, "{stored} and {trained}");
}

fn wait_for_lines(child: &mut Child, path: &Path, n: usize) {
    let start = Instant::now();
    while lines(path) < n {
        assert!(child.try_wait().unwrap().is_none(), "ended before {n} steps");
        assert!(start.elapsed() < Duration::from_secs(120), "too slow");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Stopped by Ctrl-C, then killed outright, then gone on with to the end: byte for byte the adapter of a straight run.
#[cfg(unix)]
#[test]
fn a_run_survives_ctrl_c_and_a_kill() {
    const STEPS: usize = 60;
    let dir = room();
    let metrics = dir.path().join("run/metrics.jsonl");
    let signal = |child: &Child, name: &str| {
        let done =
            Command::new("kill").args([name, &child.id().to_string()]).status().expect("`kill` is there");
        assert!(done.success());
    };
    let start = |rest: &str| {
        qvac(dir.path(), &format!("{TRAIN} --steps {STEPS} --save-every 5 --json -o run {rest}"))
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap()
    };
    let mut child = start("");
    wait_for_lines(&mut child, &metrics, 3);
    signal(&child, "-INT");
    let output = child.wait_with_output().unwrap();
    let report = json(&output);
    assert_eq!((&report["finished"], &report["adapter"]), (&false.into(), &Value::Null));
    assert!(stderr(&output).contains("steps of 128 tokens"), "{}", stderr(&output));
    let stopped = report["steps"].as_u64().unwrap() as usize;
    assert!((3..STEPS).contains(&stopped), "{stopped}");
    assert_eq!(lines(&metrics), stopped);

    let mut child = start("--resume");
    wait_for_lines(&mut child, &metrics, stopped + 8);
    signal(&child, "-KILL");
    assert!(!child.wait().unwrap().success());

    let report = json(&start("--resume").wait_with_output().unwrap());
    assert_eq!((&report["finished"], &report["steps"]), (&true.into(), &STEPS.into()));
    assert_eq!(lines(&metrics), STEPS, "no step is told twice");
    let straight = qvac(dir.path(), &format!("{TRAIN} --steps {STEPS} --json -o straight")).output().unwrap();
    json(&straight);
    let adapter = |run: &str| fs::read(dir.path().join(run).join("adapter.gguf")).unwrap();
    assert!(adapter("run") == adapter("straight"), "the two adapters differ");
}
