//! Checkpoints that cannot be converted: the exit code is 2, stderr names the file and the tensor, and nothing is left
//! where the result would have been.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};

use assert_cmd::cargo::CommandCargoExt as _;
use qvac_ft::convert::{self, Error, QuantizeConfig};
use qvac_ft::ggml::{Dtype, GgufFile, GgufWriter};
use safetensors::SafeTensors;
use serde_json::{json, Value};

use crate::checkpoint::{json as read_json, Checkpoint};

fn run(args: &[&str]) -> Output {
    let mut command = Command::cargo_bin("qvac-ft").expect("the program is built");
    command.args(args).stdin(Stdio::null()).env("COLUMNS", "100").output().expect("the program starts")
}

fn text(path: &Path) -> &str {
    path.to_str().expect("temporary folders have UTF-8 names")
}

/// A folder for results, and what is in it.
struct Out(tempfile::TempDir);

impl Out {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn file(&self) -> PathBuf {
        self.0.path().join("model.gguf")
    }

    fn is_empty(&self) -> bool {
        fs::read_dir(self.0.path()).unwrap().next().is_none()
    }
}

/// Converts, and wants it to fail with all of `expected` on stderr.
fn fails(c: &Checkpoint, flags: &[&str], expected: &[&str]) {
    let out = Out::new();
    let file = out.file();
    let output = run(&[&["convert", text(c.path()), "-o", text(&file)], flags].concat());
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{said}");
    for part in expected {
        assert!(said.contains(part), "no `{part}` in\n{said}");
    }
    assert!(output.stdout.is_empty() && out.is_empty(), "{said}");
}

fn edit(c: &Checkpoint, file: &str, change: impl FnOnce(&mut Value)) {
    let path = c.path().join(file);
    let mut value = read_json(&path);
    change(&mut value);
    fs::write(path, serde_json::to_vec(&value).unwrap()).unwrap();
}

const FIRST: &str = "model-00001-of-00002.safetensors";
const SECOND: &str = "model-00002-of-00002.safetensors";

#[test]
fn files_that_are_missing_or_cut() {
    let c = Checkpoint::new("llama-packed");
    fs::remove_file(c.path().join(SECOND)).unwrap();
    fails(&c, &[], &[SECOND, "is missing", "5 tensors", "hint: the download is not complete"]);

    let c = Checkpoint::new("llama-packed");
    let bytes = fs::read(c.path().join(FIRST)).unwrap();
    for n in [0, 5, 3000, bytes.len() - 1] {
        fs::write(c.path().join(FIRST), &bytes[..n]).unwrap();
        fails(&c, &[], &[FIRST, "is not a whole safetensors file"]);
    }

    let c = Checkpoint::new("llama-packed");
    fs::remove_file(c.path().join("config.json")).unwrap();
    fails(&c, &[], &["has no `config.json`", "hint: pass the folder"]);

    let c = Checkpoint::new("onebit");
    fs::write(c.path().join("tokenizer.model"), b"\x0a\xff").unwrap();
    fails(&c, &[], &["tokenizer.model", "no SentencePiece model"]);
    fs::remove_file(c.path().join("tokenizer.model")).unwrap();
    fails(&c, &[], &["has no `tokenizer.json`"]);

    let c = Checkpoint::new("onebit");
    for name in [FIRST, SECOND, "model.safetensors.index.json"] {
        fs::remove_file(c.path().join(name)).unwrap();
    }
    fails(&c, &[], &["has no weights in safetensors files", "save_pretrained"]);
}

#[test]
fn an_index_that_does_not_fit_its_files() {
    let c = Checkpoint::new("llama-packed");
    let name = "model.layers.0.mlp.up_proj.weight";
    edit(&c, "model.safetensors.index.json", |index| index["weight_map"][name] = json!(SECOND));
    fails(&c, &[], &[SECOND, &format!("no tensor `{name}`")]);
    edit(&c, "model.safetensors.index.json", |index| index["weight_map"][name] = json!("../x.safetensors"));
    fails(&c, &[], &["`weight_map` is \"../x.safetensors\""]);
}

