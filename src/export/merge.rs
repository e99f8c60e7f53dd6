//! A model with an adapter in its weights: `W' = scale * W + (alpha / rank) B A`.
//!
//! Tensors go through one after the other, in pieces of rows, so that no model has to fit in memory; what the adapter
//! does not touch is copied byte for byte. A changed tensor keeps its type, requantized, if that type can be written and
//! is not ternary: -1, 0 and 1 times a scale cannot hold a sum, so those become f16 unless another type is asked for.
//! A scale that stands in a tensor of its own goes into the weight; whether it covers the adapter's part is upstream's
//! choice, layer by layer (`Architecture::scale_covers_adapter`).

use std::path::{Path, PathBuf};

use crate::ggml::gguf::TensorInfo;
use crate::ggml::{Dtype, GgufFile, GgufWriter};
use crate::model::adapter::AdapterPair;
use crate::model::AdapterFile;
use crate::parallel;

use super::error::{Error, Result};
use super::names;

/// Values that one thread works on at a time.
const CHUNK: usize = 1 << 20;
/// `general.file_type` of a model mostly in f16 (LLAMA_FTYPE_MOSTLY_F16).
const MOSTLY_F16: u32 = 1;

/// What changed tensors are stored as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OutputType {
    /// Each its own type; f16 for ternary ones and those that cannot be requantized.
    Keep,
    Fixed(Dtype),
}

#[derive(Debug, Clone)]
pub struct MergeConfig {
    pub model: PathBuf,
    pub adapter: PathBuf,
    pub out: PathBuf,
    pub output_type: OutputType,
    pub threads: usize,
}

/// What was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Merged {
    /// Tensors the adapter changed.
    pub n_changed: usize,
    /// Of those, the ones whose type had to change: from, to, how many.
    pub retyped: Vec<(Dtype, Dtype, usize)>,
    pub bytes: u64,
}

/// How one tensor of the model gets into the new one.
enum Step<'a> {
    Copy(&'a TensorInfo),
    /// The weight and its adapter, the factors of both, and the type to write.
    Change {
        info: &'a TensorInfo,
        pair: &'a AdapterPair,
        factors: Factors,
        dtype: Dtype,
    },
}

/// `W' = weight * W + adapter * B A`.
#[derive(Debug, Clone, Copy)]
struct Factors {
    weight: f32,
    adapter: f32,
}

/// Writes the merged model; `progress` is told the bytes of tensor data written so far and in all.
pub fn merge(config: &MergeConfig, progress: &mut dyn FnMut(u64, u64)) -> Result<Merged> {
    for (input, path) in [("model", &config.model), ("adapter", &config.adapter)] {
        if same_file(path, &config.out) {
            return Err(Error::Overwrite { path: config.out.clone(), input });
        }
    }
    let base = GgufFile::open(&config.model)?;
    let adapter = AdapterFile::read(&config.adapter)?;
    adapter.check_against(&base)?;

    let steps = steps(&base, &adapter, config.output_type)?;
    let mut writer = GgufWriter::new();
    writer.copy_metadata(&base);
    let mut merged = Merged { n_changed: 0, retyped: Vec::new(), bytes: 0 };
    for step in &steps {
        let (info, dtype) = match step {
            Step::Copy(info) => (info, info.dtype),
            Step::Change { info, dtype, .. } => (info, *dtype),
        };
        writer.add_tensor(&info.name, &info.ne[..info.n_dims.max(1)], dtype)?;
        if matches!(step, Step::Change { .. }) {
            merged.n_changed += 1;
        }
        if dtype != info.dtype {
            match merged.retyped.iter_mut().find(|(from, to, _)| (*from, *to) == (info.dtype, dtype)) {
                Some((_, _, n)) => *n += 1,
                None => merged.retyped.push((info.dtype, dtype, 1)),
            }
        }
    }
    if merged.retyped.iter().any(|(_, to, _)| *to == Dtype::F16) {
        writer.set("general.file_type", MOSTLY_F16);
    }

    let total = writer.data_size();
    let mut stream = writer.create(&config.out)?;
    let mut done = 0;
    let mut put = |bytes: &[u8]| -> Result<()> {
        stream.write(bytes)?;
        done += bytes.len() as u64;
        progress(done, total);
        Ok(())
    };
    for step in &steps {
        match step {
            Step::Copy(info) => base.bytes(info).chunks(CHUNK * 4).try_for_each(&mut put)?,
            Step::Change { info, pair, factors, dtype } => {
                let rows_per_chunk = (CHUNK / info.n_per_row()).max(1);
                let n_chunks = info.n_rows().div_ceil(rows_per_chunk);
                let make = |chunk: usize| -> Result<Vec<u8>> {
                    let start = chunk * rows_per_chunk;
                    let rows = start..(start + rows_per_chunk).min(info.n_rows());
                    let mut values = Vec::new();
                    base.read_rows(info, rows.clone(), &mut values)?;
                    add_rows(&mut values, rows.start, *factors, pair);
                    let mut bytes = Vec::new();
                    dtype.quantize(&values, info.n_per_row(), &mut bytes)?;
                    Ok(bytes)
                };
                parallel::in_order(n_chunks, config.threads, make, |bytes| put(&bytes))?;
            }
        }
    }
    merged.bytes = stream.finish()?;
    Ok(merged)
}

