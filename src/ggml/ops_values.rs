//! Operations value by value that the networks here are not built of, but libllama's graphs are.

use llama_sys as sys;

use super::ops::{can_repeat, expect, expect_rows};
use super::{Context, Result, Tensor};

/// A function of one value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Function {
    Exp,
    Log,
    Sqrt,
    Sin,
    Cos,
    Silu,
    Sigmoid,
    Relu,
    Neg,
}

/// Which activation a gated unit multiplies with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gated {
    /// `silu(gate) * up`
    Swiglu,
    /// `relu(gate) * up`
    Reglu,
}

impl Context {
    /// `f(a)`, element by element. `a` is without gaps.
    pub fn function(&self, f: Function, a: &Tensor) -> Result<Tensor> {
        expect(a.is_contiguous(), a, "function", || "a contiguous tensor".into())?;
        let make = match f {
            Function::Exp => sys::ggml_exp,
            Function::Log => sys::ggml_log,
            Function::Sqrt => sys::ggml_sqrt,
            Function::Sin => sys::ggml_sin,
            Function::Cos => sys::ggml_cos,
            Function::Silu => sys::ggml_silu,
            Function::Sigmoid => sys::ggml_sigmoid,
            Function::Relu => sys::ggml_relu,
            Function::Neg => sys::ggml_neg,
        };
        // SAFETY: ggml asserts nothing but what was checked.
        self.op(1, &[a], |c| unsafe { make(c, a.raw()) })
    }

    /// `a - b`; `b` repeats into `a`'s shape.
    pub fn sub(&self, a: &Tensor, b: &Tensor) -> Result<Tensor> {
        expect_rows(a, "sub")?;
        expect(can_repeat(b, a), b, "sub", || format!("a shape that repeats into {}", a.describe()))?;
        // SAFETY: the shapes were checked.
        self.op(1, &[a, b], |c| unsafe { sys::ggml_sub(c, a.raw(), b.raw()) })
    }

    /// `a / b`; `b` repeats into `a`'s shape.
    pub fn div(&self, a: &Tensor, b: &Tensor) -> Result<Tensor> {
        expect_rows(a, "div")?;
        expect(can_repeat(b, a), b, "div", || format!("a shape that repeats into {}", a.describe()))?;
        // SAFETY: the shapes were checked.
        self.op(1, &[a, b], |c| unsafe { sys::ggml_div(c, a.raw(), b.raw()) })
    }

    /// `a * s + b` for numbers known when the graph is built. `a` is without gaps.
    pub fn scale_bias(&self, a: &Tensor, s: f32, b: f32) -> Result<Tensor> {
        expect(a.is_contiguous(), a, "scale_bias", || "a contiguous tensor".into())?;
        // SAFETY: ggml asserts nothing but what was checked.
        self.op(1, &[a], |c| unsafe { sys::ggml_scale_bias(c, a.raw(), s, b) })
    }

    /// A gated unit of two tensors of one shape.
    pub fn glu_split(&self, unit: Gated, gate: &Tensor, up: &Tensor) -> Result<Tensor> {
        expect(gate.ne() == up.ne() && gate.dtype() == up.dtype(), up, "glu_split", || gate.describe())?;
        for t in [gate, up] {
            expect(t.is_contiguous(), t, "glu_split", || "a contiguous tensor".into())?;
        }
        // SAFETY: shapes and contiguity were checked.
        self.op(1, &[gate, up], |c| unsafe {
            match unit {
                Gated::Swiglu => sys::ggml_swiglu_split(c, gate.raw(), up.raw()),
                Gated::Reglu => sys::ggml_reglu_split(c, gate.raw(), up.raw()),
            }
        })
    }

    /// A gated unit of `[2n, ..]`, whose rows are the gate and what it multiplies, or the other way round if `swapped`.
    pub fn glu(&self, unit: Gated, a: &Tensor, swapped: bool) -> Result<Tensor> {
        expect(a.ne()[0] % 2 == 0 && a.is_contiguous(), a, "glu", || {
            "contiguous rows of an even length".into()
        })?;
        let op = match unit {
            Gated::Swiglu => sys::GGML_GLU_OP_SWIGLU,
            Gated::Reglu => sys::GGML_GLU_OP_REGLU,
        };
        // SAFETY: the layout was checked.
        self.op(1, &[a], |c| unsafe { sys::ggml_glu(c, a.raw(), op, swapped) })
    }
}
