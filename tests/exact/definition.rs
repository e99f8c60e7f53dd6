//! The definition of products of floats (docs/exactness.md), written out: what a type's bytes stand for, and the order of a sum.
//! And operands to hold kernels to it with.

use half::{bf16, f16};
use qvac_ft::ggml::{Context, Dtype, Tensor};

use super::bits::Input;

/// Those of MUL_MAT; OUT_PROD and GET_ROWS have the ternary ones too.
pub const TYPES: [Dtype; 9] = [
    Dtype::F32,
    Dtype::F16,
    Dtype::BF16,
    Dtype::Q8_0,
    Dtype::Q4_0,
    Dtype::Q4_1,
    Dtype::Q5_0,
    Dtype::Q4_K,
    Dtype::Q6_K,
];

pub fn all_types() -> impl Iterator<Item = Dtype> {
    TYPES.into_iter().chain([Dtype::TQ1_0, Dtype::TQ2_0])
}

pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z ^ (z >> 27)
    }

    /// Values of very different size, so that the order of a sum shows.
    pub fn floats(&mut self, n: usize) -> Vec<f32> {
        (0..n)
            .map(|_| {
                let r = self.next() >> 8;
                let unit = (r & 0xff_ffff) as f32 / (1 << 23) as f32 - 1.0;
                unit * 2f32.powi((r >> 24) as i32 % 16 - 8)
            })
            .collect()
    }

    /// Any bytes; the scales of blocks are below 2.
    pub fn weights(&mut self, dtype: Dtype, ne: &[i64]) -> Input {
        let n = ne.iter().product::<i64>() as usize;
        let mut bytes: Vec<u8> = match dtype {
            Dtype::F32 => self.floats(n).iter().flat_map(|v| v.to_ne_bytes()).collect(),
            Dtype::F16 => self.floats(n).iter().flat_map(|&v| f16::from_f32(v).to_ne_bytes()).collect(),
            Dtype::BF16 => self.floats(n).iter().flat_map(|&v| bf16::from_f32(v).to_ne_bytes()).collect(),
            _ => (0..dtype.row_size(n).unwrap()).map(|_| (self.next() >> 20) as u8).collect(),
        };
        let scales: &[usize] = match dtype {
            Dtype::Q8_0 | Dtype::Q4_0 | Dtype::Q5_0 => &[0],
            Dtype::Q4_1 | Dtype::Q4_K => &[0, 2],
            Dtype::Q6_K => &[208],
            Dtype::TQ1_0 => &[52],
            Dtype::TQ2_0 => &[64],
            _ => &[],
        };
        for block in bytes.chunks_exact_mut(dtype.type_size()) {
            for &at in scales {
                block[at + 1] &= 0xbf;
            }
        }
        Input { dtype, ne: ne.to_vec(), bytes }
    }
}

/// One block's values by the formula of its type, an operation at a time.
fn block_values(dtype: Dtype, block: &[u8]) -> Vec<f32> {
    let half = |at: usize| f16::from_ne_bytes([block[at], block[at + 1]]).to_f32();
    let nibble = |at: usize, i: usize| {
        if i < 16 {
            block[at + i] & 15
        } else {
            block[at + i - 16] >> 4
        }
    };
    match dtype {
        Dtype::F32 => vec![f32::from_ne_bytes(block.try_into().unwrap())],
        Dtype::F16 => vec![half(0)],
        Dtype::BF16 => vec![bf16::from_ne_bytes(block.try_into().unwrap()).to_f32()],
        Dtype::Q8_0 => (0..32).map(|i| half(0) * f32::from(block[2 + i] as i8)).collect(),
        Dtype::Q4_0 => (0..32).map(|i| half(0) * (f32::from(nibble(2, i)) - 8.0)).collect(),
        Dtype::Q4_1 => (0..32).map(|i| half(0) * f32::from(nibble(4, i)) + half(2)).collect(),
        Dtype::Q5_0 => {
            let high = u32::from_le_bytes(block[2..6].try_into().unwrap());
            let q = |i: usize| u32::from(nibble(6, i)) + 16 * ((high >> i) & 1);
            (0..32).map(|i| half(0) * (q(i) as f32 - 16.0)).collect()
        }
        Dtype::Q4_K => (0..256)
            .map(|i| {
                let (s, j) = (&block[4..16], i / 32);
                let (scale, min) = match j {
                    0..4 => (s[j] & 63, s[j + 4] & 63),
                    _ => (s[j + 4] & 15 | s[j - 4] >> 6 << 4, s[j + 4] >> 4 | s[j] >> 6 << 4),
                };
                let q = block[16 + i / 64 * 32 + i % 32] >> (i / 32 % 2 * 4) & 15;
                (half(0) * f32::from(scale)) * f32::from(q) - half(2) * f32::from(min)
            })
            .collect(),
        Dtype::Q6_K => (0..256)
            .map(|i| {
                let (n, j, l) = (i / 128, i / 32 % 4, i % 32);
                let low = block[n * 64 + j % 2 * 32 + l] >> (j / 2 * 4) & 15;
                let high = block[128 + n * 32 + l] >> (j * 2) & 3;
                let scale = block[192 + i / 16] as i8;
                (half(208) * f32::from(scale)) * (f32::from(low | high << 4) - 32.0)
            })
            .collect(),
        Dtype::TQ1_0 => (0..256)
            .map(|i| {
                let (byte, digit) = match i {
                    0..160 => (i % 32, i / 32),
                    160..240 => (32 + i % 16, (i - 160) / 16),
                    _ => (48 + i % 4, (i - 240) / 4),
                };
                let rest = block[byte].wrapping_mul(3u8.pow(digit as u32));
                half(52) * (f32::from(((u16::from(rest) * 3) >> 8) as u8) - 1.0)
            })
            .collect(),
        Dtype::TQ2_0 => (0..256)
            .map(|i| {
                let q = block[i / 128 * 32 + i % 32] >> (i / 32 % 4 * 2) & 3;
                half(64) * (f32::from(q) - 1.0)
            })
            .collect(),
        _ => unreachable!("not a type of weights"),
    }
}

