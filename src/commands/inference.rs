//! What `generate` and `chat` share: the flags that say which model answers and how, and the model made ready.

use std::hash::{BuildHasher as _, Hasher as _, RandomState};
use std::num::NonZeroU32;
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::str::FromStr;

use anyhow::Context as _;
use clap::builder::RangedU64ValueParser;

use super::exact::ExactArg;
use super::ui::{Interrupt, Problem, Ui};
use crate::data::{Message, Template};
use crate::llama::{
    self, Context, ContextParams, Generated, LoraAdapter, Model, ModelParams, Sampler, SamplerParams, Token,
};

/// Which model answers, on which device.
#[derive(Debug, clap::Args)]
pub struct ModelArgs {
    /// The model, a GGUF file
    #[arg(short, long, value_name = "GGUF")]
    pub model: PathBuf,

    /// A LoRA adapter to apply, with its scale (1 if not given); may be repeated
    #[arg(long = "adapter", value_name = "PATH[:SCALE]")]
    pub adapters: Vec<AdapterArg>,

    /// Device to run on, as `devices` lists them; the first GPU if not given, else the CPU
    #[arg(long, value_name = "NAME")]
    pub device: Option<String>,

    /// Tokens that prompt and answer may have together; at most 4096 if not given, less if the model was trained with less
    #[arg(long, value_name = "TOKENS")]
    pub ctx_size: Option<NonZeroU32>,

    /// CPU threads; if not given one for each physical core, or a few beside a GPU
    #[arg(long, value_name = "N", value_parser = RangedU64ValueParser::<u32>::new().range(1..=512))]
    pub threads: Option<u32>,

    #[command(flatten)]
    pub exact: ExactArg,

    /// Chat template: `chatml`, `llama3`, `gemma`, `zephyr`, `plain`, a Jinja file or its text; the model's own if not given
    #[arg(long, value_name = "TEMPLATE")]
    pub chat_template: Option<String>,

    /// System prompt
    #[arg(long, value_name = "TEXT")]
    pub system: Option<String>,
}

/// How tokens are chosen.
#[derive(Debug, Clone, clap::Args)]
pub struct SamplingArgs {
    /// Keep the K most probable tokens; 0 keeps all
    #[arg(long, value_name = "K", default_value_t = 40)]
    pub top_k: u32,

    /// Keep the most probable tokens that together have probability P
    #[arg(long, value_name = "P", default_value_t = 0.95)]
    pub top_p: f32,

    /// Drop tokens less probable than P times the most probable one
    #[arg(long, value_name = "P", default_value_t = 0.05)]
    pub min_p: f32,

    /// Seed of the random choice; a new one each time if not given
    #[arg(long, value_name = "N")]
    pub seed: Option<u32>,
}

impl SamplingArgs {
    /// The sampler, and the seed that it was given or drew.
    pub fn sampler(&self, temp: f32) -> anyhow::Result<(Sampler, u32)> {
        let seed = self.seed.unwrap_or_else(fresh_seed);
        let params = SamplerParams { temp, top_k: self.top_k, top_p: self.top_p, min_p: self.min_p, seed };
        Ok((Sampler::new(&params).context("cannot choose tokens this way")?, seed))
    }
}

/// Different each time: the keys that std draws for its hash maps.
fn fresh_seed() -> u32 {
    RandomState::new().build_hasher().finish() as u32
}

/// `PATH` or `PATH:SCALE`.
#[derive(Debug, Clone, PartialEq)]
pub struct AdapterArg {
    pub path: PathBuf,
    pub scale: f32,
}

impl FromStr for AdapterArg {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        // What follows the last colon is a scale only if it reads as a number: `C:\adapter.gguf` is a path.
        let (path, scale) = match text.rsplit_once(':').map(|(path, scale)| (path, scale.parse::<f32>())) {
            Some((path, Ok(scale))) => (path, scale),
            _ => (text, 1.0),
        };
        if !scale.is_finite() {
            return Err(format!("a scale must be a finite number, found {scale}"));
        }
        if path.is_empty() {
            return Err("there is no path before the scale".into());
        }
        Ok(Self { path: path.into(), scale })
    }
}

/// A model ready to answer, adapters applied.
pub struct Ready {
    pub context: Context,
    pub interrupt: Interrupt,
}

