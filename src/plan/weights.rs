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
    let spread = 1.0 / (n_per_row as f32).sqrt();
    let mut value = || match t.dtype().is_ternary() {
        // One scale for all of it, as such models have: kernels are fast where it is so.
        true => 1.5f32.sqrt() * spread * rng.random_range(-1..=1) as f32,
        false => 3f32.sqrt() * spread * rng.random_range(-1f32..1.0),
    };
    let values: Vec<f32> = (0..n_per_row * ROWS.min(n_rows)).map(|_| value()).collect();
    let mut some = Vec::new();
    t.dtype().quantize(&values, n_per_row, &mut some)?;
    for at in (0..t.nbytes()).step_by(some.len()) {
        t.upload_bytes(at, &some[..some.len().min(t.nbytes() - at)])?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ggml::{Backend, Context, Device};

    #[test]
    fn matrices_look_like_a_network_s() {
        let backend = Backend::new(&Device::by_name("cpu").unwrap(), 1).unwrap();
        let ctx = Context::new(4, 0).unwrap();
        let norm = ctx.new_tensor("norm", Dtype::F32, &[512]).unwrap();
        let ternary = ctx.new_tensor("ternary", Dtype::TQ2_0, &[512, 100]).unwrap();
        let dense = ctx.new_tensor("dense", Dtype::Q8_0, &[512, 100]).unwrap();
        backend.alloc(&ctx, "test").unwrap();
        [&norm, &ternary, &dense].into_iter().for_each(|t| fill(t).unwrap());
        let read = |t: &Tensor| {
            let bytes = t.download_bytes().unwrap();
            let mut values = vec![0.0; t.ne().iter().product::<i64>() as usize];
            t.dtype().dequantize(&bytes, &mut values).unwrap();
            values
        };
        assert!(read(&norm).iter().all(|&x| x == 1.0));
        let trits = read(&ternary);
        let scale = trits.iter().fold(0f32, |a, b| a.max(b.abs()));
        assert!(scale > 0.0 && trits.iter().all(|x| [-scale, 0.0, scale].contains(x)), "one scale");
        for values in [trits, read(&dense)] {
            let variance = values.iter().map(|x| x * x).sum::<f32>() / values.len() as f32;
            assert!((variance * 512.0 - 1.0).abs() < 0.05, "{variance}");
        }
    }
}
