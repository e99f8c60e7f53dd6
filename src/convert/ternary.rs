//! Ternary values out of what checkpoints hold, and into blocks, exactly.
//!
//! transformers packs four rows into one (`integrations/bitnet.py`): byte `r` of a column holds rows `r`, `r + n`,
//! `r + 2n` and `r + 3n` of `4n`, two bits each from the lowest, as value + 1. Masters become ternary as BitNet's
//! linear layer does it in each forward (`WeightQuant` there; arXiv:2402.17764): times 1 / mean |W|, rounded half to
//! even, clipped to -1..1. Values that are ternary already keep what scale they have, block by block.

use std::ops::Range;

use super::checkpoint::Source;
use super::error::{Error, Result};
use super::layout::Padding;
use crate::ggml::Dtype;
use crate::parallel;

/// Smallest mean that masters are divided by; transformers' own.
const MIN_MEAN: f32 = 1e-5;
/// Values that one thread works on at a time.
pub(super) const CHUNK: usize = 1 << 19;
/// Largest error of rounding a scale to f16, relative to it: half a unit of ten bits.
pub(super) const F16_ROUNDING: f64 = 1.0 / 2048.0;

/// Whether f16 holds the number exactly, as a normal one.
pub(super) fn is_f16(x: f32) -> bool {
    let half = half::f16::from_f32(x);
    half.is_normal() && half.to_f32() == x
}

/// How far values are from what was written of them.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct Deviation {
    largest_error: f64,
    largest: f64,
    squared_error: f64,
    squared: f64,
}

impl Deviation {
    pub(super) fn add(&mut self, value: f32, written: f32) {
        let (value, error) = (f64::from(value), f64::from(value) - f64::from(written));
        self.largest_error = self.largest_error.max(error.abs());
        self.largest = self.largest.max(value.abs());
        self.squared_error += error * error;
        self.squared += value * value;
    }

    pub(super) fn and(self, other: Self) -> Self {
        Self {
            largest_error: self.largest_error.max(other.largest_error),
            largest: self.largest.max(other.largest),
            squared_error: self.squared_error + other.squared_error,
            squared: self.squared + other.squared,
        }
    }

    /// The largest error over the largest value.
    pub(super) fn max(&self) -> f64 {
        if self.largest > 0.0 {
            self.largest_error / self.largest
        } else {
            0.0
        }
    }

    /// The root of the mean squared error over that of the mean square.
    pub(super) fn rms(&self) -> f64 {
        if self.squared > 0.0 {
            (self.squared_error / self.squared).sqrt()
        } else {
            0.0
        }
    }

    /// No further off than a scale in f16 explains.
    pub(super) fn is_ternary(&self) -> bool {
        self.max() <= F16_ROUNDING
    }
}

/// A packed row as -1, 0 and 1. `n_rows` are those of the whole matrix.
pub(super) fn unpack_row(source: &Source<'_>, n_rows: usize, row: usize, out: &mut [f32]) -> Result<()> {
    let n = n_rows / 4;
    let shift = 2 * (row / n);
    let bytes = &source.bytes[row % n * out.len()..(row % n + 1) * out.len()];
    for (x, byte) in out.iter_mut().zip(bytes) {
        let code = byte >> shift & 3;
        if code == 3 {
            return Err(Error::PackedValue { path: source.path.into(), tensor: source.name.into(), row });
        }
        *x = f32::from(code) - 1.0;
    }
    Ok(())
}

/// Masters' scale: what their rounded values are to be multiplied by, and what they are multiplied by before rounding.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct MasterScale {
    pub scale: f32,
    inverse: f32,
}

impl MasterScale {
    /// From all values of a matrix. The sum is in f64, in one order whatever the threads.
    pub(super) fn of(source: &Source<'_>, threads: usize) -> Result<Self> {
        let n: usize = source.shape.iter().product();
        let n_per_row = source.shape[1];
        let rows_per_chunk = (CHUNK / n_per_row).max(1);
        let sum_of = |chunk: usize| -> Result<f64> {
            let rows = chunk * rows_per_chunk..((chunk + 1) * rows_per_chunk).min(source.shape[0]);
            let mut row = vec![0.0; n_per_row];
            let mut sum = 0.0;
            for r in rows {
                source.read_row(r, &mut row)?;
                sum += row.iter().map(|x| f64::from(x.abs())).sum::<f64>();
            }
            Ok(sum)
        };
        let mut sum = 0.0;
        parallel::in_order(source.shape[0].div_ceil(rows_per_chunk), threads, sum_of, |part| {
            sum += part;
            Ok(())
        })?;
        Ok(Self::from_mean((sum / n as f64) as f32))
    }

    fn from_mean(mean: f32) -> Self {
        // Inverted twice, as the network itself does.
        let inverse = 1.0 / mean.max(MIN_MEAN);
        Self { scale: 1.0 / inverse, inverse }
    }

