//! How close an operation's results have to be, by tier.

use serde::{Serialize, Serializer};

use super::Tier;
use crate::ggml::{Dtype, Tensor};

/// How close two results have to be.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Class {
    /// The same bits.
    Exact,
    /// At most so many representable values apart.
    Ulp(u64),
    /// At most that share of the reference's squares.
    Nmse(f64),
}

/// One rounding, which devices may do either way.
const ONE_ROUNDING: Class = Class::Ulp(1);
/// Sums of f32 products in other orders, and functions of a device's own: upstream's limit in `test-backend-ops`.
const FLOATS: Class = Class::Nmse(1e-7);
/// Operands that a device rounds to f16 first, or to 8 bits in blocks: upstream's limit there.
const SHORT_FLOATS: Class = Class::Nmse(5e-4);
/// Logits after all layers, each of which rounded activations to 8 bits: a float's last bit decides which way, and a step of 1/127
/// of a token's largest value then goes through what is left of the network.
pub(super) const LOGITS: Class = Class::Nmse(1e-2);

impl Class {
    /// What `op` is held to in a tier.
    pub fn of(op: &Tensor, tier: Tier) -> Self {
        if tier != Tier::T0 {
            return Self::Exact;
        }
        let sources = op.sources();
        let source = |i: usize| sources.get(i).map(Tensor::dtype);
        match op.op_name().as_str() {
            "TQ_QUANTIZE" | "TQ_MUL_MAT" | "TQ_MUL_MAT_BACK" => Self::Exact,
            "MUL_MAT" if source(0).is_some_and(Dtype::is_ternary) => Self::Exact,
            // What moves values, of one type.
            "GET_ROWS" | "SET_ROWS" | "CPY" | "CONT" | "DUP" | "CONCAT" | "REPEAT"
                if source(0) == Some(op.dtype()) =>
            {
                Self::Exact
            }
            "ADD" | "MUL" | "SUB" | "SCALE" | "SQR" | "RELU" => ONE_ROUNDING,
            "MUL_MAT" | "OUT_PROD" | "FLASH_ATTN_EXT" | "ATTENTION" | "ATTENTION_BACK"
            | "LOW_RANK_PROJECT" | "LOW_RANK_ADD" | "LOW_RANK_GRAD" => SHORT_FLOATS,
            _ => FLOATS,
        }
    }
}

impl std::fmt::Display for Class {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Exact => write!(f, "Exact"),
            Self::Ulp(n) => write!(f, "Ulp({n})"),
            Self::Nmse(most) => write!(f, "Nmse({most:.0e})"),
        }
    }
}

impl Serialize for Class {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}
