//! Exact arithmetic (docs/exactness.md): the same bits from every target. What they should be, `tests/exact` knows.

use qvac_ft::ggml::Dtype;

use super::cpu::{Operand, Rng};
use super::{Programs, THREADS};

/// The first of program.cpp's exact ops; the others follow in the order of [`CASES`].
const FIRST: u32 = 5;

type Inputs = fn(&mut Rng) -> Vec<Vec<Operand>>;

const CASES: &[(&str, Inputs)] = &[
    ("MUL_MAT", |rng| every_type().map(|t| vec![random(t, 512, 37, rng), floats(512, 5, rng)]).collect()),
    ("OUT_PROD", |rng| every_type().map(|t| vec![random(t, 256, 67, rng), floats(9, 67, rng)]).collect()),
    ("GET_ROWS", |rng| every_type().map(|t| vec![random(t, 256, 9, rng), ids(1, &[3, 8, 0, 3])]).collect()),
    ("LOW_RANK_PROJECT", |rng| vec![vec![floats(333, 8, rng), floats(333, 7, rng)]]),
    ("RMS_NORM", |rng| [1, 77, 2048, 5633].map(|n| vec![floats(n, 3, rng)]).into()),
    ("RMS_NORM_MUL_BACK", |rng| {
        vec![vec![floats(2049, 3, rng), floats(2049, 3, rng), floats(2049, 1, rng), floats(2049, 3, rng)]]
    }),
    ("SWIGLU", |rng| vec![(0..2).map(|_| wide(333, 3, rng)).collect()]),
    ("SWIGLU_BACK", |rng| vec![(0..3).map(|_| wide(333, 3, rng)).collect()]),
    ("RELU_SQR_GLU_BACK", |rng| vec![(0..3).map(|_| wide(333, 3, rng)).collect()]),
    ("CROSS_ENTROPY_LOSS", |rng| vec![vec![wide(3001, 4, rng), ids(1, &[0, -1, 3000, 17])]]),
    ("CROSS_ENTROPY_LOSS_BACK", |rng| {
        vec![vec![wide(3001, 4, rng), ids(1, &[0, -1, 3000, 17]), floats(1, 1, rng)]]
    }),
    ("ROPE", |rng| vec![vec![floats(96, 5, rng), ids(1, &[0, 1, 77, 4096, 1_000_003])]]),
    ("ATTENTION", |rng| vec![attention(rng)]),
    ("ATTENTION_BACK", |rng| {
        let mut operands = attention(rng);
        // An output and log-sum-exp, as good as any.
        operands.push(floats((4 * 32 + 4) * 71, 1, rng));
        operands.push(floats(128, 71, rng));
        vec![operands]
    }),
    ("LOG", |rng| vec![vec![positive(333, 3, rng)]]),
    ("SQRT", |rng| vec![vec![positive(333, 3, rng)]]),
    ("CPY to f16", |rng| vec![vec![wide(333, 3, rng)]]),
];

fn every_type() -> impl Iterator<Item = Dtype> {
    [
        Dtype::F32,
        Dtype::F16,
        Dtype::BF16,
        Dtype::Q8_0,
        Dtype::Q4_0,
        Dtype::Q4_1,
        Dtype::Q5_0,
        Dtype::Q4_K,
        Dtype::Q6_K,
    ]
    .into_iter()
}

fn random(dtype: Dtype, n: i64, m: i64, rng: &mut Rng) -> Operand {
    Operand::random(dtype, &[n, m], rng)
}

fn floats(n: i64, m: i64, rng: &mut Rng) -> Operand {
    random(Dtype::F32, n, m, rng)
}

fn ids(n: i64, ids: &[i32]) -> Operand {
    let bytes = ids.iter().flat_map(|id| id.to_ne_bytes()).collect();
    Operand::of_bytes(Dtype::I32, &[ids.len() as i64, n], bytes)
}

/// From -100 to 100, and some of 2^-130.
fn wide(n: i64, m: i64, rng: &mut Rng) -> Operand {
    let values: Vec<f32> = rng
        .uniform((n * m) as usize)
        .iter()
        .map(|v| if v.abs() < 0.05 { v * 1e-38 } else { v * 100.0 })
        .collect();
    Operand::new(Dtype::F32, &[n, m], &values)
}

fn positive(n: i64, m: i64, rng: &mut Rng) -> Operand {
    let values: Vec<f32> = rng.uniform((n * m) as usize).iter().map(|v| (v * 40.0).exp()).collect();
    Operand::new(Dtype::F32, &[n, m], &values)
}

/// Queries of 4 heads, keys and values of 2, and samples of 40 and 31 tokens.
fn attention(rng: &mut Rng) -> Vec<Operand> {
    let segments: Vec<u8> =
        (0..71).flat_map(|t| if t < 40 { [0, 39] } else { [40, 70] }).flat_map(i32::to_ne_bytes).collect();
    let segments = Operand::of_bytes(Dtype::I32, &[2, 71], segments);
    vec![floats(128, 71, rng), floats(64, 71, rng), floats(64, 71, rng), segments]
}

#[test]
fn exact_arithmetic_is_the_same_on_every_target() {
    let programs = Programs::start();
    for (i, (name, inputs)) in CASES.iter().enumerate() {
        for operands in inputs(&mut Rng(i as u64)) {
            let operands: Vec<&Operand> = operands.iter().collect();
            let mut first: Option<(&str, Vec<u8>)> = None;
            for running in &programs.0 {
                for n_threads in THREADS {
                    let made = running.run(name, (FIRST + i as u32, 0), &operands, n_threads);
                    let (other, want) = first.get_or_insert_with(|| (running.name, made.clone()));
                    let (dtype, ne) = (operands[0].dtype.name(), &operands[0].ne);
                    assert!(made == *want, "{name} of {dtype} {ne:?}: {} and {other} differ", running.name);
                }
            }
        }
    }
}
