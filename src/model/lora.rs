//! The trainable part: low-rank adapters (LoRA, arXiv:2106.09685) of linear layers, with gradients and moments.
//!
//! All parameters lie in one flat f32 buffer, all gradients in another of the same layout, and so do AdamW's two
//! moments. So the optimizer, the gradient norm and a checkpoint are each one pass over one buffer, whatever the number
//! of layers. The A matrices of layers that read the same activation lie side by side, as one matrix to multiply with.

use rand::Rng;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

use crate::ggml::{Backend, Context, Dtype, Tensor};

use super::adapter::{AdapterFile, AdapterPair, Heads, Matrix};
use super::error::{Error, Result};
use super::hparams::Hparams;
use super::spec::Target;
use super::weights::Weights;

/// Floats that every B, and every group's As, start at a multiple of: 256 bytes, the largest offset alignment devices
/// ask for.
const ALIGN: usize = 64;

/// Floats that the flat buffers are a multiple of, so that reductions over them can go by rows.
pub const FLAT_ALIGN: usize = 1024;

/// What to adapt, and how.
#[derive(Clone, Debug, PartialEq)]
pub struct LoraConfig {
    pub rank: usize,
    pub alpha: f32,
    pub targets: Vec<Target>,
}

impl LoraConfig {
    /// The configuration of an adapter file: its rank, its alpha, and every kind of layer that it adapts somewhere.
    pub fn of_file(file: &AdapterFile) -> Result<Self> {
        let rank = file.rank().ok_or_else(|| Error::AdapterMixedRanks { path: file.path.clone() })?;
        let adapts =
            |t: &Target| file.pairs.iter().any(|p| p.tensor.ends_with(&format!(".{}.weight", t.name())));
        // Upstream takes alpha 0 for a scale of 1.
        let alpha = if file.alpha == 0.0 { rank as f32 } else { file.alpha };
        Ok(Self { rank, alpha, targets: Target::ALL.into_iter().filter(adapts).collect() })
    }
}

/// A trainable matrix.
pub struct Param {
    pub value: Tensor,
    /// Its gradient, in training.
    pub grad: Option<Tensor>,
}

/// The adapters of the layers that read one activation ([`Target::GROUPS`]): `y += (alpha / rank) * B (A x)` each.
pub struct Group {
    /// The As of all of them, `[n_in, n_adapters * rank]`.
    pub a: Param,
    /// The adapted layers, in the order of `a`'s rows, and the B of each, `[rank, n_out]`.
    pub b: Vec<(Target, Param)>,
}

/// Where one matrix lies in the flat buffer.
#[derive(Clone, Debug, PartialEq)]
pub struct Slot {
    pub layer: usize,
    pub target: Target,
    /// `false` for A, `true` for B.
    pub is_b: bool,
    pub ne: [i64; 2],
    /// In floats.
    pub offset: usize,
}

impl Slot {
    /// The name in an adapter file: `blk.0.attn_q.weight.lora_a`.
    pub fn tensor_name(&self) -> String {
        format!("{}.lora_{}", self.target.tensor_name(self.layer), if self.is_b { "b" } else { "a" })
    }

    /// The floats of this matrix in the flat buffer.
    pub fn range(&self) -> std::ops::Range<usize> {
        self.offset..self.offset + (self.ne[0] * self.ne[1]) as usize
    }
}

/// The buffers that training adds to the parameters; flat, of the parameters' layout.
pub struct Training {
    pub grad: Tensor,
    pub m: Tensor,
    pub v: Tensor,
}

/// An adapter on a device.
pub struct Lora {
    pub config: LoraConfig,
    /// Flat, `[n_params]`, padded with zeros between matrices.
    pub params: Tensor,
    pub training: Option<Training>,
    pub slots: Vec<Slot>,
    pub device_bytes: usize,
    /// By layer and [`Target::GROUPS`].
    groups: Vec<Vec<Option<Group>>>,
}

impl Lora {
    /// Lays an adapter out for `weights` and allocates it, all zero; with gradients and moments if `train`.
    pub fn new(config: &LoraConfig, weights: &Weights, backend: &Backend, train: bool) -> Result<Self> {
        let slots = layout(config, weights)?;
        let n_params =
            slots.iter().map(|s| s.range().end).max().unwrap_or(0).next_multiple_of(FLAT_ALIGN) as i64;
        let n_flat = if train { 4 } else { 1 };
        let ctx = Context::new(n_flat + slots.len() * 2, 0)?;
        let flat = |name: &str| ctx.new_tensor(name, Dtype::F32, &[n_params]);
        let params = flat("lora.params")?;
        let training = match train {
            true => Some(Training { grad: flat("lora.grad")?, m: flat("lora.m")?, v: flat("lora.v")? }),
            false => None,
        };
        let device_bytes = backend.alloc(&ctx, "the adapter")?;
        let all = [
            Some(&params),
            training.as_ref().map(|t| &t.grad),
            training.as_ref().map(|t| &t.m),
            training.as_ref().map(|t| &t.v),
        ];
        for t in all.into_iter().flatten() {
            t.zero()?;
        }

        let param = |slot: &Slot, ne: [i64; 2]| -> Result<Param> {
            let place = |flat: &Tensor, suffix: &str| -> Result<Tensor> {
                let tensor = ctx.new_tensor(&format!("{}{suffix}", slot.tensor_name()), Dtype::F32, &ne)?;
                tensor.place_in(flat, slot.offset * size_of::<f32>())?;
                Ok(tensor)
            };
            let grad = training.as_ref().map(|t| place(&t.grad, ".grad")).transpose()?;
            Ok(Param { value: place(&params, "")?, grad })
        };
        let groups = (0..weights.layers.len())
            .map(|il| {
                let group = |targets: &&[Target]| -> Result<Option<Group>> {
                    let of = |is_b| {
                        let slots = slots.iter();
                        slots.filter(move |s| s.layer == il && s.is_b == is_b && targets.contains(&s.target))
                    };
                    let Some(first) = of(false).next() else { return Ok(None) };
                    let a = param(first, [first.ne[0], of(false).map(|s| s.ne[1]).sum()])?;
                    let b = of(true).map(|s| Ok((s.target, param(s, s.ne)?))).collect::<Result<_>>()?;
                    Ok(Some(Group { a, b }))
                };
                Target::GROUPS.iter().map(group).collect::<Result<Vec<_>>>()
            })
            .collect::<Result<_>>()?;
        Ok(Self { config: config.clone(), params, training, slots, device_bytes, groups })
    }

