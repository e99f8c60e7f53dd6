//! `config.json`: which network a folder holds, its sizes, and how its linear layers are quantized.
//!
//! To add a family: a variant of [`Family`] with its names, and its line in [`Family::of`].

use std::path::{Path, PathBuf};

use serde_json::Value;

use super::checkpoint::read_json;
use super::error::{Error, Result};

/// Networks that can be converted, by what tells them apart in a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// `BitNetForCausalLM` with ReLU^2: microsoft/bitnet-b1.58-2B-4T.
    BitnetB158,
    /// `BitNetForCausalLM` with SiLU: the network of `BitnetForCausalLM` under other names.
    Bitnet,
    /// `BitnetForCausalLM`: 1bitLLM.
    OneBit,
    Llama,
}

const CLASSES: &str = "BitNetForCausalLM, BitnetForCausalLM, LlamaForCausalLM";

impl Family {
    fn of(class: &str, activation: &str) -> Result<Option<Self>, &'static str> {
        match (class, activation) {
            ("BitNetForCausalLM", "relu2") => Ok(Some(Self::BitnetB158)),
            ("BitNetForCausalLM", "silu") => Ok(Some(Self::Bitnet)),
            ("BitNetForCausalLM", _) => Err("`relu2` or `silu`"),
            ("BitnetForCausalLM", "silu") => Ok(Some(Self::OneBit)),
            ("LlamaForCausalLM" | "LLaMAForCausalLM", "silu") => Ok(Some(Self::Llama)),
            ("BitnetForCausalLM" | "LlamaForCausalLM" | "LLaMAForCausalLM", _) => Err("`silu`"),
            _ => Ok(None),
        }
    }

    /// `general.architecture` of the result.
    pub fn architecture(self) -> &'static str {
        match self {
            Self::BitnetB158 => "bitnet-b1.58",
            Self::Bitnet | Self::OneBit => "bitnet",
            Self::Llama => "llama",
        }
    }

    /// The tensors of the norms before the output projections, if there are such.
    pub(super) fn sub_norms(self) -> Option<(&'static str, &'static str)> {
        match self {
            Self::BitnetB158 | Self::Bitnet => Some(("self_attn.attn_sub_norm", "mlp.ffn_sub_norm")),
            Self::OneBit => Some(("self_attn.inner_attn_ln", "mlp.ffn_layernorm")),
            Self::Llama => None,
        }
    }
}

/// `linear_class` of transformers' BitNet quantization.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum LinearClass {
    /// Divides by `weight_scale`.
    BitLinear,
    /// Multiplies by it.
    AutoBitLinear,
}

/// `quantization_config` with the method `bitnet`.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Quantization {
    pub class: LinearClass,
    /// Float weights are masters that the network quantizes each time.
    pub online: bool,
    /// Parts of names of layers that are no such linears.
    pub skip: Vec<String>,
}

/// What becomes of rotary positions beyond the base frequency.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum RopeScaling {
    None,
    Linear { factor: f32 },
    Llama3 { factor: f32, low: f32, high: f32, original: f32 },
}

#[derive(Debug, Clone, PartialEq)]
pub(super) struct ModelConfig {
    pub path: PathBuf,
    pub json: Value,
    pub family: Family,
    pub n_vocab: usize,
    pub n_embd: usize,
    pub n_ff: usize,
    pub n_layer: usize,
    pub n_head: usize,
    pub n_head_kv: usize,
    pub n_embd_head: usize,
    pub n_ctx: usize,
    pub rms_eps: f32,
    pub rope_base: f32,
    pub rope_scaling: RopeScaling,
    pub tied: bool,
    pub quantization: Option<Quantization>,
}

struct Fields<'a> {
    path: &'a Path,
    json: &'a Value,
}

impl Fields<'_> {
    fn wrong(&self, field: &str, expected: impl Into<String>) -> Error {
        let found = match self.json.pointer(&format!("/{}", field.replace('.', "/"))) {
            Some(value) => value.to_string(),
            None => "missing".into(),
        };
        Error::Config { path: self.path.into(), field: field.into(), found, expected: expected.into() }
    }

    fn size_or(&self, field: &str) -> Result<Option<usize>> {
        match &self.json[field] {
            Value::Null => Ok(None),
            value => {
                let size = value.as_u64().filter(|n| (1..1 << 28).contains(n));
                size.map(|n| Some(n as usize)).ok_or_else(|| self.wrong(field, "a size"))
            }
        }
    }

    fn size(&self, field: &str) -> Result<usize> {
        self.size_or(field)?.ok_or_else(|| self.wrong(field, "a size"))
    }

    fn number_or(&self, field: &str, otherwise: f32) -> Result<f32> {
        match &self.json[field] {
            Value::Null => Ok(otherwise),
            value => {
                let number = value.as_f64().filter(|x| x.is_finite() && *x > 0.0);
                number.map(|x| x as f32).ok_or_else(|| self.wrong(field, "a positive number"))
            }
        }
    }

    /// A yes or no that has to be no.
    fn refuse(&self, field: &str, what: &str) -> Result<()> {
        match self.json[field].as_bool() {
            Some(true) => Err(Error::Unsupported { path: self.path.into(), what: what.into() }),
            _ => Ok(()),
        }
    }
}

