//! Training data: from files of chats to rows of token ids with one target each.
//!
//! ```text
//! jsonl      a file            -> records, each with its file and line
//! record     a JSON object     -> a conversation, or plain text   (messages, prompt/completion, Alpaca, ShareGPT)
//! template   a conversation    -> text, as the model's own chat template writes it
//! mask       text              -> the byte spans that the model must learn to write
//! encode     text and spans    -> `Sample`: token ids and one bool each
//! truncate   a long sample     -> one of at most `seq_len` tokens that keeps its answer
//! pack       samples           -> `Row`s of exactly `seq_len`; the only place that shifts tokens into targets
//! label      labelled samples  -> the label scores that accuracy is made of
//! split      labels            -> train and eval, stratified
//! pubmedqa   the PubMedQA file -> chats with labels
//! ```
//!
//! `dataset` runs the chain. This room never prints and knows nothing of models: it sees a vocabulary through the
//! [`Tokenizer`] trait and a chat template as text. A new shape of record is one arm in `record`; a new built-in
//! template is one file in `templates/` and one line in `template::BUILTIN`.

mod dataset;
mod encode;
mod error;
mod jinja;
pub mod jsonl;
mod label;
mod mask;
mod pack;
pub mod pubmedqa;
mod record;
mod sample;
pub mod split;
mod template;
mod tokenizer;
mod truncate;
mod vocab;

pub use dataset::{Dataset, Options, Stats};
pub use error::{Error, Origin, Result};
pub use jinja::strftime;
pub use label::LabelTask;
pub use mask::LossOn;
pub use pack::{epoch_rows, ordered_rows, PackMode, Row};
pub use record::{Content, Message, Record};
pub use sample::Sample;
pub use template::{Template, BUILTIN};
pub use tokenizer::Tokenizer;
