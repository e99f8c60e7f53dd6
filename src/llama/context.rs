//! A model at work: its KV cache, one decode after the other, and the logits of the last.

use std::collections::BTreeMap;
use std::ffi::c_void;
use std::num::NonZeroU32;
use std::panic::catch_unwind;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, Ordering};

use llama_sys as sys;

use super::ffi::guarded;
use super::log::Mark;
use super::watch::Slot;
use super::{default_threads, Batch, Error, LoraAdapter, Model, Pos, Result, Token, Vocab};
use crate::ggml;

/// Whether attention is computed by the fused kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FlashAttention {
    Off,
    On,
    /// Wherever the device has the kernel.
    Auto,
}

/// Element type of the KV cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KvType {
    F32,
    F16,
}

/// Shape of a context.
#[derive(Debug, Clone)]
pub struct ContextParams {
    /// Tokens that a sequence can hold; `None` is what the model was trained with, but at most [`Self::N_CTX_CAP`].
    pub n_ctx: Option<NonZeroU32>,
    /// Most tokens in one [`Batch`].
    pub n_batch: u32,
    /// Most tokens computed at once; a batch is cut into such pieces.
    pub n_ubatch: u32,
    /// Independent sequences; each has `n_ctx` for itself.
    pub n_seq_max: u32,
    /// `None` is one thread for each physical core.
    pub n_threads: Option<NonZeroU32>,
    pub flash_attention: FlashAttention,
    pub kv_type: KvType,
    /// Looked at while the CPU computes; once it is true, a decode stops with [`Error::Interrupted`].
    pub interrupt: Option<&'static AtomicBool>,
    /// For [`Context::decode_watched`].
    pub watched: bool,
}

impl ContextParams {
    /// Models trained with 128k tokens would otherwise ask for gigabytes of cache that a chat seldom fills.
    pub const N_CTX_CAP: u32 = 4096;
}

impl Default for ContextParams {
    fn default() -> Self {
        Self {
            n_ctx: None,
            n_batch: 512,
            n_ubatch: 512,
            n_seq_max: 1,
            n_threads: None,
            flash_attention: FlashAttention::Auto,
            kv_type: KvType::F16,
            interrupt: None,
            watched: false,
        }
    }
}

/// A KV cache and the compute buffers around it. Owns a handle of its model and of the adapters in use.
#[derive(Debug)]
pub struct Context {
    raw: NonNull<sys::llama_context>,
    model: Model,
    vocab: Vocab,
    adapters: Vec<LoraAdapter>,
    /// Tokens of each sequence that are in the cache.
    n_past: BTreeMap<i32, Pos>,
    /// For each row of the last batch, whether it has logits.
    rows: Vec<bool>,
    /// When its decoding began.
    decoded: Mark,
    n_seq_max: u32,
    interrupt: Option<&'static AtomicBool>,
    watch: Option<Box<Slot>>,
    feed: Batch,
}

// SAFETY: a llama_context is bound to no thread; it only must not be used by two at once, and `Context` is not `Sync`.
unsafe impl Send for Context {}

impl Drop for Context {
    fn drop(&mut self) {
        // SAFETY: `raw` came from llama_init_from_model and is freed once, before the model and adapters it refers to.
        unsafe { sys::llama_free(self.raw.as_ptr()) };
    }
}

