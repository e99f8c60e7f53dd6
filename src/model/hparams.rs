//! The sizes and constants of a network, from a GGUF file's metadata.
//!
//! Follows upstream's `llama_model_base::load_hparams` and the rope parameters that `llama_context` makes of them. Keys
//! are `{architecture}.…`; which architectures can be built is `arch`'s matter, not this file's. Mixture-of-experts
//! models and sizes that vary from layer to layer are refused by name.

use std::path::Path;

use super::error::{Error, Result};
use crate::ggml::gguf::Value;
use crate::ggml::GgufFile;

/// The sizes of a network of the Llama kind.
#[derive(Debug, Clone, PartialEq)]
pub struct Hparams {
    /// `general.architecture`
    pub architecture: String,
    pub n_vocab: usize,
    /// Longest context the model was trained on.
    pub n_ctx_train: usize,
    pub n_embd: usize,
    pub n_layer: usize,
    pub n_head: usize,
    /// Heads of keys and values; fewer than `n_head` with grouped queries.
    pub n_head_kv: usize,
    /// Values of one head; the same for queries, keys and values.
    pub n_embd_head: usize,
    pub n_ff: usize,
    pub rms_eps: f32,
    pub rope: RopeParams,
}

/// What `ggml_rope_ext` takes, as libllama would compute it for this model.
#[derive(Debug, Clone, PartialEq)]
pub struct RopeParams {
    /// Values of a head that are rotated.
    pub n_dims: usize,
    /// Context length before YaRN extension.
    pub n_ctx_orig: usize,
    pub freq_base: f32,
    /// 1 / factor of linear scaling or YaRN.
    pub freq_scale: f32,
    /// 1 with YaRN, else 0.
    pub ext_factor: f32,
    pub attn_factor: f32,
    pub beta_fast: f32,
    pub beta_slow: f32,
}

/// Upstream's LLAMA_MAX_LAYERS.
const MAX_LAYERS: usize = 512;
/// No size of a real model comes near it, and products of two of them stay far below 2^63.
const MAX_SIZE: u64 = 1 << 28;

struct Keys<'a> {
    file: &'a GgufFile,
    architecture: &'a str,
}

impl Keys<'_> {
    fn key(&self, name: &str) -> String {
        format!("{}.{name}", self.architecture)
    }

    fn wrong(&self, name: &str, expected: impl Into<String>, found: impl ToString) -> Error {
        Error::Hparam {
            path: self.file.path().into(),
            key: self.key(name),
            expected: expected.into(),
            found: found.to_string(),
        }
    }

    /// A size; some converters write one per layer, which is one size if they are all the same.
    fn size_or(&self, name: &str) -> Result<Option<usize>> {
        let key = self.key(name);
        let found = match self.file.get(&key) {
            Some(Value::Array(per_layer)) => {
                let first = per_layer.get_u64(0);
                if (1..per_layer.len()).any(|i| per_layer.get_u64(i) != first) {
                    return Err(self.wrong(name, "one size for all layers", "different from layer to layer"));
                }
                first.ok_or_else(|| self.wrong(name, "a whole number", "an array of something else"))?
            }
            _ => match self.file.get_u64(&key)? {
                Some(found) => found,
                None => return Ok(None),
            },
        };
        if found == 0 || found > MAX_SIZE {
            return Err(self.wrong(name, format!("1 to {MAX_SIZE}"), found));
        }
        Ok(Some(found as usize))
    }

    fn size(&self, name: &str) -> Result<usize> {
        Ok(self.size_or(name)?.ok_or_else(|| self.file.missing_key(&self.key(name)))?)
    }

    fn f32_or(&self, name: &str) -> Result<Option<f32>> {
        match self.file.get_f32(&self.key(name))? {
            Some(found) if !found.is_finite() => Err(self.wrong(name, "a finite number", found)),
            found => Ok(found),
        }
    }
}

