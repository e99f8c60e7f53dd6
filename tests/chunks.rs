//! Graphs that share a buffer of several parts: a device gives large ones in parts of at most a gigabyte, here of much less.

#![cfg(all(feature = "vulkan", not(target_vendor = "apple")))]

mod common;

use std::path::Path;

use common::device::vulkan;
use common::program::{command, stderr};
use serde_json::Value;

/// What the program says of a training step of four rows, with parts of at most `part` bytes.
fn run(device: &str, line: &str, part: Option<usize>) -> Value {
    const STEP: &str = "--shape nano --seq-len 128 --batch-tokens 512 --micro-batch 4 --json --device";
    let mut command = command(Path::new("."), &format!("{line} {STEP} {device}"));
    command.env_remove("GGML_VK_SUBALLOCATION_BLOCK_SIZE");
    command.envs(part.map(|bytes| ("GGML_VK_SUBALLOCATION_BLOCK_SIZE", bytes.to_string())));
    let output = command.output().expect("the program starts");
    let told = || panic!("`{line}`, parts of {part:?}: {}", stderr(&output));
    serde_json::from_slice(&output.stdout).unwrap_or_else(|_| told())
}

const PARTS: [usize; 2] = [1 << 20, 1 << 18];

#[test]
fn training_is_the_same_in_parts() {
    let Some(device) = vulkan() else { return };
    for recompute in ["on", "off"] {
        let line = format!("bench train --steps 3 --warmup 1 --parts 0 --recompute {recompute}");
        let losses = |part| {
            let test = &run(device.name(), &line, part)["tests"][0];
            [test["first_loss"].clone(), test["last_loss"].clone()]
        };
        let whole = losses(None);
        for part in PARTS {
            assert_eq!(losses(Some(part)), whole, "recompute {recompute}, parts of {part} bytes");
        }
    }
}

#[test]
fn parts_are_foreseen() {
    let Some(device) = vulkan() else { return };
    for part in PARTS {
        let plan = run(device.name(), "plan --calibrate 0 --measure", Some(part));
        assert_eq!(plan["peak_bytes"], plan["measured"]["allocated_bytes"], "parts of {part} bytes");
    }
}
