//! What one record says: a conversation or a text, whichever of the known shapes it is written in.
//!
//! Shapes are told apart by their fields, each record for itself. Prompt/completion and Alpaca become conversations of
//! one question and one answer, so that they are written by the same chat template that inference will use.

use serde_json::{Map, Value};

use super::error::{Error, Origin, Result};

/// One record of a data file.
#[derive(Debug, Clone, PartialEq)]
pub struct Record {
    pub origin: Origin,
    pub content: Content,
    /// The `label` field, for classification.
    pub label: Option<String>,
}

/// What a record holds.
#[derive(Debug, Clone, PartialEq)]
pub enum Content {
    Chat {
        messages: Vec<Message>,
        /// Tool declarations, handed to the chat template as they are.
        tools: Option<Value>,
    },
    Text(String),
}

/// One message of a conversation.
#[derive(Debug, Clone, PartialEq)]
pub struct Message {
    pub role: String,
    pub content: String,
    /// Everything else a template may want: `name`, `tool_calls`, `tool_call_id`, `reasoning_content`.
    pub rest: Map<String, Value>,
    /// False if the record says `"weight": 0`, OpenAI's way to keep one answer out of the loss.
    pub trained: bool,
}

impl Message {
    /// A message of nothing but text.
    pub fn new(role: &str, content: impl Into<String>) -> Self {
        Self { role: role.into(), content: content.into(), rest: Map::new(), trained: true }
    }

    /// Whether this is the model's turn.
    pub fn is_assistant(&self) -> bool {
        self.role == "assistant"
    }

    /// The object a chat template sees.
    pub(super) fn to_value(&self) -> Value {
        let mut object = Map::new();
        object.insert("role".into(), self.role.clone().into());
        object.insert("content".into(), self.content.clone().into());
        object.extend(self.rest.clone());
        Value::Object(object)
    }
}

const ROLES: [&str; 6] = ["system", "developer", "user", "assistant", "tool", "function"];

/// Names that ShareGPT files use in `from`, and the role each means.
const SHAREGPT_ROLES: [(&str, &str); 8] = [
    ("human", "user"),
    ("gpt", "assistant"),
    ("chatgpt", "assistant"),
    ("bing", "assistant"),
    ("bard", "assistant"),
    ("model", "assistant"),
    ("observation", "tool"),
    ("function_response", "tool"),
];

impl Record {
    /// Reads one parsed record.
    pub fn parse(value: Value, origin: Origin) -> Result<Self> {
        let Value::Object(mut fields) = value else {
            return Err(Error::NotAnObject { origin, found: kind(&value) });
        };
        let at = At { origin: &origin };
        let label = match fields.remove("label") {
            None | Some(Value::Null) => None,
            Some(Value::String(s)) => Some(s),
            // Class ids and the booleans of preference sets are labels too, by their names.
            Some(v @ (Value::Bool(_) | Value::Number(_))) => Some(v.to_string()),
            Some(v) => return Err(at.wrong("label", "a string", &v)),
        };
        let tools = match fields.remove("tools") {
            None | Some(Value::Null) => None,
            Some(Value::String(s)) => Some(
                serde_json::from_str(&s)
                    .map_err(|_| at.wrong("tools", "an array", &Value::String(s.clone())))?,
            ),
            Some(v @ Value::Array(_)) => Some(v),
            Some(v) => return Err(at.wrong("tools", "an array", &v)),
        };
        let content = at.content(&mut fields, tools)?;
        Ok(Self { origin, content, label })
    }
}

/// The record being read, for its errors.
struct At<'a> {
    origin: &'a Origin,
}

