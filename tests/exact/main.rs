//! Exact arithmetic (docs/exactness.md), op by op: the same bits on the CPU with 1 and 2 threads and on Vulkan (a GPU where
//! there is one, else lavapipe), and how far they are from a reference in f64.
//!
//! The whole program is exact: [`same`] and [`same_bytes`] switch it on, and nothing switches it off. A new family of ops: one file.

mod attention;
#[path = "../common/bench.rs"]
mod bench;
mod bits;
mod definition;
#[path = "../common/device.rs"]
mod device;
mod elementwise;
mod low_rank;
mod math;
mod products;
mod rope;
mod rows;

use std::fmt::{Debug, Formatter};
use std::sync::{Mutex, PoisonError};

use bench::{noise, Bench};
use qvac_ft::ggml::{set_exact, Tensor};

/// ggml-vulkan sets a device up when it is first used, and two threads that do so at once find it half made.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// What `make` gives on the CPU with one thread; on the CPU with two and on Vulkan it gives the same.
fn compare<T: Copy + Debug>(
    case: &str,
    make: impl Fn(Bench) -> Vec<T>,
    equal: impl Fn(&T, &T) -> bool,
) -> Vec<T> {
    let _turn = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    set_exact(true);
    let want = make(Bench::with_threads(&device::cpu(), 1));
    for other in std::iter::once(device::cpu()).chain(device::vulkan()) {
        let got = make(Bench::with_threads(&other, 2));
        assert_eq!(got.len(), want.len(), "{case} on {}", other.name());
        let differ = || got.iter().zip(&want).enumerate().filter(|(_, (g, w))| !equal(g, w));
        if let Some((first, (g, w))) = differ().next() {
            panic!(
                "{case} on {}: {} of {} values differ, the first is {first}: {g:?} where the CPU has {w:?}",
                other.name(),
                differ().count(),
                got.len()
            );
        }
    }
    want
}

/// A NaN is a NaN, whatever its bits.
fn equal_bits(a: f32, b: f32) -> bool {
    a.to_bits() == b.to_bits() || (a.is_nan() && b.is_nan())
}

/// A value with its bits, for messages.
#[derive(Clone, Copy)]
struct Bits(f32);

impl Debug for Bits {
    fn fmt(&self, f: &mut Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:e} ({:08x})", self.0, self.0.to_bits())
    }
}

/// The f32 result of `make`, which is the same everywhere.
pub fn same(case: &str, make: impl Fn(Bench) -> Vec<f32>) -> Vec<f32> {
    let make = |bench| make(bench).into_iter().map(Bits).collect();
    compare(case, make, |a: &Bits, b: &Bits| equal_bits(a.0, b.0)).into_iter().map(|b| b.0).collect()
}

/// As [`same`], for results of any type: their bytes.
pub fn same_bytes(case: &str, make: impl Fn(Bench) -> Vec<u8>) -> Vec<u8> {
    compare(case, make, |a, b| a == b)
}

/// Holds `got` to `want`, bit for bit.
pub fn equal(what: &str, got: &[f32], want: &[f32]) {
    assert_eq!(got.len(), want.len(), "{what}");
    for (i, (&g, &w)) in got.iter().zip(want).enumerate() {
        assert!(equal_bits(g, w), "{what}: element {i} is {:?}, expected {:?}", Bits(g), Bits(w));
    }
}

/// `op` where the allocator places results over operands: its operand is a result, and its result one's operand.
pub fn in_place(t: &Bench, x: &Tensor, op: impl Fn(&Tensor) -> Tensor) -> Tensor {
    let made = t.ops.scale(x, 1.0).unwrap();
    t.ops.scale(&op(&made), 1.0).unwrap()
}

/// Holds `got` to `want` within `bound`, element by element.
pub fn within(case: &str, got: &[f32], want: &[f64], bound: impl Fn(usize) -> f64) {
    assert_eq!(got.len(), want.len(), "{case}");
    for (i, (&g, &w)) in got.iter().zip(want).enumerate() {
        let error = (f64::from(g) - w).abs();
        assert!(
            error <= bound(i) || (g.is_nan() && w.is_nan()) || f64::from(g) == w,
            "{case}: element {i} is {g}, expected {w} within {:e}",
            bound(i)
        );
    }
}

/// `noise` with the values that kernels like to get wrong among it, one in 29 or so.
pub fn odd(seed: u64, n: usize) -> Vec<f32> {
    const SPECIAL: [f32; 14] = [
        0.0,
        -0.0,
        1e-40,
        -1e-45,
        f32::MIN_POSITIVE,
        1.0,
        -1.0,
        1e-20,
        -3e15,
        88.5,
        -88.5,
        f32::INFINITY,
        f32::NEG_INFINITY,
        f32::NAN,
    ];
    let mut values = noise(seed, n);
    for (i, v) in values.iter_mut().enumerate() {
        if i % 29 == 7 {
            *v = SPECIAL[(i / 29 + seed as usize) % SPECIAL.len()];
        }
    }
    values
}