#[test]
fn configurations_that_are_something_else() {
    let cases: [(&str, Value, &[&str]); 9] = [
        ("/architectures", json!(["GemmaForCausalLM"]), &["`architectures` is [\"GemmaForCausalLM\"]"]),
        ("/hidden_act", json!("gelu"), &["`hidden_act` is \"gelu\", expected `silu`"]),
        ("/hidden_size", json!("wide"), &["`hidden_size` is \"wide\""]),
        ("/num_key_value_heads", json!(3), &["`num_key_value_heads` is 3, expected a divisor of 4"]),
        ("/intermediate_size", json!(512), &["mlp.gate_proj.weight", "[64, 256], expected [128, 256]"]),
        ("/num_hidden_layers", json!(2), &["no tensor `model.layers.1.input_layernorm.weight`"]),
        ("/rope_scaling", json!({"rope_type": "yarn"}), &["`rope_scaling` of type `yarn`"]),
        ("/quantization_config/quant_method", json!("gptq"), &["is \"gptq\", expected \"bitnet\""]),
        ("/quantization_config/use_rms_norm", json!(true), &["`use_rms_norm`", "is not supported"]),
    ];
    for (pointer, value, expected) in cases {
        let c = Checkpoint::new("llama-packed");
        edit(&c, "config.json", |config| *config.pointer_mut(pointer).unwrap() = value);
        fails(&c, &[], expected);
    }
    let c = Checkpoint::new("llama-masters");
    edit(&c, "config.json", |config| config["num_hidden_layers"] = json!(1));
    fails(&c, &[], &["tensor `model.layers.1.", "has no place in architecture `llama`"]);
}

#[test]
fn weights_that_are_not_what_they_should_be() {
    // Masters of nobody knows what are not made ternary unasked.
    let c = Checkpoint::new("llama-masters");
    edit(&c, "config.json", |config| config["quantization_config"] = Value::Null);
    fails(&c, &[], &["self_attn.q_proj.weight", "is not ternary", "largest error", "--ternarize"]);
    let out = Out::new();
    let done = run(&["convert", text(c.path()), "-o", text(&out.file()), "--ternarize", "--json"]);
    assert_eq!(done.status.code(), Some(0), "{}", String::from_utf8_lossy(&done.stderr));

    // A packed value of 3.
    let c = Checkpoint::new("llama-packed");
    let path = c.path().join(FIRST);
    let mut bytes = fs::read(&path).unwrap();
    let last = bytes.len() - 9;
    bytes[last - 300] |= 0b11;
    fs::write(&path, bytes).unwrap();
    fails(&c, &[], &[FIRST, "a packed value is 3"]);

    // A bf16 value that f16 would make infinite, and one that is so already.
    for (bits, flags, expected) in [
        (0x4780u16, &["--embed", "f16"][..], ["holds 65536, and f16 ends", "--embed q8_0"]),
        (0x7f80, &[], ["holds inf, expected finite", "model.embed_tokens.weight"]),
    ] {
        let c = Checkpoint::new("llama-packed");
        let path = c.path().join(SECOND);
        let mut bytes = fs::read(&path).unwrap();
        let (header, table) = SafeTensors::read_metadata(&bytes).unwrap();
        let at = header + 8 + table.info("model.embed_tokens.weight").unwrap().data_offsets.0;
        bytes[at..at + 2].copy_from_slice(&bits.to_le_bytes());
        fs::write(&path, bytes).unwrap();
        fails(&c, flags, &expected);
    }

    let c = Checkpoint::new("llama-packed");
    fails(&c, &["--type", "q4_0"], &["cannot be written as q4_0", "tq1_0, tq2_0"]);
    fails(&c, &["--type", "q99"], &["no type is called `q99`"]);
}

#[test]
fn vocabularies_that_do_not_fit() {
    let c = Checkpoint::new("bitnet-masters");
    edit(&c, "tokenizer.json", |t| t["model"]["vocab"]["more"] = json!(600));
    fails(&c, &[], &["the vocabulary has 601 tokens, and the embedding 512 rows"]);
    let c = Checkpoint::new("bitnet-masters");
    edit(&c, "tokenizer.json", |t| {
        t["pre_tokenizer"] = json!({"type": "Split", "pattern": {"Regex": "[a-z]+"}});
    });
    fails(&c, &[], &["tokenizer.json", "[a-z]+", "--pre"]);
    let out = Out::new();
    let done = run(&["convert", text(c.path()), "-o", text(&out.file()), "--pre", "gpt-2"]);
    assert_eq!(done.status.code(), Some(0), "{}", String::from_utf8_lossy(&done.stderr));
    let c = Checkpoint::new("bitnet-masters");
    edit(&c, "tokenizer.json", |t| t["model"]["type"] = json!("WordPiece"));
    fails(&c, &[], &["a tokenizer of type `WordPiece`"]);
}

/// Stopped after its first bytes, it leaves no file, and none under another name.
#[test]
fn an_interrupt_leaves_nothing() {
    let c = Checkpoint::new("bitnet-masters");
    let out = Out::new();
    let stop = AtomicBool::new(false);
    let config = convert::ConvertConfig { out: out.file(), ..c.config() };
    let end = convert::convert(&config, &stop, &mut |_, _| stop.store(true, Ordering::Relaxed));
    assert!(matches!(end, Err(Error::Interrupted)), "{end:?}");
    assert!(out.is_empty());
}

