//! Shapes of records, and an error with file and line for everything that is none.

use std::path::{Path, PathBuf};

use qvac_ft::data::{jsonl, Content, Dataset, Error, LossOn, Options};
use qvac_ft::error::Hint;

use crate::words::{options, show, Words};

fn file(dir: &Path, name: &str, text: impl AsRef<[u8]>) -> PathBuf {
    let path = dir.join(name);
    std::fs::write(&path, text).unwrap();
    path
}

/// `role: content` of each message, or the text.
fn said(content: &Content) -> String {
    match content {
        Content::Text(text) => text.clone(),
        Content::Chat { messages, .. } => {
            messages.iter().map(|m| format!("{}: {}", m.role, m.content)).collect::<Vec<_>>().join(" | ")
        }
    }
}

#[test]
fn every_shape_is_recognised() {
    let dir = tempfile::tempdir().unwrap();
    for (line, expected) in [
        (
            r#"{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}"#,
            "user: a | assistant: b",
        ),
        (
            r#"{"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "c"}]}, {"role": "assistant", "content": "b"}]}"#,
            "user: ac | assistant: b",
        ),
        (r#"{"prompt": "a", "completion": "b"}"#, "user: a | assistant: b"),
        (
            r#"{"prompt": [{"role": "system", "content": "s"}, {"role": "user", "content": "a"}], "completion": [{"role": "assistant", "content": "b"}]}"#,
            "system: s | user: a | assistant: b",
        ),
        (r#"{"instruction": "a", "input": "", "output": "b"}"#, "user: a | assistant: b"),
        (
            r#"{"instruction": "a", "input": "i", "output": "b", "system": "s"}"#,
            "system: s | user: a\n\ni | assistant: b",
        ),
        (
            r#"{"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}], "system": "s"}"#,
            "system: s | user: a | assistant: b",
        ),
        (
            r#"{"conversations": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}"#,
            "user: a | assistant: b",
        ),
        (r#"{"text": "once"}"#, "once"),
    ] {
        let records = jsonl::read(&file(dir.path(), "x.jsonl", line)).unwrap();
        assert_eq!(said(&records[0].content), expected, "{line}");
    }
    let records = jsonl::read(&file(dir.path(), "x.TXT", "{not json}\n")).unwrap();
    assert_eq!(said(&records[0].content), "{not json}\n");
}

#[test]
fn arrays_and_lines_know_where_each_record_stands() {
    let dir = tempfile::tempdir().unwrap();
    let array = "\u{feff}[\n  {\"text\": \"a\"},\n\n  {\n    \"text\": \"b\"\n  }, {\"text\": \"c\", \"label\": 3}\n]\n";
    let path = file(dir.path(), "x.json", array);
    let records = jsonl::read(&path).unwrap();
    assert_eq!(records.iter().map(|r| r.origin.line).collect::<Vec<_>>(), [2, 4, 6]);
    assert_eq!(records[2].label.as_deref(), Some("3"));
    assert_eq!(records[1].origin.to_string(), format!("{}:4", path.display()));
    let records =
        jsonl::read(&file(dir.path(), "x.jsonl", "\n{\"text\": \"a\"}\r\n\n{\"text\": \"b\"}")).unwrap();
    assert_eq!(records.iter().map(|r| r.origin.line).collect::<Vec<_>>(), [2, 4]);
}

#[test]
fn tool_calls_keep_their_order_and_get_objects_for_arguments() {
    let dir = tempfile::tempdir().unwrap();
    let line = r#"{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": null, "tool_calls": [{"function": {"name": "f", "arguments": "{\"z\": 1, \"b\": 2}"}}]}]}"#;
    let words = Words::new();
    let options = Options { chat_template: Some("chatml"), ..options() };
    let set = Dataset::load(&file(dir.path(), "x.jsonl", line), &words, &options).unwrap();
    let text: String = set.samples[0].tokens.iter().map(|t| words.piece_text(*t)).collect();
    assert!(
        text.contains(r#"<tool_call>{"name": "f", "arguments": {"z": 1, "b": 2}}</tool_call><|im_end|>"#),
        "{text}"
    );
}

const GOOD: &str =
    r#"{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}"#;

#[test]
fn bad_records_are_told_apart_by_file_and_line() {
    let dir = tempfile::tempdir().unwrap();
    for (line, expected) in [
        (r#"{"messages": ["#, "malformed JSON at column 14: EOF while parsing a list"),
        ("[1]", "expected a JSON object, found an array"),
        ("3", "expected a JSON object, found a number"),
        (r#"{"message": [], "id": 1}"#, "no known shape of record has the fields `message`, `id`"),
        ("{}", "no known shape of record has the fields (none)"),
        (r#"{"messages": "hi"}"#, "field `messages` should be an array of messages, found a string"),
        (r#"{"messages": []}"#, "field `messages` should be a non-empty array of messages, found an empty one"),
        (r#"{"messages": [3]}"#, "field `messages[0]` should be an object, found a number"),
        (r#"{"messages": [{"content": "a"}]}"#, "field `messages[0].role` is missing"),
        (r#"{"messages": [{"role": "user"}]}"#, "field `messages[0].content` is missing"),
        (r#"{"messages": [{"role": "user", "content": 3}]}"#, "field `messages[0].content` should be a string, found a number"),
        (r#"{"messages": [{"role": "user", "content": [{"type": "image"}]}]}"#, "field `messages[0].content[0]` should be a part with `text`, found an object"),
        (r#"{"messages": [{"role": "bot", "content": "a"}]}"#, "field `messages[0].role` should be one of `system`, `developer`, `user`, `assistant`, `tool`, `function`, found `bot`"),
        (r#"{"messages": [{"role": "assistant", "content": "a", "weight": 0.5}]}"#, "field `messages[0].weight` should be 0 or 1, found 0.5"),
        (r#"{"conversations": [{"from": "dog", "value": "a"}]}"#, "field `conversations[0].from` should be one of `system`, `developer`, `user`, `assistant`, `tool`, `function`, found `dog`"),
        (r#"{"prompt": "a", "completion": null}"#, "field `completion` should be a string, found null"),
        (r#"{"instruction": "a", "output": ["b"]}"#, "field `output` should be a string, found an array"),
        (r#"{"text": " \n"}"#, "the text is empty"),
        (r#"{"text": "a", "label": []}"#, "field `label` should be a string, found an array"),
        (r#"{"messages": [{"role": "user", "content": "a"}]}"#, "the conversation has no `assistant` message"),
    ] {
        let path = file(dir.path(), "bad.jsonl", format!("{GOOD}\n\n{line}\n"));
        let options = Options { chat_template: Some("chatml"), ..options() };
        let error = Dataset::load(&path, &Words::new(), &options).expect_err(line).to_string();
        assert_eq!(error, format!("{}:3: {expected}", path.display()));
    }
}

#[test]
fn bad_files_are_told_apart() {
    let dir = tempfile::tempdir().unwrap();
    let load = |path: &Path, options: &Options<'_>| Dataset::load(path, &Words::new(), options).unwrap_err();
    let chatml = Options { chat_template: Some("chatml"), ..options() };
    assert!(matches!(load(&dir.path().join("none.jsonl"), &chatml), Error::Read { .. }));
    for text in ["", "\n \n", "[]"] {
        assert!(matches!(load(&file(dir.path(), "x.jsonl", text), &chatml), Error::Empty { .. }), "{text:?}");
    }
    let path = file(dir.path(), "x.jsonl", b"{\"text\": \"a\"}\n{\"text\": \"\xff\"}");
    assert_eq!(load(&path, &chatml).to_string(), format!("{}:2: not UTF-8 text", path.display()));
    let path = file(dir.path(), "x.json", "[\n{\"text\": \"a\"},\n{\"text\": }\n]");
    assert!(load(&path, &chatml)
        .to_string()
        .starts_with(&format!("{}:3: malformed JSON at column", path.display())));

    let good = file(dir.path(), "good.jsonl", GOOD);
    let error = load(&good, &options());
    assert!(matches!(error, Error::NoTemplate), "{error}");
    assert!(error.hint().unwrap().contains("--chat-template"));
    let error = load(&good, &Options { chat_template: Some("chatlm"), ..options() });
    assert!(error.to_string().contains("`chatlm`") && error.hint().unwrap().contains("`chatml`"), "{error}");
    let error = load(&good, &Options { chat_template: Some("{% for %}"), ..options() });
    assert!(matches!(error, Error::TemplateSyntax { .. }), "{error}");
    assert!(matches!(load(&good, &Options { seq_len: 1, ..chatml }), Error::SeqLen { seq_len: 1, .. }));
}

#[test]
fn a_template_may_come_from_a_file_or_from_the_model() {
    let dir = tempfile::tempdir().unwrap();
    let good = file(dir.path(), "good.jsonl", GOOD);
    let jinja = "{% for m in messages %}{{ m.role }}:{{ m.content }}\n{% endfor %}";
    let template = file(dir.path(), "t.jinja", jinja);
    let words = Words::new();
    let by = |chat_template, model_template| {
        let set =
            Dataset::load(&good, &words, &Options { chat_template, model_template, ..options() }).unwrap();
        show(&set.samples[0], &words)
    };
    let expected = r"[<s>][user][:][a][\n][assistant][:]«b»[\n]";
    assert_eq!(by(template.to_str(), None), expected);
    assert_eq!(by(None, Some(jinja)), expected);
    assert_eq!(by(Some(jinja), Some("{{ raise_exception('the flag goes first') }}")), expected);
}

#[test]
fn the_date_in_a_template_is_the_one_given() {
    let dir = tempfile::tempdir().unwrap();
    let good = file(dir.path(), "good.jsonl", GOOD);
    let jinja = "{{ strftime_now('%Y') }}{% for m in messages %}:{{ m.content }}{% endfor %}";
    let words = Words::new();
    let options = Options { chat_template: Some(jinja), time: Some(0), ..options() };
    let set = Dataset::load(&good, &words, &options).unwrap();
    assert_eq!(show(&set.samples[0], &words), "[<s>][1970][:][a][:]«b»");
}

#[test]
fn plain_text_is_trained_whole_and_cut_into_windows() {
    let dir = tempfile::tempdir().unwrap();
    let path = file(dir.path(), "x.txt", "one two three four five six seven");
    let words = Words::new();
    let set = Dataset::load(&path, &words, &Options { seq_len: 5, ..options() }).unwrap();
    let shown: Vec<_> = set.samples.iter().map(|s| show(s, &words)).collect();
    assert_eq!(shown, ["«<s>»«one»« two»« three»« four»", "«<s>»« five»« six»« seven»«</s>»"]);
    assert_eq!((set.stats.records, set.stats.samples, set.stats.trained_tokens), (1, 2, 8));
    assert_eq!(set.stats.truncated, 0);
}

#[test]
fn with_loss_on_all_a_conversation_needs_no_assistant() {
    let dir = tempfile::tempdir().unwrap();
    let path = file(dir.path(), "x.jsonl", r#"{"messages": [{"role": "user", "content": "a"}]}"#);
    let options = Options { chat_template: Some("plain"), loss_on: LossOn::All, ..options() };
    let words = Words::new();
    let set = Dataset::load(&path, &words, &options).unwrap();
    assert_eq!(show(&set.samples[0], &words), r"«<s>»«User»«:»« a»«\n»");
}
