//! Which tensors a model has, and what random values fill them.

use rand::RngCore;
use rand_chacha::ChaCha8Rng;

use super::{Config, Family};
use crate::ggml::Dtype;

/// Standard deviation of embeddings.
const EMBEDDING: f32 = 0.02;
/// Standard deviation that logits start with: the loss is then about ln(n_vocab) + 0.03.
const LOGITS: f32 = 0.25;
/// How far norm weights stray from their mean, so that leaving one out shows.
const NORM_SPREAD: f32 = 0.1;

/// Where a tensor's values come from.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Values {
    /// -1, 0 and 1 with equal chance, times this.
    Ternary(f32),
    /// Bell-shaped around a mean.
    Bell {
        mean: f32,
        deviation: f32,
    },
    Constant(f32),
}

/// One tensor to be made.
#[derive(Debug)]
pub(super) struct Plan {
    pub name: String,
    pub ne: Vec<i64>,
    pub dtype: Dtype,
    pub values: Values,
}

impl Plan {
    pub(super) fn n_per_row(&self) -> usize {
        self.ne[0] as usize
    }

    pub(super) fn n_rows(&self) -> usize {
        self.ne[1..].iter().product::<i64>() as usize
    }
}

/// Every tensor of the model, in the order of the file.
pub(super) fn plan(config: &Config) -> Vec<Plan> {
    let s = config.shape;
    let (n_embd_q, n_embd_kv) = (s.n_embd_q(), s.n_embd_head * config.n_head_kv());
    let mut plans = Vec::new();
    let mut add = |name: String, ne: &[usize], dtype, values| {
        plans.push(Plan { name, ne: ne.iter().map(|&n| n as i64).collect(), dtype, values });
    };

    // The head (the embedding itself where they are tied) gets what `llama-quantize` would give it.
    let head = match config.dtype {
        Dtype::F16 | Dtype::Q8_0 => config.dtype,
        // Q6_K's blocks do not divide every width.
        _ if s.n_embd % Dtype::Q6_K.block_size() != 0 => Dtype::Q8_0,
        _ => Dtype::Q6_K,
    };
    let untied = config.untied && config.family == Family::Llama;
    let embedding = Values::Bell { mean: 0.0, deviation: EMBEDDING };
    let embedding_type = if untied && head == Dtype::Q6_K { Dtype::Q4_K } else { head };
    add("token_embd.weight".into(), &[s.n_embd, s.n_vocab], embedding_type, embedding);
    let norm_mean = LOGITS / (EMBEDDING * (s.n_embd as f32).sqrt());
    add("output_norm.weight".into(), &[s.n_embd], Dtype::F32, norm(norm_mean));
    if untied {
        add("output.weight".into(), &[s.n_embd, s.n_vocab], head, embedding);
    }

    // Two writers into the residual stream per layer; together they add about unit variance.
    let residual = 1.0 / (2.0 * s.n_layer as f32).sqrt();
    for il in 0..s.n_layer {
        let mut matrix = |name: &str, n_in: usize, n_out: usize, gain: f32| {
            let deviation = gain / (n_in as f32).sqrt();
            // A trit's variance is 2/3. Rounded to f16, so that TQ blocks hold the scale exactly.
            let scale = half::f16::from_f32(deviation * 1.5f32.sqrt()).to_f32();
            let values = match (config.ternary(), config.scales) {
                (true, false) => Values::Ternary(scale),
                (true, true) => Values::Ternary(1.0),
                (false, _) => Values::Bell { mean: 0.0, deviation },
            };
            add(format!("blk.{il}.{name}.weight"), &[n_in, n_out], config.dtype, values);
            if config.scales {
                add(format!("blk.{il}.{name}.scale"), &[1], Dtype::F32, Values::Constant(scale));
            }
        };
        matrix("attn_q", s.n_embd, n_embd_q, 1.0);
        matrix("attn_k", s.n_embd, n_embd_kv, 1.0);
        matrix("attn_v", s.n_embd, n_embd_kv, 1.0);
        matrix("attn_output", n_embd_q, s.n_embd, residual);
        matrix("ffn_gate", s.n_embd, s.n_ff, 1.0);
        matrix("ffn_up", s.n_embd, s.n_ff, 1.0);
        matrix("ffn_down", s.n_ff, s.n_embd, residual);
        add(format!("blk.{il}.attn_norm.weight"), &[s.n_embd], Dtype::F32, norm(1.0));
        add(format!("blk.{il}.ffn_norm.weight"), &[s.n_embd], Dtype::F32, norm(1.0));
        if config.family.is_bitnet() {
            add(format!("blk.{il}.attn_sub_norm.weight"), &[n_embd_q], Dtype::F32, norm(1.0));
            add(format!("blk.{il}.ffn_sub_norm.weight"), &[s.n_ff], Dtype::F32, norm(1.0));
        }
    }
    plans
}

fn norm(mean: f32) -> Values {
    Values::Bell { mean, deviation: NORM_SPREAD * mean }
}

impl Values {
    /// Whether random numbers go into it.
    pub(super) fn is_random(self) -> bool {
        !matches!(self, Self::Constant(_))
    }

    /// Fills `out`. Integers and correctly rounded operations only, so that every machine makes the same values.
    pub(super) fn fill(self, out: &mut [f32], rng: &mut ChaCha8Rng) {
        match self {
            Self::Constant(value) => out.fill(value),
            Self::Ternary(scale) => {
                let table = [-scale, 0.0, scale];
                let mut bytes = [0u8; 4096];
                let mut at = bytes.len();
                for five in out.chunks_mut(5) {
                    // Below 3^5 a byte is five fair trits; the few above are passed over.
                    let mut byte = u8::MAX;
                    while byte >= 243 {
                        if at == bytes.len() {
                            rng.fill_bytes(&mut bytes);
                            at = 0;
                        }
                        byte = bytes[at];
                        at += 1;
                    }
                    for x in five {
                        *x = table[usize::from(byte % 3)];
                        byte /= 3;
                    }
                }
            }
            Self::Bell { mean, deviation } => {
                // The sum of four 16-bit numbers: variance (2^32 - 1) / 3, bounded at 3.5 deviations.
                let step = deviation / (f64::from(u32::MAX) / 3.0).sqrt() as f32;
                for x in out {
                    let bits = rng.next_u64();
                    let sum: i32 = (0..4).map(|i| (bits >> (16 * i) & 0xffff) as i32).sum();
                    *x = mean + (sum - 2 * 0xffff) as f32 * step;
                }
            }
        }
    }
}
