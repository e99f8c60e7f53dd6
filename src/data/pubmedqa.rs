//! PubMedQA's labelled questions (`ori_pqal.json`) as chats: the question, then `Yes`, `No` or `Maybe` and the reason.
//!
//! The reason is the first sentence of the abstract's conclusion. The abstract itself is left out: the task is to
//! answer from the question alone, and a sample then takes some 60 tokens instead of 400.

use std::io::Write;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::error::{Error, Result};
use super::split::stratified;

/// How much to take, and how to part it.
#[derive(Debug, Clone, Copy)]
pub struct Plan {
    /// Questions to take out of the file's 1000, by label in proportion.
    pub samples: usize,
    /// What is held out for evaluation.
    pub eval: Eval,
    pub seed: u64,
}

/// Which questions are held out.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Eval {
    /// This share of the questions taken, 0 to 1.
    Fraction(f64),
    /// This many of the questions not taken; all that were taken are trained on.
    Others(usize),
}

/// One line of the files written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Chat {
    pub messages: [Turn; 2],
    pub label: String,
    pub pubid: String,
}

/// A message of a [`Chat`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Turn {
    pub role: &'static str,
    pub content: String,
}

/// The two sets, in the file's order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sets {
    pub train: Vec<Chat>,
    pub eval: Vec<Chat>,
}

#[derive(Deserialize)]
struct Question {
    #[serde(rename = "QUESTION")]
    question: String,
    #[serde(rename = "LONG_ANSWER")]
    long_answer: String,
    final_decision: String,
}

const LABELS: [(&str, &str); 3] = [("yes", "Yes"), ("no", "No"), ("maybe", "Maybe")];

/// Reads the file and draws both sets; the same plan gives the same sets.
pub fn sets(input: &Path, plan: &Plan) -> Result<Sets> {
    let chats = read(input)?;
    let labels = |chats: &[Chat]| chats.iter().map(|c| c.label.clone()).collect::<Vec<_>>();
    let split = |chats: Vec<Chat>, n: usize, seed: u64| -> Result<(Vec<Chat>, Vec<Chat>)> {
        let labels = labels(&chats);
        let by_label: Vec<_> = labels.iter().map(|l| Some(l.as_str())).collect();
        let (taken, _) = stratified(&by_label, n, seed)?;
        let mut is_taken = vec![false; chats.len()];
        taken.iter().for_each(|i| is_taken[*i] = true);
        let (mut a, mut b) = (Vec::new(), Vec::new());
        for (chat, taken) in chats.into_iter().zip(is_taken) {
            if taken { &mut a } else { &mut b }.push(chat);
        }
        Ok((a, b))
    };
    let (taken, others) = split(chats, plan.samples, plan.seed)?;
    // The second draw is keyed differently: with the same key it would favour what the first one took first.
    let second = plan.seed ^ u64::MAX;
    let (eval, train) = match plan.eval {
        Eval::Fraction(f) => {
            let n = (taken.len() as f64 * f.clamp(0.0, 1.0)).round() as usize;
            split(taken, n, second)?
        }
        Eval::Others(n) => (split(others, n, second)?.0, taken),
    };
    Ok(Sets { train, eval })
}

/// Writes `train.jsonl` and `eval.jsonl` into `dir`: both are whole on disk before either gets its name. Files that are
/// there and differ are an error unless `force`.
pub fn write(sets: &Sets, dir: &Path, force: bool) -> Result<[PathBuf; 2]> {
    let fail = |path: &Path| {
        let path = path.to_path_buf();
        move |source| Error::Write { path, source }
    };
    std::fs::create_dir_all(dir).map_err(fail(dir))?;
    let paths = [dir.join("train.jsonl"), dir.join("eval.jsonl")];
    let mut ready = Vec::new();
    for (path, chats) in paths.iter().zip([&sets.train, &sets.eval]) {
        let mut text = Vec::new();
        for chat in chats {
            serde_json::to_writer(&mut text, chat).map_err(|e| fail(path)(e.into()))?;
            text.push(b'\n');
        }
        if !force && std::fs::read(path).is_ok_and(|there| there != text) {
            return Err(Error::Exists { path: path.clone() });
        }
        let mut file = tempfile::NamedTempFile::new_in(dir).map_err(fail(path))?;
        file.write_all(&text).and_then(|()| file.as_file().sync_all()).map_err(fail(path))?;
        ready.push((file, path));
    }
    for (file, path) in ready {
        file.persist(path).map_err(|e| fail(path)(e.error))?;
    }
    Ok(paths)
}

fn read(input: &Path) -> Result<Vec<Chat>> {
    let bad = |reason: String| Error::PubMedQa { path: input.into(), reason };
    let text = std::fs::read_to_string(input).map_err(|source| Error::Read { path: input.into(), source })?;
    // A map of serde_json keeps the file's order here.
    let questions: serde_json::Map<String, serde_json::Value> =
        serde_json::from_str(&text).map_err(|e| bad(e.to_string()))?;
    let mut chats = Vec::with_capacity(questions.len());
    for (pubid, value) in questions {
        let q: Question = serde_json::from_value(value).map_err(|e| bad(format!("entry `{pubid}`: {e}")))?;
        let Some((label, word)) = LABELS.iter().find(|(label, _)| *label == q.final_decision) else {
            return Err(bad(format!(
                "entry `{pubid}`: `final_decision` should be yes, no or maybe, found `{}`",
                q.final_decision
            )));
        };
        let answer = format!("{word}. {}", first_sentence(&q.long_answer));
        let user = Turn { role: "user", content: q.question.trim().into() };
        let assistant = Turn { role: "assistant", content: answer.trim_end().into() };
        chats.push(Chat { messages: [user, assistant], label: (*label).into(), pubid });
    }
    Ok(chats)
}

