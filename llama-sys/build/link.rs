//! Writes down how to link what was built, and tells cargo.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

use crate::bind;
use crate::config::Config;

/// The link line's file name: one `kind=name` a line.
const FILE: &str = "link";

/// Static libraries, users before what they use.
const LIBRARIES: &[&str] = &["llama", "ggml", "ggml-vulkan", "ggml-metal", "ggml-cpu", "ggml-base"];

/// Writes the link line for the libraries in `made`.
pub fn describe(config: &Config, made: &Path) -> Result<()> {
    let mut lines = vec!["static=qvac-shim".to_string()];
    let built = |name: &str| made.join("lib").join(format!("lib{name}.a")).is_file();
    for name in LIBRARIES {
        if config.portable && matches!(*name, "llama" | "ggml" | "ggml-base") {
            lines.push(format!("dylib={name}"));
        } else if !config.portable && built(name) {
            lines.push(format!("static={name}"));
        }
    }
    match config.target_os.as_str() {
        "linux" => lines.extend(["dylib=stdc++", "dylib=m", "dylib=dl", "dylib=pthread"].map(String::from)),
        "android" => lines.extend(["dylib=c++_shared", "dylib=m", "dylib=dl"].map(String::from)),
        "macos" | "ios" => lines.push("dylib=c++".into()),
        _ => {}
    }
    if config.vulkan && !config.portable {
        lines.push(if config.target_os == "windows" { "dylib=vulkan-1" } else { "dylib=vulkan" }.into());
    }
    if config.metal {
        lines.extend(["framework=Foundation", "framework=Metal", "framework=MetalKit"].map(String::from));
    }
    fs::write(made.join(FILE), lines.join("\n")).context("cannot write the link line")
}

/// Hands a finished entry to cargo.
pub fn announce(config: &Config, entry: &Path) -> Result<()> {
    fs::copy(entry.join(bind::FILE), config.out_dir.join(bind::FILE)).context("cannot copy the bindings")?;
    println!("cargo::rustc-link-search=native={}", entry.join("lib").display());
    if config.portable {
        println!("cargo::rustc-link-search=native={}", entry.join("bin").display());
        println!("cargo::metadata=bin={}", entry.join("bin").display());
    }
    let line = entry.join(FILE);
    for library in fs::read_to_string(&line)?.lines() {
        println!("cargo::rustc-link-lib={library}");
    }
    // Makes cargo come back here when the cache was emptied.
    println!("cargo::rerun-if-changed={}", line.display());
    Ok(())
}
