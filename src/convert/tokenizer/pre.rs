//! Which of libllama's pre-tokenizers splits text as a `tokenizer.json` says.
//!
//! Upstream tells them apart by the hash of a tokenized text. Here the rule itself is looked at: it stands in the file,
//! and it is what libllama has a name for. To add one: a line in [`SPLITS`].

use serde_json::{Map, Value};

/// Regular expressions of a `Split`, and the name of what libllama does with them.
const SPLITS: [(&str, &str); 4] = [
    (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        "llama-bpe",
    ),
    (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        "qwen2",
    ),
    (r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+", "gpt-2"),
    (r"[0-9][0-9][0-9]", "falcon"),
];

/// A token that Falcon's vocabularies alone have.
const FALCON: &str = ">>TITLE<<";
/// Falcon3's vocabulary has 131072 tokens, Falcon-E's 32768.
const FALCON3_VOCABULARY: usize = 100_000;

/// The name, or what the file says in its place.
pub(super) fn name(fast: &Value, vocab: &Map<String, Value>) -> Result<String, String> {
    // What libllama has for this family is not the file's own rule; upstream takes the same by its hash.
    if vocab.contains_key(FALCON) {
        let falcon3 = vocab.len() > FALCON3_VOCABULARY;
        return Ok(if falcon3 { "falcon3" } else { "falcon-h1" }.into());
    }
    let mut steps = Vec::new();
    flatten(&fast["pre_tokenizer"], &mut steps);
    let kind = |step: &&Value| step["type"].as_str().unwrap_or_default().to_owned();
    let pattern = |step: &&Value| step["pattern"]["Regex"].as_str().map(str::to_owned);
    let splits: Vec<String> = steps.iter().filter_map(pattern).collect();
    let found = splits.iter().find_map(|s| SPLITS.iter().find(|(regex, _)| regex == s));
    if let Some((_, name)) = found {
        return Ok((*name).into());
    }
    let kinds: Vec<String> = steps.iter().map(kind).collect();
    let digits = steps.iter().any(|s| s["type"] == "Digits" && s["individual_digits"] == true);
    let gpt2 = steps.iter().any(|s| s["type"] == "ByteLevel" && s["use_regex"] != false);
    match kinds.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["ByteLevel"] if gpt2 => Ok("gpt-2".into()),
        ["Digits", "ByteLevel"] if gpt2 && digits => Ok("smollm".into()),
        [] => Err("it has no pre-tokenizer".into()),
        _ if splits.is_empty() => Err(kinds.join(", ")),
        _ => Err(splits.join(", ")),
    }
}

fn flatten<'a>(step: &'a Value, out: &mut Vec<&'a Value>) {
    match step["pretokenizers"].as_array() {
        Some(inner) => inner.iter().for_each(|step| flatten(step, out)),
        None if step.is_object() => out.push(step),
        None => {}
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn rules_have_names() {
        let bytes = json!({"type": "ByteLevel", "use_regex": true});
        let split = json!({"type": "Split", "pattern": {"Regex": SPLITS[0].0}});
        let no_regex = json!({"type": "ByteLevel", "use_regex": false});
        let digits = json!({"type": "Digits", "individual_digits": true});
        let sequence = |steps: Value| json!({"type": "Sequence", "pretokenizers": steps});
        let cases = [
            (bytes.clone(), "gpt-2"),
            (sequence(json!([split, no_regex])), "llama-bpe"),
            (sequence(json!([digits, bytes])), "smollm"),
        ];
        for (pre_tokenizer, expected) in cases {
            let fast = json!({ "pre_tokenizer": pre_tokenizer });
            assert_eq!(name(&fast, &Map::new()).unwrap(), expected);
        }
        let unknown = json!({"pre_tokenizer": {"type": "Split", "pattern": {"Regex": "[a-z]+"}}});
        assert_eq!(name(&unknown, &Map::new()).unwrap_err(), "[a-z]+");
        let falcon: Map<String, Value> = [(FALCON.to_owned(), json!(0))].into_iter().collect();
        assert_eq!(name(&unknown, &falcon).unwrap(), "falcon-h1");
    }
}
