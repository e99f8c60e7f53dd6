//! LoRA adapter files, in the convention of upstream's `llama-adapter.cpp`, so that stock llama.cpp loads them.
//!
//! `general.type = adapter`, `adapter.type = lora`, `adapter.lora.alpha`, and for each adapted weight `W` the pair
//! `W.lora_a` `[n_in, rank]` and `W.lora_b` `[rank, n_out]`: the layer gives `W x + (alpha / rank) B (A x)`.
//! Two more keys, which upstream passes over, make the file convertible on its own: the head counts.
//! Values are f32 here and f16 in the file. An adapter of the embedding (whose pair lies the other way round) is refused.

use std::path::{Path, PathBuf};

use super::error::{Error, Result};
use crate::ggml::gguf::TensorInfo;
use crate::ggml::{Dtype, GgufFile, GgufWriter};

/// One matrix of a pair.
#[derive(Debug, Clone, PartialEq)]
pub struct Matrix {
    /// Values per row, and rows.
    pub ne: [i64; 2],
    pub data: Vec<f32>,
}

/// The adapter of one weight.
#[derive(Debug, Clone, PartialEq)]
pub struct AdapterPair {
    /// The weight's name: `blk.0.attn_q.weight`.
    pub tensor: String,
    /// `[n_in, rank]`
    pub a: Matrix,
    /// `[rank, n_out]`
    pub b: Matrix,
}

impl AdapterPair {
    pub fn rank(&self) -> usize {
        self.a.ne[1] as usize
    }

    pub fn n_in(&self) -> usize {
        self.a.ne[0] as usize
    }

    pub fn n_out(&self) -> usize {
        self.b.ne[1] as usize
    }
}

/// The heads of the model an adapter belongs to; converting to PEFT needs them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Heads {
    pub n_head: usize,
    pub n_head_kv: usize,
}

/// A whole adapter, in memory.
#[derive(Debug, Clone, PartialEq)]
pub struct AdapterFile {
    /// Where it was read from; empty for one made here.
    pub path: PathBuf,
    /// The base model's `general.architecture`.
    pub architecture: String,
    pub alpha: f32,
    pub heads: Option<Heads>,
    /// The base model's name, for people.
    pub base: Option<String>,
    pub pairs: Vec<AdapterPair>,
}

const BASE_NAME: &str = "general.base_model.0.name";
const BASE_COUNT: &str = "general.base_model.count";

impl AdapterFile {
    /// Reads an adapter file whole.
    pub fn read(path: impl AsRef<Path>) -> Result<Self> {
        Self::from_gguf(&GgufFile::open(path)?)
    }

    /// Whether an open file says that it is an adapter.
    pub fn is_adapter(file: &GgufFile) -> bool {
        matches!(file.get_str("general.type"), Ok(Some("adapter")))
    }

    /// Reads an adapter from an open file.
    pub fn from_gguf(file: &GgufFile) -> Result<Self> {
        for (key, expected) in [("general.type", "adapter"), ("adapter.type", "lora")] {
            let found = file.get_str(key)?.unwrap_or("missing");
            if found != expected {
                let found = found.into();
                return Err(Error::NotAnAdapter { path: file.path().into(), key, expected, found });
            }
        }
        let architecture = file.require_str("general.architecture")?;
        let mut pairs = Vec::new();
        for info in file.tensors() {
            if let Some(tensor) = info.name.strip_suffix(".lora_a") {
                let b = file.tensor(&format!("{tensor}.lora_b"));
                let b = b.ok_or_else(|| half_missing(file, tensor, "lora_b"))?;
                pairs.push(read_pair(file, tensor, info, b)?);
            } else if let Some(tensor) = info.name.strip_suffix(".lora_b") {
                if file.tensor(&format!("{tensor}.lora_a")).is_none() {
                    return Err(half_missing(file, tensor, "lora_a"));
                }
            } else {
                return Err(Error::AdapterTensor { path: file.path().into(), tensor: info.name.clone() });
            }
        }
        if pairs.is_empty() {
            return Err(Error::AdapterEmpty { path: file.path().into() });
        }
        let count = |name: &str| file.get_u64(&format!("{architecture}.attention.{name}"));
        let heads = match (count("head_count")?, count("head_count_kv")?) {
            (Some(n_head), kv) => {
                Some(Heads { n_head: n_head as usize, n_head_kv: kv.unwrap_or(n_head) as usize })
            }
            _ => None,
        };
        Ok(Self {
            path: file.path().into(),
            architecture: architecture.into(),
            alpha: file.require_f32("adapter.lora.alpha")?,
            heads,
            base: file.get_str(BASE_NAME)?.map(Into::into),
            pairs,
        })
    }

