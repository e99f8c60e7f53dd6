//! A model file opened by libllama: for its vocabulary only, or with its weights on a device.
//!
//! A `Model` is a counted handle: contexts, vocabularies and adapters each hold one, so that the C object outlives them
//! all whatever order they are dropped in. Training does not use these weights (see `ggml` and `model`).

use std::ffi::{c_char, CStr, CString};
use std::path::{Path, PathBuf};
use std::ptr::NonNull;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use llama_sys as sys;

use super::ffi::guarded;
use super::{Backend, Error, Result, Vocab};
use crate::ggml::{self, Device, DeviceKind, GgufFile};

/// How a model is opened.
#[derive(Debug, Clone)]
pub struct ModelParams {
    /// `cpu`, `vulkan0`, `metal0` ...; `None` takes the first GPU, else the CPU.
    pub device: Option<String>,
    /// Layers on the device; `None` is all of them. Always 0 on `cpu`.
    pub n_gpu_layers: Option<u32>,
    /// Reads hyperparameters and tokenizer, no weights; such a model makes no context.
    pub vocab_only: bool,
    /// Maps the file instead of reading it into memory.
    pub use_mmap: bool,
    /// Lets the CPU backend rearrange weights for faster kernels, AMX's among them. Off by default: the plain kernels
    /// are the ones that training runs, so both see the same numbers, and AMX's end the process with SIGILL on virtual
    /// machines that report the unit but do not carry its state (seen on Firecracker).
    pub repack: bool,
}

impl Default for ModelParams {
    fn default() -> Self {
        Self { device: None, n_gpu_layers: None, vocab_only: false, use_mmap: true, repack: false }
    }
}

impl ModelParams {
    /// For the tokenizer alone: a fraction of a second, whatever the size of the model.
    pub fn vocab_only() -> Self {
        Self { vocab_only: true, device: Some("cpu".into()), ..Self::default() }
    }

    /// On the device of this name, with the rest as by default.
    pub fn on(device: Option<&str>) -> Self {
        Self { device: device.map(str::to_owned), ..Self::default() }
    }
}

/// A loaded model; cloning it is cheap and shares the C object.
#[derive(Debug, Clone)]
pub struct Model(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    raw: NonNull<sys::llama_model>,
    path: PathBuf,
    device: String,
    vocab_only: bool,
    on_cpu: bool,
    /// libllama keeps a list of adapters in the model and touches it without a lock of its own.
    adapters: Mutex<()>,
    _backend: Backend,
}

// SAFETY: after loading, libllama reads the model from any thread. The two things it writes are the list of adapters
// and the trained context length, and both are written under the `adapters` lock (`LoraAdapter`, `Context::new`).
unsafe impl Send for Inner {}
// SAFETY: as above.
unsafe impl Sync for Inner {}

impl Drop for Inner {
    fn drop(&mut self) {
        // SAFETY: `raw` came from llama_model_load_from_file and every user of it holds a clone of the `Arc`.
        unsafe { sys::llama_model_free(self.raw.as_ptr()) };
    }
}

impl Model {
    /// Opens a GGUF model. The file's whole structure is checked before libllama sees it; what libllama then refuses, the
    /// error says in its words.
    pub fn load(path: impl AsRef<Path>, params: &ModelParams) -> Result<Self> {
        let path = path.as_ref();
        GgufFile::open(path)?;
        let c_path = c_path(path)?;
        let backend = Backend::init();
        let device = match &params.device {
            Some(name) => Device::by_name(name)?,
            None => Device::best()?,
        };
        let on_cpu = device.kind() == DeviceKind::Cpu;
        // Ends with a null; empty for the CPU, so that nothing is offloaded whatever else the machine has.
        let mut devices = [device.raw(), std::ptr::null_mut()];
        let devices = if on_cpu { &mut devices[1..] } else { &mut devices[..] };

        // SAFETY: no preconditions.
        let mut raw_params = unsafe { sys::llama_model_default_params() };
        raw_params.devices = devices.as_mut_ptr();
        raw_params.n_gpu_layers = match (on_cpu, params.n_gpu_layers) {
            (true, _) => 0,
            (false, None) => -1,
            (false, Some(n)) => i32::try_from(n).unwrap_or(i32::MAX),
        };
        raw_params.load_mode =
            if params.use_mmap { sys::LLAMA_LOAD_MODE_MMAP } else { sys::LLAMA_LOAD_MODE_NONE };
        raw_params.vocab_only = params.vocab_only;
        // Repacked weights have kernels of their own, none of them exact.
        raw_params.use_extra_bufts = params.repack && !ggml::is_exact();
        // Without a callback libllama prints dots through its log.
        raw_params.progress_callback = Some(go_on);

        // SAFETY: the path is NUL-terminated; `devices` is NULL-terminated and outlives the call, which copies it.
        let (raw, reason) = guarded(|err, err_size| unsafe {
            sys::qvac_llama_model_load_from_file(c_path.as_ptr(), raw_params, err, err_size)
        });
        let raw = NonNull::new(raw)
            .ok_or_else(|| Error::ModelLoad { path: path.to_owned(), reason: reason.text() })?;
        Ok(Self(Arc::new(Inner {
            raw,
            path: path.to_owned(),
            device: device.name().to_owned(),
            vocab_only: params.vocab_only,
            on_cpu,
            adapters: Mutex::new(()),
            _backend: backend,
        })))
    }