impl Hparams {
    /// Reads them from an open file.
    pub fn from_gguf(file: &GgufFile) -> Result<Self> {
        let architecture = file.require_str("general.architecture")?;
        let keys = Keys { file, architecture };

        let n_layer = keys.size("block_count")?;
        if n_layer > MAX_LAYERS {
            return Err(keys.wrong("block_count", format!("at most {MAX_LAYERS}"), n_layer));
        }
        if let Some(n_expert) = file.get_u64(&keys.key("expert_count"))?.filter(|&n| n > 0) {
            return Err(keys.wrong("expert_count", "no experts", n_expert));
        }
        let n_embd = keys.size("embedding_length")?;
        let n_head = keys.size("attention.head_count")?;
        let n_embd_head = match keys.size_or("attention.key_length")? {
            Some(n) => n,
            None if n_embd % n_head == 0 => n_embd / n_head,
            None => return Err(keys.wrong("attention.head_count", format!("a divisor of {n_embd}"), n_head)),
        };
        let n_head_kv = keys.size_or("attention.head_count_kv")?.unwrap_or(n_head);
        if n_head % n_head_kv != 0 {
            return Err(keys.wrong("attention.head_count_kv", format!("a divisor of {n_head}"), n_head_kv));
        }
        let n_value = keys.size_or("attention.value_length")?.unwrap_or(n_embd_head);
        if n_value != n_embd_head {
            return Err(keys.wrong(
                "attention.value_length",
                format!("{n_embd_head}, as keys have"),
                n_value,
            ));
        }
        let rms_eps = keys
            .f32_or("attention.layer_norm_rms_epsilon")?
            .ok_or_else(|| file.missing_key(&keys.key("attention.layer_norm_rms_epsilon")))?;
        let n_ctx_train = keys.size("context_length")?;
        Ok(Self {
            architecture: architecture.into(),
            n_vocab: n_vocab(&keys)?,
            n_ctx_train,
            n_embd,
            n_layer,
            n_head,
            n_head_kv,
            n_embd_head,
            n_ff: keys.size("feed_forward_length")?,
            rms_eps,
            rope: RopeParams::from_keys(&keys, n_embd_head, n_ctx_train)?,
        })
    }

    /// Opens a file for its sizes alone.
    pub fn from_path(path: impl AsRef<Path>) -> Result<Self> {
        Self::from_gguf(&GgufFile::open(path)?)
    }

    /// Rows of the query matrix.
    pub fn n_embd_q(&self) -> usize {
        self.n_embd_head * self.n_head
    }

    /// Rows of the key and value matrices.
    pub fn n_embd_kv(&self) -> usize {
        self.n_embd_head * self.n_head_kv
    }
}

/// The vocabulary's size: what libllama takes is the token list's length.
fn n_vocab(keys: &Keys<'_>) -> Result<usize> {
    if let Some(tokens) = keys.file.get_strs("tokenizer.ggml.tokens")? {
        return Ok(tokens.len());
    }
    match keys.size_or("vocab_size")? {
        Some(n) => Ok(n),
        None => Err(keys.file.missing_key("tokenizer.ggml.tokens").into()),
    }
}

