//! One transformer block, forward and backward, and the head, as graphs.
//!
//! The only place that knows what a block computes; its linear layers and their adapters are in `linear.rs`. The forward
//! follows upstream's `models/llama.cpp` and `models/bitnet.cpp` (`tests/parity.rs` compares it with libllama's), the
//! backward is written out: ggml's own would be several small operations for each of these (docs/kernels.md).

use crate::ggml::{Context, Rope, Tensor};

use super::error::Result;
use super::hparams::Hparams;
use super::linear::Saved;
use super::lora::Lora;
use super::spec::{Activation, Architecture};
use super::weights::Weights;

/// What stays the same while a network is built.
pub struct Net<'a> {
    pub arch: &'a Architecture,
    pub hp: &'a Hparams,
    pub weights: &'a Weights,
    pub lora: Option<&'a Lora>,
    /// 8-bit integers that a gradient is cut into before a ternary weight multiplies it: 2, or 1 for speed.
    pub backward_limbs: i64,
}

/// Where the tokens of a micro-batch stand.
pub struct Place<'a> {
    /// i32 `[n_tokens]`: the position within its sample.
    pub pos: &'a Tensor,
    /// i32 `[2, n_tokens]`: the first and the last token of the sample that a token belongs to.
    pub segments: &'a Tensor,
}

/// The groups of [`super::Target::GROUPS`].
const QKV: usize = 0;
const ATTN_OUTPUT: usize = 1;
const GATE_UP: usize = 2;
const FFN_DOWN: usize = 3;

/// A block's forward: its result, and what its backward needs.
pub struct Forward {
    /// `[n_embd, n_tokens]`
    pub y: Tensor,
    x: Tensor,
    qkv: Saved,
    /// `[n_embd_head, n_head, n_tokens]`, rotated.
    q: Tensor,
    /// `[n_embd_head, n_head_kv, n_tokens]`, rotated.
    k: Tensor,
    /// `[n_embd_head, n_head_kv, n_tokens]`
    v: Tensor,
    /// What `attention` gave: output and log-sum-exp.
    attention: Tensor,
    /// The output, `[n_embd_head * n_head, n_tokens]`.
    attn: Tensor,
    attn_output: Saved,
    /// `[n_embd, n_tokens]`
    ffn_inp: Tensor,
    gate_up: Saved,
    /// `[n_ff, n_tokens]` each.
    gate: Tensor,
    up: Tensor,
    /// The activated gate times `up`.
    act: Tensor,
    ffn_down: Saved,
}

