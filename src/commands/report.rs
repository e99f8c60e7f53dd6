//! `report`: runs and measurements as a page that can be sent to somebody.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use anyhow::Context as _;
use serde_json::json;

use super::ui::{Outcome, Ui};
use crate::report::{charts, html, markdown, png, svg, Chart, Input, Look, Note};

/// Make a page of plots and tables from runs and measurements
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Folders of runs, and files of results: what `bench` wrote with `--json`, or `scripts/figures`
    #[arg(required = true, value_name = "RUN_OR_BENCH")]
    inputs: Vec<PathBuf>,

    /// The page, an HTML file that needs nothing else; if not given, `report.html` in the folder of the only run, else here
    #[arg(short, long, value_name = "FILE")]
    out: Option<PathBuf>,

    /// Write tables as Markdown, too, with the pictures of `--svg` or `--png`
    #[arg(long, value_name = "FILE")]
    markdown: Option<PathBuf>,

    /// Write each picture as SVG, too, to this folder
    #[arg(long, value_name = "DIR")]
    svg: Option<PathBuf>,

    /// Write each picture as PNG, too, to this folder
    #[arg(long, value_name = "DIR")]
    png: Option<PathBuf>,
}

/// The file in a run's folder.
pub const FILE: &str = "report.html";

/// Runs `report`.
pub fn run(args: Args, ui: &Ui) -> anyhow::Result<Outcome> {
    let input = Input::read(&args.inputs).context("cannot read what to report")?;
    let charts = charts(&input);
    let note = note();
    let out = args.out.clone().unwrap_or_else(|| match input.runs.as_slice() {
        [run] if input.is_runs() => run.path.join(FILE),
        _ => PathBuf::from(FILE),
    });
    let page = html(&input, &charts, &note).context("cannot make the page")?;
    write(&out, page.as_bytes())?;

    let mut pictures = Vec::new();
    let mut shown: Vec<(&Chart, String)> = Vec::new();
    let formats: [(&Option<PathBuf>, &str); 2] = [(&args.svg, "svg"), (&args.png, "png")];
    for (folder, ending) in formats {
        let Some(folder) = folder else { continue };
        fs::create_dir_all(folder).with_context(|| format!("cannot create `{}`", folder.display()))?;
        for chart in &charts {
            let bytes = match ending {
                "png" => png(chart)?,
                _ => svg(chart, Look::Alone)?.svg.into_bytes(),
            };
            let path = folder.join(format!("{}.{ending}", chart.id));
            write(&path, &bytes)?;
            // One of each is enough in a text; SVG has the colours for dark screens.
            if let (Some(text), true) = (&args.markdown, ending == "svg" || args.svg.is_none()) {
                shown.push((chart, from_beside(text, &path)));
            }
            pictures.push(path);
        }
    }
    if let Some(path) = &args.markdown {
        write(path, markdown(&input, &shown, &note).as_bytes())?;
    }
    if ui.json() {
        ui.result(&json!({
            "html": out,
            "markdown": args.markdown,
            "pictures": pictures,
            "runs": input.runs.len(),
            "measurements": input.measurements.len(),
        }))?;
        return Ok(Outcome::Done);
    }
    ui.line(out.display())?;
    for path in args.markdown.iter().chain(&pictures) {
        ui.line(path.display())?;
    }
    Ok(Outcome::Done)
}

/// Writes the page of one run into its folder.
pub fn write_beside(run: &Path) -> anyhow::Result<PathBuf> {
    let input = Input::read(&[run.to_path_buf()])?;
    let out = run.join(FILE);
    write(&out, html(&input, &charts(&input), &note())?.as_bytes())?;
    Ok(out)
}

fn note() -> Note {
    let time = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |d| d.as_secs() as i64);
    Note { version: env!("CARGO_PKG_VERSION"), time }
}

fn write(path: &Path, content: &[u8]) -> anyhow::Result<()> {
    fs::write(path, content).with_context(|| format!("cannot write `{}`", path.display()))
}

/// How a text names a picture: from its own folder where the picture lies below that, else from the root.
fn from_beside(text: &Path, picture: &Path) -> String {
    let folder = text.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let (Ok(folder), Ok(picture)) = (fs::canonicalize(folder), fs::canonicalize(picture)) else {
        return picture.display().to_string();
    };
    picture.strip_prefix(&folder).unwrap_or(&picture).display().to_string()
}
