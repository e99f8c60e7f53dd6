//! Generation in exact arithmetic (docs/exactness.md): the same logits from the CPU with any number of threads, from Vulkan's
//! kernels one by one, and from programs of one workgroup and of several.

#[path = "common/device.rs"]
mod device;
#[path = "common/greedy.rs"]
mod greedy;

use std::path::Path;

use greedy::Case;
use qvac_ft::ggml::{self, DeviceKind, Dtype};
use qvac_ft::synth::Family;

/// Threads of the child's CPU; none: it is to use Vulkan.
const THREADS: &str = "QVAC_TEST_EXACT_THREADS";

#[test]
#[ignore = "the other test runs it"]
fn child() {
    ggml::set_exact(true);
    let threads = std::env::var(THREADS).ok().map(|n| n.parse().unwrap());
    let device = if threads.is_some() { device::cpu() } else { device::vulkan().expect("the parent looked") };
    greedy::child(&device, threads);
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
    let mut command = greedy::command(model, long);
    command.env("GGML_VK_PERF_LOGGER", "1");
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
    let (logits, text) = greedy::logits(model, &command.output().unwrap());
    let is_program = matches!(computed, Computed::ProgramAlone | Computed::ProgramOnCores);
    assert_eq!(text.contains("TQ_PROGRAM"), is_program, "{text}");
    logits
}

#[test]
fn programs_give_the_bits_of_their_nodes() {
    let vulkan = device::vulkan().is_some(); // said aloud
    for case in [
        Case::new(Family::Bitnet, Dtype::TQ2_0),
        Case { scales: true, long: true, ..Case::new(Family::Bitnet, Dtype::TQ1_0) },
        Case::new(Family::BitnetB158, Dtype::TQ2_0),
        Case { n_head_kv: Some(2), long: true, ..Case::new(Family::Llama, Dtype::TQ1_0) },
    ] {
        let what = case.what();
        let dir = tempfile::tempdir().unwrap();
        let path = case.model(dir.path());
        let expected = run(&path, Computed::OnCpu(1), case.long);
        assert!(!expected.is_empty() && expected.iter().all(|x| x.is_finite()), "{what}");
        let on_vulkan = [Computed::Nodes, Computed::ProgramAlone, Computed::ProgramOnCores];
        let others = if vulkan { &on_vulkan[..] } else { &[] };
        for computed in others.iter().chain(&[Computed::OnCpu(2)]) {
            let found = run(&path, *computed, case.long);
            assert_eq!(found.len(), expected.len(), "{what} {computed:?}");
            let differs = |i: &usize| found[*i].to_bits() != expected[*i].to_bits();
            if let Some(i) = (0..found.len()).find(differs) {
                panic!("{what} {computed:?}: logit {i} is {:?}, not {:?}", found[i], expected[i]);
            }
        }
        eprintln!("{what}: {} logits", expected.len());
    }
}
