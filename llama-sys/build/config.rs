//! What one build is asked to make: features, target and folders, read once from cargo's environment.

use std::env;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// Environment variables that change what is built, or where from.
const INPUT_VARS: &[&str] = &[
    "QVAC_LLAMA_CPP_DIR",
    "QVAC_NATIVE_CACHE",
    "QVAC_TOOLCHAIN",
    "VULKAN_SDK",
    "CMAKE",
    "CC",
    "CXX",
    "CFLAGS",
    "CXXFLAGS",
    "CMAKE_TOOLCHAIN_FILE",
    "LIBCLANG_PATH",
    "MACOSX_DEPLOYMENT_TARGET",
];

pub struct Config {
    /// The workspace's root: `vendor/` and `patches/` lie there.
    pub root: PathBuf,
    /// This package's folder.
    pub package: PathBuf,
    pub out_dir: PathBuf,
    pub target: String,
    pub target_os: String,
    pub vulkan: bool,
    pub metal: bool,
    pub portable: bool,
    /// llama.cpp's source instead of the pinned one.
    pub source_override: Option<PathBuf>,
    /// Holds finished libraries and build trees; outside `target/`, so it outlives `cargo clean` and clones.
    pub cache: PathBuf,
    pub jobs: String,
}

impl Config {
    pub fn from_env() -> Result<Self> {
        let package = PathBuf::from(var("CARGO_MANIFEST_DIR")?);
        let root = package.parent().context("`llama-sys` has no parent folder")?.to_path_buf();
        let target_os = var("CARGO_CFG_TARGET_OS")?;
        let feature = |name: &str| env::var_os(format!("CARGO_FEATURE_{name}")).is_some();
        let apple = matches!(target_os.as_str(), "macos" | "ios");
        Ok(Self {
            vulkan: feature("VULKAN") && matches!(target_os.as_str(), "linux" | "windows" | "android"),
            metal: feature("METAL") && apple,
            portable: feature("PORTABLE"),
            out_dir: PathBuf::from(var("OUT_DIR")?),
            target: var("TARGET")?,
            source_override: env::var_os("QVAC_LLAMA_CPP_DIR").map(PathBuf::from),
            cache: cache_folder()?,
            jobs: var("NUM_JOBS")?,
            root,
            package,
            target_os,
        })
    }

    pub fn vendor(&self) -> PathBuf {
        self.root.join("vendor")
    }

    pub fn patches(&self) -> PathBuf {
        self.root.join("patches")
    }

    /// Tells cargo when to run this script again.
    pub fn announce_inputs(&self) {
        let watched = ["build.rs", "build", "CMakeLists.txt", "shim.h", "shim.cpp", "symbols.txt"];
        for path in watched.iter().map(|name| self.package.join(name)) {
            println!("cargo::rerun-if-changed={}", path.display());
        }
        println!("cargo::rerun-if-changed={}", self.patches().display());
        for name in ["Cargo.toml", "Cargo.lock"] {
            println!("cargo::rerun-if-changed={}", self.vendor().join(name).display());
        }
        if let Some(source) = &self.source_override {
            println!("cargo::rerun-if-changed={}", source.display());
        }
        for name in INPUT_VARS {
            println!("cargo::rerun-if-env-changed={name}");
        }
    }
}

pub fn var(name: &str) -> Result<String> {
    env::var(name).with_context(|| format!("environment variable `{name}`"))
}

/// `$name` as a folder, or `$HOME/<below>`.
pub fn user_folder(name: &str, below: &str) -> Result<PathBuf> {
    if let Some(folder) = env::var_os(name).filter(|value| !value.is_empty()) {
        return Ok(PathBuf::from(folder));
    }
    let home = env::var_os("HOME").or_else(|| env::var_os("USERPROFILE")).context("`HOME` is not set")?;
    Ok(Path::new(&home).join(below))
}

fn cache_folder() -> Result<PathBuf> {
    match env::var_os("QVAC_NATIVE_CACHE").filter(|value| !value.is_empty()) {
        Some(folder) => Ok(PathBuf::from(folder)),
        None => Ok(user_folder("XDG_CACHE_HOME", ".cache")?.join("qvac-ft").join("native")),
    }
}
