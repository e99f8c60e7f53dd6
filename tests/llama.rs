//! The wrappers over libllama: what C would assert is an error, and what they compute does not depend on how it is cut
//! into batches.

mod common;

use std::num::NonZeroU32;
use std::path::Path;

use common::numeric::float_context;
use common::{nano_model, truncated, AdapterSpec, N_EMBD, N_VOCAB};
use qvac_ft::llama::{
    generate, Batch, Context, ContextParams, Error, LoraAdapter, Model, ModelParams, Sampler, SamplerParams,
    Stop, Vocab,
};

/// Largest difference of a logit between one batch and one token at a time: the kernels for one column and for many add
/// the same f32 products in another order, and the nano model's logits are of order 1.
const BATCHING_TOLERANCE: f32 = 2e-3;

fn cpu() -> ModelParams {
    ModelParams::on(Some("cpu"))
}

fn params() -> ContextParams {
    ContextParams { n_ctx: NonZeroU32::new(256), ..float_context() }
}

fn context(dir: &Path) -> Context {
    Context::new(&Model::load(nano_model(dir), &cpu()).unwrap(), &params()).unwrap()
}

fn largest_difference(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

#[test]
fn text_survives_the_tokenizer() {
    let dir = tempfile::tempdir().unwrap();
    let model = Model::load(nano_model(dir.path()), &ModelParams::vocab_only()).unwrap();
    let vocab = model.vocab().unwrap();
    assert_eq!(vocab.n_tokens(), N_VOCAB);
    for text in ["Hello, world", "naïve ☃ 𝄞", "  two spaces\n\ttab", &"long ".repeat(300)] {
        let tokens = vocab.tokenize(text, false, false).unwrap();
        assert!(!tokens.is_empty());
        let back = vocab.text(&tokens).unwrap();
        // SentencePiece vocabularies put one space before a text.
        assert_eq!(back.strip_prefix(' ').filter(|_| !text.starts_with(' ')).unwrap_or(&back), text);
    }
    assert!(vocab.tokenize("", false, false).unwrap().is_empty());
    let eos = vocab.eos().unwrap();
    assert!(vocab.is_eog(eos) && vocab.is_control(eos));
    assert!(vocab.text_piece(eos).unwrap().is_empty());
    let name = String::from_utf8(vocab.piece(eos).unwrap()).unwrap();
    assert_eq!(vocab.tokenize(&name, false, true).unwrap(), [eos]);
    assert!(vocab.tokenize(&name, false, false).unwrap().len() > 1, "text is not structure unless asked for");
}

#[test]
fn tokens_outside_of_the_vocabulary_are_errors() {
    let dir = tempfile::tempdir().unwrap();
    let vocab = Model::load(nano_model(dir.path()), &ModelParams::vocab_only()).unwrap().vocab().unwrap();
    for token in [-1, N_VOCAB as i32, i32::MAX, i32::MIN] {
        assert!(matches!(vocab.piece(token), Err(Error::NoSuchToken { n_vocab: N_VOCAB, .. })), "{token}");
        assert!(!vocab.is_eog(token));
        assert!(!vocab.is_control(token));
    }
}

#[test]
fn vocabularies_may_be_used_by_many_threads() {
    fn is_send_and_sync<T: Send + Sync>() {}
    is_send_and_sync::<Vocab>();
    is_send_and_sync::<LoraAdapter>();
    let dir = tempfile::tempdir().unwrap();
    let vocab = Model::load(nano_model(dir.path()), &ModelParams::vocab_only()).unwrap().vocab().unwrap();
    let alone = vocab.tokenize("the same words", true, true).unwrap();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| assert_eq!(vocab.tokenize("the same words", true, true).unwrap(), alone));
        }
    });
}

#[test]
fn files_that_are_no_model_are_errors() {
    let dir = tempfile::tempdir().unwrap();
    let load = |path: &Path| Model::load(path, &cpu()).map(|_| ()).unwrap_err().to_string();
    let missing = dir.path().join("missing.gguf");
    assert!(load(&missing).contains("missing.gguf"));
    let text = dir.path().join("text.gguf");
    std::fs::write(&text, "not a model").unwrap();
    assert!(load(&text).contains("not a GGUF file"), "{}", load(&text));
    assert!(!load(dir.path()).is_empty());
    let model = nano_model(dir.path());
    let cut = truncated(&model, 0.6);
    assert!(load(&cut).contains("truncated"), "{}", load(&cut));
    let adapter = dir.path().join("adapter.gguf");
    AdapterSpec::default().write(&adapter);
    let error = load(&adapter);
    assert!(error.contains("adapter.gguf"), "{error}");
    assert!(!error.contains("it gave no reason"), "libllama's words are cited: {error}");
    let nowhere = Model::load(&model, &ModelParams::on(Some("vulkan99"))).unwrap_err().to_string();
    assert!(nowhere.contains("`vulkan99`") && nowhere.contains("cpu"), "{nowhere}");
}

