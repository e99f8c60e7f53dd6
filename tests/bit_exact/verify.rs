//! `verify` between the CPU and Vulkan: every operation of real graphs, logits, tokens, adapters.

use std::collections::BTreeSet;
use std::path::Path;

use serde_json::Value;

use super::common::device::vulkan;
use super::{each_model, models, qvac, with};

/// The report of a comparison that must find no difference.
fn verified(name: &str, model: &Path, tier: &str, device: &str) -> Value {
    // Spinning threads cost more than they save here; against itself the CPU needs two to be compared.
    let threads = if device == "cpu" { 2 } else { 1 };
    let line = format!(
        "verify -m {} --device {device} --against cpu --threads {threads} --tier {tier} --seq-len 32 --tokens 16 --steps 2 --json",
        model.display()
    );
    let output = qvac(model.parent().expect("a folder"), &line).output().expect("the program starts");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{name} {tier} on {device}: {stderr}");
    let report: Value = serde_json::from_slice(&output.stdout).expect("one JSON object");
    assert_eq!(report["fail"], 0, "{name} {tier}");
    eprintln!("{name} {tier} on {device}: {} pass, {} skipped", report["pass"], report["skip"]);
    report
}

/// Names of the checks that were held to be exact, and are.
fn exact(report: &Value) -> BTreeSet<String> {
    let checks = report["checks"].as_array().expect("a list");
    let held =
        checks.iter().filter(|c| c["class"] == "Exact" && c["status"] == "pass" && c["differing"] == 0);
    held.map(|c| format!("{} {}", c["kind"].as_str().unwrap(), c["name"].as_str().unwrap())).collect()
}

#[track_caller]
fn has(found: &BTreeSet<String>, wanted: &[&str]) {
    for name in wanted {
        assert!(found.contains(*name), "`{name}` is not among {found:?}");
    }
}

const TERNARY: [&str; 4] = ["op TQ_QUANTIZE", "op TQ_MUL_MAT", "op TQ_MUL_MAT_BACK", "op MUL_MAT"];
const FORWARD: [&str; 13] = [
    "op TQ_QUANTIZE",
    "op TQ_MUL_MAT",
    "op MUL_MAT",
    "op GET_ROWS",
    "op RMS_NORM",
    "op ROPE",
    "op ATTENTION",
    "op FLASH_ATTN_EXT",
    "op CROSS_ENTROPY_LOSS",
    "op LOW_RANK_ADD",
    "logits batch",
    "logits token",
    "tokens greedy",
];
const TRAINING: [&str; 9] = [
    "op ATTENTION_BACK",
    "op RMS_NORM_MUL_BACK",
    "op LOW_RANK_GRAD",
    "op CROSS_ENTROPY_LOSS_BACK",
    "op OUT_PROD",
    "op OPT_STEP_ADAMW",
    "adapter losses",
    "adapter parameters",
    "adapter adapter.gguf",
];

#[test]
fn t0_ternary_products() {
    let Some(device) = vulkan() else { return };
    for (name, model) in models().into_iter().skip(1).step_by(2) {
        with(&model, |model| has(&exact(&verified(name, model, "t0", device.name())), &TERNARY));
    }
}

/// All that T1 and T2 promise: T2's report has T1's.
#[test]
fn t1_and_t2_everything() {
    let Some(device) = vulkan() else { return };
    each_model(|name, model| {
        let report = verified(name, model, "t2", device.name());
        let found = exact(&report);
        has(&found, &FORWARD);
        has(&found, &TRAINING);
        assert_eq!((&report["skip"], found.contains("logits split")), (&0.into(), true));
    });
}

/// Without Vulkan there are still threads: two against one.
#[test]
fn t2_on_the_cpu_against_itself() {
    let (name, model) = models().pop().expect("there are models");
    with(&model, |model| {
        let found = exact(&verified(name, model, "t2", "cpu"));
        has(&found, &FORWARD);
        has(&found, &TRAINING);
    });
}
