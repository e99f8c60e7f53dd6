//! Small models and adapters, made on the spot.

// Each test program uses its part of this.
#![allow(dead_code)]

pub mod device;
pub mod numeric;
pub mod program;
pub mod real;

use std::path::{Path, PathBuf};

use qvac_ft::ggml::{Dtype, GgufFile, GgufWriter};
use qvac_ft::synth;

/// Width of the residual stream of `bitnet-nano`.
pub const N_EMBD: i64 = 256;
/// Size of its vocabulary.
pub const N_VOCAB: usize = 512;

/// Writes the nano model to `dir`; the same one each time.
pub fn nano_model(dir: &Path) -> PathBuf {
    let path = dir.join("nano.gguf");
    let shape = synth::find_shape("bitnet-nano").expect("the shape for tests is there");
    synth::write(&synth::Config::new(*shape, Dtype::F16, 7), &path, &mut |_, _| {})
        .expect("writes the model");
    path
}

/// An adapter file, to be spoilt one field at a time.
pub struct AdapterSpec {
    pub general_type: &'static str,
    pub architecture: &'static str,
    pub tensor: &'static str,
    pub a: [i64; 2],
    pub b: Option<[i64; 2]>,
}

impl Default for AdapterSpec {
    /// One that fits the nano model, on one matrix, strong enough to be seen in every logit.
    fn default() -> Self {
        Self {
            general_type: "adapter",
            architecture: "bitnet",
            tensor: "blk.0.attn_q.weight",
            a: [N_EMBD, 4],
            b: Some([4, N_EMBD]),
        }
    }
}

impl AdapterSpec {
    pub fn write(&self, path: &Path) {
        let mut writer = GgufWriter::new();
        writer
            .set("general.type", self.general_type)
            .set("general.architecture", self.architecture)
            .set("adapter.type", "lora")
            .set("adapter.lora.alpha", 8.0f32);
        let mut values = Vec::new();
        for (suffix, ne) in [("lora_a", Some(self.a)), ("lora_b", self.b)] {
            let Some(ne) = ne else { continue };
            writer.add_tensor(&format!("{}.{suffix}", self.tensor), &ne, Dtype::F32).expect("fits");
            let n = (ne[0] * ne[1]) as usize;
            values.push((0..n).map(|i| ((i * 37 % 101) as f32 - 50.0) / 50.0).collect::<Vec<f32>>());
        }
        let mut stream = writer.create(path).expect("creates the file");
        for tensor in values {
            let bytes: Vec<u8> = tensor.iter().flat_map(|x| x.to_le_bytes()).collect();
            stream.write(&bytes).expect("writes");
        }
        stream.finish().expect("finishes");
        GgufFile::open(path).expect("what was written can be read");
    }
}

/// The first `part` of a file, as a download that broke off leaves it.
pub fn truncated(path: &Path, part: f64) -> PathBuf {
    let bytes = std::fs::read(path).expect("reads");
    let cut = path.with_extension("cut.gguf");
    std::fs::write(&cut, &bytes[..(bytes.len() as f64 * part) as usize]).expect("writes");
    cut
}
