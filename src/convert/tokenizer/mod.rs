//! The vocabulary: what `tokenizer.ggml.*` holds, from `tokenizer.model` (SentencePiece) or `tokenizer.json` (BPE).
//!
//! Follows upstream's converter (`conversion/base.py`, `gguf-py`'s `SpecialVocab`): SentencePiece where there is such a
//! file, else byte-level BPE; ids that no token has are filled up; token types as libllama takes them.

mod bpe;
mod pre;
mod sentencepiece;
mod special;

use std::path::Path;

use serde_json::Value;

use super::checkpoint::read_json_if_there;
use super::config::ModelConfig;
use super::error::{Error, Result};
use crate::ggml::GgufWriter;

/// `llama_token_type`; SentencePiece's own numbers are the same.
mod token_type {
    pub const NORMAL: i32 = 1;
    pub const UNKNOWN: i32 = 2;
    pub const CONTROL: i32 = 3;
    pub const USER_DEFINED: i32 = 4;
    pub const UNUSED: i32 = 5;
    pub const BYTE: i32 = 6;
}

/// The score of what SentencePiece did not score itself; upstream's.
const ADDED_SCORE: f32 = -1000.0;

/// A vocabulary as libllama takes it.
#[derive(Debug, Default)]
pub struct Tokenizer {
    /// `llama` or `gpt2`.
    model: &'static str,
    pre: String,
    tokens: Vec<String>,
    types: Vec<i32>,
    /// For `llama`.
    scores: Vec<f32>,
    /// For `gpt2`.
    merges: Vec<String>,
    /// Keys without `tokenizer.ggml.`.
    ids: Vec<(&'static str, u32)>,
    flags: Vec<(&'static str, bool)>,
    chat_template: Option<String>,
}

/// The files beside the weights that say how text becomes tokens.
struct Files<'a> {
    dir: &'a Path,
    /// `tokenizer.json`
    fast: Option<Value>,
    /// `tokenizer_config.json`
    config: Value,
}

impl Files<'_> {
    fn wrong(&self, name: &str, what: impl Into<String>) -> Error {
        Error::Tokenizer { path: self.dir.join(name), what: what.into() }
    }
}

/// A token that was added to a vocabulary later.
struct Added {
    id: usize,
    text: String,
    special: bool,
}

impl Tokenizer {
    /// Reads the vocabulary of a folder. `pre` names the way text is split, where that is not found out.
    pub(super) fn read(dir: &Path, config: &ModelConfig, pre: Option<&str>) -> Result<Self> {
        let files = Files {
            dir,
            fast: read_json_if_there(&dir.join("tokenizer.json"))?,
            config: read_json_if_there(&dir.join("tokenizer_config.json"))?.unwrap_or(Value::Null),
        };
        let mut tokenizer = if dir.join("tokenizer.model").is_file() {
            sentencepiece::read(&files)?
        } else if let Some(fast) = &files.fast {
            bpe::read(&files, fast, pre, config.n_vocab)?
        } else {
            return Err(Error::NoFile { dir: dir.into(), file: "tokenizer.json" });
        };
        tokenizer.add(files.added()?);
        tokenizer.fill_up(dir, config.n_vocab)?;
        tokenizer.ids = special::ids(&files, config, &tokenizer.tokens);
        let (add_bos, add_eos) = special::added_around(&files, tokenizer.model);
        tokenizer.flags.push(("add_bos_token", add_bos));
        tokenizer.flags.push(("add_eos_token", add_eos));
        tokenizer.chat_template = special::chat_template(&files)?;
        Ok(tokenizer)
    }

