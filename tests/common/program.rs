//! The program, run in a folder with a line of flags.

use std::path::Path;
use std::process::{Command, Output, Stdio};

use assert_cmd::cargo::CommandCargoExt as _;
use serde_json::Value;

/// Ready to run, with `line` cut where it has spaces.
pub fn command(dir: &Path, line: &str) -> Command {
    let mut command = Command::cargo_bin("qvac-ft").expect("the program is built");
    command.args(line.split_whitespace()).current_dir(dir).stdin(Stdio::null()).env_remove("RUST_BACKTRACE");
    command
}

/// What came of it.
pub fn run(dir: &Path, line: &str) -> Output {
    command(dir, line).output().expect("the program starts")
}

pub fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// The result of a run that exited with 0.
#[track_caller]
pub fn json(output: &Output) -> Value {
    assert_eq!(output.status.code(), Some(0), "{}", stderr(output));
    serde_json::from_slice(&output.stdout).expect("one JSON object")
}
