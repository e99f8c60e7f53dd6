//! Folders of checkpoints from the fixtures: what is committed, and the float tensors that are made here.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use half::{bf16, f16};
use qvac_ft::convert::{self, ConvertConfig, Converted};
use qvac_ft::ggml::Dtype;
use safetensors::tensor::TensorView;
use safetensors::{Dtype as SafeDtype, SafeTensors};
use serde_json::Value;
use sha2::{Digest, Sha256};

/// Every case; the widths of `onebit-padded` and `trilm` are no whole ternary blocks.
pub const CASES: [&str; 8] = [
    "bitnet-packed",
    "bitnet-masters",
    "bitnet-silu",
    "onebit",
    "onebit-padded",
    "llama-packed",
    "llama-masters",
    "trilm",
];

pub fn fixtures() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/convert")
}

pub fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).collect()
}

pub fn json(path: &Path) -> Value {
    let text = fs::read(path).unwrap_or_else(|e| panic!("`{}`: {e}", path.display()));
    serde_json::from_slice(&text).unwrap()
}

/// A case in a folder of its own.
pub struct Checkpoint {
    pub dir: tempfile::TempDir,
    pub manifest: Value,
    case: &'static str,
}

impl Checkpoint {
    pub fn new(case: &'static str) -> Self {
        let fixture = fixtures().join(case);
        let manifest = json(&fixture.join("manifest.json"));
        let script = fs::read(fixtures().join("generate.py")).unwrap();
        assert_eq!(manifest["generator_sha256"], sha256(&script), "run generate.py again");
        let made = Self { dir: tempfile::tempdir().unwrap(), manifest, case };
        made.copy(&fixture);
        made.copy(&fixtures().join(made.manifest["tokenizer"].as_str().unwrap()));
        for (file, tensors) in made.manifest["files"].as_object().unwrap() {
            made.write_shard(file, tensors.as_array().unwrap());
        }
        made
    }

    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    fn copy(&self, folder: &Path) {
        for entry in fs::read_dir(folder).unwrap() {
            let entry = entry.unwrap().path();
            fs::copy(&entry, self.path().join(entry.file_name().unwrap())).unwrap();
        }
    }

    fn write_shard(&self, file: &str, tensors: &[Value]) {
        let mut data = Vec::new();
        for t in tensors {
            let name = t["name"].as_str().unwrap().to_owned();
            let shape: Vec<usize> =
                t["shape"].as_array().unwrap().iter().map(|n| n.as_u64().unwrap() as usize).collect();
            let seed = format!("{}/{name}", self.case);
            let values = values(t["kind"].as_str().unwrap(), &seed, shape.iter().product());
            let dtype = t["dtype"].as_str().unwrap();
            data.push((name, shape, bytes(dtype, &values)));
        }
        let views = data.iter().map(|(name, shape, (dtype, bytes))| {
            (name, TensorView::new(*dtype, shape.clone(), bytes).unwrap())
        });
        let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
        fs::write(self.path().join(file), safetensors::serialize(views, Some(metadata)).unwrap()).unwrap();
    }

    /// Converts it with these types.
    pub fn convert_as(&self, dtype: Dtype, embed: Dtype) -> (PathBuf, Converted) {
        let out = self.path().join(format!("{dtype}-{embed}.gguf"));
        let config = ConvertConfig { dtype, embed: Some(embed), out: out.clone(), ..self.config() };
        let done = convert::convert(&config, &AtomicBool::new(false), &mut |_, _| ());
        (out, done.unwrap_or_else(|e| panic!("{}: {e}", self.case)))
    }

    pub fn config(&self) -> ConvertConfig {
        ConvertConfig {
            dir: self.path().into(),
            out: self.path().join("model.gguf"),
            dtype: Dtype::TQ2_0,
            embed: None,
            ternarize: false,
            pre: None,
            threads: 2,
        }
    }

    /// The tokens of the logits.
    pub fn tokens(&self) -> Vec<i32> {
        self.manifest["tokens"].as_array().unwrap().iter().map(|t| t.as_i64().unwrap() as i32).collect()
    }

    /// `[token][vocabulary]`
    pub fn logits(&self) -> Vec<Vec<f32>> {
        let bytes = fs::read(self.path().join("expected.safetensors")).unwrap();
        let file = SafeTensors::deserialize(&bytes).unwrap();
        let logits = file.tensor("logits").unwrap();
        let values: Vec<f32> =
            logits.data().chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect();
        values.chunks_exact(logits.shape()[1]).map(<[f32]>::to_vec).collect()
    }
}

fn fnv1a(text: &str) -> u64 {
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |h, b| (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3))
}

/// Whole numbers from -127 to 127, as the generator makes them.
fn noise(name: &str, n: usize) -> Vec<i32> {
    let seed = fnv1a(name);
    let at = |i: usize| {
        let mut z = seed.wrapping_add((i as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^= z >> 31;
        ((z >> 56) as i32 - 128).max(-127)
    };
    (0..n).map(at).collect()
}

/// A float tensor's values, by its kind and the name of its case and itself.
pub fn values(kind: &str, name: &str, n: usize) -> Vec<f32> {
    let k = noise(name, n);
    let of = |(i, &k): (usize, &i32)| match kind {
        "norm" => (128 + (k >> 2)) as f32 / 128.0,
        "embedding" => k as f32 / 128.0,
        "masters" => k as f32 / 1024.0,
        "ternary" => (k.rem_euclid(3) - 1) as f32 * if i < n / 2 { 24.0 } else { 28.0 } / 1024.0,
        other => panic!("no kind `{other}`"),
    };
    k.iter().enumerate().map(of).collect()
}

fn bytes(dtype: &str, values: &[f32]) -> (SafeDtype, Vec<u8>) {
    match dtype {
        "F32" => (SafeDtype::F32, values.iter().flat_map(|x| x.to_le_bytes()).collect()),
        "F16" => (SafeDtype::F16, values.iter().flat_map(|x| f16::from_f32(*x).to_le_bytes()).collect()),
        "BF16" => (SafeDtype::BF16, values.iter().flat_map(|x| bf16::from_f32(*x).to_le_bytes()).collect()),
        other => panic!("no type `{other}`"),
    }
}