    /// Masters to -1, 0 and 1.
    pub(super) fn round(self, values: &mut [f32]) {
        values.iter_mut().for_each(|x| *x = (*x * self.inverse).round_ties_even().clamp(-1.0, 1.0));
    }
}

/// Blocks of values that are ternary already: to what the block can hold, the scale in f16.
pub(super) fn round_ternary_blocks(values: &mut [f32], block: usize, deviation: &mut Deviation) {
    for block in values.chunks_mut(block) {
        let largest = largest(block);
        round_block(block, largest / 2.0, half::f16::from_f32(largest).to_f32(), deviation);
    }
}

fn largest(block: &[f32]) -> f32 {
    block.iter().fold(0.0, |m, x| m.max(x.abs()))
}

/// What float values turn out to be.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Survey {
    /// All of them 0 or of one size.
    OneScale(f32),
    /// Ternary in blocks of this many values.
    Blocks(usize),
    /// Neither; how far from it in the largest blocks.
    Neither(Deviation),
}

/// Looks at all values of a matrix whose rows are padded by `cols`. `blocks` are tried in their order.
pub(super) fn survey(source: &Source<'_>, cols: Padding, blocks: &[usize], threads: usize) -> Result<Survey> {
    let n_per_row = cols.to();
    let (n_chunks, rows_of) = chunks(source.shape[0], n_per_row);
    let make = |chunk: usize| -> Result<(Vec<Deviation>, [f32; 2])> {
        let (mut row, mut values) = (vec![0.0; cols.from()], vec![0.0; n_per_row]);
        let mut deviations = vec![Deviation::default(); blocks.len()];
        let (mut smallest, mut most) = (f32::INFINITY, 0f32);
        for r in rows_of(chunk) {
            source.read_row(r, &mut row)?;
            for x in row.iter().map(|x| x.abs()).filter(|x| *x > 0.0) {
                smallest = smallest.min(x);
                most = most.max(x);
            }
            for (block, deviation) in blocks.iter().zip(&mut deviations) {
                cols.apply(&row, &mut values);
                round_ternary_blocks(&mut values, *block, deviation);
            }
        }
        Ok((deviations, [smallest, most]))
    };
    let mut all = vec![Deviation::default(); blocks.len()];
    let (mut smallest, mut most) = (f32::INFINITY, 0f32);
    parallel::in_order(n_chunks, threads, make, |(deviations, [low, high])| {
        all.iter_mut().zip(deviations).for_each(|(sum, part)| *sum = sum.and(part));
        smallest = smallest.min(low);
        most = most.max(high);
        Ok(())
    })?;
    if smallest == most {
        return Ok(Survey::OneScale(most));
    }
    let fit = blocks.iter().zip(&all).find(|(_, deviation)| deviation.is_ternary());
    Ok(fit.map_or(Survey::Neither(all[0]), |(block, _)| Survey::Blocks(*block)))
}

/// Blocks of any values, to the nearest ternary ones in the sense of ternary weight networks (arXiv:1605.04711): the
/// threshold is half the mean absolute value, the scale the mean of what lies above it.
pub(super) fn force_ternary_blocks(values: &mut [f32], block: usize, deviation: &mut Deviation) {
    for block in values.chunks_mut(block) {
        let sum =
            |x: &mut dyn Iterator<Item = f32>| x.fold((0.0, 0usize), |(s, n), x| (s + f64::from(x), n + 1));
        let (all, n) = sum(&mut block.iter().map(|x| x.abs()));
        let threshold = (all / n as f64 / 2.0) as f32;
        let (above, n) = sum(&mut block.iter().map(|x| x.abs()).filter(|x| *x > threshold));
        let scale = half::f16::from_f64(above / n.max(1) as f64).to_f32();
        round_block(block, threshold, scale, deviation);
    }
}

fn round_block(block: &mut [f32], threshold: f32, scale: f32, deviation: &mut Deviation) {
    for x in block {
        let written = if x.abs() > threshold { scale.copysign(*x) } else { 0.0 };
        deviation.add(*x, written);
        *x = written;
    }
}

/// Appends rows whose blocks hold `-d`, 0 and `d` each, with a `d` that f16 holds.
pub(super) fn pack(values: &[f32], n_per_row: usize, dtype: Dtype, out: &mut Vec<u8>) -> Result<()> {
    if dtype != Dtype::Q8_0 {
        // F16 holds the values, and upstream's ternary quantizers take the largest of a block for its scale.
        return Ok(dtype.quantize(values, n_per_row, out)?);
    }
    // Upstream's quantizer would make d / 127 of the scale, which f16 does not hold.
    for block in values.chunks_exact(dtype.block_size()) {
        let d = largest(block);
        out.extend(half::f16::from_f32(d).to_le_bytes());
        out.extend(block.iter().map(|x| if *x == 0.0 { 0 } else { x.signum() as i8 as u8 }));
    }
    Ok(())
}

