//! Holds the tree to its own rules: import direction, file size, SAFETY notes, patches that apply.
//!
//! These read source text, not meaning: they are quick, and what they miss a reviewer sees. A new module of `src/`
//! must be placed in `LAYERS`; a file that is neither there nor exempt fails.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

#[path = "../llama-sys/build/patch.rs"]
#[allow(dead_code)]
mod patch;
#[path = "common/pin.rs"]
mod pin;

const MAX_LINES: usize = 500;

/// Modules of `src/` from the top; a module may use those of later rows, and those of its own row listed as peers.
const LAYERS: &[&[&str]] = &[
    &["main"],
    &["cli"],
    &["commands"],
    &["train", "eval", "synth", "export", "bench", "verify", "convert", "plan", "report"],
    &["data"],
    &["model"],
    &["ggml", "llama"],
    &["error", "parallel", "lib"],
];

/// Modules of one row of which one builds upon the other: (user, used). libllama is built on ggml, and so is its room;
/// `bench` measures the others, `plan` says beforehand what they will take, `verify` compares them with themselves.
const PEERS: &[(&str, &str)] = &[
    ("train", "eval"),
    ("eval", "train"),
    ("bench", "train"),
    ("plan", "train"),
    ("plan", "bench"),
    ("verify", "train"),
    ("llama", "ggml"),
];

/// The only modules with unsafe code.
const UNSAFE: &[&str] = &["ggml", "llama"];

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// Files below `folder` whose name ends in one of `suffixes`.
fn files(folder: &Path, suffixes: &[&str]) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let Ok(entries) = fs::read_dir(folder) else { return found };
    for entry in entries {
        let path = entry.expect("folder entry").path();
        if path.is_dir() {
            found.extend(files(&path, suffixes));
        } else if suffixes.iter().any(|suffix| path.to_string_lossy().ends_with(suffix)) {
            found.push(path);
        }
    }
    found.sort();
    found
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|e| panic!("`{}`: {e}", path.display()))
}

fn below_root(path: &Path) -> String {
    path.strip_prefix(root()).unwrap_or(path).to_string_lossy().into_owned()
}

/// The module of `src/` that a file belongs to.
fn module(path: &Path) -> String {
    let below = path.strip_prefix(root().join("src")).expect("a file of src");
    let first = below.components().next().expect("a name").as_os_str().to_string_lossy().into_owned();
    first.trim_end_matches(".rs").to_string()
}

fn layer(module: &str) -> Option<usize> {
    LAYERS.iter().position(|row| row.contains(&module))
}

/// Modules named after `crate::` (or `qvac_ft::`) in code, grouped imports included.
fn imports(text: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for line in text.lines().map(code) {
        for prefix in ["crate::", "qvac_ft::"] {
            for (at, _) in line.match_indices(prefix) {
                let rest = &line[at + prefix.len()..];
                let names = match rest.strip_prefix('{') {
                    Some(group) => top_level_names(group),
                    None => vec![leading_name(rest)],
                };
                found.extend(names.into_iter().filter(|name| !name.is_empty()));
            }
        }
    }
    found
}

fn leading_name(text: &str) -> String {
    text.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect()
}

/// `a::{b, c}, d};` → a, d.
fn top_level_names(group: &str) -> Vec<String> {
    let mut names = Vec::new();
    let mut depth = 0;
    let mut start = true;
    for (at, c) in group.char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth == 0 => break,
            '}' => depth -= 1,
            ',' if depth == 0 => start = true,
            c if start && !c.is_whitespace() => {
                names.push(leading_name(&group[at..]));
                start = false;
            }
            _ => {}
        }
    }
    names
}

/// The part of a file that is not tests: they may use whatever they need.
fn without_tests(path: &Path) -> String {
    if path.file_name().is_some_and(|name| name == "tests.rs") {
        return String::new();
    }
    let text = read(path);
    let end = text.find("#[cfg(test)]\nmod tests {").unwrap_or(text.len());
    text[..end].to_string()
}

