//! The files have the shapes, values and metadata they promise, whatever the threads.

use super::*;
use crate::ggml::GgufFile;
use crate::model::Hparams;

fn nano(dtype: Dtype) -> Config {
    Config::new(*find_shape("bitnet-nano").unwrap(), dtype, 7)
}

fn make(config: &Config) -> (tempfile::TempDir, GgufFile, Summary) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.gguf");
    let mut last = (0, 1);
    let summary = write(config, &path, &mut |done, total| last = (done, total)).unwrap();
    assert_eq!(last.0, last.1, "progress ends at the end");
    let file = GgufFile::open(&path).unwrap();
    assert_eq!(file.len(), summary.bytes);
    (dir, file, summary)
}

#[test]
fn shapes_are_those_of_the_table() {
    for (name, sizes) in [("bitnet-nano", (256, 2, 4, 768, 512)), ("1b", (2048, 24, 32, 5632, 32000))] {
        let s = find_shape(name).unwrap();
        assert_eq!((s.n_embd, s.n_layer, s.n_head, s.n_ff, s.n_vocab), sizes);
    }
    let (_dir, file, summary) = make(&nano(Dtype::TQ2_0));
    let hp = Hparams::from_gguf(&file).unwrap();
    assert_eq!(
        (hp.n_embd, hp.n_layer, hp.n_head, hp.n_head_kv, hp.n_ff, hp.n_vocab),
        (256, 2, 4, 4, 768, 512)
    );
    for (tensor, ne) in [
        ("token_embd.weight", &[256, 512][..]),
        ("blk.1.attn_q.weight", &[256, 256]),
        ("blk.1.ffn_gate.weight", &[256, 768]),
        ("blk.1.ffn_down.weight", &[768, 256]),
        ("blk.1.ffn_sub_norm.weight", &[768]),
        ("blk.0.attn_sub_norm.weight", &[256]),
    ] {
        file.require_shape(tensor, ne).unwrap();
    }
    assert_eq!(file.tensor("output.weight"), None, "the head is tied");
    assert_eq!(summary.n_params, file.tensors().iter().map(|t| t.n_elements() as u64).sum::<u64>());
}

#[test]
fn bitnet_b158_has_its_names_and_constants() {
    let shape = *find_shape("bitnet-b1.58-2b-4t").unwrap();
    let (_dir, file, _) = make(&Config {
        shape: Shape { n_layer: 1, n_vocab: 512, ..shape },
        ..Config::new(shape, Dtype::TQ1_0, 7)
    });
    let hp = Hparams::from_gguf(&file).unwrap();
    assert_eq!(hp.architecture, "bitnet-b1.58");
    assert_eq!((hp.n_embd, hp.n_head, hp.n_head_kv, hp.n_embd_head), (2560, 20, 5, 128));
    assert_eq!((hp.n_ff, shape.n_vocab, hp.n_ctx_train), (6912, 128_256, 4096));
    assert_eq!((hp.rope.freq_base, hp.rope.n_dims), (500_000.0, 128));
    file.require_shape("blk.0.attn_v.weight", &[2560, 640]).unwrap();
    file.require_shape("blk.0.ffn_sub_norm.weight", &[6912]).unwrap();
    assert_eq!(file.tensor("output.weight"), None, "the head is tied");
}

#[test]
fn ternary_tensors_have_one_scale_and_fair_trits() {
    for dtype in [Dtype::TQ1_0, Dtype::TQ2_0] {
        let (_dir, file, _) = make(&nano(dtype));
        let info = file.require_tensor("blk.0.ffn_up.weight").unwrap();
        assert_eq!(info.dtype, dtype);
        let scales: std::collections::HashSet<[u8; 2]> =
            file.bytes(info).chunks(dtype.type_size()).map(|b| [b[b.len() - 2], b[b.len() - 1]]).collect();
        assert_eq!(scales.len(), 1, "{dtype}");
        let values = file.read_f32(info).unwrap();
        let n = values.len() as f64;
        let zeros = values.iter().filter(|v| **v == 0.0).count() as f64 / n;
        let mean = values.iter().map(|v| f64::from(v.signum() * v.abs().min(1.0))).sum::<f64>() / n;
        // 196608 trits: a share of 1/3 strays by 0.001, five deviations are 0.005.
        assert!((zeros - 1.0 / 3.0).abs() < 0.005 && mean.abs() < 0.005, "{zeros} {mean}");
        let variance = values.iter().map(|v| f64::from(v * v)).sum::<f64>() / n * 256.0;
        assert!((variance - 1.0).abs() < 0.02, "a row keeps unit variance: {variance}");
    }
}

