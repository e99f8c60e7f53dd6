//! Generation on Vulkan: nodes that are recorded as one dispatch, a product with its surroundings or a whole run of nodes, give
//! what they give one by one.
//!
//! What ggml-vulkan records as one is decided once a process, so each run is a process of its own: this program again,
//! with the ignored test below.

mod common;

use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use common::device;
use qvac_ft::ggml::{DeviceKind, Dtype};
use qvac_ft::llama::{Context, ContextParams, Model, ModelParams, Sampler, SamplerParams};
use qvac_ft::synth::{self, Family};

/// What the child is to do.
const MODEL: &str = "QVAC_TEST_GENERATE_MODEL";
const RESULT: &str = "QVAC_TEST_GENERATE_RESULT";
const LONG: &str = "QVAC_TEST_GENERATE_LONG";

const PROMPT: [i32; 5] = [1, 17, 301, 44, 5];
/// So often, for a cache that a program's workgroup reads in several rounds.
const LONG_PROMPT: usize = 60;
const N_GENERATED: usize = 6;

/// Largest difference of a logit, of order 1. The products are exact, but the sums of norms and of attention have orders of
/// their own (a program's, and upstream's own fusions), and a rounding that crosses a step of the 8-bit activations
/// moves a value by 1/127 of the token's largest.
const TOLERANCE: f32 = 2e-2;

#[test]
#[ignore = "the other test runs it"]
fn child() {
    let model = std::env::var_os(MODEL).expect("the parent sets it");
    let vulkan = device::vulkan().expect("the parent looked");
    let model = Model::load(&model, &ModelParams::on(Some(vulkan.name()))).unwrap();
    let params = ContextParams { n_ctx: NonZeroU32::new(512), ..ContextParams::default() };
    let mut context = Context::new(&model, &params).unwrap();
    let mut greedy = Sampler::new(&SamplerParams::greedy()).unwrap();
    let mut bytes = Vec::new();
    let long = std::env::var_os(LONG).is_some();
    let mut next = PROMPT.repeat(if long { LONG_PROMPT } else { 1 });
    for _ in 0..N_GENERATED {
        let row = context.feed(&next).unwrap();
        let logits = context.logits(row).unwrap();
        bytes.extend(logits.iter().flat_map(|v| v.to_le_bytes()));
        next = vec![greedy.sample(logits, row).unwrap()];
    }
    std::fs::write(std::env::var_os(RESULT).unwrap(), bytes).unwrap();
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
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "child", "--ignored", "--nocapture", "--test-threads", "1"]);
    command.env(MODEL, model).env(RESULT, result(model));
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
    if long {
        command.env(LONG, "1");
    }
    command.output().unwrap()
}

fn result(model: &Path) -> PathBuf {
    model.with_extension("logits")
}

fn run(model: &Path, recorded: Recorded, long: bool) -> Run {
    let (logits, text) = logits(model, recorded, long, true);
    Run { logits, dispatches: dispatches(&text) }
}

/// And what was said on the way.
fn logits(model: &Path, recorded: Recorded, long: bool, listed: bool) -> (Vec<f32>, String) {
    let output = start(model, recorded, long, listed);
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{text}");
    let bytes = std::fs::read(result(model)).unwrap();
    (bytes.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect(), text)
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

struct Case {
    family: Family,
    dtype: Dtype,
    scales: bool,
    n_head_kv: Option<usize>,
    long: bool,
}

fn model(dir: &Path, case: &Case) -> PathBuf {
    let path = dir.join("model.gguf");
    let shape = synth::find_shape("bitnet-nano").unwrap();
    let config = synth::Config {
        family: case.family,
        scales: case.scales,
        n_head_kv: case.n_head_kv,
        ..synth::Config::new(*shape, case.dtype, 7)
    };
    synth::write(&config, &path, &mut |_, _| {}).unwrap();
    path
}

#[test]
fn fused_graphs_give_the_same_logits() {
    if device::vulkan().is_none() {
        return; // said aloud
    }
    let case = |family, dtype| Case { family, dtype, scales: false, n_head_kv: None, long: false };
    for case in [
        case(Family::Bitnet, Dtype::TQ2_0),
        Case { scales: true, ..case(Family::Bitnet, Dtype::TQ1_0) },
        case(Family::BitnetB158, Dtype::TQ2_0),
        case(Family::Llama, Dtype::TQ2_0),
        Case { n_head_kv: Some(2), long: true, ..case(Family::Llama, Dtype::TQ1_0) },
    ] {
        let what = format!(
            "{:?} {} scales={} n_head_kv={:?} long={}",
            case.family,
            case.dtype.name(),
            case.scales,
            case.n_head_kv,
            case.long
        );
        let dir = tempfile::tempdir().unwrap();
        let path = model(dir.path(), &case);
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
    let case =
        Case { family: Family::Bitnet, dtype: Dtype::TQ2_0, scales: false, n_head_kv: None, long: false };
    let output = start(&model(dir.path(), &case), Recorded::ProgramBeyondTheDevice, false, false);
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success(), "{text}");
    assert!(text.contains("waited for each other in vain"), "{text}");
}
