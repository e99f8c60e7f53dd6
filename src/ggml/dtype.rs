//! Tensor element types: names, block and row sizes, conversion of rows from and to f32.
//!
//! Sizes and conversions are upstream's own (`ggml_type_traits`, `ggml_quantize_chunk`); what those would assert on is
//! checked here first. Types upstream has removed are no variants, so that a file cannot smuggle one in.
//! To add a type: one variant and one line in `ALL`; the tests iterate it.

use std::ffi::CStr;

use super::error::{Error, Result};

/// A `ggml_type`. The numbers are those of files and of the C enum.
#[repr(u32)]
#[allow(non_camel_case_types)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Dtype {
    F32 = 0,
    F16 = 1,
    Q4_0 = 2,
    Q4_1 = 3,
    Q5_0 = 6,
    Q5_1 = 7,
    Q8_0 = 8,
    Q8_1 = 9,
    Q2_K = 10,
    Q3_K = 11,
    Q4_K = 12,
    Q5_K = 13,
    Q6_K = 14,
    Q8_K = 15,
    IQ2_XXS = 16,
    IQ2_XS = 17,
    IQ3_XXS = 18,
    IQ1_S = 19,
    IQ4_NL = 20,
    IQ3_S = 21,
    IQ2_S = 22,
    IQ4_XS = 23,
    I8 = 24,
    I16 = 25,
    I32 = 26,
    I64 = 27,
    F64 = 28,
    IQ1_M = 29,
    BF16 = 30,
    TQ1_0 = 34,
    TQ2_0 = 35,
    MXFP4 = 39,
    NVFP4 = 40,
    Q1_0 = 41,
    Q2_0 = 42,
}

use Dtype::*;

impl Dtype {
    /// Every type this build knows.
    pub const ALL: [Dtype; 35] = [
        F32, F16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q8_1, Q2_K, Q3_K, Q4_K, Q5_K, Q6_K, Q8_K, IQ2_XXS, IQ2_XS,
        IQ3_XXS, IQ1_S, IQ4_NL, IQ3_S, IQ2_S, IQ4_XS, I8, I16, I32, I64, F64, IQ1_M, BF16, TQ1_0, TQ2_0,
        MXFP4, NVFP4, Q1_0, Q2_0,
    ];

    /// The type with this number in a file, if this build knows it.
    pub fn from_u32(id: u32) -> Option<Self> {
        Self::ALL.into_iter().find(|t| *t as u32 == id)
    }

