//! Tells the program what it was built from, and lays ggml's shared libraries beside it where there are some.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::{env, fs};

use sha2::{Digest as _, Sha256};

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    provenance();
    libraries();
}

/// `QVAC_LLAMA_CPP` and `QVAC_PATCHES`: the pinned source, and a hash of what is laid over it. Every figure that the program
/// writes carries them.
fn provenance() {
    println!("cargo::rerun-if-changed=vendor/Cargo.lock");
    println!("cargo::rerun-if-changed=patches");
    println!("cargo::rerun-if-env-changed=QVAC_LLAMA_CPP_DIR");
    let lock = fs::read_to_string("vendor/Cargo.lock").expect("vendor/Cargo.lock");
    let mut packages = lock.split("[[package]]").filter(|p| p.contains("name = \"llama-cpp-sys-2\""));
    let version = packages.next().and_then(|p| p.split("version = \"").nth(1)?.split('"').next());
    let version = version.expect("vendor/Cargo.lock pins llama-cpp-sys-2");
    match env::var_os("QVAC_LLAMA_CPP_DIR") {
        Some(folder) => println!("cargo::rustc-env=QVAC_LLAMA_CPP={}", Path::new(&folder).display()),
        None => println!("cargo::rustc-env=QVAC_LLAMA_CPP=llama-cpp-sys-2 {version}"),
    }
    println!("cargo::rustc-env=QVAC_PATCHES={}", patches());
}

/// SHA-256 over names and contents of the patches and the overlay's files, in order.
fn patches() -> String {
    let mut files = Vec::new();
    collect(Path::new("patches"), &mut files);
    files.sort();
    let mut hash = Sha256::new();
    for path in files {
        // One name on every system.
        let name = path.components().map(|c| c.as_os_str().to_string_lossy()).collect::<Vec<_>>().join("/");
        let content = fs::read(&path).expect("a patch");
        for part in [name.as_bytes(), content.as_slice()] {
            hash.update((part.len() as u64).to_le_bytes());
            hash.update(part);
        }
    }
    hash.finalize().iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

fn collect(folder: &Path, files: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).expect("the folder of patches") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            collect(&path, files);
        } else if path.extension().is_none_or(|e| e != "md") {
            files.push(path);
        }
    }
}

/// `--features portable`: the libraries travel with the program, so they are laid beside it and found there.
fn libraries() {
    // `llama-sys` names the folder of its shared libraries; a static build has none.
    let Some(libraries) = env::var_os("DEP_LLAMA_BIN") else { return };
    let out_dir = env::var_os("OUT_DIR").expect("cargo sets OUT_DIR");
    // <target>/<profile>/build/<package>/out
    let profile = Path::new(&out_dir).ancestors().nth(3).expect("OUT_DIR lies in a profile's folder");
    // Tests run from `deps/`.
    for folder in [profile.to_path_buf(), profile.join("deps")] {
        for entry in fs::read_dir(&libraries).expect("the libraries' folder") {
            let path = entry.expect("a library").path();
            fs::copy(&path, folder.join(path.file_name().expect("a name")))
                .expect("copied beside the program");
        }
    }
    match env::var("CARGO_CFG_TARGET_OS").as_deref() {
        Ok("windows") => {}
        Ok("macos") => println!("cargo::rustc-link-arg=-Wl,-rpath,@executable_path"),
        _ => println!("cargo::rustc-link-arg=-Wl,-rpath,$ORIGIN"),
    }
}
