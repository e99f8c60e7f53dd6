//! Loss, perplexity and accuracy over a data set.
//!
//! Accuracy is that of classification data: at the place of the answer, is the record's own label the likeliest of all
//! labels? Where the labels differ in their first token, that token's scores are compared, which the forward for the
//! loss gives for free. Where two begin alike, each label is written out after the prompt and scored as a whole.

use serde::Serialize;

use crate::data::{ordered_rows, Dataset, LabelTask, PackMode, Row, Sample};

use super::batch::{MicroBatch, Prediction};
use super::error::{Error, Result};
use super::step::Engine;

/// How many labelled records were given their own label.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Accuracy {
    pub right: usize,
    pub of: usize,
}

impl Accuracy {
    /// Between 0 and 1.
    pub fn share(&self) -> f64 {
        self.right as f64 / self.of as f64
    }
}

/// What a data set's evaluation gave.
#[derive(Clone, Debug, PartialEq)]
pub struct Evaluation {
    /// Mean over all targets, in nats.
    pub loss: f64,
    /// Targets: tokens that contribute to the loss.
    pub n_tokens: usize,
    /// None where the data has no labels.
    pub accuracy: Option<Accuracy>,
}

impl Evaluation {
    pub fn perplexity(&self) -> f64 {
        libm::exp(self.loss)
    }
}

