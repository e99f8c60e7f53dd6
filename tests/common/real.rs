//! A real model and what trains it, for the tests that need one.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use assert_cmd::cargo::CommandCargoExt as _;
use serde_json::Value;

/// Least factor between the best and the second-best token's probability, where two builds have to agree. Kernels were seen to
/// move log-probabilities by up to 0.2 in the base model; this is 1.1.
pub const LEAST_MARGIN: f64 = 3.0;

/// The questions of `examples/` are the data.
pub fn examples() -> PathBuf {
    root().join("examples/yes-no-maybe")
}

pub fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// SmolLM2-135M-Instruct. Nothing is fetched here: without it the test fails and says how to get it.
pub fn smollm2() -> PathBuf {
    installed("scripts/models")
}

/// What `script --installed` prints: the path of something that was fetched before.
pub fn installed(script: &str) -> PathBuf {
    let output = Command::new(root().join(script)).arg("--installed").output().expect("`bash` is there");
    assert!(
        output.status.success(),
        "{}`scripts/bootstrap --ci` fetches what the tests need",
        String::from_utf8_lossy(&output.stderr)
    );
    PathBuf::from(String::from_utf8(output.stdout).expect("UTF-8").trim_end())
}

/// Runs the program with `--json` and gives back its object.
pub fn qvac(args: &[&str]) -> Value {
    let output = Command::cargo_bin("qvac-ft")
        .expect("the program is built")
        .args(args)
        .args(["--json", "--device", "cpu"])
        .stdin(Stdio::null())
        .output()
        .expect("the program starts");
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{args:?}\n{said}");
    serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{args:?}: {e}\n{said}"))
}

/// What the stock llama.cpp answers to a request of `scripts/stock/generate.mjs`.
pub fn stock(request: &Value) -> Value {
    let folder = installed("scripts/stock/install");
    let output = Command::new(folder.join("run-node"))
        .arg(root().join("scripts/stock/generate.mjs"))
        .arg(&folder)
        .arg(request.to_string())
        .output()
        .expect("node starts");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).expect("one JSON object")
}

pub fn text(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}

/// The prompt that ChatML makes of a question, to be continued as plain text.
pub fn chatml(question: &str) -> String {
    format!("<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n")
}
