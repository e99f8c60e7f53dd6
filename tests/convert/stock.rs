//! A llama.cpp that this project did not build loads what was converted: padded widths, scales of their own, vocabularies.

#![cfg(all(target_os = "linux", target_arch = "x86_64"))]

use qvac_ft::ggml::Dtype;
use serde_json::json;

use crate::checkpoint::{fixtures, json as read_json, Checkpoint, CASES};
use crate::common::real::stock;

const MAX_TOKENS: usize = 4;

#[test]
fn a_stock_llama_cpp_runs_what_was_converted() {
    let mut n = 0;
    for case in CASES {
        let c = Checkpoint::new(case);
        let (model, done) = c.convert_as(Dtype::TQ1_0, Dtype::Q6_K);
        // Microsoft's network is in no upstream release.
        if done.architecture == "bitnet-b1.58" {
            continue;
        }
        let tokenizer = c.manifest["tokenizer"].as_str().unwrap();
        let expected = read_json(&fixtures().join(tokenizer).join("expected.json"));
        let request = json!({
            "model": model,
            "adapter": null,
            "prompts": [expected[0]["text"]],
            "max_tokens": MAX_TOKENS,
            "threads": 1,
        });
        eprintln!("{case}");
        let report = stock(&request);
        let answer = &report["answers"][0];
        assert_eq!(answer["prompt_tokens"], expected[0]["plain"], "{case}");
        assert!(!answer["tokens"].as_array().unwrap().is_empty(), "{case}: {answer}");
        n += 1;
    }
    assert_eq!(n, 6);
}
