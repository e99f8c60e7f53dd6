//! Folders and merged models, from synthetic models and made-up adapters.

use std::path::{Path, PathBuf};

use super::*;
use crate::ggml::{Dtype, GgufFile};
use crate::model::adapter::{AdapterPair, Heads, Matrix};
use crate::model::{self, AdapterFile, Target};
use crate::synth;

fn model(dir: &Path, family: synth::Family, dtype: Dtype, scales: bool) -> PathBuf {
    let shape = *synth::find_shape("bitnet-nano").unwrap();
    let config = synth::Config { family, scales, n_head_kv: Some(2), ..synth::Config::new(shape, dtype, 3) };
    let path = dir.join("base.gguf");
    synth::write(&config, &path, &mut |_, _| ()).unwrap();
    path
}

/// An adapter of the given layers with values that f16 holds exactly.
fn adapter(base: &Path, targets: &[Target], rank: i64) -> AdapterFile {
    let base = GgufFile::open(base).unwrap();
    let matrix = |ne: [i64; 2], seed: i64| Matrix {
        ne,
        data: (0..ne[0] * ne[1]).map(|i| ((i * 31 + seed * 17) % 129 - 64) as f32 / 256.0).collect(),
    };
    let pair = |(layer, target): (usize, Target)| {
        let info = base.require_tensor(&target.tensor_name(layer)).unwrap();
        let seed = layer as i64 * 7 + target as i64;
        AdapterPair {
            tensor: info.name.clone(),
            a: matrix([info.ne[0], rank], seed),
            b: matrix([rank, info.ne[1]], seed + 100),
        }
    };
    AdapterFile {
        path: PathBuf::new(),
        architecture: base.require_str("general.architecture").unwrap().into(),
        alpha: 8.0,
        heads: Some(Heads { n_head: 4, n_head_kv: 2 }),
        base: base.get_str("general.name").unwrap().map(Into::into),
        pairs: (0..2).flat_map(|l| targets.iter().map(move |t| (l, *t))).map(pair).collect(),
    }
}

fn sorted(mut adapter: AdapterFile) -> AdapterFile {
    adapter.path = PathBuf::new();
    adapter.pairs.sort_by(|a, b| a.tensor.cmp(&b.tensor));
    adapter
}

#[test]
fn an_adapter_goes_to_peft_and_back() {
    for (family, moved) in
        [(synth::Family::Llama, true), (synth::Family::Bitnet, false), (synth::Family::BitnetB158, false)]
    {
        let dir = tempfile::tempdir().unwrap();
        let base = model(dir.path(), family, Dtype::TQ2_0, false);
        let ours = adapter(&base, &Target::ALL, 4);
        let peft = dir.path().join("peft");
        write_peft(&ours, None, &peft).unwrap();

        let bytes = std::fs::read(peft.join("adapter_model.safetensors")).unwrap();
        let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        assert_eq!(tensors.len(), 2 * 2 * 7);
        let view = |half| {
            tensors
                .tensor(&format!("base_model.model.model.layers.1.self_attn.q_proj.{half}.weight"))
                .unwrap()
        };
        assert_eq!((view("lora_A").shape(), view("lora_B").shape()), (&[4, 256][..], &[256, 4][..]));
        // Row 1 of head 0 in Hugging Face's order is row 2 in llama's.
        let b = &ours.pair("blk.1.attn_q.weight").unwrap().b.data;
        let row = if moved { 2 } else { 1 };
        let expected: Vec<u8> = b[4 * row..4 * row + 4].iter().flat_map(|v| v.to_le_bytes()).collect();
        assert_eq!(view("lora_B").data()[16..32], expected);

        let config: serde_json::Value =
            serde_json::from_slice(&std::fs::read(peft.join("adapter_config.json")).unwrap()).unwrap();
        assert_eq!((&config["r"], &config["lora_alpha"]), (&4.into(), &8.0.into()));
        assert_eq!(config["target_modules"].as_array().unwrap().len(), 7);

        let back = read_peft(&peft, &GgufFile::open(&base).unwrap()).unwrap();
        assert_eq!(sorted(back), sorted(ours));
    }
}

