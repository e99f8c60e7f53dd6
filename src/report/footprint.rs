//! Results of `bench memory` and `bench kernels`.

use std::path::Path;

use serde::Deserialize;
use serde_json::Value;

use super::error::{Error, Result};

/// What a model was seen to take.
#[derive(Clone, Debug)]
pub struct Footprint {
    /// With its type.
    pub model: String,
    pub device: String,
    /// Bytes of weights, of the cache, and to compute in; none where the model could not be loaded.
    pub parts: Option<[f64; 3]>,
    /// Bytes of all.
    pub training: Option<f64>,
}

impl Footprint {
    /// Bytes of all, at inference.
    pub fn inference(&self) -> Option<f64> {
        self.parts.map(|parts| parts.iter().sum())
    }
}

/// A kernel at one shape.
#[derive(Clone, Debug, Deserialize)]
pub struct Kernel {
    pub kernel: String,
    pub shape: String,
    pub microseconds: f64,
    pub gops: Option<f64>,
    pub gbytes: f64,
    #[serde(skip)]
    pub device: String,
}

/// The models of a result of `bench memory`, if `object` is one.
pub(super) fn footprints(object: &Value, path: &Path) -> Option<Result<Vec<Footprint>>> {
    let models = object["models"].as_array()?;
    let device = object["device"].as_str()?;
    let one = |model: &Value| {
        let of = |part: &str| model["inference"][part].as_f64();
        Some(Footprint {
            model: model["model"].as_str()?.into(),
            device: device.into(),
            parts: of("weights").zip(of("kv")).zip(of("compute")).map(|((w, kv), c)| [w, kv, c]),
            training: model["training"]["allocated_bytes"].as_f64(),
        })
    };
    let all: Option<Vec<Footprint>> = models.iter().map(one).collect();
    Some(all.ok_or_else(|| malformed(path, "models")))
}

/// The kernels of a result of `bench kernels`, if `object` is one.
pub(super) fn kernels(object: &Value, path: &Path) -> Option<Result<Vec<Kernel>>> {
    object["kernels"].as_array()?;
    let device = object["device"].as_str()?;
    let all = Vec::<Kernel>::deserialize(&object["kernels"]);
    let with_device =
        |all: Vec<Kernel>| all.into_iter().map(|k| Kernel { device: device.into(), ..k }).collect();
    Some(all.map(with_device).map_err(|_| malformed(path, "kernels")))
}

fn malformed(path: &Path, field: &str) -> Error {
    Error::Malformed { path: path.into(), field: field.into() }
}