    /// Tokens that were added later take their places, and are typed by what they are for.
    fn add(&mut self, added: Vec<Added>) {
        for Added { id, text, special } in added {
            if id >= self.tokens.len() {
                let from = self.tokens.len();
                self.tokens.extend((from..=id).map(filler));
                self.types.resize(id + 1, token_type::UNUSED);
            }
            let control = special || looks_special(&text);
            let known = self.tokens[id] == text && self.types[id] != token_type::NORMAL;
            if !known {
                self.types[id] = if control { token_type::CONTROL } else { token_type::USER_DEFINED };
            }
            // libllama wants the spaces of such tokens as they are.
            self.tokens[id] = if control { text } else { text.replace('\u{2581}', " ") };
        }
        if self.model == "llama" {
            self.scores.resize(self.tokens.len(), ADDED_SCORE);
        }
    }

    fn fill_up(&mut self, dir: &Path, n_vocab: usize) -> Result<()> {
        if self.tokens.len() > n_vocab {
            return Err(Error::VocabularySize { path: dir.into(), tokens: self.tokens.len(), rows: n_vocab });
        }
        self.tokens.extend((self.tokens.len()..n_vocab).map(filler));
        self.types.resize(n_vocab, token_type::UNUSED);
        if self.model == "llama" {
            self.scores.resize(n_vocab, ADDED_SCORE);
        }
        Ok(())
    }

    /// Name of the pre-tokenizer, as libllama knows it.
    pub fn pre(&self) -> &str {
        &self.pre
    }

    /// `llama` (SentencePiece) or `gpt2` (byte-level BPE).
    pub fn model(&self) -> &'static str {
        self.model
    }

    pub(super) fn write(self, w: &mut GgufWriter) {
        let mut set = |key: &str, value: crate::ggml::gguf::Value| {
            w.set(&format!("tokenizer.ggml.{key}"), value);
        };
        set("model", self.model.into());
        set("pre", self.pre.into());
        set("tokens", self.tokens.into());
        set("token_type", self.types.into());
        match self.model {
            "llama" => set("scores", self.scores.into()),
            _ => set("merges", self.merges.into()),
        }
        for (key, id) in self.ids {
            set(key, id.into());
        }
        for (key, flag) in self.flags {
            set(key, flag.into());
        }
        if let Some(template) = self.chat_template {
            w.set("tokenizer.chat_template", template);
        }
    }
}

/// The text of an id that no token has.
fn filler(id: usize) -> String {
    format!("[PAD{id}]")
}

/// Some added tokens are not marked as special although nothing else makes sense; upstream's list.
fn looks_special(text: &str) -> bool {
    matches!(text, "<pad>" | "<mask>" | "[@BOS@]")
        || (text.starts_with("<|") && text.ends_with("|>"))
        || (text.starts_with("<unused") && text.ends_with('>'))
}

impl Files<'_> {
    /// Added tokens from wherever they stand, by id.
    fn added(&self) -> Result<Vec<Added>> {
        let mut added = Vec::new();
        if let Some(map) =
            read_json_if_there(&self.dir.join("added_tokens.json"))?.as_ref().and_then(Value::as_object)
        {
            for (text, id) in map {
                let id = id.as_u64().ok_or_else(|| self.wrong("added_tokens.json", "an id is no number"))?;
                added.push(Added { id: id as usize, text: text.clone(), special: false });
            }
        }
        if let Some(map) = self.config["added_tokens_decoder"].as_object() {
            for (id, token) in map {
                let id = id.parse().ok();
                added.extend(self.added_token(id, token, "tokenizer_config.json")?);
            }
        }
        for token in self.fast.iter().filter_map(|f| f["added_tokens"].as_array()).flatten() {
            let id = token["id"].as_u64().map(|id| id as usize);
            added.extend(self.added_token(id, token, "tokenizer.json")?);
        }
        added.sort_by_key(|a| a.id);
        Ok(added)
    }

    fn added_token(&self, id: Option<usize>, token: &Value, file: &str) -> Result<Option<Added>> {
        let (Some(id), Some(text)) = (id.filter(|id| *id < 1 << 28), token["content"].as_str()) else {
            return Err(self.wrong(file, "an added token has no id or no text"));
        };
        Ok(Some(Added { id, text: text.into(), special: token["special"].as_bool().unwrap_or(false) }))
    }
}