    /// The type of this name, whatever its case (`tq2_0`, `Q6_K`).
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|t| t.name().eq_ignore_ascii_case(name))
    }

    /// The number as the C API takes it.
    pub fn as_raw(self) -> llama_sys::ggml_type {
        self as u32 as llama_sys::ggml_type
    }

    /// The type behind a number of the C API.
    // bindgen makes the enum i32 on Windows and u32 elsewhere.
    #[allow(clippy::unnecessary_cast)]
    pub fn from_raw(raw: llama_sys::ggml_type) -> Option<Self> {
        Self::from_u32(raw as u32)
    }

    fn traits(self) -> &'static llama_sys::ggml_type_traits {
        // SAFETY: `self` is below GGML_TYPE_COUNT (a test holds every variant to it), so upstream returns a pointer into
        // its static table, which is never written.
        unsafe { &*llama_sys::ggml_get_type_traits(self.as_raw()) }
    }

    /// Upstream's name, such as `tq2_0` or `q6_K`.
    pub fn name(self) -> &'static str {
        // SAFETY: the name in the static table is a NUL-terminated string literal.
        unsafe { CStr::from_ptr(self.traits().type_name) }.to_str().unwrap_or("?")
    }

    /// Values per block (1 for plain types).
    pub fn block_size(self) -> usize {
        self.traits().blck_size as usize
    }

    /// Bytes per block.
    pub fn type_size(self) -> usize {
        self.traits().type_size
    }

    /// Bytes of a row of `n` values, if `n` is a multiple of the block and the size fits.
    pub fn row_size(self, n: usize) -> Option<usize> {
        let block = self.block_size();
        (n % block == 0).then(|| (n / block).checked_mul(self.type_size())).flatten()
    }

    /// Whether values are stored in blocks that share a scale.
    pub fn is_quantized(self) -> bool {
        self.traits().is_quantized
    }

    /// Whether this is one of the two ternary types.
    pub fn is_ternary(self) -> bool {
        matches!(self, TQ1_0 | TQ2_0)
    }

    /// Whether [`Dtype::quantize`] can write it (those that need an importance matrix cannot be).
    pub fn can_quantize(self) -> bool {
        matches!(
            self,
            F32 | F16
                | BF16
                | Q4_0
                | Q4_1
                | Q5_0
                | Q5_1
                | Q8_0
                | Q2_K
                | Q3_K
                | Q4_K
                | Q5_K
                | Q6_K
                | TQ1_0
                | TQ2_0
                | IQ4_NL
                | IQ4_XS
        )
    }

    /// Whether [`Dtype::dequantize`] can read it.
    pub fn can_dequantize(self) -> bool {
        self == F32 || self.traits().to_float.is_some()
    }

    /// Appends rows of `n_per_row` values to `out`, converted with upstream's reference quantizer.
    ///
    /// `src` holds whole rows. Safe to call from several threads.
    pub fn quantize(self, src: &[f32], n_per_row: usize, out: &mut Vec<u8>) -> Result<()> {
        if !self.can_quantize() {
            return Err(Error::NoConversion { type_name: self.name(), direction: "from" });
        }
        let (rows, row_size) = self.rows(src.len(), n_per_row)?;
        if rows == 0 {
            return Ok(());
        }
        let start = out.len();
        out.resize(start + rows * row_size, 0);
        if self == F32 {
            for (to, from) in out[start..].chunks_exact_mut(4).zip(src) {
                to.copy_from_slice(&from.to_ne_bytes());
            }
            return Ok(());
        }
        // Upstream casts the target to its block structs, whose alignment (at most 4) a byte vector need not have once
        // something stands before it; then the rows are made in a vector of words and copied.
        let target = &mut out[start..];
        if target.as_ptr().align_offset(4) == 0 {
            self.quantize_into(src, rows, n_per_row, target.as_mut_ptr());
        } else {
            let mut words = vec![0u32; target.len().div_ceil(4)];
            self.quantize_into(src, rows, n_per_row, words.as_mut_ptr().cast());
            for (to, word) in target.chunks_mut(4).zip(words) {
                to.copy_from_slice(&word.to_ne_bytes()[..to.len()]);
            }
        }
        Ok(())
    }

    /// `target` has room for `rows` rows and is aligned to 4; the sizes have been checked by the caller.
    fn quantize_into(self, src: &[f32], rows: usize, n_per_row: usize, target: *mut u8) {
        // SAFETY: `src` holds `rows * n_per_row` values and `target` has `rows * row_size` bytes, both by
        // `Dtype::rows`; the type needs no importance matrix by `can_quantize`; upstream guards its own tables.
        unsafe {
            llama_sys::ggml_quantize_chunk(
                self.as_raw(),
                src.as_ptr(),
                target.cast(),
                0,
                rows as i64,
                n_per_row as i64,
                std::ptr::null(),
            );
        }
    }

    /// Reads `src`, whole blocks of this type, into `out`; `out.len()` values must be what `src` holds.
    pub fn dequantize(self, src: &[u8], out: &mut [f32]) -> Result<()> {
        let expected = self.row_size(out.len()).ok_or(Error::RowSize {
            type_name: self.name(),
            block: self.block_size(),
            found: out.len(),
        })?;
        if expected != src.len() {
            return Err(Error::TensorBytes {
                tensor: self.name().into(),
                expected: expected as u64,
                found: src.len() as u64,
            });
        }
        if self == F32 {
            for (to, from) in out.iter_mut().zip(src.chunks_exact(4)) {
                *to = f32::from_ne_bytes([from[0], from[1], from[2], from[3]]);
            }
            return Ok(());
        }
        let to_float =
            self.traits().to_float.ok_or(Error::NoConversion { type_name: self.name(), direction: "to" })?;
        if src.as_ptr().align_offset(4) == 0 {
            // SAFETY: `src` is exactly the blocks of `out.len()` values and aligned for every block struct.
            unsafe { to_float(src.as_ptr().cast(), out.as_mut_ptr(), out.len() as i64) };
        } else {
            let words: Vec<u32> = src
                .chunks(4)
                .map(|c| {
                    let mut word = [0; 4];
                    word[..c.len()].copy_from_slice(c);
                    u32::from_ne_bytes(word)
                })
                .collect();
            // SAFETY: as above, over an aligned copy.
            unsafe { to_float(words.as_ptr().cast(), out.as_mut_ptr(), out.len() as i64) };
        }
        Ok(())
    }

    /// Rows and bytes per row of `n` values.
    fn rows(self, n: usize, n_per_row: usize) -> Result<(usize, usize)> {
        let wrong = |found| Error::RowSize { type_name: self.name(), block: self.block_size(), found };
        if n == 0 {
            return Ok((0, 0));
        }
        let row_size = self.row_size(n_per_row).filter(|_| n_per_row > 0).ok_or_else(|| wrong(n_per_row))?;
        if n % n_per_row != 0 {
            return Err(wrong(n));
        }
        Ok((n / n_per_row, row_size))
    }
}

