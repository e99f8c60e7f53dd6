//! What was measured on what, as a table or as JSON.

use std::path::PathBuf;

use serde::Serialize;

use super::source::Source;
use crate::commands::provenance::Provenance;
use crate::commands::ui::{Outcome, Ui};
use crate::ggml::{Device, GgufFile};
use crate::model::survey;

/// What was measured on what.
#[derive(Debug, Serialize)]
pub struct Subject {
    #[serde(flatten)]
    provenance: Provenance,
    /// Null where the model was made for the measurement.
    model: Option<PathBuf>,
    name: String,
    file_bytes: u64,
    n_params: u64,
    /// Of most of the weights.
    #[serde(rename = "type")]
    dtype: &'static str,
    threads: usize,
}

impl Subject {
    pub fn new(source: &Source, file: &GgufFile, device: &Device, threads: usize) -> Self {
        let stem = || source.path().file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let types = survey::types(file);
        Self {
            provenance: Provenance::new(device, Some(file)),
            model: match source {
                Source::Kept(path) => Some(path.clone()),
                Source::Temporary(_) => None,
            },
            name: file.get_str("general.name").ok().flatten().map_or_else(stem, str::to_owned),
            file_bytes: file.len(),
            n_params: types.iter().map(|t| t.n_params).sum(),
            dtype: types.iter().max_by_key(|t| t.n_params).map_or("none", |t| t.name),
            threads,
        }
    }

    /// The same, with what its tokens were drawn by.
    pub fn seeded(self, seed: u64) -> Self {
        Self { provenance: self.provenance.seeded(seed), ..self }
    }

    /// The first cells of a row.
    pub fn cells(&self) -> Vec<String> {
        vec![
            self.name.clone(),
            self.dtype.into(),
            format!("{:.2} MB", self.file_bytes as f64 / 1e6),
            format!("{:.2} M", self.n_params as f64 / 1e6),
            self.provenance.device().to_owned(),
        ]
    }

    pub const HEADERS: [&'static str; 5] = ["model", "type", "size", "params", "device"];
}

/// A subject and what was measured on it.
#[derive(Serialize)]
pub struct Report<S> {
    #[serde(flatten)]
    pub subject: S,
    pub tests: Vec<serde_json::Value>,
}

pub fn report(ui: &Ui, subject: &Subject, tests: Vec<serde_json::Value>) -> anyhow::Result<Outcome> {
    ui.result(&Report { subject, tests })?;
    Ok(Outcome::Done)
}

/// A Markdown table, its columns aligned for eyes; text to the left, figures (all behind the first two columns) to the right.
pub fn table(headers: &[&str], rows: &[Vec<String>]) -> String {
    const TEXT: usize = 2;
    let width = |i: usize| {
        let cells = rows.iter().map(|row| row[i].chars().count());
        cells.chain([headers[i].chars().count()]).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..headers.len()).map(width).collect();
    let line = |cells: Vec<&str>| -> String {
        let cells = cells.iter().zip(&widths).enumerate().map(|(i, (cell, w))| match i < TEXT {
            true => format!(" {cell:<w$} |"),
            false => format!(" {cell:>w$} |"),
        });
        format!("|{}\n", cells.collect::<String>())
    };
    let rule = widths.iter().enumerate().map(|(i, &w)| match i < TEXT {
        true => format!(" {} |", "-".repeat(w)),
        false => format!(" {}: |", "-".repeat(w - 1)),
    });
    let rule = format!("|{}\n", rule.collect::<String>());
    let rows = rows.iter().map(|row| line(row.iter().map(String::as_str).collect()));
    line(headers.to_vec()) + &rule + &rows.collect::<String>()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_is_aligned() {
        let rows =
            [vec!["nano".into(), "f16".into(), "1.5".into()], vec!["x".into(), "".into(), "10.5".into()]];
        assert_eq!(
            table(&["model", "type", "ms"], &rows),
            "| model | type |   ms |\n| ----- | ---- | ---: |\n| nano  | f16  |  1.5 |\n| x     |      | 10.5 |\n"
        );
    }
}
