//! The graph operations a transformer's forward needs, under upstream's names.
//!
//! Each checks what ggml would assert and says which tensor broke it. Shapes are `[ne0, ne1, ne2, ne3]`, the
//! fastest dimension first. What only training needs stands in `ops_train`.

use llama_sys as sys;

use super::{Context, Dtype, Result, Tensor};

/// How rotary position embedding pairs the values of a head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RopeKind {
    /// Consecutive values (`LLAMA_ROPE_TYPE_NORM`).
    Norm,
    /// Values half a head apart (`LLAMA_ROPE_TYPE_NEOX`).
    Neox,
}

/// The parameters of `ggml_rope_ext`.
#[derive(Clone, Debug)]
pub struct Rope {
    pub kind: RopeKind,
    /// Values of a head that are rotated.
    pub n_dims: i32,
    /// Context length before YaRN extension.
    pub n_ctx_orig: i32,
    pub freq_base: f32,
    pub freq_scale: f32,
    pub ext_factor: f32,
    pub attn_factor: f32,
    pub beta_fast: f32,
    pub beta_slow: f32,
}

/// `ggml_rope_ext` or its backward.
type RopeFn = unsafe extern "C" fn(
    *mut sys::ggml_context,
    *mut sys::ggml_tensor,
    *mut sys::ggml_tensor,
    *mut sys::ggml_tensor,
    i32,
    i32,
    i32,
    f32,
    f32,
    f32,
    f32,
    f32,
    f32,
) -> *mut sys::ggml_tensor;

/// Whether `b` repeats evenly into `a`.
pub(super) fn can_repeat(b: &Tensor, a: &Tensor) -> bool {
    a.ne().iter().zip(b.ne()).all(|(&a, b)| a % b == 0)
}

/// The check behind most operations: `ok`, or an error that shows what was expected beside what `t` is.
pub(super) fn expect(
    ok: bool,
    t: &Tensor,
    op: &'static str,
    expected: impl FnOnce() -> String,
) -> Result<()> {
    if ok {
        Ok(())
    } else {
        Err(t.shape_error(op, &expected(), &t.describe()))
    }
}

/// The values of a row lie side by side, as most kernels take for granted.
pub(super) fn expect_rows(t: &Tensor, op: &'static str) -> Result<()> {
    expect(t.nb()[0] == t.dtype().type_size(), t, op, || "a tensor that is not transposed".into())
}

impl Context {
    /// Makes the tensors of one operation: `make` adds at most `n` tensors to this context.
    pub(super) fn op(
        &self,
        n: usize,
        args: &[&Tensor],
        make: impl FnOnce(*mut sys::ggml_context) -> *mut sys::ggml_tensor,
    ) -> Result<Tensor> {
        self.take(n)?;
        for arg in args {
            self.keep_context(arg.context());
        }
        // SAFETY: `make` returns a tensor that it made in this context.
        Ok(unsafe { Tensor::from_raw(make(self.raw()), self) })
    }

    /// `a^T b`: a `[k, n]` of any type, b `[k, m]` f32 → `[n, m]`. Upper dimensions of `a` repeat into `b`'s.
    pub fn mul_mat(&self, a: &Tensor, b: &Tensor) -> Result<Tensor> {
        let (na, nb) = (a.ne(), b.ne());
        expect(nb[0] == na[0] && nb[2] % na[2] == 0 && nb[3] % na[3] == 0, b, "mul_mat", || {
            format!("[{}, m, i*{}, j*{}] to go with `{}`", na[0], na[2], na[3], a.name())
        })?;
        expect_rows(a, "mul_mat")?;
        expect(b.dtype() == Dtype::F32, b, "mul_mat", || "f32".into())?;
        // SAFETY: shapes and types were checked above.
        self.op(1, &[a, b], |c| unsafe { sys::ggml_mul_mat(c, a.raw(), b.raw()) })
    }

    /// `a + b`; `b` repeats into `a`'s shape.
    pub fn add(&self, a: &Tensor, b: &Tensor) -> Result<Tensor> {
        expect_rows(a, "add")?;
        expect(can_repeat(b, a), b, "add", || format!("a shape that repeats into {}", a.describe()))?;
        // SAFETY: the shapes were checked.
        self.op(1, &[a, b], |c| unsafe { sys::ggml_add(c, a.raw(), b.raw()) })
    }