/// Evaluates `data`; `progress` is told the rows done and in all.
pub fn evaluate(
    engine: &Engine,
    data: &Dataset,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<Evaluation> {
    let seq_len = engine.config().seq_len;
    let rows = ordered_rows(&data.samples, seq_len, PackMode::Pack)?;
    let by_first_token = data.label_tasks.iter().all(first_tokens_differ);
    let mut tasks_of_sample = vec![None; data.samples.len()];
    if by_first_token {
        for task in &data.label_tasks {
            tasks_of_sample[task.sample] = Some(task);
        }
    }

    let written = if by_first_token { Vec::new() } else { written_out(data)? };
    let written_rows = ordered_rows(&written, seq_len, PackMode::Pack)?;
    let n_rows = rows.len() + written_rows.len();

    let (mut sum, mut n_tokens, mut right, mut done) = (0.0, 0, 0, 0);
    for rows in rows.chunks(engine.config().n_rows) {
        let (batch, losses, scored) = losses_of(engine, rows, &data.samples, &tasks_of_sample)?;
        let n = batch.targets.len();
        // One by one in the order of the rows, whatever the micro-batches.
        losses[..n].iter().for_each(|&l| sum += f64::from(l));
        n_tokens += n;
        let mut scores = losses[n..].iter();
        for task in scored {
            let scores: Vec<f64> =
                scores.by_ref().take(task.candidates.len()).map(|&l| f64::from(l)).collect();
            right += usize::from(likeliest(&scores) == task.truth);
        }
        done += rows.len();
        progress(done, n_rows);
    }

    if !by_first_token {
        let mut scores = vec![0.0; written.len()];
        let no_tasks = vec![None; written.len()];
        for rows in written_rows.chunks(engine.config().n_rows) {
            let (batch, losses, _) = losses_of(engine, rows, &written, &no_tasks)?;
            for (target, loss) in batch.targets.iter().zip(losses) {
                scores[sample_at(rows, target.at as usize, seq_len)] += f64::from(loss);
            }
            done += rows.len();
            progress(done, n_rows);
        }
        let mut scores = scores.as_slice();
        for task in &data.label_tasks {
            let (own, rest) = scores.split_at(task.candidates.len());
            right += usize::from(likeliest(own) == task.truth);
            scores = rest;
        }
    }
    if n_tokens == 0 {
        return Err(Error::NothingTrained { step: None, records: Vec::new() });
    }
    let of = data.label_tasks.len();
    let accuracy = (of > 0).then_some(Accuracy { right, of });
    Ok(Evaluation { loss: sum / n_tokens as f64, n_tokens, accuracy })
}

/// The losses of all targets of `rows`, then of every candidate's first token, task by task.
fn losses_of<'d>(
    engine: &Engine,
    rows: &[Row],
    samples: &[Sample],
    tasks: &[Option<&'d LabelTask>],
) -> Result<(MicroBatch, Vec<f32>, Vec<&'d LabelTask>)> {
    let config = engine.config();
    let batch = MicroBatch::new(rows, config.n_rows, config.seq_len);
    let mut targets = batch.targets.clone();
    let mut owners: Vec<usize> =
        targets.iter().map(|t| sample_at(rows, t.at as usize, config.seq_len)).collect();
    let mut scored = Vec::new();
    for (r, row) in rows.iter().enumerate() {
        for (segment, &sample) in row.samples.iter().enumerate() {
            let Some(task) = tasks[sample] else { continue };
            let first =
                row.segments.iter().position(|&s| s == segment as i32).expect("a row's sample lies in it");
            let at = (r * config.seq_len + first + task.position) as u32;
            targets.extend(task.candidates.iter().map(|(_, tokens)| Prediction { at, label: tokens[0] }));
            owners.resize(targets.len(), sample);
            scored.push(task);
        }
    }
    let losses = engine.losses(&batch, &targets)?;
    if let Some(bad) = losses.iter().position(|l| !l.is_finite()) {
        let records = vec![samples[owners[bad]].origin.clone()];
        return Err(Error::NonFinite { step: None, what: "the loss", records });
    }
    Ok((batch, losses, scored))
}

/// Every label of every task after its prompt, as samples whose targets are the label's tokens.
fn written_out(data: &Dataset) -> Result<Vec<Sample>> {
    let mut samples = Vec::new();
    for task in &data.label_tasks {
        let sample = &data.samples[task.sample];
        for (_, label) in &task.candidates {
            let prompt = &sample.tokens[..=task.position];
            let tokens: Vec<i32> = prompt.iter().chain(label).copied().collect();
            let train = (0..tokens.len()).map(|i| i > task.position).collect();
            samples.push(Sample { answer_end: tokens.len(), tokens, train, ..sample.clone() });
        }
    }
    Ok(samples)
}

fn first_tokens_differ(task: &LabelTask) -> bool {
    let mut first: Vec<_> = task.candidates.iter().map(|(_, tokens)| tokens.first()).collect();
    first.sort_unstable();
    first.windows(2).all(|w| w[0] != w[1]) && first.iter().all(Option::is_some)
}

/// The candidate with the least loss; the first of equals.
fn likeliest(losses: &[f64]) -> usize {
    let best = losses.iter().enumerate().min_by(|a, b| a.1.total_cmp(b.1));
    best.map_or(0, |(i, _)| i)
}

/// The sample that token `at` of a micro-batch of `rows` belongs to.
fn sample_at(rows: &[Row], at: usize, seq_len: usize) -> usize {
    let row = &rows[at / seq_len];
    row.samples[row.segments[at % seq_len] as usize]
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::data::Origin;
    use crate::ggml::{Backend, Device, Dtype, Executor, GgufFile};
    use crate::model::Model;
    use crate::synth;
    use crate::train::EngineConfig;

    const SEQ_LEN: usize = 16;

    fn task(sample: usize, candidates: &[&[i32]], truth: usize) -> LabelTask {
        let candidates = candidates.iter().map(|t| (format!("{t:?}"), t.to_vec())).collect();
        LabelTask { sample, position: 4, candidates, truth }
    }

    /// Five tokens of prompt, then the answer.
    fn sample(line: usize, answer: &[i32]) -> Sample {
        let prompt = (0..5).map(|i| 10 * line as i32 + i);
        let tokens: Vec<i32> = prompt.chain(answer.iter().copied()).collect();
        Sample {
            train: (0..tokens.len()).map(|i| i >= 5).collect(),
            origin: Origin { file: Path::new("d.jsonl").into(), line },
            label: None,
            answer_start: 5,
            answer_end: tokens.len(),
            tokens,
            truncated: None,
        }
    }

    fn engine() -> Engine {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("m.gguf");
        let shape = *synth::find_shape("bitnet-nano").unwrap();
        synth::write(&synth::Config::new(shape, Dtype::F16, 3), &path, &mut |_, _| ()).unwrap();
        let backend = Backend::new(&Device::by_name("cpu").unwrap(), 1).unwrap();
        let model = Model::load(&GgufFile::open(&path).unwrap(), &backend, &mut |_, _| ()).unwrap();
        let config = EngineConfig { seq_len: SEQ_LEN, n_rows: 2, lora: None, training: None };
        Engine::new(&model, Executor::new(&backend, None), config).unwrap()
    }

    /// The sum of the losses of `label` after the prompt of `sample`, alone in a row.
    fn score(engine: &Engine, sample: &Sample, label: &[i32]) -> f64 {
        let tokens: Vec<i32> = sample.tokens[..5].iter().chain(label).copied().collect();
        let train = (0..tokens.len()).map(|i| i >= 5).collect();
        let alone = Sample { answer_end: tokens.len(), tokens, train, ..sample.clone() };
        let rows = ordered_rows(&[alone], SEQ_LEN, PackMode::NoPack).unwrap();
        let batch = MicroBatch::new(&rows[..1], 2, SEQ_LEN);
        engine.losses(&batch, &batch.targets).unwrap().iter().map(|&l| f64::from(l)).sum()
    }

    /// Three records whose own label is the likeliest for the first alone, and their tasks.
    fn classified(engine: &Engine, candidates: &[&[i32]]) -> Dataset {
        let samples: Vec<Sample> = (1..=3).map(|line| sample(line, candidates[0])).collect();
        let tasks = samples.iter().enumerate().map(|(i, s)| {
            let scores: Vec<f64> = candidates.iter().map(|c| score(engine, s, c)).collect();
            let best = likeliest(&scores);
            task(i, candidates, if i == 0 { best } else { (best + 1) % candidates.len() })
        });
        let label_tasks = tasks.collect();
        Dataset { samples, label_tasks, stats: Default::default() }
    }

    #[test]
    fn the_least_loss_is_the_likeliest_and_ties_go_to_the_first() {
        assert_eq!(likeliest(&[2.0, 0.5, 1.0]), 1);
        assert_eq!(likeliest(&[1.0, 0.5, 0.5]), 1);
        assert_eq!(likeliest(&[f64::NAN, 3.0]), 1);
    }

    #[test]
    fn labels_that_begin_alike_are_noticed() {
        assert!(first_tokens_differ(&task(0, &[&[1, 2], &[2], &[3]], 0)));
        assert!(!first_tokens_differ(&task(0, &[&[1, 2], &[3], &[1, 4]], 0)));
        assert!(!first_tokens_differ(&task(0, &[&[1], &[]], 0)));
    }

    #[test]
    fn first_tokens_decide_where_they_differ() {
        let engine = engine();
        let data = classified(&engine, &[&[100], &[200], &[300]]);
        let found = evaluate(&engine, &data, &mut |_, _| ()).unwrap();
        assert_eq!(found.accuracy, Some(Accuracy { right: 1, of: 3 }));
        assert_eq!(found.n_tokens, 3);
        let sum: f64 = data.samples.iter().map(|s| score(&engine, s, &[100])).sum();
        // The same f32 losses from other places of a row.
        assert!((found.loss - sum / 3.0).abs() < 1e-3, "{} and {}", found.loss, sum / 3.0);
        assert!((found.perplexity() - found.loss.exp()).abs() < 1e-9);
    }

    #[test]
    fn labels_with_the_same_first_token_are_scored_whole() {
        let engine = engine();
        let candidates: [&[i32]; 3] = [&[100, 101], &[100, 102], &[100, 103]];
        let data = classified(&engine, &candidates);
        let mut last = (0, 0);
        let found = evaluate(&engine, &data, &mut |done, all| last = (done, all)).unwrap();
        assert_eq!(found.accuracy, Some(Accuracy { right: 1, of: 3 }));
        assert_eq!(found.n_tokens, 6, "the labels written out are no part of the loss");
        assert!(last.0 == last.1 && last.0 > 0, "{last:?}");
        let written = written_out(&data).unwrap();
        assert_eq!(written.len(), 9);
        assert_eq!(written[1].tokens[5..], [100, 102]);
        assert!(written.iter().all(|s| s.n_targets() == 2));
    }

    #[test]
    fn data_without_labels_has_no_accuracy_and_without_targets_no_loss() {
        let engine = engine();
        let mut data = classified(&engine, &[&[100], &[200]]);
        data.label_tasks.clear();
        assert_eq!(evaluate(&engine, &data, &mut |_, _| ()).unwrap().accuracy, None);
        data.samples.iter_mut().for_each(|s| s.train.fill(false));
        let error = evaluate(&engine, &data, &mut |_, _| ()).unwrap_err();
        assert!(matches!(error, Error::NothingTrained { .. }), "{error}");
    }
}