#[test]
fn peft_needs_the_heads_and_does_not_write_over() {
    let dir = tempfile::tempdir().unwrap();
    let base = model(dir.path(), synth::Family::Llama, Dtype::F16, false);
    let headless = AdapterFile { heads: None, ..adapter(&base, &[Target::AttnQ], 2) };
    let out = dir.path().join("peft");
    assert!(matches!(write_peft(&headless, None, &out), Err(Error::HeadsUnknown { .. })));
    assert!(!out.exists());
    let heads = Some(Heads { n_head: 4, n_head_kv: 2 });
    write_peft(&headless, heads, &out).unwrap();
    assert!(matches!(write_peft(&headless, heads, &out), Err(Error::Exists { .. })));
    let values_only = AdapterFile { heads: None, ..adapter(&base, &[Target::AttnV], 2) };
    write_peft(&values_only, None, &dir.path().join("v")).unwrap();
}

#[test]
fn what_a_peft_folder_asks_for_beyond_lora_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let base = model(dir.path(), synth::Family::Llama, Dtype::F16, false);
    let peft = dir.path().join("peft");
    write_peft(&adapter(&base, &[Target::FfnUp], 4), None, &peft).unwrap();
    let file = GgufFile::open(&base).unwrap();
    let config = peft.join("adapter_config.json");
    let text = std::fs::read_to_string(&config).unwrap();
    for (from, to, field) in [
        ("\"LORA\"", "\"LOHA\"", "peft_type"),
        ("\"use_dora\": false", "\"use_dora\": true", "use_dora"),
        ("\"bias\": \"none\"", "\"bias\": \"all\"", "bias"),
        ("\"alpha_pattern\": {}", "\"alpha_pattern\": {\"x\": 1}", "alpha_pattern"),
        ("\"lora_alpha\": 8.0", "\"lora_alpha\": \"x\"", "lora_alpha"),
    ] {
        assert!(text.contains(from), "{from}");
        std::fs::write(&config, text.replace(from, to)).unwrap();
        let e = read_peft(&peft, &file).unwrap_err();
        assert!(matches!(e, Error::Config { field: f, .. } if f == field), "{field}: {e}");
    }
    std::fs::write(&config, text.replace("\"use_rslora\": false", "\"use_rslora\": true")).unwrap();
    assert_eq!(read_peft(&peft, &file).unwrap().alpha, 16.0, "8 / sqrt(4) is 16 / 4");
    std::fs::write(&config, "{").unwrap();
    assert!(matches!(read_peft(&peft, &file), Err(Error::Json { .. })));
    std::fs::write(&config, &text).unwrap();
    std::fs::write(peft.join("adapter_model.safetensors"), "no").unwrap();
    assert!(matches!(read_peft(&peft, &file), Err(Error::Safetensors { .. })));
}

struct Merge {
    dir: tempfile::TempDir,
    config: MergeConfig,
    adapter: AdapterFile,
}

fn prepare(family: synth::Family, dtype: Dtype, scales: bool, output_type: OutputType) -> Merge {
    let dir = tempfile::tempdir().unwrap();
    let model = model(dir.path(), family, dtype, scales);
    let adapter = adapter(&model, &[Target::AttnK, Target::FfnUp, Target::FfnDown], 4);
    let path = dir.path().join("a.gguf");
    adapter.write(&path).unwrap();
    let out = dir.path().join("merged.gguf");
    let config = MergeConfig { model, adapter: path, out, output_type, threads: 2 };
    Merge { dir, config, adapter }
}

/// `w_scale * W + 2 * ba_scale * B A` of one weight, by its definition, in f64.
fn expected(base: &GgufFile, adapter: &AdapterFile, tensor: &str, w_scale: f32, ba_scale: f32) -> Vec<f64> {
    let pair = adapter.pair(tensor).unwrap();
    let w = base.read_f32(base.require_tensor(tensor).unwrap()).unwrap();
    let (n_in, rank) = (pair.n_in(), pair.rank());
    (0..w.len())
        .map(|at| {
            let (row, col) = (at / n_in, at % n_in);
            let ba: f64 = (0..rank)
                .map(|k| f64::from(pair.b.data[row * rank + k]) * f64::from(pair.a.data[k * n_in + col]))
                .sum();
            f64::from(w[at]) * f64::from(w_scale) + 2.0 * f64::from(ba_scale) * ba
        })
        .collect()
}

fn worst(merged: &GgufFile, tensor: &str, expected: &[f64]) -> f64 {
    let w = merged.read_f32(merged.require_tensor(tensor).unwrap()).unwrap();
    let largest = expected.iter().fold(0f64, |m, v| m.max(v.abs()));
    w.iter().zip(expected).map(|(a, b)| (f64::from(*a) - b).abs()).fold(0f64, f64::max) / largest
}