    /// `a * b`, element by element; `b` repeats into `a`'s shape.
    pub fn mul(&self, a: &Tensor, b: &Tensor) -> Result<Tensor> {
        expect_rows(a, "mul")?;
        expect(can_repeat(b, a), b, "mul", || format!("a shape that repeats into {}", a.describe()))?;
        // SAFETY: the shapes were checked.
        self.op(1, &[a, b], |c| unsafe { sys::ggml_mul(c, a.raw(), b.raw()) })
    }

    /// `a * b` written over `a`.
    pub fn mul_inplace(&self, a: &Tensor, b: &Tensor) -> Result<Tensor> {
        expect_rows(a, "mul")?;
        expect(can_repeat(b, a), b, "mul", || format!("a shape that repeats into {}", a.describe()))?;
        // SAFETY: the shapes were checked.
        self.op(1, &[a, b], |c| unsafe { sys::ggml_mul_inplace(c, a.raw(), b.raw()) })
    }

    /// `a * s` for a number known when the graph is built. `a` is without gaps.
    pub fn scale(&self, a: &Tensor, s: f32) -> Result<Tensor> {
        expect(a.is_contiguous(), a, "scale", || "a contiguous tensor".into())?;
        // SAFETY: ggml asserts nothing but what was checked.
        self.op(1, &[a], |c| unsafe { sys::ggml_scale(c, a.raw(), s) })
    }

    /// `a / sqrt(mean(a^2) + eps)` along the first dimension.
    pub fn rms_norm(&self, a: &Tensor, eps: f32) -> Result<Tensor> {
        expect_rows(a, "rms_norm")?;
        // SAFETY: the layout was checked.
        self.op(1, &[a], |c| unsafe { sys::ggml_rms_norm(c, a.raw(), eps) })
    }

    /// `silu(gate) * up`, both of one shape.
    pub fn swiglu_split(&self, gate: &Tensor, up: &Tensor) -> Result<Tensor> {
        expect(gate.ne() == up.ne() && gate.dtype() == up.dtype(), up, "swiglu_split", || gate.describe())?;
        for t in [gate, up] {
            expect(t.is_contiguous(), t, "swiglu_split", || "a contiguous tensor".into())?;
        }
        // SAFETY: shapes and contiguity were checked.
        self.op(1, &[gate, up], |c| unsafe { sys::ggml_swiglu_split(c, gate.raw(), up.raw()) })
    }

    /// `relu(gate)^2 * up`, both of one shape; one operation after another, as upstream's `build_ffn` makes it.
    pub fn relu_sqr_glu(&self, gate: &Tensor, up: &Tensor) -> Result<Tensor> {
        expect(gate.is_contiguous(), gate, "relu", || "a contiguous tensor".into())?;
        // SAFETY: contiguity was checked.
        let relu = self.op(1, &[gate], |c| unsafe { sys::ggml_relu(c, gate.raw()) })?; // as gate
                                                                                       // SAFETY: ggml asserts nothing.
        let sqr = self.op(1, &[&relu], |c| unsafe { sys::ggml_sqr(c, relu.raw()) })?; // as gate
        self.mul(&sqr, up)
    }

    /// Rotary position embedding of a `[n_embd_head, n_head, n_tokens]` at `pos` i32 `[n_tokens]`; `freq_factors`
    /// f32 `[n_dims / 2]` or none.
    pub fn rope_ext(
        &self,
        a: &Tensor,
        pos: &Tensor,
        freq_factors: Option<&Tensor>,
        rope: &Rope,
    ) -> Result<Tensor> {
        self.rope_with(sys::ggml_rope_ext, a, pos, freq_factors, rope)
    }

    /// The rotation the other way round, which is [`Self::rope_ext`]'s gradient.
    pub fn rope_ext_back(
        &self,
        a: &Tensor,
        pos: &Tensor,
        freq_factors: Option<&Tensor>,
        rope: &Rope,
    ) -> Result<Tensor> {
        self.rope_with(sys::ggml_rope_ext_back, a, pos, freq_factors, rope)
    }

