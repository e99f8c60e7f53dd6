//! One op on operands that were made before, against the bits that the definition gives.

use qvac_ft::ggml::{Context, Dtype, Tensor};

use super::{equal, same};

/// An operand: a whole tensor, of which an op may take a view.
pub struct Input {
    pub dtype: Dtype,
    pub ne: Vec<i64>,
    pub bytes: Vec<u8>,
}

impl Input {
    pub fn f32(ne: &[i64], values: &[f32]) -> Self {
        let bytes = values.iter().flat_map(|v| v.to_ne_bytes()).collect();
        Self { dtype: Dtype::F32, ne: ne.to_vec(), bytes }
    }

    pub fn i32(ne: &[i64], values: &[i32]) -> Self {
        let bytes = values.iter().flat_map(|v| v.to_ne_bytes()).collect();
        Self { dtype: Dtype::I32, ne: ne.to_vec(), bytes }
    }
}

/// What is compared: the op's result, or an operand that it writes over, with all that lies around.
#[derive(Clone, Copy)]
pub enum Read {
    Result,
    Input(usize),
}

/// Holds every device and number of threads to `want`, bit for bit.
pub fn check(
    case: &str,
    inputs: &[Input],
    read: Read,
    want: &[f32],
    op: impl Fn(&Context, &[Tensor]) -> Tensor,
) {
    let got = same(case, |mut bench| {
        let tensors: Vec<Tensor> =
            inputs.iter().map(|i| bench.bytes(i.dtype, &i.ne, i.bytes.clone())).collect();
        let out = op(&bench.ops, &tensors);
        match read {
            Read::Result => bench.run(&out),
            Read::Input(i) => bench.run_then_read(&out, &tensors[i]),
        }
    });
    equal(case, &got, want);
}
