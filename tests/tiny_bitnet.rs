//! The model and the adapters that come with the repository: they load, here and in a llama.cpp that this project did not
//! build, answer the same every time, and do on held-out data what their cards say.

mod common;

use std::path::{Path, PathBuf};
use std::process::Command;

use assert_cmd::cargo::CommandCargoExt as _;
use common::real::{qvac, root, text};
use serde_json::Value;

/// What a repository can well carry.
const MOST_BYTES: u64 = 25_000_000;

/// Each is of the kind that one of the adapters answers.
const QUESTIONS: [&str; 2] = ["Make this a polite email: send the contract again", "Is the sea salty?"];
/// ggml's threads spin while they wait: beside other tests one is faster than two.
const THREADS: &str = "1";
const MAX_TOKENS: usize = 32;

/// An adapter and what its card claims, with room for the float kernels of other machines.
struct Claim {
    name: &'static str,
    data: &'static str,
    /// Most of the base model's loss that is left.
    loss: f64,
    /// Least accuracy, where the data has labels: chance is a third.
    accuracy: Option<f64>,
}

const CLAIMS: &[Claim] = &[
    Claim { name: "yes-no-maybe", data: "examples/yes-no-maybe/eval.jsonl", loss: 0.8, accuracy: Some(0.5) },
    Claim { name: "polite-email", data: "examples/polite-email/eval.jsonl", loss: 0.4, accuracy: None },
];

fn model() -> PathBuf {
    root().join("models/tiny-bitnet/tiny-bitnet-tq1_0.gguf")
}

fn adapters() -> Vec<PathBuf> {
    let entries = std::fs::read_dir(root().join("adapters")).expect("the folder is there");
    let folders = entries.map(|entry| entry.expect("entry").path()).filter(|path| path.is_dir());
    let mut found: Vec<PathBuf> = folders.map(|folder| folder.join("adapter.gguf")).collect();
    found.sort();
    assert!(found.len() >= CLAIMS.len(), "{found:?}");
    found
}

fn answer(question: &str, adapter: Option<&Path>, threads: &str) -> Value {
    let max_tokens = MAX_TOKENS.to_string();
    let model = model();
    let mut args = vec![
        "generate",
        "-m",
        text(&model),
        "--temp",
        "0",
        "-n",
        &max_tokens,
        "--threads",
        threads,
        "-p",
        question,
    ];
    args.extend(adapter.iter().flat_map(|path| ["--adapter", text(path)]));
    qvac(&args)
}

fn inspected(path: &Path) -> Value {
    let output =
        Command::cargo_bin("qvac-ft").unwrap().args(["inspect", text(path), "--json"]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).expect("JSON")
}

#[test]
fn the_model_is_a_small_ternary_bitnet() {
    let report = inspected(&model());
    assert_eq!(report["architecture"], "bitnet");
    assert!(report["bytes"].as_u64().unwrap() <= MOST_BYTES, "{report}");
    assert_eq!(
        (&report["chat_template"], &report["tokenizer"]["eos"]["text"]),
        (&true.into(), &"<|im_end|>".into())
    );
    let ternary = &report["ternary"];
    assert!((10e6..32e6).contains(&ternary["n_params"].as_f64().unwrap()), "{ternary}");
    // Every block of a tensor has the one scale that training used.
    assert_eq!(ternary["n_one_scale"], ternary["n_tensors"]);
    let types = report["types"].as_array().unwrap();
    let tq1_0 = types.iter().find(|t| t["type"] == "tq1_0").expect("TQ1_0");
    assert_eq!(tq1_0["n_params"], ternary["n_params"]);
}

#[test]
fn it_greets_in_english_and_says_the_same_each_time() {
    let first = answer("Hello!", None, "1");
    let said = first["text"].as_str().unwrap();
    assert!(["Hello", "Hi"].iter().any(|word| said.starts_with(word)), "{said:?}");
    assert_eq!(first["stop"], "end_of_generation", "{first}");
    for threads in ["1", "2"] {
        assert_eq!(answer("Hello!", None, threads)["tokens"], first["tokens"]);
    }
}

#[test]
fn adapters_do_what_their_cards_say() {
    let model = model();
    for claim in CLAIMS {
        let (adapter, data) =
            (root().join("adapters").join(claim.name).join("adapter.gguf"), root().join(claim.data));
        let report = qvac(&[
            "eval",
            "-m",
            text(&model),
            "-d",
            text(&data),
            "--adapter",
            text(&adapter),
            "--seq-len",
            "256",
            "--threads",
            THREADS,
        ]);
        let (with, base) = (report["loss"].as_f64().unwrap(), report["base"]["loss"].as_f64().unwrap());
        assert!(with < claim.loss * base, "{}: {report}", claim.name);
        if let Some(least) = claim.accuracy {
            assert!(report["accuracy"].as_f64().unwrap() >= least, "{}: {report}", claim.name);
        }
        println!("{}: loss {base:.3} -> {with:.3}, accuracy {}", claim.name, report["accuracy"]);
    }
}

#[test]
fn each_adapter_has_a_card_and_changes_answers() {
    for adapter in adapters() {
        let card = std::fs::read_to_string(adapter.with_file_name("README.md")).expect("a card");
        for part in ["Data", "Command", "Before", "After"] {
            assert!(card.contains(part), "`{}`: its card says nothing of `{part}`", adapter.display());
        }
        // One may well leave what it was not trained on as it was.
        let tokens = |question: &str, with: Option<&Path>| answer(question, with, THREADS)["tokens"].clone();
        let changed = |q: &&str| tokens(q, Some(adapter.as_path())) != tokens(q, None);
        assert!(QUESTIONS.iter().any(changed), "`{}` changes nothing", adapter.display());
    }
}

/// Float kernels differ between the builds: answers may part where two tokens were nearly as likely, and nowhere else.
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
#[test]
fn a_stock_llama_cpp_says_the_same_with_each_adapter() {
    use common::real::{chatml, stock, LEAST_MARGIN};
    use serde_json::json;

    let mut compared = 0;
    let paths = adapters();
    for adapter in std::iter::once(None).chain(paths.iter().map(Some)) {
        let prompts = QUESTIONS.map(chatml);
        let request = json!({"model": model(), "adapter": adapter, "prompts": prompts, "max_tokens": MAX_TOKENS, "threads": 1});
        let report = stock(&request);
        for (question, theirs) in QUESTIONS.iter().zip(report["answers"].as_array().unwrap()) {
            let ours = answer(question, adapter.map(PathBuf::as_path), THREADS);
            let list = |answer: &Value, key: &str| answer[key].as_array().unwrap().clone();
            assert_eq!(ours["n_prompt"].as_u64().unwrap() as usize, list(theirs, "prompt_tokens").len());
            let (a, b) = (list(&ours, "tokens"), list(theirs, "tokens"));
            let same = a.iter().zip(&b).take_while(|(a, b)| a == b).count();
            if same < a.len().max(b.len()) {
                let top = &theirs["top"][same];
                let margin = top[0].as_f64().unwrap() / top[1].as_f64().unwrap();
                assert!(
                    margin < LEAST_MARGIN,
                    "{adapter:?}, token {same}: {} {}",
                    ours["text"],
                    theirs["text"]
                );
            }
            println!("{adapter:?}: {same} of {} tokens", b.len());
            compared += same;
        }
    }
    assert!(compared > 30, "only {compared} tokens were compared");
}