    /// The file it was loaded from.
    pub fn path(&self) -> &Path {
        &self.0.path
    }

    /// Name of the device its layers are on, as `devices` lists it.
    pub fn device(&self) -> &str {
        &self.0.device
    }

    /// Its tokenizer; an error if the file has none.
    pub fn vocab(&self) -> Result<Vocab> {
        Vocab::new(self.clone())
    }

    /// Context length it was trained with, in tokens.
    pub fn n_ctx_train(&self) -> u32 {
        let _lock = self.lock_adapters();
        // SAFETY: the model is alive; its only writer holds the lock taken above.
        non_negative(unsafe { sys::llama_model_n_ctx_train(self.raw()) })
    }

    /// Width of the residual stream.
    pub fn n_embd(&self) -> u32 {
        // SAFETY: the model is alive.
        non_negative(unsafe { sys::llama_model_n_embd(self.raw()) })
    }

    /// Number of blocks.
    pub fn n_layer(&self) -> u32 {
        // SAFETY: the model is alive.
        non_negative(unsafe { sys::llama_model_n_layer(self.raw()) })
    }

    /// Bytes of all its tensors; 0 when opened for the vocabulary only.
    pub fn size(&self) -> u64 {
        // SAFETY: the model is alive.
        unsafe { sys::llama_model_size(self.raw()) }
    }

    /// Number of its parameters; 0 when opened for the vocabulary only.
    pub fn n_params(&self) -> u64 {
        // SAFETY: the model is alive.
        unsafe { sys::llama_model_n_params(self.raw()) }
    }

    /// A metadata value as text; `None` if there is no such key, or it holds an array.
    pub fn meta(&self, key: &str) -> Option<String> {
        let key = CString::new(key).ok()?;
        let mut buffer = vec![0u8; 256];
        loop {
            // SAFETY: C writes at most `buffer.len()` bytes, the last a NUL, and gives the length that the value has.
            let len = unsafe {
                sys::llama_model_meta_val_str(
                    self.raw(),
                    key.as_ptr(),
                    buffer.as_mut_ptr().cast::<c_char>(),
                    buffer.len(),
                )
            };
            let len = usize::try_from(len).ok()?;
            if len < buffer.len() {
                buffer.truncate(len);
                return Some(String::from_utf8_lossy(&buffer).into_owned());
            }
            buffer.resize(len + 1, 0);
        }
    }

    /// `general.architecture`.
    pub fn architecture(&self) -> String {
        self.meta("general.architecture").unwrap_or_default()
    }

    /// The chat template in the file, Jinja source; `name` picks one of several (`tool_use`).
    pub fn chat_template(&self, name: Option<&str>) -> Option<String> {
        let name = name.map(CString::new).transpose().ok()?;
        // SAFETY: the model is alive; null asks for the default template. The string belongs to the model.
        let text = unsafe {
            let text = sys::llama_model_chat_template(
                self.raw(),
                name.as_ref().map_or(std::ptr::null(), |n| n.as_ptr()),
            );
            if text.is_null() {
                return None;
            }
            CStr::from_ptr(text)
        };
        Some(text.to_string_lossy().into_owned())
    }

    pub(super) fn is_on_cpu(&self) -> bool {
        self.0.on_cpu
    }

    pub(super) fn is_vocab_only(&self) -> bool {
        self.0.vocab_only
    }

    pub(super) fn is_same_as(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    pub(super) fn raw(&self) -> *mut sys::llama_model {
        self.0.raw.as_ptr()
    }

    /// To be held over every call that writes to the C model.
    pub(super) fn lock_adapters(&self) -> MutexGuard<'_, ()> {
        // The lock guards no data of ours that a panic could have left half-written.
        self.0.adapters.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

extern "C" fn go_on(_: f32, _: *mut std::ffi::c_void) -> bool {
    true
}

fn non_negative(n: i32) -> u32 {
    u32::try_from(n).unwrap_or(0)
}

#[cfg(unix)]
pub(super) fn c_path(path: &Path) -> Result<CString> {
    use std::os::unix::ffi::OsStrExt as _;
    CString::new(path.as_os_str().as_bytes()).map_err(|_| Error::NulInPath { path: path.to_owned() })
}

/// ggml takes UTF-8 here and widens it itself.
#[cfg(not(unix))]
pub(super) fn c_path(path: &Path) -> Result<CString> {
    CString::new(path.to_string_lossy().into_owned()).map_err(|_| Error::NulInPath { path: path.to_owned() })
}
