//! Declares the C API in Rust: bindgen over `shim.h`, limited to `symbols.txt`.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

use crate::config::Config;

/// The generated file's name.
pub const FILE: &str = "bindings.rs";

pub fn bind(config: &Config, source: &Path, out: &Path) -> Result<()> {
    let symbols = fs::read_to_string(config.package.join("symbols.txt"))?;
    let mut builder = bindgen::Builder::default()
        .header(config.package.join("shim.h").to_string_lossy())
        .clang_arg(format!("-I{}", source.join("include").display()))
        .clang_arg(format!("-I{}", source.join("ggml/include").display()))
        .prepend_enum_name(false)
        .derive_default(true)
        .derive_debug(true)
        .generate_comments(false);
    if config.vulkan {
        builder = builder.clang_arg("-DQVAC_VULKAN");
    }
    for line in symbols.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')) {
        builder = match line.strip_prefix('!') {
            Some(name) => builder.blocklist_item(name),
            None => builder.allowlist_item(line),
        };
    }
    let bindings = builder.generate().context("cannot bind `shim.h`")?;
    bindings.write_to_file(out).with_context(|| format!("cannot write `{}`", out.display()))
}
