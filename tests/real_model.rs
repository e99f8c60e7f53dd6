//! A real model, SmolLM2-135M-Instruct, on the CPU: the loss falls, held-out data gets likelier, a run can be gone on
//! with, and the adapter that comes out does in libllama what it did in training.

mod common;

use std::path::Path;

use common::real::{chatml, examples, qvac, smollm2, text};
use serde_json::Value;

fn losses(run: &Path) -> Vec<f64> {
    std::fs::read_to_string(run.join("metrics.jsonl"))
        .expect("a run has metrics")
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).expect("JSON"))
        .filter_map(|record| record["loss"].as_f64())
        .collect()
}

/// The first `n` records of one of the example's files.
fn some(name: &str, n: usize, to: &Path) {
    let all = std::fs::read_to_string(examples().join(name)).expect("reads");
    let some: Vec<&str> = all.lines().take(n).collect();
    std::fs::write(to, some.join("\n")).expect("writes");
}

#[test]
fn training_makes_held_out_answers_likelier() {
    let model = smollm2();
    let dir = tempfile::tempdir().unwrap();
    let (train, eval, run) = (dir.path().join("t.jsonl"), dir.path().join("e.jsonl"), dir.path().join("run"));
    some("train.jsonl", 48, &train);
    some("eval.jsonl", 12, &eval);
    let shared = ["-m", text(&model), "--chat-template", "chatml", "--seq-len", "256"];
    let mut args = vec!["train", "-d", text(&train), "-o", text(&run)];
    args.extend(shared);
    args.extend(["--batch-tokens", "256", "--lr", "2e-3", "--lr-schedule", "constant", "--steps", "8"]);
    let report = qvac(&args);
    assert_eq!((&report["steps"], &report["finished"]), (&8.into(), &true.into()));
    let losses = losses(&run);
    assert_eq!(losses.len(), 8);
    let mean = |part: &[f64]| part.iter().sum::<f64>() / part.len() as f64;
    assert!(mean(&losses[6..]) < mean(&losses[..2]) - 0.5, "{losses:?}");

    let adapter = run.join("adapter.gguf");
    let mut args = vec!["eval", "-d", text(&eval), "--adapter", text(&adapter)];
    args.extend(shared);
    let report = qvac(&args);
    let (with, base) = (report["loss"].as_f64().unwrap(), report["base"]["loss"].as_f64().unwrap());
    assert!(with < base - 0.5, "{report}");
    assert_eq!(report["n_labelled"], 12);
    assert!(report["accuracy"].as_f64().unwrap() >= 0.0);
    assert!((report["perplexity"].as_f64().unwrap() - with.exp()).abs() < 1e-9 * with.exp());

    // The training data's answers begin with one of three words; those of the bare model do not.
    let answer = |adapter: &[&str]| {
        let prompt = chatml("Do cats chase mice?");
        let mut args = vec!["generate", "-m", text(&model), "--raw", "--temp", "0", "-n", "4", "-p", &prompt];
        args.extend(adapter);
        qvac(&args)["text"].as_str().unwrap().to_owned()
    };
    let (bare, trained) = (answer(&[]), answer(&["--adapter", text(&adapter)]));
    let a_word = |text: &str| ["Yes.", "No.", "Maybe."].iter().any(|w| text.starts_with(w));
    assert!(a_word(&trained) && !a_word(&bare), "with adapter: {trained:?}, without: {bare:?}");
}
