//! Generation in exact arithmetic (docs/exactness.md): the same logits from the CPU with any number of threads, from Vulkan's kernels one by one, and from programs of one
//! workgroup and of several.
//!
//! How many workgroups a program has is decided once a process, so each run is a process of its own: this program again, with the
//! ignored test below.

#[path = "common/device.rs"]
mod device;

use std::num::NonZeroU32;
use std::path::Path;
use std::process::Command;

use qvac_ft::ggml::{self, DeviceKind, Dtype};
use qvac_ft::llama::{Context, ContextParams, Model, ModelParams, Sampler, SamplerParams};
use qvac_ft::synth::{self, Family};

/// What the child is to do.
const MODEL: &str = "QVAC_TEST_EXACT_MODEL";
const RESULT: &str = "QVAC_TEST_EXACT_RESULT";
const THREADS: &str = "QVAC_TEST_EXACT_THREADS"; // of the CPU; none: Vulkan
const LONG: &str = "QVAC_TEST_EXACT_LONG";

const PROMPT: [i32; 5] = [1, 17, 301, 44, 5];
/// So often, for a cache of several chunks of keys for each workgroup.
const LONG_PROMPT: usize = 60;
const N_GENERATED: usize = 6;

#[test]
#[ignore = "the other test runs it"]
fn child() {
    ggml::set_exact(true);
    let model = std::env::var_os(MODEL).expect("the parent sets it");
    let threads = std::env::var(THREADS).ok().map(|n| n.parse().unwrap());
    let device = if threads.is_some() { device::cpu() } else { device::vulkan().expect("the parent looked") };
    let model = Model::load(&model, &ModelParams::on(Some(device.name()))).unwrap();
    let params =
        ContextParams { n_ctx: NonZeroU32::new(512), n_threads: threads, ..ContextParams::default() };
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

#[derive(Clone, Copy, Debug)]
enum Computed {
    OnCpu(u32),
    Nodes,
    ProgramAlone,
    /// By several workgroups that share a head's keys: one for each core, or what software can be told to have.
    ProgramOnCores,
}

/// The logits of each generated token.
fn run(model: &Path, computed: Computed, long: bool) -> Vec<f32> {
    let result = model.with_extension("logits");
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "child", "--ignored", "--nocapture", "--test-threads", "1"]);
    command.env(MODEL, model).env(RESULT, &result).env("GGML_VK_PERF_LOGGER", "1");
    let software = device::vulkan().is_some_and(|d| d.kind() == DeviceKind::Software);
    match computed {
        Computed::OnCpu(threads) => command.env(THREADS, threads.to_string()),
        Computed::Nodes => command.env("QVAC_VK_VEC", "program=0"),
        Computed::ProgramAlone => command.env("QVAC_VK_VEC", "program=1"),
        Computed::ProgramOnCores if software => {
            command.env("QVAC_VK_VEC", "program=8").env("LP_NUM_THREADS", "8")
        }
        Computed::ProgramOnCores => command.env_remove("QVAC_VK_VEC"),
    };
    if long {
        command.env(LONG, "1");
    }
    let output = command.output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}");
    let is_program = matches!(computed, Computed::ProgramAlone | Computed::ProgramOnCores);
    assert_eq!(text.contains("TQ_PROGRAM"), is_program, "{text}");
    let bytes = std::fs::read(result).unwrap();
    bytes.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect()
}

#[test]
fn programs_give_the_bits_of_their_nodes() {
    let vulkan = device::vulkan().is_some(); // said aloud
    for (family, dtype, scales, n_head_kv, long) in [
        (Family::Bitnet, Dtype::TQ2_0, false, None, false),
        (Family::Bitnet, Dtype::TQ1_0, true, None, true),
        (Family::BitnetB158, Dtype::TQ2_0, false, None, false),
        (Family::Llama, Dtype::TQ1_0, false, Some(2), true),
    ] {
        let what = format!("{family:?} {} scales={scales} n_head_kv={n_head_kv:?} long={long}", dtype.name());
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("model.gguf");
        let shape = synth::find_shape("bitnet-nano").unwrap();
        let config = synth::Config { family, scales, n_head_kv, ..synth::Config::new(*shape, dtype, 7) };
        synth::write(&config, &path, &mut |_, _| {}).unwrap();
        let expected = run(&path, Computed::OnCpu(1), long);
        assert!(!expected.is_empty() && expected.iter().all(|x| x.is_finite()), "{what}");
        let on_vulkan = [Computed::Nodes, Computed::ProgramAlone, Computed::ProgramOnCores];
        let others = if vulkan { &on_vulkan[..] } else { &[] };
        for computed in others.iter().chain(&[Computed::OnCpu(2)]) {
            let found = run(&path, *computed, long);
            assert_eq!(found.len(), expected.len(), "{what} {computed:?}");
            let differs = |i: &usize| found[*i].to_bits() != expected[*i].to_bits();
            if let Some(i) = (0..found.len()).find(differs) {
                panic!("{what} {computed:?}: logit {i} is {:?}, not {:?}", found[i], expected[i]);
            }
        }
        eprintln!("{what}: {} logits", expected.len());
    }
}
