//! The bits that exact arithmetic gives, committed: a change of arithmetic is seen here, and has to be decided. One that is
//! meant raises `EXACT_VERSION`, and `QVAC_EXACT_HASHES=write cargo test --test bit_exact committed` writes the file anew.

use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};

use qvac_ft::ggml::{self, EXACT_VERSION};
use qvac_ft::llama::{self, Batch, ContextParams, ModelParams, Sampler, SamplerParams, Token};
use qvac_ft::train::Recompute;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::common::device::cpu;
use super::common::N_VOCAB;
use super::each_model;
use super::training::train;

#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Hashes {
    version: u32,
    /// By model: of its file, and of what was computed with it.
    models: BTreeMap<String, BTreeMap<String, String>>,
}

fn file() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/exact/hashes.json")
}

fn hash(bytes: &[u8]) -> String {
    Sha256::digest(bytes)[..16].iter().map(|b| format!("{b:02x}")).collect()
}

fn words(words: &[u32]) -> String {
    hash(&words.iter().flat_map(|w| w.to_le_bytes()).collect::<Vec<_>>())
}

/// Logits of a prompt in one batch, and the tokens that follow it.
fn answers(model: &Path) -> (String, String) {
    ggml::set_exact(true);
    let model = llama::Model::load(model, &ModelParams::on(Some("cpu"))).unwrap();
    let params = ContextParams {
        n_ctx: NonZeroU32::new(128),
        n_threads: NonZeroU32::new(2),
        ..ContextParams::default()
    };
    let mut context = llama::Context::new(&model, &params).unwrap();
    let prompt: Vec<Token> = (0..45).map(|i| (i * 131 + 17) % N_VOCAB as Token).collect();
    let mut batch = Batch::new();
    batch.extend(&prompt, 0, 0, true);
    context.decode(&mut batch).unwrap();
    let mut logits = Vec::new();
    for row in 0..prompt.len() {
        logits.extend(context.logits(row).unwrap().iter().map(|l| l.to_bits()));
    }
    let mut sampler = Sampler::new(&SamplerParams::greedy()).unwrap();
    let mut tokens = Vec::new();
    let mut row = prompt.len() - 1;
    while tokens.len() < 48 {
        let token = sampler.sample(context.logits(row).unwrap(), row).unwrap();
        tokens.push(token as u32);
        row = context.feed(&[token]).unwrap();
    }
    (words(&logits), words(&tokens))
}

#[test]
fn committed_hashes() {
    let mut models = BTreeMap::new();
    each_model(|name, model| {
        let (logits, tokens) = answers(model);
        let left = train(model, &cpu(), 2, 2, Recompute::On);
        let hashes = [
            ("model", hash(&std::fs::read(model).unwrap())),
            ("logits", logits),
            ("tokens", tokens),
            ("losses", words(&left.losses)),
            ("state", words(&left.state)),
            ("adapter", hash(&left.file)),
        ];
        models.insert(name.into(), hashes.map(|(what, hash)| (what.into(), hash)).into());
    });
    let found = Hashes { version: EXACT_VERSION, models };
    if std::env::var_os("QVAC_EXACT_HASHES").is_some_and(|v| v == "write") {
        std::fs::write(file(), serde_json::to_string_pretty(&found).unwrap() + "\n").unwrap();
        return;
    }
    let expected: Hashes = serde_json::from_slice(&std::fs::read(file()).unwrap()).unwrap();
    assert_eq!(expected.version, EXACT_VERSION, "the file is of another version: write it anew");
    for (name, expected) in &expected.models {
        let found = &found.models[name];
        assert_eq!(
            found["model"], expected["model"],
            "{name}: the model itself is another, its arithmetic may be right"
        );
        assert_eq!(
            found, expected,
            "{name}: exact arithmetic gives other bits than it did; if that is meant, raise `EXACT_VERSION`"
        );
    }
    assert_eq!(found, expected);
}
