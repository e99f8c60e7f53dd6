//! Synthetic models in libllama: every type and family loads, speaks a working vocabulary, and starts at ln(n_vocab).
//! Adapters that we write change libllama's result, and merging one gives what applying it gives.

use std::num::NonZeroU32;
use std::path::{Path, PathBuf};

use qvac_ft::export::{merge, MergeConfig, OutputType};
use qvac_ft::ggml::{Dtype, GgufFile};
use qvac_ft::llama::{Batch, Context, ContextParams, LoraAdapter, Model, ModelParams, Token};
use qvac_ft::model::adapter::{AdapterPair, Heads, Matrix};
use qvac_ft::model::{AdapterFile, Target};
use qvac_ft::synth::{self, Config, Family};

const TEXT: &str =
    "Does regular exercise lower blood pressure in older adults? Yes, it does: 42 of 120 patients.";

fn write(dir: &Path, config: &Config) -> PathBuf {
    let name = format!("{}-{}-{}.gguf", config.family.architecture(), config.dtype, config.scales);
    let path = dir.join(name);
    synth::write(config, &path, &mut |_, _| ()).unwrap();
    path
}

fn nano(family: Family, dtype: Dtype) -> Config {
    Config { family, ..Config::new(*synth::find_shape("bitnet-nano").unwrap(), dtype, 5) }
}

/// Logits after every token of `tokens`, `[n_vocab]` each.
fn logits(path: &Path, adapter: Option<&Path>, tokens: &[Token]) -> Vec<Vec<f32>> {
    let model = Model::load(path, &ModelParams::on(Some("cpu"))).unwrap();
    let params = ContextParams { n_ctx: NonZeroU32::new(256), ..ContextParams::default() };
    let mut ctx = Context::new(&model, &params).unwrap();
    if let Some(adapter) = adapter {
        ctx.set_adapters(&[(LoraAdapter::load(&model, adapter).unwrap(), 1.0)]).unwrap();
    }
    let mut batch = Batch::new();
    batch.extend(tokens, 0, 0, true);
    ctx.decode(&mut batch).unwrap();
    (0..tokens.len()).map(|row| ctx.logits(row).unwrap().to_vec()).collect()
}

fn tokens(path: &Path, text: &str) -> Vec<Token> {
    let model = Model::load(path, &ModelParams::vocab_only()).unwrap();
    model.vocab().unwrap().tokenize(text, false, false).unwrap()
}

fn loss(logits: &[Vec<f32>], tokens: &[Token]) -> f64 {
    let n = tokens.len() - 1;
    let one = |(row, next): (&Vec<f32>, &Token)| {
        let sum: f64 = row.iter().map(|l| f64::from(*l).exp()).sum();
        sum.ln() - f64::from(row[*next as usize])
    };
    logits.iter().zip(&tokens[1..]).map(one).sum::<f64>() / n as f64
}

/// Largest difference as a share of the largest logit.
fn difference(a: &[Vec<f32>], b: &[Vec<f32>]) -> f32 {
    let largest = a.iter().flatten().fold(0f32, |m, v| m.max(v.abs()));
    let pairs = a.iter().flatten().zip(b.iter().flatten());
    pairs.map(|(a, b)| (a - b).abs()).fold(0f32, f32::max) / largest
}

#[test]
fn every_type_and_family_loads_and_starts_at_the_loss_of_guessing() {
    let dir = tempfile::tempdir().unwrap();
    let expected = f64::from(512f32).ln();
    for family in [Family::Bitnet, Family::BitnetB158, Family::Llama] {
        for dtype in synth::TYPES {
            for scales in [false, true] {
                if scales && family == Family::Llama {
                    continue;
                }
                let path = write(dir.path(), &Config { scales, ..nano(family, dtype) });
                let tokens = tokens(&path, TEXT);
                let loss = loss(&logits(&path, None, &tokens), &tokens);
                assert!((loss - expected).abs() < 0.2, "{}: {loss}, expected {expected}", path.display());
            }
        }
    }
}

#[test]
fn one_seed_is_one_function_whatever_the_type() {
    let dir = tempfile::tempdir().unwrap();
    let run = |dtype, scales| {
        let path = write(dir.path(), &Config { scales, ..nano(Family::Bitnet, dtype) });
        let tokens = tokens(&path, TEXT);
        logits(&path, None, &tokens)
    };
    let tq2 = run(Dtype::TQ2_0, false);
    // libllama rounds activations to 8 bits for ternary weights: applying a scale later moves some to the next step, and
    // f16 has no such rounding at all. Other weights would differ by more than 1.
    let cases = [(Dtype::TQ1_0, false, 1e-4), (Dtype::TQ2_0, true, 0.05), (Dtype::F16, false, 0.1)];
    for (dtype, scales, tolerance) in cases {
        let off = difference(&tq2, &run(dtype, scales));
        assert!(off < tolerance, "{dtype}, scales {scales}: {off}");
    }
}

