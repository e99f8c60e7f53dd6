//! What a result was got with: every command that computes writes it into its JSON.

use serde::Serialize;

use crate::ggml::{self, Device, DeviceLimits, GgufFile, EXACT_VERSION};
use crate::llama::DeviceFacts;
use crate::train::model_hash;

/// The source that llama.cpp was built from.
pub const LLAMA_CPP: &str = env!("QVAC_LLAMA_CPP");
/// SHA-256 over what is laid over it.
pub const PATCH_HASH: &str = env!("QVAC_PATCHES");

/// Of the results' shape, `docs/schema/results.json`: raised when a field changes its meaning or goes.
const SCHEMA: u32 = 1;

/// The program, the machine, the model and the flags.
#[derive(Clone, Debug, Serialize)]
pub struct Provenance {
    schema: u32,
    version: &'static str,
    /// Where the build was told it, in `QVAC_COMMIT`.
    commit: Option<&'static str>,
    llama_cpp: &'static str,
    patch_hash: &'static str,
    /// The command line behind the program's name.
    flags: Vec<String>,
    /// Null where nothing is drawn by lot.
    seed: Option<u64>,
    /// As `train` keeps it in `config.json`; null where no file is read.
    model_hash: Option<String>,
    device: String,
    device_description: String,
    driver: Option<String>,
    limits: DeviceLimits,
    /// Version of the exact arithmetic; null where it was not asked for.
    exact: Option<u32>,
}

impl Provenance {
    pub fn new(device: &Device, model: Option<&GgufFile>) -> Self {
        Self {
            schema: SCHEMA,
            version: env!("CARGO_PKG_VERSION"),
            commit: option_env!("QVAC_COMMIT"),
            llama_cpp: LLAMA_CPP,
            patch_hash: PATCH_HASH,
            flags: std::env::args_os().skip(1).map(|flag| flag.to_string_lossy().into_owned()).collect(),
            seed: None,
            model_hash: model.map(model_hash),
            device: device.name().to_owned(),
            device_description: device.description().trim().to_owned(),
            driver: DeviceFacts::of(device).driver,
            limits: device.limits(),
            exact: ggml::is_exact().then_some(EXACT_VERSION),
        }
    }

    /// The same, with a seed.
    pub fn seeded(self, seed: u64) -> Self {
        Self { seed: Some(seed), ..self }
    }

    /// The device's name, with what it is.
    pub fn described(&self) -> String {
        format!("{} ({})", self.device, self.device_description)
    }

    /// The device's name.
    pub fn device(&self) -> &str {
        &self.device
    }
}