impl Context {
    /// Makes a context for a model whose weights are loaded. In exact arithmetic its attention is the fused one over a
    /// cache in f16, whatever the parameters say: that is what has exact kernels.
    pub fn new(model: &Model, params: &ContextParams) -> Result<Self> {
        if model.is_vocab_only() {
            return Err(Error::VocabOnly { path: model.path().to_owned() });
        }
        let vocab = model.vocab()?;
        for (name, value) in
            [("n_batch", params.n_batch), ("n_ubatch", params.n_ubatch), ("n_seq_max", params.n_seq_max)]
        {
            if value == 0 {
                return Err(Error::ContextParam { name, expected: "at least 1", found: value });
            }
        }
        // SAFETY: no preconditions.
        let n_seq_cap = unsafe { sys::llama_max_parallel_sequences() };
        if params.n_seq_max as usize > n_seq_cap {
            return Err(Error::ContextParam {
                name: "n_seq_max",
                expected: "at most libllama's limit of sequences",
                found: params.n_seq_max,
            });
        }
        let n_ctx_seq = match params.n_ctx {
            Some(n_ctx) => n_ctx.get(),
            None => model.n_ctx_train().clamp(1, ContextParams::N_CTX_CAP),
        };
        let n_ctx = n_ctx_seq.checked_mul(params.n_seq_max).ok_or(Error::ContextParam {
            name: "n_ctx",
            expected: "below 2^32 over all sequences",
            found: n_ctx_seq,
        })?;
        let (n_threads, n_threads_batch) =
            params.n_threads.map_or_else(|| default_threads(model.device()), |n| (n.get(), n.get()));
        let most = |n: u32| i32::try_from(n).unwrap_or(i32::MAX).min(sys::GGML_MAX_N_THREADS as i32);
        let (flash_attention, kv_type) = match ggml::is_exact() {
            true => (FlashAttention::On, KvType::F16),
            false => (params.flash_attention, params.kv_type),
        };
        let kv_type = match kv_type {
            KvType::F32 => sys::GGML_TYPE_F32,
            KvType::F16 => sys::GGML_TYPE_F16,
        };

        // SAFETY: no preconditions.
        let mut raw_params = unsafe { sys::llama_context_default_params() };
        raw_params.n_ctx = n_ctx;
        raw_params.n_batch = params.n_batch;
        raw_params.n_ubatch = params.n_ubatch.min(params.n_batch);
        raw_params.n_seq_max = params.n_seq_max;
        raw_params.n_threads = most(n_threads);
        raw_params.n_threads_batch = most(n_threads_batch);
        raw_params.type_k = kv_type;
        raw_params.type_v = kv_type;
        raw_params.flash_attn_type = match flash_attention {
            FlashAttention::Off => sys::LLAMA_FLASH_ATTN_TYPE_DISABLED,
            FlashAttention::On => sys::LLAMA_FLASH_ATTN_TYPE_ENABLED,
            FlashAttention::Auto => sys::LLAMA_FLASH_ATTN_TYPE_AUTO,
        };
        raw_params.offload_kqv = !model.is_on_cpu();
        raw_params.op_offload = !model.is_on_cpu();
        if let Some(flag) = params.interrupt {
            raw_params.abort_callback = Some(is_set);
            raw_params.abort_callback_data = std::ptr::from_ref(flag).cast_mut().cast::<c_void>();
        }
        let watch = params.watched.then(Box::<Slot>::default);
        if let Some(slot) = &watch {
            (raw_params.cb_eval, raw_params.cb_eval_user_data) = slot.callback();
        }

        let _lock = model.lock_adapters();
        // SAFETY: the model is alive and has weights; it may be written to, which the lock makes exclusive. The flag
        // behind `abort_callback_data` is static, the slot behind `cb_eval_user_data` lives as long as the context.
        let (raw, reason) = guarded(|err, err_size| unsafe {
            sys::qvac_llama_init_from_model(model.raw(), raw_params, err, err_size)
        });
        let raw = NonNull::new(raw).ok_or_else(|| Error::ContextCreate {
            model: model.path().to_owned(),
            n_ctx,
            reason: reason.text(),
        })?;
        Ok(Self {
            raw,
            model: model.clone(),
            vocab,
            adapters: Vec::new(),
            n_past: BTreeMap::new(),
            rows: Vec::new(),
            decoded: Mark::now(),
            n_seq_max: params.n_seq_max,
            interrupt: params.interrupt,
            watch,
            feed: Batch::new(),
        })
    }

    /// The model that it computes.
    pub fn model(&self) -> &Model {
        &self.model
    }

    /// The tokenizer of its model.
    pub fn vocab(&self) -> &Vocab {
        &self.vocab
    }

    /// Tokens that one sequence can hold; libllama may have rounded up what was asked for.
    pub fn n_ctx(&self) -> u32 {
        // SAFETY: the context is alive.
        unsafe { sys::llama_n_ctx_seq(self.raw.as_ptr()) }
    }

    /// Most tokens in one batch.
    pub fn n_batch(&self) -> u32 {
        // SAFETY: the context is alive.
        unsafe { sys::llama_n_batch(self.raw.as_ptr()) }
    }

    /// Tokens of a sequence that are in the cache.
    pub fn n_past(&self, seq: i32) -> usize {
        self.n_past.get(&seq).map_or(0, |&n| n as usize)
    }