impl Net<'_> {
    /// Block `il` of `x` `[n_embd, n_tokens]`.
    pub fn block(&self, ctx: &Context, il: usize, x: &Tensor, place: &Place) -> Result<Forward> {
        let layer = &self.weights.layers[il];
        let [_, n_tokens, ..] = x.ne();
        let (n_head, n_head_kv) = (self.hp.n_head as i64, self.hp.n_head_kv as i64);
        let n_embd_head = self.hp.n_embd_head as i64;
        let heads = |t: &Tensor, n: i64| ctx.reshape(t, &[n_embd_head, n, n_tokens]); // [n_embd_head, n, n_tokens]
        let factors = self.weights.rope_freqs.as_ref();

        let cur = self.norm(ctx, x, &layer.attn_norm)?; // [n_embd, n_tokens]
        let (ys, qkv) = self.linears(ctx, il, QKV, &cur, None)?;
        let q = ctx.rope_ext(&heads(&ys[0], n_head)?, place.pos, factors, &self.rope())?; // [n_embd_head, n_head, n_tokens]
        let k = ctx.rope_ext(&heads(&ys[1], n_head_kv)?, place.pos, factors, &self.rope())?; // [n_embd_head, n_head_kv, n_tokens]
        let v = heads(&ys[2], n_head_kv)?; // [n_embd_head, n_head_kv, n_tokens]
        let attention = ctx.attention(&q, &k, &v, place.segments, self.attention_scale())?;
        let attn = ctx.view(&attention, &[n_embd_head * n_head, n_tokens], 0)?; // [n_embd_head * n_head, n_tokens]
        let cur = self.norm_if(ctx, &attn, layer.attn_sub_norm.as_ref())?; // as attn
        let (mut ys, attn_output) = self.linears(ctx, il, ATTN_OUTPUT, &cur, Some(x))?;
        let ffn_inp = ys.remove(0); // [n_embd, n_tokens]

        let cur = self.norm(ctx, &ffn_inp, &layer.ffn_norm)?; // [n_embd, n_tokens]
        let (ys, gate_up) = self.linears(ctx, il, GATE_UP, &cur, None)?;
        let [gate, up] = [ys[0].clone(), ys[1].clone()]; // [n_ff, n_tokens]
        let act = match self.arch.block.activation {
            Activation::Silu => ctx.swiglu_split(&gate, &up)?, // [n_ff, n_tokens]
            Activation::ReluSqr => ctx.relu_sqr_glu(&gate, &up)?, // [n_ff, n_tokens]
        };
        let cur = self.norm_if(ctx, &act, layer.ffn_sub_norm.as_ref())?; // [n_ff, n_tokens]
        let (mut ys, ffn_down) = self.linears(ctx, il, FFN_DOWN, &cur, Some(&ffn_inp))?;
        let y = ys.remove(0); // [n_embd, n_tokens]
        let x = x.clone();
        Ok(Forward {
            y,
            x,
            qkv,
            q,
            k,
            v,
            attention,
            attn,
            attn_output,
            ffn_inp,
            gate_up,
            gate,
            up,
            act,
            ffn_down,
        })
    }

    /// The gradient in the input of block `il` (if `needs_dx`), from the one of its result, `dy` `[n_embd, n_tokens]`; and
    /// what adds to the gradients of its adapters.
    pub fn block_back(
        &self,
        ctx: &Context,
        il: usize,
        forward: &Forward,
        dy: &Tensor,
        place: &Place,
        needs_dx: bool,
    ) -> Result<(Option<Tensor>, Vec<Tensor>)> {
        let layer = &self.weights.layers[il];
        let f = forward;
        let [_, n_tokens, ..] = f.x.ne();
        let (n_head, n_head_kv) = (self.hp.n_head as i64, self.hp.n_head_kv as i64);
        let n_embd_head = self.hp.n_embd_head as i64;
        let (n_q, n_kv) = (n_embd_head * n_head, n_embd_head * n_head_kv);
        let n_ff = f.act.ne()[0];
        let eps = self.hp.rms_eps;
        let mut gradients = Vec::new();
        let mut back =
            |saved, dys: &[&Tensor], needs_dx| self.linears_back(ctx, saved, dys, needs_dx, &mut gradients);
        let needed = |d: Option<Tensor>| d.expect("asked for");

        let dact = needed(back(&f.ffn_down, &[dy], true)?); // [n_ff, n_tokens]
        let dact = match &layer.ffn_sub_norm {
            Some(w) => ctx.rms_norm_mul_back(&dact, &f.act, w, None, eps)?, // [n_ff, n_tokens]
            None => dact,
        };
        let both = match self.arch.block.activation {
            Activation::Silu => ctx.swiglu_back(&dact, &f.gate, &f.up)?, // [n_ff, n_tokens, 2]
            Activation::ReluSqr => ctx.relu_sqr_glu_back(&dact, &f.gate, &f.up)?, // [n_ff, n_tokens, 2]
        };
        let dgate = ctx.view(&both, &[n_ff, n_tokens], 0)?; // [n_ff, n_tokens]
        let dup = ctx.view(&both, &[n_ff, n_tokens], (n_ff * n_tokens) as usize)?; // [n_ff, n_tokens]
        let dcur = needed(back(&f.gate_up, &[&dgate, &dup], true)?); // [n_embd, n_tokens]
        let dffn_inp = ctx.rms_norm_mul_back(&dcur, &f.ffn_inp, &layer.ffn_norm, Some(dy), eps)?; // [n_embd, n_tokens]

        let dattn = needed(back(&f.attn_output, &[&dffn_inp], true)?); // [n_q, n_tokens]
        let dattn = match &layer.attn_sub_norm {
            Some(w) => ctx.rms_norm_mul_back(&dattn, &f.attn, w, None, eps)?, // [n_q, n_tokens]
            None => dattn,
        };
        let dattn = ctx.reshape(&dattn, &[n_embd_head, n_head, n_tokens])?; // [n_embd_head, n_head, n_tokens]
        let scale = self.attention_scale();
        let dqkv = ctx.attention_back(&f.q, &f.k, &f.v, place.segments, &f.attention, &dattn, scale)?;
        // [n_embd_head, n_heads, n_tokens], from element `at` on
        let part = |n_heads, at: i64| ctx.view(&dqkv, &[n_embd_head, n_heads, n_tokens], at as usize);
        let factors = self.weights.rope_freqs.as_ref();
        let dq = ctx.rope_ext_back(&part(n_head, 0)?, place.pos, factors, &self.rope())?; // [n_embd_head, n_head, n_tokens]
        let dk = ctx.rope_ext_back(&part(n_head_kv, n_q * n_tokens)?, place.pos, factors, &self.rope())?; // [n_embd_head, n_head_kv, n_tokens]
        let dq = ctx.reshape(&dq, &[n_q, n_tokens])?; // [n_q, n_tokens]
        let dk = ctx.reshape(&dk, &[n_kv, n_tokens])?; // [n_kv, n_tokens]
        let dv = ctx.view(&dqkv, &[n_kv, n_tokens], ((n_q + n_kv) * n_tokens) as usize)?; // [n_kv, n_tokens]
        let dcur = back(&f.qkv, &[&dq, &dk, &dv], needs_dx)?; // [n_embd, n_tokens]
        let dx = match dcur {
            Some(d) => Some(ctx.rms_norm_mul_back(&d, &f.x, &layer.attn_norm, Some(&dffn_inp), eps)?), // [n_embd, n_tokens]
            None => None,
        };
        Ok((dx, gradients))
    }

    /// Logits of the hidden states `x` `[n_embd, m]` → `[n_vocab, m]`.
    pub fn head(&self, ctx: &Context, x: &Tensor) -> Result<Tensor> {
        let cur = self.norm(ctx, x, &self.weights.output_norm)?; // [n_embd, m]
        Ok(ctx.mul_mat(&self.weights.output, &cur)?) // [n_vocab, m]
    }

    /// The gradient of [`Self::head`] in `x`, from the gradient of the logits.
    pub fn head_back(&self, ctx: &Context, dlogits: &Tensor, x: &Tensor) -> Result<Tensor> {
        let dy = ctx.transpose(dlogits)?; // [m, n_vocab]
        let dcur = ctx.out_prod(&self.weights.output, &dy)?; // [n_embd, m]
        Ok(ctx.rms_norm_mul_back(&dcur, x, &self.weights.output_norm, None, self.hp.rms_eps)?)
        // [n_embd, m]
    }

    fn norm(&self, ctx: &Context, x: &Tensor, weight: &Tensor) -> Result<Tensor> {
        let cur = ctx.rms_norm(x, self.hp.rms_eps)?; // as x
        Ok(ctx.mul(&cur, weight)?) // as x
    }

    fn norm_if(&self, ctx: &Context, x: &Tensor, weight: Option<&Tensor>) -> Result<Tensor> {
        weight.map_or_else(|| Ok(x.clone()), |w| self.norm(ctx, x, w))
    }

    fn attention_scale(&self) -> f32 {
        1.0 / (self.hp.n_embd_head as f32).sqrt()
    }

    fn rope(&self) -> Rope {
        let r = &self.hp.rope;
        Rope {
            kind: self.arch.block.rope,
            n_dims: r.n_dims as i32,
            n_ctx_orig: r.n_ctx_orig as i32,
            freq_base: r.freq_base,
            freq_scale: r.freq_scale,
            ext_factor: r.ext_factor,
            attn_factor: r.attn_factor,
            beta_fast: r.beta_fast,
            beta_slow: r.beta_slow,
        }
    }
}
