//! Op by op: what each device computes against a plain-loop reference in f64, at a tolerance with a reason.
//!
//! Every case runs on the CPU and on Vulkan (a GPU where there is one, else lavapipe). No Vulkan device is a failure,
//! not a skip, unless `QVAC_NO_VULKAN=1` says that this machine has none. Outputs lie between guard words.
//! A new op: one function that builds it with a [`Bench`] and one that computes it with loops.

mod attention;
mod backward;
#[path = "../common/bench.rs"]
mod bench;
mod cross_entropy;
#[path = "../common/device.rs"]
mod device;
mod forward;
mod fused_back;
mod low_rank;
mod many_rows;
mod out_prod;
mod out_prod_f16;
mod quantized_rows;
mod ternary;
mod ternary_reference;
mod ternary_update;
mod ternary_vec;

use std::sync::{Mutex, PoisonError};

use bench::{noise, Bench, PATTERN};
use qvac_ft::ggml::{Device, Dtype};

/// What a case is compared at: every element of `got` within `bound` of `want`.
pub struct Want {
    pub values: Vec<f64>,
    /// The largest error allowed, element by element.
    pub bound: Vec<f64>,
}

impl Want {
    /// Errors relative to the largest value: for ops whose elements depend on a whole row.
    pub fn within(values: Vec<f64>, tolerance: f64) -> Self {
        let scale = values.iter().filter(|v| v.is_finite()).fold(0.0f64, |m, v| m.max(v.abs()));
        Self { bound: vec![tolerance * scale.max(f64::MIN_POSITIVE); values.len()], values }
    }

    /// Bit for bit: for ops that only move or select values.
    pub fn exactly(values: Vec<f64>) -> Self {
        Self { bound: vec![0.0; values.len()], values }
    }
}

/// The devices that every case runs on.
pub fn devices() -> Vec<Device> {
    std::iter::once(device::cpu()).chain(device::vulkan()).collect()
}

/// ggml-vulkan sets a device up when it is first used, and two threads that do so at once find it half made.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// Runs `make` on every device and holds what it returns to `want`.
pub fn check(case: &str, want: &Want, make: impl Fn(Bench) -> Vec<f32>) {
    let _turn = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    for device in devices() {
        let got = make(Bench::new(&device));
        assert_eq!(got.len(), want.values.len(), "{case} on {}", device.name());
        for (i, (&g, (&w, &bound))) in got.iter().zip(want.values.iter().zip(&want.bound)).enumerate() {
            let fits = if w.is_nan() { g.is_nan() } else { (f64::from(g) - w).abs() <= bound };
            assert!(fits, "{case} on {}: element {i} is {g}, expected {w} within {bound:e}", device.name());
        }
    }
}

/// `values` as `dtype` stores them: what a device reads back.
pub fn stored(dtype: Dtype, ne0: i64, values: &[f32]) -> Vec<f64> {
    let mut bytes = Vec::new();
    dtype.quantize(values, ne0 as usize, &mut bytes).unwrap();
    let mut back = vec![0.0; values.len()];
    dtype.dequantize(&bytes, &mut back).unwrap();
    back.into_iter().map(f64::from).collect()
}