/// A line without its `//` comment.
fn code(line: &str) -> &str {
    line.split("//").next().unwrap_or(line)
}

#[test]
fn imports_go_down() {
    let mut wrong = Vec::new();
    let sources = files(&root().join("src"), &[".rs"]);
    assert!(!sources.is_empty(), "no source found");
    for path in sources {
        let own = module(&path);
        let Some(at) = layer(&own) else {
            wrong.push(format!("{}: module `{own}` is in no layer", below_root(&path)));
            continue;
        };
        // Macros and re-exports at the crate's root are named by nothing below.
        for used in imports(&without_tests(&path)).into_iter().filter(|used| *used != own) {
            let Some(to) = layer(&used) else { continue };
            let peer = PEERS.contains(&(own.as_str(), used.as_str()));
            if to < at || (to == at && !peer) {
                wrong.push(format!("{}: `{own}` uses `{used}`", below_root(&path)));
            }
        }
    }
    assert!(wrong.is_empty(), "imports that go up:\n{}", wrong.join("\n"));
}

#[test]
fn import_scan_reads_groups() {
    let text = "use crate::{ggml::{Context, Tensor}, model};\nuse crate::error::Hint; // crate::cli\n";
    let found: Vec<String> = imports(text).into_iter().collect();
    assert_eq!(found, ["error", "ggml", "model"]);
}

#[test]
fn engines_neither_print_nor_parse_flags() {
    let mut wrong = Vec::new();
    for path in files(&root().join("src"), &[".rs"]) {
        let own = module(&path);
        if matches!(own.as_str(), "main" | "cli" | "commands") {
            continue;
        }
        for (n, line) in without_tests(&path).lines().enumerate() {
            let line = code(line);
            let names = ["println!(", "print!(", "clap::", "indicatif::", "anyhow::"];
            if let Some(name) = names.iter().find(|name| line.contains(*name)) {
                wrong.push(format!("{}:{}: `{name}`", below_root(&path), n + 1));
            }
        }
    }
    assert!(wrong.is_empty(), "belongs in cli or commands:\n{}", wrong.join("\n"));
}

#[test]
fn files_stay_short() {
    let rust = ["src", "tests", "llama-sys"]
        .iter()
        .flat_map(|folder| files(&root().join(folder), &[".rs", ".cpp", ".h"]));
    let overlay = files(&root().join("patches/overlay"), &[".c", ".cpp", ".h", ".comp", ".glsl", ".metal"]);
    let long: Vec<String> = rust
        .chain(overlay)
        .map(|path| (read(&path).lines().count(), path))
        .filter(|(lines, _)| *lines > MAX_LINES)
        .map(|(lines, path)| format!("{}: {lines}", below_root(&path)))
        .collect();
    assert!(long.is_empty(), "more than {MAX_LINES} lines:\n{}", long.join("\n"));
}

