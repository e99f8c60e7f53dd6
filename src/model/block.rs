//! One transformer block, and the head, as graphs.
//!
//! The only place that knows what a block computes. Follows upstream's `models/llama.cpp` and `models/bitnet.cpp`;
//! `tests/parity.rs` compares the result with libllama's.

use crate::ggml::{Context, Rope, Tensor};

use super::error::Result;
use super::hparams::Hparams;
use super::lora::Lora;
use super::spec::{Architecture, Target};
use super::weights::Weights;

/// What stays the same while a network is built.
pub struct Net<'a> {
    pub arch: &'a Architecture,
    pub hp: &'a Hparams,
    pub weights: &'a Weights,
    pub lora: Option<&'a Lora>,
}

/// Where the tokens of a micro-batch stand: `n_rows` rows of `seq_len` tokens.
pub struct Place<'a> {
    /// i32 `[n_tokens]`
    pub pos: &'a Tensor,
    /// f32 `[seq_len, seq_len, 1, n_rows]`: 0 where a token may look, minus infinity elsewhere.
    pub mask: &'a Tensor,
}

impl Net<'_> {
    /// Block `il` of `x` `[n_embd, n_tokens]` → `[n_embd, n_tokens]`.
    pub fn block(&self, ctx: &Context, il: usize, x: &Tensor, place: &Place) -> Result<Tensor> {
        let layer = &self.weights.layers[il];
        let cur = self.norm(ctx, x, &layer.attn_norm)?; // [n_embd, n_tokens]
        let mut cur = self.attention(ctx, il, &cur, place)?; // [n_embd_head * n_head, n_tokens]
        if let Some(w) = &layer.attn_sub_norm {
            cur = self.norm(ctx, &cur, w)?; // [n_embd_head * n_head, n_tokens]
        }
        let cur = self.linear(ctx, il, Target::AttnOutput, &cur)?; // [n_embd, n_tokens]
        let ffn_inp = ctx.add(&cur, x)?; // [n_embd, n_tokens]

        let cur = self.norm(ctx, &ffn_inp, &layer.ffn_norm)?; // [n_embd, n_tokens]
        let gate = self.linear(ctx, il, Target::FfnGate, &cur)?; // [n_ff, n_tokens]
        let up = self.linear(ctx, il, Target::FfnUp, &cur)?; // [n_ff, n_tokens]
        let mut cur = ctx.swiglu_split(&gate, &up)?; // [n_ff, n_tokens]
        if let Some(w) = &layer.ffn_sub_norm {
            cur = self.norm(ctx, &cur, w)?; // [n_ff, n_tokens]
        }
        let cur = self.linear(ctx, il, Target::FfnDown, &cur)?; // [n_embd, n_tokens]
        Ok(ctx.add(&cur, &ffn_inp)?) // [n_embd, n_tokens]
    }

    /// Logits of the hidden states `x` `[n_embd, m]` → `[n_vocab, m]`, and the normalised states they come from.
    pub fn head(&self, ctx: &Context, x: &Tensor) -> Result<Tensor> {
        let cur = self.norm(ctx, x, &self.weights.output_norm)?; // [n_embd, m]
        Ok(ctx.mul_mat(&self.weights.output, &cur)?) // [n_vocab, m]
    }

    /// The gradient of [`Self::head`] in `x`, from the gradient of the logits.
    pub fn head_back(&self, ctx: &Context, dlogits: &Tensor, x: &Tensor) -> Result<Tensor> {
        let dy = ctx.transpose(dlogits)?; // [m, n_vocab]
        let dcur = ctx.out_prod(&self.weights.output, &dy)?; // [n_embd, m]
        let dcur = ctx.mul(&dcur, &self.weights.output_norm)?; // [n_embd, m]
        Ok(ctx.rms_norm_back(&dcur, x, self.hp.rms_eps)?) // [n_embd, m]
    }

    fn norm(&self, ctx: &Context, x: &Tensor, weight: &Tensor) -> Result<Tensor> {
        let cur = ctx.rms_norm(x, self.hp.rms_eps)?; // as x
        Ok(ctx.mul(&cur, weight)?) // as x
    }

    /// `W x`, with the layer's scale, adapter and bias. x `[n_in, n_tokens]` → `[n_out, n_tokens]`.
    fn linear(&self, ctx: &Context, il: usize, target: Target, x: &Tensor) -> Result<Tensor> {
        let linear = self.weights.layers[il].linear(target);
        let mut y = ctx.mul_mat(&linear.weight, x)?.named(&format!("{}-{il}", target.name())); // [n_out, n_tokens]
        let late = self.arch.scale_covers_adapter(target);
        if let Some(scale) = linear.scale.as_ref().filter(|_| !late) {
            y = ctx.mul(&y, scale)?; // [n_out, n_tokens]
        }
        if let Some((lora, pair)) = self.lora.and_then(|l| Some((l, l.pair(il, target)?))) {
            let ax = ctx.mul_mat(&pair.a, x)?; // [rank, n_tokens]
            let ax = ctx.scale(&ax, lora.scale())?; // [rank, n_tokens]
            let bax = ctx.mul_mat(&pair.b, &ax)?; // [n_out, n_tokens]
            y = ctx.add(&y, &bax)?; // [n_out, n_tokens]
        }
        let biased = |y: Tensor| match &linear.bias {
            Some(bias) => ctx.add(&y, bias),
            None => Ok(y),
        };
        // A scale that covers the adapter covers the bias too.
        match linear.scale.as_ref().filter(|_| late) {
            Some(scale) => y = ctx.mul(&biased(y)?, scale)?, // [n_out, n_tokens]
            None => y = biased(y)?,                          // [n_out, n_tokens]
        }
        Ok(y)
    }

    /// Causal attention within each sample of each row. x `[n_embd, n_tokens]` → `[n_embd_head * n_head, n_tokens]`.
    ///
    /// Rows are folded into the head dimension, so that one batched product serves all rows: query head `h` of row
    /// `r` is batch `h + n_head * r`, its key head is batch `(h + n_head * r) / (n_head / n_head_kv)`.
    fn attention(&self, ctx: &Context, il: usize, x: &Tensor, place: &Place) -> Result<Tensor> {
        let [seq_len, _, _, n_rows] = place.mask.ne();
        let n_tokens = seq_len * n_rows;
        let n_embd_head = self.hp.n_embd_head as i64;
        let (n_head, n_head_kv) = (self.hp.n_head as i64, self.hp.n_head_kv as i64);
        let rope = self.rope();
        // [n, n_tokens] → [n_embd_head, seq_len, n_heads, n_rows]
        let heads = |cur: &Tensor, n_heads: i64, rotate: bool, axes: [i32; 4]| -> Result<Tensor> {
            let mut cur = ctx.reshape(cur, &[n_embd_head, n_heads, n_tokens])?;
            if rotate {
                cur = ctx.rope_ext(&cur, place.pos, self.weights.rope_freqs.as_ref(), &rope)?;
            }
            let cur = ctx.reshape(&cur, &[n_embd_head, n_heads, seq_len, n_rows])?;
            let cur = ctx.cont(&ctx.permute(&cur, axes)?)?;
            let [ne0, ne1, ..] = cur.ne();
            Ok(ctx.reshape(&cur, &[ne0, ne1, n_heads * n_rows])?)
        };
        let q = self.linear(ctx, il, Target::AttnQ, x)?; // [n_embd_head * n_head, n_tokens]
        let k = self.linear(ctx, il, Target::AttnK, x)?; // [n_embd_head * n_head_kv, n_tokens]
        let v = self.linear(ctx, il, Target::AttnV, x)?; // [n_embd_head * n_head_kv, n_tokens]
        let q = heads(&q, n_head, true, [0, 2, 1, 3])?; // [n_embd_head, seq_len, n_head * n_rows]
        let k = heads(&k, n_head_kv, true, [0, 2, 1, 3])?; // [n_embd_head, seq_len, n_head_kv * n_rows]
        let v = heads(&v, n_head_kv, false, [1, 2, 0, 3])?; // [seq_len, n_embd_head, n_head_kv * n_rows]

        let kq = ctx.mul_mat(&k, &q)?; // [seq_len, seq_len, n_head * n_rows]
        let kq = ctx.reshape(&kq, &[seq_len, seq_len, n_head, n_rows])?;
        let kq = ctx.soft_max_ext(&kq, place.mask, 1.0 / (n_embd_head as f32).sqrt())?;
        let kq = ctx.reshape(&kq, &[seq_len, seq_len, n_head * n_rows])?;
        let kqv = ctx.mul_mat(&v, &kq)?; // [n_embd_head, seq_len, n_head * n_rows]
        let kqv = ctx.reshape(&kqv, &[n_embd_head, seq_len, n_head, n_rows])?;
        let kqv = ctx.cont(&ctx.permute(&kqv, [0, 2, 1, 3])?)?; // [n_embd_head, n_head, seq_len, n_rows]
        Ok(ctx.reshape(&kqv, &[n_embd_head * n_head, n_tokens])?)
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
