//! Predictions of memory against what engines really allocate, and `plan` and `train --memory` from outside.

mod common;

use std::path::Path;
use std::process::{Command, Output, Stdio};

use assert_cmd::cargo::CommandCargoExt as _;
use common::device::{cpu, vulkan};
use common::nano_model;
use qvac_ft::ggml::{Backend, Context, Device, Dtype, Executor, GgufFile};
use qvac_ft::model::{LoraConfig, Model, Target};
use qvac_ft::plan::{Planner, Request};
use qvac_ft::synth;
use qvac_ft::train::{AdamW, Engine, EngineConfig, Recompute, TrainingConfig};
use serde_json::Value;

/// A table of a model, without values.
fn table(dir: &Path, shape: &str, dtype: Dtype) -> GgufFile {
    let path = dir.join(format!("{shape}-{dtype}.gguf"));
    let shape = synth::find_shape(shape).unwrap();
    synth::write_empty(&synth::Config::new(*shape, dtype, 1), &path).unwrap();
    GgufFile::open(&path).unwrap()
}

fn config(seq_len: usize, n_rows: usize, recompute: Option<Recompute>, rank: usize) -> EngineConfig {
    let lora = LoraConfig { rank, alpha: 16.0, targets: Target::ALL.to_vec() };
    let training =
        recompute.map(|recompute| TrainingConfig { recompute, adamw: AdamW::default(), backward_limbs: 2 });
    EngineConfig { seq_len, n_rows, lora: Some(lora), training }
}

fn predictions_hold(device: Option<Device>) {
    let Some(device) = device else { return };
    let dir = tempfile::tempdir().unwrap();
    let backend = Backend::new(&device, 1).unwrap();
    let (on, off) = (Some(Recompute::On), Some(Recompute::Off));
    let mut checked = 0;
    for (shape, dtype) in [("nano", Dtype::TQ2_0), ("nano", Dtype::F16), ("tiny", Dtype::TQ1_0)] {
        let file = table(dir.path(), shape, dtype);
        let planner = Planner::new(&file, &backend).unwrap();
        let real = Model::shallow(&file, &backend, usize::MAX, &|t| t.zero()).unwrap();
        for config in [
            config(64, 1, on, 4),
            config(512, 1, on, 8),
            config(128, 5, on, 8),
            config(128, 3, off, 16),
            config(256, 2, None, 4),
        ] {
            let predicted = planner.memory(&config).unwrap();
            let engine = Engine::new(&real, Executor::new(&backend, None), config.clone()).unwrap();
            assert_eq!(predicted, *engine.memory(), "{shape} {dtype} {config:?}");
            assert_eq!(predicted.total(), engine.device_bytes());
            assert!(predicted.block > predicted.attention && predicted.attention > 0, "{predicted:?}");
            assert!(predicted.compute >= predicted.head.max(predicted.block));
            checked += 1;
        }
    }
    assert_eq!(checked, 15);
}

#[test]
fn predictions_are_what_the_cpu_allocates() {
    predictions_hold(Some(cpu()));
}

#[test]
fn predictions_are_what_vulkan_allocates() {
    predictions_hold(vulkan());
}

#[test]
fn what_has_addresses_only_cannot_be_read_or_computed() {
    let backend = Backend::new(&cpu(), 1).unwrap().sizing();
    let ctx = Context::new(4, 64).unwrap();
    let x = ctx.new_tensor("x", Dtype::F32, &[1 << 40]).unwrap();
    assert_eq!(backend.alloc(&ctx, "x").unwrap(), 4 << 40);
    x.zero().unwrap();
    let small = ctx.new_tensor("small", Dtype::F32, &[4]).unwrap();
    small.place_in(&x, 4096).unwrap();
    small.upload(&[1f32; 4]).unwrap();
    assert!(small.download::<f32>().is_err() && small.download_bytes().is_err());
}

#[test]
fn a_run_larger_than_the_memory_is_never_built() {
    let dir = tempfile::tempdir().unwrap();
    let file = table(dir.path(), "bitnet-13b", Dtype::F16);
    let planner = Planner::new(&file, &Backend::new(&cpu(), 1).unwrap()).unwrap();
    let request = Request {
        seq_len: 2048,
        rows_per_step: 60000,
        n_rows: Some(60000),
        lora: config(1, 1, None, 8).lora,
        training: config(1, 1, Some(Recompute::On), 8).training,
        any_recompute: false,
    };
    assert!(planner.least(&request).unwrap().memory.total() > 1 << 40);
}

