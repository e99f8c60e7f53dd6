//! `bitnet-b1.58`: microsoft/bitnet-b1.58-2B-4T, which is `bitnet` with a squared ReLU at the gate. Names and rotation are
//! those of its published GGUF and of bitnet.cpp; libllama knows it by our patch `0031-bitnet-b158`.

use crate::ggml::RopeKind;
use crate::model::spec::{Activation, Architecture, BlockSpec};

pub(super) const ARCHITECTURE: Architecture = Architecture {
    name: "bitnet-b1.58",
    block: BlockSpec {
        rope: RopeKind::Neox,
        attn_sub_norm: true,
        ffn_sub_norm: true,
        activation: Activation::ReluSqr,
    },
};