pub fn values(input: &Input) -> Vec<f32> {
    let blocks = input.bytes.chunks_exact(input.dtype.type_size());
    blocks.flat_map(|block| block_values(input.dtype, block)).collect()
}

/// The sums of a product's segments.
pub fn segments(k: usize, a: impl Fn(usize) -> f32, b: impl Fn(usize) -> f32) -> Vec<f32> {
    let mut sums = vec![0.0f32; k.div_ceil(32)];
    for i in 0..k {
        sums[i / 32] += a(i) * b(i);
    }
    sums
}

pub fn product(k: usize, a: impl Fn(usize) -> f32, b: impl Fn(usize) -> f32) -> f32 {
    segments(k, a, b).into_iter().fold(0.0, |y, p| y + p)
}

/// `[outer, n0, n1]` in rows with `before` and `after` words around each, transposed or not.
#[derive(Clone, Copy, Debug)]
pub struct Layout {
    pub transposed: bool,
    pub before: i64,
    pub after: i64,
}

pub const PLAIN: Layout = Layout { transposed: false, before: 0, after: 0 };
pub const TRANSPOSED: Layout = Layout { transposed: true, ..PLAIN };
pub const GAPS: Layout = Layout { transposed: false, before: 1, after: 2 };
pub const TRANSPOSED_GAPS: Layout = Layout { transposed: true, before: 2, after: 1 };
/// Rows that begin at multiples of 16 bytes, in a wider tensor.
pub const MIDDLE: Layout = Layout { transposed: false, before: 4, after: 8 };
pub const LAYOUTS: [Layout; 5] = [PLAIN, TRANSPOSED, GAPS, TRANSPOSED_GAPS, MIDDLE];

impl Layout {
    /// The whole tensor of the matrix `[n0, n1, batches]` of `values`.
    pub fn input(&self, ne: [i64; 3], values: &[f32]) -> Input {
        let [n0, n1] = if self.transposed { [ne[1], ne[0]] } else { [ne[0], ne[1]] };
        let row = self.before + n0 + self.after;
        let mut all = vec![f32::NAN; (row * n1 * ne[2]) as usize];
        for i in 0..ne[0] * ne[1] * ne[2] {
            all[self.at(ne, i)] = values[i as usize];
        }
        Input::f32(&[row, n1, ne[2]], &all)
    }

    /// Where the i-th value of the matrix lies.
    pub fn at(&self, ne: [i64; 3], i: i64) -> usize {
        let (i0, i1, i2) = (i % ne[0], i / ne[0] % ne[1], i / ne[0] / ne[1]);
        let (i0, i1, n0, n1) = if self.transposed { (i1, i0, ne[1], ne[0]) } else { (i0, i1, ne[0], ne[1]) };
        ((i2 * n1 + i1) * (self.before + n0 + self.after) + self.before + i0) as usize
    }

    pub fn view(&self, ops: &Context, root: &Tensor) -> Tensor {
        let n0 = root.ne()[0] - self.before - self.after;
        let view = match (self.before, self.after) {
            (0, 0) => root.clone(),
            _ => ops.view_rows(root, self.before, n0).unwrap(),
        };
        if self.transposed {
            ops.transpose(&view).unwrap()
        } else {
            view
        }
    }
}
