//! `llama`: Llama 2 and 3, SmolLM2, TriLM, Falcon3-1.58bit, Llama3-8B-1.58. Follows upstream's `models/llama.cpp`.

use crate::ggml::RopeKind;
use crate::model::spec::{Activation, Architecture, BlockSpec};

pub(super) const ARCHITECTURE: Architecture = Architecture {
    name: "llama",
    block: BlockSpec {
        rope: RopeKind::Norm,
        attn_sub_norm: false,
        ffn_sub_norm: false,
        activation: Activation::Silu,
    },
};
