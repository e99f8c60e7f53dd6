//! From samples to rows: truncation, packing, and label tasks.

use qvac_ft::data::{
    epoch_rows, ordered_rows, Content, Dataset, Error, Message, Options, Origin, PackMode, Record, Row,
    Sample, Tokenizer,
};

use crate::words::{options, show, Words};

fn origin(line: usize) -> Origin {
    Origin { file: std::path::Path::new("chats.jsonl").into(), line }
}

fn chat(line: usize, label: Option<&str>, turns: &[(&str, &str)]) -> Record {
    Record {
        origin: origin(line),
        content: Content::Chat {
            messages: turns.iter().map(|(r, c)| Message::new(r, *c)).collect(),
            tools: None,
        },
        label: label.map(str::to_owned),
    }
}

fn truncated(turns: &[(&str, &str)], seq_len: usize) -> (String, Dataset) {
    let words = Words::new();
    let options = Options { chat_template: Some("plain"), seq_len, ..options() };
    let set = Dataset::encode(&[chat(1, None, turns)], &words, &options).unwrap();
    assert!(set.samples[0].len() <= seq_len);
    (show(&set.samples[0], &words), set)
}

#[test]
fn a_long_prompt_loses_its_oldest_tokens_and_keeps_bos_system_and_answer() {
    let turns = [("system", "Be kind"), ("user", "a b c d e f g h"), ("assistant", "Yes sir")];
    let whole = r"[<s>][System][:][ Be][ kind][\n][User][:][ a][ b][ c][ d][ e][ f][ g][ h][\n][Assistant][:]« Yes»« sir»«</s>»[\n]";
    assert_eq!(truncated(&turns, 23).0, whole);
    // One too many: what follows the answer goes first.
    assert_eq!(truncated(&turns, 22).0, whole.strip_suffix(r"[\n]").unwrap());
    let (shown, set) = truncated(&turns, 16);
    assert_eq!(
        shown,
        r"[<s>][System][:][ Be][ kind][\n][ e][ f][ g][ h][\n][Assistant][:]« Yes»« sir»«</s>»"
    );
    assert_eq!((set.stats.truncated, set.stats.answers_cut, set.stats.longest), (1, 0, 23));
    assert_eq!(set.samples[0].truncated.unwrap().original, 23);
    assert_eq!(set.samples[0].answer(), 13..16);
    // Too short for the system message: BOS alone stays.
    assert_eq!(truncated(&turns, 7).0, r"[<s>][\n][Assistant][:]« Yes»« sir»«</s>»");
}

#[test]
fn an_answer_that_does_not_fit_keeps_its_head() {
    let turns = [("user", "a b"), ("assistant", "c d e f g h i j k l")];
    let (shown, set) = truncated(&turns, 8);
    assert_eq!(shown, "[:]« c»« d»« e»« f»« g»« h»« i»");
    assert_eq!((set.stats.truncated, set.stats.answers_cut), (1, 1));
    assert_eq!(set.samples[0].answer(), 1..8);
    // An answer that just fits beside one prompt token is whole.
    assert_eq!(truncated(&turns, 12).0, "[:]« c»« d»« e»« f»« g»« h»« i»« j»« k»« l»«</s>»");
}

#[test]
fn an_earlier_answer_that_lost_its_beginning_is_not_trained() {
    let turns = [("user", "a"), ("assistant", "b c d"), ("user", "e"), ("assistant", "f")];
    let (shown, _) = truncated(&turns, 12);
    assert_eq!(shown, r"[<s>][ d][</s>][\n][User][:][ e][\n][Assistant][:]« f»«</s>»");
}

/// Samples of every length from 2 to 40, with some tokens trained.
fn samples() -> Vec<Sample> {
    (0..200)
        .map(|i| {
            let n = 2 + (i * 7) % 39;
            Sample {
                tokens: (0..n).map(|t| (i * 100 + t) as i32).collect(),
                train: (0..n).map(|t| (t * 5 + i) % 3 == 0 || t + 1 == n).collect(),
                origin: origin(i + 1),
                label: None,
                answer_start: n - 1,
                answer_end: n,
                truncated: None,
            }
        })
        .collect()
}

/// What must hold for any rows of any samples.
fn check(rows: &[Row], samples: &[Sample], seq_len: usize) {
    let mut seen = vec![0; samples.len()];
    for row in rows {
        for v in [&row.tokens, &row.positions, &row.targets, &row.segments] {
            assert_eq!(v.len(), seq_len);
        }
        let mut at = 0;
        for (segment, &index) in row.samples.iter().enumerate() {
            let sample = &samples[index];
            seen[index] += 1;
            for i in 0..sample.len() {
                assert_eq!(row.tokens[at], sample.tokens[i]);
                assert_eq!(row.positions[at], i as i32, "positions restart with each sample");
                assert_eq!(row.segments[at], segment as i32, "a sample lies in one piece");
                let next = (i + 1 < sample.len() && sample.train[i + 1]).then(|| sample.tokens[i + 1]);
                assert_eq!(
                    row.targets[at],
                    next.unwrap_or(-1),
                    "a target is the next token of the same sample"
                );
                at += 1;
            }
        }
        assert_eq!(row.n_used(), at);
        for i in at..seq_len {
            assert_eq!((row.tokens[i], row.positions[i], row.targets[i], row.segments[i]), (0, 0, -1, -1));
        }
    }
    assert!(seen.iter().all(|n| *n == 1), "each sample lies in exactly one row");
    let targets: usize = rows.iter().map(Row::n_targets).sum();
    assert_eq!(targets, samples.iter().map(Sample::n_targets).sum::<usize>());
}

