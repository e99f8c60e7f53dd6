//! Which tensors the file will hold, and what each is made of.

use std::collections::BTreeSet;

use super::checkpoint::{Checkpoint, Source};
use super::config::{Family, LinearClass, ModelConfig, RopeScaling};
use super::error::{Error, Result};
use super::layout::{Layout, Padding};
use super::ternary::{self, is_f16, Survey};
use crate::ggml::Dtype;

/// Rows of a matrix (or values of a vector): padded, and in the order that upstream's rope wants.
#[derive(Debug, Clone, Copy)]
pub(super) struct Rows {
    padding: Padding,
    /// Width of heads whose two halves are to be interleaved.
    interleave: Option<usize>,
}

impl Rows {
    fn plain(padding: Padding) -> Self {
        Self { padding, interleave: None }
    }

    /// Which row stands at place `i`; `None` for zeros.
    pub(super) fn source(self, i: usize) -> Option<usize> {
        let row = self.padding.source(i)?;
        let Some(head) = self.interleave else { return Some(row) };
        let (start, at) = (row / head * head, row % head);
        Some(start + at % 2 * (head / 2) + at / 2)
    }

    pub(super) fn to(self) -> usize {
        self.padding.to()
    }
}

/// What the values of a matrix are.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Kind {
    /// Four values a byte, times a scale.
    Packed { scale: f32 },
    /// Masters: -1, 0 and 1 times the mean of their absolute values.
    Masters,
    /// Values that are ternary already, all of one size.
    OneScale { scale: f32 },
    /// Values that are ternary already, with a scale for each block.
    Ternary,
    /// Whatever they are.
    Plain,
}

/// A matrix to be written.
pub(super) struct Matrix<'a> {
    pub source: Source<'a>,
    pub rows: Rows,
    pub cols: Padding,
    pub kind: Kind,
    /// What all values are multiplied by, where that is not left to a scale of its own.
    pub factor: f32,
}

pub(super) enum Content<'a> {
    Matrix(Matrix<'a>),
    /// Values times a factor.
    Vector {
        source: Source<'a>,
        rows: Rows,
        factor: f32,
    },
    Constant(Vec<f32>),
    /// The scale that the matrix before it turned out to have, times a factor.
    ScaleOfMasters {
        factor: f32,
    },
}

pub(super) struct Item<'a> {
    pub name: String,
    /// Values of a row first.
    pub ne: Vec<i64>,
    pub dtype: Dtype,
    pub content: Content<'a>,
}

/// What was asked for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Wish {
    pub dtype: Dtype,
    pub embed: Dtype,
    pub ternarize: bool,
    pub threads: usize,
}

/// All tensors, in the order of the file, and the names of those that could not have the type that was asked for.
pub(super) struct Plan<'a> {
    pub items: Vec<Item<'a>>,
    pub fallbacks: Vec<(String, Dtype)>,
    /// Scales that stand in tensors of their own.
    pub n_scales: usize,
}

struct Planner<'a> {
    checkpoint: &'a Checkpoint,
    config: &'a ModelConfig,
    layout: Layout,
    wish: Wish,
    used: BTreeSet<String>,
    plan: Plan<'a>,
}

/// Finds every tensor of the network and holds its shape against the configuration.
pub(super) fn plan<'a>(
    checkpoint: &'a Checkpoint,
    config: &'a ModelConfig,
    layout: Layout,
    wish: Wish,
) -> Result<Plan<'a>> {
    let plan = Plan { items: Vec::new(), fallbacks: Vec::new(), n_scales: 0 };
    let mut p = Planner { checkpoint, config, layout, wish, used: BTreeSet::new(), plan };
    let tied = p.tied()?;
    p.embedding("model.embed_tokens.weight", "token_embd.weight")?;
    for il in 0..config.n_layer {
        p.layer(il)?;
    }
    let residual = Rows::plain(layout.embd);
    p.vector("model.norm.weight", "output_norm.weight", residual, 1.0 / layout.embd.gain())?;
    if !tied {
        p.embedding("lm_head.weight", "output.weight")?;
    }
    if let Some(factors) = rope_factors(config) {
        p.constant("rope_freqs.weight".into(), factors);
    }
    p.refuse_unused()?;
    Ok(p.plan)
}

