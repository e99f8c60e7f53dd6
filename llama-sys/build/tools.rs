//! Finds the programs that the build runs, and says what to install where one is missing.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{bail, Context, Result};

use crate::config::{user_folder, Config};

/// ggml-vulkan names types of this header version.
const VULKAN_HEADER_MIN: u32 = 275;

pub struct Tools {
    pub cmake: PathBuf,
    pub ninja: PathBuf,
    pub ccache: Option<PathBuf>,
    pub vulkan: Option<Vulkan>,
    /// What the tools say of themselves; part of the cache key.
    pub versions: String,
}

/// Where the pieces of the Vulkan toolchain lie.
pub struct Vulkan {
    pub include: PathBuf,
    pub glslc: PathBuf,
    pub glslc_version: String,
    pub spirv_headers: Option<PathBuf>,
}

impl Tools {
    pub fn find(config: &Config) -> Result<Self> {
        let cmake = match env::var_os("CMAKE") {
            Some(cmake) => PathBuf::from(cmake),
            None => on_path("cmake").with_context(|| missing("cmake", "cmake"))?,
        };
        let ninja = on_path("ninja").with_context(|| missing("ninja", "ninja-build"))?;
        let cxx = compiler("CXX", &["c++", "g++", "clang++"]);
        let cxx = cxx.with_context(|| missing("a C++ compiler", "g++"))?;
        let cc = compiler("CC", &["cc", "gcc", "clang"]).with_context(|| missing("a C compiler", "gcc"))?;
        clang_sys_check()?;
        let vulkan = if config.vulkan { Some(Vulkan::find()?) } else { None };
        let mut versions = String::new();
        for tool in [&cmake, &ninja, &cc, &cxx].into_iter().chain(vulkan.iter().map(|v| &v.glslc)) {
            versions.push_str(&format!("{}: {}\n", tool.display(), version(tool)?));
        }
        if let Some(vulkan) = &vulkan {
            versions.push_str(&format!("vulkan headers: {}\n", vulkan.include.display()));
        }
        Ok(Self { cmake, ninja, ccache: on_path("ccache"), vulkan, versions })
    }
}

impl Vulkan {
    /// The private toolchain of `scripts/bootstrap` first, then `VULKAN_SDK`, then the system's own.
    fn find() -> Result<Self> {
        let private = match env::var_os("QVAC_TOOLCHAIN") {
            Some(prefix) => PathBuf::from(prefix),
            None => user_folder("XDG_DATA_HOME", ".local/share")?.join("qvac-ft").join("toolchain"),
        };
        let sdk = env::var_os("VULKAN_SDK").map(PathBuf::from);
        let system = ["/usr", "/usr/local", "/opt/homebrew"].map(PathBuf::from);
        let prefixes: Vec<PathBuf> = [Some(private), sdk].into_iter().flatten().chain(system).collect();

        let mut seen = Vec::new();
        for prefix in &prefixes {
            let include = prefix.join("include");
            let Some(header) = header_version(&include) else { continue };
            if header < VULKAN_HEADER_MIN {
                seen.push(format!("`{}` has 1.3.{header}", include.display()));
                continue;
            }
            let own = prefix.join("bin").join(format!("glslc{}", env::consts::EXE_SUFFIX));
            let glslc = if own.is_file() { Some(own) } else { on_path("glslc") };
            let glslc = glslc.with_context(|| missing("glslc", "glslc"))?;
            let spirv_headers = prefix.join("share/cmake/SPIRV-Headers");
            let spirv_headers = spirv_headers.is_dir().then_some(spirv_headers);
            let glslc_version = version(&glslc)?;
            return Ok(Self { include, glslc, glslc_version, spirv_headers });
        }
        let found = if seen.is_empty() { "found none".to_string() } else { seen.join(", ") };
        bail!(
            "the `vulkan` feature needs Vulkan headers 1.3.{VULKAN_HEADER_MIN} or newer (package `libvulkan-dev`): \
             {found}\n\
             hint: run `scripts/bootstrap`, or build for the CPU alone with `--no-default-features`"
        )
    }
}

/// The patch number of 1.3 headers; later minor versions count as newer than any.
fn header_version(include: &Path) -> Option<u32> {
    let text = std::fs::read_to_string(include.join("vulkan/vulkan_core.h")).ok()?;
    let number = |name: &str| -> Option<u32> {
        let line = text.lines().find(|line| line.starts_with(&format!("#define {name} ")))?;
        line.split_whitespace().nth(2)?.parse().ok()
    };
    if text.contains("#define VK_API_VERSION_1_4") {
        return Some(u32::MAX);
    }
    number("VK_HEADER_VERSION")
}

/// bindgen loads libclang at run time and panics without it; this says what to do instead.
fn clang_sys_check() -> Result<()> {
    let loaded = std::panic::catch_unwind(bindgen::clang_version);
    match loaded {
        Ok(_) => Ok(()),
        Err(_) => bail!(missing("libclang", "libclang-dev")),
    }
}

fn missing(what: &str, package: &str) -> String {
    format!("{what} is missing (package `{package}`)\nhint: run `scripts/bootstrap`, which installs it")
}

fn compiler(var: &str, names: &[&str]) -> Option<PathBuf> {
    match env::var_os(var) {
        Some(named) if Path::new(&named).is_absolute() => Some(PathBuf::from(named)),
        Some(named) => on_path(&named.to_string_lossy()),
        None => names.iter().find_map(|name| on_path(name)),
    }
}

fn on_path(name: &str) -> Option<PathBuf> {
    let file = format!("{name}{}", env::consts::EXE_SUFFIX);
    let folders = env::var_os("PATH")?;
    env::split_paths(&folders).map(|folder| folder.join(&file)).find(|path| path.is_file())
}

fn version(tool: &Path) -> Result<String> {
    let output = Command::new(tool).arg("--version").output();
    let output = output.with_context(|| format!("cannot run `{}`", tool.display()))?;
    Ok(String::from_utf8_lossy(&output.stdout).lines().take(3).collect::<Vec<_>>().join("; "))
}
