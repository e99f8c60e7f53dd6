//! How the next token is chosen from its logits.

use std::ptr::NonNull;

use llama_sys as sys;

use super::{Backend, Error, Result, Token};

/// How to choose. `temp` 0 is the most probable token, whatever the rest says.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SamplerParams {
    /// Divides the logits; higher is more random.
    pub temp: f32,
    /// Keeps the k most probable tokens; 0 keeps all.
    pub top_k: u32,
    /// Keeps the most probable tokens that together have this probability; 1 keeps all.
    pub top_p: f32,
    /// Drops tokens less probable than this part of the most probable one; 0 drops none.
    pub min_p: f32,
    /// The same seed and logits give the same tokens.
    pub seed: u32,
}

impl SamplerParams {
    /// Always the most probable token.
    pub fn greedy() -> Self {
        Self { temp: 0.0, top_k: 0, top_p: 1.0, min_p: 0.0, seed: 0 }
    }
}

/// A chain of llama.cpp's samplers, and the state of its random numbers.
#[derive(Debug)]
pub struct Sampler {
    raw: NonNull<sys::llama_sampler>,
    candidates: Vec<sys::llama_token_data>,
}

// SAFETY: a sampler is plain memory of its own, bound to no thread; it is only used through `&mut self`.
unsafe impl Send for Sampler {}

impl Drop for Sampler {
    fn drop(&mut self) {
        // SAFETY: `raw` came from llama_sampler_chain_init; freeing the chain frees the samplers in it.
        unsafe { sys::llama_sampler_free(self.raw.as_ptr()) };
    }
}

impl Sampler {
    /// Checks the parameters and builds the chain: top-k, top-p, min-p, temperature, draw, as llama.cpp orders them.
    pub fn new(params: &SamplerParams) -> Result<Self> {
        let in_range = |name, value: f32, ok: bool, expected| {
            if ok && value.is_finite() {
                Ok(())
            } else {
                Err(Error::SamplerParam { name, expected, found: value })
            }
        };
        in_range("temp", params.temp, params.temp >= 0.0, "0 or more")?;
        in_range("top_p", params.top_p, params.top_p > 0.0 && params.top_p <= 1.0, "above 0 and at most 1")?;
        in_range("min_p", params.min_p, (0.0..1.0).contains(&params.min_p), "at least 0 and below 1")?;

        let _backend = Backend::init();
        // SAFETY: no preconditions; the C++ behind it ends the process when it runs out of memory.
        let raw = unsafe { sys::llama_sampler_chain_init(sys::llama_sampler_chain_default_params()) };
        let raw = NonNull::new(raw).ok_or(Error::Exception {
            function: "llama_sampler_chain_init",
            reason: "it gave no sampler".into(),
        })?;
        let sampler = Self { raw, candidates: Vec::new() };
        // SAFETY: the parameters are in the ranges that each sampler is defined for.
        let add = |link| unsafe { sys::llama_sampler_chain_add(sampler.raw.as_ptr(), link) };
        // SAFETY: as above; the chain takes ownership of each.
        unsafe {
            if params.temp == 0.0 {
                add(sys::llama_sampler_init_greedy());
            } else {
                if params.top_k > 0 {
                    add(sys::llama_sampler_init_top_k(i32::try_from(params.top_k).unwrap_or(i32::MAX)));
                }
                if params.top_p < 1.0 {
                    add(sys::llama_sampler_init_top_p(params.top_p, 1));
                }
                if params.min_p > 0.0 {
                    add(sys::llama_sampler_init_min_p(params.min_p, 1));
                }
                add(sys::llama_sampler_init_temp(params.temp));
                add(sys::llama_sampler_init_dist(params.seed));
            }
        }
        Ok(sampler)
    }

    /// Chooses a token from the logits of one row, `[n_vocab]`. `row` is named in the error only.
    pub fn sample(&mut self, logits: &[f32], row: usize) -> Result<Token> {
        if logits.iter().any(|logit| logit.is_nan()) {
            return Err(Error::NanLogits { row });
        }
        self.candidates.clear();
        self.candidates.extend((0..).zip(logits).map(|(id, &logit)| sys::llama_token_data {
            id,
            logit,
            p: 0.0,
        }));
        let mut array = sys::llama_token_data_array {
            data: self.candidates.as_mut_ptr(),
            size: self.candidates.len(),
            selected: -1,
            sorted: false,
        };
        // SAFETY: `array` points at `size` candidates; the samplers shrink and reorder it in place.
        let token = unsafe {
            sys::llama_sampler_apply(self.raw.as_ptr(), &mut array);
            match usize::try_from(array.selected) {
                Ok(selected) if selected < array.size => (*array.data.add(selected)).id,
                _ => return Err(Error::NanLogits { row }),
            }
        };
        // SAFETY: the sampler is alive.
        unsafe { sys::llama_sampler_accept(self.raw.as_ptr(), token) };
        Ok(token)
    }
}