fn qvac(dir: &Path, line: &str) -> Output {
    let mut command = Command::cargo_bin("qvac-ft").expect("the program is built");
    command.args(line.split_whitespace()).current_dir(dir).stdin(Stdio::null()).env("TMPDIR", dir);
    command.env_remove("RUST_BACKTRACE").output().expect("the program starts")
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[track_caller]
fn json(output: &Output, code: i32) -> Value {
    assert_eq!(output.status.code(), Some(code), "{}", stderr(output));
    serde_json::from_slice(&output.stdout).expect("one JSON object")
}

const PLAN: &str = "plan --device cpu --threads 1 --json --seq-len 64";

#[test]
fn a_plan_says_what_it_takes_and_how_long() {
    let dir = tempfile::tempdir().unwrap();
    let line = format!("{PLAN} --shape nano --batch-tokens 256 --micro-batch 4 --calibrate 0.1 --measure");
    let plan = json(&qvac(dir.path(), &line), 0);
    assert_eq!((&plan["fits"], &plan["micro_batch_rows"]), (&true.into(), &4.into()));
    assert_eq!((&plan["recompute"], &plan["rank"]), (&"on".into(), &8.into()));
    let part = |name: &str| plan["memory"][name].as_u64().unwrap_or_else(|| panic!("`{name}` of {plan}"));
    let whole: u64 = ["weights", "adapter", "gradients_and_moments", "boundaries", "inputs", "compute"]
        .iter()
        .map(|name| part(name))
        .sum();
    assert_eq!(plan["peak_bytes"], whole);
    assert_eq!(plan["measured"]["allocated_bytes"], whole);
    assert_eq!(part("gradients_and_moments"), 3 * part("adapter"));
    assert!(part("attention") < part("block") && part("head") > 0);
    assert_eq!((&plan["epoch"]["rows"], &plan["epoch"]["steps"]), (&1000.into(), &250.into()));
    assert!(plan["epoch"]["seconds"].as_f64().is_some_and(|s| s > 0.0));
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "nothing is left behind");
}

#[test]
fn a_plan_that_does_not_fit_exits_with_1_and_says_what_would() {
    let dir = tempfile::tempdir().unwrap();
    let line = format!("{PLAN} --shape nano --batch-tokens 1024 --micro-batch 16 --calibrate 0");
    let whole = json(&qvac(dir.path(), &line), 0)["peak_bytes"].as_u64().unwrap();
    let plan = json(&qvac(dir.path(), &format!("{line} --memory {}", whole - 1)), 1);
    assert_eq!(plan["fits"], false);
    let fit = &plan["would_fit"][0];
    assert!(fit["micro_batch_rows"].as_u64().is_some_and(|n| n < 16), "{plan}");
    // And so it does.
    let smaller = line.replace("--micro-batch 16", &format!("--micro-batch {}", fit["micro_batch_rows"]));
    json(&qvac(dir.path(), &format!("{smaller} --memory {}", whole - 1)), 0);
    let text = qvac(dir.path(), &format!("{} --memory {}", line.replace("--json", ""), whole - 1));
    let text = String::from_utf8_lossy(&text.stdout).into_owned();
    assert!(text.contains("does not fit") && text.contains("pass `--micro-batch"), "{text}");

    let output = qvac(dir.path(), &format!("{line} --memory 6apples"));
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains("a size such as `6GiB`"), "{}", stderr(&output));
}

#[test]
fn train_stays_within_the_memory_it_is_given() {
    let dir = tempfile::tempdir().unwrap();
    nano_model(dir.path());
    let chat = |i: usize| {
        format!(
            r#"{{"messages":[{{"role":"user","content":"Is {i}?"}},{{"role":"assistant","content":"It is."}}]}}"#
        )
    };
    std::fs::write(dir.path().join("chats.jsonl"), (0..40).map(chat).collect::<Vec<_>>().join("\n")).unwrap();
    let common = "-m nano.gguf --device cpu --threads 1 --chat-template chatml --seq-len 64";
    let whole = json(&qvac(dir.path(), &format!("plan {common} -d chats.jsonl --calibrate 0 --json")), 0);
    let whole = whole["peak_bytes"].as_u64().unwrap();
    let train = format!("train {common} -d chats.jsonl --batch-tokens 256 --json");

    let output = qvac(dir.path(), &format!("{train} -o no --steps 2 --memory {}", whole - 1));
    assert_eq!(output.status.code(), Some(2));
    assert!(
        stderr(&output).contains("may be used") && stderr(&output).contains("hint: pass `--"),
        "{}",
        stderr(&output)
    );

    let report = json(&qvac(dir.path(), &format!("{train} -o run --steps 2 --memory {whole}")), 0);
    assert!(report["peak_device_bytes"].as_u64().is_some_and(|n| n <= whole), "{report}");
    let stored = |key: &str| {
        let text = std::fs::read_to_string(dir.path().join("run/config.json")).unwrap();
        serde_json::from_str::<Value>(&text).unwrap()["how"][key].clone()
    };
    assert_eq!((stored("micro_batch_rows"), stored("recompute")), (1.into(), true.into()));

    // With two rows of their own, and recompute left to the program: gone on with, both stay.
    let line = format!("{train} -o two --steps 2 --micro-batch 2 --recompute auto");
    json(&qvac(dir.path(), &line), 0);
    let again = qvac(dir.path(), &format!("{train} -o two --steps 2 --resume"));
    json(&again, 0);
    let said = stderr(&again);
    assert!(said.contains("2 rows at a time, recompute off"), "{said}");
}
