//! Training on Vulkan: which nodes are recorded together, and that the loss is what they give one by one. Op by op this is the
//! business of `tests/ops/quantized_rows.rs`.
//!
//! Whether ggml-vulkan fuses is decided once a process, so each run is a process of its own: the program's `bench train`.

mod common;

use std::collections::BTreeMap;
use std::process::{Command, Stdio};

use assert_cmd::cargo::CommandCargoExt as _;
use common::device;

/// How often each kind of dispatch was recorded in a graph.
type Dispatches = BTreeMap<String, usize>;

const STEPS: &str = "--shape nano --seq-len 32 --batch-tokens 32 --steps 1 --warmup 1 --parts 0";

/// The losses, and the tables of all graphs.
fn run(device: &str, options: &str, fused: bool) -> (String, Vec<Dispatches>) {
    let dir = tempfile::tempdir().unwrap();
    let mut command = Command::cargo_bin("qvac-ft").expect("the program is built");
    command.args(["bench", "train", "--device", device]).args(STEPS.split_whitespace());
    command.args(options.split_whitespace()).current_dir(dir.path()).stdin(Stdio::null());
    command.env("TMPDIR", dir.path()).env("GGML_VK_PERF_LOGGER", "1");
    if !fused {
        command.env("GGML_VK_DISABLE_FUSION", "1");
    }
    let output = command.output().expect("the program starts");
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{text}");
    let loss = text.rsplit_once("; loss ").unwrap_or_else(|| panic!("{text}")).1.to_owned();
    (loss, text.split("Vulkan Timings").skip(1).map(dispatches).collect())
}

/// Lines such as `RMS_NORM_MUL (256,1,1,1): 4 x 3.2 us = ...` of a table.
fn dispatches(table: &str) -> Dispatches {
    let mut counts = Dispatches::new();
    for line in table.lines() {
        let Some((before, after)) = line.split_once(": ") else { continue };
        let Some((count, _)) = after.split_once(" x ") else { continue };
        let name = before.split_whitespace().next().unwrap_or_default().to_owned();
        *counts.entry(name).or_default() += count.trim().parse::<usize>().unwrap_or(0);
    }
    counts
}

/// What goes over rows, as it is to be recorded in a graph that has `mark`.
fn assert_rows(what: &str, graph: &Dispatches, wanted: &[(&str, usize)]) {
    let rows = ["NORM", "GLU", "QUANTIZE", "ROPE_BACK"];
    let got: Dispatches = graph
        .iter()
        .filter(|(name, _)| rows.iter().any(|part| name.contains(part)))
        .map(|(name, &n)| (name.clone(), n))
        .collect();
    let wanted: Dispatches = wanted.iter().map(|&(name, n)| (name.to_owned(), n)).collect();
    assert_eq!(got, wanted, "{what}");
}

const FORWARD: [(&str, usize); 2] = [("RMS_NORM_MUL_QUANTIZE", 3), ("SWIGLU_RMS_NORM_MUL_QUANTIZE", 1)];

/// The gradient of a block's result comes from another graph, so that its quantization stands alone.
const BACKWARD: [(&str, usize); 5] = [
    ("TQ_QUANTIZE", 1),
    ("RMS_NORM_MUL_BACK_SWIGLU_BACK_QUANTIZE", 1),
    ("RMS_NORM_MUL_BACK_QUANTIZE", 1),
    ("RMS_NORM_MUL_BACK", 2),
    ("ROPE_BACK_QUANTIZE", 1),
];

#[test]
fn rows_are_quantized_where_they_are_made() {
    let Some(device) = device::vulkan() else { return }; // said aloud
    for (options, recompute) in [("--recompute on", true), ("--recompute off --backward-limbs 1", false)] {
        let (loss, graphs) = run(device.name(), options, true);
        let (loss_apart, _) = run(device.name(), options, false);
        assert_eq!(loss, loss_apart, "{options}");

        let is_back = |g: &&Dispatches| g.contains_key("ATTENTION_BACK");
        let forward = graphs.iter().rev().find(|g| g.contains_key("ATTENTION") && !is_back(g));
        assert_rows(&format!("{options}: forward"), forward.unwrap(), &FORWARD);
        // The last graph that goes back is the first block's, which has no gradient of its input.
        let backward = graphs.iter().rev().filter(is_back).nth(1).unwrap();
        let again = [("RMS_NORM_MUL_QUANTIZE", 3), ("SWIGLU_RMS_NORM_MUL", 1)];
        let again = again.iter().filter(|_| recompute);
        let wanted: Vec<_> = again.chain(&BACKWARD).copied().collect();
        assert_rows(&format!("{options}: backward"), backward, &wanted);
    }
}
