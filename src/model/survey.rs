//! What a GGUF model is made of: how many values of which type, and what its ternary tensors hold.
//!
//! Reads the file only; works for architectures that cannot be trained too.

use std::collections::BTreeMap;
use std::convert::Infallible;

use serde::Serialize;

use super::error::Result;
use crate::ggml::gguf::TensorInfo;
use crate::ggml::{Dtype, GgufFile};
use crate::parallel;

/// Blocks that one thread looks at in one go.
const BLOCKS: usize = 1 << 13;

/// All tensors of one type.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct TypeCount {
    #[serde(rename = "type")]
    pub name: &'static str,
    pub n_tensors: usize,
    pub n_params: u64,
    pub bytes: u64,
}

/// What the ternary tensors of a model hold.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Ternary {
    pub n_tensors: usize,
    pub n_params: u64,
    /// Share of values that are 0.
    pub zeros: f64,
    /// Tensors whose blocks all have the same scale (all-zero blocks aside).
    pub n_one_scale: usize,
    /// Names of the others.
    pub mixed_scales: Vec<String>,
}

/// Counts by type, the most bytes first.
pub fn types(file: &GgufFile) -> Vec<TypeCount> {
    let mut counts: BTreeMap<Dtype, TypeCount> = BTreeMap::new();
    for t in file.tensors() {
        let count = counts.entry(t.dtype).or_insert_with(|| TypeCount {
            name: t.dtype.name(),
            n_tensors: 0,
            n_params: 0,
            bytes: 0,
        });
        count.n_tensors += 1;
        count.n_params += t.n_elements() as u64;
        count.bytes += t.size;
    }
    let mut counts: Vec<TypeCount> = counts.into_values().collect();
    counts.sort_by_key(|c| std::cmp::Reverse(c.bytes));
    counts
}

/// Looks at every block of every ternary tensor; `None` if there are none. `progress` is told bytes so far and in all.
pub fn ternary(
    file: &GgufFile,
    threads: usize,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<Option<Ternary>> {
    let tensors: Vec<&TensorInfo> = file.tensors().iter().filter(|t| t.dtype.is_ternary()).collect();
    let total = tensors.iter().map(|t| t.size).sum();
    let (mut done, mut zeros) = (0, 0);
    let mut found =
        Ternary { n_tensors: tensors.len(), n_params: 0, zeros: 0.0, n_one_scale: 0, mixed_scales: vec![] };
    for info in tensors {
        let piece = BLOCKS * info.dtype.type_size();
        let pieces: Vec<&[u8]> = file.bytes(info).chunks(piece).collect();
        let mut scale = Scale::None;
        let look =
            |i: usize| Ok::<_, Infallible>((survey_blocks(info.dtype, pieces[i]), pieces[i].len() as u64));
        let Ok(()) = parallel::in_order(pieces.len(), threads, look, |((n, s), bytes)| {
            zeros += n;
            scale = scale.and(s);
            done += bytes;
            progress(done, total);
            Ok(())
        });
        found.n_params += info.n_elements() as u64;
        match scale {
            Scale::Mixed => found.mixed_scales.push(info.name.clone()),
            Scale::None | Scale::One(_) => found.n_one_scale += 1,
        }
    }
    found.zeros = zeros as f64 / found.n_params.max(1) as f64;
    Ok((found.n_tensors > 0).then_some(found))
}

/// The scales seen so far, as f16 bits.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Scale {
    None,
    One([u8; 2]),
    Mixed,
}

impl Scale {
    fn and(self, other: Self) -> Self {
        match (self, other) {
            (Self::None, s) | (s, Self::None) => s,
            (Self::One(a), Self::One(b)) if a == b => self,
            _ => Self::Mixed,
        }
    }
}

/// Zeros and scales of whole blocks. The scale is the last two bytes of a block in both types.
fn survey_blocks(dtype: Dtype, bytes: &[u8]) -> (u64, Scale) {
    let (mut zeros, mut scale) = (0, Scale::None);
    let mut values = vec![0f32; dtype.block_size()];
    for block in bytes.chunks_exact(dtype.type_size()) {
        dtype.dequantize(block, &mut values).expect("one whole block");
        let n = values.iter().filter(|v| **v == 0.0).count();
        zeros += n as u64;
        if n < values.len() {
            scale = scale.and(Scale::One([block[block.len() - 2], block[block.len() - 1]]));
        }
    }
    (zeros, scale)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ggml::GgufWriter;

    #[test]
    fn scales_and_zeros_are_counted() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("m.gguf");
        let mut w = GgufWriter::new();
        for (name, dtype) in [("even", Dtype::TQ2_0), ("mixed", Dtype::TQ1_0), ("plain", Dtype::F32)] {
            w.add_tensor(name, &[512], dtype).unwrap();
        }
        // One block of +-0.5 with a zero in two, then one of zeros; and blocks of two scales.
        let even: Vec<f32> = (0..512).map(|i| if i < 256 && i % 2 == 0 { 0.5 } else { 0.0 }).collect();
        let mixed: Vec<f32> = (0..512).map(|i| if i < 256 { 0.5 } else { -0.25 }).collect();
        let mut stream = w.create(&path).unwrap();
        for (dtype, values) in [(Dtype::TQ2_0, &even), (Dtype::TQ1_0, &mixed), (Dtype::F32, &mixed)] {
            let mut bytes = Vec::new();
            dtype.quantize(values, 512, &mut bytes).unwrap();
            stream.write(&bytes).unwrap();
        }
        stream.finish().unwrap();
        let file = GgufFile::open(&path).unwrap();
        let found = ternary(&file, 2, &mut |_, _| ()).unwrap().unwrap();
        assert_eq!((found.n_tensors, found.n_params, found.n_one_scale), (2, 1024, 1));
        assert_eq!(found.mixed_scales, ["mixed"]);
        assert_eq!(found.zeros, 384.0 / 1024.0);
        let types = types(&file);
        assert_eq!(types.iter().map(|t| t.name).collect::<Vec<_>>(), ["f32", "tq2_0", "tq1_0"]);
        assert_eq!((types[0].n_params, types[0].bytes), (512, 2048));
    }
}
