//! `verify` and `--exact` from outside: what is reported, and what is refused with which remedy.

mod common;

use std::fs;
use std::path::Path;

use common::nano_model;
use common::program::{run as qvac, stderr};
use qvac_ft::ggml::{Dtype, GgufFile, GgufWriter};
use serde_json::Value;

#[track_caller]
fn refused(dir: &Path, line: &str, expected: &str) {
    let output = qvac(dir, line);
    assert_eq!(output.status.code(), Some(2), "{line}: {}", stderr(&output));
    assert!(output.stdout.is_empty(), "{line}");
    assert_eq!(stderr(&output), expected, "{line}");
}

fn room() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    nano_model(dir.path());
    let chat = |i: usize| format!(r#"{{"prompt":"Is {i} even?","completion":"It may be."}}"#) + "\n";
    fs::write(dir.path().join("chats.jsonl"), (0..8).map(chat).collect::<String>()).unwrap();
    dir
}

const VERIFY: &str = "verify -m nano.gguf --device cpu --threads 2 --seq-len 64 --tokens 4 --steps 1";

#[test]
fn a_report_names_every_check() {
    let dir = room();
    let output =
        qvac(dir.path(), &format!("{VERIFY} --tier t0 -d chats.jsonl --chat-template chatml --json"));
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let report: Value = serde_json::from_slice(&output.stdout).expect("one JSON object");
    assert_eq!((&report["version"], &report["tier"]), (&env!("CARGO_PKG_VERSION").into(), &"t0".into()));
    assert_eq!((&report["device"], &report["against"]), (&"cpu".into(), &"cpu".into()));
    assert_eq!((&report["model"], &report["threads"]), (&"nano.gguf".into(), &2.into()));
    let checks = report["checks"].as_array().unwrap();
    let count = |status: &str| checks.iter().filter(|c| c["status"] == status).count();
    assert_eq!(report["pass"], count("pass"));
    assert_eq!((&report["fail"], count("fail")), (&0.into(), 0));
    assert_eq!((&report["skip"], count("skip")), (&1.into(), 1), "tokens are promised nothing");
    assert!(count("pass") > 50, "{}", count("pass"));
    for check in checks {
        assert!(["op", "logits", "tokens"].contains(&check["kind"].as_str().unwrap()), "{check}");
        for key in ["name", "what"] {
            assert!(check[key].as_str().is_some_and(|s| !s.is_empty()), "`{key}` of {check}");
        }
        for key in ["values", "differing"] {
            assert!(check[key].is_u64(), "`{key}` of {check}");
        }
        for key in ["nmse", "ulp", "mismatch", "note", "class"] {
            assert!(check.get(key).is_some(), "`{key}` of {check}");
        }
        assert_eq!(check["mismatch"].is_null(), check["differing"] == 0, "{check}");
    }
    // Threads change no bit of these either.
    assert!(checks.iter().all(|c| c["differing"] == 0));
    for class in ["Exact", "Ulp(1)", "Nmse(5e-4)"] {
        assert!(checks.iter().any(|c| c["class"] == class), "{class}");
    }
}

#[test]
fn a_table_ends_in_counts() {
    let dir = room();
    let output = qvac(dir.path(), &format!("{VERIFY} --tier t0"));
    let text = String::from_utf8(output.stdout.clone()).unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert!(text.starts_with("| check"), "{text}");
    let last = text.lines().last().unwrap();
    assert!(last.starts_with("cpu (2 threads) against cpu (1 threads): "), "{last}");
    assert!(last.ends_with(" pass, 0 fail, 1 skipped"), "{last}");
}

#[test]
fn what_cannot_be_verified_exits_with_2() {
    let dir = room();
    refused(
        dir.path(),
        "verify -m nano.gguf --device cpu -d chats.jsonl --chat-template chatml --seq-len 72",
        "error: cannot verify `nano.gguf`\n  \
           caused by: exact training needs rows of a multiple of 32 tokens, found 72\n\n\
         hint: pass `--seq-len 96`, or another multiple of 32\n",
    );
    for (line, word) in [
        ("verify", "--model"),
        ("verify -m missing.gguf --device cpu", "missing.gguf"),
        ("verify -m nano.gguf --device vulkan99", "no device named `vulkan99`"),
        ("verify -m nano.gguf --device cpu --against vulkan99", "no device named `vulkan99`"),
        ("verify -m nano.gguf --tier t3", "--tier"),
        ("verify -m nano.gguf --steps 0", "--steps"),
    ] {
        let output = qvac(dir.path(), line);
        assert_eq!(output.status.code(), Some(2), "{line}: {}", stderr(&output));
        assert!(output.stdout.is_empty() && stderr(&output).contains(word), "{line}: {}", stderr(&output));
    }
}

