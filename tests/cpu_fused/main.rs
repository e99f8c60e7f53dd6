//! The fused float kernels of `patches/overlay/ggml/src/ggml-cpu/qvac/` against loops in f64, within bounds that follow
//! from the roundings of a sum, and the same bits whatever the number of threads.
//!
//! `tests/ops` has the cases that every device runs; here is what is particular to these kernels: tiles and their edges,
//! strides, what is written over, and how work is cut for many threads. All tensors lie between guard words.

mod attention;
mod low_rank;

use qvac_ft::ggml::{Backend, Context, Device, Dtype, Executor, Graph, Tensor};

/// Enough for every way of cutting the work: one unit a thread, several, and units smaller than a head.
const THREADS: [usize; 4] = [1, 2, 3, 8];

/// Words before and behind each tensor; a multiple of the CPU buffer's alignment.
const GUARD: usize = 64;
const PATTERN: f32 = -12345.5;

/// One rounding, relative.
const EPS: f64 = f32::EPSILON as f64 / 2.0;

/// Roundings that come with an element besides its sum: exp, a division, the last store.
const FEW: f64 = 8.0;

#[derive(Clone)]
struct Input {
    ne: Vec<i64>,
    /// The bits of f32 or i32.
    bits: Vec<u32>,
    dtype: Dtype,
}

fn f32s(ne: &[i64], values: &[f32]) -> Input {
    assert_eq!(ne.iter().product::<i64>() as usize, values.len());
    Input { ne: ne.to_vec(), bits: values.iter().map(|v| v.to_bits()).collect(), dtype: Dtype::F32 }
}

fn i32s(ne: &[i64], values: &[i32]) -> Input {
    Input { ne: ne.to_vec(), bits: values.iter().map(|&v| v as u32).collect(), dtype: Dtype::I32 }
}

/// What an op's result is read from.
#[derive(Clone, Copy, PartialEq)]
enum Read {
    Result,
    /// This input, which the op writes over.
    Input(usize),
}

fn noise(seed: u64, n: usize) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut uniform = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1u32 << 24) as f32 - 0.5
    };
    (0..n).map(|_| 1.73 * (uniform() + uniform() + uniform() + uniform())).collect()
}

/// Runs one op for each number of threads; checks guards, inputs that shall stay, and that all results are the same.
fn run(what: &str, inputs: &[Input], read: Read, make: impl Fn(&Context, &[Tensor]) -> Tensor) -> Vec<f32> {
    let results = THREADS.map(|n_threads| run_with(what, n_threads, inputs, read, &make));
    for (y, n) in results.iter().zip(THREADS).skip(1) {
        let differs = y.iter().zip(&results[0]).position(|(a, b)| a.to_bits() != b.to_bits());
        assert_eq!(differs, None, "{what}: {n} threads and one differ");
    }
    results.into_iter().next().unwrap()
}

