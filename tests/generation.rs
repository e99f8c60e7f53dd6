//! Generation on Vulkan: the nodes that are recorded as one dispatch give what they give one by one.
//!
//! Whether ggml-vulkan fuses is decided once a process, so each run is a process of its own: this program again, with
//! the ignored test below.

mod common;

use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};
use std::process::Command;

use common::device;
use qvac_ft::ggml::Dtype;
use qvac_ft::llama::{Context, ContextParams, Model, ModelParams, Sampler, SamplerParams};
use qvac_ft::synth::{self, Family};

/// What the child is to do.
const MODEL: &str = "QVAC_TEST_GENERATE_MODEL";
const RESULT: &str = "QVAC_TEST_GENERATE_RESULT";

const PROMPT: [i32; 5] = [1, 17, 301, 44, 5];
const N_GENERATED: usize = 6;

/// Largest difference of a logit, of order 1. The products are exact and norms are summed in upstream's order, but
/// upstream's own fusions (a residual's sum of squares, rotations) round otherwise, and a rounding that crosses a step
/// of the 8-bit activations moves a value by 1/127 of the token's largest.
const TOLERANCE: f32 = 2e-2;

#[test]
#[ignore = "the other test runs it"]
fn child() {
    let model = std::env::var_os(MODEL).expect("the parent sets it");
    let vulkan = device::vulkan().expect("the parent looked");
    let model = Model::load(&model, &ModelParams::on(Some(vulkan.name()))).unwrap();
    let params = ContextParams { n_ctx: NonZeroU32::new(256), ..ContextParams::default() };
    let mut context = Context::new(&model, &params).unwrap();
    let mut greedy = Sampler::new(&SamplerParams::greedy()).unwrap();
    let mut bytes = Vec::new();
    let mut next = PROMPT.to_vec();
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

fn run(model: &Path, fused: bool) -> Run {
    let result = model.with_extension("logits");
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "child", "--ignored", "--nocapture", "--test-threads", "1"]);
    command.env(MODEL, model).env(RESULT, &result).env("GGML_VK_PERF_LOGGER", "1");
    if !fused {
        command.env("GGML_VK_DISABLE_FUSION", "1");
    }
    let output = command.output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{text}");
    let bytes = std::fs::read(result).unwrap();
    let logits = bytes.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect();
    Run { logits, dispatches: dispatches(&text) }
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

fn model(dir: &Path, family: Family, dtype: Dtype, scales: bool) -> PathBuf {
    let path = dir.join("model.gguf");
    let shape = synth::find_shape("bitnet-nano").unwrap();
    let config = synth::Config { family, scales, ..synth::Config::new(*shape, dtype, 7) };
    synth::write(&config, &path, &mut |_, _| {}).unwrap();
    path
}

#[test]
fn fused_graphs_give_the_same_logits() {
    if device::vulkan().is_none() {
        return; // said aloud
    }
    for (family, dtype, scales) in [
        (Family::Bitnet, Dtype::TQ2_0, false),
        (Family::Bitnet, Dtype::TQ1_0, true),
        (Family::BitnetB158, Dtype::TQ2_0, false),
        (Family::Llama, Dtype::TQ2_0, false),
    ] {
        let what = format!("{family:?} {} scales={scales}", dtype.name());
        let dir = tempfile::tempdir().unwrap();
        let path = model(dir.path(), family, dtype, scales);
        let [apart, fused] = [false, true].map(|fused| run(&path, fused));
        eprintln!("{what}: apart {:?}, fused {:?}", apart.dispatches, fused.dispatches);
        assert_eq!(apart.logits.len(), fused.logits.len());
        let worst = apart.logits.iter().zip(&fused.logits).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        eprintln!("{what}: largest difference {worst:e}");
        assert!(worst <= TOLERANCE, "{what}: {worst:e}");
        let of = |name: &str| fused.dispatches.get(name).copied().unwrap_or(0);
        // Of two layers the second's output product is not followed by its residual: rows are picked between.
        // A squared ReLU is three nodes, in one dispatch behind the products of gate and up.
        let swiglu = if family == Family::BitnetB158 { 0 } else { 2 };
        assert_eq!(of("TQ_MUL_MAT_VEC"), 2 + 1 + 2 - swiglu, "{what}: q, k and v; gate and up");
        assert_eq!(of("TQ_MUL_MAT_VEC_SWIGLU"), swiglu, "{what}");
        assert_eq!(of("RELU_SQR_GLU"), 2 - swiglu, "{what}");
        assert_eq!(of("TQ_MUL_MAT_VEC_ADD"), 3, "{what}");
        // The last norm's product is not ternary; behind the first norm upstream's order has a node that is no product.
        assert_eq!(of("RMS_NORM_MUL"), 2, "{what}");
        assert_eq!(apart.dispatches.keys().filter(|name| name.contains("_VEC_")).count(), 0, "{what}");
    }
}
