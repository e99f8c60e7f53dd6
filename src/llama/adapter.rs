//! LoRA adapters, checked against the model before libllama loads them.
//!
//! The checks repeat libllama's, because its only answer to a wrong file is a null pointer: here the error names the
//! key or the tensor, with what the model has and what the adapter brought.

use std::path::{Path, PathBuf};
use std::ptr::NonNull;
use std::sync::Arc;

use llama_sys as sys;

use super::ffi::guarded;
use super::model::c_path;
use super::{Error, Model, Result};
use crate::ggml::{GgufFile, TensorInfo};

/// An adapter loaded for one model; cloning shares it. `Context::set_adapters` puts it to use.
#[derive(Debug, Clone)]
pub struct LoraAdapter(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    raw: NonNull<sys::llama_adapter_lora>,
    path: PathBuf,
    alpha: f32,
    rank: usize,
    model: Model,
}

// SAFETY: a loaded adapter is only read; the model's list of adapters, which loading and freeing write to, is under the
// model's lock.
unsafe impl Send for Inner {}
// SAFETY: as above.
unsafe impl Sync for Inner {}

impl Drop for Inner {
    fn drop(&mut self) {
        let _lock = self.model.lock_adapters();
        // SAFETY: `raw` came from llama_adapter_lora_init; its model is alive, and contexts that use the adapter hold a
        // clone, so none is left.
        unsafe { sys::llama_adapter_lora_free(self.raw.as_ptr()) };
    }
}

impl LoraAdapter {
    /// Loads an adapter GGUF for this model.
    pub fn load(model: &Model, path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        if model.is_vocab_only() {
            return Err(Error::VocabOnly { path: model.path().to_owned() });
        }
        let file = GgufFile::open(path)?;
        let (alpha, rank) = check(&file, model)?;
        let c_path = c_path(path)?;
        let _lock = model.lock_adapters();
        // SAFETY: the path is NUL-terminated; the model has weights, and the lock makes this its only writer. `check`
        // has made sure of the types of the keys that libllama reads, which it would assert.
        let (raw, reason) = guarded(|err, err_size| unsafe {
            sys::qvac_llama_adapter_lora_init(model.raw(), c_path.as_ptr(), err, err_size)
        });
        let raw = NonNull::new(raw)
            .ok_or_else(|| Error::AdapterLoad { path: path.to_owned(), reason: reason.text() })?;
        Ok(Self(Arc::new(Inner { raw, path: path.to_owned(), alpha, rank, model: model.clone() })))
    }

    /// The file it was loaded from.
    pub fn path(&self) -> &Path {
        &self.0.path
    }

    /// `adapter.lora.alpha`; 0 means that A·B is added unscaled.
    pub fn alpha(&self) -> f32 {
        self.0.alpha
    }

    /// Largest rank among its tensors.
    pub fn rank(&self) -> usize {
        self.0.rank
    }

    pub(super) fn model(&self) -> &Model {
        &self.0.model
    }

    pub(super) fn raw(&self) -> *mut sys::llama_adapter_lora {
        self.0.raw.as_ptr()
    }
}

/// Alpha and largest rank of an adapter that fits the model.
fn check(file: &GgufFile, model: &Model) -> Result<(f32, usize)> {
    for (key, expected) in [("general.type", "adapter"), ("adapter.type", "lora")] {
        let found = file.get_str(key)?;
        if found != Some(expected) {
            let found = found.map_or_else(|| "no such key".into(), |found| format!("`{found}`"));
            return Err(Error::NotAnAdapter { path: file.path().to_owned(), key, expected, found });
        }
    }
    let found = file.require_str("general.architecture")?;
    let expected = model.architecture();
    if found != expected {
        return Err(Error::AdapterArchitecture {
            path: file.path().to_owned(),
            model: model.path().to_owned(),
            expected,
            found: found.to_owned(),
        });
    }
    let alpha = file.get_f32("adapter.lora.alpha")?.unwrap_or(0.0);

    let base = GgufFile::open(model.path())?;
    let mut rank = 0;
    for tensor in file.tensors() {
        if let Some(name) = tensor.name.strip_suffix(".lora_a") {
            let lora_b = format!("{name}.lora_b");
            let b = file.tensor(&lora_b).ok_or_else(|| malformed(file, &lora_b, "is missing"))?;
            rank = rank.max(check_pair(file, &base, name, tensor, b)?);
        } else if let Some(name) = tensor.name.strip_suffix(".lora_b") {
            let lora_a = format!("{name}.lora_a");
            if file.tensor(&lora_a).is_none() {
                return Err(malformed(file, &lora_a, "is missing"));
            }
        } else if !tensor.name.ends_with("_norm.weight") {
            return Err(malformed(file, &tensor.name, "is neither `.lora_a` nor `.lora_b`"));
        }
    }
    if rank == 0 {
        return Err(malformed(file, "*.lora_a", "is missing: there is no pair in the file"));
    }
    Ok((alpha, rank))
}

fn malformed(file: &GgufFile, tensor: &str, problem: &str) -> Error {
    Error::AdapterMalformed {
        path: file.path().to_owned(),
        tensor: tensor.to_owned(),
        problem: problem.to_owned(),
    }
}

/// Holds A `[n_in, rank]` and B `[rank, n_out]` against the weight `[n_in, n_out]`; the embedding's are A
/// `[rank, n_vocab]` and B `[rank, n_embd]`, because its rows are looked up and not multiplied.
fn check_pair(file: &GgufFile, base: &GgufFile, name: &str, a: &TensorInfo, b: &TensorInfo) -> Result<usize> {
    let differs = |tensor: &TensorInfo, expected: String, found: String| Error::AdapterTensor {
        path: file.path().to_owned(),
        model: base.path().to_owned(),
        tensor: tensor.name.clone(),
        expected,
        found,
    };
    let Some(weight) = base.tensor(name) else {
        return Err(differs(a, format!("a weight `{name}`"), "none of that name".into()));
    };
    let is_embedding = name.ends_with("token_embd.weight");
    let (rank, a_ne, b_ne) = if is_embedding {
        (a.ne[0], [a.ne[0], weight.ne[1]], [a.ne[0], weight.ne[0]])
    } else {
        (a.ne[1], [weight.ne[0], a.ne[1]], [a.ne[1], weight.ne[1]])
    };
    for (tensor, expected) in [(a, a_ne), (b, b_ne)] {
        if tensor.ne[..2] != expected || tensor.ne[2..] != [1, 1] {
            return Err(differs(tensor, format!("the shape {expected:?}"), tensor.shape()));
        }
    }
    Ok(rank as usize)
}
