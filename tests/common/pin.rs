//! Where the pinned llama.cpp lies, as cargo unpacked it.

use std::path::{Path, PathBuf};
use std::process::Command;

pub fn llama_cpp() -> PathBuf {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        .args(["metadata", "--locked", "--format-version=1", "--manifest-path"])
        .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("vendor/Cargo.toml"))
        .output()
        .expect("cargo runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let packages = metadata["packages"].as_array().expect("packages");
    let pinned = packages.iter().find(|package| package["name"] == "llama-cpp-sys-2").expect("the pin");
    let manifest = Path::new(pinned["manifest_path"].as_str().expect("a path"));
    manifest.with_file_name("llama.cpp")
}
