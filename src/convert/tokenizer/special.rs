//! Tokens with a part to play, whether a text gets some at its ends, and the chat template.

use std::fs;

use serde_json::Value;

use super::super::checkpoint::read_json_if_there;
use super::super::config::ModelConfig;
use super::super::error::{Error, Result};
use super::Files;

/// Parts in Hugging Face's files, and the keys that libllama has for them.
const PARTS: [(&str, &str); 6] = [
    ("bos", "bos_token_id"),
    ("eos", "eos_token_id"),
    ("unk", "unknown_token_id"),
    ("sep", "seperator_token_id"),
    ("pad", "padding_token_id"),
    ("mask", "mask_token_id"),
];

/// A token as the files write it: its text, or an object around it.
fn text(value: &Value) -> Option<&str> {
    value.as_str().or_else(|| value["content"].as_str())
}

/// Ids by key: from `tokenizer_config.json` by text, else from `config.json` by number.
pub(super) fn ids(files: &Files<'_>, config: &ModelConfig, tokens: &[String]) -> Vec<(&'static str, u32)> {
    let id_of = |part: &str| -> Option<u32> {
        if let Some(text) = text(&files.config[format!("{part}_token")]) {
            if let Some(id) = tokens.iter().position(|t| t == text) {
                return Some(id as u32);
            }
        }
        let id = config.json[format!("{part}_token_id")].as_u64()?;
        ((id as usize) < tokens.len()).then_some(id as u32)
    };
    PARTS.iter().filter_map(|(part, key)| Some((*key, id_of(part)?))).collect()
}

/// Whether a text gets the tokens of beginning and end.
pub(super) fn added_around(files: &Files<'_>, model: &str) -> (bool, bool) {
    // A template of `tokenizer.json` says what the fast tokenizer does, whatever the flags beside it are.
    let fast = files.fast.as_ref().and_then(|fast| around(&fast["post_processor"]));
    let flag = |name: &str| files.config[name].as_bool();
    // Llama's SentencePiece tokenizer begins texts unless told not to.
    let bos = flag("add_bos_token").or(fast.map(|(bos, _)| bos)).unwrap_or(model == "llama");
    let eos = flag("add_eos_token").or(fast.map(|(_, eos)| eos)).unwrap_or(false);
    (bos, eos)
}

/// Whether a template of a single text has special tokens before and after it.
fn around(processor: &Value) -> Option<(bool, bool)> {
    match processor["type"].as_str()? {
        "Sequence" => processor["processors"].as_array()?.iter().find_map(around),
        "TemplateProcessing" => {
            let single = processor["single"].as_array()?;
            let special = |item: Option<&Value>| item.is_some_and(|item| item["SpecialToken"].is_object());
            Some((special(single.first()), special(single.last())))
        }
        _ => None,
    }
}

/// The chat template: a file of its own, else the one in `tokenizer_config.json`.
pub(super) fn chat_template(files: &Files<'_>) -> Result<Option<String>> {
    let path = files.dir.join("chat_template.jinja");
    if path.is_file() {
        let read = fs::read_to_string(&path);
        return read.map(Some).map_err(|source| Error::Io { path, action: "read the file", source });
    }
    let own = read_json_if_there(&files.dir.join("chat_template.json"))?;
    let value = match &own {
        Some(file) => &file["chat_template"],
        None => &files.config["chat_template"],
    };
    // Several of them: the one that is for plain chats.
    let named = value.as_array().and_then(|all| all.iter().find(|t| t["name"] == "default"));
    Ok(named.map_or(value, |t| &t["template"]).as_str().map(str::to_owned))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn templates_say_what_stands_around_a_text() {
        let one = |items: Value| json!({"type": "TemplateProcessing", "single": items});
        let (bos, text) = (json!({"SpecialToken": {"id": "<s>"}}), json!({"Sequence": {"id": "A"}}));
        assert_eq!(around(&one(json!([bos, text]))), Some((true, false)));
        assert_eq!(around(&one(json!([text, bos]))), Some((false, true)));
        let nested = json!({"type": "Sequence", "processors": [{"type": "ByteLevel"}, one(json!([text]))]});
        assert_eq!(around(&nested), Some((false, false)));
        assert_eq!(around(&json!({"type": "ByteLevel"})), None);
    }
}
