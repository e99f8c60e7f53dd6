//! What keeps a report from being written.

use std::path::PathBuf;

use crate::error::Hint;

/// Errors of `report`.
#[non_exhaustive]
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot {action} `{}`", .path.display())]
    Io { action: &'static str, path: PathBuf, source: std::io::Error },
    #[error("`{}` has no `metrics.jsonl`", .path.display())]
    NoRun { path: PathBuf },
    #[error("`{}`:{line}: not a line of metrics", .path.display())]
    Metrics { path: PathBuf, line: usize, source: serde_json::Error },
    #[error("`{}`:{line}: not JSON", .path.display())]
    NotJson { path: PathBuf, line: usize, source: serde_json::Error },
    #[error("`{}` is neither a run's metrics nor results of `bench`", .path.display())]
    Unknown { path: PathBuf },
    #[error("`{}`: `{field}` of a result is missing or malformed", .path.display())]
    Malformed { path: PathBuf, field: String },
    #[error("`{}` holds nothing", .path.display())]
    Empty { path: PathBuf },
    #[error("cannot draw `{chart}`: {reason}")]
    Draw { chart: String, reason: String },
    #[error("cannot make the page")]
    Page(#[from] minijinja::Error),
    #[error("no measurement of `{}` was taken again in `{}`", .old.display(), .new.display())]
    NothingInCommon { old: PathBuf, new: PathBuf },
}

/// Result of `report`.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Hint for Error {
    fn hint(&self) -> Option<String> {
        Some(match self {
            Self::NoRun { .. } => "name the folder that `train --out` was given".into(),
            Self::Unknown { .. } => {
                "give it a run's folder, or what `bench train`, `infer`, `memory` or `kernels` wrote with `--json`, or `scripts/figures`".into()
            }
            Self::NothingInCommon { .. } => {
                "results are compared where model, type, device, test and settings are the same".into()
            }
            _ => return None,
        })
    }
}
