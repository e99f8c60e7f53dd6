//! What a transformer block consists of, declared rather than coded.

use super::error::{Error, Result};
use crate::ggml::RopeKind;

/// One architecture: its GGUF name and what its blocks have.
#[derive(Debug)]
pub struct Architecture {
    /// GGUF's `general.architecture`.
    pub name: &'static str,
    pub block: BlockSpec,
}

impl Architecture {
    /// Whether a layer's `scale` multiplies the adapter's part too: `scale * (W x + B A x)` instead of
    /// `scale * W x + B A x`. Upstream's `build_ffn` scales after `build_lora_mm`, its attention and the own `ffn_down` of
    /// `models/bitnet.cpp` inside of it; an adapter must mean the same here and there.
    pub fn scale_covers_adapter(&self, target: Target) -> bool {
        match target {
            Target::FfnGate | Target::FfnUp => true,
            Target::FfnDown => !self.block.ffn_sub_norm,
            Target::AttnQ | Target::AttnK | Target::AttnV | Target::AttnOutput => false,
        }
    }
}

/// What varies between blocks of the Llama kind: pre-norm attention with rotary embedding and grouped queries,
/// then a gated feed-forward network. A linear layer's `scale` and `bias` are used where the file has them.
#[derive(Debug)]
pub struct BlockSpec {
    pub rope: RopeKind,
    /// A norm on the attention's result, before `attn_output`.
    pub attn_sub_norm: bool,
    /// A norm on the gated activation, before `ffn_down`.
    pub ffn_sub_norm: bool,
    pub activation: Activation,
}

/// What the feed-forward network's gate goes through before it multiplies `up`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// `gate * sigmoid(gate)`
    Silu,
    /// `max(gate, 0)^2`; upstream's `LLM_FFN_RELU_SQR`.
    ReluSqr,
}

/// A linear layer that an adapter can change.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Target {
    AttnQ,
    AttnK,
    AttnV,
    AttnOutput,
    FfnGate,
    FfnUp,
    FfnDown,
}

impl Target {
    /// All of them, in the order of the block.
    pub const ALL: [Self; 7] =
        [Self::AttnQ, Self::AttnK, Self::AttnV, Self::AttnOutput, Self::FfnGate, Self::FfnUp, Self::FfnDown];

    /// The layers by the activation that they read, in the order of the block.
    pub const GROUPS: [&'static [Self]; 4] = [
        &[Self::AttnQ, Self::AttnK, Self::AttnV],
        &[Self::AttnOutput],
        &[Self::FfnGate, Self::FfnUp],
        &[Self::FfnDown],
    ];

    /// The name in GGUF tensor names: `blk.0.<name>.weight`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::AttnQ => "attn_q",
            Self::AttnK => "attn_k",
            Self::AttnV => "attn_v",
            Self::AttnOutput => "attn_output",
            Self::FfnGate => "ffn_gate",
            Self::FfnUp => "ffn_up",
            Self::FfnDown => "ffn_down",
        }
    }

    /// The name that Hugging Face models and PEFT use.
    pub const fn hf_name(self) -> &'static str {
        match self {
            Self::AttnQ => "q_proj",
            Self::AttnK => "k_proj",
            Self::AttnV => "v_proj",
            Self::AttnOutput => "o_proj",
            Self::FfnGate => "gate_proj",
            Self::FfnUp => "up_proj",
            Self::FfnDown => "down_proj",
        }
    }

    /// The target of that name, GGUF's or Hugging Face's.
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|t| t.name() == name || t.hf_name() == name)
    }

    /// The targets of those names, or all of them for `all`; in the order of the block, each once.
    pub fn parse_list(names: &[String]) -> Result<Vec<Self>> {
        let mut targets = Vec::new();
        for name in names.iter().map(|n| n.trim()) {
            match (name, Self::parse(name)) {
                ("all", _) => targets.extend(Self::ALL),
                (_, Some(target)) => targets.push(target),
                (_, None) => {
                    let known = Self::ALL.map(Self::name).join(", ");
                    return Err(Error::UnknownTarget { name: name.into(), known });
                }
            }
        }
        targets.sort_unstable();
        targets.dedup();
        Ok(targets)
    }

    /// The layer's weight in a GGUF file.
    pub fn tensor_name(self, layer: usize) -> String {
        format!("blk.{layer}.{}.weight", self.name())
    }
}
