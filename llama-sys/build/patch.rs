//! Applies unified diffs, strictly: every context line must match, byte for byte.
//!
//! `patch` would guess (fuzz, nearest offset) and differs between GNU and Apple. Here a hunk applies where its header
//! says, shifted by what earlier patches added; failing that, at the one place in the file where its text stands.
//! A hunk that fits nowhere, or in several places, is an error that names the patch. Files are neither created nor
//! removed: new files belong in `patches/overlay/`.

use anyhow::{bail, ensure, Context, Result};

/// The changes that one patch makes to one file.
pub struct FilePatch {
    /// Path below the root, without the `b/`.
    pub path: String,
    hunks: Vec<Hunk>,
}

struct Hunk {
    /// Line of the old file at which the hunk begins, counted from 1.
    start: usize,
    old: Vec<String>,
    new: Vec<String>,
}

/// Splits the text of a patch into the files it changes.
pub fn parse(text: &str) -> Result<Vec<FilePatch>> {
    let mut files: Vec<FilePatch> = Vec::new();
    let mut lines = text.lines().enumerate().peekable();
    while let Some((i, line)) = lines.next() {
        if let Some(path) = line.strip_prefix("+++ ") {
            let path = path.split('\t').next().unwrap_or(path);
            let path = path.strip_prefix("b/").unwrap_or(path).trim_end();
            files.push(FilePatch { path: path.to_string(), hunks: Vec::new() });
        } else if line.starts_with("@@ ") {
            let (start, n_old, n_new) = hunk_header(line).with_context(|| format!("line {}", i + 1))?;
            let mut hunk = Hunk { start, old: Vec::new(), new: Vec::new() };
            while hunk.old.len() < n_old || hunk.new.len() < n_new {
                let Some((i, line)) = lines.next() else { bail!("the last hunk is cut short") };
                match line.split_at_checked(1) {
                    Some((" ", rest)) => {
                        hunk.old.push(rest.to_string());
                        hunk.new.push(rest.to_string());
                    }
                    Some(("-", rest)) => hunk.old.push(rest.to_string()),
                    Some(("+", rest)) => hunk.new.push(rest.to_string()),
                    // Editors strip the space of an empty context line.
                    None => {
                        hunk.old.push(String::new());
                        hunk.new.push(String::new());
                    }
                    _ => bail!("line {}: expected ` `, `-` or `+`, found `{line}`", i + 1),
                }
            }
            let file = files.last_mut().with_context(|| format!("line {}: hunk before any `+++`", i + 1))?;
            file.hunks.push(hunk);
        }
    }
    ensure!(!files.is_empty(), "no `+++` line");
    if let Some(file) = files.iter().find(|file| file.hunks.is_empty()) {
        bail!("`{}` has no hunk", file.path);
    }
    Ok(files)
}

/// `@@ -start,n_old +start,n_new @@` → (start, n_old, n_new).
fn hunk_header(line: &str) -> Result<(usize, usize, usize)> {
    let mut words = line.split(' ').skip(1);
    let mut range = |sign: char| -> Option<(usize, usize)> {
        let (start, n) = {
            let word = words.next()?.strip_prefix(sign)?;
            word.split_once(',').unwrap_or((word, "1"))
        };
        Some((start.parse().ok()?, n.parse().ok()?))
    };
    let parsed = range('-').and_then(|(start, n_old)| Some((start, n_old, range('+')?.1)));
    parsed.with_context(|| format!("expected `@@ -line,count +line,count @@`, found `{line}`"))
}

impl FilePatch {
    /// The text after the patch.
    pub fn apply(&self, text: &str) -> Result<String> {
        let mut lines: Vec<&str> = text.lines().collect();
        let mut shift: isize = 0;
        for (n, hunk) in self.hunks.iter().enumerate() {
            let found = hunk.position(&lines, shift);
            let at = found.with_context(|| format!("hunk {} at line {}", n + 1, hunk.start))?;
            let declared = hunk.start.saturating_sub(1) as isize;
            lines.splice(at..at + hunk.old.len(), hunk.new.iter().map(String::as_str));
            shift = at as isize - declared + hunk.new.len() as isize - hunk.old.len() as isize;
        }
        let mut out = lines.join("\n");
        out.push('\n');
        Ok(out)
    }
}

impl Hunk {
    fn position(&self, lines: &[&str], shift: isize) -> Result<usize> {
        ensure!(!self.old.is_empty(), "has no context line");
        let fits = |at: usize| lines.get(at..at + self.old.len()).is_some_and(|part| part == self.old);
        let declared = (self.start as isize - 1 + shift).max(0) as usize;
        if fits(declared) {
            return Ok(declared);
        }
        let places: Vec<usize> = (0..lines.len()).filter(|&at| fits(at)).collect();
        match places[..] {
            [only] => Ok(only),
            [] => bail!("does not apply: `{}` not found", self.old.join("\\n")),
            _ => bail!("is ambiguous: its context stands at {} places", places.len()),
        }
    }
}
