//! The fused operations of the training graph (`ggml-train.h`): what a block's forward and backward need beyond
//! upstream's, each as one kernel.
//!
//! All tensors are f32 unless said otherwise; T is the number of tokens.

use llama_sys as sys;

use super::ops::{expect, expect_rows};
use super::{Context, Dtype, Result, Tensor};

/// Bytes behind the limbs of a quantized token.
const TOKEN_TAIL: i64 = sys::GGML_TQ_TOKEN_TAIL as i64;

/// What a sum of integers is as long as, or a multiple of: the longest step of a kernel. (A row of ternary weights always
/// is, a column of them not.)
pub const TERNARY_SUM_STEP: i64 = 128;

impl Context {
    /// Tokens `x` `[n, T]` as 8-bit integers with one scale each → i8 `[limbs * n + 16, T]`; one limb is what a product's
    /// forward takes, two keep 15 bits for its backward. `n` is a multiple of [`TERNARY_SUM_STEP`].
    pub fn tq_quantize(&self, x: &Tensor, limbs: i64) -> Result<Tensor> {
        let ne = x.ne();
        let ok = matrix(x) && ne[0] % TERNARY_SUM_STEP == 0 && (limbs == 1 || limbs == 2);
        expect(ok, x, "tq_quantize", || "f32 [n, T], n a multiple of 128, and 1 or 2 limbs".into())?;
        expect_rows(x, "tq_quantize")?;
        // SAFETY: what ggml asserts was checked.
        self.op(1, &[x], |c| unsafe { sys::ggml_tq_quantize(c, x.raw(), limbs as i32) })
    }

    /// `w x`, exact in integers: w TQ1_0 or TQ2_0 `[n, m]`, xq of [`Self::tq_quantize`] with one limb → `[m, T]`.
    pub fn tq_mul_mat(&self, w: &Tensor, xq: &Tensor) -> Result<Tensor> {
        let n = w.ne()[0];
        expect_ternary(w, "tq_mul_mat")?;
        expect_tokens(xq, n, &[1], "tq_mul_mat")?;
        // SAFETY: what ggml asserts was checked.
        self.op(1, &[w, xq], |c| unsafe { sys::ggml_tq_mul_mat(c, w.raw(), xq.raw()) })
    }

    /// `add + w^T y`, the product exact in integers: w TQ1_0 or TQ2_0 `[n, m]`, yq of [`Self::tq_quantize`] of `[m, T]`
    /// with one limb or two, add `[n, T]` → `[n, T]`.
    pub fn tq_mul_mat_back(&self, w: &Tensor, yq: &Tensor, add: Option<&Tensor>) -> Result<Tensor> {
        let [n, m, ..] = w.ne();
        expect_ternary(w, "tq_mul_mat_back")?;
        expect(m % TERNARY_SUM_STEP == 0, w, "tq_mul_mat_back", || "a multiple of 128 rows".into())?;
        expect_tokens(yq, m, &[1, 2], "tq_mul_mat_back")?;
        expect_like(add, &[n, yq.ne()[1]], "tq_mul_mat_back")?;
        let args: Vec<&Tensor> = [w, yq].into_iter().chain(add).collect();
        // SAFETY: what ggml asserts was checked.
        self.op(1, &args, |c| unsafe { sys::ggml_tq_mul_mat_back(c, w.raw(), yq.raw(), raw(add)) })
    }

    /// `z[k, t] = scale * sum_n p[n, k] * v[n, t]`: p `[n, r]` with any strides, v `[n, T]` → `[r, T]`.
    pub fn low_rank_project(&self, p: &Tensor, v: &Tensor, scale: f32) -> Result<Tensor> {
        expect(matrix(p), p, "low_rank_project", || "an f32 matrix".into())?;
        expect_matrix(v, p.ne()[0], "low_rank_project")?;
        // SAFETY: what ggml asserts was checked.
        self.op(1, &[p, v], |c| unsafe { sys::ggml_low_rank_project(c, p.raw(), v.raw(), scale) })
    }