#[test]
fn any_text_goes_through_the_vocabulary_and_back() {
    let dir = tempfile::tempdir().unwrap();
    for shape in ["bitnet-nano", "bitnet-tiny"] {
        let config = Config::new(*synth::find_shape(shape).unwrap(), Dtype::TQ2_0, 1);
        let path = write(dir.path(), &config);
        let model = Model::load(&path, &ModelParams::vocab_only()).unwrap();
        let vocab = model.vocab().unwrap();
        assert_eq!(vocab.n_tokens(), config.shape.n_vocab);
        for text in [
            TEXT,
            "",
            " ",
            "  two  spaces , and . odd ' stops\n\n\n",
            "tabs\tand\r\nlines \n",
            "Grüße, Ünïcode! 你好，世界。 こんにちは мир שלום",
            "emoji 👩‍👩‍👧‍👦 and \u{0}\u{1}\u{7f} controls \u{2581} ▁",
            "<|im_start|>not special<|im_end|>",
            "don't I'll we've 12345678 3.14e-10 a_b::c(d) {\"k\": [1, 2]}",
        ] {
            let tokens = vocab.tokenize(text, false, false).unwrap();
            assert_eq!(vocab.text(&tokens).unwrap(), text, "{shape}");
        }
        let n = |text: &str| vocab.tokenize(text, false, true).unwrap().len();
        assert_eq!(n("<|im_start|><|im_end|>"), 2);
        assert!(n(TEXT) < TEXT.len() / 2, "{} tokens of {} bytes", n(TEXT), TEXT.len());
        let eot = vocab.eot().unwrap();
        assert!(vocab.is_eog(eot) && vocab.is_control(eot));
        assert!(!vocab.add_bos());
        assert!(vocab.chat_template().unwrap().contains("<|im_start|>"));
    }
}

/// Values of a trained adapter's size: B A adds about a tenth to a layer.
fn adapter(base: &Path, path: &Path) {
    let file = GgufFile::open(base).unwrap();
    let rank = 4;
    let matrix = |ne: [i64; 2], seed: i64, size: f32| Matrix {
        ne,
        data: (0..ne[0] * ne[1])
            .map(|i| ((i * 7919 + seed * 104_729) % 257 - 128) as f32 / 128.0 * size)
            .collect(),
    };
    let pairs = (0..2)
        .flat_map(|layer| Target::ALL.map(|target| (layer, target)))
        .map(|(layer, target)| {
            let info = file.require_tensor(&target.tensor_name(layer)).unwrap();
            let seed = layer as i64 * 7 + target as i64;
            AdapterPair {
                tensor: info.name.clone(),
                a: matrix([info.ne[0], rank], seed, 0.05),
                b: matrix([rank, info.ne[1]], seed + 50, 0.05),
            }
        })
        .collect();
    let adapter = AdapterFile {
        path: PathBuf::new(),
        architecture: file.require_str("general.architecture").unwrap().into(),
        alpha: 8.0,
        heads: Some(Heads { n_head: 4, n_head_kv: 4 }),
        base: None,
        pairs,
    };
    adapter.write(path).unwrap();
}

#[test]
fn merging_gives_what_applying_gives() {
    // Merged weights are f16 here: what differs is the rounding of activations for ternary weights, to 8 bits.
    for (family, dtype, scales, tolerance) in [
        (Family::Llama, Dtype::F16, false, 0.01),
        (Family::Bitnet, Dtype::F16, false, 0.01),
        (Family::Bitnet, Dtype::F16, true, 0.01),
        (Family::Bitnet, Dtype::TQ2_0, true, 0.1),
        (Family::BitnetB158, Dtype::TQ2_0, false, 0.1),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let model = write(dir.path(), &Config { scales, ..nano(family, dtype) });
        let lora = dir.path().join("adapter.gguf");
        adapter(&model, &lora);
        let out = dir.path().join("merged.gguf");
        let output_type = OutputType::Fixed(Dtype::F16);
        let config = MergeConfig {
            model: model.clone(),
            adapter: lora.clone(),
            out: out.clone(),
            output_type,
            threads: 2,
        };
        merge(&config, &mut |_, _| ()).unwrap();

        let tokens = tokens(&model, TEXT);
        let applied = logits(&model, Some(&lora), &tokens);
        let merged = logits(&out, None, &tokens);
        let bare = logits(&model, None, &tokens);
        let off = difference(&applied, &merged);
        assert!(off < tolerance, "{} {dtype} {scales}: {off}", family.architecture());
        assert!(
            difference(&applied, &bare) > 5.0 * off,
            "the adapter changes little: {}",
            difference(&applied, &bare)
        );
    }
}