#[test]
fn packing_loses_and_mixes_nothing() {
    let samples = samples();
    for seq_len in [40, 41, 64, 512] {
        for epoch in 0..3 {
            check(&epoch_rows(&samples, seq_len, 42, epoch, PackMode::Pack).unwrap(), &samples, seq_len);
        }
        let rows = epoch_rows(&samples, seq_len, 42, 0, PackMode::NoPack).unwrap();
        assert_eq!(rows.len(), samples.len());
        check(&rows, &samples, seq_len);
        let rows = ordered_rows(&samples, seq_len, PackMode::Pack).unwrap();
        check(&rows, &samples, seq_len);
        let order: Vec<_> = rows.iter().flat_map(|r| r.samples.clone()).collect();
        assert!(order.is_sorted());
    }
    // First-fit is known to stay within 1.7 times the optimum; here it must do much better.
    let rows = epoch_rows(&samples, 512, 42, 0, PackMode::Pack).unwrap();
    let tokens: usize = samples.iter().map(Sample::len).sum();
    assert!(rows.len() <= tokens.div_ceil(512) + 1, "{} rows for {tokens} tokens", rows.len());
}

#[test]
fn an_epoch_is_a_function_of_seed_and_number() {
    let samples = samples();
    let rows = |seed, epoch| epoch_rows(&samples, 64, seed, epoch, PackMode::Pack).unwrap();
    assert_eq!(rows(42, 3), rows(42, 3));
    assert_ne!(rows(42, 3), rows(42, 4));
    assert_ne!(rows(42, 3), rows(43, 3));
}

#[test]
fn the_order_of_an_epoch_is_golden() {
    // A change here would send every resumed run to other data than the one that it left.
    let samples: Vec<_> = samples().into_iter().take(10).collect();
    let rows = epoch_rows(&samples, 64, 42, 1, PackMode::NoPack).unwrap();
    let order: Vec<_> = rows.iter().map(|r| r.samples[0]).collect();
    assert_eq!(order, [1, 0, 4, 9, 5, 3, 8, 2, 7, 6]);
}

#[test]
fn a_sample_longer_than_a_row_is_named() {
    let error = epoch_rows(&samples(), 39, 0, 0, PackMode::Pack).unwrap_err();
    assert!(matches!(&error, Error::TooLong { tokens: 40, seq_len: 39, .. }), "{error}");
    assert!(error.to_string().starts_with("chats.jsonl:"), "{error}");
    assert!(ordered_rows(&samples(), 39, PackMode::NoPack).is_err());
}

fn labelled(template: &str, seq_len: usize) -> (Words, Dataset) {
    let records = [
        chat(1, Some("yes"), &[("user", "Is it"), ("assistant", "Yes. So")]),
        chat(2, Some("no"), &[("user", "Is it then that it is"), ("assistant", "No. So")]),
        chat(3, Some("maybe"), &[("user", "It"), ("assistant", "Maybe. So")]),
        chat(4, Some("other"), &[("user", "It"), ("assistant", "Nothing like it")]),
        chat(5, Some("no"), &[("user", "It"), ("assistant", "Nothing like it")]),
        // A label's length ends within a character of this answer.
        chat(6, Some("no"), &[("user", "It"), ("assistant", "日本")]),
        chat(7, None, &[("user", "It"), ("assistant", "Yes. So")]),
    ];
    let words = Words::new();
    let set =
        Dataset::encode(&records, &words, &Options { chat_template: Some(template), seq_len, ..options() })
            .unwrap();
    (words, set)
}

#[test]
fn label_tasks_hold_every_label_as_the_answers_spell_it() {
    for (template, spelt) in [("chatml", ["Maybe", "No", "Yes"]), ("plain", [" Maybe", " No", " Yes"])] {
        let (words, set) = labelled(template, 512);
        assert_eq!((set.stats.scorable, set.label_tasks.len()), (3, 3));
        assert_eq!(
            set.stats.labels.iter().map(|(l, n)| format!("{l} {n}")).collect::<Vec<_>>(),
            ["maybe 1", "no 3", "other 1", "yes 1"]
        );
        for (task, truth) in set.label_tasks.iter().zip(["yes", "no", "maybe"]) {
            let names: Vec<_> = task.candidates.iter().map(|(name, _)| name.as_str()).collect();
            assert_eq!(names, ["maybe", "no", "yes"]);
            let tokens: Vec<_> = task
                .candidates
                .iter()
                .map(|(_, t)| t.iter().map(|t| words.piece_text(*t)).collect::<String>())
                .collect();
            assert_eq!(tokens, spelt);
            assert_eq!(names[task.truth], truth);
            // The true candidate is what the sample itself goes on with.
            let sample = &set.samples[task.sample];
            let own = &task.candidates[task.truth].1;
            assert_eq!(&sample.tokens[task.position + 1..][..own.len()], &own[..]);
            assert_eq!(task.position + 1, sample.answer_start);
        }
    }
}

#[test]
fn label_tasks_follow_truncation() {
    let (_, set) = labelled("plain", 14);
    assert_eq!(set.stats.truncated, 1);
    let task = &set.label_tasks[1];
    let sample = &set.samples[task.sample];
    assert!(sample.truncated.is_some());
    assert_eq!(sample.tokens[task.position + 1], task.candidates[task.truth].1[0]);
}

#[test]
fn the_tokenizer_of_these_tests_is_one() {
    let words = Words::new();
    let tokens = words.encode("Hi <|im_end|>\n you", true, true).unwrap();
    let pieces: Vec<_> = tokens.iter().map(|t| words.piece_text(*t)).collect();
    assert_eq!(pieces, ["<s>", "Hi", " ", "<|im_end|>", "\n", " you"]);
    assert_eq!(tokens, words.encode("Hi <|im_end|>\n you", true, true).unwrap());
}
