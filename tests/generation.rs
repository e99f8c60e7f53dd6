//! Generation on Vulkan: nodes that are recorded as one dispatch, a product with its surroundings or a whole run of nodes, give
//! what they give one by one.

#[path = "common/device.rs"]
mod device;
#[path = "common/greedy.rs"]
mod greedy;

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Output;

use greedy::Case;
use qvac_ft::ggml::{DeviceKind, Dtype};
use qvac_ft::synth::Family;

/// Largest difference of a logit, of order 1. The products are exact, but the sums of norms and of attention have orders of
/// their own (a program's, and upstream's own fusions), and a rounding that crosses a step of the 8-bit activations
/// moves a value by 1/127 of the token's largest.
const TOLERANCE: f32 = 2e-2;

#[test]
#[ignore = "the other test runs it"]
fn child() {
    greedy::child(&device::vulkan().expect("the parent looked"), None);
}

struct Run {
    logits: Vec<f32>,
    /// How often each kind of dispatch was recorded, in the last graph.
    dispatches: BTreeMap<String, usize>,
}

/// What is recorded as one dispatch.
#[derive(Clone, Copy)]
enum Recorded {
    Nodes,
    Products,
    /// Runs of nodes, by one workgroup: on any device.
    ProgramAlone,
    /// By several that wait for each other and share a head's keys: one for each core, as is the default on devices that are known
    /// to have all of them at work at once. Of others software is one that can be told to.
    ProgramOnCores,
    /// By more workgroups than are at work at the same time.
    ProgramBeyondTheDevice,
}

/// `listed`: each dispatch is submitted and waited for by itself; else a graph goes to the device as it does for a user.
fn start(model: &Path, recorded: Recorded, long: bool, listed: bool) -> Output {
    let mut command = greedy::command(model, long);
    if listed {
        command.env("GGML_VK_PERF_LOGGER", "1");
    }
    // Upstream's attention of one token has sums of f16 otherwise.
    command.env("GGML_VK_DISABLE_F16", "1");
    let software = device::vulkan().is_some_and(|d| d.kind() == DeviceKind::Software);
    match recorded {
        Recorded::Nodes => command.env("GGML_VK_DISABLE_FUSION", "1"),
        Recorded::Products => command.env("QVAC_VK_VEC", "program=0"),
        Recorded::ProgramAlone => command.env("QVAC_VK_VEC", "program=1"),
        Recorded::ProgramOnCores if software => {
            command.env("QVAC_VK_VEC", "program=8").env("LP_NUM_THREADS", "8")
        }
        Recorded::ProgramOnCores => command.env_remove("QVAC_VK_VEC"),
        Recorded::ProgramBeyondTheDevice => {
            command.env("QVAC_VK_VEC", if software { "program=32" } else { "program=4096" })
        }
    };
    command.output().unwrap()
}

fn run(model: &Path, recorded: Recorded, long: bool) -> Run {
    let (logits, text) = logits(model, recorded, long, true);
    Run { logits, dispatches: dispatches(&text) }
}

/// And what was said on the way.
fn logits(model: &Path, recorded: Recorded, long: bool, listed: bool) -> (Vec<f32>, String) {
    greedy::logits(model, &start(model, recorded, long, listed))
}

/// Lines such as `RMS_NORM_MUL (256,1,1,1): 4 x 3.2 us = ...` of the last table.
fn dispatches(log: &str) -> BTreeMap<String, usize> {
    let last = log.rfind("Vulkan Timings").expect("the log has tables");
    let mut counts = BTreeMap::new();
    for line in log[last..].lines() {
        let Some((before, after)) = line.split_once(": ") else { continue };
        let Some((count, _)) = after.split_once(" x ") else { continue };
        let name = before.split_whitespace().next().unwrap_or_default().to_owned();
        *counts.entry(name).or_default() += count.trim().parse::<usize>().unwrap_or(0);
    }
    counts
}

#[test]
fn fused_graphs_give_the_same_logits() {
    if device::vulkan().is_none() {
        return; // said aloud
    }
    for case in [
        Case::new(Family::Bitnet, Dtype::TQ2_0),
        Case { scales: true, ..Case::new(Family::Bitnet, Dtype::TQ1_0) },
        Case::new(Family::BitnetB158, Dtype::TQ2_0),
        Case::new(Family::Llama, Dtype::TQ2_0),
        Case { n_head_kv: Some(2), long: true, ..Case::new(Family::Llama, Dtype::TQ1_0) },
    ] {
        let what = case.what();
        let dir = tempfile::tempdir().unwrap();
        let path = case.model(dir.path());
        let nodes = run(&path, Recorded::Nodes, case.long);
        assert_eq!(nodes.dispatches.keys().filter(|name| name.starts_with("TQ_")).count(), 0, "{what}");
        for recorded in [Recorded::Products, Recorded::ProgramAlone, Recorded::ProgramOnCores] {
            let run = run(&path, recorded, case.long);
            eprintln!("{what}: {:?}", run.dispatches);
            assert_eq!(nodes.logits.len(), run.logits.len());
            let worst = nodes.logits.iter().zip(&run.logits).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            eprintln!("{what}: largest difference {worst:e}");
            assert!(worst <= TOLERANCE, "{what}: {worst:e}");
            let (at_once, _) = logits(&path, recorded, case.long, false);
            assert!(run.logits == at_once, "{what}: submitted as one");
            let of = |name: &str| run.dispatches.get(name).copied().unwrap_or(0);
            match recorded {
                Recorded::Products => {
                    let glu = if case.family == Family::BitnetB158 { "RELU_SQR_GLU" } else { "SWIGLU" };
                    assert_eq!(of("TQ_MUL_MAT_VEC"), 2, "{what}: q, k and v");
                    assert_eq!(of(&format!("TQ_MUL_MAT_VEC_{glu}")), 2, "{what}: gate and up");
                    // Without a norm before it, nobody keeps the input of a product for its residual.
                    let picked = if case.family == Family::Llama { 3 } else { 4 };
                    assert_eq!(of("TQ_MUL_MAT_VEC_ADD"), picked, "{what}");
                    assert_eq!(of("RMS_NORM_MUL"), 1, "{what}: the last");
                }
                Recorded::ProgramAlone | Recorded::ProgramOnCores => {
                    // All but the head and its norm, and BitNet's embedding.
                    assert_eq!(of("TQ_PROGRAM"), 1, "{what}");
                    let looked_up = if case.family == Family::Llama { 0 } else { 1 };
                    assert_eq!(run.dispatches.values().sum::<usize>(), 3 + looked_up, "{what}");
                }
                _ => {}
            }
        }
    }
}

#[test]
fn workgroups_that_wait_in_vain_are_an_error() {
    if device::vulkan().is_none() {
        return; // said aloud
    }
    let dir = tempfile::tempdir().unwrap();
    let model = Case::new(Family::Bitnet, Dtype::TQ2_0).model(dir.path());
    let output = start(&model, Recorded::ProgramBeyondTheDevice, false, false);
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success(), "{text}");
    assert!(text.contains("waited for each other in vain"), "{text}");
}