#[test]
fn a_vocabulary_alone_makes_no_context() {
    let dir = tempfile::tempdir().unwrap();
    let path = nano_model(dir.path());
    let model = Model::load(&path, &ModelParams::vocab_only()).unwrap();
    assert!(matches!(Context::new(&model, &params()), Err(Error::VocabOnly { .. })));
    assert!(matches!(LoraAdapter::load(&model, &path), Err(Error::VocabOnly { .. })));
}

#[test]
fn logits_do_not_depend_on_batches() {
    let dir = tempfile::tempdir().unwrap();
    let mut context = context(dir.path());
    let tokens: Vec<i32> = (0..100).map(|i| 3 + i * 17 % 500).collect();

    let row = context.feed(&tokens).unwrap();
    let chunked = context.logits(row).unwrap().to_vec();
    assert_eq!(context.n_past(0), 100);
    context.clear();
    assert_eq!(context.n_past(0), 0);
    for &token in &tokens {
        context.feed(&[token]).unwrap();
    }
    let one_by_one = context.logits(0).unwrap().to_vec();
    let difference = largest_difference(&chunked, &one_by_one);
    assert!(difference < BATCHING_TOLERANCE, "{difference}");

    // Going back to the middle and on again is the same text.
    context.truncate(0, 60).unwrap();
    let row = context.feed(&tokens[60..]).unwrap();
    assert!(largest_difference(context.logits(row).unwrap(), &chunked) < BATCHING_TOLERANCE);

    // Every row of a batch that was asked for, and no other.
    context.clear();
    let mut batch = Batch::new();
    for (i, &token) in tokens[..8].iter().enumerate() {
        batch.push(token, i as i32, 0, i % 2 == 1);
    }
    context.decode(&mut batch).unwrap();
    assert!(matches!(context.logits(0), Err(Error::NoLogits { row: 0 })));
    assert!(matches!(context.logits(8), Err(Error::NoLogits { row: 8 })));
    let third = context.logits(3).unwrap().to_vec();
    assert_eq!(third.len(), N_VOCAB);
    context.clear();
    let row = context.feed(&tokens[..4]).unwrap();
    assert!(largest_difference(context.logits(row).unwrap(), &third) < BATCHING_TOLERANCE);
}

#[test]
fn what_libllama_asserts_of_a_batch_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let mut context = context(dir.path());
    let mut batch = Batch::new();
    assert!(matches!(context.decode(&mut batch), Err(Error::EmptyBatch)));
    batch.extend(&[5; 65], 0, 0, false);
    assert!(matches!(context.decode(&mut batch), Err(Error::BatchTooLarge { n_tokens: 65, n_batch: 64 })));
    batch.clear();
    batch.push(N_VOCAB as i32, 0, 0, true);
    assert!(matches!(context.decode(&mut batch), Err(Error::NoSuchToken { .. })));
    batch.clear();
    batch.push(5, 3, 0, true);
    assert!(matches!(context.decode(&mut batch), Err(Error::Position { expected: 0, found: 3, .. })));
    batch.clear();
    batch.push(5, 0, 1, true);
    assert!(matches!(context.decode(&mut batch), Err(Error::NoSuchSequence { seq: 1, n_seq_max: 1 })));
    let n_ctx = context.n_ctx() as usize;
    context.feed(&vec![5; n_ctx]).unwrap();
    assert!(matches!(context.feed(&[5]), Err(Error::ContextFull { .. })));
    assert_eq!(context.n_past(0), n_ctx);
    context.clear();
    assert!(context.feed(&[5]).is_ok(), "an error leaves the context usable");
}

#[test]
fn samplers_choose_as_they_were_told() {
    let logits: Vec<f32> = (0..50).map(|i| if i == 31 { 4.0 } else { (i as f32 * 0.7).sin() }).collect();
    let mut greedy = Sampler::new(&SamplerParams::greedy()).unwrap();
    assert_eq!(greedy.sample(&logits, 0).unwrap(), 31);

    let random = SamplerParams { temp: 2.0, top_k: 0, top_p: 1.0, min_p: 0.0, seed: 11 };
    let draw = |params: &SamplerParams| -> Vec<i32> {
        let mut sampler = Sampler::new(params).unwrap();
        (0..20).map(|_| sampler.sample(&logits, 0).unwrap()).collect()
    };
    assert_eq!(draw(&random), draw(&random), "a seed repeats");
    assert_ne!(draw(&random), draw(&SamplerParams { seed: 12, ..random }));
    assert!(draw(&SamplerParams { top_k: 1, ..random }).iter().all(|&token| token == 31));

    for bad in [
        SamplerParams { temp: -1.0, ..random },
        SamplerParams { temp: f32::NAN, ..random },
        SamplerParams { top_p: 0.0, ..random },
        SamplerParams { min_p: 1.0, ..random },
    ] {
        assert!(matches!(Sampler::new(&bad), Err(Error::SamplerParam { .. })), "{bad:?}");
    }
    assert!(matches!(greedy.sample(&[0.0, f32::NAN], 7), Err(Error::NanLogits { row: 7 })));
}

