//! Compiled pipelines are kept in the user's cache folder, and a bad file there costs time only.

#![cfg(all(feature = "vulkan", target_os = "linux"))]

mod common;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use assert_cmd::cargo::CommandCargoExt as _;
use common::device::vulkan;

/// Runs a kernel on `device` and gives the files of the cache below `caches`.
fn pipelines_after_a_run(caches: &Path, device: &str) -> Vec<PathBuf> {
    let output = Command::cargo_bin("qvac-ft")
        .expect("the program is built")
        .args("bench kernels --shape bitnet-nano --filter swiglu --tokens 32 --reps 1".split(' '))
        .args(["--device", device])
        .env("XDG_CACHE_HOME", caches)
        .output()
        .expect("the program starts");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let folder = fs::read_dir(caches.join("qvac-ft/pipelines"));
    folder.map_or_else(|_| Vec::new(), |all| all.map(|f| f.unwrap().path()).collect())
}

#[test]
fn pipelines_outlast_the_process() {
    let Some(device) = vulkan() else { return };
    let caches = tempfile::tempdir().unwrap();
    let files = pipelines_after_a_run(caches.path(), device.name());
    assert_eq!(files.len(), 1, "one file for the one device: {files:?}");
    let whole = fs::read(&files[0]).unwrap();

    // A file that is cut short is not given to the driver, and is made anew.
    fs::write(&files[0], &whole[..whole.len() - 1]).unwrap();
    assert_eq!(pipelines_after_a_run(caches.path(), device.name()), files);
    assert_eq!(fs::read(&files[0]).unwrap().len(), whole.len());
}

#[test]
fn a_cache_that_cannot_be_written_is_done_without() {
    let Some(device) = vulkan() else { return };
    let caches = tempfile::tempdir().unwrap();
    fs::write(caches.path().join("qvac-ft"), "a file where the folder should be").unwrap();
    assert_eq!(pipelines_after_a_run(caches.path(), device.name()), Vec::<PathBuf>::new());
}
