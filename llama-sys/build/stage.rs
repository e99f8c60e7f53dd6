//! Lays out the source to build: the pinned llama.cpp, our overlay's new files, our patches.
//!
//! Only files whose content changed are written, so that CMake's incremental build sees nothing else.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{bail, ensure, Context, Result};

use crate::config::Config;
use crate::patch;

/// What is taken of llama.cpp: its two libraries and what its CMake files read at configure time.
const PARTS: &[&str] = &["CMakeLists.txt", "LICENSE", "cmake", "ggml", "include", "src", "vendor"];
/// Backends that are never built, and big.
const SKIPPED: &[&str] = &[
    "ggml/src/ggml-cann",
    "ggml/src/ggml-cuda",
    "ggml/src/ggml-et",
    "ggml/src/ggml-hexagon",
    "ggml/src/ggml-hip",
    "ggml/src/ggml-musa",
    "ggml/src/ggml-opencl",
    "ggml/src/ggml-openvino",
    "ggml/src/ggml-rpc",
    "ggml/src/ggml-sycl",
    "ggml/src/ggml-virtgpu",
    "ggml/src/ggml-webgpu",
    "ggml/src/ggml-zdnn",
    "ggml/src/ggml-zendnn",
];
const PACKAGE: &str = "llama-cpp-sys-2";

/// Where the pristine source lies: `QVAC_LLAMA_CPP_DIR`, or the package that `vendor/Cargo.lock` pins.
pub fn locate(config: &Config) -> Result<PathBuf> {
    let source = match &config.source_override {
        Some(source) => source.clone(),
        None => pinned(config)?,
    };
    ensure!(source.join("include/llama.h").is_file(), "`{}` holds no llama.cpp", source.display());
    Ok(source)
}

fn pinned(config: &Config) -> Result<PathBuf> {
    let manifest = config.vendor().join("Cargo.toml");
    let output = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
        .args(["metadata", "--locked", "--format-version=1", "--filter-platform", &config.target])
        .arg("--manifest-path")
        .arg(&manifest)
        // The outer build's wrapper and flags have no meaning for a package that is never compiled.
        .env_remove("RUSTC_WORKSPACE_WRAPPER")
        .env_remove("CARGO_ENCODED_RUSTFLAGS")
        .output()
        .context("cannot run `cargo metadata`")?;
    if !output.status.success() {
        bail!("cannot fetch `{PACKAGE}`: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout).context("`cargo metadata`")?;
    let packages = metadata["packages"].as_array().context("`cargo metadata` lists no packages")?;
    let found = packages.iter().find(|package| package["name"] == PACKAGE);
    let manifest = found.and_then(|package| package["manifest_path"].as_str());
    let manifest = manifest.with_context(|| format!("`vendor/Cargo.lock` does not pin `{PACKAGE}`"))?;
    Ok(Path::new(manifest).with_file_name("llama.cpp"))
}

/// Makes `staged` hold llama.cpp with our files and patches, touching only what differs.
pub fn stage(config: &Config, source: &Path, staged: &Path) -> Result<()> {
    let mut files = BTreeMap::new();
    for part in PARTS {
        collect(source, Path::new(part), &mut files)?;
    }
    let overlay = config.patches().join("overlay");
    let mut ours = BTreeMap::new();
    collect(&overlay, Path::new(""), &mut ours)?;
    if let Some(path) = ours.keys().find(|path| files.contains_key(*path)) {
        bail!(
            "`patches/overlay/{}` would replace a file of llama.cpp: change it with a patch",
            path.display()
        );
    }
    files.append(&mut ours);

    let mut patched = BTreeMap::new();
    for name in series(&config.patches())? {
        let text = fs::read_to_string(config.patches().join(&name))?;
        for change in patch::parse(&text).with_context(|| format!("`patches/{name}`"))? {
            let path = PathBuf::from(&change.path);
            let before = match patched.remove(&path) {
                Some(text) => text,
                None => {
                    let from = files.get(&path);
                    let from =
                        from.with_context(|| format!("`patches/{name}`: no file `{}`", change.path))?;
                    fs::read_to_string(from)?
                }
            };
            let after = change.apply(&before);
            let after = after.with_context(|| format!("`patches/{name}`: `{}`", change.path))?;
            patched.insert(path, after);
        }
    }

    for (path, from) in &files {
        let to = staged.join(path);
        match patched.get(path) {
            Some(text) => write_if_changed(&to, text.as_bytes())?,
            None => write_if_changed(&to, &fs::read(from)?)?,
        }
    }
    let mut present = BTreeMap::new();
    collect(staged, Path::new(""), &mut present)?;
    for (path, at) in present {
        if !files.contains_key(&path) {
            fs::remove_file(at)?;
        }
    }
    Ok(())
}

/// The patches' file names in the order they apply.
pub fn series(patches: &Path) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(patches).with_context(|| format!("`{}`", patches.display()))? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if name.ends_with(".patch") {
            names.push(name);
        }
    }
    names.sort();
    Ok(names)
}

/// Every file at or below `root/below`, keyed by its path below `root`.
pub fn collect(root: &Path, below: &Path, files: &mut BTreeMap<PathBuf, PathBuf>) -> Result<()> {
    let at = root.join(below);
    if at.is_file() {
        files.insert(below.to_path_buf(), at);
        return Ok(());
    }
    if SKIPPED.iter().any(|skipped| below == Path::new(skipped)) || !at.exists() {
        return Ok(());
    }
    for entry in fs::read_dir(&at).with_context(|| format!("`{}`", at.display()))? {
        collect(root, &below.join(entry?.file_name()), files)?;
    }
    Ok(())
}

pub fn write_if_changed(path: &Path, content: &[u8]) -> Result<()> {
    if fs::read(path).is_ok_and(|old| old == content) {
        return Ok(());
    }
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    fs::write(path, content).with_context(|| format!("cannot write `{}`", path.display()))
}
