//! An adapter trained here does the same in a llama.cpp that this project did not build: the prebuilt one of the npm
//! package `node-llama-cpp`, a newer release with the CPU kernels of its own choice.
//!
//! Float kernels differ between the two builds, so two tokens of nearly equal probability may change places. Training on
//! a few answers until they are known by heart leaves no such pair in them, so greedy answers are compared token for
//! token to their end; that no step was close is itself asserted.

#![cfg(all(target_os = "linux", target_arch = "x86_64"))]

mod common;

use common::real::{self, chatml, examples, qvac, smollm2, text, LEAST_MARGIN};
use serde_json::{json, Value};

/// Questions learnt by heart, of the first lines of the training data.
const LEARNT: usize = 5;
const MAX_TOKENS: usize = 40;

/// Greedy answers of the stock build, the last token's end of generation not among them.
fn stock(request: &Value) -> Vec<Value> {
    let report = real::stock(request);
    println!("stock llama.cpp {}", report["release"]);
    report["answers"].as_array().expect("answers").clone()
}

#[test]
fn a_stock_llama_cpp_says_the_same_with_our_adapter() {
    let model = smollm2();
    let dir = tempfile::tempdir().unwrap();
    let all = std::fs::read_to_string(examples().join("train.jsonl")).unwrap();
    let records: Vec<&str> = all.lines().take(LEARNT).collect();
    let data = dir.path().join("few.jsonl");
    std::fs::write(&data, records.join("\n")).unwrap();
    let run = dir.path().join("run");
    let report = qvac(&[
        "train",
        "-m",
        text(&model),
        "-d",
        text(&data),
        "-o",
        text(&run),
        "--chat-template",
        "chatml",
        "--seq-len",
        "256",
        "--batch-tokens",
        "256",
        "--steps",
        "24",
        "--lr",
        "3e-3",
        "--save-every",
        "0",
    ]);
    assert!(report["final_loss"].as_f64().unwrap() < 0.1, "not known by heart: {report}");
    let adapter = run.join("adapter.gguf");

    let prompts: Vec<String> = records
        .iter()
        .map(|record| {
            let record: Value = serde_json::from_str(record).unwrap();
            chatml(record["messages"][0]["content"].as_str().unwrap())
        })
        .collect();
    let request = |adapter: Option<&str>| json!({"model": model, "adapter": adapter, "prompts": prompts, "max_tokens": MAX_TOKENS, "threads": 2});
    let with = stock(&request(Some(text(&adapter))));
    let without = stock(&request(None));
    let mut compared = 0;
    for ((prompt, with), without) in prompts.iter().zip(&with).zip(&without) {
        let max_tokens = MAX_TOKENS.to_string();
        let ours = qvac(&[
            "generate",
            "-m",
            text(&model),
            "--adapter",
            text(&adapter),
            "--raw",
            "--temp",
            "0",
            "-p",
            prompt,
            "-n",
            &max_tokens,
        ]);
        for (i, top) in with["top"].as_array().unwrap().iter().enumerate() {
            let (first, second) = (top[0].as_f64().unwrap(), top[1].as_f64().unwrap());
            assert!(first > LEAST_MARGIN * second, "step {i} of {prompt:?} was close: {first} and {second}");
        }
        assert_eq!(
            ours["n_prompt"].as_u64().unwrap() as usize,
            with["prompt_tokens"].as_array().unwrap().len()
        );
        assert_eq!(ours["tokens"], with["tokens"], "{prompt:?}: {}", ours["text"]);
        assert_ne!(with["tokens"], without["tokens"], "{prompt:?}: the adapter changes nothing");
        compared += with["tokens"].as_array().unwrap().len();
    }
    println!("{compared} tokens compared");
    assert!(compared > 10 * LEARNT, "only {compared} tokens were compared");
}