    /// Writes the adapter in f16, whole or not at all. Values that f16 cannot hold are an error.
    pub fn write(&self, path: impl AsRef<Path>) -> Result<()> {
        self.write_as(path, Dtype::F16)
    }

    /// As [`AdapterFile::write`], in another type (f32 keeps every bit of a checkpoint).
    pub fn write_as(&self, path: impl AsRef<Path>, dtype: Dtype) -> Result<()> {
        let path = path.as_ref();
        let mut w = GgufWriter::new();
        w.set("general.type", "adapter")
            .set("general.architecture", self.architecture.as_str())
            .set("adapter.type", "lora")
            .set("adapter.lora.alpha", self.alpha);
        if let Some(base) = &self.base {
            w.set(BASE_COUNT, 1u32).set(BASE_NAME, base.as_str());
        }
        if let Some(heads) = self.heads {
            w.set(&format!("{}.attention.head_count", self.architecture), heads.n_head as u32);
            w.set(&format!("{}.attention.head_count_kv", self.architecture), heads.n_head_kv as u32);
        }
        let matrices =
            || self.pairs.iter().flat_map(|p| [(&p.tensor, "lora_a", &p.a), (&p.tensor, "lora_b", &p.b)]);
        for (tensor, half, matrix) in matrices() {
            w.add_tensor(&format!("{tensor}.{half}"), &matrix.ne, dtype)?;
        }
        let mut stream = w.create(path)?;
        let limit = if dtype == Dtype::F16 { f32::from(half::f16::MAX) } else { f32::MAX };
        for (tensor, half, matrix) in matrices() {
            if let Some(value) = matrix.data.iter().find(|v| !v.is_finite() || v.abs() > limit) {
                let tensor = format!("{tensor}.{half}");
                return Err(Error::AdapterValue {
                    path: path.into(),
                    tensor,
                    value: *value,
                    dtype: dtype.name(),
                });
            }
            let mut bytes = Vec::new();
            dtype.quantize(&matrix.data, matrix.ne[0] as usize, &mut bytes)?;
            stream.write(&bytes)?;
        }
        stream.finish()?;
        Ok(())
    }

    /// The adapter of one weight.
    pub fn pair(&self, tensor: &str) -> Option<&AdapterPair> {
        self.pairs.iter().find(|p| p.tensor == tensor)
    }

    /// The rank, if all pairs have the same.
    pub fn rank(&self) -> Option<usize> {
        let first = self.pairs.first()?.rank();
        self.pairs.iter().all(|p| p.rank() == first).then_some(first)
    }

    /// What multiplies `B A x` of a pair; upstream takes alpha 0 for "no scaling".
    pub fn scale(&self, pair: &AdapterPair) -> f32 {
        if self.alpha == 0.0 {
            1.0
        } else {
            self.alpha / pair.rank() as f32
        }
    }

    pub fn n_params(&self) -> usize {
        self.pairs.iter().map(|p| p.a.data.len() + p.b.data.len()).sum()
    }

