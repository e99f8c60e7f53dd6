//! The frozen weights of a model, on a device, by the role they play.
//!
//! Every tensor is checked against the shape that the metadata promises before anything is allocated. Tensors keep
//! the type that the file stores; nothing is converted.

use crate::ggml::{Backend, Context, Dtype, GgufFile, Tensor};

use super::error::{Error, Result};
use super::hparams::Hparams;
use super::spec::{Architecture, Target};

/// A linear layer `y = W x * scale + bias`.
pub struct Linear {
    /// `[n_in, n_out]`
    pub weight: Tensor,
    /// `[1]`: the per-tensor scale that some BitNet files keep apart from the weight.
    pub scale: Option<Tensor>,
    /// `[n_out]`
    pub bias: Option<Tensor>,
}

/// One transformer block.
pub struct Layer {
    /// `[n_embd]`
    pub attn_norm: Tensor,
    /// `[n_embd_head * n_head]`
    pub attn_sub_norm: Option<Tensor>,
    /// `[n_embd]`
    pub ffn_norm: Tensor,
    /// `[n_ff]`
    pub ffn_sub_norm: Option<Tensor>,
    linear: Vec<Linear>,
}

impl Layer {
    /// The linear layer in that role.
    pub fn linear(&self, target: Target) -> &Linear {
        &self.linear[target as usize]
    }
}

/// The whole network.
pub struct Weights {
    /// `[n_embd, n_vocab]`
    pub tok_embd: Tensor,
    /// `[n_embd]`
    pub output_norm: Tensor,
    /// `[n_embd, n_vocab]`; the embedding itself where the two are tied.
    pub output: Tensor,
    /// `[n_rot / 2]`: per-frequency factors (Llama 3).
    pub rope_freqs: Option<Tensor>,
    pub layers: Vec<Layer>,
    /// Bytes allocated on the device.
    pub device_bytes: usize,
}

/// Types a weight matrix may have: what both devices can multiply forward and backward.
pub const WEIGHT_TYPES: &[Dtype] = &[
    Dtype::F32,
    Dtype::F16,
    Dtype::BF16,
    Dtype::Q8_0,
    Dtype::Q4_0,
    Dtype::Q4_1,
    Dtype::Q5_0,
    Dtype::Q4_K,
    Dtype::Q6_K,
    Dtype::TQ1_0,
    Dtype::TQ2_0,
];

impl Weights {
    /// Loads all weights of `file` onto the device; `progress` is told the bytes copied so far and in all.
    pub fn load(
        file: &GgufFile,
        arch: &Architecture,
        hp: &Hparams,
        backend: &Backend,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<Self> {
        let (weights, found) = Self::laid_out(file, arch, hp, backend, true)?;
        let total = found.iter().map(|(_, t)| t.nbytes() as u64).sum();
        let mut done = 0;
        for (name, tensor) in &found {
            tensor.upload_bytes(0, file.data(name)?)?;
            done += tensor.nbytes() as u64;
            progress(done, total);
        }
        Ok(weights)
    }

    /// Memory for the weights of `file`, and the tensors by their names in it. Not all of `file`'s layers may be wanted
    /// where it need not be `whole`.
    pub(super) fn laid_out(
        file: &GgufFile,
        arch: &Architecture,
        hp: &Hparams,
        backend: &Backend,
        whole: bool,
    ) -> Result<(Self, Vec<(String, Tensor)>)> {
        let ctx = Context::new(file.tensors().len() + 8, 0)?;
        let mut loader = Loader { file, ctx: &ctx, found: Vec::new() };
        let (n_embd, n_ff) = (hp.n_embd as i64, hp.n_ff as i64);
        let n_embd_q = (hp.n_embd_head * hp.n_head) as i64;
        let n_embd_kv = (hp.n_embd_head * hp.n_head_kv) as i64;
        let n_vocab = hp.n_vocab as i64;

        let tok_embd = loader.matrix("token_embd.weight", n_embd, n_vocab)?;
        let output_norm = loader.vector("output_norm.weight", n_embd)?;
        let output = match file.tensor("output.weight") {
            Some(_) => loader.matrix("output.weight", n_embd, n_vocab)?,
            None => tok_embd.clone(),
        };
        let rope_freqs = loader.optional("rope_freqs.weight", hp.rope.n_dims as i64 / 2)?;
        let mut layers = Vec::with_capacity(hp.n_layer);
        for il in 0..hp.n_layer {
            let mut linear = Vec::with_capacity(Target::ALL.len());
            for target in Target::ALL {
                let (n_in, n_out) = match target {
                    Target::AttnQ => (n_embd, n_embd_q),
                    Target::AttnK | Target::AttnV => (n_embd, n_embd_kv),
                    Target::AttnOutput => (n_embd_q, n_embd),
                    Target::FfnGate | Target::FfnUp => (n_embd, n_ff),
                    Target::FfnDown => (n_ff, n_embd),
                };
                let part = |what: &str| format!("blk.{il}.{}.{what}", target.name());
                linear.push(Linear {
                    weight: loader.matrix(&target.tensor_name(il), n_in, n_out)?,
                    scale: loader.optional(&part("scale"), 1)?,
                    bias: loader.optional(&part("bias"), n_out)?,
                });
            }
            let norm = |what: &str| format!("blk.{il}.{what}.weight");
            layers.push(Layer {
                attn_norm: loader.vector(&norm("attn_norm"), n_embd)?,
                attn_sub_norm: loader.vector_if(
                    arch.block.attn_sub_norm,
                    &norm("attn_sub_norm"),
                    n_embd_q,
                )?,
                ffn_norm: loader.vector(&norm("ffn_norm"), n_embd)?,
                ffn_sub_norm: loader.vector_if(arch.block.ffn_sub_norm, &norm("ffn_sub_norm"), n_ff)?,
                linear,
            });
        }
        if whole {
            loader.refuse_unused()?;
        }
        let found = loader.found;
        let device_bytes = backend.alloc(&ctx, "the model's weights")?;
        Ok((Self { tok_embd, output_norm, output, rope_freqs, layers, device_bytes }, found))
    }
}

struct Loader<'a> {
    file: &'a GgufFile,
    ctx: &'a Context,
    found: Vec<(String, Tensor)>,
}

