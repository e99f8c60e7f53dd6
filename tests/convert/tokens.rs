//! Texts through the converted vocabularies, in libllama, against transformers' own tokenizers.

use qvac_ft::ggml::{Dtype, GgufFile};
use qvac_ft::llama::{Model, ModelParams};
use serde_json::Value;

use crate::checkpoint::{fixtures, json, Checkpoint};

fn check(c: &Checkpoint, folder: &str) -> GgufFile {
    let (path, _) = c.convert_as(Dtype::TQ2_0, Dtype::F16);
    let params = ModelParams { vocab_only: true, ..ModelParams::on(Some("cpu")) };
    let model = Model::load(&path, &params).unwrap();
    let vocab = model.vocab().unwrap();
    let expected = json(&fixtures().join(folder).join("expected.json"));
    let texts = expected.as_array().unwrap();
    assert_eq!(texts.len(), 4);
    for text in texts {
        let ids = |name: &str| -> Vec<i32> {
            text[name].as_array().unwrap().iter().map(|id| id.as_i64().unwrap() as i32).collect()
        };
        let raw = text["text"].as_str().unwrap();
        assert_eq!(vocab.tokenize(raw, false, false).unwrap(), ids("plain"), "{folder}: {raw:?}");
        assert_eq!(vocab.tokenize(raw, true, false).unwrap(), ids("special"), "{folder}: {raw:?}");
    }
    GgufFile::open(path).unwrap()
}

fn token(file: &GgufFile, key: &str) -> String {
    let id = file.require_u64(&format!("tokenizer.ggml.{key}")).unwrap();
    file.get_strs("tokenizer.ggml.tokens").unwrap().unwrap()[id as usize].clone()
}

#[test]
fn llama3_bpe() {
    let file = check(&Checkpoint::new("llama-masters"), "tokenizer-llama3");
    assert_eq!(file.require_str("tokenizer.ggml.pre").unwrap(), "llama-bpe");
    assert_eq!(token(&file, "bos_token_id"), "<|begin_of_text|>");
    assert_eq!(token(&file, "eos_token_id"), "<|end_of_text|>");
    assert!(file.require_str("tokenizer.chat_template").unwrap().contains("<|eot_id|>"));
    let tokens = file.get_strs("tokenizer.ggml.tokens").unwrap().unwrap();
    assert!(tokens.iter().any(|t| t == "<tool call>"), "an added token has plain spaces");
    assert_eq!(tokens[511], "[PAD511]", "the embedding has more rows than the vocabulary tokens");
}

#[test]
fn gpt2_bpe() {
    let file = check(&Checkpoint::new("trilm"), "tokenizer-gpt2");
    assert_eq!(file.require_str("tokenizer.ggml.pre").unwrap(), "gpt-2");
    assert_eq!(file.get_bool("tokenizer.ggml.add_bos_token").unwrap(), Some(false));
}

#[test]
fn sentencepiece() {
    let file = check(&Checkpoint::new("onebit"), "tokenizer-spm");
    assert_eq!(file.require_str("tokenizer.ggml.model").unwrap(), "llama");
    assert_eq!(token(&file, "unknown_token_id"), "<unk>");
    assert_eq!(file.get_bool("tokenizer.ggml.add_bos_token").unwrap(), Some(true));
}

/// The same vocabulary from `tokenizer.json`, where SentencePiece's own file is missing.
#[test]
fn sentencepiece_without_its_file() {
    let c = Checkpoint::new("onebit");
    std::fs::remove_file(c.path().join("tokenizer.model")).unwrap();
    let alone = fixtures().join("tokenizer-spm-json");
    for name in ["tokenizer.json", "tokenizer_config.json"] {
        std::fs::copy(alone.join(name), c.path().join(name)).unwrap();
    }
    check(&c, "tokenizer-spm-json");
}

/// Where there are several templates the plain one is taken, and a file of its own goes before all.
#[test]
fn chat_templates_come_from_where_they_stand() {
    let c = Checkpoint::new("bitnet-silu");
    let template = |c: &Checkpoint| {
        let (path, _) = c.convert_as(Dtype::TQ2_0, Dtype::F16);
        GgufFile::open(path).unwrap().require_str("tokenizer.chat_template").unwrap().to_owned()
    };
    assert!(template(&c).starts_with("{% for m in messages %}"));
    std::fs::remove_file(c.path().join("chat_template.jinja")).unwrap();
    let path = c.path().join("tokenizer_config.json");
    let mut config = json(&path);
    config["chat_template"] = serde_json::json!([
        {"name": "tool_use", "template": "tools"},
        {"name": "default", "template": "plain"},
    ]);
    std::fs::write(&path, serde_json::to_vec(&config as &Value).unwrap()).unwrap();
    assert_eq!(template(&c), "plain");
}