    /// `y[n, t] += scale * sum_k p[n, k] * z[k, t] + add[n, t]`, written over y: y and add `[n, T]`, p `[n, r]` with any
    /// strides, z `[r, T]`.
    pub fn low_rank_add(
        &self,
        y: &Tensor,
        p: &Tensor,
        z: &Tensor,
        add: Option<&Tensor>,
        scale: f32,
    ) -> Result<Tensor> {
        let [n, t, ..] = y.ne();
        expect(matrix(y) && y.is_contiguous(), y, "low_rank_add", || "a contiguous f32 matrix".into())?;
        expect(matrix(p) && p.ne()[0] == n, p, "low_rank_add", || format!("f32 [{n}, r]"))?;
        expect_matrix(z, p.ne()[1], "low_rank_add")?;
        expect(z.ne()[1] == t, z, "low_rank_add", || format!("{t} rows"))?;
        expect_like(add, &[n, t], "low_rank_add")?;
        let args: Vec<&Tensor> = [y, p, z].into_iter().chain(add).collect();
        // SAFETY: what ggml asserts was checked.
        self.op(1, &args, |c| unsafe {
            sys::ggml_low_rank_add(c, y.raw(), p.raw(), z.raw(), raw(add), scale)
        })
    }

    /// `grad[n, k] += scale * sum_t v[n, t] * z[k, t]`, written over grad: grad `[n, r]` with any strides, v `[n, T]`,
    /// z `[r, T]`.
    pub fn low_rank_grad(&self, grad: &Tensor, v: &Tensor, z: &Tensor, scale: f32) -> Result<Tensor> {
        expect(matrix(grad), grad, "low_rank_grad", || "an f32 matrix".into())?;
        expect_matrix(v, grad.ne()[0], "low_rank_grad")?;
        expect_matrix(z, grad.ne()[1], "low_rank_grad")?;
        expect(z.ne()[1] == v.ne()[1], z, "low_rank_grad", || format!("{} rows", v.ne()[1]))?;
        // SAFETY: what ggml asserts was checked.
        self.op(1, &[grad, v, z], |c| unsafe {
            sys::ggml_low_rank_grad(c, grad.raw(), v.raw(), z.raw(), scale)
        })
    }

    /// `add` + the gradient of `rms_norm(x) * w` in x: dy, x and add `[n, T]`, w `[n]` → `[n, T]`.
    pub fn rms_norm_mul_back(
        &self,
        dy: &Tensor,
        x: &Tensor,
        w: &Tensor,
        add: Option<&Tensor>,
        eps: f32,
    ) -> Result<Tensor> {
        let [n, t, ..] = dy.ne();
        expect_like(Some(dy), &[n, t], "rms_norm_mul_back")?;
        expect_like(Some(x), &[n, t], "rms_norm_mul_back")?;
        expect_like(Some(w), &[n], "rms_norm_mul_back")?;
        expect_like(add, &[n, t], "rms_norm_mul_back")?;
        let args: Vec<&Tensor> = [dy, x, w].into_iter().chain(add).collect();
        // SAFETY: what ggml asserts was checked.
        self.op(1, &args, |c| unsafe {
            sys::ggml_rms_norm_mul_back(c, dy.raw(), x.raw(), w.raw(), raw(add), eps)
        })
    }

    /// The gradients of `silu(gate) * up`: all `[n, T]` → `[n, T, 2]`, of gate and then of up.
    pub fn swiglu_back(&self, dy: &Tensor, gate: &Tensor, up: &Tensor) -> Result<Tensor> {
        expect_matrices(&[dy, gate, up], "swiglu_back")?;
        // SAFETY: what ggml asserts was checked.
        self.op(1, &[dy, gate, up], |c| unsafe { sys::ggml_swiglu_back(c, dy.raw(), gate.raw(), up.raw()) })
    }

    /// The gradients of `relu(gate)^2 * up`, as [`Self::swiglu_back`] gives its own.
    pub fn relu_sqr_glu_back(&self, dy: &Tensor, gate: &Tensor, up: &Tensor) -> Result<Tensor> {
        expect_matrices(&[dy, gate, up], "relu_sqr_glu_back")?;
        // SAFETY: what ggml asserts was checked.
        self.op(1, &[dy, gate, up], |c| unsafe {
            sys::ggml_relu_sqr_glu_back(c, dy.raw(), gate.raw(), up.raw())
        })
    }

