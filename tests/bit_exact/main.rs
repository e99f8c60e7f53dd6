//! The same bits (docs/exactness.md): tiers T0, T1 and T2 on the CPU and on Vulkan, whatever the threads, the micro-batches and
//! the kills; and the bits that were committed.
//!
//! `verify` compares devices, in a process of its own for each tier. What runs in this process is always exact.

#[path = "../common/mod.rs"]
mod common;
mod hashes;
mod kills;
mod training;
mod verify;

use std::path::Path;
use std::process::{Command, Stdio};

use assert_cmd::cargo::CommandCargoExt as _;
use common::numeric::{nano, write_model};
use qvac_ft::ggml::Dtype;
use qvac_ft::synth::{self, Family, Shape};

/// A model of each architecture, both ternary types, grouped queries, an output matrix of its own, and the wider shape.
fn models() -> Vec<(&'static str, synth::Config)> {
    let tiny = synth::find_shape("bitnet-tiny").expect("the shape for tests is there");
    let tiny = Shape { n_vocab: common::N_VOCAB, ..*tiny };
    let grouped = |config: synth::Config| synth::Config { n_head_kv: Some(2), ..config };
    vec![
        ("bitnet-tiny tq1_0", synth::Config { threads: 1, ..synth::Config::new(tiny, Dtype::TQ1_0, 7) }),
        ("bitnet tq2_0", nano(Family::Bitnet, Dtype::TQ2_0)),
        ("bitnet-b1.58 tq1_0", grouped(nano(Family::BitnetB158, Dtype::TQ1_0))),
        ("llama tq2_0", synth::Config { untied: true, ..grouped(nano(Family::Llama, Dtype::TQ2_0)) }),
    ]
}

/// Calls `check` with each model's name and file.
fn each_model(mut check: impl FnMut(&str, &Path)) {
    for (name, config) in models() {
        with(&config, |model| check(name, model));
    }
}

/// Calls `check` with the file of one model.
fn with(config: &synth::Config, check: impl FnOnce(&Path)) {
    let dir = tempfile::tempdir().expect("a folder");
    check(&write_model(config, dir.path()));
}

fn qvac(dir: &Path, line: &str) -> Command {
    let mut command = Command::cargo_bin("qvac-ft").expect("the program is built");
    command.args(line.split_whitespace()).current_dir(dir).stdin(Stdio::null()).env_remove("RUST_BACKTRACE");
    command
}