fn run_with(
    what: &str,
    n_threads: usize,
    inputs: &[Input],
    read: Read,
    make: &impl Fn(&Context, &[Tensor]) -> Tensor,
) -> Vec<f32> {
    let backend = Backend::new(&Device::by_name("cpu").unwrap(), n_threads).unwrap();
    let exec = Executor::new(&backend, None);
    let flats = Context::new(inputs.len() + 1, 0).unwrap();
    let ops = Context::new(32, 64).unwrap();
    let placed: Vec<Tensor> =
        inputs.iter().map(|i| ops.new_tensor("input", i.dtype, &i.ne).unwrap()).collect();
    let y = make(&ops, &placed);
    let mut tensors = placed;
    if read == Read::Result {
        tensors.push(y.clone());
    }
    let flats: Vec<Tensor> = tensors
        .iter()
        .map(|t| flats.new_tensor("flat", Dtype::F32, &[(t.n_elements() + 2 * GUARD) as i64]).unwrap())
        .collect();
    backend.alloc(flats[0].context(), "tensors").unwrap();
    for (i, (t, flat)) in tensors.iter().zip(&flats).enumerate() {
        let mut all = vec![PATTERN; flat.n_elements()];
        if let Some(input) = inputs.get(i) {
            let bits = input.bits.iter().map(|&b| f32::from_bits(b));
            all.splice(GUARD..GUARD + input.bits.len(), bits);
        }
        flat.upload_bytes(0, &all.iter().flat_map(|v| v.to_ne_bytes()).collect::<Vec<_>>()).unwrap();
        t.place_in(flat, GUARD * size_of::<f32>()).unwrap();
    }
    let mut graph = Graph::new(&ops, 16, false).unwrap();
    graph.expand(&y).unwrap();
    let plan = exec.plan(vec![graph]).unwrap().remove(0);
    exec.compute(&plan).unwrap();

    let at = match read {
        Read::Result => inputs.len(),
        Read::Input(i) => i,
    };
    let mut result = Vec::new();
    for (i, flat) in flats.iter().enumerate() {
        let all: Vec<f32> = flat.download().unwrap();
        let n = all.len() - 2 * GUARD;
        let guards = all[..GUARD].iter().chain(&all[GUARD + n..]);
        assert!(guards.clone().all(|v| *v == PATTERN), "{what}: wrote outside tensor {i}");
        let values = &all[GUARD..GUARD + n];
        if i == at {
            result = values.to_vec();
        } else {
            let same = values.iter().zip(&inputs[i].bits).all(|(v, b)| v.to_bits() == *b);
            assert!(same, "{what}: input {i} was changed");
        }
    }
    result
}

/// A value and how far from it a result may be.
#[derive(Clone, Copy, Default)]
struct Want {
    value: f64,
    bound: f64,
}

fn assert_within(what: &str, got: &[f32], want: &[Want]) {
    assert_eq!(got.len(), want.len(), "{what}");
    for (i, (&g, w)) in got.iter().zip(want).enumerate() {
        let error = (f64::from(g) - w.value).abs();
        assert!(error <= w.bound, "{what}: element {i} is {g}, expected {} within {:e}", w.value, w.bound);
    }
}

/// A sum of products, whose chain of multiply-adds rounds at most twice a step.
fn sum(terms: impl Iterator<Item = (f32, f32)>) -> Want {
    let (mut value, mut magnitude, mut n) = (0.0, 0.0, 0.0);
    for (a, b) in terms {
        let product = f64::from(a) * f64::from(b);
        value += product;
        magnitude += product.abs();
        n += 1.0;
    }
    Want { value, bound: (2.0 * n + FEW) * EPS * magnitude }
}

impl Want {
    /// `self * scale + old + add`
    fn onto(self, scale: f32, old: f32, add: f32) -> Self {
        let (scale, old, add) = (f64::from(scale), f64::from(old), f64::from(add));
        let value = self.value * scale + old + add;
        let magnitude = (self.value * scale).abs() + old.abs() + add.abs();
        Self { value, bound: self.bound * scale.abs() + FEW * EPS * magnitude }
    }
}

fn f32_of(input: &Input) -> Vec<f32> {
    input.bits.iter().map(|&b| f32::from_bits(b)).collect()
}