impl ModelArgs {
    /// Loads model and adapters and makes the context.
    pub fn ready(&self, ui: &Ui) -> anyhow::Result<Ready> {
        let interrupt = Interrupt::install()?;
        let loading = ui.spinner("loading");
        loading.message(self.model.display().to_string());
        let params = ModelParams::on(self.device.as_deref());
        let cannot = || format!("cannot load `{}`", self.model.display());
        self.exact.prepare(&self.model, self.device.as_deref(), ui).with_context(cannot)?;
        let model = Model::load(&self.model, &params).with_context(cannot)?;
        ui.detail(format_args!("`{}` is on device `{}`", self.model.display(), model.device()));
        let mut adapters = Vec::with_capacity(self.adapters.len());
        for AdapterArg { path, scale } in &self.adapters {
            let adapter = LoraAdapter::load(&model, path)
                .with_context(|| format!("cannot apply adapter `{}`", path.display()))?;
            ui.detail(format_args!(
                "adapter `{}`: rank {}, alpha {}, scale {scale}",
                path.display(),
                adapter.rank(),
                adapter.alpha()
            ));
            adapters.push((adapter, *scale));
        }
        let params = ContextParams {
            n_ctx: self.ctx_size,
            n_threads: self.threads.and_then(NonZeroU32::new),
            interrupt: Some(interrupt.flag()),
            ..ContextParams::default()
        };
        let mut context = Context::new(&model, &params).with_context(cannot)?;
        context.set_adapters(&adapters)?;
        Ok(Ready { context, interrupt })
    }

    /// The chat template that was asked for, or the model's.
    pub fn template(&self, context: &Context) -> anyhow::Result<Template> {
        let vocab = context.vocab();
        let own = vocab.chat_template();
        if self.chat_template.is_none() && own.is_none() {
            return Err(Problem::new(
                format!("`{}` has no chat template", self.model.display()),
                "pass `--chat-template chatml`, or `generate --raw` to continue the prompt as plain text",
            )
            .into());
        }
        Template::resolve(self.chat_template.as_deref(), own.as_deref(), vocab)
            .context("cannot use the chat template")
    }
}

/// Lets the model go on from `tokens`, and shows its text as it comes, but with `--json`.
pub fn stream(
    context: &mut Context,
    sampler: &mut Sampler,
    tokens: &[Token],
    max_tokens: Option<usize>,
    ui: &Ui,
) -> anyhow::Result<Generated> {
    let mut shown = Ok(());
    let out = llama::generate(context, sampler, tokens, max_tokens, &mut |piece| {
        if !ui.json() {
            shown = ui.data(piece);
        }
        match shown {
            Ok(()) => ControlFlow::Continue(()),
            Err(_) => ControlFlow::Break(()),
        }
    })?;
    shown?;
    Ok(out)
}

/// Tokens of a conversation up to the header of the answer, as training sees them: special tokens parsed, BOS added
/// where the vocabulary asks for it and the template has not written it.
pub fn chat_tokens(
    context: &Context,
    template: &Template,
    messages: &[Message],
) -> anyhow::Result<Vec<Token>> {
    let text = template
        .prompt(messages, None)
        .map_err(|reason| anyhow::anyhow!("{reason}"))
        .with_context(|| format!("the chat template `{}` refused the conversation", template.name()))?;
    let vocab = context.vocab();
    let mut tokens = vocab.tokenize(&text, false, true)?;
    if let Some(bos) = vocab.bos().filter(|_| vocab.add_bos()) {
        if tokens.first() != Some(&bos) {
            tokens.insert(0, bos);
        }
    }
    Ok(tokens)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_adapter_may_have_a_scale() {
        let parsed = |text: &str| text.parse::<AdapterArg>().map(|a| (a.path.display().to_string(), a.scale));
        assert_eq!(parsed("a.gguf"), Ok(("a.gguf".into(), 1.0)));
        assert_eq!(parsed("dir/a.gguf:0.5"), Ok(("dir/a.gguf".into(), 0.5)));
        assert_eq!(parsed("a.gguf:-2"), Ok(("a.gguf".into(), -2.0)));
        assert_eq!(parsed(r"C:\a.gguf"), Ok((r"C:\a.gguf".into(), 1.0)));
        assert_eq!(parsed("a:b"), Ok(("a:b".into(), 1.0)));
        assert!(parsed("a.gguf:inf").is_err());
        assert!(parsed(":1").is_err());
    }
}