impl std::fmt::Display for Dtype {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Largest error of a round trip, as a share of the largest value; from each type's step (half of 1/7 for 4 bits).
    const ROUND_TRIP: [(Dtype, f32); 9] = [
        (F32, 0.0),
        (F16, 5e-4),
        (BF16, 4e-3),
        (Q8_0, 5e-3),
        (Q6_K, 0.04),
        (Q5_0, 0.07),
        (Q4_0, 0.14),
        (Q4_1, 0.08),
        (Q4_K, 0.09),
    ];

    fn wave(n: usize) -> Vec<f32> {
        (0..n).map(|i| (i as f32 * 0.37).sin()).collect()
    }

    #[test]
    fn numbers_and_names_agree_with_upstream() {
        for t in Dtype::ALL {
            assert!(t.as_raw() < llama_sys::GGML_TYPE_COUNT);
            assert!(t.block_size() > 0 && t.type_size() > 0, "{t:?} is removed upstream");
            assert_eq!(t.name().to_lowercase(), format!("{t:?}").to_lowercase());
            assert_eq!(Dtype::from_name(t.name()), Some(t));
            assert_eq!(Dtype::from_u32(t as u32), Some(t));
        }
        assert_eq!(Dtype::from_u32(4), None);
        assert_eq!(Dtype::from_u32(43), None);
        assert_eq!((TQ1_0.type_size(), TQ2_0.type_size(), TQ2_0.block_size()), (54, 66, 256));
    }

    #[test]
    fn rows_survive_the_round_trip_within_the_types_step() {
        let x = wave(3 * 512);
        for (t, tolerance) in ROUND_TRIP {
            let mut bytes = vec![7u8]; // an odd start: the unaligned path
            t.quantize(&x, 512, &mut bytes).unwrap();
            let mut back = vec![0f32; x.len()];
            t.dequantize(&bytes[1..], &mut back).unwrap();
            let worst = x.iter().zip(&back).map(|(a, b)| (a - b).abs()).fold(0f32, f32::max);
            assert!(worst <= tolerance, "{t}: {worst} > {tolerance}");
        }
    }

    #[test]
    fn ternary_values_survive_exactly() {
        let d = half::f16::from_f32(0.0271).to_f32();
        let x: Vec<f32> = (0..1024).map(|i| d * ((i * 7 % 3) as f32 - 1.0)).collect();
        for t in [TQ1_0, TQ2_0] {
            let mut bytes = Vec::new();
            t.quantize(&x, 256, &mut bytes).unwrap();
            let mut back = vec![9f32; x.len()];
            t.dequantize(&bytes, &mut back).unwrap();
            assert_eq!(x, back, "{t}");
        }
    }

    #[test]
    fn wrong_sizes_and_types_are_errors() {
        let mut out = Vec::new();
        assert!(matches!(TQ2_0.quantize(&wave(100), 100, &mut out), Err(Error::RowSize { found: 100, .. })));
        assert!(matches!(Q8_0.quantize(&wave(96), 64, &mut out), Err(Error::RowSize { found: 96, .. })));
        assert!(matches!(Q8_0.quantize(&wave(1), 0, &mut out), Err(Error::RowSize { .. })));
        assert!(matches!(IQ1_S.quantize(&wave(256), 256, &mut out), Err(Error::NoConversion { .. })));
        assert!(matches!(I32.dequantize(&[0; 4], &mut [0.0]), Err(Error::NoConversion { .. })));
        assert!(matches!(F16.dequantize(&[0; 3], &mut [0.0; 2]), Err(Error::TensorBytes { .. })));
        assert!(out.is_empty());
    }
}