#[test]
fn types_of_one_seed_hold_the_same_ternary_values() {
    let (_a, tq, _) = make(&nano(Dtype::TQ1_0));
    let (_b, f16, _) = make(&nano(Dtype::F16));
    for name in ["blk.1.attn_v.weight", "blk.0.ffn_down.weight"] {
        let read = |f: &GgufFile| f.read_f32(f.require_tensor(name).unwrap()).unwrap();
        assert_eq!(read(&tq), read(&f16), "{name}");
    }
}

#[test]
fn the_file_depends_on_the_seed_and_not_on_the_threads() {
    let bytes = |seed, threads| {
        let (dir, ..) = make(&Config { seed, threads, ..nano(Dtype::Q4_0) });
        std::fs::read(dir.path().join("m.gguf")).unwrap()
    };
    let one = bytes(1, 1);
    assert!(one == bytes(1, 5));
    assert!(one != bytes(2, 1));
}

#[test]
fn a_llama_may_have_grouped_queries_and_its_own_head() {
    let config = Config { family: Family::Llama, n_head_kv: Some(2), untied: true, ..nano(Dtype::Q8_0) };
    let (_dir, file, _) = make(&config);
    assert_eq!(Hparams::from_gguf(&file).unwrap().n_head_kv, 2);
    file.require_shape("blk.0.attn_k.weight", &[256, 128]).unwrap();
    file.require_shape("output.weight", &[256, 512]).unwrap();
    assert_eq!(file.tensor("blk.0.attn_sub_norm.weight"), None);
    let q = file.read_f32(file.require_tensor("blk.0.attn_q.weight").unwrap()).unwrap();
    let variance = q.iter().map(|v| f64::from(v * v)).sum::<f64>() / q.len() as f64 * 256.0;
    assert!((variance - 1.0).abs() < 0.05, "{variance}");
}

#[test]
fn heads_may_have_a_size_of_their_own() {
    let shape = *find_shape("qwen3-4b-like").unwrap();
    let (_dir, file, _) = make(&Config {
        shape: Shape { n_layer: 1, n_vocab: 512, ..shape },
        ..Config::new(shape, Dtype::Q4_0, 7)
    });
    let hp = Hparams::from_gguf(&file).unwrap();
    assert_eq!((hp.n_embd, hp.n_head, hp.n_head_kv, hp.n_embd_head, hp.rope.n_dims), (2560, 32, 8, 128, 128));
    file.require_shape("blk.0.attn_q.weight", &[2560, 4096]).unwrap();
    file.require_shape("blk.0.attn_output.weight", &[4096, 2560]).unwrap();
}

#[test]
fn scales_can_stand_in_tensors_of_their_own() {
    let (_a, plain, _) = make(&nano(Dtype::TQ2_0));
    let (_b, split, _) = make(&Config { scales: true, ..nano(Dtype::TQ2_0) });
    let read = |f: &GgufFile, name| f.read_f32(f.require_tensor(name).unwrap()).unwrap();
    let scale = read(&split, "blk.0.attn_q.scale")[0];
    assert!(read(&split, "blk.0.attn_q.weight").iter().all(|v| [-1.0, 0.0, 1.0].contains(v)));
    let max = read(&plain, "blk.0.attn_q.weight").into_iter().fold(0f32, f32::max);
    assert_eq!(scale, max);
}

#[test]
fn what_cannot_be_made_is_refused() {
    let path = Path::new("/nowhere/m.gguf");
    let fails = |config: &Config| write(config, path, &mut |_, _| ()).unwrap_err();
    assert!(matches!(fails(&nano(Dtype::Q4_K)), Error::WeightType { .. }));
    assert!(matches!(fails(&Config { n_head_kv: Some(3), ..nano(Dtype::F16) }), Error::Heads { .. }));
    let scales = Config { scales: true, family: Family::Llama, ..nano(Dtype::F16) };
    assert!(matches!(fails(&scales), Error::BitnetOnly { .. }));
    assert!(matches!(fails(&nano(Dtype::F16)), Error::Ggml(crate::ggml::Error::Io { .. })));
}
