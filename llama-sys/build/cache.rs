//! Keeps what was built, under the hash of all that went into it, outside `target/`.
//!
//! ```text
//! <cache>/done/<key>/     finished: libraries, bindings, link line; appears whole (renamed) or not at all
//! <cache>/spv/<glslc>/    compiled shaders by content, one folder per compiler version
//! <cache>/tree/<place>/   staged source and CMake's build folder, kept so that a change rebuilds only what it touches
//! ```
//! A tree belongs to one workspace and feature set, so that two clones do not undo each other's incremental state.
//! Locks are advisory file locks: they end with the process that held them.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result};
use sha2::{Digest, Sha256};

use crate::config::Config;
use crate::stage;
use crate::tools::Tools;

/// Raised when the layout of a finished entry changes.
const LAYOUT: &str = "1";
/// Entries and trees that nothing has used for so long are removed.
const KEEP: Duration = Duration::from_secs(30 * 24 * 60 * 60);
/// This package's files that make a difference to the result.
const INPUTS: &[&str] = &["build.rs", "build", "CMakeLists.txt", "shim.h", "shim.cpp", "symbols.txt"];

/// The hash of everything that decides the result.
pub fn key(config: &Config, tools: &Tools) -> Result<String> {
    let mut hash = Sha256::new();
    let mut add = |name: &str, content: &[u8]| {
        hash.update((name.len() as u64).to_le_bytes());
        hash.update(name);
        hash.update((content.len() as u64).to_le_bytes());
        hash.update(content);
    };
    add("layout", LAYOUT.as_bytes());
    add("place", place(config, tools).as_bytes());
    let mut files = BTreeMap::new();
    for input in INPUTS {
        stage::collect(&config.package, Path::new(input), &mut files)?;
    }
    match &config.source_override {
        Some(source) => stage::collect(source, Path::new(""), &mut files)?,
        None => add("pin", &fs::read(config.vendor().join("Cargo.lock"))?),
    }
    stage::collect(&config.root, Path::new("patches/overlay"), &mut files)?;
    for patch in stage::series(&config.patches())? {
        let below = Path::new("patches").join(patch);
        files.insert(below.clone(), config.root.join(below));
    }
    for (name, path) in &files {
        let content = fs::read(path).with_context(|| format!("`{}`", path.display()))?;
        add(&name.to_string_lossy(), &content);
    }
    Ok(hex(hash))
}

/// What a build tree depends on beyond the sources: features, target, tools, and the CPU it is tuned to.
fn place(config: &Config, tools: &Tools) -> String {
    let mut text = format!(
        "{}\nvulkan={} metal={} portable={}\n{}",
        config.target, config.vulkan, config.metal, config.portable, tools.versions
    );
    for name in ["CFLAGS", "CXXFLAGS", "CMAKE_TOOLCHAIN_FILE", "MACOSX_DEPLOYMENT_TARGET"] {
        text.push_str(&format!("{name}={}\n", std::env::var(name).unwrap_or_default()));
    }
    if !config.portable {
        text.push_str(&host_cpu());
    }
    text
}

/// The CPU's name and features, where the system tells them.
fn host_cpu() -> String {
    let linux = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let wanted = ["model name", "flags", "Features", "CPU part"];
    let mut lines: Vec<&str> =
        linux.lines().filter(|line| wanted.iter().any(|name| line.starts_with(name))).collect();
    lines.sort_unstable();
    lines.dedup();
    if !lines.is_empty() {
        return lines.join("\n");
    }
    let apple = std::process::Command::new("sysctl").args(["-n", "machdep.cpu.brand_string"]).output();
    apple.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default()
}

/// The finished entry for `key`; `make` fills a folder when there is none yet.
pub fn get_or_make(config: &Config, key: &str, make: impl FnOnce(&Path) -> Result<()>) -> Result<PathBuf> {
    let done = config.cache.join("done");
    fs::create_dir_all(&done).with_context(|| format!("cannot create `{}`", done.display()))?;
    let entry = done.join(key);
    if !entry.is_dir() {
        let mut lock = lock_file(&done.join(format!("{key}.lock")))?;
        let _held = lock.write()?;
        // Another builder may have finished while this one waited.
        if !entry.is_dir() {
            let made = done.join(format!("{key}.{}.part", std::process::id()));
            let _ = fs::remove_dir_all(&made);
            fs::create_dir_all(&made)?;
            if let Err(error) = make(&made) {
                let _ = fs::remove_dir_all(&made);
                return Err(error);
            }
            fs::rename(&made, &entry).with_context(|| format!("cannot create `{}`", entry.display()))?;
        }
    }
    touch(&entry)?;
    prune(&done);
    prune(&config.cache.join("tree"));
    Ok(entry)
}

/// The folder that keeps compiled shaders.
pub fn shaders(config: &Config, glslc_version: &str) -> Result<PathBuf> {
    let mut hash = Sha256::new();
    hash.update(glslc_version);
    let folder = config.cache.join("spv").join(&hex(hash)[..16]);
    fs::create_dir_all(&folder).with_context(|| format!("cannot create `{}`", folder.display()))?;
    prune(&folder);
    Ok(folder)
}

/// A build tree, held by this process alone.
pub struct Tree {
    folder: PathBuf,
    // Closing the file ends the lock, so both live as long as the tree is used.
    _lock: Box<dyn std::any::Any>,
}

impl Tree {
    pub fn lock(config: &Config, tools: &Tools) -> Result<Self> {
        let mut hash = Sha256::new();
        hash.update(place(config, tools));
        hash.update(config.root.to_string_lossy().as_bytes());
        let folder = config.cache.join("tree").join(&hex(hash)[..16]);
        fs::create_dir_all(&folder).with_context(|| format!("cannot create `{}`", folder.display()))?;
        let lock: &'static mut fd_lock::RwLock<File> = Box::leak(Box::new(lock_file(&folder.join("lock"))?));
        let held = lock.write()?;
        touch(&folder)?;
        Ok(Self { folder, _lock: Box::new(held) })
    }

    pub fn source(&self) -> PathBuf {
        self.folder.join("source")
    }

    pub fn build(&self) -> PathBuf {
        self.folder.join("build")
    }

    pub fn log(&self) -> PathBuf {
        self.folder.join("build.log")
    }
}

fn lock_file(path: &Path) -> Result<fd_lock::RwLock<File>> {
    let file = File::options().create(true).truncate(false).write(true).open(path);
    Ok(fd_lock::RwLock::new(file.with_context(|| format!("cannot open `{}`", path.display()))?))
}

/// Marks a folder as used now.
fn touch(folder: &Path) -> Result<()> {
    fs::write(folder.join("used"), b"").with_context(|| format!("cannot write to `{}`", folder.display()))
}

/// Removes what nothing has used for `KEEP`. Failing to is harmless: the next build tries again.
fn prune(folder: &Path) {
    let Ok(entries) = fs::read_dir(folder) else { return };
    for entry in entries.flatten() {
        let path = entry.path();
        let mark = if path.is_dir() { path.join("used") } else { path.clone() };
        let used = fs::metadata(&mark).or_else(|_| fs::metadata(&path)).and_then(|meta| meta.modified());
        let old = used.is_ok_and(|at| SystemTime::now().duration_since(at).is_ok_and(|age| age > KEEP));
        if old && path.is_dir() {
            let _ = fs::remove_dir_all(&path);
        } else if old {
            let _ = fs::remove_file(&path);
        }
    }
}

fn hex(hash: Sha256) -> String {
    hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}