/// Half a step of f16 and of 8 bits, relative to the largest value.
const F16_STEP: f64 = 5e-4;
const Q8_STEP: f64 = 5e-3;

#[test]
fn merged_weights_are_the_sum() {
    let cases = [
        (synth::Family::Llama, Dtype::Q8_0, false, OutputType::Keep, Dtype::Q8_0, Q8_STEP),
        (synth::Family::Llama, Dtype::Q8_0, false, OutputType::Fixed(Dtype::F32), Dtype::F32, 1e-6),
        (synth::Family::Bitnet, Dtype::TQ2_0, false, OutputType::Keep, Dtype::F16, F16_STEP),
        (synth::Family::Bitnet, Dtype::TQ1_0, true, OutputType::Keep, Dtype::F16, F16_STEP),
    ];
    for (family, dtype, scales, output, to, tolerance) in cases {
        let m = prepare(family, dtype, scales, output);
        let report = merge(&m.config, &mut |_, _| ()).unwrap();
        assert_eq!(report.n_changed, 6);
        assert_eq!(report.retyped.iter().map(|r| r.2).sum::<usize>(), if dtype == to { 0 } else { 6 });
        let base = GgufFile::open(&m.config.model).unwrap();
        let merged = GgufFile::open(&m.config.out).unwrap();
        assert_eq!(merged.len(), report.bytes);
        for (name, covers_adapter) in
            [("blk.0.attn_k", false), ("blk.0.ffn_up", true), ("blk.1.ffn_down", false)]
        {
            let tensor = format!("{name}.weight");
            assert_eq!(merged.require_tensor(&tensor).unwrap().dtype, to);
            let scale = base.tensor(&format!("{name}.scale")).map_or(1.0, |t| base.read_f32(t).unwrap()[0]);
            let ba_scale = if covers_adapter { scale } else { 1.0 };
            assert_eq!(scale != 1.0, scales);
            let off = worst(&merged, &tensor, &expected(&base, &m.adapter, &tensor, scale, ba_scale));
            assert!(off <= tolerance, "{dtype} {tensor}: {off}");
            assert!(merged.tensor(&format!("{name}.scale")).is_none(), "the scale is in the weight now");
        }
        for same in ["token_embd.weight", "blk.0.attn_q.weight", "blk.1.ffn_norm.weight"] {
            assert_eq!(base.data(same).unwrap(), merged.data(same).unwrap(), "{same}");
        }
        assert_eq!(merged.tensor("blk.0.attn_q.scale").is_some(), scales);
        assert_eq!(
            merged.get_strs("tokenizer.ggml.tokens").unwrap(),
            base.get_strs("tokenizer.ggml.tokens").unwrap()
        );
    }
}

#[test]
fn merging_refuses_what_it_must_and_leaves_nothing() {
    let m = prepare(synth::Family::Bitnet, Dtype::TQ2_0, false, OutputType::Fixed(Dtype::TQ2_0));
    let run = |config: &MergeConfig| merge(config, &mut |_, _| ()).unwrap_err();
    assert!(matches!(run(&m.config), Error::OutputType { .. }));
    let keep = MergeConfig { output_type: OutputType::Keep, ..m.config.clone() };
    for input in [&m.config.model, &m.config.adapter] {
        let before = std::fs::read(input).unwrap();
        let e = run(&MergeConfig { out: input.clone(), ..keep.clone() });
        assert!(matches!(e, Error::Overwrite { .. }), "{e}");
        assert_eq!(std::fs::read(input).unwrap(), before);
    }
    // A link to the input is the input.
    #[cfg(unix)]
    {
        let link = m.dir.path().join("link.gguf");
        std::os::unix::fs::symlink(&keep.model, &link).unwrap();
        assert!(matches!(run(&MergeConfig { out: link, ..keep.clone() }), Error::Overwrite { .. }));
    }
    assert!(matches!(
        run(&MergeConfig { out: m.dir.path().join("no/such/m.gguf"), ..keep.clone() }),
        Error::Ggml(crate::ggml::Error::Io { .. })
    ));
    let llama = prepare(synth::Family::Llama, Dtype::F16, false, OutputType::Keep);
    let e = run(&MergeConfig { adapter: llama.config.adapter.clone(), ..keep.clone() });
    assert!(matches!(e, Error::Model(model::Error::AdapterArchitecture { .. })), "{e}");
    assert!(!m.config.out.exists());
    let left: Vec<_> = std::fs::read_dir(m.dir.path())
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.contains("partial"))
        .collect();
    assert!(left.is_empty(), "{left:?}");
}
