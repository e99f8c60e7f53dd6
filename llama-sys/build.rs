//! Builds the pinned, patched llama.cpp and binds its C API: stage → compile → bind → link.
//!
//! The work is done once per content (`cache.rs`); a build whose inputs were seen before only copies the bindings
//! and names the libraries. A new input is a field of `Config` or a file of `cache::INPUTS`.

#[path = "build/bind.rs"]
mod bind;
#[path = "build/cache.rs"]
mod cache;
#[path = "build/compile.rs"]
mod compile;
#[path = "build/config.rs"]
mod config;
#[path = "build/link.rs"]
mod link;
#[path = "build/patch.rs"]
mod patch;
#[path = "build/stage.rs"]
mod stage;
#[path = "build/tools.rs"]
mod tools;

use anyhow::Result;

fn main() {
    if let Err(error) = run() {
        // Cargo shows each `cargo::error` line on its own, so the cause's own lines are kept apart.
        for line in format!("{error:#}").lines() {
            println!("cargo::error={line}");
        }
        std::process::exit(1);
    }
}

fn run() -> Result<()> {
    let config = config::Config::from_env()?;
    config.announce_inputs();
    let tools = tools::Tools::find(&config)?;
    let key = cache::key(&config, &tools)?;
    let entry = cache::get_or_make(&config, &key, |made| {
        let tree = cache::Tree::lock(&config, &tools)?;
        let source = stage::locate(&config)?;
        stage::stage(&config, &source, &tree.source())?;
        compile::compile(&config, &tools, &tree, made)?;
        bind::bind(&config, &tree.source(), &made.join(bind::FILE))?;
        link::describe(&config, made)
    })?;
    link::announce(&config, &entry)
}
