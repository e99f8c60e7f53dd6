//! `completions`: what a shell needs to complete the program's flags.

use super::ui::{Outcome, Ui};

/// Print the completion script of a shell
///
/// bash: qvac-ft completions bash > ~/.local/share/bash-completion/completions/qvac-ft
#[derive(Debug, clap::Args)]
pub struct Args {
    shell: clap_complete::Shell,
}

/// `program` is the whole command line, which `cli` composes.
pub fn run(args: Args, mut program: clap::Command, ui: &Ui) -> anyhow::Result<Outcome> {
    let name = program.get_name().to_owned();
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut program, name, &mut script);
    if ui.json() {
        ui.result(&serde_json::json!({
            "shell": args.shell.to_string(),
            "script": String::from_utf8_lossy(&script),
        }))?;
    } else {
        ui.data(script)?;
    }
    Ok(Outcome::Done)
}