    /// Causal attention within samples: q `[D, H, T]`, k and v `[D, H_kv, T]`, segments i32 `[2, T]` (the first and the
    /// last token of the sample that a token belongs to) → `[D*H*T + H*T]`: the output, then the log-sum-exp of the
    /// scores, `[H, T]`.
    pub fn attention(
        &self,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        segments: &Tensor,
        scale: f32,
    ) -> Result<Tensor> {
        expect_attention(q, k, v, segments, "attention")?;
        // SAFETY: what ggml asserts was checked.
        self.op(1, &[q, k, v, segments], |c| unsafe {
            sys::ggml_attention(c, q.raw(), k.raw(), v.raw(), segments.raw(), scale)
        })
    }

    /// The gradients of [`Self::attention`], whose result is `fwd`, from the one of its output, dy `[D, H, T]` →
    /// `[D*H*T + 2*D*H_kv*T]`: of q, of k, of v.
    #[allow(clippy::too_many_arguments)] // the operands of one gradient
    pub fn attention_back(
        &self,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        segments: &Tensor,
        fwd: &Tensor,
        dy: &Tensor,
        scale: f32,
    ) -> Result<Tensor> {
        expect_attention(q, k, v, segments, "attention_back")?;
        let [d, h, t, _] = q.ne();
        expect_like(Some(fwd), &[(d + 1) * h * t], "attention_back")?;
        expect_like(Some(dy), &[d, h, t], "attention_back")?;
        // SAFETY: what ggml asserts was checked.
        self.op(1, &[q, k, v, segments, fwd, dy], |c| unsafe {
            sys::ggml_attention_back(c, q.raw(), k.raw(), v.raw(), segments.raw(), fwd.raw(), dy.raw(), scale)
        })
    }
}

fn raw(t: Option<&Tensor>) -> *mut sys::ggml_tensor {
    t.map_or(std::ptr::null_mut(), Tensor::raw)
}

fn matrix(t: &Tensor) -> bool {
    t.dtype() == Dtype::F32 && t.ne()[2..] == [1, 1]
}

/// An f32 matrix with `n` values a row, side by side.
fn expect_matrix(t: &Tensor, n: i64, op: &'static str) -> Result<()> {
    expect(matrix(t) && t.ne()[0] == n, t, op, || format!("f32 [{n}, m]"))?;
    expect(n == 1 || t.nb()[0] == size_of::<f32>(), t, op, || "a tensor that is not transposed".into())
}

/// A contiguous f32 tensor of that shape, if there is one.
fn expect_like(t: Option<&Tensor>, ne: &[i64], op: &'static str) -> Result<()> {
    let Some(t) = t else { return Ok(()) };
    let same = (0..4).all(|i| t.ne()[i] == ne.get(i).copied().unwrap_or(1));
    expect(t.dtype() == Dtype::F32 && same && t.is_contiguous(), t, op, || format!("contiguous f32 {ne:?}"))
}

/// Contiguous f32 matrices of one shape.
fn expect_matrices(all: &[&Tensor], op: &'static str) -> Result<()> {
    let [n, t, ..] = all[0].ne();
    all.iter().try_for_each(|tensor| expect_like(Some(tensor), &[n, t], op))
}

fn expect_ternary(w: &Tensor, op: &'static str) -> Result<()> {
    let ok = matches!(w.dtype(), Dtype::TQ1_0 | Dtype::TQ2_0) && w.ne()[2..] == [1, 1] && w.is_contiguous();
    expect(ok, w, op, || "a TQ1_0 or TQ2_0 matrix".into())
}

fn expect_tokens(q: &Tensor, n: i64, limbs: &[i64], op: &'static str) -> Result<()> {
    let ok = q.dtype() == Dtype::I8
        && q.is_contiguous()
        && q.ne()[2..] == [1, 1]
        && limbs.iter().any(|l| q.ne()[0] == l * n + TOKEN_TAIL);
    expect(ok, q, op, || format!("quantized tokens of {n} values"))
}

fn expect_attention(q: &Tensor, k: &Tensor, v: &Tensor, segments: &Tensor, op: &'static str) -> Result<()> {
    let [d, h, t, _] = q.ne();
    let h_kv = k.ne()[1];
    expect_like(Some(q), &[d, h, t], op)?;
    expect_like(Some(k), &[d, h_kv, t], op)?;
    expect(h % h_kv == 0, k, op, || format!("a divisor of {h} heads"))?;
    expect_like(Some(v), &[d, h_kv, t], op)?;
    let ok = segments.dtype() == Dtype::I32 && segments.is_contiguous() && segments.ne() == [2, t, 1, 1];
    expect(ok, segments, op, || format!("i32[2, {t}]"))
}
