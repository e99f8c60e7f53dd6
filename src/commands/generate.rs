//! `generate`: one prompt, one answer, through libllama.

use std::io::{self, IsTerminal, Read};
use std::path::PathBuf;

use anyhow::Context as _;
use serde::Serialize;

use super::inference::{chat_tokens, stream, ModelArgs, SamplingArgs};
use super::ui::{Outcome, Problem, Ui};
use crate::data::Message;
use crate::llama::{Context, Generated, Stop, Token};

/// Answer one prompt, with or without an adapter
///
/// The prompt is put into the model's chat template, unless `--raw`. With `--temp` 0, the default, the most probable
/// token is taken each time, so that the same prompt has the same answer and two adapters can be compared.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    model: ModelArgs,

    /// The prompt; read from stdin if neither this nor --file is given
    #[arg(short, long, value_name = "TEXT", conflicts_with = "file")]
    prompt: Option<String>,

    /// A file with the prompt; `-` is stdin
    #[arg(short, long, value_name = "PATH")]
    file: Option<PathBuf>,

    /// Continue the prompt as plain text, without a chat template
    #[arg(long, conflicts_with_all = ["system", "chat_template"])]
    raw: bool,

    /// Most tokens to generate; until the context is full if 0
    #[arg(short = 'n', long, value_name = "N", default_value_t = 256)]
    max_tokens: usize,

    /// Temperature: 0 always takes the most probable token
    #[arg(long, value_name = "T", default_value_t = 0.0)]
    temp: f32,

    #[command(flatten)]
    sampling: SamplingArgs,
}

#[derive(Debug, Serialize)]
struct Report<'a> {
    text: &'a str,
    tokens: &'a [Token],
    n_prompt: usize,
    n_generated: usize,
    prompt_tokens_per_second: f64,
    tokens_per_second: f64,
    stop: Stop,
    /// Null for the most probable token, which needs none.
    seed: Option<u32>,
    device: &'a str,
}

pub fn run(args: Args, ui: &Ui) -> anyhow::Result<Outcome> {
    let (mut sampler, seed) = args.sampling.sampler(args.temp)?;
    let text = args.text()?;
    let mut context = args.model.ready(ui)?.context;
    let tokens = args.tokens(&context, &text)?;
    let max_tokens = Some(args.max_tokens).filter(|&n| n > 0);

    let out =
        stream(&mut context, &mut sampler, &tokens, max_tokens, ui).context("cannot answer the prompt")?;

    if ui.json() {
        ui.result(&Report {
            text: &out.text,
            tokens: &out.tokens,
            n_prompt: out.n_prompt,
            n_generated: out.tokens.len(),
            prompt_tokens_per_second: out.prompt_tokens_per_second(),
            tokens_per_second: out.tokens_per_second(),
            stop: out.stop,
            seed: (args.temp > 0.0).then_some(seed),
            device: context.model().device(),
        })?;
    } else {
        ui.data("\n")?;
        ui.info(summary(&out));
    }
    Ok(Outcome::Done)
}

/// `12 prompt tokens at 80.1/s, 33 tokens at 21.0/s`, and what cut it short, if something did.
pub(super) fn summary(out: &Generated) -> String {
    let cut = match out.stop {
        Stop::EndOfGeneration => "",
        Stop::MaxTokens => "; stopped at `--max-tokens`",
        Stop::ContextFull => "; stopped because the context is full (`--ctx-size`)",
        Stop::Interrupted => "; interrupted",
    };
    format!(
        "{} prompt tokens at {:.1}/s, {} tokens at {:.1}/s{cut}",
        out.n_prompt,
        out.prompt_tokens_per_second(),
        out.tokens.len(),
        out.tokens_per_second(),
    )
}

impl Args {
    fn text(&self) -> anyhow::Result<String> {
        let text = match (&self.prompt, &self.file) {
            (Some(prompt), _) => prompt.clone(),
            (None, Some(path)) if path.as_os_str() != "-" => std::fs::read_to_string(path)
                .with_context(|| format!("cannot read the prompt from `{}`", path.display()))?,
            (None, None) if io::stdin().is_terminal() => {
                return Err(Problem::new("there is no prompt", "pass `--prompt`, or `--file`").into());
            }
            (None, _) => {
                let mut text = String::new();
                io::stdin().read_to_string(&mut text).context("cannot read the prompt from stdin")?;
                text
            }
        };
        // A file and `echo` end with a newline that nobody means.
        let text = if self.prompt.is_some() { text } else { text.trim_end_matches(['\r', '\n']).to_owned() };
        if text.is_empty() && !self.raw {
            return Err(Problem::new("the prompt is empty", "pass `--prompt`, or `--file`").into());
        }
        Ok(text)
    }

    fn tokens(&self, context: &Context, text: &str) -> anyhow::Result<Vec<Token>> {
        if self.raw {
            let tokens = context.vocab().tokenize(text, true, true)?;
            if tokens.is_empty() {
                return Err(Problem::new("the prompt has no tokens", "pass `--prompt`, or `--file`").into());
            }
            return Ok(tokens);
        }
        let template = self.model.template(context)?;
        let mut messages = Vec::new();
        if let Some(system) = &self.model.system {
            messages.push(Message::new("system", system));
        }
        messages.push(Message::new("user", text));
        chat_tokens(context, &template, &messages)
    }
}
