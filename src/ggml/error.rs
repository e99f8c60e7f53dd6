//! What can go wrong at the graph API and at GGUF files.

use std::path::PathBuf;

use crate::error::Hint;

/// Errors of the `ggml` layer.
#[non_exhaustive]
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("no device named `{name}` (found: {})", .found.join(", "))]
    NoSuchDevice { name: String, found: Vec<String> },
    #[error("device `{device}` could not be initialised: {reason}")]
    DeviceInit { device: String, reason: String },
    #[error("out of memory: a graph's description needs {bytes} bytes")]
    OutOfHostMemory { bytes: usize },
    /// A fault of this program: a graph turned out larger than the room planned for it.
    #[error("a graph outgrew its context")]
    ContextFull,
    #[error("a graph needs {expected}")]
    Graph { expected: &'static str },
    #[error("a graph that is split between two devices cannot be computed in parts")]
    SplitGraph,
    #[error("tensor `{tensor}`: {op} failed: {reason}")]
    Copy { tensor: String, op: &'static str, reason: String },
    /// `bytes` is 0 where it is not known how much was asked for.
    #[error("device `{device}` is out of memory: no room for {what}{}", size(.bytes))]
    OutOfDeviceMemory { device: String, what: String, bytes: usize },
    #[error("tensor `{tensor}`: {op} expected {expected}, found {found}")]
    Shape { tensor: String, op: &'static str, expected: String, found: String },
    #[error(
        "tensor `{tensor}`: device `{device}` cannot compute {op} of {operands}{}",
        if *.exact { " in exact arithmetic" } else { "" }
    )]
    Unsupported { tensor: String, op: String, operands: String, device: String, exact: bool },
    #[error("device `{device}` failed to compute a graph: {reason}")]
    Compute { device: String, reason: String },
    #[error("`{}`: cannot {action}", .path.display())]
    Io { path: PathBuf, action: &'static str, source: std::io::Error },
    #[error("`{}` is not a GGUF file: it starts with `{found}`, expected `GGUF`", .path.display())]
    GgufMagic { path: PathBuf, found: String },
    #[error("`{}`: GGUF version {found}, expected 2 or 3", .path.display())]
    GgufVersion { path: PathBuf, found: u32 },
    #[error("`{}` is truncated: {what} needs {need} bytes at offset {offset}, and the file ends at {len}", .path.display())]
    GgufTruncated { path: PathBuf, what: String, offset: u64, need: u64, len: u64 },
    #[error("`{}`: {what}: {found} is more than the file can hold (at most {most})", .path.display())]
    GgufCount { path: PathBuf, what: String, found: u64, most: u64 },
    #[error("`{}`: {what} has the unknown value type {found}", .path.display())]
    GgufValueType { path: PathBuf, what: String, found: u32 },
    #[error("`{}`: the {what} `{name}` stands there twice", .path.display())]
    GgufDuplicate { path: PathBuf, what: &'static str, name: String },
    #[error("`{}`: `general.alignment` is {found}, expected a power of two", .path.display())]
    GgufAlignment { path: PathBuf, found: u64 },
    #[error("`{}`: no key `{key}`", .path.display())]
    MissingKey { path: PathBuf, key: String },
    #[error("`{}`: key `{key}` is {found}, expected {expected}", .path.display())]
    KeyType { path: PathBuf, key: String, expected: &'static str, found: String },
    #[error("`{}`: no tensor `{tensor}`", .path.display())]
    MissingTensor { path: PathBuf, tensor: String },
    #[error("`{}`: tensor `{tensor}` has type {found}, which this build does not know", .path.display())]
    TensorType { path: PathBuf, tensor: String, found: u32 },
    #[error("`{}`: tensor `{tensor}` has the shape {found}, expected {expected}", .path.display())]
    TensorShape { path: PathBuf, tensor: String, expected: String, found: String },
    #[error("`{}`: tensor `{tensor}` starts at offset {found} of the data, expected {expected}", .path.display())]
    TensorOffset { path: PathBuf, tensor: String, expected: u64, found: u64 },
    #[error("{type_name} values cannot be converted {direction} f32")]
    NoConversion { type_name: &'static str, direction: &'static str },
    #[error("{type_name} rows are multiples of {block} values, found {found}")]
    RowSize { type_name: &'static str, block: usize, found: usize },
    #[error("tensor `{tensor}`: {found} bytes were written, expected {expected}")]
    TensorBytes { tensor: String, expected: u64, found: u64 },
}

/// `, 4096 bytes`, if it is known.
fn size(bytes: &usize) -> String {
    match bytes {
        0 => String::new(),
        bytes => format!(", {bytes} bytes"),
    }
}

/// Result of the `ggml` layer.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Hint for Error {
    fn hint(&self) -> Option<String> {
        match self {
            Self::NoSuchDevice { .. } => Some("`qvac-ft devices` lists what this machine has".into()),
            Self::OutOfDeviceMemory { .. } => {
                Some("pass a smaller `--micro-batch` or `--seq-len`, or choose another `--device`".into())
            }
            Self::Unsupported { device, exact: true, .. } if device == "cpu" => Some(
                "leave out `--exact`, or convert the model to a type that it knows (docs/exactness.md)"
                    .into(),
            ),
            Self::Unsupported { .. } => {
                Some("pass `--allow-cpu-fallback`, or choose another `--device`".into())
            }
            Self::SplitGraph => Some("pass `--recompute on`".into()),
            Self::GgufTruncated { .. } | Self::TensorOffset { .. } | Self::GgufCount { .. } => {
                Some("the file is incomplete or damaged; download or convert it again".into())
            }
            Self::GgufMagic { .. } => {
                Some("pass a `.gguf` file; `qvac-ft convert` makes one of a Hugging Face model".into())
            }
            Self::Io { source, .. } if source.kind() == std::io::ErrorKind::StorageFull => {
                Some("free some space, or write to another disk".into())
            }
            _ => None,
        }
    }
}
