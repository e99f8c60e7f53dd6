//! Classification by label scores: at the place of the answer, which label does the model find likeliest?
//!
//! A labelled sample is scorable if its last answer begins with its label, in whatever case (`Yes, because ...` for
//! `yes`). Every label of the data set is then a candidate, spelt as the data's answers spell it.

use std::collections::BTreeMap;
use std::ops::Range;

use super::encode::Rendered;
use super::error::{Origin, Result};
use super::tokenizer::{encode_text, Tokenizer};

/// The candidates of one sample.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LabelTask {
    /// Index of the sample in its data set.
    pub sample: usize,
    /// Index in the sample's tokens of the last prompt token: its logits score a candidate's first token.
    pub position: usize,
    /// Each label with the tokens that spell it right after the prompt, in the labels' order.
    pub candidates: Vec<(String, Vec<i32>)>,
    /// Which candidate is the sample's own.
    pub truth: usize,
}

/// Gathers the labelled samples while a data set is read; the labels are known only at its end.
#[derive(Default)]
pub(super) struct Collector {
    pending: Vec<Pending>,
}

struct Pending {
    sample: usize,
    origin: Origin,
    label: String,
    text: String,
    /// Where the label is spelt, in bytes of `text`.
    at: Range<usize>,
    /// Index among the whole text's tokens of the first token of the label, and among the sample's, which may be
    /// shorter.
    first: usize,
    position: usize,
}

impl Collector {
    /// Looks at a sample that is about to become number `sample`. Nothing happens if it is not scorable.
    pub(super) fn add(&mut self, sample: usize, rendered: &Rendered, first_of_whole_answer: usize) {
        let Some((label, content)) = rendered.sample.label.as_ref().zip(rendered.content.as_ref()) else {
            return;
        };
        let answer = &rendered.text[content.clone()];
        let start = content.start + (answer.len() - answer.trim_start().len());
        let end = start + label.len();
        let spelt = rendered.text.get(start..end).filter(|_| end <= content.end);
        if spelt.is_none_or(|s| s.to_lowercase() != label.to_lowercase())
            || rendered.text[end..].starts_with(char::is_alphanumeric)
        {
            return;
        }
        // A token may begin with the space before the label.
        let first = rendered.bytes.partition_point(|at| at.end <= start);
        // Truncation moves an answer as a whole.
        let moved = first_of_whole_answer - rendered.sample.answer_start;
        let Some(position) = (first - 1).checked_sub(moved).filter(|_| first > 0) else { return };
        self.pending.push(Pending {
            sample,
            origin: rendered.sample.origin.clone(),
            label: label.clone(),
            text: rendered.text.clone(),
            at: start..end,
            first,
            position,
        });
    }

    /// One task per scorable sample, in order.
    pub(super) fn finish(self, tokenizer: &dyn Tokenizer) -> Result<Vec<LabelTask>> {
        let spellings = self.spellings();
        let mut tasks = Vec::with_capacity(self.pending.len());
        for pending in &self.pending {
            let mut candidates = Vec::with_capacity(spellings.len());
            for (label, spelling) in &spellings {
                if let Some(tokens) = pending.tokens_of(spelling, tokenizer)? {
                    candidates.push(((*label).to_owned(), tokens));
                }
            }
            let truth = candidates.iter().position(|(label, _)| *label == pending.label);
            // Scores can be compared only if every label can follow the same prompt tokens.
            if let Some(truth) = truth.filter(|_| candidates.len() == spellings.len()) {
                let Pending { sample, position, .. } = *pending;
                tasks.push(LabelTask { sample, position, candidates, truth });
            }
        }
        Ok(tasks)
    }

    /// Each label's most frequent spelling; ties go to the one that sorts first.
    fn spellings(&self) -> BTreeMap<&str, &str> {
        let mut counts: BTreeMap<&str, BTreeMap<&str, usize>> = BTreeMap::new();
        for p in &self.pending {
            *counts.entry(&p.label).or_default().entry(&p.text[p.at.clone()]).or_default() += 1;
        }
        counts
            .into_iter()
            .map(|(label, spelt)| {
                let best = spelt.iter().rev().max_by_key(|(_, n)| **n).map_or(label, |(s, _)| *s);
                (label, best)
            })
            .collect()
    }
}

impl Pending {
    /// The tokens of `spelling` in the label's place, within this very conversation; none if it melts into what stands
    /// before it.
    fn tokens_of(&self, spelling: &str, tokenizer: &dyn Tokenizer) -> Result<Option<Vec<i32>>> {
        let mut text = self.text.clone();
        text.replace_range(self.at.clone(), spelling);
        let encoded = encode_text(tokenizer, &text, &self.origin)?;
        let first = encoded.bytes.partition_point(|at| at.end <= self.at.start);
        let stop = encoded.bytes.partition_point(|at| at.start < self.at.start + spelling.len());
        Ok((first == self.first && first < stop).then(|| encoded.tokens[first..stop].to_vec()))
    }
}
