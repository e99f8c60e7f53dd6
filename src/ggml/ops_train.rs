//! The graph operations that only training needs.

use llama_sys as sys;

use super::ops::{expect, expect_rows};
use super::{Context, Dtype, Result, Tensor};

impl Context {
    /// `dst[i0, i1] = sum_k a[i0, k] * b[i1, k]`: a `[n, k]` of any type, b f32 `[m, k]` with any strides → f32
    /// `[n, m]`. With `b = transpose(dy)` it is the backward of `mul_mat` in its second operand.
    pub fn out_prod(&self, a: &Tensor, b: &Tensor) -> Result<Tensor> {
        let (na, nb) = (a.ne(), b.ne());
        let ok = nb[1] == na[1] && nb[2] % na[2] == 0 && nb[3] % na[3] == 0;
        expect(ok, b, "out_prod", || {
            format!("[m, {}, i*{}, j*{}] to go with `{}`", na[1], na[2], na[3], a.name())
        })?;
        expect_rows(a, "out_prod")?;
        expect(b.dtype() == Dtype::F32, b, "out_prod", || "f32".into())?;
        // SAFETY: shapes and types were checked.
        self.op(1, &[a, b], |c| unsafe { sys::ggml_out_prod(c, a.raw(), b.raw()) })
    }

    /// The gradient of `rms_norm(x)` in `x`, from the gradient `dy` of its result.
    pub fn rms_norm_back(&self, dy: &Tensor, x: &Tensor, eps: f32) -> Result<Tensor> {
        expect(dy.ne() == x.ne(), dy, "rms_norm_back", || x.describe())?;
        expect_rows(x, "rms_norm_back")?;
        expect(dy.is_contiguous(), dy, "rms_norm_back", || "a contiguous tensor".into())?;
        // SAFETY: the shapes were checked.
        self.op(1, &[dy, x], |c| unsafe { sys::ggml_rms_norm_back(c, dy.raw(), x.raw(), eps) })
    }

    /// Cross entropy over class ids: logits f32 `[n_vocab, n_rows]`, labels i32 `[n_rows]` → f32 `[n_rows]`,
    /// `-scale * log softmax(logits)[label]` per row and 0 where the label is negative.
    pub fn cross_entropy_loss_labels(&self, logits: &Tensor, labels: &Tensor, scale: f32) -> Result<Tensor> {
        check_labels(logits, labels, "cross_entropy_loss_labels")?;
        // SAFETY: shapes and types were checked.
        self.op(1, &[logits, labels], |c| unsafe {
            sys::ggml_cross_entropy_loss_labels(c, logits.raw(), labels.raw(), scale)
        })
    }

    /// The gradient of [`Self::cross_entropy_loss_labels`] in the logits, times `grad` f32 `[1]` or `[n_rows]`:
    /// f32 `[n_vocab, n_rows]`, `grad * scale * (softmax(logits) - onehot(label))`, 0 for ignored rows.
    pub fn cross_entropy_loss_labels_back(
        &self,
        grad: &Tensor,
        logits: &Tensor,
        labels: &Tensor,
        scale: f32,
    ) -> Result<Tensor> {
        check_labels(logits, labels, "cross_entropy_loss_labels_back")?;
        let n = grad.n_elements() as i64;
        expect(
            grad.dtype() == Dtype::F32 && (n == 1 || n == labels.ne()[0]),
            grad,
            "cross_entropy_loss_back",
            || format!("f32[1] or f32[{}]", labels.ne()[0]),
        )?;
        // SAFETY: shapes and types were checked.
        self.op(1, &[grad, logits, labels], |c| unsafe {
            sys::ggml_cross_entropy_loss_labels_back(c, grad.raw(), logits.raw(), labels.raw(), scale)
        })
    }

    /// One AdamW step, written over `a`, `m` and `v`, all f32 of one shape; `params` f32 `[7]`: learning rate, beta1,
    /// beta2, eps, weight decay, and the two bias corrections `1 / (1 - beta^t)`.
    pub fn opt_step_adamw(
        &self,
        a: &Tensor,
        grad: &Tensor,
        m: &Tensor,
        v: &Tensor,
        params: &Tensor,
    ) -> Result<Tensor> {
        for t in [a, grad, m, v] {
            let ok = t.dtype() == Dtype::F32 && t.ne() == a.ne() && t.is_contiguous();
            expect(ok, t, "opt_step_adamw", || format!("contiguous {}", a.describe()))?;
        }
        expect(
            params.dtype() == Dtype::F32 && params.ne() == [7, 1, 1, 1],
            params,
            "opt_step_adamw",
            || "f32[7]".into(),
        )?;
        a.set_param()?;
        // SAFETY: shapes, types and the parameter flag were checked or set.
        self.op(1, &[a, grad, m, v, params], |c| unsafe {
            sys::ggml_opt_step_adamw(c, a.raw(), grad.raw(), m.raw(), v.raw(), params.raw())
        })
    }
}

fn check_labels(logits: &Tensor, labels: &Tensor, op: &'static str) -> Result<()> {
    let n_rows = logits.n_rows();
    expect(logits.dtype() == Dtype::F32 && logits.is_contiguous(), logits, op, || "contiguous f32".into())?;
    expect(labels.dtype() == Dtype::I32 && labels.ne() == [n_rows, 1, 1, 1], labels, op, || {
        format!("i32[{n_rows}]")
    })
}
