//! `man`: the manual pages, from the same definitions as `--help`.

use std::fs;
use std::path::PathBuf;

use anyhow::Context as _;

use super::ui::{Outcome, Ui};

/// Print the manual page, or write the pages of all commands to a folder
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Folder to write `qvac-ft.1`, `qvac-ft-train.1` ... to; made if it is not there
    dir: Option<PathBuf>,
}

/// `program` is the whole command line, which `cli` composes.
pub fn run(args: Args, program: clap::Command, ui: &Ui) -> anyhow::Result<Outcome> {
    let Some(dir) = args.dir else {
        let mut page = Vec::new();
        clap_mangen::Man::new(program).render(&mut page).context("cannot write the manual page")?;
        if ui.json() {
            ui.result(&serde_json::json!({ "page": String::from_utf8_lossy(&page) }))?;
        } else {
            ui.data(page)?;
        }
        return Ok(Outcome::Done);
    };
    let cannot = || format!("cannot write manual pages to `{}`", dir.display());
    fs::create_dir_all(&dir).with_context(cannot)?;
    let mut files = Vec::new();
    for (file, page) in pages(program) {
        let path = dir.join(file);
        fs::write(&path, page).with_context(cannot)?;
        files.push(path);
    }
    if ui.json() {
        ui.result(&serde_json::json!({ "files": files }))?;
    } else {
        ui.info(format_args!("{} pages are in `{}`", files.len(), dir.display()));
    }
    Ok(Outcome::Done)
}

/// One page for the program and one for each command, nested ones too: `qvac-ft-data-inspect.1`.
fn pages(program: clap::Command) -> Vec<(String, Vec<u8>)> {
    let mut program = program.disable_help_subcommand(true);
    // Gives nested commands their global flags and full names.
    program.build();
    let mut pages = Vec::new();
    collect(program, None, &mut pages);
    pages
}

fn collect(command: clap::Command, parent: Option<&str>, pages: &mut Vec<(String, Vec<u8>)>) {
    let name = match parent {
        Some(parent) => format!("{parent}-{}", command.get_name()),
        None => command.get_name().to_owned(),
    };
    for nested in command.get_subcommands().filter(|c| !c.is_hide_set()) {
        collect(nested.clone(), Some(&name), pages);
    }
    let mut page = Vec::new();
    // Writing to memory does not fail.
    let _ = clap_mangen::Man::new(command.display_name(name.clone())).render(&mut page);
    pages.push((format!("{name}.1"), page));
}
