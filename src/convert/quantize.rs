//! A GGUF file's linear layers into the ternary types.

use std::path::PathBuf;
use std::sync::atomic::AtomicBool;

use super::error::{Error, Result};
use super::stream::Writer;
use super::ternary::{self, Deviation};
use super::{check_type, metadata};
use crate::ggml::{Dtype, GgufFile, GgufWriter, TensorInfo};
use crate::model::Target;
use crate::parallel;

/// What to make of which file.
#[derive(Debug, Clone)]
pub struct QuantizeConfig {
    pub model: PathBuf,
    pub out: PathBuf,
    /// TQ1_0 or TQ2_0.
    pub dtype: Dtype,
    /// Make ternary what is not, and say how far off it is.
    pub force: bool,
    pub threads: usize,
}

/// One tensor that got the type, and how far its values are from those before.
#[derive(Debug, Clone, PartialEq)]
pub struct QuantizedTensor {
    pub name: String,
    pub from: Dtype,
    /// The largest error over the largest value.
    pub max: f64,
    /// The root mean square error over the root mean square.
    pub rms: f64,
}

/// What was written.
#[derive(Debug, Clone, PartialEq)]
pub struct Quantized {
    pub tensors: Vec<QuantizedTensor>,
    /// Linear layers whose rows are no whole blocks; they stayed what they were.
    pub kept: Vec<String>,
    pub bytes: u64,
}

/// The linear layers of the blocks: what is ternary in a ternary network.
fn is_linear(name: &str) -> bool {
    let mut parts = name.split('.');
    parts.next() == Some("blk")
        && parts.next().is_some_and(|il| il.parse::<usize>().is_ok())
        && parts.next().is_some_and(|role| Target::ALL.iter().any(|t| t.name() == role))
        && parts.eq(["weight"])
}

/// Requantizes a file; `progress` is told the bytes of tensor data written so far and in all.
pub fn quantize(
    config: &QuantizeConfig,
    stop: &AtomicBool,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<Quantized> {
    check_type(config.dtype, &[Dtype::TQ1_0, Dtype::TQ2_0])?;
    if config.out.canonicalize().is_ok_and(|out| config.model.canonicalize().is_ok_and(|m| m == out)) {
        return Err(Error::Overwrite { path: config.out.clone() });
    }
    let file = GgufFile::open(&config.model)?;
    let fits = |t: &TensorInfo| config.dtype.row_size(t.n_per_row()).is_some() && t.dtype.can_dequantize();
    let changes = |t: &TensorInfo| is_linear(&t.name) && fits(t);
    let mut writer = GgufWriter::new();
    writer.copy_metadata(&file);
    writer.set("general.file_type", metadata::file_type(config.dtype));
    for t in file.tensors() {
        let dtype = if changes(t) { config.dtype } else { t.dtype };
        writer.add_tensor(&t.name, &t.ne[..t.n_dims.max(1)], dtype)?;
    }
    if !file.tensors().iter().any(changes) {
        return Err(Error::NothingToDo { path: config.model.clone(), dtype: config.dtype.name() });
    }
    let total = writer.data_size();
    let stream = writer.create(&config.out)?;
    let mut writer = Writer { stream, threads: config.threads, total, done: 0, progress, stop };
    let mut done = Quantized { tensors: Vec::new(), kept: Vec::new(), bytes: 0 };
    for t in file.tensors() {
        if !changes(t) || t.dtype == config.dtype {
            file.bytes(t).chunks(ternary::CHUNK).try_for_each(|bytes| writer.put(bytes))?;
            if is_linear(&t.name) && !fits(t) {
                done.kept.push(t.name.clone());
            }
            continue;
        }
        let deviation = tensor(config, &file, t, &mut writer)?;
        let (max, rms) = (deviation.max(), deviation.rms());
        done.tensors.push(QuantizedTensor { name: t.name.clone(), from: t.dtype, max, rms });
    }
    done.bytes = writer.stream.finish()?;
    Ok(done)
}

fn tensor(
    config: &QuantizeConfig,
    file: &GgufFile,
    t: &TensorInfo,
    writer: &mut Writer<'_>,
) -> Result<Deviation> {
    // Ternary or not is a matter of the whole tensor, and has to be known before its first piece is written.
    let found = pass(config, file, t, false, &mut |_| Ok(()))?;
    if found.is_ternary() {
        return pass(config, file, t, false, &mut |bytes| writer.put(bytes));
    }
    if config.force {
        return pass(config, file, t, true, &mut |bytes| writer.put(bytes));
    }
    // What `--force` would make of it is what the user wants to know.
    let forced = pass(config, file, t, true, &mut |_| Ok(()))?;
    Err(Error::NotTernary {
        path: config.model.clone(),
        tensor: t.name.clone(),
        dtype: config.dtype.name(),
        max: forced.max(),
        rms: forced.rms(),
        remedy: "keep the type it has, or pass `--force` if such errors are no matter",
    })
}

/// Goes through a tensor's rows; `put` gets them in their new type.
fn pass(
    config: &QuantizeConfig,
    file: &GgufFile,
    t: &TensorInfo,
    force: bool,
    put: &mut dyn FnMut(&[u8]) -> Result<()>,
) -> Result<Deviation> {
    let (n_chunks, rows_of) = ternary::chunks(t.n_rows(), t.n_per_row());
    let make = |chunk: usize| -> Result<(Vec<u8>, Deviation)> {
        let mut values = Vec::new();
        file.read_rows(t, rows_of(chunk), &mut values)?;
        if let Some(&found) = values.iter().find(|x| !x.is_finite()) {
            return Err(Error::NotFinite { path: config.model.clone(), tensor: t.name.clone(), found });
        }
        let mut deviation = Deviation::default();
        let round = if force { ternary::force_ternary_blocks } else { ternary::round_ternary_blocks };
        round(&mut values, config.dtype.block_size(), &mut deviation);
        let mut bytes = Vec::new();
        config.dtype.quantize(&values, t.n_per_row(), &mut bytes)?;
        Ok((bytes, deviation))
    };
    let mut all = Deviation::default();
    parallel::in_order(n_chunks, config.threads, make, |(bytes, deviation)| {
        all = all.and(deviation);
        put(&bytes)
    })?;
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn linear_layers_are_told_by_their_names() {
        assert!(is_linear("blk.0.attn_q.weight") && is_linear("blk.31.ffn_down.weight"));
        for other in
            ["blk.0.attn_norm.weight", "token_embd.weight", "blk.x.attn_q.weight", "blk.0.attn_q.bias"]
        {
            assert!(!is_linear(other), "{other}");
        }
    }
}
