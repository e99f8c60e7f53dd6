//! What can go wrong while training.

use std::path::PathBuf;

use crate::data::Origin;
use crate::error::Hint;
use crate::{data, ggml, model};

use super::step::EXACT_SEGMENT;

/// Errors of the `train` layer.
#[non_exhaustive]
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Ggml(#[from] ggml::Error),
    #[error(transparent)]
    Model(#[from] model::Error),
    #[error(transparent)]
    Data(#[from] data::Error),
    #[error("the engine was built without training")]
    NotTraining,
    #[error("{}{what} is not finite{}", at(.step), named(.records))]
    NonFinite { step: Option<u64>, what: &'static str, records: Vec<Origin> },
    #[error("{}no token contributes to the loss{}", at(.step), named(.records))]
    NothingTrained { step: Option<u64>, records: Vec<Origin> },
    #[error("`{field}` is {found}, {expected} is needed")]
    Config { field: &'static str, found: String, expected: String },
    #[error("exact training needs rows of a multiple of {EXACT_SEGMENT} tokens, found {seq_len}")]
    ExactRow { seq_len: usize },
    #[error("cannot {action} `{}`", .path.display())]
    Io { action: &'static str, path: PathBuf, source: std::io::Error },
    #[error("`{}` is damaged: {reason}", .path.display())]
    Damaged { path: PathBuf, reason: String },
    #[error("`{}` has no checkpoint to go on from", .path.display())]
    NoCheckpoint { path: PathBuf },
    #[error("`{}` belongs to another run: its `{field}` is {stored}, asked for is {asked}", .path.display())]
    OtherRun { path: PathBuf, field: String, stored: String, asked: String },
    #[error("`{}` already holds a run", .path.display())]
    RunExists { path: PathBuf },
}

/// Result of the `train` layer.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Which step, in training; an evaluation has none.
fn at(step: &Option<u64>) -> String {
    step.map_or(String::new(), |step| format!("step {step}: "))
}

/// The records to look at, a few of them.
fn named(origins: &[Origin]) -> String {
    const SHOWN: usize = 5;
    if origins.is_empty() {
        return String::new();
    }
    let shown: Vec<_> = origins.iter().take(SHOWN).map(|o| format!("`{o}`")).collect();
    let more = origins.len().saturating_sub(SHOWN);
    let rest = if more > 0 { format!(" and {more} more") } else { String::new() };
    format!(" (records {}{rest})", shown.join(", "))
}

impl Hint for Error {
    fn hint(&self) -> Option<String> {
        Some(match self {
            Self::Ggml(e) => return e.hint(),
            Self::Model(e) => return e.hint(),
            Self::Data(e) => return e.hint(),
            Self::NonFinite { .. } => {
                "look at the records named, or lower `--lr`; the last checkpoint is kept".into()
            }
            Self::NothingTrained { .. } => "pass `--loss-on all`, or drop the records".into(),
            Self::ExactRow { seq_len } => {
                let next = seq_len.next_multiple_of(EXACT_SEGMENT);
                format!("pass `--seq-len {next}`, or another multiple of {EXACT_SEGMENT}")
            }
            Self::OtherRun { field, stored, asked, .. } if field == "exact" => {
                match (stored.as_str(), asked.as_str()) {
                    ("null", _) => "leave out `--exact`, or choose another `--out`".into(),
                    (_, "null") => "pass `--exact`, or choose another `--out`".into(),
                    _ => "go on with the version of this program that began it, or choose another `--out`"
                        .into(),
                }
            }
            Self::OtherRun { .. } => "give the run's own settings, or choose another `--out`".into(),
            Self::RunExists { .. } => "pass `--resume` to go on with it, or choose another `--out`".into(),
            Self::Io { source, .. } if source.kind() == std::io::ErrorKind::StorageFull => {
                "free some space and pass `--resume`, or choose another `--out`".into()
            }
            Self::NoCheckpoint { .. } => {
                "start again without `--resume`, with another `--out` if this one holds a `config.json`"
                    .into()
            }
            _ => return None,
        })
    }
}