    /// Holds the adapter against a model: same architecture, and each pair fits a weight that is there.
    pub fn check_against(&self, base: &GgufFile) -> Result<()> {
        let (path, model) = (|| self.path.clone(), || base.path().to_owned());
        let expected = base.require_str("general.architecture")?;
        if self.architecture != expected {
            let found = self.architecture.clone();
            return Err(Error::AdapterArchitecture { path: path(), expected: expected.into(), found });
        }
        for pair in &self.pairs {
            let Some(weight) = base.tensor(&pair.tensor) else {
                return Err(Error::AdapterForeign {
                    path: path(),
                    model: model(),
                    tensor: pair.tensor.clone(),
                });
            };
            let (n_in, n_out) = (weight.ne[0], weight.ne[1]);
            let (found_in, found_out) = (pair.a.ne[0], pair.b.ne[1]);
            if (n_in, n_out) != (found_in, found_out) {
                let tensor = pair.tensor.clone();
                let (path, model) = (path(), model());
                return Err(Error::AdapterShape { path, model, tensor, n_in, n_out, found_in, found_out });
            }
        }
        Ok(())
    }
}

fn half_missing(file: &GgufFile, tensor: &str, missing: &'static str) -> Error {
    Error::AdapterHalf { path: file.path().into(), tensor: tensor.into(), missing }
}