    fn rope_with(
        &self,
        op: RopeFn,
        a: &Tensor,
        pos: &Tensor,
        freq_factors: Option<&Tensor>,
        rope: &Rope,
    ) -> Result<Tensor> {
        expect(a.ne()[2] == pos.ne()[0] && a.ne()[3] == 1, a, "rope_ext", || {
            format!("[n_embd_head, n_head, {}]", pos.ne()[0])
        })?;
        expect(pos.dtype() == Dtype::I32 && pos.n_rows() == 1, pos, "rope_ext", || "i32[n_tokens]".into())?;
        expect_rows(a, "rope_ext")?;
        expect(rope.n_dims % 2 == 0 && i64::from(rope.n_dims) <= a.ne()[0], a, "rope_ext", || {
            format!("heads of at least {} values, an even number", rope.n_dims)
        })?;
        if let Some(f) = freq_factors {
            expect(
                f.dtype() == Dtype::F32 && f.ne()[0] >= i64::from(rope.n_dims / 2),
                f,
                "rope_ext",
                || format!("f32[{}]", rope.n_dims / 2),
            )?;
        }
        let mode = match rope.kind {
            RopeKind::Norm => 0,
            RopeKind::Neox => sys::GGML_ROPE_TYPE_NEOX as i32,
        };
        let factors = freq_factors.map_or(std::ptr::null_mut(), Tensor::raw);
        let args: Vec<&Tensor> = [a, pos].into_iter().chain(freq_factors).collect();
        // SAFETY: shapes and types were checked; a null pointer stands for no factors.
        self.op(1, &args, |c| unsafe {
            op(
                c,
                a.raw(),
                pos.raw(),
                factors,
                rope.n_dims,
                mode,
                rope.n_ctx_orig,
                rope.freq_base,
                rope.freq_scale,
                rope.ext_factor,
                rope.attn_factor,
                rope.beta_fast,
                rope.beta_slow,
            )
        })
    }

    /// `a` followed by `b` along the first dimension.
    pub fn concat_rows(&self, a: &Tensor, b: &Tensor) -> Result<Tensor> {
        expect(a.ne()[1..] == b.ne()[1..] && a.dtype() == b.dtype(), b, "concat", || a.describe())?;
        // SAFETY: the shapes and types were checked.
        self.op(1, &[a, b], |c| unsafe { sys::ggml_concat(c, a.raw(), b.raw(), 0) })
    }

    /// `softmax(a * scale + mask)` along the first dimension; mask f32 or f16 of `a`'s first two dimensions at
    /// least, whose upper dimensions repeat into `a`'s.
    pub fn soft_max_ext(&self, a: &Tensor, mask: &Tensor, scale: f32) -> Result<Tensor> {
        let (na, nm) = (a.ne(), mask.ne());
        let fits = nm[0] == na[0] && nm[1] >= na[1] && na[2] % nm[2] == 0 && na[3] % nm[3] == 0;
        let typed = matches!(mask.dtype(), Dtype::F32 | Dtype::F16);
        expect(fits && typed && mask.is_contiguous(), mask, "soft_max_ext", || {
            format!("contiguous f32 or f16 [{}, {}, ..] that repeats into {}", na[0], na[1], a.describe())
        })?;
        expect(a.is_contiguous(), a, "soft_max_ext", || "a contiguous tensor".into())?;
        // SAFETY: shapes, types and contiguity were checked.
        self.op(1, &[a, mask], |c| unsafe { sys::ggml_soft_max_ext(c, a.raw(), mask.raw(), scale, 0.0) })
    }

    /// Attention of q f32 `[D, T, H]` over k and v `[D, n_keys, H_kv]`; mask f16 `[n_keys, T]` is added to the scores →
    /// f32 `[D, H, T]`.
    pub fn flash_attn_ext(
        &self,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        mask: &Tensor,
        scale: f32,
    ) -> Result<Tensor> {
        let (nq, nk) = (q.ne(), k.ne());
        let keys = nk[0] == nq[0] && nq[2] % nk[2] == 0 && nq[3] == nk[3];
        expect(keys, k, "flash_attn_ext", || format!("[{}, n_keys, a divisor of {}]", nq[0], nq[2]))?;
        expect(v.ne() == nk && v.dtype() == k.dtype(), v, "flash_attn_ext", || k.describe())?;
        let masks = mask.dtype() == Dtype::F16 && mask.is_contiguous() && mask.ne() == [nk[1], nq[1], 1, 1];
        expect(masks, mask, "flash_attn_ext", || format!("contiguous f16 [{}, {}]", nk[1], nq[1]))?;
        [q, k, v].into_iter().try_for_each(|t| expect_rows(t, "flash_attn_ext"))?;
        // SAFETY: shapes, types and contiguity were checked.
        self.op(1, &[q, k, v, mask], |c| unsafe {
            sys::ggml_flash_attn_ext(c, q.raw(), k.raw(), v.raw(), mask.raw(), scale, 0.0, 0.0)
        })
    }