/// Rows `rows` in pieces that one thread works on.
pub(super) fn chunks(n_rows: usize, n_per_row: usize) -> (usize, impl Fn(usize) -> Range<usize>) {
    let rows_per_chunk = (CHUNK / n_per_row.max(1)).max(1);
    let n = n_rows.div_ceil(rows_per_chunk);
    (n, move |chunk| chunk * rows_per_chunk..((chunk + 1) * rows_per_chunk).min(n_rows))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use safetensors::Dtype as SafeDtype;

    use super::*;

    #[test]
    fn packed_rows_come_apart_as_transformers_says() {
        // The example of `unpack_weights`.
        let bytes = [0b1010_0001u8, 0b0001_1000, 0b1001_0000, 0b0000_1010];
        let source =
            Source { path: Path::new("x"), name: "w", dtype: SafeDtype::U8, shape: &[2, 2], bytes: &bytes };
        let mut all = Vec::new();
        for row in 0..8 {
            let mut out = [9.0; 2];
            unpack_row(&source, 8, row, &mut out).unwrap();
            all.push(out);
        }
        let expected = [[0, -1], [-1, 1], [-1, 1], [-1, 1], [1, 0], [0, -1], [1, -1], [1, -1]]
            .map(|r| r.map(|x| x as f32));
        assert_eq!(all, expected);
        let bad = Source { bytes: &[0, 0, 0, 0b0000_1100], ..source };
        let e = unpack_row(&bad, 8, 3, &mut [0.0; 2]).unwrap_err();
        assert!(matches!(e, Error::PackedValue { row: 3, .. }), "{e}");
    }

    #[test]
    fn masters_round_half_to_even() {
        let s = MasterScale::from_mean(2.0);
        let mut x = [1.0, -1.0, 1.5, 3.0, -9.0, 0.9];
        s.round(&mut x);
        assert_eq!(x, [0.0, 0.0, 1.0, 1.0, -1.0, 0.0]);
        assert_eq!(s.scale, 2.0);
        assert_eq!(MasterScale::from_mean(0.0).scale, 1.0 / (1.0 / MIN_MEAN));
    }

    #[test]
    fn every_type_holds_the_values_exactly() {
        for d in [1.0, half::f16::from_f32(0.0271).to_f32()] {
            let x: Vec<f32> = (0..512).map(|i| d * ((i * 7 % 3) as f32 - 1.0)).collect();
            for dtype in [Dtype::TQ1_0, Dtype::TQ2_0, Dtype::Q8_0, Dtype::F16] {
                let mut bytes = Vec::new();
                pack(&x, 256, dtype, &mut bytes).unwrap();
                let mut back = vec![9.0; x.len()];
                dtype.dequantize(&bytes, &mut back).unwrap();
                assert_eq!(x, back, "{dtype}");
            }
        }
    }

    #[test]
    fn matrices_are_told_apart_by_their_scales() {
        // Two rows of 512, their values 0, 1 and -1 times a scale by column.
        let look = |scale: &dyn Fn(usize) -> f32| {
            let x = (0..1024).map(|i| ((i * 7 % 3) as f32 - 1.0) * scale(i % 512));
            let bytes: Vec<u8> = x.flat_map(|x| x.to_le_bytes()).collect();
            let source = Source {
                path: Path::new("x"),
                name: "w",
                dtype: SafeDtype::F32,
                shape: &[2, 512],
                bytes: &bytes,
            };
            survey(&source, Padding::none(512), &[256, 32], 2).unwrap()
        };
        assert_eq!(look(&|_| 0.1), Survey::OneScale(0.1));
        assert_eq!(look(&|col| if col < 256 { 0.5 } else { 0.25 }), Survey::Blocks(256));
        assert_eq!(look(&|col| if col < 96 { 0.5 } else { 0.25 }), Survey::Blocks(32));
        assert!(matches!(look(&|col| col as f32), Survey::Neither(_)));
        assert_eq!(look(&|_| 0.0), Survey::Blocks(256));
    }

    #[test]
    fn what_is_not_ternary_shows() {
        let mut deviation = Deviation::default();
        let mut x = [0.1f32, -0.1, 0.0, 0.1];
        round_ternary_blocks(&mut x, 4, &mut deviation);
        assert!(deviation.is_ternary() && deviation.max() > 0.0, "0.1 is not exact in f16");
        let mut y = [0.1f32, -0.05, 0.0, 0.1];
        let mut deviation = Deviation::default();
        round_ternary_blocks(&mut y, 4, &mut deviation);
        assert!(!deviation.is_ternary());
        assert!((deviation.max() - 0.5).abs() < 1e-3);
    }
}
