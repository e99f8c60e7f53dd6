//! `--features portable`: ggml's libraries travel with the program, so they are laid beside it and found there.

use std::path::Path;
use std::{env, fs};

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
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
