//! What can keep a checkpoint from being converted.

use std::path::PathBuf;

use crate::error::Hint;
use crate::ggml;

/// Errors of `convert` and `quantize`.
#[non_exhaustive]
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Ggml(#[from] ggml::Error),
    #[error("`{}`: cannot {action}", .path.display())]
    Io { path: PathBuf, action: &'static str, source: std::io::Error },
    #[error("`{}` is not valid JSON", .path.display())]
    Json { path: PathBuf, source: serde_json::Error },
    #[error("`{}` is not a whole safetensors file", .path.display())]
    Safetensors { path: PathBuf, source: safetensors::SafeTensorError },
    #[error("`{}` is not the folder of a Hugging Face model: it has no `{file}`", .dir.display())]
    NoFile { dir: PathBuf, file: &'static str },
    #[error("`{}` has no weights in safetensors files", .dir.display())]
    NoWeights { dir: PathBuf },
    #[error("`{}` is missing; `{index}` says that it holds {n_tensors} tensors", .path.display())]
    MissingShard { path: PathBuf, index: &'static str, n_tensors: usize },
    #[error("`{}`: no tensor `{tensor}`", .path.display())]
    MissingTensor { path: PathBuf, tensor: String },
    #[error("`{}`: tensor `{tensor}` has no place in architecture `{architecture}`", .path.display())]
    UnknownTensor { path: PathBuf, tensor: String, architecture: &'static str },
    #[error("`{}`: tensor `{tensor}` has the shape {found:?}, expected {expected:?}", .path.display())]
    TensorShape { path: PathBuf, tensor: String, expected: Vec<usize>, found: Vec<usize> },
    #[error("`{}`: tensor `{tensor}` is {found}, expected {expected}", .path.display())]
    TensorType { path: PathBuf, tensor: String, expected: &'static str, found: String },
    #[error("`{}`: tensor `{tensor}`, row {row}: a packed value is 3, which stands for nothing", .path.display())]
    PackedValue { path: PathBuf, tensor: String, row: usize },
    #[error("`{}`: tensor `{tensor}` holds {found}, expected finite numbers", .path.display())]
    NotFinite { path: PathBuf, tensor: String, found: f32 },
    #[error("`{}`: tensor `{tensor}` holds {found}, and f16 ends at 65504", .path.display())]
    TooLarge { path: PathBuf, tensor: String, found: f32 },
    #[error("`{}`: tensor `{tensor}` is {found}, expected a positive number", .path.display())]
    Scale { path: PathBuf, tensor: String, found: f32 },
    /// Errors are relative to the largest value, and to the root of the mean square.
    #[error(
        "`{}`: tensor `{tensor}` is not ternary: as {dtype} its largest error would be {max:.1e}, the rms error {rms:.1e}",
        .path.display()
    )]
    NotTernary {
        path: PathBuf,
        tensor: String,
        dtype: &'static str,
        max: f64,
        rms: f64,
        remedy: &'static str,
    },
    #[error("`{}`: `{field}` is {found}, expected {expected}", .path.display())]
    Config { path: PathBuf, field: String, found: String, expected: String },
    #[error("`{}`: {what} is not supported", .path.display())]
    Unsupported { path: PathBuf, what: String },
    #[error("`{}`: the vocabulary has {tokens} tokens, and the embedding {rows} rows", .path.display())]
    VocabularySize { path: PathBuf, tokens: usize, rows: usize },
    #[error("`{}`: {what}", .path.display())]
    Tokenizer { path: PathBuf, what: String },
    #[error("`{}` splits text in a way that has no known name: {how}", .path.display())]
    PreTokenizer { path: PathBuf, how: String },
    #[error("weights cannot be written as {found} (known: {known})")]
    OutputType { found: String, known: String },
    #[error("`{}` would be written over: it is the input", .path.display())]
    Overwrite { path: PathBuf },
    #[error("`{}`: nothing in it can be made {dtype}", .path.display())]
    NothingToDo { path: PathBuf, dtype: &'static str },
    #[error("interrupted")]
    Interrupted,
}

/// Result of `convert`.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Hint for Error {
    fn hint(&self) -> Option<String> {
        let hint = match self {
            Self::Ggml(e) => return e.hint(),
            Self::NotTernary { remedy, .. } => remedy,
            Self::NoFile { .. } => "pass the folder that holds the model's `config.json` and its weights",
            Self::NoWeights { .. } => {
                "`pytorch_model.bin` is not read; save the model once with `save_pretrained(..., safe_serialization=True)`"
            }
            Self::MissingShard { .. } | Self::Safetensors { .. } => {
                "the download is not complete; fetch the file again"
            }
            Self::PreTokenizer { .. } => {
                "pass `--pre NAME` with libllama's name of it, such as `llama-bpe`, `gpt-2` or `qwen2`"
            }
            Self::TooLarge { .. } => "pass `--type q8_0`, or `--embed q8_0` for the embedding",
            Self::Overwrite { .. } => "choose another name with `--out`",
            Self::Io { source, .. } if source.kind() == std::io::ErrorKind::StorageFull => {
                "free some space, or write to another disk"
            }
            _ => return None,
        };
        Some(hint.into())
    }
}
