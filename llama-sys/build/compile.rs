//! Runs CMake over the staged source and gathers the libraries.

use std::ffi::OsString;
use std::fs::{self, File};
use std::path::Path;
use std::process::Command;

use anyhow::{bail, Context, Result};

use crate::cache::{self, Tree};
use crate::config::Config;
use crate::tools::{Tools, Vulkan};

/// Lines of CMake's output that an error shows.
const TAIL: usize = 40;

/// Upstream's probes for what the shaders need of glslc. Where one fails CMake would go on and leave kernels out.
const PROBES: &[&str] = &["coopmat", "integer_dot"];

/// Builds into `tree` and copies what the linker and the program need to `made`.
pub fn compile(config: &Config, tools: &Tools, tree: &Tree, made: &Path) -> Result<()> {
    if let Some(vulkan) = &tools.vulkan {
        probe(vulkan, &tree.source().join("ggml/src/ggml-vulkan/vulkan-shaders/feature-tests"))?;
    }
    let log = File::create(tree.log())?;
    let mut configure = Command::new(&tools.cmake);
    configure.arg("-S").arg(&config.package).arg("-B").arg(tree.build()).args(["-G", "Ninja"]);
    configure.args(definitions(config, tools, tree));
    run(configure, &log, tree)?;
    let mut build = Command::new(&tools.cmake);
    build.arg("--build").arg(tree.build()).args(["--target", "qvac", "-j", &config.jobs]);
    // Without it the same file compiled in two trees counts as two to ccache.
    build.env("CCACHE_BASEDIR", tree.source().parent().context("tree has no parent")?);
    build.env("CCACHE_NOHASHDIR", "1");
    if let Some(vulkan) = &tools.vulkan {
        // Read by `vulkan-shaders/spv-cache.h`.
        build.env("QVAC_SPV_CACHE", cache::shaders(config, &vulkan.glslc_version)?);
    }
    run(build, &log, tree)?;

    gather(&tree.build().join("lib"), &made.join("lib"), &[".a", ".lib"])?;
    if config.portable {
        gather(&tree.build().join("bin"), &made.join("bin"), &[".so", ".dylib", ".dll"])?;
    }
    Ok(())
}

fn probe(vulkan: &Vulkan, folder: &Path) -> Result<()> {
    for name in PROBES {
        let shader = folder.join(format!("{name}.comp"));
        let output = Command::new(&vulkan.glslc)
            .args(["-o", "-", "-fshader-stage=compute", "--target-env=vulkan1.3"])
            .arg(&shader)
            .output()
            .with_context(|| format!("cannot run `{}`", vulkan.glslc.display()))?;
        if !output.status.success() {
            bail!(
                "`{}` is too old for ggml's shaders (package `glslc`): {}\n\
                 hint: run `scripts/bootstrap`, which fetches a newer one",
                vulkan.glslc.display(),
                String::from_utf8_lossy(&output.stderr).trim()
            );
        }
    }
    Ok(())
}

fn definitions(config: &Config, tools: &Tools, tree: &Tree) -> Vec<OsString> {
    let mut all: Vec<OsString> = Vec::new();
    let mut define = |name: &str, value: &dyn AsRef<std::ffi::OsStr>| {
        let mut arg = OsString::from(format!("-D{name}="));
        arg.push(value);
        all.push(arg);
    };
    let on = |yes: bool| if yes { "ON" } else { "OFF" };

    define("LLAMA_CPP_DIR", &tree.source());
    define("CMAKE_MAKE_PROGRAM", &tools.ninja);
    define("CMAKE_BUILD_TYPE", &"Release");
    define("CMAKE_POSITION_INDEPENDENT_CODE", &"ON");
    // Exceptions of the backends pass through ggml's C files on their way to the shim.
    define("CMAKE_C_FLAGS_INIT", &"-fexceptions");
    if let Some(ccache) = &tools.ccache {
        define("CMAKE_C_COMPILER_LAUNCHER", ccache);
        define("CMAKE_CXX_COMPILER_LAUNCHER", ccache);
    }
    define("BUILD_SHARED_LIBS", &on(config.portable));
    if config.portable {
        // The libraries lie side by side, beside the program, under one name each.
        define("CMAKE_PLATFORM_NO_VERSIONED_SONAME", &"ON");
        define("CMAKE_BUILD_WITH_INSTALL_RPATH", &"ON");
        define("CMAKE_INSTALL_RPATH", &if config.target_os == "macos" { "@loader_path" } else { "$ORIGIN" });
    }
    define("GGML_BACKEND_DL", &on(config.portable));
    define("GGML_CPU_ALL_VARIANTS", &on(config.portable));
    define("GGML_NATIVE", &on(!config.portable));
    // ggml's own thread pool does as well, and a program without libgomp travels further.
    define("GGML_OPENMP", &"OFF");
    define("GGML_CCACHE", &"OFF");
    define("GGML_BLAS", &"OFF");
    define("GGML_ACCELERATE", &"OFF");
    define("GGML_METAL", &on(config.metal));
    define("GGML_METAL_EMBED_LIBRARY", &on(config.metal));
    define("GGML_VULKAN", &on(config.vulkan));
    define("LLAMA_ALL_WARNINGS", &"OFF");
    for part in ["COMMON", "TESTS", "TOOLS", "EXAMPLES", "SERVER", "APP"] {
        define(&format!("LLAMA_BUILD_{part}"), &"OFF");
    }
    if let Some(vulkan) = &tools.vulkan {
        define("Vulkan_INCLUDE_DIR", &vulkan.include);
        define("Vulkan_GLSLC_EXECUTABLE", &vulkan.glslc);
        if let Some(folder) = &vulkan.spirv_headers {
            define("SPIRV-Headers_DIR", folder);
        }
    }
    if config.target_os == "macos" {
        let arch = if config.target.starts_with("aarch64") { "arm64" } else { "x86_64" };
        define("CMAKE_OSX_ARCHITECTURES", &arch);
    }
    all
}

/// Runs one step with its output in the tree's log; failure shows the log's end.
fn run(mut command: Command, log: &File, tree: &Tree) -> Result<()> {
    let shown = format!("{command:?}");
    let status = command
        .stdout(log.try_clone()?)
        .stderr(log.try_clone()?)
        .status()
        .with_context(|| format!("cannot run {shown}"))?;
    if status.success() {
        return Ok(());
    }
    let text = fs::read(tree.log())?;
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<&str> = text.lines().collect();
    // Ninja prints a failed step when it fails and then finishes the ones under way.
    let failed = lines.iter().rposition(|line| line.starts_with("FAILED:")).unwrap_or(lines.len());
    let start = failed.min(lines.len().saturating_sub(TAIL));
    let tail = lines[start..].iter().take(2 * TAIL).copied().collect::<Vec<_>>().join("\n");
    bail!("building llama.cpp failed ({status}); all of it is in `{}`\n{tail}", tree.log().display())
}

fn gather(from: &Path, to: &Path, suffixes: &[&str]) -> Result<()> {
    fs::create_dir_all(to)?;
    if !from.is_dir() {
        return Ok(());
    }
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        // Versioned names too: libggml.so.0 is what the loader asks for.
        let wanted =
            suffixes.iter().any(|suffix| name.ends_with(suffix) || name.contains(&format!("{suffix}.")));
        if wanted {
            fs::copy(entry.path(), to.join(&name)).with_context(|| format!("cannot copy `{name}`"))?;
        }
    }
    Ok(())
}
