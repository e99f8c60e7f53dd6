//! The kernels of a training step one by one, at a model's shapes: what each reaches, beside what the device can do.
//!
//! A case is one operation, recorded many times into one graph. Each repetition writes where the one before it wrote, so
//! that the device computes them one after the other, as in a step. Bytes are those of the operands and the result, read
//! or written once each; operations count a multiply and an add as two.

use std::time::{Duration, Instant};

use half::f16;
use rand::{RngCore, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::Serialize;

use crate::ggml::{Backend, Context, Dtype, Executor, Graph, Tensor};

use super::error::Result;

/// The shape of a network, as far as kernels see it.
#[derive(Clone, Debug)]
pub struct Shape {
    pub n_embd: i64,
    pub n_head: i64,
    pub n_embd_head: i64,
    pub n_ff: i64,
    pub n_vocab: i64,
    pub n_tokens: i64,
    pub rank: i64,
}

/// How long a case is repeated at least, for the device to come up to speed.
const WARM: Duration = Duration::from_millis(100);

/// Tokens of a sample.
const SAMPLE: usize = 512;

/// What one kernel does at one shape.
#[derive(Clone, Debug, Serialize)]
pub struct KernelFigure {
    pub kernel: String,
    pub shape: String,
    pub microseconds: f64,
    /// 10^9 operations a second, for what is bound by arithmetic.
    pub gops: Option<f64>,
    /// 10^9 bytes a second.
    pub gbytes: f64,
}

struct Case {
    kernel: &'static str,
    shape: String,
    ops: Option<f64>,
    operands: Vec<Tensor>,
    make: Box<Make>,
}

type Make = dyn Fn(&Context, &[Tensor]) -> crate::ggml::Result<Tensor>;

/// Times every kernel whose name contains `filter`; `each` is told a figure as soon as it is known.
pub fn kernels(
    backend: &Backend,
    shape: &Shape,
    filter: &str,
    reps: usize,
    each: &mut dyn FnMut(&KernelFigure),
) -> Result<Vec<KernelFigure>> {
    let mut figures = Vec::new();
    for build in [ternary, low_rank, attention, elementwise, head, roofs] {
        let state = Context::new(64, 0)?;
        let cases = build(&state, shape)?;
        let cases: Vec<Case> = cases.into_iter().filter(|c| c.kernel.contains(filter)).collect();
        if cases.is_empty() {
            continue;
        }
        backend.alloc(&state, "the operands")?;
        cases.iter().flat_map(|c| &c.operands).try_for_each(fill)?;
        for case in cases {
            let figure = time(backend, &case, reps)?;
            each(&figure);
            figures.push(figure);
        }
    }
    Ok(figures)
}

/// Numbers that no kernel treats specially: small floats, ids in range, valid ternary blocks.
pub fn fill(t: &Tensor) -> crate::ggml::Result<()> {
    let mut rng = ChaCha8Rng::seed_from_u64(t.nbytes() as u64);
    let mut bytes = vec![0; t.nbytes()];
    match t.dtype() {
        Dtype::F32 => bytes.chunks_exact_mut(4).for_each(|b| {
            let x = (rng.next_u32() >> 8) as f32 / (1 << 23) as f32 - 1.0;
            b.copy_from_slice(&x.to_le_bytes());
        }),
        // Bounds of samples of 512, or of all tokens where those are fewer; else small ids.
        Dtype::I32 => {
            let n_tokens = t.ne()[1] as usize;
            for (i, b) in bytes.chunks_exact_mut(4).enumerate() {
                let first = i / 2 / SAMPLE * SAMPLE;
                let value = match (t.ne()[0] == 2, i % 2) {
                    (false, _) => i % SAMPLE,
                    (true, 0) => first,
                    (true, _) => (first + SAMPLE).min(n_tokens) - 1,
                };
                b.copy_from_slice(&(value as i32).to_le_bytes());
            }
        }
        Dtype::TQ1_0 | Dtype::TQ2_0 => {
            let size = t.dtype().type_size();
            rng.fill_bytes(&mut bytes);
            for block in bytes.chunks_exact_mut(size) {
                if t.dtype() == Dtype::TQ2_0 {
                    // The code 3 occurs in no valid file.
                    block.iter_mut().for_each(|b| *b &= !((*b & 0x55) << 1));
                }
                block[size - 2..].copy_from_slice(&f16::from_f32(0.5).to_le_bytes());
            }
        }
        _ => {
            rng.fill_bytes(&mut bytes);
            // Scales of quantized blocks and f16 values alike: no exponent of all ones.
            bytes.iter_mut().for_each(|b| *b &= 0x3b);
        }
    }
    t.upload_bytes(0, &bytes)
}

fn time(backend: &Backend, case: &Case, reps: usize) -> Result<KernelFigure> {
    let exec = Executor::new(backend, None);
    let run = |n: usize| -> Result<f64> {
        let ctx = Context::new(4 * n + 8, 8 * n + 64)?;
        let out = Context::new(1, 0)?;
        let mut results = Vec::new();
        let mut place = None;
        for _ in 0..n {
            let result = (case.make)(&ctx, &case.operands)?;
            let base = result.base();
            if !case.operands.iter().any(|o| o.name() == base.name() && o.ne() == base.ne()) {
                if place.is_none() {
                    let shared = out.new_tensor("out", base.dtype(), &base.ne())?;
                    backend.alloc(&out, "the result")?;
                    place = Some(shared);
                }
                base.place_in(place.as_ref().expect("made above"), 0)?;
            }
            results.push(result);
        }
        let plan = exec.plan(vec![Graph::in_order(&ctx, &results)?])?.remove(0);
        // A device that was idle runs slowly at first.
        let mut best = f64::INFINITY;
        let began = Instant::now();
        let mut runs = 0;
        while runs < 4 || began.elapsed() < WARM {
            let start = Instant::now();
            exec.compute(&plan)?;
            backend.wait()?;
            best = best.min(start.elapsed().as_secs_f64());
            runs += 1;
        }
        Ok(best)
    };
    // Two lengths: what a submission costs by itself falls out of the difference.
    let (few, many) = (reps.div_ceil(4), reps + reps.div_ceil(4));
    let seconds = ((run(many)? - run(few)?) / reps as f64).max(1e-9);
    let ctx = Context::new(8, 0)?;
    let result = (case.make)(&ctx, &case.operands)?;
    let bytes = case.operands.iter().chain([&result]).map(Tensor::nbytes).sum::<usize>() as f64;
    Ok(KernelFigure {
        kernel: case.kernel.into(),
        shape: case.shape.clone(),
        microseconds: seconds * 1e6,
        gops: case.ops.map(|ops| ops / seconds / 1e9),
        gbytes: bytes / seconds / 1e9,
    })
}

fn case(
    kernel: &'static str,
    shape: String,
    ops: Option<f64>,
    operands: &[&Tensor],
    make: impl Fn(&Context, &[Tensor]) -> crate::ggml::Result<Tensor> + 'static,
) -> Case {
    let operands = operands.iter().map(|&t| t.clone()).collect();
    Case { kernel, shape, ops, operands, make: Box::new(make) }
}

/// Bytes behind the limbs of a quantized token (`GGML_TQ_TOKEN_TAIL`).
const TOKEN_TAIL: i64 = 16;

fn ternary(state: &Context, s: &Shape) -> Result<Vec<Case>> {
    let t = s.n_tokens;
    let mut cases = Vec::new();
    for (n, m) in [(s.n_embd, s.n_embd), (s.n_embd, s.n_ff), (s.n_ff, s.n_embd)] {
        let x = state.new_tensor("x", Dtype::F32, &[n, t])?; // [n, T]
        let x1 = state.new_tensor("x1", Dtype::F32, &[n, 1])?; // [n, 1]
        for limbs in [1, 2] {
            cases.push(case("tq_quantize", format!("{n}x{t}, {limbs} limbs"), None, &[&x], move |c, o| {
                c.tq_quantize(&o[0], limbs)
            }));
        }
        let xq = state.new_tensor("xq", Dtype::I8, &[n + TOKEN_TAIL, t])?; // [n + 16, T]
        let b = state.new_tensor("b", Dtype::F32, &[s.rank, m])?; // [r, m]
        let z = state.new_tensor("z", Dtype::F32, &[s.rank, t])?; // [r, T]
        for dtype in [Dtype::TQ2_0, Dtype::TQ1_0] {
            let w = state.new_tensor("w", dtype, &[n, m])?; // [n, m]
            let ops = 2.0 * (n * m * t) as f64;
            let shape = |what: &str| format!("{dtype} {n}x{m}, {t}{what}");
            cases.push(case("tq_mul_mat", shape(""), Some(ops), &[&w, &xq], |c, o| {
                c.tq_mul_mat(&o[0], &o[1])
            }));
            cases.push(case("tq_mul_mat", shape(", LoRA"), Some(ops), &[&w, &xq, &b, &z], |c, o| {
                c.low_rank_add(&c.tq_mul_mat(&o[0], &o[1])?, &c.transpose(&o[2])?, &o[3], None, 1.0)
            }));
            for limbs in [1, 2] {
                let yq = state.new_tensor("yq", Dtype::I8, &[limbs * m + TOKEN_TAIL, t])?; // [limbs * m + 16, T]
                cases.push(case(
                    "tq_mul_mat_back",
                    shape(&format!(", {limbs} limbs")),
                    Some(ops * limbs as f64),
                    &[&w, &yq],
                    |c, o| c.tq_mul_mat_back(&o[0], &o[1], None),
                ));
            }
            cases.push(case(
                "mul_mat_vec",
                shape(" -> 1"),
                Some(2.0 * (n * m) as f64),
                &[&w, &x1],
                |c, o| c.mul_mat(&o[0], &o[1]),
            ));
        }
    }
    Ok(cases)
}

fn low_rank(state: &Context, s: &Shape) -> Result<Vec<Case>> {
    let t = s.n_tokens;
    let mut cases = Vec::new();
    for (n, r) in [(s.n_embd, s.rank), (s.n_embd, 3 * s.rank), (s.n_ff, s.rank)] {
        let v = state.new_tensor("v", Dtype::F32, &[n, t])?; // [n, T]
        let y = state.new_tensor("y", Dtype::F32, &[n, t])?; // [n, T]
        let a = state.new_tensor("a", Dtype::F32, &[n, r])?; // [n, r]
        let b = state.new_tensor("b", Dtype::F32, &[r, n])?; // [r, n]
        let z = state.new_tensor("z", Dtype::F32, &[r, t])?; // [r, T]
        let shape = |what: &str| format!("{n}x{r}, {t}, {what}");
        cases.push(case("low_rank_project", shape("A"), None, &[&a, &v], |c, o| {
            c.low_rank_project(&o[0], &o[1], 1.0)
        }));
        cases.push(case("low_rank_project", shape("B^T"), None, &[&b, &v], |c, o| {
            c.low_rank_project(&c.transpose(&o[0])?, &o[1], 1.0)
        }));
        cases.push(case("low_rank_add", shape("A"), None, &[&y, &a, &z], |c, o| {
            c.low_rank_add(&o[0], &o[1], &o[2], None, 1.0)
        }));
        cases.push(case("low_rank_add", shape("B, residual"), None, &[&y, &b, &z, &v], |c, o| {
            c.low_rank_add(&o[0], &c.transpose(&o[1])?, &o[2], Some(&o[3]), 1.0)
        }));
        cases.push(case("low_rank_grad", shape("A"), None, &[&a, &v, &z], |c, o| {
            c.low_rank_grad(&o[0], &o[1], &o[2], 1.0)
        }));
        cases.push(case("low_rank_grad", shape("B"), None, &[&b, &v, &z], |c, o| {
            c.low_rank_grad(&c.transpose(&o[0])?, &o[1], &o[2], 1.0)
        }));
    }
    Ok(cases)
}

fn attention(state: &Context, s: &Shape) -> Result<Vec<Case>> {
    let (t, h, d) = (s.n_tokens, s.n_head, s.n_embd_head);
    let heads = |name| state.new_tensor(name, Dtype::F32, &[d, h, t]); // [d, h, T]
    let (q, k, v, dy) = (heads("q")?, heads("k")?, heads("v")?, heads("dy")?);
    let segments = state.new_tensor("segments", Dtype::I32, &[2, t])?; // [2, T]
    let pos = state.new_tensor("pos", Dtype::I32, &[t])?; // [T]
    let fwd = state.new_tensor("fwd", Dtype::F32, &[(d + 1) * h * t])?; // [d*h*T + h*T]
    let scale = 1.0 / (d as f32).sqrt();
    let sample = t.min(SAMPLE as i64);
    // Half of each sample's square, 2 products forward and 5 backward.
    let square = 2.0 * (t * sample * d * h) as f64 / 2.0;
    let shape = format!("{d}x{h}x{t}, samples of {sample}");
    Ok(vec![
        case("attention", shape.clone(), Some(2.0 * square), &[&q, &k, &v, &segments], move |c, o| {
            c.attention(&o[0], &o[1], &o[2], &o[3], scale)
        }),
        case(
            "attention_back",
            shape.clone(),
            Some(5.0 * square),
            &[&q, &k, &v, &segments, &fwd, &dy],
            move |c, o| c.attention_back(&o[0], &o[1], &o[2], &o[3], &o[4], &o[5], scale),
        ),
        case("rope", format!("{d}x{h}x{t}"), None, &[&q, &pos], move |c, o| {
            c.rope_ext(&o[0], &o[1], None, &rope(d))
        }),
        case("rope_back", format!("{d}x{h}x{t}"), None, &[&q, &pos], move |c, o| {
            c.rope_ext_back(&o[0], &o[1], None, &rope(d))
        }),
    ])
}

fn rope(n_dims: i64) -> crate::ggml::Rope {
    crate::ggml::Rope {
        kind: crate::ggml::RopeKind::Neox,
        n_dims: n_dims as i32,
        n_ctx_orig: 0,
        freq_base: 10000.0,
        freq_scale: 1.0,
        ext_factor: 0.0,
        attn_factor: 1.0,
        beta_fast: 32.0,
        beta_slow: 1.0,
    }
}

fn elementwise(state: &Context, s: &Shape) -> Result<Vec<Case>> {
    let t = s.n_tokens;
    let mut cases = Vec::new();
    for n in [s.n_embd, s.n_ff] {
        let make = |name| state.new_tensor(name, Dtype::F32, &[n, t]); // [n, T]
        let (x, y, z) = (make("x")?, make("y")?, make("z")?);
        let w = state.new_tensor("w", Dtype::F32, &[n])?; // [n]
        let shape = format!("{n}x{t}");
        cases.push(case("rms_norm", shape.clone(), None, &[&x, &w], |c, o| c.rms_norm(&o[0], 1e-5)));
        cases.push(case("rms_norm_mul_back", shape.clone(), None, &[&x, &y, &w, &z], |c, o| {
            c.rms_norm_mul_back(&o[0], &o[1], &o[2], Some(&o[3]), 1e-5)
        }));
        cases.push(case("swiglu", shape.clone(), None, &[&x, &y], |c, o| c.swiglu_split(&o[0], &o[1])));
        cases.push(case("swiglu_back", shape.clone(), None, &[&x, &y, &z], |c, o| {
            c.swiglu_back(&o[0], &o[1], &o[2])
        }));
        cases.push(case("add", shape, None, &[&x, &y], |c, o| c.add(&o[0], &o[1])));
    }
    Ok(cases)
}

fn head(state: &Context, s: &Shape) -> Result<Vec<Case>> {
    let (n, v, rows) = (s.n_embd, s.n_vocab, 256);
    let x = state.new_tensor("x", Dtype::F32, &[n, rows])?; // [n, rows]
    let logits = state.new_tensor("logits", Dtype::F32, &[v, rows])?; // [n_vocab, rows]
    let labels = state.new_tensor("labels", Dtype::I32, &[rows])?; // [rows]
    let grad = state.new_tensor("grad", Dtype::F32, &[1])?; // [1]
    let mut cases = vec![
        case("cross_entropy", format!("{v}x{rows}"), None, &[&logits, &labels], |c, o| {
            c.cross_entropy_loss_labels(&o[0], &o[1], 1.0)
        }),
        case("cross_entropy_back", format!("{v}x{rows}"), None, &[&grad, &logits, &labels], |c, o| {
            c.cross_entropy_loss_labels_back(&o[0], &o[1], &o[2], 1.0)
        }),
    ];
    for dtype in [Dtype::Q6_K, Dtype::F16] {
        let w = state.new_tensor("w", dtype, &[n, v])?; // [n, n_vocab]
        let ops = Some(2.0 * (n * v * rows) as f64);
        let shape = format!("{dtype} {n}x{v}, {rows}");
        cases.push(case("mul_mat", shape.clone(), ops, &[&w, &x], |c, o| c.mul_mat(&o[0], &o[1])));
        cases.push(case("out_prod", shape, ops, &[&w, &logits], |c, o| {
            c.out_prod(&o[0], &c.transpose(&o[1])?)
        }));
    }
    Ok(cases)
}

/// What the device can do at best: large products and a large copy.
fn roofs(state: &Context, _: &Shape) -> Result<Vec<Case>> {
    let n = 8192;
    let ops = Some(2.0 * (n as f64).powi(3));
    let w = state.new_tensor("w", Dtype::TQ2_0, &[n, n])?; // [n, n]
    let xq = state.new_tensor("xq", Dtype::I8, &[n + TOKEN_TAIL, n])?; // [n + 16, n]
    let w16 = state.new_tensor("w16", Dtype::F16, &[n, n])?; // [n, n]
    let x = state.new_tensor("x", Dtype::F32, &[n, n])?; // [n, n]
    Ok(vec![
        case("roof: int8", format!("{n}^3"), ops, &[&w, &xq], |c, o| c.tq_mul_mat(&o[0], &o[1])),
        case("roof: f16", format!("{n}^3"), ops, &[&w16, &x], |c, o| c.mul_mat(&o[0], &o[1])),
        case("roof: copy", format!("{n}^2 f32"), None, &[&x], |c, o| c.cont(&o[0])),
    ])
}