impl At<'_> {
    fn content(&self, fields: &mut Map<String, Value>, tools: Option<Value>) -> Result<Content> {
        let messages = if let Some(v) = fields.remove("messages") {
            self.messages("messages", v)?
        } else if let Some(v) = fields.remove("conversations") {
            let mut messages = self.sharegpt(v)?;
            self.prepend_system(fields, &mut messages)?;
            messages
        } else if fields.contains_key("prompt") && fields.contains_key("completion") {
            self.prompt_completion(fields)?
        } else if fields.contains_key("instruction") && fields.contains_key("output") {
            self.alpaca(fields)?
        } else if let Some(v) = fields.remove("text") {
            let text = self.string("text", v)?;
            if text.trim().is_empty() {
                return Err(Error::EmptyText { origin: self.origin.clone() });
            }
            return Ok(Content::Text(text));
        } else {
            let found = fields.keys().cloned().collect();
            return Err(Error::UnknownShape { origin: self.origin.clone(), found });
        };
        Ok(Content::Chat { messages, tools })
    }

    fn prompt_completion(&self, fields: &mut Map<String, Value>) -> Result<Vec<Message>> {
        let mut messages = Vec::new();
        self.prepend_system(fields, &mut messages)?;
        for (field, role) in [("prompt", "user"), ("completion", "assistant")] {
            match fields.remove(field) {
                Some(v @ Value::Array(_)) => messages.extend(self.messages(field, v)?),
                Some(v) => messages.push(Message::new(role, self.string(field, v)?)),
                None => return Err(self.missing(field)),
            }
        }
        Ok(messages)
    }

    fn alpaca(&self, fields: &mut Map<String, Value>) -> Result<Vec<Message>> {
        let mut messages = Vec::new();
        self.prepend_system(fields, &mut messages)?;
        let mut question = self.field(fields, "instruction")?;
        if let Some(input) = self.optional(fields, "input")?.filter(|s| !s.is_empty()) {
            question = format!("{question}\n\n{input}");
        }
        messages.push(Message::new("user", question));
        messages.push(Message::new("assistant", self.field(fields, "output")?));
        Ok(messages)
    }

    fn sharegpt(&self, value: Value) -> Result<Vec<Message>> {
        self.turns("conversations", value, |name, mut turn| {
            // Some ShareGPT exports carry OpenAI's names inside.
            if turn.contains_key("role") {
                return self.message(name, turn);
            }
            let from = turn.remove("from").ok_or_else(|| self.missing(&format!("{name}.from")))?;
            let from = self.string(&format!("{name}.from"), from)?;
            let role = SHAREGPT_ROLES.iter().find(|(n, _)| *n == from).map_or(from.as_str(), |(_, r)| r);
            self.known_role(&format!("{name}.from"), role)?;
            let value = turn.remove("value").ok_or_else(|| self.missing(&format!("{name}.value")))?;
            let mut message = Message::new(role, self.string(&format!("{name}.value"), value)?);
            message.trained = self.weight(name, &mut turn)?;
            Ok(message)
        })
    }

    fn messages(&self, field: &str, value: Value) -> Result<Vec<Message>> {
        self.turns(field, value, |name, turn| self.message(name, turn))
    }

    fn turns(
        &self,
        field: &str,
        value: Value,
        read: impl Fn(&str, Map<String, Value>) -> Result<Message>,
    ) -> Result<Vec<Message>> {
        let Value::Array(turns) = value else {
            return Err(self.wrong(field, "an array of messages", &value));
        };
        if turns.is_empty() {
            return Err(Error::FieldType {
                origin: self.origin.clone(),
                field: field.into(),
                expected: "a non-empty array of messages",
                found: "an empty one".into(),
            });
        }
        let read_one = |(i, turn)| {
            let name = format!("{field}[{i}]");
            match turn {
                Value::Object(turn) => read(&name, turn),
                other => Err(self.wrong(&name, "an object", &other)),
            }
        };
        turns.into_iter().enumerate().map(read_one).collect()
    }

    fn message(&self, name: &str, mut turn: Map<String, Value>) -> Result<Message> {
        let role = turn.remove("role").ok_or_else(|| self.missing(&format!("{name}.role")))?;
        let role = self.string(&format!("{name}.role"), role)?;
        self.known_role(&format!("{name}.role"), &role)?;
        let calls = turn.get("tool_calls").is_some_and(|v| !v.is_null());
        let content = match turn.remove("content") {
            // A turn that only calls tools has no text, and OpenAI writes that as null.
            None | Some(Value::Null) if calls => String::new(),
            None => return Err(self.missing(&format!("{name}.content"))),
            Some(Value::Array(parts)) => self.text_parts(name, parts)?,
            Some(v) => self.string(&format!("{name}.content"), v)?,
        };
        let trained = self.weight(name, &mut turn)?;
        if let Some(calls) = turn.get_mut("tool_calls") {
            parse_arguments(calls);
        }
        turn.retain(|_, v| !v.is_null());
        Ok(Message { role, content, rest: turn, trained })
    }

    /// `[{"type": "text", "text": ...}]`, joined; any other type of part is an error.
    fn text_parts(&self, name: &str, parts: Vec<Value>) -> Result<String> {
        let mut text = String::new();
        for (i, part) in parts.into_iter().enumerate() {
            match part.get("text") {
                Some(Value::String(s)) => text.push_str(s),
                _ => return Err(self.wrong(&format!("{name}.content[{i}]"), "a part with `text`", &part)),
            }
        }
        Ok(text)
    }

    fn weight(&self, name: &str, turn: &mut Map<String, Value>) -> Result<bool> {
        match turn.remove("weight") {
            None | Some(Value::Null) => Ok(true),
            Some(v) => match v.as_f64() {
                Some(w) if w == 0.0 || w == 1.0 => Ok(w == 1.0),
                _ => Err(Error::FieldType {
                    origin: self.origin.clone(),
                    field: format!("{name}.weight"),
                    expected: "0 or 1",
                    found: v.to_string(),
                }),
            },
        }
    }

    fn known_role(&self, field: &str, role: &str) -> Result<()> {
        if ROLES.contains(&role) {
            return Ok(());
        }
        Err(Error::FieldType {
            origin: self.origin.clone(),
            field: field.into(),
            expected: "one of `system`, `developer`, `user`, `assistant`, `tool`, `function`",
            found: format!("`{role}`"),
        })
    }

    fn prepend_system(&self, fields: &mut Map<String, Value>, messages: &mut Vec<Message>) -> Result<()> {
        if let Some(system) = self.optional(fields, "system")?.filter(|s| !s.is_empty()) {
            messages.insert(0, Message::new("system", system));
        }
        Ok(())
    }

    fn field(&self, fields: &mut Map<String, Value>, field: &str) -> Result<String> {
        let value = fields.remove(field).ok_or_else(|| self.missing(field))?;
        self.string(field, value)
    }

    fn optional(&self, fields: &mut Map<String, Value>, field: &str) -> Result<Option<String>> {
        match fields.remove(field) {
            None | Some(Value::Null) => Ok(None),
            Some(v) => self.string(field, v).map(Some),
        }
    }

    fn string(&self, field: &str, value: Value) -> Result<String> {
        match value {
            Value::String(s) => Ok(s),
            other => Err(self.wrong(field, "a string", &other)),
        }
    }

    fn wrong(&self, field: &str, expected: &'static str, found: &Value) -> Error {
        let origin = self.origin.clone();
        Error::FieldType { origin, field: field.into(), expected, found: kind(found).into() }
    }

    fn missing(&self, field: &str) -> Error {
        Error::MissingField { origin: self.origin.clone(), field: field.into() }
    }
}

/// OpenAI stores a call's arguments as a string of JSON; templates want the object itself and would quote it twice.
fn parse_arguments(calls: &mut Value) {
    for call in calls.as_array_mut().into_iter().flatten() {
        for holder in ["", "/function"] {
            if let Some(arguments) = call.pointer_mut(holder).and_then(|c| c.get_mut("arguments")) {
                if let Some(Ok(parsed @ Value::Object(_))) = arguments.as_str().map(serde_json::from_str) {
                    *arguments = parsed;
                }
            }
        }
    }
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}