    /// Whether the flag of [`ContextParams::interrupt`] is set.
    pub fn is_interrupted(&self) -> bool {
        self.interrupt.is_some_and(|flag| flag.load(Ordering::Relaxed))
    }

    /// Decodes a batch; afterwards [`Context::logits`] has the rows that it asked for. When it fails, or is
    /// interrupted, the cache is as before.
    pub fn decode(&mut self, batch: &mut Batch) -> Result<()> {
        let n_past = self.check(batch)?;
        self.rows.clear();
        self.decoded = Mark::now();
        let raw = self.raw.as_ptr();
        // Stays as it is if the call throws.
        let mut code = i32::MIN;
        let (status, reason) = guarded(|err, err_size| {
            // SAFETY: `check` has made sure of what libllama asserts: no more tokens than n_batch, all of them in the
            // vocabulary, sequences and positions in order. The batch's pointers live through the call.
            batch.with_raw(|batch| unsafe { sys::qvac_llama_decode(raw, batch, &mut code, err, err_size) })
        });
        if status == sys::QVAC_STATUS_OK {
            self.rows.extend(batch.logits.iter().map(|&wanted| wanted != 0));
            self.n_past.extend(n_past);
            return Ok(());
        }
        // Pieces of the batch may have reached the cache.
        for &seq in n_past.keys() {
            self.truncate(seq, self.n_past(seq))?;
        }
        Err(match code {
            2 => Error::Interrupted,
            1 => Error::ContextFull {
                n_ctx: self.n_ctx(),
                n_past: self.n_past(batch.seq[0]),
                n_tokens: batch.len(),
            },
            _ => Error::Decode { n_tokens: batch.len(), code, reason: reason.text() },
        })
    }

    /// The same, computing one operation after another, each shown to `watch` before and after. For contexts made with
    /// [`ContextParams::watched`]; others show nothing.
    pub fn decode_watched(&mut self, batch: &mut Batch, watch: &dyn ggml::Watch) -> Result<()> {
        let Some(slot) = self.watch.take() else { return self.decode(batch) };
        let decoded = slot.during(watch, || self.decode(batch));
        self.watch = Some(slot);
        decoded
    }

    /// Decodes the next tokens of sequence 0, in as many batches as that takes; only the last token has logits, and
    /// the row to read them from is the result.
    pub fn feed(&mut self, tokens: &[Token]) -> Result<usize> {
        let n_past = self.n_past(0);
        let n_ctx = self.n_ctx();
        if tokens.is_empty() {
            return Err(Error::EmptyBatch);
        }
        if n_past + tokens.len() > n_ctx as usize {
            return Err(Error::ContextFull { n_ctx, n_past, n_tokens: tokens.len() });
        }
        let mut batch = std::mem::take(&mut self.feed);
        let mut fed = 0;
        let mut result = Ok(0);
        for piece in tokens.chunks(self.n_batch() as usize) {
            batch.clear();
            batch.extend(piece, (n_past + fed) as Pos, 0, false);
            fed += piece.len();
            if fed == tokens.len() {
                batch.logits[piece.len() - 1] = 1;
            }
            result = self.decode(&mut batch).map(|()| piece.len() - 1);
            if result.is_err() {
                self.truncate(0, n_past)?;
                break;
            }
        }
        self.feed = batch;
        result
    }

    /// Logits of a row of the last batch, `[n_vocab]`. Waits for the device, and has the error that it ended with.
    pub fn logits(&self, row: usize) -> Result<&[f32]> {
        if !self.rows.get(row).copied().unwrap_or(false) {
            return Err(Error::NoLogits { row });
        }
        // SAFETY: what the call may change inside of the context is guarded by `Context` not being `Sync`.
        let logits = unsafe { sys::llama_get_logits_ith(self.raw.as_ptr(), row as i32) };
        if logits.is_null() {
            return Err(Error::NoLogits { row });
        }
        if let Some(reason) = self.decoded.error_here() {
            return Err(Error::Device { reason });
        }
        // SAFETY: the row has logits, so the pointer is to `n_vocab` floats that stay until the next decode, which
        // needs `&mut self`.
        Ok(unsafe { std::slice::from_raw_parts(logits, self.vocab.n_tokens()) })
    }

