//! Data files into records: JSON Lines, one JSON array, or plain text.
//!
//! Every record knows its file and line, because every later error names them.

use std::path::Path;
use std::sync::Arc;

use serde_json::value::RawValue;

use super::error::{Error, Origin, Result};
use super::record::{Content, Record};

/// Reads all records of a file. `.txt` is one text; a file that begins with `[` is one JSON array of records (as Alpaca
/// is often handed on); all else is JSON Lines, where blank lines are passed over.
pub fn read(path: &Path) -> Result<Vec<Record>> {
    let bytes = std::fs::read(path).map_err(|source| Error::Read { path: path.into(), source })?;
    let file: Arc<Path> = path.into();
    let text = match std::str::from_utf8(&bytes) {
        Ok(text) => text.strip_prefix('\u{feff}').unwrap_or(text),
        Err(e) => {
            let line = line_of(&bytes, e.valid_up_to());
            return Err(Error::NotUtf8 { origin: Origin { file, line } });
        }
    };
    if text.trim().is_empty() {
        return Err(Error::Empty { path: path.into() });
    }
    let records = if path.extension().is_some_and(|e| e.eq_ignore_ascii_case("txt")) {
        vec![Record { origin: Origin { file, line: 1 }, content: Content::Text(text.into()), label: None }]
    } else if text.trim_start().starts_with('[') {
        array(text, &file)?
    } else {
        lines(text, &file)?
    };
    if records.is_empty() {
        return Err(Error::Empty { path: path.into() });
    }
    Ok(records)
}

fn lines(text: &str, file: &Arc<Path>) -> Result<Vec<Record>> {
    let mut records = Vec::new();
    for (i, line) in text.lines().enumerate() {
        if line.trim().is_empty() {
            continue;
        }
        let origin = Origin { file: file.clone(), line: i + 1 };
        let value = serde_json::from_str(line).map_err(|e| malformed(&e, origin.clone()))?;
        records.push(Record::parse(value, origin)?);
    }
    Ok(records)
}

fn array(text: &str, file: &Arc<Path>) -> Result<Vec<Record>> {
    let at = |line| Origin { file: file.clone(), line };
    let raw: Vec<&RawValue> = serde_json::from_str(text).map_err(|e| malformed(&e, at(e.line())))?;
    let (mut line, mut seen) = (1, 0);
    let mut records = Vec::with_capacity(raw.len());
    for item in raw {
        // A raw value is a slice of the text it was read from, so its address tells where it stood.
        let start = item.get().as_ptr() as usize - text.as_ptr() as usize;
        line += text.as_bytes()[seen..start].iter().filter(|b| **b == b'\n').count();
        seen = start;
        let value = serde_json::from_str(item.get()).map_err(|e| malformed(&e, at(line + e.line() - 1)))?;
        records.push(Record::parse(value, at(line))?);
    }
    Ok(records)
}

/// serde_json ends its message with a position counted within what it was given; ours is within the file.
fn malformed(error: &serde_json::Error, origin: Origin) -> Error {
    let text = error.to_string();
    let reason = text.rsplit_once(" at line ").map_or(text.as_str(), |(head, _)| head).to_owned();
    Error::Json { origin, column: error.column(), reason }
}

fn line_of(bytes: &[u8], offset: usize) -> usize {
    1 + bytes[..offset].iter().filter(|b| **b == b'\n').count()
}
