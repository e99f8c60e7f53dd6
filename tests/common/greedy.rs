//! Greedy generation of small models, each run in a process of its own: what ggml-vulkan records as one is decided once a process.
//! A program that uses this has an ignored test `child`, which calls [`child`]; [`command`] runs it.

use std::num::NonZeroU32;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use qvac_ft::ggml::{Device, Dtype};
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

/// A model, and how long its prompt is.
#[derive(Clone, Copy)]
pub struct Case {
    pub family: Family,
    pub dtype: Dtype,
    pub scales: bool,
    pub n_head_kv: Option<usize>,
    pub long: bool,
}

impl Case {
    /// Without what a family may have.
    pub fn new(family: Family, dtype: Dtype) -> Self {
        Self { family, dtype, scales: false, n_head_kv: None, long: false }
    }

    pub fn what(&self) -> String {
        let Self { family, dtype, scales, n_head_kv, long } = self;
        format!("{family:?} {} scales={scales} n_head_kv={n_head_kv:?} long={long}", dtype.name())
    }

    /// Writes the model to `dir`.
    pub fn model(&self, dir: &Path) -> PathBuf {
        let path = dir.join("model.gguf");
        let shape = synth::find_shape("bitnet-nano").unwrap();
        let config = synth::Config {
            family: self.family,
            scales: self.scales,
            n_head_kv: self.n_head_kv,
            ..synth::Config::new(*shape, self.dtype, 7)
        };
        synth::write(&config, &path, &mut |_, _| {}).unwrap();
        path
    }
}

/// Generates on `device` what the environment asks for, and leaves the logits of each token.
pub fn child(device: &Device, n_threads: Option<NonZeroU32>) {
    let model = std::env::var_os(MODEL).expect("the parent sets it");
    let model = Model::load(&model, &ModelParams::on(Some(device.name()))).unwrap();
    let params = ContextParams { n_ctx: NonZeroU32::new(512), n_threads, ..ContextParams::default() };
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

/// This program's `child`, to generate with `model`.
pub fn command(model: &Path, long: bool) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "child", "--ignored", "--nocapture", "--test-threads", "1"]);
    command.env(MODEL, model).env(RESULT, result(model));
    if long {
        command.env(LONG, "1");
    }
    command
}

/// What a child left of its logits, and what it said on the way.
pub fn logits(model: &Path, output: &Output) -> (Vec<f32>, String) {
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{text}");
    let bytes = std::fs::read(result(model)).unwrap();
    (bytes.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect(), text)
}

fn result(model: &Path) -> PathBuf {
    model.with_extension("logits")
}
