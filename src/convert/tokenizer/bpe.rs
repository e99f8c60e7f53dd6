//! `tokenizer.json` with a BPE model: byte-level as GPT-2's, or SentencePiece's with bytes to fall back on.

use std::collections::HashMap;

use serde_json::Value;

use super::super::error::{Error, Result};
use super::{filler, pre, token_type, Files, Tokenizer, ADDED_SCORE};

const FILE: &str = "tokenizer.json";

pub(super) fn read(files: &Files<'_>, fast: &Value, pre: Option<&str>, n_vocab: usize) -> Result<Tokenizer> {
    let model = &fast["model"];
    let kind = model["type"].as_str().unwrap_or("BPE");
    if kind != "BPE" {
        let what = format!("a tokenizer of type `{kind}`");
        return Err(Error::Unsupported { path: files.dir.join(FILE), what });
    }
    let vocab = model["vocab"].as_object().ok_or_else(|| files.wrong(FILE, "it has no vocabulary"))?;
    let mut tokens: Vec<String> = Vec::new();
    let mut types = Vec::new();
    for (text, id) in vocab {
        let id = id.as_u64().filter(|id| *id < 1 << 28);
        let id = id.ok_or_else(|| files.wrong(FILE, format!("`{text}` has no id")))? as usize;
        if id >= n_vocab {
            return Err(Error::VocabularySize { path: files.dir.join(FILE), tokens: id + 1, rows: n_vocab });
        }
        if id >= tokens.len() {
            tokens.extend((tokens.len()..=id).map(filler));
            types.resize(id + 1, token_type::UNUSED);
        }
        tokens[id].clone_from(text);
        types[id] = token_type::NORMAL;
    }
    let merges = merges(files, &model["merges"])?;
    if model["byte_fallback"].as_bool().unwrap_or(false) {
        return Ok(with_scores(tokens, types, &merges));
    }
    let pre = match pre {
        Some(name) => name.to_owned(),
        None => {
            pre::name(fast, vocab).map_err(|how| Error::PreTokenizer { path: files.dir.join(FILE), how })?
        }
    };
    let merges = merges.iter().map(|(a, b)| format!("{} {}", joined(a), joined(b))).collect();
    Ok(Tokenizer { model: "gpt2", pre, tokens, types, merges, ..Tokenizer::default() })
}

/// Merges are written as `a b`, or as a pair.
fn merges(files: &Files<'_>, merges: &Value) -> Result<Vec<(String, String)>> {
    let items = merges.as_array().ok_or_else(|| files.wrong(FILE, "it has no merges"))?;
    let pair = |item: &Value| match item {
        Value::String(text) => text.split_once(' ').map(|(a, b)| (a.to_owned(), b.to_owned())),
        pair => Some((pair[0].as_str()?.to_owned(), pair[1].as_str()?.to_owned())),
    };
    let wrong = |item: &Value| files.wrong(FILE, format!("{item} is no merge"));
    items.iter().map(|item| pair(item).ok_or_else(|| wrong(item))).collect()
}

/// A space inside a part would end it; GPT-2's character for the byte means the same.
fn joined(part: &str) -> String {
    part.replace(' ', "\u{120}")
}

/// SentencePiece's algorithm joins what has the highest score: with the ranks of the merges as scores it does what the
/// merges do.
fn with_scores(tokens: Vec<String>, mut types: Vec<i32>, merges: &[(String, String)]) -> Tokenizer {
    let mut ranks: HashMap<String, usize> = HashMap::new();
    for (rank, (a, b)) in merges.iter().enumerate() {
        ranks.entry(format!("{a}{b}")).or_insert(rank);
    }
    let scores = tokens.iter().map(|t| ranks.get(t).map_or(ADDED_SCORE, |rank| -(*rank as f32))).collect();
    for (text, kind) in tokens.iter().zip(&mut types) {
        if is_byte(text) {
            *kind = token_type::BYTE;
        } else if text == "<unk>" {
            *kind = token_type::UNKNOWN;
        }
    }
    Tokenizer { model: "llama", pre: "default".into(), tokens, types, scores, ..Tokenizer::default() }
}

/// `<0x0A>`
fn is_byte(text: &str) -> bool {
    let digits = text.strip_prefix("<0x").and_then(|t| t.strip_suffix('>'));
    digits.is_some_and(|d| d.len() == 2 && u8::from_str_radix(d, 16).is_ok())
}