    /// Rows of `a` `[n, n_rows]` at `ids` i32 `[m]` → f32 `[n, m]`.
    pub fn get_rows(&self, a: &Tensor, ids: &Tensor) -> Result<Tensor> {
        expect(ids.dtype() == Dtype::I32 && ids.n_rows() == 1, ids, "get_rows", || "i32[m]".into())?;
        expect_rows(a, "get_rows")?;
        expect(a.ne()[2] == 1 && a.ne()[3] == 1, a, "get_rows", || "[n, n_rows]".into())?;
        // SAFETY: shapes and types were checked.
        self.op(1, &[a, ids], |c| unsafe { sys::ggml_get_rows(c, a.raw(), ids.raw()) })
    }

    /// Writes the rows of `src` f32 `[n, m]` into `dst` `[n, n_rows]` at `ids` i32 or i64 `[m]`; the result is `dst`.
    pub fn set_rows(&self, dst: &Tensor, src: &Tensor, ids: &Tensor) -> Result<Tensor> {
        let (nd, ns) = (dst.ne(), src.ne());
        expect(src.dtype() == Dtype::F32 && ns[0] == nd[0] && ns[2..] == nd[2..], src, "set_rows", || {
            format!("f32[{}, m]", nd[0])
        })?;
        let whole = matches!(ids.dtype(), Dtype::I32 | Dtype::I64);
        expect(whole && ids.ne() == [ns[1], 1, 1, 1], ids, "set_rows", || format!("i32[{}]", ns[1]))?;
        expect(dst.is_contiguous() && src.is_contiguous(), src, "set_rows", || "contiguous tensors".into())?;
        // SAFETY: shapes and types were checked.
        self.op(1, &[dst, src, ids], |c| unsafe { sys::ggml_set_rows(c, dst.raw(), src.raw(), ids.raw()) })
    }

    /// The same elements in another shape of 1 to 4 dimensions. `a` is contiguous.
    pub fn reshape(&self, a: &Tensor, ne: &[i64]) -> Result<Tensor> {
        let ok = !ne.is_empty() && ne.len() <= 4 && ne.iter().product::<i64>() as usize == a.n_elements();
        expect(ok && a.is_contiguous(), a, "reshape", || {
            format!("{} contiguous elements", ne.iter().product::<i64>())
        })?;
        let n = |i: usize| ne.get(i).copied().unwrap_or(1);
        // SAFETY: the number of elements and contiguity were checked.
        self.op(1, &[a], |c| unsafe {
            match ne.len() {
                1 => sys::ggml_reshape_1d(c, a.raw(), n(0)),
                2 => sys::ggml_reshape_2d(c, a.raw(), n(0), n(1)),
                3 => sys::ggml_reshape_3d(c, a.raw(), n(0), n(1), n(2)),
                _ => sys::ggml_reshape_4d(c, a.raw(), n(0), n(1), n(2), n(3)),
            }
        })
    }

    /// Reorders dimensions: dimension `i` of `a` becomes dimension `axes[i]` of the result.
    pub fn permute(&self, a: &Tensor, axes: [i32; 4]) -> Result<Tensor> {
        let mut seen = axes;
        seen.sort_unstable();
        expect(seen == [0, 1, 2, 3], a, "permute", || {
            format!("a permutation of 0..4 for axes, found {axes:?}")
        })?;
        // SAFETY: the axes were checked.
        self.op(1, &[a], |c| unsafe { sys::ggml_permute(c, a.raw(), axes[0], axes[1], axes[2], axes[3]) })
    }

    /// Swaps the first two dimensions (a view).
    pub fn transpose(&self, a: &Tensor) -> Result<Tensor> {
        // SAFETY: any tensor can be transposed.
        self.op(1, &[a], |c| unsafe { sys::ggml_transpose(c, a.raw()) })
    }

