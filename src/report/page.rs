//! A report as one HTML file that needs nothing else, or as Markdown.

use minijinja::{context, AutoEscape, Environment};
use serde::Serialize;

use super::chart::Chart;
use super::error::Result;
use super::plot::{svg, Look};
use super::table::{tables, tiles, Table};
use super::{theme, Input};
use crate::data::strftime;

/// When and by what a report was written.
#[derive(Clone, Debug, Serialize)]
pub struct Note {
    pub version: &'static str,
    /// Seconds since 1970.
    pub time: i64,
}

#[derive(Serialize)]
struct Figure {
    id: &'static str,
    title: String,
    note: String,
    svg: String,
    hover: Option<String>,
}

/// The page: figures, tables, and a picture for each of `charts`.
pub fn html(input: &Input, charts: &[Chart], note: &Note) -> Result<String> {
    let mut env = Environment::new();
    env.set_auto_escape_callback(|_| AutoEscape::Html);
    env.set_trim_blocks(true);
    env.set_lstrip_blocks(true);
    env.add_template("page", include_str!("page.html.jinja"))?;
    let figure = |chart: &Chart| -> Result<Figure> {
        let picture = svg(chart, Look::Inline)?;
        Ok(Figure {
            id: chart.id,
            title: chart.title.clone(),
            note: chart.note.clone(),
            svg: picture.svg,
            // A `<` would end the script that it stands in.
            hover: picture.hover.map(|h| h.to_string().replace('<', "\\u003c")),
        })
    };
    let figures = charts.iter().map(figure).collect::<Result<Vec<_>>>()?;
    let tables: Vec<_> = tables(input)
        .iter()
        .map(|t| context! { title => t.title, headers => t.headers, rows => t.rows, figures_from => t.figures_from.min(99) })
        .collect();
    Ok(env.get_template("page")?.render(context! {
        title => title(input),
        subtitle => subtitle(input),
        tiles => tiles(input),
        figures,
        tables,
        style => include_str!("page.css").replace("/*dark*/", &theme::dark_rules()),
        script => include_str!("page.js"),
        version => note.version,
        time => utc(note.time),
    })?)
}

/// Tables, with the pictures that were written: the path of each by its chart, as the document says it.
pub fn markdown(input: &Input, pictures: &[(&Chart, String)], note: &Note) -> String {
    let mut out = format!("# {}\n", title(input));
    for tile in tiles(input) {
        let note = if tile.note.is_empty() { String::new() } else { format!(" ({})", tile.note) };
        out.push_str(&format!("\n- {}: **{}**{note}", tile.name, tile.value));
    }
    for (chart, path) in pictures {
        out.push_str(&format!("\n\n## {}\n\n![{}]({path})", chart.title, chart.note));
    }
    for table in tables(input) {
        out.push_str(&format!("\n\n## {}\n\n{}", table.title, rows(&table).trim_end()));
    }
    format!("{}\n\nqvac-ft {}, {}\n", out.trim_end(), note.version, utc(note.time))
}

fn rows(table: &Table) -> String {
    let line = |cells: &[String]| {
        let cells = cells.iter().map(|c| format!(" {} |", c.replace('|', "\\|").replace('\n', " ")));
        format!("|{}\n", cells.collect::<String>())
    };
    let rule = (0..table.headers.len()).map(|i| if i < table.figures_from { " --- |" } else { " ---: |" });
    let rule = format!("|{}\n", rule.collect::<String>());
    line(&table.headers) + &rule + &table.rows.iter().map(|r| line(r)).collect::<String>()
}

fn title(input: &Input) -> String {
    match (input.runs.as_slice(), input.is_runs()) {
        ([run], true) => format!("Run {}", run.name),
        ([], _) => "Measurements".into(),
        (runs, true) => format!("{} runs", runs.len()),
        ([run], false) => format!("Run {} and measurements", run.name),
        (runs, false) => format!("{} runs and measurements", runs.len()),
    }
}

/// Which model, where: what tells two reports apart at a glance.
fn subtitle(input: &Input) -> String {
    let mut facts: Vec<String> = Vec::new();
    let mut add = |fact: Option<&str>| {
        let fact = fact.map(str::trim).unwrap_or_default();
        if !fact.is_empty() && !facts.iter().any(|f| f == fact) {
            facts.push(fact.to_owned());
        }
    };
    for run in &input.runs {
        let model = run.config["model"].as_str().map(std::path::Path::new);
        add(model.and_then(|m| m.file_stem()).and_then(|m| m.to_str()));
    }
    input.measurements.iter().for_each(|m| add(Some(&m.model)));
    for run in &input.runs {
        add(run.config["how"]["device_description"].as_str());
    }
    input.measurements.iter().for_each(|m| add(Some(&m.device_description)));
    facts.join(" · ")
}

fn utc(seconds: i64) -> String {
    strftime("%F %H:%M UTC", seconds)
}