impl ModelConfig {
    pub(super) fn read(dir: &Path) -> Result<Self> {
        let path = dir.join("config.json");
        if !path.is_file() {
            return Err(Error::NoFile { dir: dir.into(), file: "config.json" });
        }
        let json = read_json(&path)?;
        let fields = Fields { path: &path, json: &json };
        let class = json["architectures"][0].as_str().unwrap_or_default();
        let activation = json["hidden_act"].as_str().unwrap_or(match class {
            "BitNetForCausalLM" => "relu2",
            _ => "silu",
        });
        let family = match Family::of(class, activation) {
            Ok(Some(family)) => family,
            Ok(None) => return Err(fields.wrong("architectures", format!("one of {CLASSES}"))),
            Err(expected) => return Err(fields.wrong("hidden_act", expected)),
        };
        if json["input_bits"].as_u64().is_some_and(|bits| bits != 8) {
            return Err(fields.wrong("input_bits", "8"));
        }
        let n_embd = fields.size("hidden_size")?;
        let n_head = fields.size("num_attention_heads")?;
        let n_head_kv = fields.size_or("num_key_value_heads")?.unwrap_or(n_head);
        if n_head % n_head_kv != 0 {
            return Err(fields.wrong("num_key_value_heads", format!("a divisor of {n_head}")));
        }
        let n_embd_head = match fields.size_or("head_dim")? {
            Some(n) => n,
            None if n_embd % n_head == 0 => n_embd / n_head,
            None => return Err(fields.wrong("num_attention_heads", format!("a divisor of {n_embd}"))),
        };
        if n_embd_head % 2 != 0 {
            return Err(fields.wrong("num_attention_heads", "heads of an even size"));
        }
        if family != Family::Llama && n_embd_head * n_head != n_embd {
            return Err(fields.wrong("head_dim", format!("{}", n_embd / n_head)));
        }
        if family != Family::Llama {
            fields.refuse("attention_bias", "`attention_bias` in a BitNet model")?;
        }
        let (rope_base, rope_scaling) = rope(&fields)?;
        // What transformers takes where the file says nothing.
        let tied = json["tie_word_embeddings"].as_bool().unwrap_or(false);
        Ok(Self {
            family,
            n_vocab: fields.size("vocab_size")?,
            n_embd,
            n_ff: fields.size("intermediate_size")?,
            n_layer: fields.size("num_hidden_layers")?,
            n_head,
            n_head_kv,
            n_embd_head,
            n_ctx: fields.size_or("max_position_embeddings")?.unwrap_or(2048),
            rms_eps: fields.number_or("rms_norm_eps", 1e-6)?,
            rope_base,
            rope_scaling,
            tied,
            quantization: quantization(&fields)?,
            path: path.clone(),
            json,
        })
    }
}

/// `rope_theta` and `rope_scaling`; newer files have both in `rope_parameters`.
fn rope(fields: &Fields<'_>) -> Result<(f32, RopeScaling)> {
    let name = ["rope_parameters", "rope_scaling"].into_iter().find(|name| fields.json[*name].is_object());
    let Some(name) = name else {
        return Ok((fields.number_or("rope_theta", 10000.0)?, RopeScaling::None));
    };
    let inner = Fields { path: fields.path, json: &fields.json[name] };
    let base = match inner.json["rope_theta"] {
        Value::Null => fields.number_or("rope_theta", 10000.0)?,
        _ => inner.number_or("rope_theta", 10000.0)?,
    };
    let kind = inner.json["rope_type"].as_str().or(inner.json["type"].as_str()).unwrap_or("default");
    let scaling = match kind {
        "default" => RopeScaling::None,
        "linear" => RopeScaling::Linear { factor: inner.number_or("factor", 1.0)? },
        "llama3" => RopeScaling::Llama3 {
            factor: inner.number_or("factor", 8.0)?,
            low: inner.number_or("low_freq_factor", 1.0)?,
            high: inner.number_or("high_freq_factor", 4.0)?,
            original: inner.number_or("original_max_position_embeddings", 8192.0)?,
        },
        other => {
            let what = format!("`{name}` of type `{other}`");
            return Err(Error::Unsupported { path: fields.path.into(), what });
        }
    };
    Ok((base, scaling))
}

fn quantization(fields: &Fields<'_>) -> Result<Option<Quantization>> {
    if fields.json["quantization_config"].is_null() {
        return Ok(None);
    }
    let inner = Fields { path: fields.path, json: &fields.json["quantization_config"] };
    if inner.json["quant_method"] != "bitnet" {
        return Err(fields.wrong("quantization_config.quant_method", "\"bitnet\""));
    }
    inner.refuse("use_rms_norm", "a norm of its own before each linear layer (`use_rms_norm`)")?;
    let class = match inner.json["linear_class"].as_str().unwrap_or("bitlinear") {
        "bitlinear" => LinearClass::BitLinear,
        "autobitlinear" => LinearClass::AutoBitLinear,
        _ => {
            let expected = "\"bitlinear\" or \"autobitlinear\"";
            return Err(fields.wrong("quantization_config.linear_class", expected));
        }
    };
    let online = match inner.json["quantization_mode"].as_str().unwrap_or("offline") {
        "online" => true,
        "offline" => false,
        _ => return Err(fields.wrong("quantization_config.quantization_mode", "\"online\" or \"offline\"")),
    };
    let skip = inner.json["modules_to_not_convert"].as_array();
    let skip = skip.into_iter().flatten().filter_map(|name| name.as_str().map(str::to_owned)).collect();
    Ok(Some(Quantization { class, online, skip }))
}
