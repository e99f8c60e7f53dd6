//! A data file, read and encoded.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Serialize;

use super::encode::{self, Rendered};
use super::error::{Error, Result};
use super::jsonl;
use super::label::{Collector, LabelTask};
use super::mask::LossOn;
use super::record::{Content, Record};
use super::sample::Sample;
use super::template::Template;
use super::tokenizer::Tokenizer;
use super::truncate::truncate;

/// How a file is to be read.
#[derive(Debug, Clone, Copy)]
pub struct Options<'a> {
    /// What `--chat-template` says.
    pub chat_template: Option<&'a str>,
    /// The model's own template (`tokenizer.chat_template`), used if `chat_template` is none.
    pub model_template: Option<&'a str>,
    pub loss_on: LossOn,
    /// Length of a row in tokens; no sample is longer.
    pub seq_len: usize,
    /// What `strftime_now` answers in the template, in seconds since 1970; now, if none.
    pub time: Option<i64>,
}

/// The samples of a file, in its order.
#[derive(Debug, Clone)]
pub struct Dataset {
    pub samples: Vec<Sample>,
    /// The scorable classification samples; empty if the file has no labels.
    pub label_tasks: Vec<LabelTask>,
    pub stats: Stats,
}

/// What a data set amounts to.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Stats {
    pub records: usize,
    /// More than `records` if long texts were cut into windows.
    pub samples: usize,
    pub tokens: usize,
    /// Tokens that contribute to the loss.
    pub trained_tokens: usize,
    /// Length of the longest record, before truncation.
    pub longest: usize,
    /// Samples that lost tokens to fit `seq_len`.
    pub truncated: usize,
    /// Those among them whose answer lost its end.
    pub answers_cut: usize,
    /// Samples by label.
    pub labels: BTreeMap<String, usize>,
    /// Labelled samples whose answer begins with their label, so that they can be scored.
    pub scorable: usize,
}

/// The least sensible row: something to predict from, a label, an end of turn.
const LEAST_SEQ_LEN: usize = 4;

impl Dataset {
    /// Reads, renders, tokenises, masks and truncates. Errors name the file and line.
    pub fn load(path: &Path, tokenizer: &dyn Tokenizer, options: &Options<'_>) -> Result<Self> {
        Self::encode(&jsonl::read(path)?, tokenizer, options)
    }

    /// As [`Self::load`], from records.
    pub fn encode(records: &[Record], tokenizer: &dyn Tokenizer, options: &Options<'_>) -> Result<Self> {
        if options.seq_len < LEAST_SEQ_LEN {
            return Err(Error::SeqLen { seq_len: options.seq_len, least: LEAST_SEQ_LEN });
        }
        let mut loader = Loader { tokenizer, options, template: None };
        let mut samples = Vec::with_capacity(records.len());
        let mut stats = Stats { records: records.len(), ..Stats::default() };
        let mut labels = Collector::default();
        for record in records {
            match &record.content {
                Content::Text(text) => {
                    let windows = encode::text(record, text, options.seq_len, tokenizer)?;
                    stats.longest = stats.longest.max(windows.iter().map(Sample::len).sum());
                    samples.extend(windows);
                }
                Content::Chat { .. } => {
                    let mut rendered = loader.chat(record)?;
                    stats.longest = stats.longest.max(rendered.sample.len());
                    let first = rendered.sample.answer_start;
                    truncate(&mut rendered, options.seq_len);
                    if rendered.sample.n_targets() == 0 {
                        return Err(Error::NothingTrained { origin: record.origin.clone() });
                    }
                    labels.add(samples.len(), &rendered, first);
                    samples.push(rendered.sample);
                }
            }
        }
        let label_tasks = labels.finish(tokenizer)?;
        stats.scorable = label_tasks.len();
        stats.count(&samples);
        Ok(Self { samples, label_tasks, stats })
    }
}

impl Stats {
    fn count(&mut self, samples: &[Sample]) {
        self.samples = samples.len();
        for sample in samples {
            self.tokens += sample.len();
            self.trained_tokens += sample.n_targets();
            self.truncated += usize::from(sample.truncated.is_some());
            self.answers_cut += usize::from(sample.truncated.is_some_and(|t| t.answer_cut));
            if let Some(label) = &sample.label {
                *self.labels.entry(label.clone()).or_default() += 1;
            }
        }
    }
}

struct Loader<'a> {
    tokenizer: &'a dyn Tokenizer,
    options: &'a Options<'a>,
    /// Parsed with the first conversation: a file of plain text needs none.
    template: Option<Template>,
}

impl Loader<'_> {
    fn chat(&mut self, record: &Record) -> Result<Rendered> {
        if self.template.is_none() {
            let Options { chat_template, model_template, time, .. } = *self.options;
            let template = Template::resolve(chat_template, model_template, self.tokenizer)?;
            self.template = Some(match time {
                Some(seconds) => template.at_time(seconds),
                None => template,
            });
        }
        let template = self.template.as_ref().expect("parsed above");
        encode::chat(record, template, self.options.loss_on, self.tokenizer)
    }
}