impl<'a> Planner<'a> {
    fn take(&mut self, name: &str, shape: &[usize]) -> Result<Source<'a>> {
        let source = self.checkpoint.require(name, shape)?;
        self.used.insert(name.into());
        Ok(source)
    }

    /// Whether the head is the embedding itself.
    fn tied(&mut self) -> Result<bool> {
        let [head, embedding] =
            ["lm_head.weight", "model.embed_tokens.weight"].map(|n| self.checkpoint.get(n));
        let (Some(head), Some(embedding)) = (head, embedding) else {
            // These architectures have no head of their own, and a tied network is saved without one.
            return Ok(self.config.tied || self.config.family != Family::Llama);
        };
        if self.config.tied || (head.dtype == embedding.dtype && head.bytes == embedding.bytes) {
            self.used.insert("lm_head.weight".into());
            return Ok(true);
        }
        if self.config.family != Family::Llama {
            let what = "an output matrix that is not the embedding, in a BitNet model,".into();
            return Err(Error::Unsupported { path: head.path.into(), what });
        }
        Ok(false)
    }

    fn layer(&mut self, il: usize) -> Result<()> {
        let Layout { embd, q, kv, ff, .. } = self.layout;
        let sub_norms = self.config.family.sub_norms();
        // Factors as `layout` derives them. Without a norm behind it the FFN's width asks for none.
        let (residual, up) = (1.0 / embd.gain(), sub_norms.map_or(1.0, |_| ff.gain() / embd.gain()));
        let interleave = (self.config.family == Family::Llama).then_some(self.config.n_embd_head);
        let rotated = |padding| Rows { padding, interleave };
        let out = Rows::plain(embd);
        let hf = |name: &str| format!("model.layers.{il}.{name}");
        let gguf = |name: &str| format!("blk.{il}.{name}");
        let norm = |name: &str| gguf(&format!("{name}.weight"));

        self.vector(&hf("input_layernorm.weight"), &norm("attn_norm"), out, residual)?;
        self.linear(&hf("self_attn.q_proj"), gguf("attn_q"), rotated(q), embd, q.gain())?;
        self.linear(&hf("self_attn.k_proj"), gguf("attn_k"), rotated(kv), embd, 1.0)?;
        self.linear(&hf("self_attn.v_proj"), gguf("attn_v"), Rows::plain(kv), embd, 1.0)?;
        if let Some((attn, _)) = sub_norms {
            let name = hf(&format!("{attn}.weight"));
            self.vector(&name, &norm("attn_sub_norm"), Rows::plain(q), residual)?;
        }
        self.linear(&hf("self_attn.o_proj"), gguf("attn_output"), out, q, 1.0)?;
        self.vector(&hf("post_attention_layernorm.weight"), &norm("ffn_norm"), out, residual)?;
        self.linear(&hf("mlp.gate_proj"), gguf("ffn_gate"), Rows::plain(ff), embd, 1.0)?;
        self.linear(&hf("mlp.up_proj"), gguf("ffn_up"), Rows::plain(ff), embd, up)?;
        if let Some((_, ffn)) = sub_norms {
            let name = hf(&format!("{ffn}.weight"));
            self.vector(&name, &norm("ffn_sub_norm"), Rows::plain(ff), 1.0 / ff.gain())?;
        }
        self.linear(&hf("mlp.down_proj"), gguf("ffn_down"), out, ff, 1.0)?;
        // Computed from the configuration instead.
        self.used.insert(hf("self_attn.rotary_emb.inv_freq"));
        Ok(())
    }

    fn embedding(&mut self, hf: &str, gguf: &str) -> Result<()> {
        let (n_vocab, cols) = (self.config.n_vocab, self.layout.embd);
        let source = self.take(hf, &[n_vocab, cols.from()])?;
        source.check_floats()?;
        let rows = Rows::plain(Padding::none(n_vocab));
        let dtype = self.fitting(gguf, self.wish.embed, cols.to());
        self.matrix(gguf.into(), dtype, Matrix { source, rows, cols, kind: Kind::Plain, factor: 1.0 });
        Ok(())
    }

    fn vector(&mut self, hf: &str, gguf: &str, rows: Rows, factor: f64) -> Result<()> {
        let source = self.take(hf, &[rows.padding.from()])?;
        source.check_floats()?;
        let content = Content::Vector { source, rows, factor: factor as f32 };
        self.plan.items.push(Item {
            name: gguf.into(),
            ne: vec![rows.to() as i64],
            dtype: Dtype::F32,
            content,
        });
        Ok(())
    }

    fn constant(&mut self, name: String, values: Vec<f32>) {
        let ne = vec![values.len() as i64];
        self.plan.items.push(Item { name, ne, dtype: Dtype::F32, content: Content::Constant(values) });
    }

    fn matrix(&mut self, name: String, dtype: Dtype, matrix: Matrix<'a>) {
        let ne = vec![matrix.cols.to() as i64, matrix.rows.to() as i64];
        self.plan.items.push(Item { name, ne, dtype, content: Content::Matrix(matrix) });
    }

    /// The type asked for, or the next one whose blocks fit the rows.
    fn fitting(&mut self, gguf: &str, dtype: Dtype, n_per_row: usize) -> Dtype {
        if dtype.row_size(n_per_row).is_some() {
            return dtype;
        }
        let fallback = [Dtype::Q8_0, Dtype::F16].into_iter().find(|d| d.row_size(n_per_row).is_some());
        let fallback = fallback.unwrap_or(Dtype::F16);
        self.plan.fallbacks.push((gguf.into(), fallback));
        fallback
    }

    fn linear(&mut self, hf: &str, gguf: String, rows: Rows, cols: Padding, gain: f64) -> Result<()> {
        let (n_out, n_in) = (rows.padding.from(), cols.from());
        let weight = format!("{hf}.weight");
        let packed = self.checkpoint.get(&weight).is_some_and(|s| s.is_packed());
        let source = match packed {
            true if n_out % 4 == 0 => self.take(&weight, &[n_out / 4, n_in])?,
            _ => self.take(&weight, &[n_out, n_in])?,
        };
        let (kind, scale) = self.kind(hf, source)?;
        let name = format!("{gguf}.weight");
        let mut dtype = self.fitting(&name, self.wish.dtype, cols.to());
        let kind = match kind {
            // What is no layer of this kind by its own configuration, and what holds its values as well in any type.
            Kind::Plain if dtype.is_ternary() => {
                dtype = Dtype::F16;
                self.plan.fallbacks.push((name.clone(), dtype));
                kind
            }
            Kind::Ternary if dtype.is_ternary() => {
                let (kind, fitting) = self.looked_at(source, cols)?;
                if fitting != dtype {
                    dtype = fitting;
                    self.plan.fallbacks.push((name.clone(), dtype));
                }
                kind
            }
            Kind::Ternary => Kind::Plain,
            kind => kind,
        };
        let beside = f64::from(scale) * gain;
        let (factor, own) = match kind {
            Kind::Packed { scale: own } | Kind::OneScale { scale: own } => {
                let all = (beside * f64::from(own)) as f32;
                if is_f16(all) {
                    (all, None)
                } else {
                    (1.0, Some(Content::Constant(vec![all])))
                }
            }
            Kind::Masters => (1.0, Some(Content::ScaleOfMasters { factor: gain as f32 })),
            Kind::Ternary | Kind::Plain => {
                (1.0, (beside != 1.0).then(|| Content::Constant(vec![beside as f32])))
            }
        };
        self.matrix(name, dtype, Matrix { source, rows, cols, kind, factor });
        if let Some(content) = own {
            self.plan.n_scales += 1;
            let (name, ne) = (format!("{gguf}.scale"), vec![1]);
            self.plan.items.push(Item { name, ne, dtype: Dtype::F32, content });
        }
        let bias = format!("{hf}.bias");
        if self.config.family == Family::Llama && self.checkpoint.get(&bias).is_some() {
            self.vector(&bias, &format!("{gguf}.bias"), rows, gain)?;
        }
        Ok(())
    }

    /// What values that should be ternary turn out to be, and the type that holds them: TriLM has a scale for each of
    /// the devices it was trained on, and where their widths end is not always the end of a block.
    fn looked_at(&self, source: Source<'a>, cols: Padding) -> Result<(Kind, Dtype)> {
        let dtype = self.wish.dtype;
        let small = Dtype::Q8_0;
        let blocks = [dtype.block_size(), small.block_size()];
        match ternary::survey(&source, cols, &blocks, self.wish.threads)? {
            Survey::OneScale(scale) => Ok((Kind::OneScale { scale }, dtype)),
            Survey::Blocks(n) if n == small.block_size() => Ok((Kind::Ternary, small)),
            Survey::Blocks(_) => Ok((Kind::Ternary, dtype)),
            Survey::Neither(deviation) => Err(Error::NotTernary {
                path: source.path.into(),
                tensor: source.name.into(),
                dtype: dtype.name(),
                max: deviation.max(),
                rms: deviation.rms(),
                remedy: "pass `--type f16` or `--type q8_0`; `--ternarize` if these are the masters of a BitNet model",
            }),
        }
    }

    /// What a layer's values are, and the scale beside them that is not theirs alone.
    fn kind(&mut self, hf: &str, source: Source<'a>) -> Result<(Kind, f32)> {
        let path = source.path;
        let scale_name = format!("{hf}.weight_scale");
        let scale = self.checkpoint.scalar(&scale_name)?;
        if let Some(found) = scale {
            self.used.insert(scale_name.clone());
            if found <= 0.0 {
                return Err(Error::Scale { path: path.into(), tensor: scale_name, found });
            }
        }
        let quantization = self.config.quantization.as_ref();
        if source.is_packed() {
            let scale =
                scale.ok_or_else(|| Error::MissingTensor { path: path.into(), tensor: scale_name })?;
            let scale = match quantization.map_or(LinearClass::BitLinear, |q| q.class) {
                LinearClass::BitLinear => 1.0 / scale,
                LinearClass::AutoBitLinear => scale,
            };
            return Ok((Kind::Packed { scale }, 1.0));
        }
        source.check_floats()?;
        let skipped = quantization.is_some_and(|q| q.skip.iter().any(|part| hf.contains(part.as_str())));
        if skipped {
            return Ok((Kind::Plain, 1.0));
        }
        if let Some(scale) = scale {
            return match quantization {
                Some(q) if q.class == LinearClass::AutoBitLinear && !q.online => Ok((Kind::Ternary, scale)),
                _ => Err(Error::TensorType {
                    path: path.into(),
                    tensor: source.name.into(),
                    expected: "packed U8, as its `weight_scale` says",
                    found: format!("{:?}", source.dtype),
                }),
            };
        }
        let masters = self.wish.ternarize
            || self.config.family != Family::Llama
            || quantization.is_some_and(|q| q.online);
        Ok((if masters { Kind::Masters } else { Kind::Ternary }, 1.0))
    }

    /// A tensor that no role took would change the network if it were left out.
    fn refuse_unused(&self) -> Result<()> {
        match self.checkpoint.names().find(|name| !self.used.contains(*name)) {
            Some(name) => Err(Error::UnknownTensor {
                path: self.checkpoint.place(name).into(),
                tensor: name.into(),
                architecture: self.config.family.architecture(),
            }),
            None => Ok(()),
        }
    }
}