impl Loader<'_> {
    fn matrix(&mut self, name: &str, n_in: i64, n_out: i64) -> Result<Tensor> {
        let tensor = self.tensor(name, &[n_in, n_out])?;
        if !WEIGHT_TYPES.contains(&tensor.dtype()) {
            return Err(Error::WeightType {
                path: self.file.path().into(),
                tensor: name.into(),
                dtype: tensor.dtype().name().into(),
                supported: WEIGHT_TYPES.iter().map(|t| t.name()).collect::<Vec<_>>().join(", "),
            });
        }
        Ok(tensor)
    }

    fn vector(&mut self, name: &str, n: i64) -> Result<Tensor> {
        let tensor = self.tensor(name, &[n])?;
        if tensor.dtype() != Dtype::F32 {
            return Err(Error::WeightType {
                path: self.file.path().into(),
                tensor: name.into(),
                dtype: tensor.dtype().name().into(),
                supported: Dtype::F32.name().into(),
            });
        }
        Ok(tensor)
    }

    fn vector_if(&mut self, needed: bool, name: &str, n: i64) -> Result<Option<Tensor>> {
        needed.then(|| self.vector(name, n)).transpose()
    }

    fn optional(&mut self, name: &str, n: i64) -> Result<Option<Tensor>> {
        self.vector_if(self.file.tensor(name).is_some(), name, n)
    }

    fn tensor(&mut self, name: &str, ne: &[i64]) -> Result<Tensor> {
        let path = || self.file.path().into();
        let info = self
            .file
            .tensor(name)
            .ok_or_else(|| Error::MissingTensor { path: path(), tensor: name.into() })?;
        let fits = (0..info.ne.len()).all(|d| info.ne[d] == ne.get(d).copied().unwrap_or(1));
        if !fits {
            let found = info.ne[..info.n_dims.max(1)].to_vec();
            return Err(Error::TensorShape {
                path: path(),
                tensor: name.into(),
                expected: ne.to_vec(),
                found,
            });
        }
        let tensor = self.ctx.new_tensor(name, info.dtype, ne)?;
        self.found.push((name.into(), tensor.clone()));
        Ok(tensor)
    }

    /// A tensor that no role took would change the result if it were left out: better to refuse the file.
    fn refuse_unused(&self) -> Result<()> {
        for info in self.file.tensors() {
            if !self.found.iter().any(|(name, _)| *name == info.name) {
                return Err(Error::UnknownTensor {
                    path: self.file.path().into(),
                    tensor: info.name.clone(),
                });
            }
        }
        Ok(())
    }
}