/// Shorter than this it is an abbreviation or a heading (`1.`, `Dr.`) and not a sentence.
const LEAST_SENTENCE: usize = 30;

/// Up to the first full stop, outside brackets, that a space and then no lower-case letter follow.
fn first_sentence(text: &str) -> &str {
    let text = text.trim();
    let mut brackets = 0i32;
    for (i, c) in text.char_indices() {
        match c {
            '(' | '[' => brackets += 1,
            ')' | ']' => brackets -= 1,
            _ => {}
        }
        let end = i + c.len_utf8();
        let mut after = text[end..].chars();
        let ends = matches!(c, '.' | '!' | '?')
            && brackets <= 0
            && end >= LEAST_SENTENCE
            && after.next().is_some_and(char::is_whitespace)
            && after.find(|c| !c.is_whitespace()).is_some_and(|c| !c.is_lowercase());
        if ends {
            return &text[..end];
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sentence_ends_before_a_capital() {
        let text = "Levels of vit. D were low in both arms (p = 0.05 vs. 0.2). More work is needed.";
        assert_eq!(first_sentence(text), "Levels of vit. D were low in both arms (p = 0.05 vs. 0.2).");
        assert_eq!(first_sentence(" One only, without a stop "), "One only, without a stop");
        assert_eq!(
            first_sentence("1. The first of our findings is plain. Next."),
            "1. The first of our findings is plain."
        );
    }

    fn file(dir: &Path) -> PathBuf {
        let mut all = serde_json::Map::new();
        for i in 0..60 {
            let label = ["yes", "yes", "yes", "no", "no", "maybe"][i % 6];
            all.insert(
                format!("{}", 1000 + i),
                serde_json::json!({"QUESTION": format!("Is it {i}?"), "LONG_ANSWER": "So it was found.", "final_decision": label}),
            );
        }
        let path = dir.join("ori_pqal.json");
        std::fs::write(&path, serde_json::to_vec(&all).unwrap()).unwrap();
        path
    }

    #[test]
    fn sets_are_stratified_disjoint_and_seeded() {
        let dir = tempfile::tempdir().unwrap();
        let input = file(dir.path());
        let plan = Plan { samples: 36, eval: Eval::Fraction(1.0 / 3.0), seed: 5 };
        let first = sets(&input, &plan).unwrap();
        let count = |chats: &[Chat], l: &str| chats.iter().filter(|c| c.label == l).count();
        assert_eq!(["yes", "no", "maybe"].map(|l| count(&first.train, l)), [12, 8, 4]);
        assert_eq!(["yes", "no", "maybe"].map(|l| count(&first.eval, l)), [6, 4, 2]);
        assert!(first.eval.iter().all(|e| first.train.iter().all(|t| t.pubid != e.pubid)));
        assert_eq!(first, sets(&input, &plan).unwrap());
        assert_ne!(first, sets(&input, &Plan { seed: 6, ..plan }).unwrap());
        let others = sets(&input, &Plan { eval: Eval::Others(24), ..plan }).unwrap();
        assert_eq!((others.train.len(), others.eval.len()), (36, 24));
        assert!(others.eval.iter().all(|e| others.train.iter().all(|t| t.pubid != e.pubid)));
        assert!(matches!(
            sets(&input, &Plan { eval: Eval::Others(25), ..plan }),
            Err(Error::NotEnough { wanted: 25, available: 24 })
        ));
    }

    #[test]
    fn foreign_files_are_not_written_over() {
        let dir = tempfile::tempdir().unwrap();
        let plan = Plan { samples: 12, eval: Eval::Fraction(0.5), seed: 1 };
        let sets = sets(&file(dir.path()), &plan).unwrap();
        let out = dir.path().join("out");
        let [train, eval] = write(&sets, &out, false).unwrap();
        write(&sets, &out, false).unwrap();
        std::fs::write(&eval, "mine\n").unwrap();
        assert!(matches!(write(&sets, &out, false), Err(Error::Exists { path }) if path == eval));
        assert_eq!(std::fs::read_to_string(&eval).unwrap(), "mine\n");
        write(&sets, &out, true).unwrap();
        let line = std::fs::read_to_string(&train).unwrap();
        let first: serde_json::Value = serde_json::from_str(line.lines().next().unwrap()).unwrap();
        assert_eq!(first["messages"][0]["role"], "user");
        assert_eq!(first["messages"][1]["role"], "assistant");
        assert_eq!(std::fs::read_dir(&out).unwrap().count(), 2, "no temporary file is left");
    }

    #[test]
    fn a_foreign_decision_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.json");
        std::fs::write(&path, r#"{"7": {"QUESTION": "q", "LONG_ANSWER": "a", "final_decision": "no way"}}"#)
            .unwrap();
        let error =
            sets(&path, &Plan { samples: 1, eval: Eval::Fraction(0.0), seed: 0 }).unwrap_err().to_string();
        assert!(error.contains("entry `7`") && error.contains("found `no way`"), "{error}");
    }
}
