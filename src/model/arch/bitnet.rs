//! `bitnet`: the 1bitLLM family (`bitnet_b1_58-large`, `-xl`, `-3B`), with a norm before each output projection.
//! Follows upstream's `models/bitnet.cpp`.

use crate::ggml::RopeKind;
use crate::model::spec::{Activation, Architecture, BlockSpec};

pub(super) const ARCHITECTURE: Architecture = Architecture {
    name: "bitnet",
    block: BlockSpec {
        rope: RopeKind::Neox,
        attn_sub_norm: true,
        ffn_sub_norm: true,
        activation: Activation::Silu,
    },
};