/// `values` are the rows of W from `first` on: each becomes `weight * row + adapter * B[row] A`.
fn add_rows(values: &mut [f32], first: usize, factors: Factors, pair: &AdapterPair) {
    let (n_in, rank) = (pair.n_in(), pair.rank());
    for (i, row) in values.chunks_exact_mut(n_in).enumerate() {
        if factors.weight != 1.0 {
            row.iter_mut().for_each(|w| *w *= factors.weight);
        }
        let b = &pair.b.data[(first + i) * rank..(first + i + 1) * rank];
        for (b, a) in b.iter().zip(pair.a.data.chunks_exact(n_in)) {
            let b = b * factors.adapter;
            row.iter_mut().zip(a).for_each(|(w, a)| *w += b * a);
        }
    }
}

fn steps<'a>(base: &'a GgufFile, adapter: &'a AdapterFile, output: OutputType) -> Result<Vec<Step<'a>>> {
    let scale_of = |weight: &str| base.tensor(&format!("{}.scale", weight.strip_suffix(".weight")?));
    let folded: Vec<&str> =
        adapter.pairs.iter().filter_map(|p| scale_of(&p.tensor)).map(|t| t.name.as_str()).collect();
    let mut steps = Vec::new();
    for info in base.tensors().iter().filter(|t| !folded.contains(&t.name.as_str())) {
        let Some(pair) = adapter.pair(&info.name) else {
            steps.push(Step::Copy(info));
            continue;
        };
        let mut factors = Factors { weight: 1.0, adapter: adapter.scale(pair) };
        if let Some(t) = scale_of(&info.name) {
            factors.weight = base.read_f32(base.require_shape(&t.name, &[1])?)?[0];
            let (_, target) = names::parse_gguf(&info.name)
                .ok_or_else(|| Error::NoName { path: adapter.path.clone(), tensor: info.name.clone() })?;
            if names::architecture(&adapter.architecture)?.scale_covers_adapter(target) {
                factors.adapter *= factors.weight;
            }
        }
        let dtype = match output {
            OutputType::Fixed(dtype) => dtype,
            OutputType::Keep if info.dtype.is_ternary() || !info.dtype.can_quantize() => Dtype::F16,
            OutputType::Keep => info.dtype,
        };
        if dtype.is_ternary() || !dtype.can_quantize() || dtype.row_size(info.n_per_row()).is_none() {
            return Err(Error::OutputType { tensor: info.name.clone(), dtype: dtype.name() });
        }
        steps.push(Step::Change { info, pair, factors, dtype });
    }
    Ok(steps)
}

/// Whether both paths are one file, through links too.
fn same_file(a: &Path, b: &Path) -> bool {
    match (a.canonicalize(), b.canonicalize()) {
        (Ok(a), Ok(b)) => a == b,
        _ => a == b,
    }
}
