//! What can be wrong with a model or an adapter.

use std::path::PathBuf;

use crate::error::Hint;
use crate::ggml;

/// Errors of the `model` layer.
#[non_exhaustive]
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Ggml(#[from] ggml::Error),
    #[error("`{}`: architecture `{found}` cannot be trained (supported: {supported})", .path.display())]
    Architecture { path: PathBuf, found: String, supported: String },
    #[error("`{}`: architecture `{found}` has no exact arithmetic (supported: {supported})", .path.display())]
    ExactArchitecture { path: PathBuf, found: String, supported: String },
    #[error("`{}`: the blocks of tensor `{tensor}` differ in scale, and its backward is not exact then", .path.display())]
    ExactMixedScales { path: PathBuf, tensor: String },
    #[error("`{}`: tensor `{tensor}` is missing", .path.display())]
    MissingTensor { path: PathBuf, tensor: String },
    #[error("`{}`: tensor `{tensor}` is not part of this architecture", .path.display())]
    UnknownTensor { path: PathBuf, tensor: String },
    #[error("`{}`: tensor `{tensor}`: expected shape {expected:?}, found {found:?}", .path.display())]
    TensorShape { path: PathBuf, tensor: String, expected: Vec<i64>, found: Vec<i64> },
    #[error("`{}`: tensor `{tensor}` has type {dtype} (supported: {supported})", .path.display())]
    WeightType { path: PathBuf, tensor: String, dtype: String, supported: String },
    #[error("rank {rank} is larger than layer `{tensor}` allows: it is {n_in} x {n_out}")]
    Rank { rank: usize, tensor: String, n_in: i64, n_out: i64 },
    #[error("`{}`: key `{key}` is {found}, expected {expected}", .path.display())]
    Hparam { path: PathBuf, key: String, expected: String, found: String },
    #[error("`{}` is not an adapter: key `{key}` is {found}, expected `{expected}`", .path.display())]
    NotAnAdapter { path: PathBuf, key: &'static str, expected: &'static str, found: String },
    #[error("`{}`: tensor `{tensor}` is not of an adapter (expected names that end in `.lora_a` or `.lora_b`)", .path.display())]
    AdapterTensor { path: PathBuf, tensor: String },
    #[error("`{}`: `{tensor}` has no `.{missing}`", .path.display())]
    AdapterHalf { path: PathBuf, tensor: String, missing: &'static str },
    #[error("`{}` holds no adapted layer", .path.display())]
    AdapterEmpty { path: PathBuf },
    #[error("`{}`: `{tensor}`: `lora_a` is {a} and `lora_b` is {b}, expected [n_in, rank] and [rank, n_out]", .path.display())]
    AdapterRanks { path: PathBuf, tensor: String, a: String, b: String },
    #[error("`{}`: `{tensor}` holds {value}, which {dtype} cannot hold or no adapter should", .path.display())]
    AdapterValue { path: PathBuf, tensor: String, value: f32, dtype: &'static str },
    #[error("`{}`: adapter of a `{found}` model, expected `{expected}`", .path.display())]
    AdapterArchitecture { path: PathBuf, expected: String, found: String },
    #[error("`{}`: `{tensor}` changes a layer that `{}` does not have", .path.display(), .model.display())]
    AdapterForeign { path: PathBuf, model: PathBuf, tensor: String },
    #[error("`{}`: `{tensor}` is for a layer of {found_in} x {found_out}, and in `{}` it is {n_in} x {n_out}", .path.display(), .model.display())]
    AdapterShape {
        path: PathBuf,
        model: PathBuf,
        tensor: String,
        n_in: i64,
        n_out: i64,
        found_in: i64,
        found_out: i64,
    },
    #[error("`{}`: its layers differ in rank, which cannot be trained or evaluated", .path.display())]
    AdapterMixedRanks { path: PathBuf },
    #[error("no layer is called `{name}` (known: {known})")]
    UnknownTarget { name: String, known: String },
}

/// Result of the `model` layer.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Hint for Error {
    fn hint(&self) -> Option<String> {
        match self {
            Self::Ggml(e) => e.hint(),
            Self::Rank { n_in, n_out, .. } => Some(format!("pass `--rank` of at most {}", n_in.min(n_out))),
            Self::ExactArchitecture { .. } => Some("leave out `--exact`".into()),
            Self::ExactMixedScales { .. } => Some(
                "leave out `--exact`; inference and `verify --tier t1` are exact with this model, too".into(),
            ),
            Self::UnknownTarget { .. } => Some("`--targets` takes a comma-separated list, or `all`".into()),
            Self::WeightType { .. } => Some("convert the model with llama.cpp's `llama-quantize`".into()),
            Self::AdapterArchitecture { .. } | Self::AdapterForeign { .. } | Self::AdapterShape { .. } => {
                Some("pass the model that the adapter was trained on".into())
            }
            Self::NotAnAdapter { .. } => Some("pass an adapter, as `qvac-ft train` writes it".into()),
            _ => None,
        }
    }
}