#[test]
fn exact_rows_are_multiples_of_32_tokens() {
    let dir = room();
    let why = "  caused by: exact training needs rows of a multiple of 32 tokens, found 40\n\n\
               hint: pass `--seq-len 64`, or another multiple of 32\n";
    refused(
        dir.path(),
        "train --exact -m nano.gguf -d chats.jsonl --chat-template chatml --seq-len 40 --device cpu -o run",
        &format!("error: cannot train on `chats.jsonl`\n{why}"),
    );
    assert!(!dir.path().join("run").exists());
    refused(
        dir.path(),
        "bench train --exact -m nano.gguf --seq-len 40 --device cpu",
        &format!("error: cannot measure training of `nano.gguf`\n{why}"),
    );
}

/// One arithmetic from the first step to the last.
#[test]
fn a_run_keeps_its_arithmetic() {
    let dir = room();
    let line =
        "train -m nano.gguf -d chats.jsonl --chat-template chatml --seq-len 64 --device cpu --steps 1 -o run";
    let output = qvac(dir.path(), line);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let config: Value =
        serde_json::from_slice(&fs::read(dir.path().join("run/config.json")).unwrap()).unwrap();
    assert_eq!(config["exact"], Value::Null);
    refused(
        dir.path(),
        &format!("{line} --resume --exact"),
        "error: cannot train on `chats.jsonl`\n  \
           caused by: `run` belongs to another run: its `exact` is null, asked for is 1\n\n\
         hint: leave out `--exact`, or choose another `--out`\n",
    );
    let exact = line.replace("-o run", "-o exact");
    let output = qvac(dir.path(), &format!("{exact} --exact"));
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    refused(
        dir.path(),
        &format!("{exact} --resume"),
        "error: cannot train on `chats.jsonl`\n  \
           caused by: `exact` belongs to another run: its `exact` is 1, asked for is null\n\n\
         hint: pass `--exact`, or choose another `--out`\n",
    );
}

/// What libllama's scheduler would end the process over.
#[test]
fn models_without_exact_kernels_are_refused() {
    let dir = room();
    let file = GgufFile::open(dir.path().join("nano.gguf")).unwrap();
    let rewritten = |name: &str, architecture: Option<&str>, dtype: Option<Dtype>| {
        let mut w = GgufWriter::new();
        w.copy_metadata(&file);
        if let Some(architecture) = architecture {
            w.set("general.architecture", architecture);
        }
        let typed = |t: &qvac_ft::ggml::TensorInfo| match dtype {
            Some(dtype) if t.name == "blk.0.attn_q.weight" => dtype,
            _ => t.dtype,
        };
        for t in file.tensors() {
            w.add_tensor(&t.name, &t.ne[..t.n_dims], typed(t)).unwrap();
        }
        let mut stream = w.create(dir.path().join(name)).unwrap();
        for t in file.tensors() {
            let mut bytes = Vec::new();
            match typed(t) == t.dtype {
                true => bytes.extend_from_slice(file.bytes(t)),
                false => typed(t).quantize(&file.read_f32(t).unwrap(), t.ne[0] as usize, &mut bytes).unwrap(),
            }
            stream.write(&bytes).unwrap();
        }
        stream.finish().unwrap();
    };
    rewritten("mamba.gguf", Some("mamba"), None);
    let why =
        "  caused by: `mamba.gguf`: architecture `mamba` has no exact arithmetic (supported: llama, bitnet, \
               bitnet-b1.58)\n\nhint: leave out `--exact`\n";
    refused(
        dir.path(),
        "generate --exact -m mamba.gguf --device cpu -p hi --raw",
        &format!("error: cannot load `mamba.gguf`\n{why}"),
    );
    refused(
        dir.path(),
        "bench infer --exact -m mamba.gguf --device cpu",
        &format!("error: cannot measure inference of `mamba.gguf`\n{why}"),
    );

    rewritten("q3.gguf", None, Some(Dtype::Q3_K));
    refused(
        dir.path(),
        "generate --exact -m q3.gguf --device cpu -p hi --raw",
        "error: cannot load `q3.gguf`\n  \
           caused by: tensor `blk.0.attn_q.weight`: device `cpu` cannot compute MUL_MAT of q3_K x f32 in exact arithmetic\n\n\
         hint: leave out `--exact`, or convert the model to a type that it knows (docs/exactness.md)\n",
    );
}