impl RopeParams {
    fn from_keys(keys: &Keys<'_>, n_embd_head: usize, n_ctx_train: usize) -> Result<Self> {
        let n_dims = keys.size_or("rope.dimension_count")?.unwrap_or(n_embd_head);
        if n_dims > n_embd_head || n_dims % 2 != 0 {
            let expected = format!("an even number of at most {n_embd_head}");
            return Err(keys.wrong("rope.dimension_count", expected, n_dims));
        }
        let scaling = keys.file.get_str(&keys.key("rope.scaling.type"))?.unwrap_or("linear");
        let factor = match keys.f32_or("rope.scaling.factor")? {
            Some(factor) => factor,
            None => keys.f32_or("rope.scale_linear")?.unwrap_or(0.0),
        };
        if factor < 0.0 {
            return Err(keys.wrong("rope.scaling.factor", "a positive number", factor));
        }
        // Upstream takes 0 for "not set".
        let factor = if factor == 0.0 || scaling == "none" { 1.0 } else { factor };
        let mut attn_factor = keys.f32_or("rope.scaling.attn_factor")?.unwrap_or(1.0);
        let ext_factor = match scaling {
            "none" | "linear" => 0.0,
            "yarn" => {
                // `ggml_rope_ext` multiplies by the magnitude scale again; `llama_context` takes it out first.
                let mscale = 0.1 * libm::logf(factor) + 1.0;
                attn_factor *= mscale.max(1.0) / mscale;
                1.0
            }
            other => return Err(keys.wrong("rope.scaling.type", "`none`, `linear` or `yarn`", other)),
        };
        Ok(Self {
            n_dims,
            n_ctx_orig: keys.size_or("rope.scaling.original_context_length")?.unwrap_or(n_ctx_train),
            freq_base: keys.f32_or("rope.freq_base")?.unwrap_or(10000.0),
            freq_scale: 1.0 / factor,
            ext_factor,
            attn_factor,
            beta_fast: 32.0,
            beta_slow: 1.0,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ggml::gguf::{Array, GgufWriter};

    fn base() -> GgufWriter {
        let mut w = GgufWriter::new();
        w.set("general.architecture", "llama")
            .set("llama.context_length", 2048u32)
            .set("llama.embedding_length", 576u32)
            .set("llama.block_count", 30u32)
            .set("llama.feed_forward_length", 1536u32)
            .set("llama.attention.head_count", 9u32)
            .set("llama.attention.head_count_kv", 3u32)
            .set("llama.attention.layer_norm_rms_epsilon", 1e-5f32)
            .set("tokenizer.ggml.tokens", vec!["a".to_string(), "b".into(), "c".into()]);
        w
    }

    fn read(w: GgufWriter) -> Result<Hparams> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("m.gguf");
        w.create(&path).unwrap().finish().unwrap();
        Hparams::from_path(&path)
    }

    #[test]
    fn sizes_and_defaults() {
        let hp = read(base()).unwrap();
        assert_eq!((hp.n_vocab, hp.n_embd, hp.n_layer, hp.n_ff, hp.n_ctx_train), (3, 576, 30, 1536, 2048));
        assert_eq!(
            (hp.n_head, hp.n_head_kv, hp.n_embd_head, hp.n_embd_q(), hp.n_embd_kv()),
            (9, 3, 64, 576, 192)
        );
        assert_eq!((hp.rope.n_dims, hp.rope.freq_base, hp.rope.freq_scale), (64, 10000.0, 1.0));
        assert_eq!((hp.rope.ext_factor, hp.rope.attn_factor, hp.rope.n_ctx_orig), (0.0, 1.0, 2048));
    }

    #[test]
    fn every_required_key_is_named_when_it_is_missing() {
        for missing in [
            "general.architecture",
            "llama.context_length",
            "llama.embedding_length",
            "llama.block_count",
            "llama.feed_forward_length",
            "llama.attention.head_count",
            "llama.attention.layer_norm_rms_epsilon",
            "tokenizer.ggml.tokens",
        ] {
            let mut w = base();
            w.remove(missing);
            let e = read(w).unwrap_err().to_string();
            assert!(e.contains(&format!("`{missing}`")) && e.contains("m.gguf"), "{missing}: {e}");
        }
    }

    #[test]
    fn scaling_follows_llama_context() {
        let mut w = base();
        w.set("llama.rope.scaling.type", "linear").set("llama.rope.scaling.factor", 4f32);
        assert_eq!(read(w).unwrap().rope.freq_scale, 0.25);

        let mut w = base();
        w.set("llama.rope.scaling.type", "none").set("llama.rope.scaling.factor", 4f32);
        assert_eq!(read(w).unwrap().rope.freq_scale, 1.0);

        let mut w = base();
        w.set("llama.rope.scaling.type", "yarn")
            .set("llama.rope.scaling.factor", 8f32)
            .set("llama.rope.scaling.original_context_length", 512u32)
            .set("llama.rope.scaling.attn_factor", 1.5f32);
        let rope = read(w).unwrap().rope;
        assert_eq!(
            (rope.ext_factor, rope.freq_scale, rope.n_ctx_orig, rope.attn_factor),
            (1.0, 0.125, 512, 1.5)
        );
    }

    #[test]
    fn per_layer_sizes_must_agree() {
        let mut w = base();
        w.set("llama.feed_forward_length", Value::Array(Array::U32(vec![1536; 30])));
        assert_eq!(read(w).unwrap().n_ff, 1536);
        let mut w = base();
        w.set("llama.feed_forward_length", Value::Array(Array::U32(vec![1536, 1024])));
        assert!(read(w).unwrap_err().to_string().contains("different from layer to layer"));
    }

    #[test]
    fn what_cannot_be_is_refused_by_key() {
        let cases: [(&str, Value); 8] = [
            ("llama.embedding_length", 0u32.into()),
            ("llama.block_count", u32::MAX.into()),
            ("llama.attention.head_count", 7u32.into()),
            ("llama.attention.head_count_kv", 2u32.into()),
            ("llama.expert_count", 8u32.into()),
            ("llama.rope.dimension_count", 63u32.into()),
            ("llama.rope.scaling.type", "longrope".into()),
            ("llama.attention.layer_norm_rms_epsilon", "tiny".into()),
        ];
        for (key, value) in cases {
            let mut w = base();
            w.set(key, value);
            let e = read(w).unwrap_err().to_string();
            assert!(e.contains(&format!("`{key}`")), "{key}: {e}");
        }
    }
}
