//! Weights to time a network with that no file is read for.

use rand::{Rng as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;

use crate::bench;
use crate::ggml::{Dtype, Result, Tensor};

/// Rows of a matrix that are not the same: to quantize all would take longer than what is measured.
const ROWS: usize = 64;

/// Fills a norm with ones and a matrix with random values that keep activations of the size they have in a trained network:
/// on a CPU, numbers too small to be normal take many times as long.
pub fn fill(t: &Tensor) -> Result<()> {
    let [n_per_row, n_rows, ..] = t.ne().map(|n| n as usize);
    if n_rows == 1 && t.dtype() == Dtype::F32 {
        let ones: Vec<u8> = (0..n_per_row).flat_map(|_| 1f32.to_le_bytes()).collect();
        return t.upload_bytes(0, &ones);
    }
    if !t.dtype().can_quantize() {
        return bench::fill(t);
    }
    let mut rng = ChaCha8Rng::seed_from_u64(t.nbytes() as u64);
    let most = (3.0 / n_per_row as f32).sqrt();
    let values: Vec<f32> = (0..n_per_row * ROWS.min(n_rows)).map(|_| rng.random_range(-most..most)).collect();
    let mut some = Vec::new();
    t.dtype().quantize(&values, n_per_row, &mut some)?;
    for at in (0..t.nbytes()).step_by(some.len()) {
        t.upload_bytes(at, &some[..some.len().min(t.nbytes() - at)])?;
    }
    Ok(())
}