fn read_pair(file: &GgufFile, tensor: &str, a: &TensorInfo, b: &TensorInfo) -> Result<AdapterPair> {
    // The embedding's pair lies the other way round, and nothing here trains it.
    if tensor.ends_with("token_embd.weight") {
        return Err(Error::AdapterTensor { path: file.path().into(), tensor: a.name.clone() });
    }
    if a.ne[1] != b.ne[0] || a.ne[2..] != [1, 1] || b.ne[2..] != [1, 1] {
        return Err(Error::AdapterRanks {
            path: file.path().into(),
            tensor: tensor.into(),
            a: a.shape(),
            b: b.shape(),
        });
    }
    let matrix = |info: &TensorInfo| -> Result<Matrix> {
        let data = file.read_f32(info)?;
        if let Some(value) = data.iter().find(|v| !v.is_finite()) {
            let (tensor, dtype) = (info.name.clone(), info.dtype.name());
            return Err(Error::AdapterValue { path: file.path().into(), tensor, value: *value, dtype });
        }
        Ok(Matrix { ne: [info.ne[0], info.ne[1]], data })
    };
    Ok(AdapterPair { tensor: tensor.into(), a: matrix(a)?, b: matrix(b)? })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matrix(ne: [i64; 2], start: f32) -> Matrix {
        // Multiples of 1/64 below 8: exact in f16.
        Matrix { ne, data: (0..ne[0] * ne[1]).map(|i| start + (i % 97) as f32 / 64.0).collect() }
    }

    fn sample() -> AdapterFile {
        let pair = |tensor: &str, n_in, n_out| AdapterPair {
            tensor: tensor.into(),
            a: matrix([n_in, 4], -1.0),
            b: matrix([4, n_out], 0.5),
        };
        AdapterFile {
            path: PathBuf::new(),
            architecture: "llama".into(),
            alpha: 8.0,
            heads: Some(Heads { n_head: 4, n_head_kv: 2 }),
            base: Some("tiny".into()),
            pairs: vec![pair("blk.0.attn_q.weight", 32, 64), pair("blk.0.ffn_down.weight", 96, 32)],
        }
    }

    fn base(architecture: &str, n_out: i64) -> (tempfile::TempDir, GgufFile) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("base.gguf");
        let mut w = GgufWriter::new();
        w.set("general.architecture", architecture);
        w.add_tensor("blk.0.attn_q.weight", &[32, 64], Dtype::F16).unwrap();
        w.add_tensor("blk.0.ffn_down.weight", &[96, n_out], Dtype::F16).unwrap();
        let mut stream = w.create(&path).unwrap();
        stream.write(&[0; 2 * 32 * 64]).unwrap();
        stream.write(&vec![0; 2 * 96 * n_out as usize]).unwrap();
        stream.finish().unwrap();
        let file = GgufFile::open(&path).unwrap();
        (dir, file)
    }

    #[test]
    fn an_adapter_comes_back_with_upstreams_keys() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.gguf");
        sample().write(&path).unwrap();
        let back = AdapterFile::read(&path).unwrap();
        assert_eq!(AdapterFile { path: path.clone(), ..sample() }, back);
        assert_eq!(
            (back.rank(), back.scale(&back.pairs[0]), back.n_params()),
            (Some(4), 2.0, 4 * (32 + 64 + 96 + 32))
        );

        let file = GgufFile::open(&path).unwrap();
        for (key, value) in
            [("general.type", "adapter"), ("adapter.type", "lora"), ("general.architecture", "llama")]
        {
            assert_eq!(file.require_str(key).unwrap(), value);
        }
        assert_eq!(file.require_shape("blk.0.attn_q.weight.lora_a", &[32, 4]).unwrap().dtype, Dtype::F16);
        file.require_shape("blk.0.attn_q.weight.lora_b", &[4, 64]).unwrap();
    }

    #[test]
    fn values_f16_cannot_hold_are_refused_and_leave_no_file() {
        let dir = tempfile::tempdir().unwrap();
        for value in [f32::NAN, f32::INFINITY, 70000.0] {
            let mut adapter = sample();
            adapter.pairs[1].b.data[3] = value;
            let e = adapter.write(dir.path().join("a.gguf")).unwrap_err().to_string();
            assert!(e.contains("`blk.0.ffn_down.weight.lora_b`"), "{e}");
        }
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn an_adapter_of_another_model_names_the_tensor() {
        let adapter = sample();
        let (_dir, right) = base("llama", 32);
        adapter.check_against(&right).unwrap();
        let (_dir, wrong) = base("bitnet", 32);
        assert!(matches!(adapter.check_against(&wrong), Err(Error::AdapterArchitecture { .. })));
        let (_dir, wrong) = base("llama", 64);
        let e = adapter.check_against(&wrong).unwrap_err().to_string();
        assert!(
            e.contains("`blk.0.ffn_down.weight`") && e.contains("96 x 64") && e.contains("96 x 32"),
            "{e}"
        );
        let mut foreign = sample();
        foreign.pairs[0].tensor = "blk.9.attn_q.weight".into();
        let e = foreign.check_against(&right).unwrap_err().to_string();
        assert!(e.contains("`blk.9.attn_q.weight`"), "{e}");
    }

    #[test]
    fn files_that_are_no_adapters_say_why() {
        let write = |edit: &dyn Fn(&mut GgufWriter), tensors: &[(&str, [i64; 2])]| {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("a.gguf");
            let mut w = GgufWriter::new();
            w.set("general.type", "adapter").set("general.architecture", "llama").set("adapter.type", "lora");
            w.set("adapter.lora.alpha", 16f32);
            edit(&mut w);
            for (name, ne) in tensors {
                w.add_tensor(name, ne, Dtype::F32).unwrap();
            }
            let mut stream = w.create(&path).unwrap();
            for (_, ne) in tensors {
                stream.write(&vec![0; 4 * (ne[0] * ne[1]) as usize]).unwrap();
            }
            stream.finish().unwrap();
            AdapterFile::read(&path).unwrap_err().to_string()
        };
        let keep: &dyn Fn(&mut GgufWriter) = &|_| ();
        let good = [("w.lora_a", [8, 2]), ("w.lora_b", [2, 4])];
        type Case<'a> = (&'a dyn Fn(&mut GgufWriter), &'a [(&'a str, [i64; 2])], &'a str);
        let cases: [Case; 8] = [
            (&|w| _ = w.set("general.type", "model"), &good, "key `general.type` is model"),
            (&|w| _ = w.remove("adapter.type"), &good, "key `adapter.type` is missing"),
            (&|w| _ = w.remove("adapter.lora.alpha"), &good, "no key `adapter.lora.alpha`"),
            (keep, &good[..1], "`w` has no `.lora_b`"),
            (keep, &good[1..], "`w` has no `.lora_a`"),
            (keep, &[("w.weight", [8, 2])], "tensor `w.weight`"),
            (
                keep,
                &[("w.lora_a", [8, 2]), ("w.lora_b", [4, 2])],
                "`w`: `lora_a` is [8, 2] and `lora_b` is [4, 2]",
            ),
            (keep, &[], "holds no adapted layer"),
        ];
        for (edit, tensors, expected) in cases {
            let e = write(edit, tensors);
            assert!(e.contains(expected), "`{e}` lacks `{expected}`");
        }
    }
}
