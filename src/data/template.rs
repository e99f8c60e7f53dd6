//! A chat template: a conversation into the text that the model was trained on.
//!
//! The same `Template` serves training data and, through [`Template::prompt`], inference, so that both see one text.

use std::path::Path;

use minijinja::Environment;
use serde_json::Value;

use super::error::{Error, Result};
use super::jinja;
use super::record::Message;
use super::tokenizer::Tokenizer;

/// Built-in templates by name; one file each in `templates/`.
pub const BUILTIN: &[(&str, &str)] = &[
    ("chatml", include_str!("templates/chatml.jinja")),
    ("llama3", include_str!("templates/llama3.jinja")),
    ("gemma", include_str!("templates/gemma.jinja")),
    ("zephyr", include_str!("templates/zephyr.jinja")),
    ("plain", include_str!("templates/plain.jinja")),
    ("raw", include_str!("templates/raw.jinja")),
];

/// A parsed chat template.
#[derive(Debug, Clone)]
pub struct Template {
    name: String,
    env: Environment<'static>,
    bos: String,
    eos: String,
}

const ENTRY: &str = "chat";

impl Template {
    /// Parses `source`. `name` is for messages to the user. `bos_token` and `eos_token` are those of the vocabulary.
    ///
    /// `strftime_now` answers with the time of this call, for as long as the template lives; see [`Self::at_time`].
    pub fn new(name: &str, source: &str, tokenizer: &dyn Tokenizer) -> Result<Self> {
        let mut env = jinja::environment();
        env.add_template_owned(ENTRY, jinja::prepare(source))
            .map_err(|e| Error::TemplateSyntax { name: name.into(), reason: jinja::reason(&e) })?;
        let bos = tokenizer.text_of(tokenizer.bos())?;
        let eos = tokenizer.text_of(tokenizer.eos())?;
        Ok(Self { name: name.into(), env, bos, eos })
    }

    /// What `--chat-template` means: a built-in name, the template itself (it contains `{{` or `{%`), or a file.
    /// Without the flag, the model's own template.
    pub fn resolve(flag: Option<&str>, model: Option<&str>, tokenizer: &dyn Tokenizer) -> Result<Self> {
        let Some(flag) = flag else {
            return Self::new("of the model", model.ok_or(Error::NoTemplate)?, tokenizer);
        };
        if let Some((name, source)) = BUILTIN.iter().find(|(name, _)| *name == flag) {
            return Self::new(name, source, tokenizer);
        }
        if flag.contains("{{") || flag.contains("{%") {
            return Self::new("given in place", flag, tokenizer);
        }
        let path = Path::new(flag);
        if !path.is_file() {
            return Err(Error::NoSuchTemplate { name: flag.into() });
        }
        let source =
            std::fs::read_to_string(path).map_err(|source| Error::Read { path: path.into(), source })?;
        Self::new(flag, &source, tokenizer)
    }

    /// Fixes what `strftime_now` answers, in seconds since 1970 (UTC). Templates that write today's date would
    /// otherwise give other tokens tomorrow, and a resumed run other data.
    pub fn at_time(mut self, seconds: i64) -> Self {
        jinja::set_time(&mut self.env, seconds);
        self
    }

    /// The name for messages to the user.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The text of a conversation that is to be answered: with the header of the assistant's next turn.
    pub fn prompt(&self, messages: &[Message], tools: Option<&Value>) -> Result<String, String> {
        self.render(messages, tools, true)
    }

    /// The text of a conversation. The error is the template's own complaint, or minijinja's.
    pub(super) fn render(
        &self,
        messages: &[Message],
        tools: Option<&Value>,
        add_generation_prompt: bool,
    ) -> Result<String, String> {
        let messages: Vec<Value> = messages.iter().map(Message::to_value).collect();
        let context = minijinja::context! {
            messages => minijinja::Value::from_serialize(&messages),
            // Absent tools are none and not undefined: templates ask both ways.
            tools => tools.map(minijinja::Value::from_serialize),
            add_generation_prompt,
            bos_token => self.bos,
            eos_token => self.eos,
        };
        let template = self.env.get_template(ENTRY).map_err(|e| jinja::reason(&e))?;
        template.render(context).map_err(|e| jinja::reason(&e))
    }
}