    /// `a`'s numbers from element `offset` on, contiguous, in the shape `ne`; `a` is contiguous.
    pub fn view(&self, a: &Tensor, ne: &[i64], offset: usize) -> Result<Tensor> {
        let n = ne.iter().product::<i64>() as usize;
        let ok = !ne.is_empty() && ne.len() <= 4 && a.is_contiguous() && offset + n <= a.n_elements();
        expect(ok && !a.dtype().is_quantized(), a, "view", || {
            format!("at least {} contiguous numbers", offset + n)
        })?;
        let dim = |i: usize| ne.get(i).copied().unwrap_or(1);
        let size = a.dtype().type_size();
        let (nb1, nb2) = (dim(0) as usize * size, (dim(0) * dim(1)) as usize * size);
        let nb3 = nb2 * dim(2) as usize;
        // SAFETY: the view lies within `a`.
        self.op(1, &[a], |c| unsafe {
            match ne.len() {
                1 => sys::ggml_view_1d(c, a.raw(), dim(0), offset * size),
                2 => sys::ggml_view_2d(c, a.raw(), dim(0), dim(1), nb1, offset * size),
                3 => sys::ggml_view_3d(c, a.raw(), dim(0), dim(1), dim(2), nb1, nb2, offset * size),
                _ => sys::ggml_view_4d(
                    c,
                    a.raw(),
                    dim(0),
                    dim(1),
                    dim(2),
                    dim(3),
                    nb1,
                    nb2,
                    nb3,
                    offset * size,
                ),
            }
        })
    }

    /// Rows `[start, start + n)` of the first dimension of a matrix `a`: `[n, m]`, with `a`'s strides.
    pub fn view_rows(&self, a: &Tensor, start: i64, n: i64) -> Result<Tensor> {
        let [ne0, ne1, ne2, ne3] = a.ne();
        let ok = start >= 0 && n > 0 && start + n <= ne0 && ne2 * ne3 == 1 && !a.dtype().is_quantized();
        expect(ok, a, "view_rows", || format!("a matrix of at least {} rows", start + n))?;
        expect_rows(a, "view_rows")?;
        let offset = start as usize * a.dtype().type_size();
        // SAFETY: the view lies within `a`.
        self.op(1, &[a], |c| unsafe { sys::ggml_view_2d(c, a.raw(), n, ne1, a.nb()[1], offset) })
    }

    /// A contiguous copy.
    pub fn cont(&self, a: &Tensor) -> Result<Tensor> {
        // SAFETY: any tensor can be copied.
        self.op(1, &[a], |c| unsafe { sys::ggml_cont(c, a.raw()) })
    }

    /// `a` repeated to the shape `ne`.
    pub fn repeat(&self, a: &Tensor, ne: [i64; 4]) -> Result<Tensor> {
        let ok = ne.iter().zip(a.ne()).all(|(&n, a)| n > 0 && n % a == 0);
        expect(ok, a, "repeat", || format!("a shape that repeats into {ne:?}"))?;
        // SAFETY: the shape was checked.
        self.op(1, &[a], |c| unsafe { sys::ggml_repeat_4d(c, a.raw(), ne[0], ne[1], ne[2], ne[3]) })
    }

    /// Copies `a` over `dst`, which has as many elements; the result is `dst`.
    pub fn cpy(&self, a: &Tensor, dst: &Tensor) -> Result<Tensor> {
        expect(a.n_elements() == dst.n_elements(), a, "cpy", || {
            format!("as many elements as {}", dst.describe())
        })?;
        // SAFETY: the number of elements was checked.
        self.op(1, &[a, dst], |c| unsafe { sys::ggml_cpy(c, a.raw(), dst.raw()) })
    }

    /// The sum of all elements: `[1]`.
    pub fn sum(&self, a: &Tensor) -> Result<Tensor> {
        expect_rows(a, "sum")?;
        // SAFETY: the layout was checked.
        self.op(1, &[a], |c| unsafe { sys::ggml_sum(c, a.raw()) })
    }

    /// The sum along the first dimension: `[1, ne1, ne2, ne3]`.
    pub fn sum_rows(&self, a: &Tensor) -> Result<Tensor> {
        expect_rows(a, "sum_rows")?;
        // SAFETY: the layout was checked.
        self.op(1, &[a], |c| unsafe { sys::ggml_sum_rows(c, a.raw()) })
    }

    /// `a^2`, element by element.
    pub fn sqr(&self, a: &Tensor) -> Result<Tensor> {
        expect_rows(a, "sqr")?;
        // SAFETY: the layout was checked.
        self.op(1, &[a], |c| unsafe { sys::ggml_sqr(c, a.raw()) })
    }

    /// `max(a, 0)`, element by element.
    pub fn relu(&self, a: &Tensor) -> Result<Tensor> {
        expect(a.is_contiguous(), a, "relu", || "a contiguous tensor".into())?;
        // SAFETY: contiguity was checked.
        self.op(1, &[a], |c| unsafe { sys::ggml_relu(c, a.raw()) })
    }
}
