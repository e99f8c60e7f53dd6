//! What can be wrong with training data, and where.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::error::Hint;
use crate::llama;

/// Where a record came from. Prints as `file:line`, the form that editors and terminals can follow.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origin {
    pub file: Arc<Path>,
    /// 1-based; for a record that spans lines, the first of them.
    pub line: usize,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.file.display(), self.line)
    }
}

/// Errors of the `data` layer.
#[non_exhaustive]
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot read `{}`", .path.display())]
    Read { path: PathBuf, source: std::io::Error },
    #[error("cannot write `{}`", .path.display())]
    Write { path: PathBuf, source: std::io::Error },
    #[error("`{}` is there already, with other content", .path.display())]
    Exists { path: PathBuf },
    #[error("`{}` holds no records", .path.display())]
    Empty { path: PathBuf },
    #[error("{origin}: not UTF-8 text")]
    NotUtf8 { origin: Origin },
    /// `column` is 1-based, within the line.
    #[error("{origin}: malformed JSON at column {column}: {reason}")]
    Json { origin: Origin, column: usize, reason: String },
    #[error("{origin}: expected a JSON object, found {found}")]
    NotAnObject { origin: Origin, found: &'static str },
    #[error("{origin}: no known shape of record has the fields {}", list(.found))]
    UnknownShape { origin: Origin, found: Vec<String> },
    #[error("{origin}: field `{field}` should be {expected}, found {found}")]
    FieldType { origin: Origin, field: String, expected: &'static str, found: String },
    #[error("{origin}: field `{field}` is missing")]
    MissingField { origin: Origin, field: String },
    #[error("{origin}: the conversation has no `assistant` message")]
    NoAssistant { origin: Origin },
    #[error("{origin}: the text is empty")]
    EmptyText { origin: Origin },
    #[error("the chat template `{name}` is malformed: {reason}")]
    TemplateSyntax { name: String, reason: String },
    #[error("neither a built-in chat template nor a readable file: `{name}`")]
    NoSuchTemplate { name: String },
    #[error("the model has no chat template")]
    NoTemplate,
    #[error("{origin}: the chat template `{name}` refused the conversation: {reason}")]
    Render { origin: Origin, name: String, reason: String },
    #[error("{origin}: cannot tell what the assistant wrote in message {message} under the chat template `{name}`: {reason}")]
    Span { origin: Origin, name: String, message: usize, reason: &'static str },
    #[error(transparent)]
    Llama(#[from] llama::Error),
    #[error("{origin}: the tokens do not spell the text: at byte {byte} the text has `{expected}`, the tokens have {found}")]
    Misaligned { origin: Origin, byte: usize, expected: String, found: String },
    #[error("{origin}: no token contributes to the loss")]
    NothingTrained { origin: Origin },
    #[error("{origin}: {tokens} tokens do not fit a row of {seq_len}")]
    TooLong { origin: Origin, tokens: usize, seq_len: usize },
    #[error("rows of {seq_len} tokens are too short: at least {least} are needed")]
    SeqLen { seq_len: usize, least: usize },
    #[error("`{}`: {reason}", .path.display())]
    PubMedQa { path: PathBuf, reason: String },
    #[error("cannot take {wanted} records out of {available}")]
    NotEnough { wanted: usize, available: usize },
}

/// Result of the `data` layer.
pub type Result<T, E = Error> = std::result::Result<T, E>;

fn list(names: &[String]) -> String {
    if names.is_empty() {
        return "(none)".into();
    }
    names.iter().map(|n| format!("`{n}`")).collect::<Vec<_>>().join(", ")
}

impl Hint for Error {
    fn hint(&self) -> Option<String> {
        Some(match self {
            Self::UnknownShape { .. } => {
                "known are: `messages`, `prompt` with `completion`, `instruction` with \
                 `output`, `conversations`, and `text`"
                    .into()
            }
            Self::Json { .. } => "each line must be one whole JSON object".into(),
            Self::NoAssistant { .. } | Self::NothingTrained { .. } => {
                "pass `--loss-on all`, or drop the record".into()
            }
            Self::NoTemplate => "pass `--chat-template chatml`, or another that the model knows".into(),
            Self::NoSuchTemplate { .. } => {
                let names: Vec<_> = super::BUILTIN.iter().map(|(name, _)| format!("`{name}`")).collect();
                format!(
                    "built in are {}; a template given in place must contain `{{{{` or `{{%`",
                    names.join(", ")
                )
            }
            Self::Span { .. } => {
                "pass `--loss-on all`, or a `--chat-template` that writes each message once and in order"
                    .into()
            }
            Self::Render { .. } => "change the record, or pass another `--chat-template`".into(),
            Self::TooLong { .. } | Self::SeqLen { .. } => "pass a larger `--seq-len`".into(),
            Self::Exists { .. } => "choose another folder, or pass `--force`".into(),
            Self::NotEnough { .. } => "ask for fewer samples".into(),
            Self::PubMedQa { .. } => "the file meant is `ori_pqal.json` of PubMedQA".into(),
            Self::Llama(error) => return error.hint(),
            _ => return None,
        })
    }
}