    /// Fresh parameters: A uniform in `±1/sqrt(n_in)` (PEFT's Kaiming initialisation), B zero.
    pub fn init(&self, seed: u64) -> Result<()> {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let mut params = vec![0f32; self.params.n_elements()];
        for slot in self.slots.iter().filter(|s| !s.is_b) {
            let bound = 1.0 / (slot.ne[0] as f32).sqrt();
            for p in &mut params[slot.range()] {
                *p = rng.random_range(-bound..bound);
            }
        }
        Ok(self.params.upload(&params)?)
    }

    /// Puts a file's matrices onto the device; layers that the file does not adapt keep zeros.
    ///
    /// The layout must be one that [`LoraConfig::of_file`] made for this file.
    pub fn load(&self, file: &AdapterFile) -> Result<()> {
        let mut params = vec![0f32; self.params.n_elements()];
        for slot in &self.slots {
            if let Some(pair) = file.pair(&slot.target.tensor_name(slot.layer)) {
                let matrix = if slot.is_b { &pair.b } else { &pair.a };
                params[slot.range()].copy_from_slice(&matrix.data);
            }
        }
        Ok(self.params.upload(&params)?)
    }

    /// The adapter as a file's content; `base` is the base model's name.
    pub fn to_file(&self, hp: &Hparams, base: Option<String>) -> Result<AdapterFile> {
        let params = self.params.download::<f32>()?;
        let matrix = |slot: &Slot| Matrix { ne: slot.ne, data: params[slot.range()].to_vec() };
        let pairs = self.slots.chunks(2).map(|pair| AdapterPair {
            tensor: pair[0].target.tensor_name(pair[0].layer),
            a: matrix(&pair[0]),
            b: matrix(&pair[1]),
        });
        Ok(AdapterFile {
            path: std::path::PathBuf::new(),
            architecture: hp.architecture.clone(),
            alpha: self.config.alpha,
            heads: Some(Heads { n_head: hp.n_head, n_head_kv: hp.n_head_kv }),
            base,
            pairs: pairs.collect(),
        })
    }

    /// The adapters of a layer's group of [`Target::GROUPS`], if there are any.
    pub fn group(&self, layer: usize, group: usize) -> Option<&Group> {
        self.groups[layer][group].as_ref()
    }

    /// What multiplies `B A x`.
    pub fn scale(&self) -> f32 {
        self.config.alpha / self.config.rank as f32
    }

    /// Number of trained parameters, padding not counted.
    pub fn n_params(&self) -> usize {
        self.slots.iter().map(|s| s.range().len()).sum()
    }
}

/// A and B of each adapted layer, in the order of the block; where they lie is by group: all As, then the Bs.
fn layout(config: &LoraConfig, weights: &Weights) -> Result<Vec<Slot>> {
    let rank = config.rank as i64;
    let mut slots = Vec::new();
    let mut end = 0;
    for (layer, w) in weights.layers.iter().enumerate() {
        for group in Target::GROUPS {
            let shape = |target: Target| -> Result<[i64; 2]> {
                let [n_in, n_out, ..] = w.linear(target).weight.ne();
                match rank >= 1 && rank <= n_in.min(n_out) {
                    true => Ok([n_in, n_out]),
                    false => {
                        Err(Error::Rank { rank: config.rank, tensor: target.tensor_name(layer), n_in, n_out })
                    }
                }
            };
            let first = slots.len();
            for &target in group.iter().filter(|t| config.targets.contains(t)) {
                let [n_in, n_out] = shape(target)?;
                let slot = |is_b, ne| Slot { layer, target, is_b, ne, offset: 0 };
                slots.extend([slot(false, [n_in, rank]), slot(true, [rank, n_out])]);
            }
            for is_b in [false, true] {
                for slot in slots[first..].iter_mut().filter(|s| s.is_b == is_b) {
                    slot.offset = end;
                    end = slot.range().end;
                    if is_b {
                        end = end.next_multiple_of(ALIGN);
                    }
                }
                end = end.next_multiple_of(ALIGN);
            }
        }
    }
    Ok(slots)
}