#[test]
fn generation_stops_where_it_should() {
    let dir = tempfile::tempdir().unwrap();
    let mut context = context(dir.path());
    let mut sampler = Sampler::new(&SamplerParams::greedy()).unwrap();
    let mut text = String::new();
    let out = generate(&mut context, &mut sampler, &[5, 6, 7], Some(4), &mut |piece| {
        text.push_str(piece);
        std::ops::ControlFlow::Continue(())
    })
    .unwrap();
    assert_eq!(text, out.text);
    assert_eq!(out.n_prompt, 3);
    assert!(out.tokens.len() <= 4);
    assert!(matches!(out.stop, Stop::MaxTokens | Stop::EndOfGeneration));
    context.clear();
    let again = generate(&mut context, &mut sampler, &[5, 6, 7], Some(4), &mut |_| {
        std::ops::ControlFlow::Continue(())
    })
    .unwrap();
    assert_eq!(again.tokens, out.tokens, "greedy generation repeats");
}

#[test]
fn an_adapter_changes_the_logits_by_its_scale() {
    let dir = tempfile::tempdir().unwrap();
    let mut context = context(dir.path());
    let path = dir.path().join("adapter.gguf");
    AdapterSpec::default().write(&path);
    let adapter = LoraAdapter::load(context.model(), &path).unwrap();
    assert_eq!((adapter.rank(), adapter.alpha()), (4, 8.0));
    let tokens = [5, 60, 200, 7, 90];
    let mut logits = |adapters: &[(LoraAdapter, f32)]| {
        context.set_adapters(adapters).unwrap();
        let row = context.feed(&tokens).unwrap();
        context.logits(row).unwrap().to_vec()
    };
    let bare = logits(&[]);
    let full = logits(&[(adapter.clone(), 1.0)]);
    let half = logits(&[(adapter.clone(), 0.5)]);
    let none = logits(&[(adapter, 0.0)]);
    assert!(largest_difference(&bare, &full) > 10.0 * BATCHING_TOLERANCE);
    assert!(largest_difference(&half, &full) > BATCHING_TOLERANCE);
    assert!(largest_difference(&bare, &none) < BATCHING_TOLERANCE);
    assert!(
        largest_difference(&bare, &logits(&[])) < BATCHING_TOLERANCE,
        "clearing brings the bare model back"
    );
}

#[test]
fn adapters_of_another_model_are_named_with_what_differs() {
    let dir = tempfile::tempdir().unwrap();
    let path = nano_model(dir.path());
    let model = Model::load(&path, &cpu()).unwrap();
    let file = dir.path().join("adapter.gguf");
    let fails = |spec: AdapterSpec| {
        spec.write(&file);
        LoraAdapter::load(&model, &file).unwrap_err().to_string()
    };
    let fit = AdapterSpec::default;
    for (spec, words) in [
        (
            AdapterSpec { architecture: "llama", ..fit() },
            &["adapter of another model", "`llama`", "`bitnet`"][..],
        ),
        (
            AdapterSpec { a: [N_EMBD * 2, 4], ..fit() },
            &["adapter of another model", "attn_q.weight.lora_a", "512, 4"],
        ),
        (
            AdapterSpec { b: Some([4, 64]), ..fit() },
            &["adapter of another model", "attn_q.weight.lora_b", "4, 64"],
        ),
        (AdapterSpec { b: Some([2, N_EMBD]), ..fit() }, &["adapter of another model", "lora_b", "2, 256"]),
        (
            AdapterSpec { tensor: "blk.9.attn_q.weight", ..fit() },
            &["adapter of another model", "blk.9.attn_q.weight"],
        ),
        (AdapterSpec { b: None, ..fit() }, &["attn_q.weight.lora_b", "is missing"]),
        (AdapterSpec { general_type: "model", ..fit() }, &["not a LoRA adapter", "general.type", "`model`"]),
    ] {
        let error = fails(spec);
        for word in words {
            assert!(error.contains(word), "expected `{word}` in: {error}");
        }
    }
    let error = LoraAdapter::load(&model, &path).unwrap_err().to_string();
    assert!(error.contains("not a LoRA adapter"), "a model is none: {error}");
    let other = Model::load(&path, &cpu()).unwrap();
    AdapterSpec::default().write(&file);
    let adapter = LoraAdapter::load(&other, &file).unwrap();
    let mut context = Context::new(&model, &params()).unwrap();
    assert!(matches!(context.set_adapters(&[(adapter, 1.0)]), Err(Error::AdapterOfAnotherLoad { .. })));
}