#[test]
fn unsafe_code_is_placed_and_explained() {
    let mut wrong = Vec::new();
    for path in files(&root().join("src"), &[".rs"]) {
        let lines: Vec<String> = read(&path).lines().map(String::from).collect();
        for (n, line) in lines.iter().enumerate() {
            let code = code(line);
            let opens = ["unsafe {", "unsafe impl", "unsafe fn", "unsafe extern"];
            if !opens.iter().any(|open| code.contains(open)) {
                continue;
            }
            let place = format!("{}:{}", below_root(&path), n + 1);
            if !UNSAFE.contains(&module(&path).as_str()) {
                wrong.push(format!("{place}: unsafe outside {UNSAFE:?}"));
            }
            // The note stands above the statement, which may begin some lines before the block.
            let before = &lines[n.saturating_sub(8)..=n];
            let noted = before.iter().any(|line| line.contains("SAFETY:") || line.contains("# Safety"));
            let a_type = code.contains("unsafe extern \"C\" fn(") || code.contains("unsafe fn(");
            if !noted && !a_type {
                wrong.push(format!("{place}: no SAFETY note"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn no_todo_is_left() {
    let places = ["src", "tests", "llama-sys/build", "llama-sys/src", "patches/overlay", "scripts"];
    let word = ["TO", "DO"].concat();
    let found: Vec<String> = places
        .iter()
        .flat_map(|place| files(&root().join(place), &[""]))
        // Fixtures are data, not words of ours.
        .filter(|path| !path.starts_with(root().join("tests/fixtures")))
        .filter(|path| read(path).contains(&word))
        .map(|path| below_root(&path))
        .collect();
    assert!(found.is_empty(), "{word} in {}", found.join(", "));
}

#[test]
fn patch_series_applies_to_the_pin() {
    let source = pin::llama_cpp();
    let mut patched = BTreeMap::new();
    for path in files(&root().join("patches"), &[".patch"]) {
        for change in patch::parse(&read(&path)).expect("a patch") {
            let text = patched.remove(&change.path).unwrap_or_else(|| read(&source.join(&change.path)));
            let after = change.apply(&text);
            let after = after.unwrap_or_else(|e| panic!("`{}`: `{}`: {e:#}", below_root(&path), change.path));
            patched.insert(change.path, after);
        }
    }
    assert!(!patched.is_empty(), "no file was patched");
}

#[test]
fn every_patch_is_documented() {
    let readme = read(&root().join("patches/README.md"));
    let series = files(&root().join("patches"), &[".patch"]);
    assert!(!series.is_empty(), "no patch found");
    for path in series {
        let name = path.file_stem().expect("a name").to_string_lossy().into_owned();
        assert!(readme.contains(&format!("`{name}`")), "`patches/README.md` does not mention `{name}`");
    }
}

mod patching {
    use super::patch::parse;

    const FILE: &str = "a\nb\nc\nd\ne\n";

    fn apply(patch: &str, text: &str) -> Result<String, String> {
        let files = parse(patch).map_err(|e| format!("{e:#}"))?;
        files[0].apply(text).map_err(|e| format!("{e:#}"))
    }

    #[test]
    fn a_hunk_applies_where_it_says() {
        let patch = "--- a/x\n+++ b/x\n@@ -2,2 +2,3 @@\n b\n+new\n c\n";
        assert_eq!(apply(patch, FILE).expect("applies"), "a\nb\nnew\nc\nd\ne\n");
    }

    #[test]
    fn a_hunk_moves_to_the_only_place_it_fits() {
        let patch = "--- a/x\n+++ b/x\n@@ -1,2 +1,1 @@\n d\n-e\n";
        assert_eq!(apply(patch, FILE).expect("applies"), "a\nb\nc\nd\n");
    }

    #[test]
    fn later_hunks_shift_with_earlier_ones() {
        let patch = "--- a/x\n+++ b/x\n@@ -1 +1,2 @@\n a\n+a\n@@ -2 +3,2 @@\n a\n+z\n";
        assert_eq!(apply(patch, "a\na\n").expect("applies"), "a\na\na\nz\n");
    }

    #[test]
    fn changed_context_is_an_error_not_a_guess() {
        let patch = "--- a/x\n+++ b/x\n@@ -2,2 +2,3 @@\n b\n+new\n C\n";
        let error = apply(patch, FILE).expect_err("does not fit");
        assert!(error.contains("hunk 1 at line 2"), "{error}");
        assert!(error.contains("`b\\nC` not found"), "{error}");
    }

    #[test]
    fn two_places_are_an_error() {
        let patch = "--- a/x\n+++ b/x\n@@ -3 +3,2 @@\n a\n+new\n";
        let error = apply(patch, "a\nb\nc\na\n").expect_err("ambiguous");
        assert!(error.contains("2 places"), "{error}");
    }
}