/// An embedding whose rows no Q6_K block divides gets another type, and that is told.
#[test]
fn what_cannot_have_its_type_is_told() {
    let c = Checkpoint::new("onebit-padded");
    let out = Out::new();
    let file = out.file();
    let args = ["convert", text(c.path()), "-o", text(&file), "--type", "q8_0", "--embed", "q6_k"];
    let done = run(&args);
    let said = String::from_utf8_lossy(&done.stderr);
    assert_eq!(done.status.code(), Some(0), "{said}");
    assert!(said.contains("`token_embd.weight`") && said.contains("became q8_0"), "{said}");
    let json = run(&[&args[..], &["--json"]].concat());
    let json: Value = serde_json::from_slice(&json.stdout).unwrap();
    assert_eq!(json["fallbacks"][0], json!({"tensor": "token_embd.weight", "type": "q8_0"}));
    assert_eq!(json["padded"][0], json!({"what": "n_ff", "from": 340, "to": 352}));
    let inspected = run(&["inspect", text(&file), "--json"]);
    let inspected: Value = serde_json::from_slice(&inspected.stdout).unwrap();
    assert_eq!(inspected["architecture"], "bitnet");
    assert_eq!(inspected["hparams"]["n_ff"], 352);
    assert_eq!(inspected["tokenizer"]["model"], "llama");
}

fn requantize(model: &Path, out: &Path, dtype: Dtype, force: bool) -> convert::Result<convert::Quantized> {
    let config = QuantizeConfig { model: model.into(), out: out.into(), dtype, force, threads: 2 };
    convert::quantize(&config, &AtomicBool::new(false), &mut |_, _| ())
}

#[test]
fn ternary_files_are_requantized_without_loss() {
    let c = Checkpoint::new("bitnet-silu");
    let out = Out::new();
    let (tq1, _) = c.convert_as(Dtype::TQ1_0, Dtype::F16);
    for from in [Dtype::TQ2_0, Dtype::F16, Dtype::Q8_0] {
        let (path, _) = c.convert_as(from, Dtype::F16);
        let done = requantize(&path, &out.file(), Dtype::TQ1_0, false).unwrap();
        assert_eq!((done.tensors.len(), done.kept.len()), (14, 0));
        assert!(done.tensors.iter().all(|t| t.max == 0.0 && t.from == from));
        let (found, expected) = (GgufFile::open(out.file()).unwrap(), GgufFile::open(&tq1).unwrap());
        for t in expected.tensors() {
            assert_eq!(found.data(&t.name).unwrap(), expected.bytes(t), "{from}: {}", t.name);
        }
    }
}

#[test]
fn what_is_not_ternary_is_refused_with_its_error() {
    let out = Out::new();
    let model = out.0.path().join("in.gguf");
    let mut w = GgufWriter::new();
    w.set("general.architecture", "llama");
    let names = ["blk.0.attn_q.weight", "blk.0.attn_norm.weight", "blk.0.ffn_down.weight"];
    for (name, ne) in names.iter().zip([[256, 2], [256, 1], [64, 2]]) {
        w.add_tensor(name, &ne, Dtype::F32).unwrap();
    }
    let mut stream = w.create(&model).unwrap();
    for n in [512, 256, 128] {
        let bytes: Vec<u8> = (0..n).flat_map(|i| ((i * 37 % 101) as f32 - 50.0).to_le_bytes()).collect();
        stream.write(&bytes).unwrap();
    }
    stream.finish().unwrap();
    let file = out.file();
    let args = ["quantize", text(&model), "-o", text(&file), "--type", "tq2_0"];
    let refused = run(&args);
    let said = String::from_utf8_lossy(&refused.stderr);
    assert_eq!(refused.status.code(), Some(2), "{said}");
    assert!(said.contains("`blk.0.attn_q.weight` is not ternary") && said.contains("--force"), "{said}");
    assert!(!file.exists());

    let forced = run(&[&args[..], &["--force", "--json"]].concat());
    let json: Value = serde_json::from_slice(&forced.stdout).unwrap();
    assert_eq!((json["n_changed"].as_u64(), &json["kept"]), (Some(1), &json!(["blk.0.ffn_down.weight"])));
    let (max, rms) = (&json["tensors"][0]["max_error"], &json["tensors"][0]["rms_error"]);
    // Uniform values, to the mean of those above half their mean absolute value: a third of 1/4 of the square is left.
    assert!((0.2..0.5).contains(&max.as_f64().unwrap()), "{max}");
    assert!((0.3..0.5).contains(&rms.as_f64().unwrap()), "{rms}");

    let over = requantize(&file, &file, Dtype::TQ1_0, false).unwrap_err();
    assert!(matches!(over, Error::Overwrite { .. }), "{over}");
}