/// Llama 3's factors of the rotary frequencies, as upstream's converter and transformers compute them.
fn rope_factors(config: &ModelConfig) -> Option<Vec<f32>> {
    let RopeScaling::Llama3 { factor, low, high, original } = config.rope_scaling else { return None };
    let n = config.n_embd_head;
    let of = |i: usize| {
        let frequency = f64::from(config.rope_base).powf(-(2.0 * i as f64) / n as f64);
        let wavelength = 2.0 * std::f64::consts::PI / frequency;
        let (factor, low, high, original) =
            (f64::from(factor), f64::from(low), f64::from(high), f64::from(original));
        if wavelength < original / high {
            1.0
        } else if wavelength > original / low {
            factor
        } else {
            let smooth = (original / wavelength - low) / (high - low);
            1.0 / ((1.0 - smooth) / factor + smooth)
        }
    };
    Some((0..n / 2).map(|i| of(i) as f32).collect())
}

impl Plan<'_> {
    /// Values of the checkpoint's own, without padding.
    pub(super) fn n_params(&self) -> u64 {
        let of = |item: &Item<'_>| match &item.content {
            Content::Matrix(m) => m.rows.padding.from() * m.cols.from(),
            Content::Vector { rows, .. } => rows.padding.from(),
            Content::Constant(_) | Content::ScaleOfMasters { .. } => 0,
        };
        self.items.iter().map(|item| of(item) as u64).sum()
    }
}