    /// Forgets every sequence.
    pub fn clear(&mut self) {
        // `false` leaves the buffers as they are: only their bookkeeping says what is in them, and clearing a lost
        // device's would throw.
        // SAFETY: the context is alive; the memory belongs to it, and null is allowed.
        unsafe { sys::llama_memory_clear(sys::llama_get_memory(self.raw.as_ptr()), false) };
        self.n_past.clear();
        self.rows.clear();
    }

    /// Forgets a sequence's tokens from place `n_past` on.
    pub fn truncate(&mut self, seq: i32, n_past: usize) -> Result<()> {
        self.check_sequence(seq)?;
        let n_past = Pos::try_from(n_past).unwrap_or(Pos::MAX);
        // SAFETY: the context is alive; the sequence exists.
        let done = unsafe {
            let memory = sys::llama_get_memory(self.raw.as_ptr());
            memory.is_null() || sys::llama_memory_seq_rm(memory, seq, n_past, -1)
        };
        // A recurrent cache can only be dropped whole.
        if !done {
            // SAFETY: as above; removing a whole sequence never fails.
            unsafe { sys::llama_memory_seq_rm(sys::llama_get_memory(self.raw.as_ptr()), seq, -1, -1) };
            self.n_past.remove(&seq);
            return Err(Error::Truncate { seq, n_past });
        }
        if let Some(n) = self.n_past.get_mut(&seq) {
            *n = (*n).min(n_past);
        }
        Ok(())
    }

    /// Uses these adapters, each with its scale, instead of those before; an empty list is the bare model.
    /// The cache was computed with the adapters before, so it is cleared.
    pub fn set_adapters(&mut self, adapters: &[(LoraAdapter, f32)]) -> Result<()> {
        if let Some((foreign, _)) =
            adapters.iter().find(|(adapter, _)| !adapter.model().is_same_as(&self.model))
        {
            return Err(Error::AdapterOfAnotherLoad { path: foreign.path().to_owned() });
        }
        let mut raw: Vec<_> = adapters.iter().map(|(adapter, _)| adapter.raw()).collect();
        let mut scales: Vec<f32> = adapters.iter().map(|&(_, scale)| scale).collect();
        // SAFETY: the adapters belong to the context's model; both lists have `raw.len()` items and are copied.
        unsafe {
            sys::llama_set_adapters_lora(self.raw.as_ptr(), raw.as_mut_ptr(), raw.len(), scales.as_mut_ptr())
        };
        // Kept, because the context now points at them; those before are no longer pointed at.
        self.adapters = adapters.iter().map(|(adapter, _)| adapter.clone()).collect();
        self.clear();
        Ok(())
    }

    fn check_sequence(&self, seq: i32) -> Result<()> {
        if seq < 0 || seq as u32 >= self.n_seq_max {
            return Err(Error::NoSuchSequence { seq, n_seq_max: self.n_seq_max });
        }
        Ok(())
    }

    /// What libllama asserts of a batch, or fails on with a code only; the result is where each sequence ends after it.
    fn check(&self, batch: &Batch) -> Result<BTreeMap<i32, Pos>> {
        if batch.is_empty() {
            return Err(Error::EmptyBatch);
        }
        let n_batch = self.n_batch() as usize;
        if batch.len() > n_batch {
            return Err(Error::BatchTooLarge { n_tokens: batch.len(), n_batch });
        }
        let n_ctx = self.n_ctx();
        let mut next = BTreeMap::new();
        for ((&token, &pos), &seq) in batch.token.iter().zip(&batch.pos).zip(&batch.seq) {
            self.vocab.check(token)?;
            self.check_sequence(seq)?;
            let expected = next.entry(seq).or_insert(self.n_past(seq) as Pos);
            if pos != *expected {
                return Err(Error::Position { seq, expected: *expected, found: pos });
            }
            *expected += 1;
        }
        for (&seq, &end) in &next {
            if end as u32 > n_ctx {
                let n_past = self.n_past(seq);
                return Err(Error::ContextFull { n_ctx, n_past, n_tokens: end as usize - n_past });
            }
        }
        Ok(next)
    }
}

extern "C" fn is_set(flag: *mut c_void) -> bool {
    // SAFETY: `Context::new` passes the address of a static `AtomicBool`.
    catch_unwind(|| unsafe { &*flag.cast::<AtomicBool>() }.load(Ordering::Relaxed)).unwrap_or(true)
}