#[test]
fn rms_norm_mul_back_of_odd_rows() {
    let eps = 1e-5f32;
    for (n, t) in [(1, 1), (7, 3), (64, 2), (65, 5), (769, 4)] {
        for residual in [false, true] {
            let what = format!("rms_norm_mul_back n={n} T={t} residual={residual}");
            let ne = [n as i64, t as i64];
            let inputs = [
                f32s(&ne, &noise(1, n * t)),
                f32s(&ne, &noise(2, n * t)),
                f32s(&[n as i64], &noise(3, n)),
                f32s(&ne, &noise(4, n * t)),
            ];
            let y = run(&what, &inputs, Read::Result, |ctx, i| {
                ctx.rms_norm_mul_back(&i[0], &i[1], &i[2], residual.then_some(&i[3]), eps).unwrap()
            });
            let [dy, x, w, add] = inputs.map(|i| f32_of(&i).into_iter().map(f64::from).collect::<Vec<_>>());
            let mut want = Vec::new();
            for row in 0..t {
                let at = row * n..(row + 1) * n;
                let (dy, x, add) = (&dy[at.clone()], &x[at.clone()], &add[at]);
                let mean = x.iter().map(|x| x * x).sum::<f64>() / n as f64 + f64::from(eps);
                let gx: Vec<f64> = (0..n).map(|i| dy[i] * w[i] * x[i]).collect();
                let r = 1.0 / mean.sqrt();
                let back = gx.iter().sum::<f64>() / n as f64 / mean;
                let back_size = gx.iter().map(|v| v.abs()).sum::<f64>() / n as f64 / mean;
                for i in 0..n {
                    let add = if residual { add[i] } else { 0.0 };
                    let size = r * ((dy[i] * w[i]).abs() + x[i].abs() * back_size);
                    want.push(Want {
                        value: r * (dy[i] * w[i] - x[i] * back) + add,
                        bound: EPS * ((2.0 * n as f64 + FEW) * size + FEW * add.abs()),
                    });
                }
            }
            assert_within(&what, &y, &want);
        }
    }
}

#[test]
fn swiglu_back_from_flat_to_saturated() {
    for (n, t) in [(1, 1), (5, 3), (64, 2), (131, 7)] {
        let mut gate = noise(2, n * t);
        for (i, g) in gate.iter_mut().enumerate() {
            *g *= [0.0, 1.0, 10.0, 100.0][i % 4]; // up to exp's ends
        }
        let ne = [n as i64, t as i64];
        let inputs = [f32s(&ne, &noise(1, n * t)), f32s(&ne, &gate), f32s(&ne, &noise(3, n * t))];
        let what = format!("swiglu_back n={n} T={t}");
        let y = run(&what, &inputs, Read::Result, |ctx, i| ctx.swiglu_back(&i[0], &i[1], &i[2]).unwrap());
        let [dy, gate, up] = inputs.map(|i| f32_of(&i).into_iter().map(f64::from).collect::<Vec<_>>());
        let mut want = vec![Want::default(); 2 * n * t];
        for i in 0..n * t {
            let s = 1.0 / (1.0 + (-gate[i]).exp());
            let dgate = dy[i] * up[i] * s;
            // s is e^-88 where it is less, and a product below the smallest normal number may be 0
            let tiny = f64::from(f32::MIN_POSITIVE)
                * (1.0 + gate[i].abs())
                * (1.0 + dy[i].abs())
                * (1.0 + up[i].abs());
            want[i] = Want {
                value: dgate * (1.0 + gate[i] * (1.0 - s)),
                bound: FEW * EPS * dgate.abs() * (1.0 + gate[i].abs()) + tiny,
            };
            want[n * t + i] =
                Want { value: dy[i] * gate[i] * s, bound: FEW * EPS * (dy[i] * gate[i] * s).abs() + tiny };
        }
        assert_within(&what, &y, &want);
    }
}

#[test]
fn relu_sqr_glu_back_on_both_sides_of_zero() {
    for (n, t) in [(1, 1), (5, 3), (64, 2), (131, 7)] {
        let ne = [n as i64, t as i64];
        let inputs = [1, 2, 3].map(|seed| f32s(&ne, &noise(seed, n * t)));
        let what = format!("relu_sqr_glu_back n={n} T={t}");
        let y =
            run(&what, &inputs, Read::Result, |ctx, i| ctx.relu_sqr_glu_back(&i[0], &i[1], &i[2]).unwrap());
        let [dy, gate, up] = inputs.map(|i| f32_of(&i).into_iter().map(f64::from).collect::<Vec<_>>());
        let value = |value: f64| Want { value, bound: FEW * EPS * value.abs() };
        let of_gate = (0..n * t).map(|i| value(2.0 * dy[i] * gate[i].max(0.0) * up[i]));
        let of_up = (0..n * t).map(|i| value(dy[i] * gate[i].max(0.0).powi(2)));
        assert_within(&what, &y, &of_gate.chain(of_up).collect::<Vec<_>>());
    }
}
